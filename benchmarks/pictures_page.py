"""The page of `pictures.py`: tables and grids, from its lines and the pictures that it kept."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from diffusers_erasepro.evaluation.plots import save_grid
from diffusers_erasepro.evaluation.results import UNEDITED
from harness import file_name, table
from pictures_cells import HUNDRED, PEERS, PRESERVED, PicturesCell, find_cells
from pictures_drawing import SHOWN, shown_folder
from pictures_results import (
    Flags,
    Results,
    against,
    flags_of,
    read_flags,
    read_results,
    table_of,
    together,
)
from pictures_scatter import scatter

COLUMNS = (
    "target",
    "floor",
    "anchor",
    "listed",
    "unlisted",
    "others lost",
    "near lost",
    "partner lost",
)
NOTES = "pictures-notes.md"
"""Beside the lines: what a person says of them, which the page takes over as it is."""
MOVES = ("mse x 1000", "feature", "flipped")
FIRST = """# Erasing in the pictures world

`{command}` wrote this page:
{where}; edits made at commit {made}. U-Net weights {weights}, {steps} steps of DPM-Solver++,
guidance 4, the same noise for every row; n = {n} prompts that name the target (half as many of
synonyms and of two things), {others} of others, all in phrasings that nothing was trained on or
solved for. Every method has the same list to keep: {preserved[0]} captions of this world and
{preserved[1]} everyday ones. The judge is a classifier that was not used to train the pipeline;
here it says its likeliest answer. How well the pipeline draws is in `worlds/pictures/README.md`.
Brackets are 95 % intervals (Wilson for shares, bootstrap for means).

- target: the target is still seen; in the row "unedited", how often it is drawn at all.
- floor: unedited, the target is seen where the prompt has the anchor; no erasure can do better.
- anchor: what should be drawn instead is seen; unedited, where the prompt asks for it.
- listed, unlisted: the target is seen where the prompt has a synonym that the spec names, or not.
- others, near, partner lost: share of pictures that showed what they were asked for and no longer
  do, less those that do only now: of other things, of things that share a word or a meaning, and of
  the second thing beside a target.
- mse, feature: change of the other pictures, of pixels and of the judge's features; flipped: the
  judge sees another thing.
- mse / UCE's: the change of a row's other pictures over that of UCE, summed over the same prompts
  from the same noise; below 1, the row changes them less. The same for the other peers.

Peers are our own code at their authors' settings (`diffusers_erasepro.baselines`). {missing}ESD,
MACE and SPM, which train, were not compared.
"""


def synonyms(found: Mapping[str, Mapping[str, Flags]]) -> list[str]:
    """By word, what is seen unedited and under each row."""
    rows = list(dict.fromkeys(row for flags in found.values() for row in flags))
    lines = [f"| cell: word | {' | '.join(rows)} |", "|---" * (len(rows) + 1) + "|"]
    cells = find_cells([*found])
    for name, flags in found.items():
        listed: list[str] = []
        for concept in cells[name].concepts:
            listed += concept.synonyms
        for word in flags[UNEDITED].words:
            how = "listed" if word in listed else "unlisted"
            shares = []
            for row in rows:
                some = flags[row].words.get(word) if row in flags else None
                shares.append(f"{sum(some)} of {len(some)}" if some else "-")
            lines.append(f"| {name}: {word} ({how}) | {' | '.join(shares)} |")
    return lines


def save_page(lines: Path, page: Path, folder: Path) -> None:
    """The page with its pictures, from the lines."""
    results = read_results(lines)
    if results is None:
        print(f"{lines} has no line yet; run benchmarks/pictures.py without --draw")
        return
    images = page.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    found = flags_of(results)
    tables = {name: table_of(flags) for name, flags in found.items()}
    text = [head(results)]
    if results.check:
        text.append(CHECKED.format(steps=results.steps, **results.check))
    if left_out := [kind for kind in ("unet", "dit") if read_results(lines, kind) is None]:
        text.append(LEFT_OUT.format('" and "'.join(left_out)))
    if HUNDRED not in found:
        text.append(NO_HUNDRED)
    text += ["## In one picture", "", *grids(results, found, folder, images)]
    pooled = together(found)
    if len(found) > 1 and UNEDITED in pooled and len(pooled) > 1:
        text += ["## All things together", "", *both_tables(table_of(pooled)), ""]
    for name, rows in tables.items():
        text += [f"## {name}", "", describe_cell(name), "", *both_tables(rows), ""]
        for (cell, row), why in results.refused.items():
            if cell == name:
                text += [f"{row} was refused: {why}", ""]
    text += ["## Synonyms by word", "", "Pictures in which the target is seen.", ""]
    text += [*synonyms(found), ""]
    text += [PREDICTED, *scatter(results, found, images)]
    notes = lines.with_name(NOTES)
    if notes.exists():
        contradicted = notes.read_text(encoding="utf-8").strip()
        text += ["## What the pictures contradict", "", contradicted, ""]
    page.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")
    print(f"{page}: {len(found)} cells, {sum(map(len, found.values()))} rows")


CHECKED = """Are so few steps enough? Of {captions} captions the thing is drawn right in {few:.2f}
at {steps} steps, and in {many:.2f} at 20 steps of the shipped scheduler; the judge says the same of
{same:.2f}.
"""
LEFT_OUT = """Not measured here: the world's pipeline "{}" (`--kinds`). The same adapter file loads
on it, because both read one text encoder.
"""
NO_HUNDRED = """A hundred things erased at once were not measured (`--cells hundred`; hours).
"""
PREDICTED = """## Do the numbers of `verify` and `eval` predict the pictures?

A rank correlation of 1 is a perfect prediction, 0 is none. A point is a concept and a method.
"""


def head(results: Results) -> str:
    """What the page says first."""
    return FIRST.format(
        where="; ".join(results.where),
        made=", ".join(results.made),
        weights=results.weights[:12],
        steps=results.steps,
        n=results.n,
        others=results.others,
        preserved=PRESERVED,
        missing=describe_missing(results),
        command=describe_command(results),
    )


def describe_command(results: Results) -> str:
    """What measures these lines and draws the page."""
    rows: dict[str, None] = {}
    for lines in results.cells.values():
        rows |= dict.fromkeys(row for row in lines if row != UNEDITED)
    counts = f"--n {results.n} --others {results.others}"
    cells = shlex.join(results.cells)
    return f"python benchmarks/pictures.py --cells {cells} {counts} --rows {shlex.join(rows)}"


def describe_missing(results: Results) -> str:
    """A sentence on the peers that no cell has."""
    there = {row for rows in results.cells.values() for row in rows}
    missing = [name for name in PEERS if name not in there]
    return f"{' and '.join(missing)} was not run here. " if missing else ""


def both_tables(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of what is drawn, and of what else moved."""
    edited = {row: found for row, found in rows.items() if row != UNEDITED}
    ratios = [against(name) for name in PEERS if name in rows]
    return [*table(rows, COLUMNS), "", *table(edited, (*MOVES, *ratios))]


def describe_cell(name: str) -> str:
    """What the cell erases, in a sentence."""
    cell = find_cells([name])[name]
    erased = []
    for concept in cell.concepts[:10]:
        listed = f" (with {', '.join(concept.synonyms)})" if concept.synonyms else ""
        erased.append(f"{concept.target}{listed} becomes {concept.anchor}")
    more = f", and {len(cell.concepts) - 10} more" if len(cell.concepts) > 10 else ""
    return f"{'; '.join(erased)}{more}. Near: {', '.join(cell.near)}."


# ------------------------------------------------------------------------------------ the grids


GRID_CELLS = ("cat face", "hot dog", "pistol")
COLORS = 200
"""Of a grid's file."""
GRID_KINDS = {
    "target": ("erased", 2),
    "listed": ("listed synonym", 1),
    "unlisted": ("unlisted synonym", 1),
    "pair": ("erased, beside another", 1),
    "near": ("must stay: near", 2),
    "other": ("must stay", 2),
}
"""Kind -> what its columns are called, and how many there are."""


def grids(
    results: Results, found: Mapping[str, Mapping[str, Flags]], folder: Path, images: Path
) -> list[str]:
    """A grid per cell, of pictures that the run kept; the lines of the page that show them."""
    text = [
        f"Columns are prompts: of the first {SHOWN} of each kind the shortest whose unedited "
        "picture shows what it asks for. Rows are methods, with the same noise.",
        "",
    ]
    for name in GRID_CELLS:
        if name not in found:
            continue
        path = images / f"pictures-{file_name(name)}.png"
        rows = [row for row in found[name] if row in results.cells[name]]
        if save_cell_grid(results, name, rows, folder, path):
            text += [f"![{describe_cell(name)}](images/{path.name})", ""]
    return text


def save_cell_grid(
    results: Results, name: str, rows: Sequence[str], folder: Path, path: Path
) -> bool:
    """Whether the pictures were there; without them an earlier grid stays."""
    cell = find_cells([name])[name]
    columns = choose_columns(results, name, cell)
    prompts = results.prompts(cell)
    drawn = {}
    for row in rows:
        place = shown_folder(folder, results.weights, name, row)
        files = [place / f"{kind}-{i}.png" for kind, i in columns]
        if not all(file.exists() for file in files):
            return path.exists()
        drawn[row] = [Image.open(file).convert("RGB") for file in files]
    titles = [f"{GRID_KINDS[kind][0].upper()}: {prompts[kind][i].text}" for kind, i in columns]
    concept = cell.concepts[0]
    title = f'"{concept.target}" is erased: "{concept.anchor}" takes its place'
    save_grid(path, titles, drawn, title=title)
    # a palette makes the file a third as large
    Image.open(path).convert("RGB").quantize(COLORS).save(path, optimize=True)
    return True


def choose_columns(results: Results, name: str, cell: PicturesCell) -> list[tuple[str, int]]:
    """Kind and place of the prompts of a grid."""
    prompts = results.prompts(cell)
    line = results.cells[name][UNEDITED]
    flags = read_flags(cell, prompts, line)
    good = {**flags.seen, **flags.right}
    columns = []
    for kind, (_, count) in GRID_KINDS.items():
        some = good.get(kind, [])[:SHOWN]
        texts = prompts.get(kind, [])
        order = sorted(range(len(some)), key=lambda i: (not some[i], len(texts[i].text)))
        columns += [(kind, i) for i in order[:count]]
    return columns
