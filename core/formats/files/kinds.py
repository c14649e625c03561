"""What a file is that people put in the place of a checkpoint, by its first bytes."""

from __future__ import annotations

from pathlib import Path

_HEAD_BYTES = 32

_OTHER_FILES: tuple[tuple[bytes, str], ...] = (
    (b"PK", "a PyTorch .pt or .ckpt file"),
    (b"version https://git-lfs", "a Git LFS pointer: the weights themselves were not downloaded"),
    (b"GGUF", "a GGUF file, the format of language models"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"\x89HDF", "an HDF5 file of Keras"),
    (b"<", "a web page"),
)


def head_of(path: Path) -> bytes:
    """The first bytes of a file.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def guess(head: bytes) -> str:
    """What a file with these first bytes seems to be, in brackets behind a space; or nothing."""
    if not head:
        return " (the file is empty)"
    stripped = head.lstrip()
    for magic, what in _OTHER_FILES:
        if stripped.startswith(magic):
            return f" (it looks like {what})"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return " (it looks like a text file)"
    return ""
