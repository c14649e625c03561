"""Packages that only some commands need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

TRAIN_PACKAGES = (
    "accelerate",
    "braceexpand",
    "matplotlib",
    "peft",
    "pyarrow",
    "resvg_py",
    "timm",
    "tomli",
    "webdataset",
)


class MissingExtraError(ValueError):
    """A package that is not installed; says how to get it."""


def pyav(what: str) -> ModuleType:
    """PyAV, which ``what`` needs. Raises MissingExtraError where it is not installed."""
    with _needs(what, "av (PyAV)", "video"):
        import av
    return av


def hugging_face(what: str) -> ModuleType:
    """huggingface_hub, which ``what`` needs. Raises MissingExtraError where it is not installed."""
    with _needs(what, "huggingface_hub", "download"):
        import huggingface_hub
    return huggingface_hub


@contextmanager
def _needs(what: str, package: str, extra: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            f"{what} needs the package {package}, which is not installed: "
            f'pip install -e ".[{extra}]" in the folder of unclip'
        ) from error


@contextmanager
def needs_train_extra() -> Iterator[None]:
    """Turn the ImportError of a package of the extra ``train`` into a ValueError that says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in TRAIN_PACKAGES:
            raise
        raise ValueError(
            f"this command needs the package {error.name}, which is not installed: "
            f'pip install -e ".[train]" in the folder of unclip'
        ) from error
