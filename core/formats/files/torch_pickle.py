"""PyTorch's own files (.ckpt, .pt, .pth, .bin) read as data: nothing that they hold is ever run.

``torch.load`` with ``weights_only=True`` knows a fixed list of tensor types and builds nothing else.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .safetensors_io import require_tensor_count

ZIP_MAGIC = b"PK\x03\x04"
# Files of torch before 1.6 start with this pickled number (torch/serialization.py, MAGIC_NUMBER), behind the
# number of the pickle's protocol and, from protocol 4 on, the length of a frame.
_LEGACY_MAGIC = re.compile(rb"\x80([\x02-\x05])(?:\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
_PROTOCOL = 2  # the only one that torch writes by itself and reads without running code
_STORED_OR_DEFLATED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

# Keys under which trainers put the weights beside counters and optimizer states; the first one found counts.
# The averaged weights, where DALLE2-pytorch keeps both, are the ones it samples from.
WRAPPERS = ("ema_model", "state_dict", "model_state_dict", "model", "module", "weights", "params")
_MAX_DEPTH = 4

# What trainers put beside the weights in the shape of objects: DALLE2-pytorch its version, and the warm-up of
# its learning rate with the optimizer in it. An object without content stands for each; the classes are not
# even imported.
_VERSIONS = ("packaging.version.Version", "packaging.version._Version")
_BOOKKEEPING = (
    *_VERSIONS,
    "packaging._structures.InfinityType",
    "packaging._structures.NegativeInfinityType",
    "pytorch_warmup.base.LinearWarmup",
    "torch.optim.adam.Adam",
    "torch.optim.adamw.AdamW",
)

# What torch.load says of a byte that is no instruction of a pickle: there is no object behind it.
_NO_INSTRUCTION = re.compile(r"Unsupported operand \d+")


class _Bookkeeping:
    """Stands for an object that does not matter; takes whatever the file gives it and keeps nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class PackageVersion(_Bookkeeping):
    """Stands for a version of a package; of what the file gives it the numbers are kept."""

    release: tuple[int, ...] = ()

    def __new__(cls, *parts: object) -> PackageVersion:
        version = super().__new__(cls)
        version.release = _release(parts)
        return version

    def __setstate__(self, state: object) -> None:
        self.release = self.release or _release(state)


def _release(value: object, depth: int = 3) -> tuple[int, ...]:
    """The first tuple of a few numbers in what a version is made of, such as (1, 10, 9)."""
    if isinstance(value, PackageVersion):
        return value.release
    parts = tuple(value.values()) if isinstance(value, Mapping) else value
    if not isinstance(parts, tuple | list) or not depth:
        return ()
    if 1 < len(parts) <= 4 and all(isinstance(part, int) for part in parts):
        return tuple(parts)
    return next((found for part in parts if (found := _release(part, depth - 1))), ())


def release_of(version: object) -> tuple[int, ...] | None:
    """The numbers of a package's version, which checkpoints hold as text or an object; None for neither."""
    if isinstance(version, PackageVersion):
        return version.release or None
    numbers = re.match(r"\d+(\.\d+)+", version) if isinstance(version, str) else None
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else None


class _PlainDict:
    """Stands for ``defaultdict``, which optimizers use and ``torch.load`` cannot fill: an empty dict."""

    def __new__(cls, *_: object) -> dict[Any, Any]:  # type: ignore[misc]
        return {}


def is_torch_file(head: bytes) -> bool:
    """Whether these first bytes of a file are those of a PyTorch file, of whatever content."""
    return head.startswith(ZIP_MAGIC) or _LEGACY_MAGIC.match(head) is not None


def is_torchscript(path: Path) -> bool:
    """Whether a zip archive holds a program (TorchScript) beside its tensors.

    Raises:
        ValueError: not a whole zip archive.
    """
    names = [part.filename for part in _parts(path)]
    return any(re.fullmatch(r"[^/]+/(constants\.pkl|code/.+)", name) for name in names)


def _parts(path: Path) -> list[zipfile.ZipInfo]:
    """What a zip archive holds, by its directory."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"{path}: is cut short or damaged: a PyTorch file is a zip archive, and this one cannot be "
            f"opened ({error}). Download or copy the file again"
        ) from error


def read_torch_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file by name, memory-mapped where the file allows it, and what lay beside them.

    The weights may be the whole file or lie under one of ``WRAPPERS``. A tuple of tensors gives them the
    names ``0``, ``1``, ….

    Raises:
        ValueError: damaged, more than tensors and plain values, or no tensors.
    """
    content = _load(path)
    metadata: dict[str, Any] = {}
    for _ in range(_MAX_DEPTH):
        if isinstance(content, tuple | list):
            content = {str(index): value for index, value in enumerate(content)}
        if isinstance(content, Tensor):
            content = {"0": content}
        if not isinstance(content, Mapping):
            break
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapper is None and tensors:
            require_tensor_count(path, len(tensors))
            _require_dense(path, tensors)
            metadata.update({str(k): v for k, v in content.items() if not isinstance(v, Tensor)})
            return tensors, metadata
        if wrapper is None:
            break
        metadata.update({str(key): value for key, value in content.items() if key != wrapper})
        content = content[wrapper]
    found = f"a dict with {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else ""
    raise ValueError(
        f"{path}: holds no tensors by name ({found or type(content).__name__}); expected the weights of a "
        f"model, as torch.save(model.state_dict()) writes them"
    )


def _load(path: Path) -> Any:
    mapped = _can_be_mapped(path)
    _require_protocol(path)
    try:
        with _stand_ins(), path.open("rb") as file:
            # By the name alone where it has to be: of a name in .safetensors torch.load expects no pickle.
            content = path if mapped else file
            return torch.load(content, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if wrong := _NO_INSTRUCTION.search(str(error)):
            raise _damaged(path, wrong[0]) from error
        name = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({name[1]})" if name else ""
        raise ValueError(
            f"{path}: holds Python objects{what} beside tensors, which only running its code could restore; "
            f"nothing of it was run. Get the model as .safetensors, or save only its state_dict on a machine "
            f"where you trust the file"
        ) from error
    except MemoryError as error:
        raise ValueError(
            f"{path}: asks for more memory than there is ({path.stat().st_size:,} bytes on the disk): it is "
            f"damaged, or too large for this machine. Get the file again, or free some memory"
        ) from error
    except Exception as error:  # bytes that were changed can make torch.load fail in any way
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise _damaged(path, reason) from error


def _can_be_mapped(path: Path) -> bool:
    """Whether the bytes of the tensors lie in the file as they are: in an archive that is not compressed.

    Raises:
        ValueError: an archive that is damaged, or compressed in a way that torch cannot undo.
    """
    with path.open("rb") as file:
        if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
            return False  # the older form
    parts = _parts(path)
    strange = next((part for part in parts if part.compress_type not in _STORED_OR_DEFLATED), None)
    if strange is not None:
        raise ValueError(
            f"{path}: its part {strange.filename} is compressed in a way that cannot be read (zip's method "
            f"{strange.compress_type}); unpack the archive, and pack it again without compression"
        )
    stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
    return stored and path.suffix.lower() != ".safetensors"


def _require_protocol(path: Path) -> None:
    """Raise a ValueError where a file is of a pickle protocol that cannot be read without running it."""
    with path.open("rb") as file:
        legacy = _LEGACY_MAGIC.match(file.read(32))
    protocol = legacy[1][0] if legacy else _protocol_in_archive(path)
    if protocol is not None and protocol > _PROTOCOL + (legacy is None):
        raise ValueError(
            f"{path}: was saved with the pickle protocol {protocol}, an unusual one, which torch reads only "
            f"by running what the file says; nothing of it was run. Where you trust the file, save it again "
            f"with the usual one: torch.save(torch.load(FILE, weights_only=False), FILE)"
        )


def _protocol_in_archive(path: Path) -> int | None:
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
            if name is None:
                return None
            with archive.open(name) as content:
                head = content.read(2)
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError, NotImplementedError, EOFError):
        return None  # torch.load tells what is wrong with it
    return head[1] if len(head) == 2 and head[0] == 0x80 and 3 <= head[1] <= 5 else None


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path}: is cut short or damaged: it cannot be read as a PyTorch file ({reason}). Download or copy "
        f"the file again"
    )


def _stand_ins() -> AbstractContextManager[object]:
    """Lets ``torch.load`` put a ``_Bookkeeping`` of the right name where it would refuse the object."""
    stand_ins = []
    for path in _BOOKKEEPING:
        module, _, name = path.rpartition(".")
        base = PackageVersion if path in _VERSIONS else _Bookkeeping
        stand_ins.append(type(name, (base,), {"__module__": module}))
    stand_ins.append(type("defaultdict", (_PlainDict,), {"__module__": "collections"}))
    return torch.serialization.safe_globals([*stand_ins, dict])


def _require_dense(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ValueError(
                f"{path}: {name} has no values, only a shape (it was saved from the meta device); get the "
                f"full weights"
            )
        if tensor.layout != torch.strided or tensor.is_quantized:
            kind = "quantised" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
            raise ValueError(
                f"{path}: {name} is {kind}; expected plain (dense) tensors. Get the full weights"
            )
