"""Options that belong together, as one record: a command takes it, typer sees its fields."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature
from typing import Any, get_type_hints

ONLY_BY_NAME = Parameter.KEYWORD_ONLY


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose dataclass parameters are read as one option per field.

    Args:
        command: A function for `typer.Typer.command`. Fields of its dataclasses are annotated as
            its other parameters are, `Annotated[type, typer.Option(...)]`, and have defaults.

    Returns:
        The function to register: its signature has the fields where `command` has the records.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {n: hint for n, hint in hints.items() if is_dataclass(hint)}
    parameters: list[Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            parameters += _list_options(groups[parameter.name])
        else:
            annotation = hints[parameter.name]
            parameters.append(parameter.replace(kind=ONLY_BY_NAME, annotation=annotation))

    @wraps(command)
    def run(**given: Any) -> None:
        records: dict[str, Any] = {}
        for name, group in groups.items():
            names = [field.name for field in fields(group)]
            records[name] = group(**{field: given.pop(field) for field in names})
        command(**given, **records)

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _list_options(group: Any) -> list[Parameter]:
    """One parameter per field of a dataclass."""
    hints = get_type_hints(group, include_extras=True)
    return [_option(field, hints[field.name]) for field in fields(group)]


def _option(field: Field[Any], hint: Any) -> Parameter:
    return Parameter(field.name, ONLY_BY_NAME, default=field.default, annotation=hint)
