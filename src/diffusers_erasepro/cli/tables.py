"""What the command line shows of an adapter, a report, a verification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ..adapters.header import (
    describe,
    format_measure,
    list_components,
    list_limits,
    list_promises,
)


def report_table(name: str, report: Mapping[str, Any]) -> Table:
    """A report, a line per layer."""
    listed = format_measure(report["listed_residual"], ".1e")
    held_out = format_measure(report["held_out_mean"], ".2f")
    drift = format_measure(report["drift"], ".3f")
    table = Table(
        "layer",
        "rank",
        "||D||/||W||",
        "gap before",
        title_justify="left",
        title=f"{name}: residual {listed} listed, {held_out} held out; drift {drift}",
    )
    for layer in report["layers"]:
        size = format_measure(layer["edit_size"], ".2f")
        table.add_row(layer["name"], str(layer["rank"]), size, format_measure(layer["gap"], ".3f"))
    return table


def describe_captions(spec: Mapping[str, Any]) -> str:
    """Which captions a spec keeps."""
    own = len(spec.get("preserve", ()))
    if not own:
        return "preserves the shipped captions"
    return f"preserves {own} captions{' and the shipped' if spec.get('everyday') else ''}"


def print_header(console: Console, header: Mapping[str, Any]) -> None:
    """Everything an adapter says about itself."""
    console.print(describe(header), highlight=False)
    for concept in header["spec"]["concepts"]:
        known = {k: v for k, v in concept.items() if v}
        console.print("  " + ", ".join(f"{k}={v!r}" for k, v in known.items()), highlight=False)
    console.print(describe_captions(header["spec"]), highlight=False)
    for target, recipe in header["plan"].items():
        layers = ", ".join(map(str, recipe["layers"])) or "none of its own"
        where = f"layers {layers}; positions {recipe['alignment']}"
        console.print(f"{target} is erased in {where}", highlight=False)
    asked = {k: v for k, v in header["options"].items() if v is not None}
    options = ", ".join(f"{k}={v}" for k, v in asked.items())
    console.print(f"made with {options}", highlight=False)
    for part in list_components(header):
        console.print(f"for {part} with fingerprint {header['base'][part]}", highlight=False)
    console.print(report_table("report", header["report"]))
    for heading, lines in (
        ("It promises", list_promises(header)),
        ("It does not", list_limits(header)),
    ):
        console.print(f"{heading}:", *(f"  - {line}" for line in lines), sep="\n", highlight=False)


def print_list(console: Console, headers: Mapping[str, Mapping[str, Any]]) -> None:
    """A line per adapter file."""
    table = Table("file", "erases", "edits", "residual")
    for path, header in headers.items():
        row = (path, describe(header).removeprefix("Erasure: "), ", ".join(list_components(header)))
        table.add_row(*row, format_measure(header["report"]["listed_residual"], ".1e"))
    console.print(table)
