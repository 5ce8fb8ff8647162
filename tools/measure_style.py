"""How hard the code is to read, in six numbers: `python tools/measure_style.py [FOLDER ...]`.

Lines over 100 columns; `fmt: skip`; per 1000 lines, assignments that pack several values and
comprehensions inside comprehensions; top-level names that live in two modules; the longest
parameter list. Without a folder, `src` is measured. `--list` names every place.
"""

from __future__ import annotations

import argparse
import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

COLUMNS = 100
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Place = tuple[Path, int, str]


def packed(tree: ast.AST) -> Iterator[ast.Assign]:
    """Assignments that bind several names to several written values: `a, b = 1, 2`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Tuple):
            continue
        if isinstance(node.value, (ast.Tuple, ast.GeneratorExp)):
            yield node


def nested(tree: ast.AST) -> Iterator[ast.AST]:
    """Comprehensions with two `for`s, or with a comprehension inside."""
    for node in ast.walk(tree):
        if not isinstance(node, COMPREHENSIONS):
            continue
        inner = [n for n in ast.walk(node) if n is not node and isinstance(n, COMPREHENSIONS)]
        if len(node.generators) > 1 or inner:
            yield node


def top_level(tree: ast.Module) -> Iterator[str]:
    """Functions, classes and constants of a module, dunders left out."""
    for node in tree.body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            yield node.name
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and not target.id.startswith("__"):
                yield target.id


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many parameters a function has, `self` and `cls` left out."""
    args = node.args
    every = [*args.posonlyargs, *args.args, *args.kwonlyargs]
    return len([a for a in every if a.arg not in ("self", "cls")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("src")])
    parser.add_argument("--list", action="store_true", help="name every place")
    asked = parser.parse_args()
    found: dict[str, list[Place]] = defaultdict(list)
    homes: dict[str, list[Path]] = defaultdict(list)
    longest = (0, "")
    lines = 0
    for path in sorted(p for folder in asked.folders for p in folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        for number, line in enumerate(text.splitlines(), 1):
            lines += 1
            if len(line) > COLUMNS:
                found["lines over 100 columns"].append((path, number, line.strip()[:60]))
            if "# fmt: " + "skip" in line:
                found["fmt: skip"].append((path, number, line.strip()[:60]))
        for node in packed(tree):
            found["packed assignments"].append((path, node.lineno, ast.unparse(node)[:60]))
        for node in nested(tree):
            found["nested comprehensions"].append((path, node.lineno, ast.unparse(node)[:60]))
        for name in dict.fromkeys(top_level(tree)):
            homes[name].append(path)
        for node in ast.walk(tree):
            if isinstance(node, FUNCTIONS) and parameters(node) > longest[0]:
                longest = (parameters(node), f"{path}:{node.lineno} {node.name}")
    twice = {name: paths for name, paths in homes.items() if len(paths) > 1}
    found["names in two modules"] = [(p, 0, name) for name, paths in twice.items() for p in paths]
    if asked.list:
        for what, places in found.items():
            for path, number, text in places:
                print(f"{path}:{number}: {what}: {text}")
    for what in ("lines over 100 columns", "fmt: skip"):
        print(f"{what:28} {len(found[what]):5}   {1000 * len(found[what]) / lines:.1f} per 1000")
    for what in ("packed assignments", "nested comprehensions"):
        print(f"{what:28} {len(found[what]):5}   {1000 * len(found[what]) / lines:.1f} per 1000")
    print(f"{'names in two modules':28} {len(twice):5}   of {len(homes)}")
    print(f"{'longest parameter list':28} {longest[0]:5}   {longest[1]}")
    print(f"{'lines':28} {lines:5}")


if __name__ == "__main__":
    main()
