"""Settings of the whole test suite."""

from __future__ import annotations

import getpass
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from unclip.core.stages import Bundle


def pytest_configure() -> None:
    # The networks of the tests are tiny: a second thread costs them more in waiting than it computes. The
    # variable is for processes that begin after this: pytest's workers, and programs that tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What goes to the temporary folder, as previews do, goes with the run; the compiler's cache stays."""
    tmp_path_factory.getbasetemp()  # what failed tests have written has its place outside of this
    place = Path(tempfile.gettempdir())
    with (
        tempfile.TemporaryDirectory(prefix="unclip-tests-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
            patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(place / f"torchinductor_{getpass.getuser()}"))
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(autouse=True)
def _names_of_this_process() -> Iterator[None]:
    """What the command line names to the nodes by its path has that name until the test ends."""
    yield
    if (host := sys.modules.get("unclip.nodes.host")) is not None:
        host.named_bundles.clear()
        host.named_loras.clear()


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """Tiny networks with random weights, made anew for each file of tests; some files have another one."""
    from .helpers.bundle import tiny_bundle

    return tiny_bundle()


@pytest.fixture
def saved(bundle: Bundle, tmp_path: Path) -> Path:
    """The bundle's decoder in one file."""
    from unclip.core.formats.native.checkpoints import save_stage

    return save_stage(bundle.decoder, tmp_path / "decoder.safetensors")
