"""Workflows inside pictures and videos, as ComfyUI's nodes write them and its page finds them.

PNG: text chunks named ``prompt`` and ``workflow``, before or behind the pixels. WebP: EXIF texts
``prompt:…`` and ``workflow:…``. MP4 and WebM: metadata of these names.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

from ..extras import MissingExtraError, pyav
from .errors import WorkflowError

KEYS = ("prompt", "workflow")
MAX_TEXT = 64 << 20  # bytes of a compressed text

_PNG = b"\x89PNG\r\n\x1a\n"


def carried_texts(data: bytes, name: str) -> dict[str, str] | None:
    """The texts named ``prompt`` and ``workflow`` in a picture or video; None for any other kind of file.

    Raises:
        WorkflowError: a file that cannot be read, with its ``name``.
    """
    try:
        if data.startswith(_PNG):
            found = _png_texts(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            found = dict(_exif_texts(data))
        elif data[4:8] == b"ftyp" or data[:4] == b"\x1aE\xdf\xa3":
            found = _video_texts(data)
        else:
            return None
    except (WorkflowError, MissingExtraError) as error:
        raise WorkflowError(f"{name}: {error}") from None
    except Exception as error:  # decoders raise whatever they stumble over
        raise WorkflowError(f"{name}: cannot be read: {error or type(error).__name__}.") from None
    return {key: found[key] for key in KEYS if key in found}


def _png_texts(data: bytes) -> dict[str, str]:
    """Names and texts of all text chunks. Pillow shows only those before the pixels, and as Latin-1."""
    found = {}
    at, kind = len(_PNG), b""
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        at += 12 + length
        key, _, rest = body.partition(b"\0")
        name = key.decode("latin-1")
        if name not in KEYS:
            continue
        if kind in (b"tEXt", b"comf"):  # the latter is what SaveAnimatedPNG writes
            found[name] = _text(rest)
        elif kind == b"zTXt":
            found[name] = _text(_inflated(rest[1:]))
        elif kind == b"iTXt":
            _language, _, translated = rest[2:].partition(b"\0")
            _keyword, _, text = translated.partition(b"\0")
            found[name] = _text(_inflated(text) if rest[:1] == b"\1" else text)
    if not found and kind != b"IEND":
        raise WorkflowError("this PNG is cut short, and no workflow is in what is there.")
    return found


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(data, MAX_TEXT)
    except zlib.error as error:
        raise WorkflowError(f"its compressed text is damaged ({error}).") from None
    if stream.unconsumed_tail:
        raise WorkflowError(f"its compressed text has more than {MAX_TEXT >> 20} MiB; that is no workflow.")
    return text


def _text(data: bytes) -> str:
    """Latin-1 by the letter of the format, but most programs write UTF-8, and so reads ComfyUI's page."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _exif_texts(data: bytes) -> Iterator[tuple[str, str]]:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        tags = dict(picture.getexif())
    for value in tags.values():
        if isinstance(value, str):
            key, colon, text = value.partition(":")
            if colon:
                yield key.strip(), _utf8(text)


def _utf8(text: str) -> str:
    """Pillow reads EXIF texts as Latin-1."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _video_texts(data: bytes) -> dict[str, str]:
    with pyav("reading the workflow in a video").open(io.BytesIO(data)) as file:
        return {key.lower(): text for key, text in file.metadata.items()}
