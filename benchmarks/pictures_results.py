"""What the lines of `pictures.py` say: which pictures show what, and what follows from that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import kept_lines
from diffusers_erasepro.evaluation.metrics import Estimate, mean, rate, ratio
from diffusers_erasepro.evaluation.results import UNEDITED
from diffusers_erasepro.pictures import THINGS
from diffusers_erasepro.pictures.captions import STYLES
from pictures_cells import ANCHOR, PEERS, PicturesCell, Prompt, find_cells, prompts_of

Line = Mapping[str, Any]
Rows = Mapping[str, Line]
"""Row -> line, of one cell."""


@dataclass(frozen=True)
class Results:
    """The lines of one set of weights and numbers."""

    pipeline: str
    weights: str
    n: int
    others: int
    seed: int
    steps: int
    cells: Mapping[str, Rows]
    where: tuple[str, ...]
    made: tuple[str, ...]
    """The commits that made the edits."""
    refused: Mapping[tuple[str, str], str]
    """Cell and row -> why there is no edit."""
    check: Line | None
    """Whether few steps are enough, if that was asked."""

    def prompts(self, cell: PicturesCell) -> dict[str, list[Prompt]]:
        """What was drawn."""
        return prompts_of(cell, self.n, self.others, self.seed)


def read_results(path: Path, pipeline: str = "unet") -> Results | None:
    """Those of the last line: other weights or numbers were other runs."""
    every = [line for line in kept_lines(path) if line["pipeline"] == pipeline]
    lines = [line for line in every if "check" not in line]
    if not lines:
        return None
    names = ("pipeline", "weights", "n", "others", "seed", "steps")
    last = [lines[-1][name] for name in names]
    cells: dict[str, dict[str, Line]] = {}
    refused = {}
    mine = [line for line in lines if [line[name] for name in names] == last]
    for line in mine:
        if "refused" in line:
            refused[line["cell"], line["row"]] = line["refused"]
        else:
            cells.setdefault(line["cell"], {})[line["row"]] = line
    known = find_cells([*cells])
    ordered = {name: cells[name] for name in known if UNEDITED in cells[name]}
    where = tuple(dict.fromkeys(line["where"] for line in mine))
    made = tuple(dict.fromkeys(line["made"] for line in mine if "made" in line))
    checks = [line["check"] for line in every if "check" in line and line["weights"] == last[1]]
    return Results(*last, ordered, where, made, refused, checks[-1] if checks else None)


@dataclass(frozen=True)
class Flags:
    """What the pictures of one row say, picture by picture; what a cell does not ask is empty."""

    seen: Mapping[str, list[bool]]
    """Kind of prompt that names the target -> whether the target is seen."""
    anchor: list[bool]
    """Of the target's prompts (unedited: of the anchor's): the anchor is seen."""
    right: Mapping[str, list[bool]]
    """"other", "near", "pair" -> whether what should stay is seen."""
    things: Mapping[str, list[int]]
    """"other", "near" -> what the judge sees."""
    mse: list[float]
    feature: list[float]
    words: Mapping[str, list[bool]]
    """Synonym -> whether the target is seen."""
    floor: list[bool] = field(default_factory=list)
    """Unedited, of the anchor's prompts: the target is seen. No erasure can do better."""


def read_flags(cell: PicturesCell, prompts: Mapping[str, Sequence[Prompt]], line: Line) -> Flags:
    """The answers of a line, compared with what its prompts ask for."""
    kinds = line["kinds"]
    seen = {}
    words: dict[str, list[bool]] = {}
    for kind in ("target", "listed", "unlisted"):
        if kind in kinds:
            wanted = [cell.concepts[prompt.concept].target for prompt in prompts[kind]]
            seen[kind] = _shown(cell, wanted, kinds[kind])
            for prompt, flag in zip(prompts[kind], seen[kind], strict=True):
                if kind != "target":
                    words.setdefault(prompt.word, []).append(flag)
    kind = ANCHOR if ANCHOR in kinds else "target"
    anchors = [cell.concepts[prompt.concept].anchor for prompt in prompts[kind]]
    anchor = _shown(cell, anchors, kinds[kind]) if cell.field == "thing" else []
    floor = []
    if ANCHOR in kinds:
        targets = [cell.concepts[prompt.concept].target for prompt in prompts[ANCHOR]]
        floor = _shown(cell, targets, kinds[ANCHOR])
    right = {"other": _things_right(prompts["other"], kinds["other"])}
    if "near" in kinds and cell.field == "hand":
        right["near"] = _shown(cell, [prompt.hand for prompt in prompts["near"]], kinds["near"])
    elif "near" in kinds:
        right["near"] = _things_right(prompts["near"], kinds["near"])
    if "pair" in kinds:
        right["pair"] = _partners_right(prompts["pair"], kinds["pair"])
    things = {kind: kinds[kind]["thing"] for kind in ("other", "near") if kind in kinds}
    other = kinds["other"]
    mse = other.get("mse", [])
    return Flags(seen, anchor, right, things, mse, other.get("feature", []), words, floor)


def _shown(cell: PicturesCell, wanted: Sequence[str | None], answers: Line) -> list[bool]:
    """Whether each picture shows what is wanted, in the field that the cell is about."""
    known = STYLES if cell.field == "hand" else THINGS
    said = answers[cell.field]
    return [known[at] == want for at, want in zip(said, wanted, strict=True)]


def _things_right(prompts: Sequence[Prompt], answers: Line) -> list[bool]:
    pairs = zip(answers["thing"], prompts, strict=True)
    return [THINGS[at] == prompt.things[0] for at, prompt in pairs]


def _partners_right(prompts: Sequence[Prompt], answers: Line) -> list[bool]:
    """Whether the half beside the target's shows its thing."""
    found = []
    for i, prompt in enumerate(prompts):
        side = 0 if prompt.things[1] == prompt.word else 1
        at = answers[("left", "right")[side]][i]
        found.append(THINGS[at] == prompt.things[side])
    return found


def measures(flags: Flags, before: Flags, peers: Mapping[str, Flags]) -> dict[str, Any]:
    """A row of the tables; `before` is the unedited one, `peers` are compared with by name."""
    found: dict[str, Any] = {}
    for kind, some in flags.seen.items():
        found[kind] = rate(some, kind)
    if flags.anchor:
        found["anchor"] = rate(flags.anchor, "anchor")
    if flags.floor:
        found["floor"] = rate(flags.floor, "floor")
    if flags is before:
        return found
    if flags.anchor:
        found["anchor short"] = lost(before.anchor, flags.anchor)
    for kind, name in (("other", "others"), ("near", "near"), ("pair", "partner")):
        if kind in flags.right:
            found[f"{name} lost"] = lost(before.right[kind], flags.right[kind])
    found["mse x 1000"] = mean([1000 * change for change in flags.mse], "mse")
    found["feature"] = mean(flags.feature, "feature")
    pairs = zip(flags.things["other"], before.things["other"], strict=True)
    found["flipped"] = rate([a != b for a, b in pairs], "flipped")
    for name, peer in peers.items():
        if peer is not flags and sum(peer.mse) > 0:
            found[against(name)] = ratio(flags.mse, peer.mse, against(name))
    return found


def against(peer: str) -> str:
    """The measure that compares a row's change of other pictures with a peer's."""
    return f"mse / {peer}'s"


def lost(before: Sequence[bool], after: Sequence[bool]) -> Estimate:
    """Mean of what was there and is no more, less what is there only now."""
    return mean([float(a) - float(b) for a, b in zip(before, after, strict=True)], "lost")


def joined(parts: Sequence[Flags]) -> Flags:
    """The pictures of several cells as one."""

    def every(get: Callable[[Flags], Mapping[str, list[Any]]]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for part in parts:
            for kind, some in get(part).items():
                found[kind] = [*found.get(kind, []), *some]
        return found

    flat = {"anchor": [], "mse": [], "feature": [], "floor": []}
    for part in parts:
        flat["anchor"] += part.anchor
        flat["mse"] += part.mse
        flat["feature"] += part.feature
        flat["floor"] += part.floor
    return Flags(
        every(lambda part: part.seen),
        flat["anchor"],
        every(lambda part: part.right),
        every(lambda part: part.things),
        flat["mse"],
        flat["feature"],
        every(lambda part: part.words),
        flat["floor"],
    )


def flags_of(results: Results) -> dict[str, dict[str, Flags]]:
    """Cell -> row -> flags."""
    cells = find_cells([*results.cells])
    found: dict[str, dict[str, Flags]] = {}
    for name, rows in results.cells.items():
        prompts = results.prompts(cells[name])
        found[name] = {}
        for row, line in rows.items():
            found[name][row] = read_flags(cells[name], prompts, line)
    return found


def table_of(flags: Mapping[str, Flags]) -> dict[str, dict[str, Any]]:
    """Row -> measures, of one cell."""
    peers = {name: flags[name] for name in PEERS if name in flags}
    return {row: measures(some, flags[UNEDITED], peers) for row, some in flags.items()}


def together(found: Mapping[str, Mapping[str, Flags]]) -> dict[str, Flags]:
    """All cells of things as one, of the rows that every one of them has."""
    cells = find_cells([*found])
    some = [rows for name, rows in found.items() if cells[name].field == "thing"]
    shared = [row for row in some[0] if all(row in rows for rows in some)] if some else []
    return {row: joined([rows[row] for rows in some]) for row in shared}
