"""The command line: `erasepro demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Concept erasures as loadable adapters for diffusers.")


@app.callback()
def root() -> None:
    """Keeps `demo` a subcommand while it is the only one."""


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Folder for the adapters and the picture.")] = Path("demo-output")) -> None:
    """Erase a shape, a style and an attribute from the shipped glyph world; save, load, toggle, look."""
    from rich.console import Console

    from . import demo as job

    job.run(out, Console())


def main() -> None:
    """Run the command line; our own errors end in one line without a traceback."""
    from .errors import ErasureError

    try:
        app()
    except ErasureError as error:
        typer.echo(f"erasepro: {error}", err=True)
        raise SystemExit(1) from None
