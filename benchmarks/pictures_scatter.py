"""Do the states foretell the pictures? The scatter of `pictures.py`, and thresholds from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from scipy import stats

from diffusers_erasepro.evaluation.results import UNEDITED
from diffusers_erasepro.evaluation.verdicts import LEFT, MOVED
from pictures_results import Flags, Results, flags_of, read_results

PLACES = ("name", "other", "ends", "padding")
FEWEST = 30
"""Pictures from which a threshold is derived."""
SEEN_BARS = (0.03, 0.1)
FLIPPED_BARS = (0.01, 0.05)
"""Shares of pictures up to which a number may be called good, and worth a look."""


@dataclass(frozen=True)
class Points:
    """What the states say against what pictures say, a point per cell and row."""

    rows: list[str]
    x: list[float]
    y: list[float]

    def correlation(self) -> str:
        """Of ranks; of pictures that all say the same there is none."""
        if len(self.x) < 3 or len({*self.y}) < 2 or len({*self.x}) < 2:
            return "too few points"
        found = stats.spearmanr(self.x, self.y)
        return f"rank correlation {found.statistic:.2f} (p {found.pvalue:.1g}, n {len(self.x)})"


def points_of(results: Results, found: Mapping[str, Mapping[str, Flags]]) -> dict[str, Points]:
    """Name of the measure -> points: "left KIND", "near", "drift"."""
    named = {f"left {place}": Points([], [], []) for place in PLACES}
    named |= {"left": Points([], [], []), "near": Points([], [], []), "drift": Points([], [], [])}
    for name, flags in found.items():
        for row, some in flags.items():
            if row == UNEDITED:
                continue
            states = results.cells[name][row]["states"]
            asked = flags[UNEDITED].seen["target"]
            still = [now for now, was in zip(some.seen["target"], asked, strict=True) if was]
            if still:
                for key, values in states["target"].items():
                    add_point(named[key], row, values, sum(still) / len(still))
            if "near" in some.right:
                moved = flipped(flags[UNEDITED], some, "near")
                add_point(named["near"], row, states["near"], sum(moved) / len(moved))
            add_point(named["drift"], row, states["other"], sum(some.mse) / len(some.mse))
    return named


def flipped(before: Flags, after: Flags, kind: str) -> list[bool]:
    """Whether the judge sees another thing, picture by picture."""
    pairs = zip(before.things[kind], after.things[kind], strict=True)
    return [a != b for a, b in pairs]


def add_point(points: Points, row: str, values: Sequence[float | None], y: float) -> None:
    """The mean of what is there; nothing where there is none."""
    some = [value for value in values if value is not None]
    if some:
        points.rows.append(row)
        points.x.append(sum(some) / len(some))
        points.y.append(y)


LABELS = {
    "near": ("near: mean change of states", "near pictures that flipped"),
    "drift": ("drift: mean change of states", "mse of other pictures"),
}


def scatter(results: Results, found: Mapping[str, Mapping[str, Flags]], images: Path) -> list[str]:
    """The figure, the correlations, and the thresholds that follow; as lines of the page."""
    points = points_of(results, found)
    path = images / "pictures-scatter.png"
    save_scatter(points, path)
    text = [
        "left: the share of the gap between the prompt and the same prompt with the anchor that "
        "is left in the states, by kind of position (the name, other words, the ends of the "
        "prompt, the padding), mean over the prompts; against the share of pictures that still "
        "show the target, of those that did. near, drift: how far the states of near and of other "
        "prompts moved; against near pictures in which the judge sees another thing, and the mse "
        "of others.",
        "",
        f"![what the states say against what the pictures say](images/{path.name})",
        "",
        "| measure of the states | against the pictures |",
        "|---|---|",
    ]
    text += [f"| {name} | {some.correlation()} |" for name, some in points.items()]
    return [*text, "", *threshold_lines(results, found), ""]


def save_scatter(points: Mapping[str, Points], path: Path) -> None:
    """A panel per measure, a colour per row."""
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    panels = figure.subplots(2, 4).flat
    rows = list(dict.fromkeys(row for some in points.values() for row in some.rows))
    for axes, (name, some) in zip(panels, points.items(), strict=False):
        for i, row in enumerate(rows):
            mine = [at for at, other in enumerate(some.rows) if other == row]
            x = [some.x[at] for at in mine]
            axes.plot(
                x, [some.y[at] for at in mine], "o", ms=6, color=f"C{i}", label=row, alpha=0.8
            )
        x_label, y_label = LABELS.get(name, (f"{name} in the states", "target still in pictures"))
        axes.set(xlabel=x_label, ylabel=y_label, title=some.correlation())
        axes.title.set_fontsize(8)
        if name == "drift":
            axes.set_xscale("symlog", linthresh=1e-4)
            axes.set_yscale("symlog", linthresh=1e-5)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.axes[7].axis("off")
    figure.axes[7].legend(handles, labels, loc="center", fontsize=9)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def largest_allowed(values: Sequence[float], hits: Sequence[bool], bar: float) -> float | None:
    """The largest value such that of all pictures up to it, at most the share `bar` are hits.

    None where there are too few pictures to tell, or the least value is over the bar already.
    """
    if len(values) < FEWEST:
        return None
    order = sorted(range(len(values)), key=lambda i: values[i])
    allowed = None
    so_far = 0
    for count, i in enumerate(order, 1):
        so_far += hits[i]
        last_of_its_value = count == len(order) or values[order[count]] > values[i]
        if last_of_its_value and so_far / count <= bar:
            allowed = values[i]
    return allowed


@dataclass(frozen=True)
class Evidence:
    """Prompts with what the states said of each, and whether its picture went wrong."""

    values: list[float]
    hits: list[bool]


def evidence_of(
    results: Results, found: Mapping[str, Mapping[str, Flags]]
) -> tuple[Evidence, Evidence]:
    """Of `left`: prompts whose target was drawn, and whether it still is. Of `moved`: prompts of
    near and other things that were drawn, and whether the judge sees another thing now."""
    left = Evidence([], [])
    moved = Evidence([], [])
    for name, flags in found.items():
        before = flags[UNEDITED]
        for row, after in flags.items():
            if row == UNEDITED:
                continue
            states = results.cells[name][row]["states"]
            still = after.seen["target"]
            add_evidence(left, states["target"]["left"], before.seen["target"], still)
            for kind in ("near", "other"):
                if kind in after.things:
                    hits = flipped(before, after, kind)
                    add_evidence(moved, states[kind], before.right[kind], hits)
    return left, moved


def add_evidence(
    evidence: Evidence,
    values: Sequence[float | None],
    drawn: Sequence[bool],
    hits: Sequence[bool],
) -> None:
    """The prompts that were measured and whose unedited picture shows what they ask for."""
    for value, was, hit in zip(values, drawn, hits, strict=False):
        if was and value is not None and not math.isnan(value):
            evidence.values.append(value)
            evidence.hits.append(hit)


def threshold_lines(results: Results, found: Mapping[str, Mapping[str, Flags]]) -> list[str]:
    """What the verdicts' thresholds would be, as lines of a table."""
    left, moved = evidence_of(results, found)
    lines = [
        "The verdicts of `eval` are rules of thumb (shipped). By these pictures the bounds would "
        "be: of the prompts up to the number, at most the share in brackets still shows the "
        "target (left), or shows another thing than before (moved).",
        "",
        "| number | shipped | good by these pictures | look by these pictures | prompts |",
        "|---|---|---|---|---|",
    ]
    for name, shipped, some, bars in (
        ("left", LEFT, left, SEEN_BARS),
        ("moved", MOVED, moved, FLIPPED_BARS),
    ):
        cells = []
        for bar in bars:
            allowed = largest_allowed(some.values, some.hits, bar)
            cells.append("none" if allowed is None else f"{allowed:.3g} (share <= {bar})")
        lines.append(f"| {name} | {shipped} | {cells[0]} | {cells[1]} | {len(some.values)} |")
    return lines


def print_thresholds(lines: Path) -> None:
    """The table of thresholds on the console."""
    results = read_results(lines)
    if results is None:
        print(f"{lines} has no line yet; run benchmarks/pictures.py first")
        return
    print("\n".join(threshold_lines(results, flags_of(results))))
