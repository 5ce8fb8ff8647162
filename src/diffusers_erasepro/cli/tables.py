"""What the command line shows of an adapter, a report, a verification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from ..adapters.header import (
    describe,
    describe_left,
    describe_moved,
    describe_selectivity,
    format_measure,
    list_components,
    list_limits,
    list_promises,
    list_selectivity,
)
from ..config.options import Options
from ..config.plan import describe_alignment, describe_layer
from ..config.words import count_noun


def report_table(name: str, report: Mapping[str, Any]) -> Table:
    """A report, a line per layer."""
    listed = format_measure(report["listed_residual"], ".1e")
    held_out = format_measure(report["held_out_mean"], ".2f")
    drift = format_measure(report["drift"], ".3f")
    names = [layer["name"] for layer in report["layers"]]
    shared = find_shared_prefix(names)
    table = Table(
        title_justify="left",
        title=f"{name}: residual {listed} listed, {held_out} held out; drift {drift}",
        caption_justify="left",
        caption=REPORT_LEGEND,
    )
    table.add_column(f"layer of {shared}" if shared else "layer", overflow="fold")
    for heading in ("rank", "size", "gap before"):
        table.add_column(heading, no_wrap=True)
    for layer in report["layers"]:
        size = format_measure(layer["edit_size"], ".2f")
        own = layer["name"].removeprefix(f"{shared}.")
        table.add_row(own, str(layer["rank"]), size, format_measure(layer["gap"], ".3f"))
    return table


REPORT_LEGEND = (
    "residual: distance from the anchor, relative to its size, at listed prompts and, held out, at "
    "phrasings never solved for; 0 is the anchor; drift: how far captions move; size: of the edit, "
    "in units of its weight; gap before: to the anchor"
)


IN_PLAN = ("layers", "alignment")
"""Options of which the plan says what they came to."""


def find_shared_prefix(names: Sequence[str]) -> str:
    """The parts that all dotted names begin with, so that what tells them apart fits a column."""
    if len(names) < 2:
        return ""
    shared: list[str] = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len({*parts}) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def describe_captions(spec: Mapping[str, Any]) -> str:
    """Which captions a spec keeps."""
    own = len(spec.get("preserve", ()))
    if not own:
        return "preserves the shipped captions"
    shipped = " and the shipped" if spec.get("everyday") else ""
    return f"preserves {count_noun(own, 'caption')}{shipped}"


def describe_options(options: Mapping[str, Any]) -> str:
    """How it was made: the options of `erase` that are not the default, or the other method."""
    if "method" in options:
        asked = options["settings"]
        how = f"made by {options['method']}"
    else:
        usual = Options().to_dict()
        asked = {k: v for k, v in options.items() if k not in IN_PLAN and v != usual.get(k)}
        how = "made by erase"
    chosen = ", ".join(f"{name}={value}" for name, value in sorted(asked.items()))
    return f"{how} with {chosen}" if chosen else f"{how}, all other options by default"


def describe_fingerprints(prints: Mapping[str, str]) -> str:
    """The fingerprints of a component, each with the dtypes that have it."""
    dtypes: dict[str, list[str]] = {}
    for dtype, hashed in sorted(prints.items()):
        dtypes.setdefault(hashed, []).append(dtype)
    return ", ".join(f"{hashed} in {' and '.join(names)}" for hashed, names in dtypes.items())


def print_header(console: Console, header: Mapping[str, Any]) -> None:
    """Everything an adapter says about itself."""
    console.print(describe(header), highlight=False)
    for concept in header["spec"]["concepts"]:
        known = {k: v for k, v in concept.items() if v}
        console.print("  " + ", ".join(f"{k}={v!r}" for k, v in known.items()), highlight=False)
    console.print(describe_captions(header["spec"]), highlight=False)
    for target, recipe in header["plan"].items():
        layers = ", ".join(map(describe_layer, recipe["layers"])) or "nothing of its own"
        where = describe_alignment(recipe["alignment"])
        console.print(f"{target}: edits {layers}; meets its anchor at {where}", highlight=False)
    console.print(describe_options(header["options"]), highlight=False)
    for part in list_components(header):
        prints = describe_fingerprints(header["base"][part])
        console.print(f"made for the {part} with fingerprint {prints}", highlight=False)
    console.print(report_table("report", header["report"]))
    limits = list_limits(header)
    notes = [note for note in header["report"].get("notes", ()) if note not in limits]
    for heading, lines in (
        ("Notes", notes),
        ("It measured", list_selectivity(header)),
        ("It promises", list_promises(header)),
        ("It does not", limits),
    ):
        if not lines:
            continue
        console.print(f"{heading}:", *(f"  - {line}" for line in lines), sep="\n", highlight=False)


HOLDS = (
    "that is said of the listed prompts, at the tokens where they are matched with their anchors, "
    "and of nothing else"
)
LEGEND_LEFT = (
    "left: share of the gap to the anchor that is left in the states; 1 before, 0 is all gone"
)


def describe_verification(found: Mapping[str, Any], doubts: Sequence[str] = ()) -> list[str]:
    """What `verify` shows of a `Verification` as plain data, a line each.

    Args:
        found: The verification.
        doubts: What stands against it though it holds; it is shown next to the verdict.
    """
    verdict = "holds" if found["ok"] else "DOES NOT HOLD"
    lines = [
        f"{verdict}: residual {found['residual']:.1e}, at most {found['threshold']:.0e} allowed"
    ]
    if found["ok"]:
        lines.append(f"  {HOLDS}")
    lines += [f"warning: {doubt}" for doubt in doubts]
    for target, left in found["left"].items():
        for where, shares in (("listed", left["listed"]), ("other", left["held_out"])):
            if words := describe_left(shares):
                lines.append(f"left of {target!r} in {where} phrasings: {words}")
        if unmatched := left["unmatched"]:
            first, at = next(iter(unmatched.items()))
            count = sum(map(len, unmatched.values()))
            lines.append(
                f"left of {target!r}: {count_noun(count, 'position')} in "
                f"{count_noun(len(unmatched), 'prompt')} without a counterpart in the anchor's, "
                f"such as {', '.join(map(str, at[:5]))} in {first!r}"
            )
    if found["left"]:
        lines.append(f"  {LEGEND_LEFT}")
    if found["selectivity"]:
        described = describe_moved if found["left"] else describe_selectivity
        lines += described(found["selectivity"])
    return lines + [f"not covered: {what}" for what in found["uncovered"]]


LIST_LEGEND = "residual: the worst at the listed prompts when it was made; zero to rounding is 1e-5"


def print_list(console: Console, headers: Mapping[str, Mapping[str, Any]]) -> None:
    """A line per adapter file."""
    table = Table(
        "file", "erases", "edits", "residual", caption_justify="left", caption=LIST_LEGEND
    )
    table.columns[0].overflow = "fold"
    for path, header in headers.items():
        row = (path, describe(header).removeprefix("Erasure: "), ", ".join(list_components(header)))
        table.add_row(*row, format_measure(header["report"]["listed_residual"], ".1e"))
    console.print(table)
