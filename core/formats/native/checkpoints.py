"""unclip's own checkpoint format, and bundles of all stages that belong together.

A stage is a safetensors file, or shards with an index (see ``safetensors_io``), with a header in its metadata
(see ``native_header``). A bundle is a folder with ``bundle.json``, which names the file of each stage.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...embeddings.space import require_same_space
from ...networks.glide_text import GlideTextConfig
from ...networks.movq import MoVQ
from ...networks.multilingual_clip import PADDING, MultilingualClipConfig
from ...stages import (
    AutoencoderStage,
    Bundle,
    ClipStage,
    DecoderStage,
    PriorStage,
    Stage,
    StageName,
    Tokenizer,
    UpsamplerStage,
)
from ..files.gpt2_tokenizer import Gpt2Tokenizer, parse_gpt2_tokenizer
from ..files.json_files import read_json
from ..files.safetensors_io import iterate_tensors, write_tensor_file, write_text
from ..files.tokenizer_json import MultilingualTokenizer
from ..mapping.assembling import assemble
from ..mapping.number_types import is_finite
from ..mapping.tokenizing import build_tokenizer
from .header import (
    AUTOENCODER,
    FORMAT,
    METADATA_KEY,
    NETWORKS,
    TOKENIZER,
    NativeHeader,
    describe,
    read_header,
    require_version,
)

BUNDLE_FILE = "bundle.json"
# Entries of bundle.json and fields of a Bundle → the stage that their files hold.
_ENTRIES: dict[str, StageName] = {
    "clip": "clip",
    "prior": "prior",
    "ar_prior": "prior",
    "decoder": "decoder",
    "decoder_text": "clip",
    "upsamplers": "upsampler",
}
MAX_SHARD_BYTES = 16_000_000
"""Default limit of a file's size: what git keeps without large-file storage."""


def load_stage(
    path: str | Path,
    *,
    expect: StageName | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Stage:
    """Load a stage.

    Args:
        path: file, index, shard, or any of them without its suffix.
        expect: which stage it has to be; None takes any.
        dtype: to which the weights are converted; None keeps the file's.

    Returns:
        The stage, its network in evaluation mode and without gradients.

    Raises:
        ValueError: see :func:`read_header`; another stage than expected; keys or shapes that differ from the
            config; weights that are not finite.
    """
    header = read_header(path)
    where = str(header.file.path)
    require_stage(where, header.stage, expect)
    own_words = isinstance(header.config, MultilingualClipConfig | GlideTextConfig)
    apart = AUTOENCODER if header.autoencoder is not None else TOKENIZER if own_words else None

    def build(make: Callable[[], nn.Module], inside: str, outside: str | None = None) -> nn.Module:
        names = [name for name in header.file.tensors if name.startswith(inside)]
        names = [name for name in names if outside is None or not name.startswith(outside)]
        return assemble(
            make,
            {name.removeprefix(inside): header.file.tensors[name].shape for name in names},
            ((name.removeprefix(inside), tensor) for name, tensor in iterate_tensors(header.file, names)),
            where,
            device,
            dtype,
        )

    network = build(lambda: NETWORKS[header.network].build(header.config), "", apart)
    if own_words:
        return ClipStage(network, _own_tokenizer(header, where), header.space, where)
    if header.stage == "clip":
        return ClipStage(network, build_tokenizer(header.config), header.space, where)
    if header.stage == "prior":
        return PriorStage(network, header.space, header.diffusion, where)
    if header.stage == "decoder":
        autoencoder = None
        if header.autoencoder is not None:
            autoencoder = AutoencoderStage(build(lambda: MoVQ(header.autoencoder), AUTOENCODER), where)
        return DecoderStage(network, header.space, header.diffusion, where, autoencoder)
    if header.stage == "autoencoder":
        return AutoencoderStage(network, where)
    return UpsamplerStage(
        network, header.low_size, header.diffusion, header.timesteps, where, header.space, header.recipe
    )


def _own_tokenizer(header: NativeHeader, where: str) -> Tokenizer:
    """The tokenizer of a text encoder that brings its vocabulary in its file."""
    found = dict(iterate_tensors(header.file, {TOKENIZER}))
    if TOKENIZER not in found:
        raise ValueError(f"{where}: lacks {TOKENIZER}, its vocabulary; get the file or export it again")
    definition, config = found[TOKENIZER].numpy().tobytes(), header.config
    if isinstance(config, GlideTextConfig):
        return parse_gpt2_tokenizer(definition, where, config.text_length)
    sizes = {"text_length": config.text_length, "vocab_size": config.vocab_size}
    return MultilingualTokenizer(definition, where, **sizes, padding=PADDING)


def save_stage(
    stage: Stage,
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int | None = MAX_SHARD_BYTES,
) -> Path:
    """Save a stage, whole or not at all.

    Args:
        path: ends in ``.safetensors``.
        dtype: to which floating-point parameters are converted; None keeps theirs. Buffers keep theirs.
        max_shard_bytes: a larger checkpoint is split into files of at most this size; None never splits.

    Returns:
        The file that was written, or the index of its shards; :func:`load_stage` takes ``path`` either way.

    Raises:
        ValueError: weights that are not finite, also when only the conversion to ``dtype`` makes them so.
    """
    metadata = {METADATA_KEY: json.dumps(describe(stage), ensure_ascii=False)}
    parts = {"": stage.network}
    if isinstance(stage, DecoderStage) and stage.autoencoder is not None:
        parts[AUTOENCODER] = stage.autoencoder.network
    tensors = {}
    for prefix, network in parts.items():
        tables = {name for name, _ in network.named_buffers()}
        for name, value in network.state_dict().items():
            tensors[prefix + name] = _stored(value, None if name in tables else dtype)
    if isinstance(stage, ClipStage) and isinstance(stage.tokenizer, MultilingualTokenizer | Gpt2Tokenizer):
        tensors[TOKENIZER] = torch.frombuffer(bytearray(stage.tokenizer.definition), dtype=torch.uint8)
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise ValueError(f"{path}: {name} holds NaN or infinite values in {tensor.dtype}; not saved")
    return write_tensor_file(path, tensors, metadata, max_shard_bytes)


def load_bundle(
    folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Bundle:
    """Load all stages of a bundle folder.

    Raises:
        ValueError: no such folder, no or an unreadable ``bundle.json``, a stage that cannot be loaded (see
            :func:`load_stage`), or stages of different CLIP spaces.
    """
    name, files = _read_entries(folder)
    loaded = {
        key: tuple(load_stage(file, expect=_ENTRIES[key], device=device, dtype=dtype) for file in entry)
        for key, entry in files.items()
    }
    single = {key: stages[0] for key, stages in loaded.items() if key != "upsamplers"}
    bundle = Bundle(name, **single, upsamplers=loaded.get("upsamplers", ()))
    _require_kinds_of_prior(bundle, Path(folder) / BUNDLE_FILE)
    reference = bundle.clip or bundle.decoder
    for stage in (bundle.prior, bundle.ar_prior, bundle.decoder, bundle.decoder_text):
        if stage is not None and reference is not None:
            require_same_space(f"{stage.source}: this stage", stage.space, reference.space)
    return bundle


def read_bundle(folder: str | Path) -> tuple[str, dict[StageName, tuple[Path, ...]]]:
    """Name and files by stage of a bundle, from its ``bundle.json`` alone; both priors are of one stage.

    Raises:
        ValueError: no such folder, or no readable ``bundle.json`` in it.
    """
    name, entries = _read_entries(folder)
    files: dict[StageName, tuple[Path, ...]] = {}
    for key, entry in entries.items():
        files[_ENTRIES[key]] = (*files.get(_ENTRIES[key], ()), *entry)
    return name, files


def _read_entries(folder: str | Path) -> tuple[str, dict[str, tuple[Path, ...]]]:
    """Name of a bundle and the files of each entry of its ``bundle.json``."""
    path = Path(folder) / BUNDLE_FILE
    if not path.is_file():
        what = "does not exist; expected a folder with"
        if path.parent.exists():
            what = "has no" if path.parent.is_dir() else "is a file; expected a folder with"
        raise ValueError(f"{folder}: {what} {BUNDLE_FILE}. Choose the folder of a bundle")
    data = read_json(path)
    require_version(data, str(path))
    stages = data.get("stages")
    if not isinstance(stages, Mapping) or not stages or set(stages) - set(_ENTRIES):
        raise ValueError(f"{path}: stages is {stages!r}, expected files for some of {', '.join(_ENTRIES)}")
    files: dict[str, tuple[Path, ...]] = {}
    for key, value in stages.items():
        names = value if key == "upsamplers" and isinstance(value, list) else [value]
        for name in names:
            if not isinstance(name, str) or not name or Path(name).name != name:
                raise ValueError(f"{path}: {key} names {name!r}, expected a file in the bundle's own folder")
        files[key] = tuple(path.with_name(name) for name in names)
    return str(data.get("name") or path.parent.name), files


def save_bundle(
    bundle: Bundle,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int | None = MAX_SHARD_BYTES,
) -> Path:
    """Save all stages of a bundle and its ``bundle.json``, which is written last.

    Upsamplers are named by the size of the pictures they make.
    """
    folder = Path(folder)
    stages: dict[str, Any] = {}
    _require_kinds_of_prior(bundle, f"bundle {bundle.name!r}")
    for key in _ENTRIES:
        stage = None if key == "upsamplers" else getattr(bundle, key)
        if stage is not None:
            stages[key] = f"{key.replace('_', '-')}.safetensors"
            save_stage(stage, folder / stages[key], dtype=dtype, max_shard_bytes=max_shard_bytes)
    names = [f"upsampler-{stage.network.config.image_size}.safetensors" for stage in bundle.upsamplers]
    if len(set(names)) != len(names):
        raise ValueError(
            f"bundle {bundle.name!r}: two upsamplers of the same size; expected one for each size"
        )
    for name, stage in zip(names, bundle.upsamplers, strict=True):
        save_stage(stage, folder / name, dtype=dtype, max_shard_bytes=max_shard_bytes)
    if names:
        stages["upsamplers"] = names
    content = {"format": FORMAT, "name": bundle.name, "stages": stages}
    if bundle.defaults.tables:
        content["defaults"] = {stage: dict(table) for stage, table in bundle.defaults.tables.items()}
    write_text(folder / BUNDLE_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return folder


def _require_kinds_of_prior(bundle: Bundle, where: str | Path) -> None:
    for key, kind, other in (("prior", "diffusion", "ar_prior"), ("ar_prior", "autoregressive", "prior")):
        stage = getattr(bundle, key)
        if stage is not None and (stage.diffusion is None) != (key == "ar_prior"):
            found = stage.source or type(stage.network).__name__
            raise ValueError(f"{where}: {key} is {found}, which is not {kind}; name it as {other}")


def _stored(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    value = value.detach().to("cpu", dtype if value.is_floating_point() else None)
    return value.contiguous()


def require_stage(where: str | Path, found: StageName, expect: StageName | None) -> None:
    """Raise a ValueError unless a file holds the stage that is expected; None expects any."""
    if expect is not None and found != expect:
        raise ValueError(
            f"{where}: holds {_article(found)}, but {_article(expect)} is expected here. Load it with "
            f"the {found} loader, and choose {_article(expect)} file here"
        )


def _article(stage: str) -> str:
    names = {"clip": "a CLIP model", "upsampler": "an upsampler", "autoencoder": "an autoencoder"}
    return names.get(stage, f"a {stage}")
