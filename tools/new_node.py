"""Make an empty node that is whole: class, registration, help pages with a picture, both languages, test.

Run from the root of the repository, for example: python tools/new_node.py UnCLIPRecolour --group embedding
The node gives back what it gets. What is to be written in its place says TODO; the test
tests/package/test_nothing_is_left.py names each, and the rest of the tests pass from the start.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from string import Template

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Passed:
    """What an empty node takes and gives, and the nodes that it is drawn between.

    Attributes:
        socket: its constant in nodes/sockets.py.
        name: of the input and of the output; nodes that are there have both, translated.
        kind: the type that the constant holds.
        hint: annotation of the value, and the import that it needs.
        before, after: an output and an input of other nodes, ``"NodeId.name"``.
        sample: a value for the node's test, and ``test_imports``, what it needs.
    """

    socket: str
    name: str
    kind: str
    hint: str
    hint_import: str
    before: str
    after: str
    test_imports: str
    sample: str


PICTURES = Passed(
    "IMAGE",
    "image",
    "IMAGE",
    "Tensor",
    "from torch import Tensor\n\n",
    "UnCLIPDecode.image",
    "UnCLIPScore.image",
    "import torch\n\n",
    "torch.zeros(1, 8, 8, 3)",
)
EMBEDDINGS = Passed(
    "EMBEDDING",
    "embedding",
    "UNCLIP_EMBEDDING",
    "Embedding",
    "from ..core.embeddings.space import Embedding\n",
    "UnCLIPDiffusionPrior.embedding",
    "UnCLIPDecode.embedding",
    "import torch\nfrom unclip.core.embeddings.space import Embedding, EmbeddingSpace\n\n",
    'Embedding(torch.zeros(1, 4), EmbeddingSpace("test", 4))',
)
DECODERS = Passed(
    "DECODER",
    "decoder",
    "UNCLIP_DECODER",
    "DecoderStage | None",
    "from ..core.stages import DecoderStage\n",
    "UnCLIPLoadBundle.decoder",
    "UnCLIPDecode.decoder",
    "from ..helpers.bundle import tiny_bundle\n",
    "tiny_bundle().decoder",
)
GROUPS = {
    "load": DECODERS,
    "encode": PICTURES,
    "prior": EMBEDDINGS,
    "decode": PICTURES,
    "upsample": PICTURES,
    "embedding": EMBEDDINGS,
    "probe": EMBEDDINGS,
    "compare": PICTURES,
    "bridge": EMBEDDINGS,
}

CLASS = Template('''"""TODO: what the nodes of this file do, in a line."""

from __future__ import annotations

from typing import Any

${hint_import}from . import inputs, sockets

CATEGORY = "unCLIP/$group"


class $node_id:
    """TODO: what it gives, in a line."""

    CATEGORY = CATEGORY
    DESCRIPTION = "TODO: what it does to what, and what an artist wants it for."
    SEARCH_ALIASES = ["$search"]
    RETURN_TYPES = (sockets.$socket,)
    RETURN_NAMES = ("$name",)
    OUTPUT_TOOLTIPS = ("TODO: what comes out.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {"required": {"$name": inputs.socket(sockets.$socket, "TODO: what goes in.")}}

    def execute(self, $name: $hint) -> tuple[$hint]:
        return ($name,)
''')

TEST = Template('''"""$display_name: TODO, what it promises."""

from __future__ import annotations

${test_imports}from ..helpers.nodes import run


def test_it_gives_what_it_promises():
    given = $sample
    (found,) = run("$node_id", $name=given)
    assert found is given  # TODO: what it gives instead
''')

PAGES = {
    "en": Template("""TODO: what it does, in a sentence or two.

![TODO: what the picture shows]($node_id/picture.webp)

## When to use it

TODO: where it stands in a workflow.

## Inputs

## Outputs

## Tips and typical mistakes

- TODO: what goes wrong, and what to do.

## In the paper

[arXiv 2204.06125](https://arxiv.org/abs/2204.06125). TODO: the section.
"""),
    "zh": Template("""TODO：用一两句话说明它做什么。

![TODO：图中是什么内容]($node_id/picture.webp)

## 何时使用

TODO：它在工作流中的位置。

## 输入

## 输出

## 提示与常见错误

- TODO：常见的问题与办法。

## 论文出处

[arXiv 2204.06125](https://arxiv.org/abs/2204.06125)。TODO：章节。
"""),
}

DIAGRAM = Template("""    "$node_id": Diagram(
        (("$before_id",), ("$node_id",), ("$after_id",)),
        (
            "$before $node_id.$name",
            "$node_id.$name $after",
        ),
    ),
""")


def words_of(node_id: str) -> list[str]:
    """UnCLIPPCAFitAll → PCA, Fit, All"""
    return re.findall(r"[A-Z]+(?![a-z0-9])|[A-Z][a-z0-9]*", node_id.removeprefix("UnCLIP"))


def module_name(node_id: str) -> str:
    return "_".join(words_of(node_id)).lower()


def display_name(node_id: str) -> str:
    return " ".join(["unCLIP", *words_of(node_id)])


def check(node_id: str, root: Path) -> None:
    """Raise a ValueError unless a node of this name can be made."""
    if not re.fullmatch(r"UnCLIP[A-Z][A-Za-z0-9]+", node_id):
        raise ValueError(f"found {node_id!r}; expected a name such as UnCLIPRecolour")
    for path in (
        root / "nodes" / f"{module_name(node_id)}.py",
        root / "tests" / "nodes" / f"test_nodes_{module_name(node_id)}.py",
        root / "web" / "docs" / node_id,
    ):
        if path.exists():
            raise ValueError(f"{path.relative_to(root)} is there already; choose another name")
    if f'"{node_id}"' in (root / "nodes" / "__init__.py").read_text(encoding="utf-8"):
        raise ValueError(f"a node {node_id} is there already; choose another name")


def make(node_id: str, group: str, root: Path) -> list[Path]:
    """Write the node's own files, enter it in the tables, and give what is to be filled in by hand.

    Raises:
        ValueError: a name that does not fit, or that is taken. Nothing is written then.
    """
    check(node_id, root)
    passed = GROUPS[group]
    chinese_file = root / "locales" / "zh" / "nodeDefs.json"
    chinese = json.loads(chinese_file.read_text(encoding="utf-8"))
    before, after = (end.split(".")[0] for end in (passed.before, passed.after))
    values = {
        **vars(passed),
        "node_id": node_id,
        "group": group,
        "search": " ".join(words_of(node_id)).lower(),
        "display_name": display_name(node_id),
        "before_id": before,
        "after_id": after,
    }
    module = root / "nodes" / f"{module_name(node_id)}.py"
    test = root / "tests" / "nodes" / f"test_nodes_{module_name(node_id)}.py"
    pages = {language: root / "web" / "docs" / node_id / f"{language}.md" for language in PAGES}
    wirings = root / "tools" / "help_wirings.py"
    tables = root / "nodes" / "__init__.py"
    entered = {
        module: CLASS.substitute(values),
        test: TEST.substitute(values),
        **{path: PAGES[language].substitute(values) for language, path in pages.items()},
        tables: with_node(tables.read_text(encoding="utf-8"), node_id),
        wirings: with_diagram(wirings.read_text(encoding="utf-8"), DIAGRAM.substitute(values)),
    }
    for path, text in entered.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    _run(root, "make_locales.py")
    english = json.loads((root / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    shown = chinese[after]["inputs"][passed.name]["name"]
    chinese[node_id] = {
        "display_name": f"{display_name(node_id)}（TODO：名称）",
        "description": "TODO：说明它做什么。",
        "inputs": {passed.name: {"name": shown, "tooltip": "TODO：输入的是什么。"}},
        "outputs": {"0": {"name": shown, "tooltip": "TODO：输出的是什么。"}},
    }
    ordered = {each: chinese[each] for each in english}
    chinese_file.write_text(json.dumps(ordered, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    _run(root, "make_help_lists.py")
    _run(root, "make_help_pictures.py", node_id)
    return [module, test, *pages.values(), chinese_file]


def with_node(text: str, node_id: str) -> str:
    """nodes/__init__.py with the node imported, in the order of the alphabet, and last in both tables."""
    tree, lines = ast.parse(text), text.splitlines(keepends=True)
    tables = {
        target.id: statement.value
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name) and isinstance(statement.value, ast.Dict)
    }
    entries = {"NODE_DISPLAY_NAME_MAPPINGS": f'"{display_name(node_id)}"', "NODE_CLASS_MAPPINGS": node_id}
    added = [(tables[name].end_lineno - 1, f'    "{node_id}": {value},\n') for name, value in entries.items()]
    imports = [each for each in tree.body if isinstance(each, ast.ImportFrom)]
    module = module_name(node_id)
    later = [each.lineno - 1 for each in imports if str(each.module) > module]
    added.append((later[0] if later else imports[-1].end_lineno, f"from .{module} import {node_id}\n"))
    for line, entry in sorted(added, reverse=True):
        lines.insert(line, entry)
    return "".join(lines)


def with_diagram(text: str, entry: str) -> str:
    """help_wirings.py with one more diagram, the last."""
    if not text.endswith("\n}\n"):
        raise ValueError("tools/help_wirings.py: expected the table DIAGRAMS at its end")
    return f"{text.removesuffix('}' + chr(10))}{entry}}}\n"


def _run(root: Path, script: str, *arguments: str) -> None:
    """Run another tool, in a process that knows the new node."""
    subprocess.run([sys.executable, str(root / "tools" / script), *arguments], cwd=root, check=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Make an empty node with help pages, words and a test.")
    parser.add_argument("name", help="its id, such as UnCLIPRecolour")
    parser.add_argument("--group", required=True, choices=list(GROUPS), help="the menu that it stands in")
    given = parser.parse_args(arguments)
    try:
        made = make(given.name, given.group, ROOT)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("To be filled in, where it says TODO:\n")
    sys.stdout.writelines(f"  {path.relative_to(ROOT).as_posix()}\n" for path in made)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
