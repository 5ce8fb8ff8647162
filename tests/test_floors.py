"""A module imports only from lower floors, so cycles cannot arise."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "src" / "diffusers_erasepro"
FLOORS = [
    {"errors", "factors", "templates"},
    {"recording", "linears"},
    {"spec", "families", "solve", "header", "hub", "gate", "text_to_concept"},
    {"prompts", "card", "lockfile"},
    {"neurons", "tree"},
    {"options", "walk", "fingerprint", "places"},
    {"statistics", "idle"},
    {"measure", "report"},
    {"anchors"},
    {"adapter"},
    {"weights"},
    {"convert", "denoiser"},
    {"erase"},
    {"compose", "guard"},
    {"verify"},
    {"fit"},
    {"loader", "methods"},
    {"checkpoint"},
    {"glyphs", "grids", "tables"},
    {"metrics"},
    {"attacks"},
    {"evaluate"},
    {"demo", "models"},
    {"technique", "ui"},
    {"cli"},
]
FLOOR = {module: i for i, floor in enumerate(FLOORS) for module in floor}


def relative_imports(path: Path) -> list[str]:
    """Modules of this package that `path` imports, also inside functions and under TYPE_CHECKING."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found += [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
    return found


def test_every_module_has_a_floor():
    assert {p.stem for p in ROOT.glob("*.py")} - {"__init__", "__main__"} == set(FLOOR) - {"glyphs"}


def test_no_module_climbs():
    modules = [p for p in ROOT.glob("*.py") if p.stem not in ("__init__", "__main__")]
    climbs = [f"{p.stem} -> {i}" for p in modules for i in relative_imports(p) if FLOOR[i] >= FLOOR[p.stem]]
    assert not climbs


def test_every_module_says_what_it_is_for():
    for path in ROOT.rglob("*.py"):
        doc = ast.get_docstring(ast.parse(path.read_text()))
        assert doc and doc.splitlines()[0].endswith((".", "`.")), path
