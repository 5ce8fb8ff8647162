"""Experiments: a name, a world, cells, methods, n, a seed. JSON lines come out, a page is drawn.

A script makes an `Experiment` and hands it to `main`:

    python benchmarks/NAME.py --n 48 --out runs/NAME     # goes on where an earlier run stopped
    python benchmarks/NAME.py --out runs/NAME --draw     # the page again, from the lines alone

Images are generated, judged and counted by `diffusers_erasepro.evaluation.runner.evaluate`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from common import keep_line, kept_lines, provenance
from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erasable
from diffusers_erasepro.erasure.noise_predictions import NoisePredictions
from diffusers_erasepro.errors import IllPosedError
from diffusers_erasepro.evaluation.metrics import Estimate, rate, ratio
from diffusers_erasepro.evaluation.results import UNEDITED, aggregate, read_lines
from diffusers_erasepro.evaluation.runner import evaluate
from diffusers_erasepro.evaluation.suites import Suite
from worlds import BenchWorld

FLIP = 0.005
"""A mean squared change of an image that the eye sees."""
COLUMNS = ("ACC_e", "ACC_a", "ACC_ctx", "ACC_s", "mse", "median", "flipped")
"""Of a page's tables: the measures of `evaluate`, and of the other prompts' images the median
change and the share that flipped."""
EXPLAINED = (
    "ACC_e: target still seen; ACC_a: anchor seen; ACC_ctx: the rest of the prompt kept;",
    "ACC_s: other prompts kept; mse, median, flipped: how far their images moved, and the share",
    f"that moved more than {FLIP}, which the eye sees. Brackets: 95 % intervals.",
)
Make = Callable[[Any, ErasureSpec], ErasureAdapter]
"""`(pipe, spec) -> adapter`, as `erase` and the baselines are called."""
Found = Mapping[str, Mapping[str, Any]]
"""Row -> measure -> number, of one cell."""


@dataclass(frozen=True)
class Cell:
    """What is erased jointly, and what is generated to see it."""

    concepts: tuple[Concept, ...]
    suite: Suite
    setting: Callable[[Any], AbstractContextManager[Any]] = nullcontext
    """What else is done to the pipeline while the cell is measured, such as a style LoRA."""
    methods: tuple[str, ...] = ()
    """The rows of this cell; none named means all."""


@dataclass(frozen=True)
class Experiment:
    """What is compared, on what."""

    name: str
    world: BenchWorld
    cells: Mapping[str, Cell]
    methods: Mapping[str, Make]
    """Row -> how its adapter is made; the first is ours."""
    n: int
    """Images per kind of prompt and row."""
    seed: int
    text: str = ""
    """What the page says above its tables."""
    columns: Sequence[str] = COLUMNS
    predictions: bool = False
    """Whether each adapter's denoiser residual and drift are measured too."""

    def run(self, out: Path) -> None:
        """Generate and judge what the lines in `out` lack."""
        pipe = erasable(self.world.load_pipeline())
        keep_line(out / "runs.jsonl", {"where": provenance(self.seed), "n": self.n})
        for name, cell in tqdm(self.cells.items(), desc=self.name):
            folder = out / file_name(name)
            spec = ErasureSpec(cell.concepts, preserve=self.world.captions)
            with cell.setting(pipe):
                rows = {}
                for row in cell.methods or self.methods:
                    if row in self.methods:
                        rows[row] = self.methods[row]
                made = make_adapters(pipe, spec, rows, folder, predictions=self.predictions)
                if made:
                    evaluate(
                        pipe,
                        spec,
                        made,
                        cell.suite,
                        n=self.n,
                        seed=self.seed,
                        out=folder,
                        controls=False,
                    )

    def read(self, out: Path) -> dict[str, Found]:
        """Cell -> numbers, of the cells that have lines in `out`."""
        found = {}
        for name in self.cells:
            folder = out / file_name(name)
            if any(folder.glob("shard-*.jsonl")) and (rows := read_cell(folder)):
                found[name] = rows
        return found

    def draw(self, out: Path) -> str:
        """The page, from the lines in `out` alone."""
        runs = kept_lines(out / "runs.jsonl")
        where = "; ".join(dict.fromkeys(run["where"] for run in runs))
        counts = ", ".join(dict.fromkeys(str(run["n"]) for run in runs))
        script = self.name.replace("-", "_")
        page = [
            f"# {self.name.replace('-', ' ').capitalize()}, on the {self.world.name} world",
            "",
            f"`python benchmarks/{script}.py` wrote this page: {where}.",
            f"{counts} images per kind of prompt and row, 15 steps, guidance 3, same seeds.",
            self.text,
            *EXPLAINED,
        ]
        found = self.read(out)
        if len(self.methods) > 1:
            page += ["", *verdicts(found)]
        for name, rows in found.items():
            page += ["", f"## {name}", "", *table(rows, self.columns)]
            for line in kept_lines(out / file_name(name) / "rows.jsonl"):
                if "refused" in line:
                    page.append(f"\nRefused: {line['row']}: {line['refused']}")
        return "\n".join([*page, ""])


def make_adapters(
    pipe: Any, spec: ErasureSpec, methods: Mapping[str, Make], folder: Path, *, predictions: bool
) -> dict[str, ErasureAdapter]:
    """Row -> adapter, each kept in `folder`; of a row that is refused, the reason is kept."""
    described = {line["row"]: line for line in kept_lines(folder / "rows.jsonl")}
    unedited = None
    made = {}
    for row, make in methods.items():
        path = folder / file_name(row)
        if "refused" in described.get(row, {}):
            continue
        if path.exists():
            made[row] = ErasureAdapter.from_pretrained(path)
            continue
        try:
            adapter = make(pipe, spec)
        except IllPosedError as error:
            keep_line(folder / "rows.jsonl", {"row": row, "refused": str(error)})
            continue
        line = describe_edits(row, adapter)
        if predictions:
            with torch.no_grad():
                unedited = unedited or NoisePredictions.of(pipe, spec)
            residual, drift = unedited.compare(adapter)
            line |= {"r": residual, "d": drift}
        keep_line(folder / "rows.jsonl", line)
        adapter.save_pretrained(path)
        made[row] = adapter
    return made


def file_name(text: str) -> str:
    """`text` as the name of a file."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")


def describe_edits(row: str, adapter: ErasureAdapter) -> dict[str, Any]:
    """What a page says of an adapter beside its images."""
    sizes = [round(layer.edit_size, 3) for layer in adapter.report.layers]
    rank = max(layer.rank for layer in adapter.report.layers)
    return {"row": row, "sizes": sizes, "rank": rank}


def read_cell(folder: Path) -> Found:
    """The numbers of a cell, from its lines; none before its first edited image."""
    lines = list(read_lines(folder))
    found = aggregate(lines)
    if {*found} <= {UNEDITED}:
        return {}
    base = moved_images(lines, UNEDITED)
    for row, numbers in found.items():
        moved = moved_images(lines, row)
        numbers["median"] = sorted(moved.values())[len(moved) // 2]
        numbers["flipped"] = rate([change > FLIP for change in moved.values()], "flipped")
        numbers["others"] = len(base)
    first = next(row for row in found if row != UNEDITED)
    ours = moved_images(lines, first)
    for row, numbers in found.items():
        theirs = moved_images(lines, row)
        if row != UNEDITED and sum(theirs.values()) > 0:
            numbers["ratio"] = ratio(list(ours.values()), list(theirs.values()), "mse ratio")
    for line in kept_lines(folder / "rows.jsonl"):
        if line["row"] in found:
            found[line["row"]] |= line
    return found


def moved_images(lines: Sequence[Mapping[str, Any]], row: str) -> dict[int, float]:
    """Index -> change of each image of the other prompts, in the order of the indices."""
    moved = {}
    for line in lines:
        if line.get("kind") == "other" and line["row"] == row:
            moved[line["index"]] = line["mse"]
    return dict(sorted(moved.items()))


def format_number(value: Any) -> str:
    """As a cell of a table."""
    if isinstance(value, Estimate):
        return f"{value.value:.3g} ({value.low:.2g} to {value.high:.2g})"
    if isinstance(value, list):
        return ", ".join(f"{number:.2f}" for number in value)
    if isinstance(value, float):
        return f"{value:.3g}"
    return "-" if value is None else str(value)


def table(rows: Found, columns: Sequence[str]) -> list[str]:
    """One line per row of a cell."""
    lines = [f"| row | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row, numbers in rows.items():
        cells = [format_number(numbers.get(column)) for column in columns]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


# --------------------------------------------------------------------- ours and the best peer


def best_row(rows: Found, bar: float) -> str:
    """The row that moves others least among those that leave at most `bar` of the target.

    If none does, the one that leaves least.
    """
    enough = [row for row in rows if rows[row]["ACC_e"].value <= bar]
    measure = "mse" if enough else "ACC_e"
    return min(enough or rows, key=lambda row: rows[row][measure].value)


def verdicts(found: Mapping[str, Found]) -> list[str]:
    """Per cell: the first row against the best setting of the best peer."""
    lines = [
        "| cell | ours: ACC_e | ACC_s | mse | best peer | ACC_e | ACC_s | mse | mse ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell, rows in found.items():
        first = next((row for row in rows if row != UNEDITED), None)
        peers = {r: x for r, x in rows.items() if r != UNEDITED and not r.startswith("ours")}
        if first is None or not peers:
            continue
        ours = rows[first]
        name = best_row(peers, max(0.05, ours["ACC_e"].value))
        numbers = []
        for row in (ours, peers[name]):
            numbers.append([f"{row[m].value:.3g}" for m in ("ACC_e", "ACC_s", "mse")])
        mine = " | ".join(numbers[0])
        theirs = " | ".join(numbers[1])
        over = format_number(peers[name].get("ratio"))
        lines.append(f"| {cell} | {mine} | {name} | {theirs} | {over} |")
    return lines


def save_trade_off(path: Path, found: Mapping[str, Found]) -> None:
    """ACC_e against the change of others: a panel per cell, a line per method's settings."""
    figure = Figure(figsize=(3.2 * len(found), 3.4), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (cell, rows) in zip(panels, found.items(), strict=True):
        methods = dict.fromkeys(row.partition(":")[0] for row in rows if row != UNEDITED)
        for method in methods:
            points = [x for row, x in rows.items() if row.partition(":")[0] == method]
            points.sort(key=lambda x: x["mse"].value)
            axes.plot(
                [x["mse"].value for x in points],
                [x["ACC_e"].value for x in points],
                "o-",
                label=method,
                lw=2.5 if method == "ours" else 1,
            )
        axes.set(title=cell, xscale="log", xlabel="mse of others", ylabel="ACC_e")
        axes.set_ylim(-0.03, 1.03)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=90, metadata={"Software": None})


# -------------------------------------------------------------------------------- commands


def parse_arguments(n: int, seed: int, doc: str | None) -> argparse.Namespace:
    """What every experiment's command takes."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--n", type=int, default=n, help="images per kind of prompt and row")
    parser.add_argument("--seed", type=int, default=seed)
    parser.add_argument("--world", default="first", help="first or second")
    parser.add_argument("--folder", type=Path, help="the weights of a world that is not shipped")
    parser.add_argument("--cells", nargs="*", help="default: all")
    parser.add_argument("--methods", nargs="*", help="default: all")
    parser.add_argument("--out", type=Path, help="the JSON lines; default: runs/NAME-WORLD")
    parser.add_argument("--page", type=Path, help="default: page.md beside the lines")
    parser.add_argument("--draw", action="store_true", help="the page alone, from the lines")
    return parser.parse_args()


def main(experiment: Experiment, args: argparse.Namespace) -> dict[str, Found]:
    """Run what is asked for, and draw the page; the numbers come back for what else is drawn."""
    out = args.out or Path("runs") / f"{experiment.name}-{experiment.world.name}"
    if not args.draw:
        out.mkdir(parents=True, exist_ok=True)
        chosen = choose(experiment, args.cells, args.methods)
        chosen.run(out)
    page = args.page or out / "page.md"
    page.write_text(experiment.draw(out), encoding="utf-8")
    found = experiment.read(out)
    if len(experiment.methods) > 1:
        save_trade_off(page.with_suffix(".png"), found)
    print(page.read_text(encoding="utf-8"))
    return found


def choose(
    experiment: Experiment, cells: Sequence[str] | None, methods: Sequence[str] | None
) -> Experiment:
    """The experiment with these cells and methods alone."""
    some = {name: experiment.cells[name] for name in cells or experiment.cells}
    rows = {name: experiment.methods[name] for name in methods or experiment.methods}
    return replace(experiment, cells=some, methods=rows)
