"""Damage: to bytes, JSON-like documents, safetensors and zip archives. Each gives what it did, in words."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import zipfile
from collections.abc import Iterator
from typing import Any

ODD_NUMBERS = (-1, 0, 1, 3, -(2**31), 2**53, 2**64, 10**30, 1.5, 1e-300, 1e308)
ODD_NUMBERS = (*ODD_NUMBERS, float("nan"), float("inf"), -float("inf"))
ODD_TEXTS = ("", " ", "x", "-1", "NaN", "../../x", "/etc/passwd", "\0", "a" * 5000, "\ud800", "ü😀")
ODD_WHOLES = (None, True, False, [], [[]], [None], [1, 2], ["x"], {}, {"a": 1}, {"": None}, {"id": 1})
OTHER_FILES = (b"", b"\0", b"<!doctype html>", b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04")
OTHER_FILES = (*OTHER_FILES, b"\x89PNG\r\n\x1a\n", b"{}", b"null", b"\xff\xfe{\0}\0", b"\x80\x02}q\x00.")
LONG_NUMBER, DEEP = "9" * 5000, "[" * 5000 + "]" * 5000


def odd_value(rng: random.Random) -> Any:
    """Something that hardly belongs there."""
    return copy.deepcopy(rng.choice((*ODD_NUMBERS, *ODD_TEXTS, *ODD_WHOLES)))


def damaged_bytes(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """What may happen to any file."""
    at = rng.randrange(len(data)) if data else 0
    way = rng.choice(("flip", "flip", "cut", "zeros", "insert", "other"))
    if way == "flip":
        changed = bytearray(data)
        for _ in range(rng.choice((1, 4, 16)) if data else 0):
            changed[rng.randrange(min(len(data), rng.choice((64, 512, len(data)))))] ^= 1 << rng.randrange(8)
        return "bits flipped", bytes(changed)
    if way == "cut":
        return f"cut to {at} of {len(data)} bytes", data[:at]
    if way == "zeros":
        return f"zeros from byte {at} on", data[:at] + bytes(min(64, len(data) - at)) + data[at + 64 :]
    if way == "insert":
        return f"bytes inserted at {at}", data[:at] + rng.randbytes(8) + data[at:]
    other = rng.choice(OTHER_FILES)
    return f"another file: {other[:12]!r}", other


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Containers and keys of all values in a JSON-like document."""
    todo = [document]
    while todo:
        value = todo.pop()
        entries = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for key, inner in list(entries):
            yield value, key
            todo.append(inner)


def damaged_document(rng: random.Random, document: Any) -> tuple[str, Any]:
    """One place of a JSON-like document changed: an odd value, another form, missing, doubled or swapped."""
    changed = copy.deepcopy(document)
    found = list(places(changed))
    if not found or rng.random() < 0.03:
        value = odd_value(rng)
        return f"all of it is {value!r:.40}", value
    container, key = rng.choice(found)
    value = container[key]
    way = rng.choice(("odd", "odd", "odd", "form", "form", "missing", "doubled", "swapped"))
    if way == "form":
        forms = [[value], {"value": value}, str(value)]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            forms += [-value, value * 10**9, value + 0.5]
        container[key] = rng.choice(forms)
    elif way == "missing":
        del container[key]
        return f"{key!r} is missing", changed
    elif way == "doubled" and isinstance(container, list):
        container.insert(key, copy.deepcopy(value))
        return f"entry {key} is doubled", changed
    elif way == "swapped":
        container[key] = copy.deepcopy(rng.choice(found)[0])
    else:
        container[key] = odd_value(rng)
    return f"{key!r} is {container[key]!r:.40}", changed


def damaged_json(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """A JSON file: mostly one place of it changed, else its text."""
    draw = rng.random()
    if draw < 0.75:
        what, changed = damaged_document(rng, json.loads(data))
        return what, json.dumps(changed).encode()
    if draw < 0.85:
        return "a number of thousands of digits", json.dumps(json.loads(data)).replace(
            "1", LONG_NUMBER, 1
        ).encode()
    if draw < 0.92:
        return "nested thousands deep", DEEP.encode()
    return damaged_bytes(rng, data)


def split_safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the body of a safetensors file."""
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_safetensors(header: Any, body: bytes) -> bytes:
    """A safetensors file of any header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def damaged_safetensors(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Its header, the JSON that unclip keeps in its metadata, or its bytes."""
    if rng.random() < 0.25:
        return damaged_bytes(rng, data)
    header, body = split_safetensors(data)
    metadata = header.get("__metadata__", {})
    inner = [key for key, text in metadata.items() if text.startswith("{")]
    if inner and rng.random() < 0.7:
        key = rng.choice(inner)
        what, changed = damaged_document(rng, json.loads(metadata[key]))
        metadata[key] = json.dumps(changed)
        return f"{key}: {what}", join_safetensors(header, body)
    what, header = damaged_document(rng, header)
    return f"header: {what}", join_safetensors(header, body)


def damaged_archive(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """A PyTorch file: one record damaged or gone, all compressed, or its bytes."""
    if rng.random() < 0.3:
        return damaged_bytes(rng, data)
    target = io.BytesIO()
    pressed = rng.random() < 0.2
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        chosen = rng.choice(old.namelist())
        way = "all compressed" if pressed else rng.choice(("missing", "damaged", "damaged"))
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED if pressed else zipfile.ZIP_STORED) as new:
            for name in old.namelist():
                content = old.read(name)
                if name == chosen and way == "missing":
                    continue
                if name == chosen and way == "damaged":
                    way, content = damaged_bytes(rng, content)
                new.writestr(name, content)
    return f"{chosen}: {way}", target.getvalue()


def damaged_file(rng: random.Random, name: str, data: bytes) -> tuple[str, bytes]:
    """Damage that suits the kind of a file."""
    if name.endswith(".json"):
        return damaged_json(rng, data)
    if name.endswith(".safetensors"):
        return damaged_safetensors(rng, data)
    if data.startswith(b"PK"):
        return damaged_archive(rng, data)
    return damaged_bytes(rng, data)
