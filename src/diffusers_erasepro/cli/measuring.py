"""The commands that measure on a model: verify, eval, attack, suite, serve-check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import make_console, print_json, print_result, to_json
from .parameters import Config, Force, Json, Model

if TYPE_CHECKING:
    from ..config.spec import Concept
    from ..evaluation.calls import CallSettings
    from ..evaluation.detectors import Detector
    from ..evaluation.prompt_files import PromptList

NOT_VERIFIED = 3
"""Exit code where what was measured is bad."""
OWN_PROMPTS = "spec"
NOBODY = "none"
ON_SHEET = 24
"""Prompts on the sheet of a suite."""
DEFAULT_PROMPTS = 8
"""Prompts of an evaluation where none are given."""


class Dtype(StrEnum):
    """In what numbers a model runs."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


Adapters = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders or Hub ids of adapters, or an erasures.lock.", metavar="ADAPTER..."
    ),
]
Prompts = Annotated[
    str,
    typer.Option(
        help="A UTF-8 file with one prompt a line, a .csv with a column 'prompt', or 'spec': "
        "phrasings that the adapters were never solved for, and captions to keep."
    ),
]
DetectorName = Annotated[
    str | None,
    typer.Option(
        "--detector",
        help="Who says whether a picture shows the concept: clip:REPO, nudenet, glyphs, pictures, "
        "text_to_concept:BACKBONE,CLIP,FOLDER, another package's, or module:function. Default: the "
        "judge of 'glyphs' and 'pictures'; for other models none, and the column is left out.",
    ),
]
Seed = Annotated[int, typer.Option(help="Of the first prompt; each further one has the next.")]


@dataclass(frozen=True)
class CallOptions:
    """How a picture is made."""

    steps: Annotated[
        int | None, typer.Option(help="Denoising steps; default: the pipeline's own.", min=1)
    ] = None
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale; default: the pipeline's own.")
    ] = None
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT in pixels; default: the pipeline's own.")
    ] = None


@dataclass(frozen=True)
class DeviceOptions:
    """Where a model runs."""

    device: Annotated[
        str | None, typer.Option(help="Such as cuda, mps or cpu; default: a GPU if there is one.")
    ] = None
    dtype: Annotated[Dtype, typer.Option(help="In what numbers it runs.")] = Dtype.float32
    offload: Annotated[
        bool, typer.Option("--offload", help="Keep only the running part on the GPU.")
    ] = False
    config: Config = None


@dataclass(frozen=True)
class OutputOptions:
    """What is written, and what is printed."""

    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder to write to, in which an interrupted run goes on; default: the command's "
            "name.",
        ),
    ] = None
    force: Force = False
    as_json: Json = False


@dataclass(frozen=True)
class QuestionOptions:
    """What is asked of a model, and who judges."""

    prompts: Prompts = OWN_PROMPTS
    n: Annotated[
        int | None, typer.Option("-n", help=f"Prompts at most; of 'spec' {DEFAULT_PROMPTS}.", min=1)
    ] = None
    detector: DetectorName = None
    seed: Seed = 0


def evaluate_command(
    model: Model,
    adapters: Adapters,
    question: QuestionOptions,
    call: CallOptions,
    place: DeviceOptions,
    output: OutputOptions,
    card: Annotated[
        bool, typer.Option("--card", help="Put the sheet into the adapter's folder and card.")
    ] = False,
) -> None:
    """Pictures before and after on any pipeline: a sheet, what is left, a verdict.

    The same seeds before and after. Exit code 3 where the verdict is bad.
    """
    from ..config.text_files import write_text_file
    from ..evaluation.before_after import PAGE_FILE, RESULT_FILE, SHEET_FILE, compare_images
    from ..evaluation.contact_sheet import save_page, save_sheet
    from ..evaluation.judgement import judge_comparison
    from .comparison_tables import comparison_table, describe_comparison

    out = output.out or Path("eval")
    refuse_file(out)
    given = read_prompts(question.prompts)
    judge = choose_detector(model, question.detector)
    pipe = load_erased(model, adapters, place)
    asked = given.spread(question.n) if given else make_own_prompts(pipe, question.n)
    found = compare_images(
        pipe,
        asked.texts,
        out,
        seeds=asked.seeds or question.seed,
        settings=choose_settings(pipe, model, call),
        detector=judge,
        force=ask_to_overwrite(out, output.force),
    )
    sheet = save_sheet(found, out / SHEET_FILE)
    page = save_page(found, out / PAGE_FILE)
    judged = judge_comparison(found)
    data = found.to_dict() | {"verdict": judged.verdict, "reasons": judged.reasons}
    data |= {"sheet": str(sheet), "page": str(page)}
    notes = [add_to_card(adapter, sheet) for adapter in adapters] if card else []
    write_text_file(out / RESULT_FILE, to_json(data))
    if output.as_json:
        print_json(data)
    else:
        make_console().print(comparison_table(found))
        print_result({}, False, [*describe_comparison(found), *notes])
        typer.echo(f"sheet: {sheet}\npage: {page}")
    exit_by(judged.verdict)


def verify_command(
    adapter: Annotated[
        str,
        typer.Argument(
            help="An adapter's file, its folder, a Hub id or an erasures.lock.", metavar="ADAPTER"
        ),
    ],
    base: Annotated[str, typer.Option(help="The model to measure on; as MODEL of `erase`.")],
    prompts: Annotated[
        Path | None,
        typer.Option(help="Also what is left in these: a UTF-8 file, one a line, or a .csv."),
    ] = None,
    refit: Annotated[
        bool, typer.Option(help="Solve again if the base is another than it was made for.")
    ] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Load an adapter or an erasures.lock on a base and measure it; exit code 3 if it fails."""
    from dataclasses import asdict

    from ..evaluation.before_after import active_adapters
    from ..evaluation.prompt_files import read_prompt_file
    from ..evaluation.verdicts import Verdict
    from ..interop.pipelines import load_model
    from ..loaders.prompt_measures import measure_prompts
    from .comparison_tables import (
        describe_measures,
        judge_measures,
        list_doubts,
        measures_table,
    )
    from .tables import describe_verification

    texts = read_prompt_file(prompts).texts if prompts else ()
    pipe = load_model(base, config=config)
    pipe.load_erasure_adapter(adapter, allow_base_mismatch=refit)
    found = pipe.verify_erasure(selectivity=True)
    measures = measure_prompts(pipe, texts)
    verdict = judge_measures(measures) if found.ok else Verdict.bad
    data = asdict(found) | {"verdict": verdict, "measures": [asdict(one) for one in measures]}
    edited: list[int | str] = []
    for one in active_adapters(pipe):
        edited += one.plan.layers
    data["warnings"] = list_doubts(data, edited) if found.ok else []
    print_result(data, as_json, describe_verification(data, data["warnings"]))
    if measures and not as_json:
        make_console().print(measures_table(measures))
        print_result({}, False, [*describe_measures(measures), f"verdict: {verdict}"])
    exit_by(verdict)


def attack_command(
    model: Model,
    adapters: Adapters,
    question: QuestionOptions,
    call: CallOptions,
    place: DeviceOptions,
    only: Annotated[str, typer.Option(help="Attacks, with commas between; default all.")] = "",
    batch: Annotated[int, typer.Option(help="Pictures made together, at most.", min=1)] = 4,
    as_json: Json = False,
) -> None:
    """Try to bring the first concept back: share of pictures that show it, unedited beside.

    Exit code 3 where an attack brings it back in more than a tenth.
    """
    from ..evaluation.attacks import ATTACKS, Siege, check_names, list_unfit, takes_states
    from ..evaluation.before_after import active_concepts
    from ..interop.pipelines import load_model, place_pipeline
    from .comparison_tables import attack_table, describe_attacks, judge_attacks

    names = [name.strip() for name in only.split(",")] if only else [*ATTACKS]
    check_names(names)
    judge = choose_detector(model, question.detector)
    if judge is None:
        raise typer.BadParameter(
            "an attack succeeds where a picture shows the concept, and nobody says so; give "
            "--detector, such as clip:REPO",
            param_hint="--detector",
        )
    given = read_prompts(question.prompts)
    victim = load_erased(model, adapters, place)
    victim.set_progress_bar_config(disable=True)
    concept = active_concepts(victim)[0]
    judge.check(victim, concept)
    settings = choose_settings(victim, model, call)
    base = victim
    if takes_states(victim):
        base = load_model(model, config=place.config)
        place_pipeline(base, place.device, place.dtype, offload=place.offload)
        base.set_progress_bar_config(disable=True)
    siege = Siege(
        victim,
        base,
        concept,
        choose_attempts(concept, given, question.n or DEFAULT_PROMPTS),
        question.seed,
        settings.steps,
        settings.guidance,
        settings.size,
        batch,
    )
    unfit = list_unfit(siege, names)
    rows = run_attacks(siege, judge, [name for name in names if name not in unfit])
    data = {"attacks": rows, "not_run": unfit, "detector": judge.name, "seed": question.seed}
    data |= {"attempts": len(siege.prompts), "steps": siege.steps, "guidance": siege.guidance}
    verdict = judge_attacks(rows)
    data["verdict"] = verdict
    if as_json:
        print_json(data)
    else:
        make_console().print(attack_table(rows))
        print_result({}, False, describe_attacks(data))
    exit_by(verdict)


def run_attacks(siege: Any, judge: Detector, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Attack -> access, budget, and the share that shows the concept, erased and unedited."""
    from ..evaluation.attacks import ATTACKS, success
    from ..evaluation.calls import saying_what_to_do

    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        with saying_what_to_do(f"the attack {name!r}"):
            erased = success(siege, judge, [name])[name]
            with siege.victim.erasure_disabled():
                unedited = success(siege, judge, [name])[name]
        known = ATTACKS[name]
        rows[name] = {"access": known.access, "budget": known.budget}
        rows[name] |= {"unedited": vars(unedited), "erased": vars(erased)}
    return rows


def choose_attempts(concept: Concept, given: PromptList | None, n: int) -> tuple[str, ...]:
    """The prompts of a list that name the concept, or its own phrasings; at most `n`."""
    from ..config.mentions import Mentions
    from ..evaluation.prompt_files import make_prompts

    if given is None:
        return make_prompts([concept], (), 2 * n).texts[:n]
    known = Mentions(concept.words)
    named = [text for text in given.texts if text in known]
    if not named:
        raise typer.BadParameter(
            f"no prompt names {concept.target!r}, so none asks for it", param_hint="--prompts"
        )
    return tuple(named[:n])


@dataclass(frozen=True)
class SuiteOptions:
    """What of a suite is run."""

    prompts: Annotated[
        Path | None, typer.Option(help="The published list, which may not be shipped.")
    ] = None
    n: Annotated[
        int | None,
        typer.Option("-n", help="Prompts at most, evenly spread; of 'glyphs' 24.", min=1),
    ] = None
    detector: DetectorName = None
    clip: Annotated[str, typer.Option(help="Who takes CLIP scores, where they are taken.")] = ""
    against: Annotated[
        str, typer.Option(help="Of 'glyphs': methods beside it, with commas between; '' for none.")
    ] = "uce"
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take any prompts and claim nothing.")
    ] = False


def suite_command(
    name: Annotated[
        str,
        typer.Argument(
            help="glyphs, nudity, instances, styles, celebrities or coco.", metavar="SUITE"
        ),
    ],
    model: Model,
    adapters: Adapters,
    chosen: SuiteOptions,
    call: CallOptions,
    place: DeviceOptions,
    output: OutputOptions,
) -> None:
    """Run the field's prompts and counts on a real base, and print what to post back."""
    from ..config.text_files import write_text_file
    from ..evaluation.before_after import SHEET_FILE, active_concepts, compare_images, describe_run
    from ..evaluation.contact_sheet import save_sheet
    from ..evaluation.detectors import find_detector
    from ..evaluation.prompt_files import read_prompt_file
    from ..evaluation.protocols import (
        CLIP,
        build_record,
        choose_questions,
        find_protocol,
        list_next_steps,
        list_prompts,
        summarize,
        with_limit,
    )
    from .comparison_tables import describe_suite, suite_table

    out = output.out or Path("suite")
    refuse_file(out)
    if name == "glyphs":
        return run_glyph_suite(model, adapters, chosen, out, output.as_json)
    protocol = find_protocol(name)
    given = read_prompt_file(chosen.prompts) if chosen.prompts else None
    listed = with_limit(list_prompts(protocol, given, dry_run=chosen.dry_run), chosen.n)
    wanted = chosen.detector or protocol.detector
    judge = None if wanted in (None, NOBODY) else find_detector(wanted)
    scorer: Any = find_detector(chosen.clip or CLIP) if protocol.scores else None
    pipe = load_erased(model, adapters, place)
    settings = choose_settings(pipe, model, call)
    seeds = listed.seeds or (0,)
    found = compare_images(
        pipe,
        listed.texts,
        out,
        seeds=seeds,
        settings=settings,
        detector=judge,
        questions=choose_questions(protocol, listed, active_concepts(pipe)),
        force=ask_to_overwrite(out, output.force),
    )
    save_sheet(found.first(ON_SHEET), out / SHEET_FILE)
    rows = summarize(protocol, found, listed, scorer)
    record = build_record(
        protocol,
        found,
        listed,
        rows,
        model=model,
        run=describe_run(pipe, listed.texts, seeds, settings),
        dry_run=chosen.dry_run,
    )
    write_text_file(out / "record.json", to_json(record))
    if output.as_json:
        return print_json(record)
    make_console().print(suite_table(rows))
    print_result({}, False, [*describe_suite(record), *list_next_steps(protocol, out)])


def run_glyph_suite(
    model: str, adapters: Sequence[str], chosen: SuiteOptions, out: Path, as_json: bool
) -> None:
    """Count on the glyph world, beside peers and controls."""
    from ..adapters.adapter import ErasureAdapter
    from ..evaluation.results import format_table
    from ..evaluation.runner import evaluate
    from ..interop.pipelines import load_model

    if len(adapters) != 1:
        raise typer.BadParameter("the suite 'glyphs' takes one adapter", param_hint="ADAPTER")
    ours = ErasureAdapter.from_pretrained(adapters[0])
    compared: dict[str, Any] = {"this": ours}
    compared |= {method: method for method in chosen.against.split(",") if method}
    found = evaluate(load_model(model), ours.spec, compared, n=chosen.n or 24, out=out)
    plain = {}
    for row, measures in found.items():
        plain[row] = {name: getattr(value, "__dict__", value) for name, value in measures.items()}
    print_result(plain, as_json, [format_table(found)])


def serve_check_command(
    url: Annotated[str, typer.Argument(help="Where the service runs.", metavar="URL")],
    lock: Annotated[
        Path, typer.Option(help="The erasures.lock of what it should have on.", exists=True)
    ],
    health: Annotated[str, typer.Option(help="Path of its health report.")] = "/health",
    draw: Annotated[
        str, typer.Option(help="Path that takes {prompt, seed} and answers a picture.")
    ] = "/draw",
    seed: Annotated[int, typer.Option(help="Of every picture.")] = 0,
    as_json: Json = False,
) -> None:
    """Ask a running service for its health and for pictures; exit code 3 if something is bad."""
    from dataclasses import asdict

    from ..evaluation.served import Service, check_service

    found = check_service(Service(url.rstrip("/"), health, draw), lock, seed=seed)
    lines = [f"{finding.verdict}: {finding.text}" for finding in found.findings]
    lines += [f"cannot be seen from outside: {what}" for what in found.unseen]
    print_result(asdict(found), as_json, [*lines, f"verdict: {found.verdict}"])
    exit_by(found.verdict)


# --- what the commands share


def load_erased(model: str, adapters: Sequence[str], place: DeviceOptions) -> Any:
    """The model where it shall run, with its adapters on: these are read first."""
    from ..adapters.adapter import ErasureAdapter
    from ..adapters.lockfile import SUFFIX
    from ..interop.pipelines import load_model, place_pipeline

    found = [
        name if name.endswith(SUFFIX) else ErasureAdapter.from_pretrained(name) for name in adapters
    ]
    pipe = place_pipeline(
        load_model(model, config=place.config), place.device, place.dtype, offload=place.offload
    )
    for adapter in found:
        pipe.load_erasure_adapter(adapter)
    return pipe


def choose_detector(model: str, name: str | None) -> Detector | None:
    """The detector that was named, a world's own judge, or none."""
    from ..evaluation.detectors import find_detector
    from ..interop.pipelines import WORLD_MODELS

    if name is None:
        return WORLD_MODELS[model].detector() if model in WORLD_MODELS else None
    return None if name == NOBODY else find_detector(name)


def choose_settings(pipe: Any, model: str, call: CallOptions) -> CallSettings:
    """Steps, guidance and size: as asked, of a world its own, else the call's defaults."""
    from ..evaluation.calls import neutral_settings
    from ..interop.pipelines import WORLD_MODELS

    world = WORLD_MODELS.get(model)
    steps = call.steps
    guidance = call.guidance
    size = parse_size(call.size) if call.size else None
    if world is not None:
        steps = world.steps if steps is None else steps
        guidance = world.guidance if guidance is None else guidance
        size = size or world.size
    return neutral_settings(pipe, steps=steps, guidance=guidance, size=size)


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of "768x512", or of "768"."""
    numbers = text.lower().split("x")
    if not all(number.isdigit() and int(number) for number in numbers) or len(numbers) > 2:
        raise typer.BadParameter(f"a size is WIDTHxHEIGHT in pixels, such as 768x512, got {text!r}")
    return int(numbers[0]), int(numbers[-1])


def read_prompts(prompts: str) -> PromptList | None:
    """The prompts of a file; None where the adapters bring their own."""
    from ..evaluation.prompt_files import read_prompt_file

    return None if prompts == OWN_PROMPTS else read_prompt_file(Path(prompts))


def make_own_prompts(pipe: Any, n: int | None) -> PromptList:
    """Prompts of the adapters that are on."""
    from ..evaluation.before_after import active_adapters
    from ..evaluation.prompt_files import make_prompts

    concepts: list[Concept] = []
    captions: list[str] = []
    for adapter in active_adapters(pipe):
        concepts += adapter.spec.concepts
        captions += adapter.spec.preserve_captions()
    return make_prompts(concepts, captions, n or DEFAULT_PROMPTS)


def refuse_file(out: Path) -> None:
    """Refuse a file as a folder to write to, before anything is computed."""
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"{out} is a file; give a folder to write to", param_hint="--out")


def ask_to_overwrite(out: Path, force: bool) -> bool:
    """Whether what lies in `out` of another run may go: only someone at a terminal is asked."""
    import sys

    from ..evaluation.before_after import list_taken

    if force or not sys.stdin.isatty() or not list_taken(out):
        return force
    return typer.confirm(f"{out} holds an evaluation; overwrite it if it is another run's?")


def add_to_card(adapter: str, sheet: Path) -> str:
    """Put the sheet into an adapter's folder and into its card; what was done, in a line."""
    import shutil

    from ..adapters.header import read_header
    from ..adapters.hub import CARD_NAME, find
    from ..adapters.lockfile import SUFFIX
    from ..adapters.publish import OWN_CARD, rebuild_card

    if not Path(adapter).exists() or Path(adapter).suffix == SUFFIX:
        return f"card: {adapter} is no folder here; fetch it with `erasepro pull --out FOLDER`"
    folder = Path(adapter) if Path(adapter).is_dir() else Path(adapter).parent
    shutil.copyfile(sheet, folder / "before-and-after.png")
    card = rebuild_card(folder, read_header(find(adapter).path), repo_id=str(folder))
    if card is None:
        return f"card: {OWN_CARD}; the sheet lies beside it"
    card.save(folder / CARD_NAME)
    return f"card: {folder / CARD_NAME}"


def exit_by(verdict: str) -> None:
    """End with the verdict's exit code."""
    if verdict == "bad":
        raise typer.Exit(NOT_VERIFIED)
