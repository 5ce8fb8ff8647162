"""How commands print: lines for people, one JSON document for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import typer


def make_console(*, quiet: bool = False) -> Any:
    """Where tables go; imported when one is printed. A quiet one prints nothing."""
    from rich.console import Console

    return Console(quiet=quiet)


def to_json(data: Any) -> str:
    """JSON with null for numbers that are not finite."""
    return json.dumps(_finite(data), indent=2, sort_keys=True)


def print_json(data: Any) -> None:
    """As `to_json`, to stdout."""
    typer.echo(to_json(data))


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {k: _finite(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(v) for v in data]
    return None if isinstance(data, float) and data - data != 0 else data


def print_result(data: Mapping[str, Any], as_json: bool, lines: Iterable[str]) -> None:
    """The lines, or the data as JSON."""
    if as_json:
        return print_json(data)
    for line in lines:
        typer.echo(line)
