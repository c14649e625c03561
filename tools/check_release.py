"""Check that a commit is the release that its tag names, and print what the changelog says of it.

Run by .github/workflows/release.yml: python tools/check_release.py v1.2.3
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parent.parent


def problems(tag: str, root: Path) -> list[str]:
    """Why a tag does not fit the commit; nothing where it does."""
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    found = []
    if tag != f"v{version}":
        found.append(f"the tag is {tag}, pyproject.toml has version {version}: expected the tag v{version}")
    headings = re.findall(r"^## (.+)$", _changelog(root), re.MULTILINE)
    if headings[:1] != [version]:
        found.append(
            f"CHANGELOG.md begins with {headings[0] if headings else 'no heading'!r}: "
            f"expected a heading {version!r} over what this release changes"
        )
    if not (root / "tests" / "releases" / version / "nodes.json").is_file():
        found.append(f"tests/releases/{version} is not there: run python tools/keep_release.py and commit it")
    return found


def notes(root: Path) -> str:
    """The first section of the changelog."""
    return re.split(r"^## .+$", _changelog(root), flags=re.MULTILINE)[1].strip()


def _changelog(root: Path) -> str:
    return (root / "CHANGELOG.md").read_text(encoding="utf-8")


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: python tools/check_release.py TAG\n")
        return 2
    found = problems(arguments[0], ROOT)
    if found:
        sys.stderr.write("\n".join(found) + "\n")
        return 1
    sys.stdout.write(notes(ROOT) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
