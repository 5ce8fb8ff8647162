"""Arguments and options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        help="'glyphs', 'pictures', a diffusers folder, a .safetensors checkpoint or a Hub id.",
        metavar="MODEL",
    ),
]
Config = Annotated[
    str | None, typer.Option(help="For a single file: the same model in diffusers' layout.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what another run left there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
