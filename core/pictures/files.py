"""Pictures as files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image, PngImagePlugin
from torch import Tensor

from ..folders import at_home, walk_once
from ..writing import written_whole
from .opening import reason, upright
from .sheet import from_pil, to_pil

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
PNG_COMPRESSION = 4  # what ComfyUI saves with
_NAMED = 8  # files in a message


# --------------------------------------------------------------------------------------------------- reading


def folders_below(root: Path) -> list[Path]:
    """A folder and all folders below it, by name; hidden ones are left out, links are followed once."""
    found: list[Path] = []
    for here, folders, _ in walk_once(root):
        found.append(here)
        folders[:] = [name for name in folders if not name.startswith(".")]
    return sorted(found)


def picture_names(folder: Path, *, subfolders: bool = False) -> list[str]:
    """Names of the picture files in a folder, told by their suffix, sorted; hidden ones are left out.

    Args:
        subfolders: those in the folders below it as well.

    Returns:
        Paths from the folder, with ``/``.
    """
    return sorted(
        path.relative_to(folder).as_posix()
        for each in (folders_below(folder) if subfolders else [folder])
        for path in each.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def read_pictures(folder: Path, names: Sequence[str]) -> Iterator[Tensor]:
    """Pictures of a folder, each read when it is asked for.

    As ComfyUI's Load Image reads them: turned as their EXIF data say, grey and palettes as RGB, transparency
    dropped, 16 bits of grey and floating point brought to 8 bits; of an animation the first frame. Stricter
    in one point: a file that is cut short is an error here, since in a large folder nobody would see it.

    Args:
        names: paths from the folder.

    Yields:
        [3, H, W] float32 in 0..1.

    Raises:
        ValueError: files that cannot be read, by name: before the first picture all that are none, later one
            that is damaged.
    """
    broken: dict[str, Exception] = {}
    for name in names:  # their beginnings only, which is quick, so that a person sees all of them at once
        try:
            Image.open(folder / name).close()
        except Exception as error:  # decoders raise whatever they stumble over, SyntaxError among it
            broken[name] = error
    if broken:
        raise ValueError(_unreadable(folder, broken))
    for name in names:
        try:
            with Image.open(folder / name) as opened:
                picture = from_pil(upright(opened))[0]
        except Exception as error:
            raise ValueError(_unreadable(folder, {name: error})) from error
        yield picture


def _unreadable(folder: Path, broken: Mapping[str, Exception]) -> str:
    """What to say of files that cannot be read, with the reason of each."""
    named = [f"{name} ({reason(error)})" for name, error in list(broken.items())[:_NAMED]]
    more = f" and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
    return (
        f"folder: {len(broken)} of the files in {folder} cannot be read as pictures: {', '.join(named)}"
        f"{more}. Remove them, or save them again as PNG or JPEG."
    )


# --------------------------------------------------------------------------------------------------- writing


def numbered(path: Path, count: int) -> list[Path]:
    """``fox.png``; for several pictures ``fox-1.png``, ``fox-2.png``, …, all with as many digits."""
    if count == 1:
        return [path]
    digits = len(str(count))
    return [path.with_stem(f"{path.stem}-{number:0{digits}}") for number in range(1, count + 1)]


def write_png(
    path: Path,
    picture: Image.Image,
    metadata: PngImagePlugin.PngInfo | None = None,
    compression: int = PNG_COMPRESSION,
    *,
    new: bool = False,
) -> None:
    """Write a PNG whole or not at all: beside its place first, then renamed.

    Args:
        new: replace nothing, see ``written_whole``.
    """
    try:
        with written_whole(path, new=new) as unfinished:
            picture.save(unfinished, format="PNG", pnginfo=metadata, compress_level=compression)
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(f"{path}: cannot be written ({error})") from error  # a full disk names no file


def save(images: Tensor, path: str | Path) -> list[Path]:
    """Save pictures as PNG files.

    Args:
        images: [N, 3, H, W] in 0..1.
        path: ends in ``.png``; with N > 1 the files are numbered, see :func:`numbered`. ``~`` is the home
            folder.

    Returns:
        The files, in the order of the pictures.

    Raises:
        ValueError: another shape, values that are whole or not finite, or another kind of file.
    """
    if not isinstance(images, Tensor):
        raise ValueError(f"images: found {type(images).__name__}, expected one tensor [N, 3, H, W]")
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"images: found shape {tuple(images.shape)}, expected [N, 3, H, W]")
    if not images.is_floating_point():
        raise ValueError(f"images: found {images.dtype}, expected floating-point values in 0..1")
    if not bool(images.isfinite().all()):
        raise ValueError("images: found NaN or infinite values, expected 0..1; make the pictures again")
    path = at_home(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path: found {path}, expected a name that ends in .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    files = numbered(path, len(images))
    for file, picture in zip(files, to_pil(images), strict=True):
        write_png(file, picture)
    return files
