"""The index of a checkpoint that lies in several files, as Hugging Face writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .json_files import read_json


@dataclass(frozen=True)
class ShardIndex:
    """Which tensor lies in which file.

    Attributes:
        path: of the index.
        weight_map: names of tensors → names of the files beside the index.
        shards: all those files.
        metadata: free-form strings.
    """

    path: Path
    weight_map: Mapping[str, str]
    shards: tuple[Path, ...]
    metadata: Mapping[str, str]


def read_shard_index(path: Path) -> ShardIndex:
    """Read an index, and see that its files are there.

    Raises:
        ValueError: no JSON, no index, or a shard that is elsewhere or missing.
    """
    index = read_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{path}: is not an index of shards; expected a JSON object with a weight_map")
    metadata = index.get("metadata")
    names = sorted(set(weight_map.values()))
    for name in names:
        if not name or Path(name).name != name:
            raise ValueError(f"{path}: names the shard {name!r}; shards must lie beside their index")
        if not path.with_name(name).is_file():
            raise ValueError(
                f"{path}: the shard {name} is missing; put it beside the index ({len(names)} shards: "
                f"{', '.join(names)})"
            )
    return ShardIndex(
        path,
        weight_map,
        tuple(path.with_name(name) for name in names),
        {key: str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {},
    )
