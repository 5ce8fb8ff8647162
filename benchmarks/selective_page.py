"""The page of `selective.py`, drawn from its lines alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from common import kept_lines

Line = Mapping[str, Any]
FIRST = """# How selective an edit is

Measured on all-MiniLM-L6-v2, a text encoder that others trained, and on three small encoders that
were distilled from it. Nothing is drawn: these are the states that a denoiser would read.

`left`: what remains of the gap to the anchor over phrasings that no edit saw, by kind of position
(the name's tokens, the other words, the ends of the prompt, the padding behind it); 1 is nothing
erased, 0 all of it. `drift`: how far captions moved that name nothing that was erased. `near`: the
same of phrases that share a word or a meaning with the name, those that the edit was given to keep
and others. `fires`: captions, and words in "a WORD", in which a token moves by more than a tenth.

"default" is what `erase` does, `("embedding", "gates", "otherwise:0", -1)`, "former default" what
it did until 28 November 2026: two neurons and the last block for things and styles, `(0, -1)` for
others. "rows" stands for `"embedding"` among `layers`, "gates" for `"gates"`, "last block" for
`-1`, "blocks" for `(0, -1)`, "listed alone" for the default without soft prompts. Sketches are
those of the measuring stick, `../shared/tools/real_encoder.py`, which is frozen; its phrases,
captions and figures are used as they are, but that every eighth word of the vocabulary is asked.
"""


def number(value: Any, digits: int = 3) -> str:
    """As a cell of a table."""
    return "-" if value is None else f"{value:.{digits}f}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Nothing where there are no rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return []
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines]


MEASURES = (
    "left: name / other / ends",
    "drift: mean, 99 %, worst",
    "near: given, others, worst",
    "fires: captions, words",
)


def measures(line: Line) -> list[str]:
    """The four columns that most tables share."""
    if "refused" in line:
        return [f"refused: {line['refused'][:160]}", "", "", ""]
    left = [number(line.get(f"left {place}")) for place in ("name", "other", "ends")]
    drift = [number(line["drift"], 4), number(line["q99"], 4), number(line["worst"])]
    near = [number(line.get(f"near {kind}")) for kind in ("told", "untold", "worst")]
    counts = [line.get(f"fires {kind}") for kind in ("captions", "words")]
    fires = [number(count, 0 if count is None or count % 1 == 0 else 1) for count in counts]
    return [" / ".join(left), ", ".join(drift), ", ".join(near), ", ".join(fires)]


def mean_of(lines: Sequence[Line]) -> Line:
    """The mean of each number; of the worst near miss too, as the tool does."""
    found = {}
    for key in lines[0]:
        values = [line[key] for line in lines if isinstance(line.get(key), int | float)]
        if len(values) == len(lines):
            found[key] = sum(values) / len(values)
    return found


def parts(line: Line) -> list[str]:
    """The pieces of a line's key."""
    return line["key"].split(" / ")


def draw_names(lines: Sequence[Line]) -> list[str]:
    """By name, and the mean of the tool's six where all of them are there."""
    rows = []
    by_row: dict[str, list[Line]] = {}
    for line in lines:
        name, row = parts(line)
        rows.append([name, row, *measures(line)])
        if name not in {"rembrandt", "pistol"} and "refused" not in line:
            by_row.setdefault(row, []).append(line)
    means = []
    for row, found in by_row.items():
        if len(found) == 6:
            means.append([f"mean of six / {row}", *measures(mean_of(found))])
    heads = ("name", "row", *MEASURES)
    return [*table(("row", *MEASURES), means), "", *table(heads, rows)]


def draw_many(lines: Sequence[Line]) -> list[str]:
    """By the number of names."""
    return table(("names", "row", *MEASURES), ([*parts(x), *measures(x)] for x in lines))


def draw_apart(lines: Sequence[Line]) -> list[str]:
    """By the number of files."""
    rows = []
    for line in lines:
        if "refused" in line:
            rows.append([*parts(line), "", "", *measures(line)])
            continue
        alone = [number(line.get(f"alone left {place}")) for place in ("name", "other", "ends")]
        taken = f"{line['taken twice']} of {line['taken']}"
        rows.append([*parts(line), " / ".join(alone), taken, *measures(line)])
    heads = ("files", "row", "each alone, left", "neurons taken again", *MEASURES)
    return table(heads, rows)


def draw_spellings(lines: Sequence[Line]) -> list[str]:
    """What is left of the name, by how it is written."""
    rows = []
    for line in lines:
        name, row = parts(line)
        if "refused" in line:
            rows.append([name, row, "refused", line["refused"][:160]])
            continue
        for written, left in line["spelled"].items():
            rows.append([name, row, written, number(left)])
    return table(("name", "row", "written", "left: name"), rows)


def draw_conditions(lines: Sequence[Line]) -> list[str]:
    """By precision, scale or strength of another LoRA; means over the names."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        _, row, how = parts(line)
        if "refused" not in line:
            groups.setdefault((row, how), []).append(line)
    rows = []
    for (row, how), found in groups.items():
        rows.append([row, how, str(len(found)), *measures(mean_of(found))])
    return table(("row", "how", "names", *MEASURES), rows)


def draw_resets(lines: Sequence[Line]) -> list[str]:
    """What is left of the name once so many rows are what they were."""
    kept = [line for line in lines if "refused" not in line]
    if not kept:
        return []
    counts = list(kept[0]["left"])
    rows = []
    for line in kept:
        found = [number(line["left"][count]) for count in counts]
        rows.append([*parts(line), str(line["rows"]), *found])
    return table(("name", "row", "rows changed", *(f"{n} reset" for n in counts)), rows)


def draw_depth(lines: Sequence[Line]) -> list[str]:
    """By block."""
    rows = []
    for line in lines:
        if "refused" not in line:
            synonyms = number(line["left synonyms"])
            rows.append([*parts(line), synonyms, *measures(line)])
    return table(("name", "block", "left: synonyms", *MEASURES), rows)


def draw_encoders(lines: Sequence[Line]) -> list[str]:
    """By encoder and name, and the padding; means over the tool's six."""
    rows = []
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        kind, name, row = parts(line)
        rows.append([kind, name, row, number(line.get("left padding")), *measures(line)])
        if name not in {"rembrandt", "pistol"} and "refused" not in line:
            groups.setdefault((kind, row), []).append(line)
    means = []
    for (kind, row), found in groups.items():
        if len(found) == 6:
            mean = mean_of(found)
            means.append([kind, row, number(mean.get("left padding")), *measures(mean)])
    heads = ("left: padding", *MEASURES)
    first = table(("encoder", "row", *heads), means)
    return [*first, "", *table(("encoder", "name", "row", *heads), rows)]


SECTIONS: dict[str, tuple[str, str, Callable[[Sequence[Line]], list[str]]]] = {
    "names": (
        "Names, one at a time",
        "Rembrandt and pistol have anchors of more tokens, the second contains its target. The "
        "tool's sketch of gates, which the product must beat, takes minutes a line and is quoted, "
        "with every word asked (`python ../shared/tools/real_encoder.py --only gates`): mean of "
        "six left 0.092 / 0.241 / 0.146, drift 0.0006, 0.0018, 0.016, near 0.001, 0.016, 0.186, "
        "fires 0, 0.",
        draw_names,
    ),
    "many": (
        "Many names at once",
        "Names of two common words, all sent to a stone in one edit; every twentieth word of the "
        "vocabulary is asked.",
        draw_many,
    ),
    "apart": (
        "Files made apart",
        "One name in each, the tool's six and then names of two common words; added up as stock "
        "LoRA loaders do. `load_erasure_adapter` solves them together instead. 150 captions.",
        draw_apart,
    ),
    "spellings": ("Other spellings", "None was solved for.", draw_spellings),
    "precision": (
        "Precision and scale",
        "Compared with the unedited encoder at the same precision; means over names; 150 captions. "
        "Merged: the edited weights rounded. Beside: the edit made for float32 is added to rounded "
        "weights, as a hook adds it.",
        draw_conditions,
    ),
    "style": (
        "Beside a style LoRA",
        "Rank 4 on every linear of attention, at this strength; the unedited encoder has it too.",
        draw_conditions,
    ),
    "resets": (
        "Rows that an attacker resets",
        "Whoever has the base's weights puts back the rows that changed most, relative to "
        "themselves. What is left of the gap then:",
        draw_resets,
    ),
    "depth": (
        "Synonyms by block",
        "One block edited by today's linear edit; synonyms were not listed.",
        draw_depth,
    ),
    "encoders": (
        "Encoders of other classes",
        "Distilled by `tools/encoders/distil.py`; how good they are is in "
        "`worlds/encoders/README.md`. 150 captions.",
        draw_encoders,
    ),
}


TRADE = """## What is left against what drifts

Means over those of the four names of shared tokens that every row of an encoder has; lines of the
tables below.
"""
LEAST_DRIFT = 2e-5
"""Less is drawn as this."""
SHARED = ("taylor swift", "golf ball", "van gogh", "mickey mouse")
ENCODERS = {"bert": "MiniLM", "clip": "CLIP-like", "t5": "T5-like", "qwen3": "Qwen3-like"}


def trade_of(lines: Mapping[str, Line], kind: str) -> dict[str, Line]:
    """By row, the mean over the names of shared tokens that all its rows have on an encoder."""
    by_row: dict[str, dict[str, Line]] = {}
    for line in lines.values():
        name, row = parts(line)[-2:]
        whose = parts(line)[0] if len(parts(line)) == 3 else "bert"
        if whose == kind and name in SHARED and "refused" not in line:
            by_row.setdefault(row, {})[name] = line
    names = [name for name in SHARED if all(name in found for found in by_row.values())]
    return {row: mean_of([found[n] for n in names]) for row, found in by_row.items() if names}


def draw_trade(found: Mapping[str, Mapping[str, Line]], image: Path) -> list[str]:
    """The table, and the figure: a panel an encoder, a point a row."""
    figure = Figure(figsize=(2.9 * len(found) + 1.8, 3.4))
    axes = figure.subplots(1, len(found), sharex=True, sharey=True, squeeze=False)[0]
    every = dict.fromkeys(row for lines in found.values() for row in lines)
    looks = {row: f"{'os^vDPX'[i % 7]}C{i}" for i, row in enumerate(every)}
    points = {}
    rows = []
    for axis, (kind, lines) in zip(axes, found.items(), strict=True):
        for row, line in lines.items():
            places = [line.get(f"left {place}") for place in ("name", "other", "ends", "padding")]
            places = [place for place in places if place is not None]
            left = sum(places) / len(places)
            (points[row],) = axis.plot(max(line["drift"], LEAST_DRIFT), left, looks[row], alpha=0.7)
            rows.append([ENCODERS[kind], row, number(left), *measures(line)])
        axis.set(xscale="log", xlabel="drift of captions", title=ENCODERS[kind])
        axis.set(xlim=(LEAST_DRIFT / 2, 0.2), ylim=(0, 1))
    figure.legend(points.values(), points.keys(), loc="center right", fontsize=7)
    figure.axes[0].set_ylabel("left of the gap")
    figure.tight_layout(rect=(0, 0, 1 - 1.8 / figure.get_figwidth(), 1))
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=110, metadata={"Software": None})
    link = f"![left against drift]({image.parent.name}/{image.name})"
    heads = ("encoder", "row", "left: mean of places", *MEASURES)
    return [TRADE, link, "", *table(heads, rows), ""]


def draw_page(results: Path, image: Path) -> str:
    """All sections that have lines; the figure of the trade-off is drawn to `image`."""
    page = [FIRST]
    every: dict[str, Line] = {}
    for section in ("names", "encoders"):
        lines = kept_lines(results / f"selective-{section}.jsonl")
        every |= {f"{section} {line['key']}": line for line in lines}
    trades = {kind: trade_of(every, kind) for kind in ENCODERS}
    trades = {kind: found for kind, found in trades.items() if found}
    if trades:
        page += draw_trade(trades, image)
    for section, (title, text, draw) in SECTIONS.items():
        # of a line that was tried again the last one counts
        found = kept_lines(results / f"selective-{section}.jsonl")
        lines = list({line["key"]: line for line in found}.values())
        if lines:
            where = dict.fromkeys(line["where"] for line in lines)
            command = f"python benchmarks/selective.py --sections {section}"
            page += [f"## {title}", "", text, "", f"`{command}`: {'; '.join(where)}.", ""]
            page += [*draw(lines), ""]
    return "\n".join(page)
