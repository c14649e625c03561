"""What App Mode of newer pages shows of text_to_image."""

from __future__ import annotations

import pytest

from .browser import opened
from .shipped import FOLDER, read

APP_MODE = "Comfy.ToggleLinear"
HAS_COMMAND = "id => window.app.extensionManager.command.commands.some(command => command.id === id)"


def test_app_mode_shows_the_inputs_that_the_template_names(server):
    with opened(server) as comfy:
        path = FOLDER / "text_to_image.json"
        comfy.open_template(path.stem, read(path))
        if not comfy.page.evaluate(HAS_COMMAND, APP_MODE):
            pytest.skip("this page has no App Mode")
        comfy.command(APP_MODE)
        comfy.page.get_by_role("button", name="Skip", exact=True).click()  # its tour
        inputs = comfy.page.get_by_test_id("app-mode-widget-item")
        inputs.first.wait_for()
        names = [text.splitlines()[0] for text in inputs.all_inner_texts()]
        assert names == [name for _, name in read(path)["extra"]["linearData"]["inputs"]]
        comfy.page.get_by_test_id("linear-run-button").wait_for()
        assert comfy.complaints == []
