"""Text files as people and their programs save them: UTF-8, with or without a mark at its beginning (BOM)."""

from __future__ import annotations

from pathlib import Path

_ADVICE = 'save it as UTF-8 (in Excel as "CSV UTF-8")'


def read_text(path: Path) -> str:
    """The text of a file, its lines ended by ``\\n`` alone.

    Raises:
        ValueError: it is in another encoding.
        OSError: it cannot be read.
    """
    return decoded(path.read_bytes(), str(path)).replace("\r\n", "\n").replace("\r", "\n")


def decoded(content: bytes, what: str) -> str:
    """The text of UTF-8, its mark taken off, its lines as they are.

    Args:
        what: it is of, for the message.

    Raises:
        ValueError: it is in another encoding. Read as UTF-8 nevertheless it would be other words.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError(f"{what} is UTF-16, expected UTF-8: {_ADVICE}") from None
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{what} is not UTF-8 (byte {content[error.start]:#x} in line {line}): {_ADVICE}"
        ) from None
    if "\0" in text:
        raise ValueError(f"{what} holds zeros, as UTF-16 does, expected UTF-8: {_ADVICE}")
    return text
