"""The order of the packages: one imports only from those above it, so cycles cannot arise."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "diffusers_erasepro"
ORDER = (
    "errors",
    "linalg",
    "config",
    "modules",
    "families",
    "prompts",
    "adapters",
    "patching",
    "erasure",
    "loaders",
    "baselines",
    "glyphs",
    "pictures",
    "evaluation",
    "interop",
    "cli",
)
"""Top to bottom, as in docs/architecture.md."""
WORLDS = {"glyphs", "pictures"}
"""These two know nothing of each other."""
ENTRY = {"__init__", "__main__"}
"""Modules of the root that offer everything."""


def room_of(path: Path) -> str:
    """The package that a module belongs to."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Packages of ours that a module imports, also inside functions and under TYPE_CHECKING."""
    inside = ("diffusers_erasepro", *path.relative_to(ROOT).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*inside[: len(inside) - node.level + 1]] if node.level else []
            names = [
                [*base, *(node.module or alias.name).split("."), alias.name] for alias in node.names
            ]
        else:
            continue
        found |= {name[1] for name in names if name[0] == "diffusers_erasepro" and len(name) > 1}
    return found & {*ORDER}


MODULES = [p for p in sorted(ROOT.rglob("*.py")) if room_of(p) not in ENTRY]


def test_every_package_has_a_place_in_the_order():
    assert {room_of(p) for p in MODULES} <= {*ORDER}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_come_from_above(path):
    room = room_of(path)
    above = {*ORDER[: ORDER.index(room)]} - (WORLDS if room in WORLDS else set())
    assert imported(path) <= above | {room}


def test_every_module_says_what_it_is_for():
    for path in ROOT.rglob("*.py"):
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert doc and doc.splitlines()[0].endswith((".", "`.")), path


def test_the_licences_of_lists_made_by_others_go_with_the_wheel():
    project = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    named: set[Path] = set()
    for pattern in project["project"]["license-files"]:
        named |= {*ROOT.parents[1].glob(pattern)}
    licences = {*ROOT.rglob("*licence*.txt")}
    assert licences and licences < named
