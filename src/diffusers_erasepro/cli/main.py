"""The command line: `erasepro COMMAND`, each a function here.

Exit codes: 0 done; 1 an error, in one line; 2 wrong usage; 3 what was measured does not
hold, or its verdict is bad; 130 interrupted.
Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass, fields
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from . import measuring
from .option_groups import with_option_groups
from .output import make_console, print_json, print_result
from .parameters import Config, Force, Json, Model

if TYPE_CHECKING:
    from ..adapters.adapter import ErasureAdapter
    from ..config.spec import ErasureSpec

FAILED = 1


class Format(StrEnum):
    """What `export` writes."""

    kohya = "kohya"
    checkpoint = "checkpoint"


QUIET_LIBRARIES = {"DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error"}
NO_BARS = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def _check_base(name: str | None) -> str | None:
    """Refuse a base that means nothing to others."""
    from ..adapters.model_card import find_base, refuse_base

    if name is not None and find_base(name) is None:
        raise typer.BadParameter(refuse_base(name))
    return name


app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: rich's takes 0.15 s to import
    pretty_exceptions_enable=False,
    help="Concept erasures as loadable adapters for diffusers.",
    epilog="Exit codes: 0 done, 1 error, 2 wrong usage, 3 what was measured is bad.",
)

Adapter = Annotated[
    str, typer.Argument(help="An adapter's file, its folder or a Hub id.", metavar="ADAPTER")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
BaseModel = Annotated[
    str | None, typer.Option(help="Hub id of the base, or 'glyphs'.", callback=_check_base)
]
License = Annotated[str | None, typer.Option(help="As the Hub spells it.")]
Subfolder = Annotated[str | None, typer.Option(help="Folder inside the repository.")]


def _print_version(wanted: bool) -> None:
    """The version of this package, and nothing else."""
    if wanted:
        from .. import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version; stop."
        ),
    ] = False,
) -> None:
    """Options for every command; `main` reads `--debug` itself."""


DEMOS = {"glyphs": ("demo", "run"), "pictures": ("demo_pictures", "run_pictures")}
"""World -> the module and function that make its demo."""


class DemoWorld(StrEnum):
    """Whose pictures the demo makes."""

    glyphs = "glyphs"
    pictures = "pictures"


@app.command()
def demo(
    out: Out = Path("demo-output"),
    world: Annotated[
        DemoWorld,
        typer.Option(
            help="'glyphs' is in the package; 'pictures' has real things, and is a distribution of "
            "its own."
        ),
    ] = DemoWorld.glyphs,
    as_json: Json = False,
) -> None:
    """Erase something from an embedded world; save, load, switch, compare."""
    measuring.refuse_file(out)
    module, function = DEMOS[world]
    job = getattr(import_module(f".{module}", __package__), function)
    found = job(out, make_console(quiet=as_json))
    if as_json:
        print_json(found)


@dataclass(frozen=True)
class ConceptOptions:
    """What `erase` takes out: one concept by options, or a whole spec."""

    target: Annotated[str | None, typer.Option(help="The words to erase.")] = None
    anchor: Annotated[str, typer.Option(help="What they become; nothing, if empty.")] = ""
    templates: Annotated[
        str | None,
        typer.Option(
            help="What kind of thing it is: object, character, person, style, nudity, violence, "
            "logo, attribute; or a TOML file of your own. Default: object."
        ),
    ] = None
    synonym: Annotated[
        list[str] | None, typer.Option(help="A further word for it; may be given again.")
    ] = None
    preserve_file: Annotated[
        Path | None,
        typer.Option(help="Captions to keep beside the shipped everyday ones, one a line."),
    ] = None
    spec: Annotated[Path | None, typer.Option(help="A spec.toml instead of the options above.")] = (
        None
    )


@dataclass(frozen=True)
class SolverOptions:
    """How `erase` solves it."""

    layers: Annotated[
        str | None,
        typer.Option(
            help="'auto', or such as '0,-1' or 'embedding,gates'; default: rows, gates, last block."
        ),
    ] = None
    robust: Annotated[
        bool,
        typer.Option("--robust", help="Hold against embeddings made elsewhere too; drifts more."),
    ] = False
    clip_skip: Annotated[
        int,
        typer.Option(help="Blocks of CLIP that a call skips, as in diffusers (A1111: one more)."),
    ] = 0

    def arguments(self) -> dict[str, Any]:
        """As `erase` takes them; what was left open is left out."""
        chosen = {"layers": _parse_layers(self.layers)} if self.layers else {}
        return {"robust": self.robust, "clip_skip": self.clip_skip, **chosen}


@app.command("erase")
@with_option_groups
def erase_command(
    model: Model,
    concept: ConceptOptions,
    solver: SolverOptions,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write to.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what would be erased, held out and kept; stop.")
    ] = False,
    config: Config = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make an adapter: one concept by options, or a whole spec."""
    from ..adapters.model_card import find_base
    from ..config.text_files import write_text_file
    from ..erasure.erase import erase
    from ..erasure.explain import explain as describe_spec
    from ..interop.pipelines import load_model

    what = _read_spec(model, concept)
    if explain:
        return typer.echo(describe_spec(what, load_model(model, config=config)), nl=False)
    if out is None:
        raise typer.BadParameter("give a folder to write to: --out FOLDER")
    ask_before_overwriting(out, force)
    adapter = erase(load_model(model, config=config), what, **solver.arguments())
    path = adapter.save_pretrained(out)
    write_text_file(out / "spec.toml", adapter.spec.to_toml())
    adapter.card(base_model=find_base(model)).save(out / "README.md")
    seconds = round(adapter.report.seconds or 0.0, 1)
    _print_adapter(adapter.header(), as_json, path=str(path), seconds=seconds)


@app.command()
def show(
    adapter: Adapter, subfolder: Subfolder = None, revision: Revision = None, as_json: Json = False
) -> None:
    """Print what an adapter erases, measured and promises, from its header alone."""
    from ..adapters.header import read_header
    from ..adapters.hub import find

    origin = find(adapter, subfolder=subfolder, revision=revision)
    _print_adapter(
        read_header(origin.path),
        as_json,
        path=str(origin.path),
        file_sha256=origin.sha256,
        commit=origin.commit,
    )


app.command("verify")(measuring.verify_command)
app.command("eval")(with_option_groups(measuring.evaluate_command))
app.command("attack")(with_option_groups(measuring.attack_command))
app.command("suite")(with_option_groups(measuring.suite_command))
app.command("serve-check")(measuring.serve_check_command)


@app.command("list")
def list_adapters(
    folder: Annotated[
        Path, typer.Argument(help="Where to look.", exists=True, file_okay=False)
    ] = Path("."),
    as_json: Json = False,
) -> None:
    """List the adapters below a folder."""
    from ..adapters.header import read_headers

    found = read_headers(folder)
    if as_json:
        return print_json(found)
    from .tables import print_list

    print_list(make_console(), found)


@app.command()
def card(
    adapter: Adapter,
    base_model: BaseModel = None,
    repo_id: Annotated[str, typer.Option(help="What the snippet loads.")] = "path/to/this/folder",
    license: License = None,
    as_json: Json = False,
) -> None:
    """Print an adapter's model card."""
    from ..adapters.header import read_header
    from ..adapters.hub import find
    from ..adapters.model_card import build_card

    header = read_header(find(adapter).path)
    made = build_card(header, base_model=base_model, repo_id=repo_id, license=license)
    if as_json:
        return print_json({"card": str(made)})
    typer.echo(str(made), nl=False)


@app.command()
def export(
    adapter: Adapter,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File (kohya) or folder (checkpoint) to write.")
    ],
    format: Annotated[
        Format,
        typer.Option(help="kohya: for ComfyUI, A1111, InvokeAI. checkpoint: a whole pipeline."),
    ] = Format.kohya,
    base: Annotated[
        str | None, typer.Option(help="For a checkpoint: the model; as MODEL of `erase`.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write an adapter for other tools, and say what they cannot do with it."""
    from ..adapters.adapter import ErasureAdapter

    found = ErasureAdapter.from_pretrained(adapter)
    if format is Format.kohya:
        from ..interop.lora import export_kohya

        notes = export_kohya(found, out)
    else:
        notes = _save_merged(found, base, out)
    print_result(
        {"path": str(out), "notes": notes},
        as_json,
        [str(out), *(f"note: {note}" for note in notes)],
    )


@dataclass(frozen=True)
class ImportOptions:
    """What another tool's file means."""

    anchor: Annotated[str, typer.Option(help="What the target becomes.")] = ""
    strength: Annotated[
        float, typer.Option(help="Factor; negative for a slider towards the concept.")
    ] = 1.0


@app.command("import")
@with_option_groups
def import_command(
    file: Annotated[
        Path,
        typer.Argument(
            help="A LoRA-format erasure: SPM, LECO, slider, ESD-LoRA.", exists=True, dir_okay=False
        ),
    ],
    base: Annotated[str, typer.Option(help="The model it was made for; as MODEL of `erase`.")],
    target: Annotated[str, typer.Option(help="What it erases.")],
    out: Out,
    meaning: ImportOptions,
    config: Config = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make an adapter of another tool's LoRA; it stacks, its effect cannot be measured."""
    from ..config.spec import Concept, ErasureSpec
    from ..interop import lora as convert
    from ..interop.pipelines import load_model

    ask_before_overwriting(out, force)
    spec = ErasureSpec((Concept(target, meaning.anchor),), preserve=())
    adapter = convert.import_lora(
        file, load_model(base, config=config), spec, strength=meaning.strength
    )
    _print_adapter(adapter.header(), as_json, path=str(adapter.save_pretrained(out)))


@dataclass(frozen=True)
class CardOptions:
    """What a published card says of the adapter's base and licence."""

    base_model: BaseModel = None
    license: License = None


@app.command("push")
@with_option_groups
def push_command(
    about: CardOptions,
    folder: Annotated[
        Path, typer.Argument(help="An adapter's folder.", exists=True, file_okay=False)
    ],
    repo_id: Annotated[str, typer.Argument(help="owner/name on the Hub.")],
    private: Annotated[
        bool, typer.Option("--private", help="If the repository is made now.")
    ] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    revision: Revision = None,
    subfolder: Subfolder = None,
    as_json: Json = False,
) -> None:
    """Publish an adapter's folder: weights, card, spec and pictures.

    The card is written anew for the repository, unless its text is your own.
    """
    from ..adapters import hub
    from ..adapters.header import read_header
    from ..adapters.publish import OWN_CARD, list_unknown, rebuild_card, with_card

    header = read_header(hub.find(folder).path)
    card = rebuild_card(
        folder,
        header,
        repo_id=repo_id,
        subfolder=subfolder,
        base_model=about.base_model,
        license=about.license,
    )
    with with_card(folder, card) as published:
        url = hub.push(
            published,
            repo_id,
            subfolder=subfolder,
            private=private or None,
            revision=revision,
            create_pr=create_pr,
        )
    notes = list_unknown(card) if card else [OWN_CARD]
    print_result({"url": url, "notes": notes}, as_json, [url, *(f"note: {note}" for note in notes)])


@app.command()
def pull(
    repo_id: Annotated[str, typer.Argument(help="owner/name on the Hub.")],
    revision: Revision = None,
    subfolder: Subfolder = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also copy the file into this folder.")
    ] = None,
    lock: Annotated[Path | None, typer.Option(help="Pin it in this lock file.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Its name in the lock; default: the repository's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch an adapter, check it, and pin it if asked."""
    from ..adapters import lockfile
    from ..adapters.header import read_header
    from ..adapters.hub import copy_to, find
    from ..adapters.naming import check_adapter_name, make_adapter_name

    pinned = make_adapter_name(Path(subfolder or repo_id).name)
    if name is not None:
        pinned = check_adapter_name(name)
    origin = find(repo_id, revision=revision, subfolder=subfolder)
    read_header(origin.path)
    if lock:
        lockfile.add_pin(lock, pinned, origin)
    path = copy_to(origin, out) if out else origin.path
    facts = {"path": str(path), "commit": origin.commit, "sha256": origin.sha256}
    print_result(facts, as_json, [f"{key}: {value}" for key, value in facts.items()])


@app.command()
def ui(
    model: Annotated[str, typer.Argument(help="As MODEL of `erase`.")] = "glyphs",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Port; a free one from 7860 on, if not given.")
    ] = None,
) -> None:
    """Serve a page to click: erase, compare, switch, save. Needs gradio (the `ui` extra)."""
    try:
        from .gradio_app import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise typer.BadParameter(
            "gradio is not installed; pip install 'diffusers-erasepro[ui]'"
        ) from None
    typer.echo(f"http://{host}:{port or 7860}", err=True)
    serve(model, host=host, port=port)


for _command in app.registered_commands:  # else the list of commands cuts their sentences
    _first, _, _ = (_command.callback.__doc__ or "").partition("\n\n")
    _command.short_help = " ".join(_first.split())


# --- output


def main() -> None:
    """Run the command line; an error is one line without a traceback, unless `--debug`."""
    debug = "--debug" in sys.argv
    if not debug:  # before the libraries are imported, which read these once
        os.environ |= QUIET_LIBRARIES | os.environ
    if not sys.stderr.isatty():
        os.environ |= NO_BARS | os.environ
    from ..config.text_files import escape_on_console
    from ..errors import ErasureError

    escape_on_console()
    with warnings.catch_warnings():
        if not debug:
            warnings.showwarning = _print_warning
        try:
            app()
        except (ErasureError, OSError, UnicodeDecodeError) as error:
            if debug:
                raise
            typer.echo(f"erasepro: {' '.join(str(error).split())}", err=True)
            raise SystemExit(FAILED) from None


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning in one line; the code that gave it is of no use to who typed a command."""
    typer.echo(f"warning: {' '.join(str(message).split())}", err=True)


def _print_adapter(header: dict[str, Any], as_json: bool, **more: Any) -> None:
    if as_json:
        return print_json(header | more)
    from .tables import print_header

    print_header(make_console(), header)
    for key, value in more.items():
        if value:
            typer.echo(f"{key.replace('_', ' ')}: {value}")


def _save_merged(adapter: ErasureAdapter, base: str | None, out: Path) -> tuple[str, ...]:
    """Save the pipeline with the erasure in its weights."""
    from ..adapters.header import list_clip_skip_limits
    from ..interop.pipelines import load_model

    if base is None:
        raise typer.BadParameter("a checkpoint needs --base")
    pipe = load_model(base)
    pipe.load_erasure_adapter(adapter)
    pipe.verify_erasure(raise_on_fail=True)
    pipe.save_pretrained(out)
    return (
        "The erasure is in the weights: it cannot be switched off, stacked or verified there.",
        *list_clip_skip_limits(adapter.header()),
    )


# --- input

ADAPTER_FILES = ("pytorch_lora_weights.safetensors", "spec.toml", "README.md")
"""What a command that makes an adapter writes in its folder."""


def ask_before_overwriting(out: Path, force: bool) -> None:
    """Refuse a file, and a folder that holds what would be overwritten, before anything is solved.

    Someone at a terminal is asked; anyone else says `--force`.
    """
    measuring.refuse_file(out)
    taken = [name for name in ADAPTER_FILES if (out / name).exists()]
    if force or not taken:
        return
    if sys.stdin.isatty():
        typer.confirm(f"{out} holds {', '.join(taken)}; overwrite?", abort=True)
        return
    raise typer.BadParameter(
        f"{out} holds {', '.join(taken)}; give another folder, or overwrite with --force",
        param_hint="--out",
    )


def _read_spec(model: str, asked: ConceptOptions) -> ErasureSpec:
    from ..config.spec import Concept, ErasureSpec, read_spec
    from ..config.text_files import read_captions
    from ..interop.pipelines import default_captions, default_templates

    if asked.spec is not None:
        beside = [f.name for f in fields(asked) if f.name != "spec" and getattr(asked, f.name)]
        if beside:
            options = ", ".join("--" + name.replace("_", "-") for name in beside)
            raise typer.BadParameter(
                f"--spec says all that {options} would; write it into {asked.spec}, or leave "
                "--spec out"
            )
        return read_spec(asked.spec)
    if asked.target is None:
        raise typer.BadParameter("give either --target or --spec")
    concept = Concept(
        asked.target,
        asked.anchor,
        templates=asked.templates or default_templates(model, asked.target),
        synonyms=tuple(asked.synonym or ()),
    )
    own = default_captions(model)
    captions = own
    if asked.preserve_file is not None:
        captions = read_captions(asked.preserve_file)
    if own is None and asked.templates is None and not asked.anchor:
        typer.echo(
            f"note: {asked.target!r} is taken for an object with nothing in its place; --templates "
            "and --anchor say otherwise",
            err=True,
        )
    everyday = asked.preserve_file is not None and own is None
    return ErasureSpec((concept,), preserve=captions, everyday=everyday)


def _parse_layers(text: str) -> tuple[int | str, ...]:
    return tuple(int(part) if part.lstrip("-").isdigit() else part for part in text.split(","))
