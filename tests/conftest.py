"""Settings of the whole test suite."""

from __future__ import annotations

import torch


def pytest_configure() -> None:
    # The networks of the tests are tiny: a second thread costs them more in waiting than it computes.
    torch.set_num_threads(1)
