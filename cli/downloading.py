"""Files from the web into a folder: continued where they were left, checked by their hashes, never half."""

from __future__ import annotations

import base64
import hashlib
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from io import SEEK_END, FileIO
from pathlib import Path, PurePosixPath, PureWindowsPath

TRIES = 4
PAUSE = 1.0  # seconds before the second try, twice as many before each other
TIMEOUT = 30.0
CHUNK = 1 << 20
_UNFINISHED = ".part"

OnBytes = Callable[[int, "int | None"], object]
"""Told how many bytes of a file are there, and of how many where that is known."""


_BUSY = (408, 429)  # answers of a server that may be asked again


class OfflineError(ValueError):
    """The server cannot be reached."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of the web.

    Attributes:
        path: below the folder that it goes to, with ``/``.
        size: bytes; None where only the server's answer tells.
        sha256: hexadecimal, of large files of Hugging Face.
        git: hexadecimal SHA-1 of git's blob, of its small ones.
    """

    url: str
    path: str
    size: int | None = None
    sha256: str | None = None
    git: str | None = None


def fetch(file: RemoteFile, folder: Path, on_bytes: OnBytes | None = None) -> Path:
    """Download one file, or leave the one that is there in the size that it is to have.

    What an earlier run has left unfinished is continued, if the server can; a hash that the server tells is
    compared before the file takes its name.

    Raises:
        OfflineError: no answer, after several tries.
        ValueError: the server refuses, or what came is not what it announced; a name that leads elsewhere.
        OSError: a full disk, a folder without the right to write.
    """
    target = folder / _safe(file.path)
    if target.is_file() and file.size in (None, target.stat().st_size):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(target)
    for number in range(TRIES):
        try:
            md5 = _continue(file, unfinished, on_bytes)
            break
        except urllib.error.HTTPError as error:
            if (error.code < 500 and error.code not in _BUSY) or number == TRIES - 1:
                raise ValueError(f"{file.url}: the server answers {error.code} {error.reason}") from error
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and error.filename is not None:  # of the disk
                raise
            if number == TRIES - 1:
                raise offline(file.url, error) from error
        time.sleep(PAUSE * 2**number)
    _check(file, unfinished, md5)
    unfinished.replace(target)
    return target


def require_space(files: Sequence[RemoteFile], folder: Path) -> None:
    """Raise a ValueError where the disk of a folder has no room for what is missing of these files."""
    missing = sum(max(0, (file.size or 0) - _there(folder / _safe(file.path))) for file in files)
    place = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    free = shutil.disk_usage(place).free
    if missing > free:
        raise ValueError(
            f"{folder}: its disk has {free / 1e9:.1f} GB free, but {missing / 1e9:.1f} GB are to be "
            f"downloaded; free some of it, or choose another model folder with --to"
        )


def _there(target: Path) -> int:
    """Bytes of a file that an earlier run has brought, wholly or in part."""
    found = (each.stat().st_size for each in (target, _unfinished(target)) if each.is_file())
    return max(found, default=0)


def _unfinished(target: Path) -> Path:
    return target.with_name(f".{target.name}{_UNFINISHED}")


def offline(url: str, error: Exception) -> OfflineError:
    """What to say where nobody answers."""
    server = url.split("/")[2] if "//" in url else url
    reason = getattr(error, "reason", None) or error
    return OfflineError(
        f"{server} cannot be reached ({reason}). Without a connection nothing can be downloaded: try again "
        f"later, or copy the folder from another machine. What has been downloaded stays and is continued"
    )


def _continue(file: RemoteFile, unfinished: Path, on_bytes: OnBytes | None) -> str | None:
    """Download what is missing; returns the MD5 of the whole that the server tells, if it does."""
    there = unfinished.stat().st_size if unfinished.is_file() else 0
    if file.size is not None and there >= file.size:
        there = there if there == file.size else 0
        if there:
            return None
    headers = {"User-Agent": "unclip", "Accept-Encoding": "identity"}
    if there:
        headers["Range"] = f"bytes={there}-"
    try:
        answer = urllib.request.urlopen(urllib.request.Request(file.url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not there:  # what is there is no beginning of this file
            raise
        unfinished.unlink()
        return _continue(file, unfinished, on_bytes)
    with answer:
        if answer.status != 206:
            there = 0  # the server begins anew
        length = answer.headers.get("Content-Length")
        total = file.size if length is None else there + int(length)
        with unfinished.open("ab", buffering=0) as out:
            _keep_others_out(out, unfinished)
            written = out.seek(0, SEEK_END)
            if there and written != there:
                raise ConnectionError("another download has gone on with the file meanwhile")
            if written > there:
                out.truncate(0)
            while chunk := answer.read(CHUNK):
                _write(out, chunk, unfinished)
                there += len(chunk)
                if on_bytes is not None:
                    on_bytes(there, total)
        if total is not None and there < total:
            raise ConnectionError(f"the connection ended after {there} of {total} bytes")
        # Azure, where OpenAI's files are, tells that of the whole file with a part of it too.
        name = "Content-MD5" if answer.status == 200 else "x-ms-blob-content-md5"
        return answer.headers.get(name)


def _keep_others_out(out: FileIO, path: Path) -> None:
    """Lock a file as long as it is open, where the system has locks: two that write to it would spoil it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"{path}: another unclip download is at work on it; let that one finish, or stop it first"
        ) from None
    except OSError:  # a file system without locks
        return


def _write(out: FileIO, chunk: bytes, path: Path) -> None:
    """Write all of a chunk; an error names the file, which tells the disk's from the network's."""
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[out.write(rest) :]
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _check(file: RemoteFile, unfinished: Path, md5: str | None) -> None:
    size = unfinished.stat().st_size
    hashes = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    hashes["git"] = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    wanted = {"sha256": file.sha256, "git": file.git, "md5": md5 and base64.b64decode(md5).hex()}
    wanted = {name: value for name, value in wanted.items() if value}
    with unfinished.open("rb") as data:
        while wanted and (chunk := data.read(CHUNK)):
            for name in wanted:
                hashes[name].update(chunk)
    wrong = [name for name, value in wanted.items() if hashes[name].hexdigest() != value.lower()]
    if wrong or file.size not in (None, size):
        unfinished.unlink()
        raise ValueError(
            f"{file.url}: what came is not the file that the server announced (its "
            f"{wrong[0] if wrong else 'size'} differs); it was removed. Download it again"
        )


def _safe(path: str) -> PurePosixPath:
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or PurePosixPath(path).is_absolute() or PureWindowsPath(path).anchor:
        raise ValueError(f"{path!r}: the server names a file outside of its folder; nothing was written")
    return PurePosixPath(path)
