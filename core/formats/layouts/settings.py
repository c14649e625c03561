"""Settings of other people's JSON configs: none is read and not honoured.

A setting is honoured by its layout, or told by the weights, or cannot matter to what a network computes: then
it is *free*. Or it has to have a value that our networks compute: then it is *fixed*. Any other is refused by
its name, unless it is a switch that is off.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What a layout makes of the settings in one kind of config.

    Attributes:
        kind: what the config describes, for messages, as "a network like those of Karlo and Kandinsky".
        fixed: the values that are computed here, the first of them upstream's default; a list may hold any of
            them.
        free: names of settings that are honoured elsewhere, told by the weights, or without effect.
        strict: settings that no list names are refused; otherwise a line in the log tells of them.
    """

    kind: str
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    free: frozenset[str] = frozenset()
    strict: bool = True

    def require(self, path: Path, config: Mapping[str, Any]) -> None:
        """Check a config.

        Raises:
            ValueError: a setting of another value than those computed here, or one that is not known.
        """
        for name, value in config.items():
            if name in self.fixed:
                self._require_value(path, name, value)
            elif name not in self.free and not name.startswith("_") and value not in (None, False):
                self._tell_unknown(path, name, value)

    def _require_value(self, path: Path, name: str, value: Any) -> None:
        expected = self.fixed[name]
        each = value if isinstance(value, list) and value else [value]  # of a list one for each level
        if not all(part in expected for part in each):
            raise ValueError(
                f"{path}: {name} is {value!r}, expected {' or '.join(map(repr, expected))}. Only {self.kind} "
                f"can be loaded, and this is another"
            )

    def _tell_unknown(self, path: Path, name: str, value: Any) -> None:
        if not self.strict:
            _log.warning("%s: the setting %s = %r is not known here and has no effect", path, name, value)
            return
        raise ValueError(
            f"{path}: has the setting {name} = {value!r}, which is not known here, so that the network might "
            f"be computed wrong. Update unclip; or, where you know that it does not matter, take it out"
        )
