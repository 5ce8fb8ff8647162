"""What an erasure is worth: pictures drawn, judged and counted, in shards that resume."""

from __future__ import annotations

import argparse
import json
import math
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from tqdm.auto import tqdm

from .. import glyphs
from ..adapters.adapter import ErasureAdapter
from ..baselines import find_method
from ..config.spec import Concept, ErasureSpec
from ..erasure.layerwise import final_states
from ..errors import EvaluationError
from ..families.pipelines import family_of, get_component
from ..glyphs.asking import kind_of, prompts_with, prompts_without
from ..glyphs.world import FIRST, Scene
from ..linalg.low_rank import LowRank
from ..loaders.mixin import erasable
from ..prompts.tokens import token_ids
from .metrics import Estimate, feature_change, frechet, harmonic, mean, pixel_change, rate
from .second_judge import load_second_judge

CHUNK = 8
"""Pictures drawn together; fixed, because the size of a batch changes the last bits of a picture."""
STEPS, GUIDANCE = 15, 3.0
UNEDITED, SCRAMBLED, OTHER = "unedited", "scrambled", "other concept erased"
"""The control rows."""
KINDS = ("target", "general", "near", "other")


@dataclass(frozen=True)
class Ask:
    """One picture to draw, and what it should show."""

    text: str
    says: Mapping[str, str | bool]
    """Field -> what the text asks for."""
    concept: Concept | None = None
    """The erased concept it asks for, if it does."""
    field: str = ""
    """The field of `says` in which that concept would be seen."""


@dataclass(frozen=True)
class Suite:
    """What to draw, and who says what it shows."""

    name: str
    needs: str
    """Weights and detectors, with versions and thresholds."""
    asks: Callable[[Any, ErasureSpec, int, int], dict[str, list[Ask]]] | None = None
    """`(pipe, spec, n, seed)` -> kind of `KINDS` -> asks; None where the suite cannot run here."""
    judge: Callable[[], Any] | None = None
    """Makes the judge: `judge(images)` -> field -> answers; `judge.features(images)` -> `(n, width)`."""
    second: Callable[[], Any] | None = None
    """Makes an independent detector with the same answers; ACC_e2 is what it sees of the target."""
    controls: tuple[Concept, ...] = ()
    """The row "other concept erased" erases the first that has nothing to do with the spec; no ask wants it."""

    def control(self, spec: ErasureSpec) -> Concept:
        """What "other concept erased" erases beside `spec`."""
        words = {w for c in spec.concepts for w in (*c.words, c.anchor)}
        found = next((c for c in self.controls if not words & {c.target, c.anchor}), None)
        if found is None:
            raise EvaluationError(
                f"every control of the suite {self.name!r} is among the spec's concepts; erase fewer at once"
            )
        return found


def _scene(scene: Scene) -> dict[str, str | bool]:
    told = {f: getattr(scene, f) for f in ("shape", "style", "color", "background")}
    return {f: word for f, word in told.items() if word is not None} | {
        "attribute": scene.attribute is not None
    }


def _glyph_asks(pipe: Any, spec: ErasureSpec, n: int, seed: int) -> dict[str, list[Ask]]:
    """Held-out phrasings; "general": other phrasings and synonyms; "near": the concept's nearest words of its kind."""
    each = math.ceil(n / len(spec.concepts))
    found: dict[str, list[Ask]] = {kind: [] for kind in KINDS}
    control = SUITES["glyphs"].control(spec)
    for concept in spec.concepts:
        field = kind_of(FIRST, concept)
        for text, scene in prompts_with(
            replace(concept, synonyms=()), each, seed=seed, held_out=True
        ):
            found["target"].append(Ask(text, _scene(scene), concept, field))
        for i in range(each):
            word, frame = (
                concept.words[-1 - i % len(concept.words)],
                concept.held_out[i % len(concept.held_out)],
            )
            found["general"].append(
                Ask(
                    frame.format(word),
                    {field: True if field == "attribute" else word},
                    concept,
                    field,
                )
            )
        for word in _nearest(pipe, concept, [c.target for c in (*spec.concepts, control)], 3):
            for text, scene in prompts_with(
                Concept(word), math.ceil(each / 3), seed=seed, held_out=True
            ):
                if not any(w in text for c in spec.concepts for w in c.words):
                    found["near"].append(Ask(text, _scene(scene)))
    apart = prompts_without([*spec.concepts, control], n, seed=seed, held_out=True)
    found["other"] = [Ask(text, _scene(scene)) for text, scene in apart]
    return found


def _nearest(pipe: Any, concept: Concept, without: Sequence[str], count: int) -> list[str]:
    """The words of the concept's kind whose states lie nearest to its own; shapes stand by for the attribute."""
    field = kind_of(FIRST, concept)
    taken = (*without, *concept.words, concept.anchor)
    words = [w for w in (FIRST.styles if field == "style" else FIRST.shapes) if w not in taken]
    encoder = get_component(pipe, family_of(pipe).encoders[0][0])
    states = final_states(encoder, token_ids(pipe.tokenizer, [concept.target, *words])).flatten(1)
    gaps = (states[1:] - states[0]).norm(dim=1)
    return [words[int(i)] for i in gaps.argsort()[:count]]


SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "glyphs",
            "nothing: pipeline and judge are in the package",
            _glyph_asks,
            glyphs.load_judge,
            load_second_judge,
            controls=(
                Concept("drop", "bolt"),
                Concept("arrow", "diamond"),
                Concept("crescent", "square"),
            ),
        ),
        Suite(
            "instances",
            "Stable Diffusion 1.4, CLIP ViT-L/14; Snoopy, Mickey, SpongeBob, Pikachu, Hello Kitty; 80 x 10",
        ),
        Suite(
            "styles",
            "Stable Diffusion 1.4, CLIP ViT-L/14; Van Gogh, Picasso, Monet, Gauguin, Caravaggio; 30 templates x 10",
        ),
        Suite(
            "nudity-i2p",
            "Stable Diffusion 1.4, NudeNet 3.4.2 at threshold .6; the 4703 prompts of AIML-TUDA/i2p",
        ),
        Suite(
            "coco",
            "Stable Diffusion 1.4, CLIP ViT-L/14, Inception features; 30k captions of COCO 2014 val",
        ),
    )
}


def suite_named(name: str) -> Suite:
    """The suite of that name.

    Raises:
        EvaluationError: There is none, or what it needs is not here.
    """
    if name not in SUITES:
        raise EvaluationError(f"no suite {name!r} (known: {', '.join(SUITES)})")
    if SUITES[name].asks is None:
        raise EvaluationError(f"the suite {name!r} needs what is not here: {SUITES[name].needs}")
    return SUITES[name]


# ------------------------------------------------------------------------------------------------ drawing


def evaluate(
    pipe: Any,
    spec: ErasureSpec | Concept,
    methods: Mapping[str, str | ErasureAdapter],
    suite: str | Suite = "glyphs",
    *,
    n: int = 24,
    seed: int = 0,
    out: Path | None = None,
    controls: bool = True,
) -> dict[str, dict[str, Any]]:
    """Draw, judge and count every row of `methods` beside the controls.

    Under `accelerate launch` each process draws its share and the first returns all of it. What `out` holds already is
    not drawn again.

    Args:
        pipe: The unedited pipeline; it stays as it is.
        spec: What the methods erase.
        methods: Row name -> name of a method (`methods.METHODS`) or a finished adapter.
        suite: What to draw and who judges.
        n: Pictures per kind of prompt.
        seed: Of prompts and noise.
        out: Folder of the JSON lines; None keeps them in memory.
        controls: Whether "unedited", "other concept erased" and "scrambled" are rows too.

    Returns:
        Row -> measure -> `Estimate` or number, as `table` prints them.

    Raises:
        EvaluationError: A suite without its parts, no picture judged, lines of another run in `out`.
    """
    spec = ErasureSpec((spec,)) if isinstance(spec, Concept) else spec
    suite = suite_named(suite) if isinstance(suite, str) else suite
    state = PartialState()
    lines = list(_lines(out)) if out else []
    run = {
        "suite": suite.name,
        "n": n,
        "seed": seed,
        "spec": spec.to_dict(),
        "steps": STEPS,
        "guidance": GUIDANCE,
    }
    _same_run(lines, run, out)
    with _writer(out, state.process_index, lines) as write:
        if not any("run" in line for line in lines) and state.is_main_process:
            write({"run": run})
        _draw(erasable(pipe), spec, _rows(methods, controls), suite, n, seed, lines, write, state)
    state.wait_for_everyone()
    return aggregate(_lines(out) if out else lines)


def _rows(methods: Mapping[str, Any], controls: bool) -> dict[str, Any]:
    if not methods:
        raise EvaluationError("no method to evaluate; give at least one name or adapter")
    for method in methods.values():
        if isinstance(method, str):
            find_method(method)  # before a picture is drawn
    return {UNEDITED: None, **methods, **({OTHER: OTHER, SCRAMBLED: SCRAMBLED} if controls else {})}


def _draw(
    pipe: Any,
    spec: ErasureSpec,
    rows: Mapping[str, Any],
    suite: Suite,
    n: int,
    seed: int,
    lines: Sequence[Mapping[str, Any]],
    write: Callable[[dict[str, Any]], None],
    state: PartialState,
) -> None:
    """Write one line per picture that is missing; a chunk's pictures of every row are one process's."""
    assert suite.asks is not None and suite.judge is not None
    asks, judge, second = (
        suite.asks(pipe, spec, n, seed),
        suite.judge(),
        suite.second and suite.second(),
    )
    done = {(x["row"], x["kind"], x["index"]) for x in lines if "kind" in x}
    chunks = [(kind, at) for kind, texts in asks.items() for at in range(0, len(texts), CHUNK)]
    mine = chunks[state.process_index :: state.num_processes]
    plain: dict[tuple[str, int], list[Image.Image]] = {}
    for row, method in rows.items():
        missing = [
            (kind, at)
            for kind, at in mine
            if (row, kind, at + len(asks[kind][at : at + CHUNK]) - 1) not in done
        ]
        told = any(line.get("row") == row and "adapter" in line for line in lines)
        if not missing and (told or method is None):
            continue
        adapter = _adapter(pipe, spec, method, suite)
        if adapter and not told and state.is_main_process:
            write({"row": row, "adapter": _told(adapter)})
        for kind, at in tqdm(missing, desc=row, leave=False, delay=2):
            part = asks[kind][at : at + CHUNK]
            if (kind, at) not in plain:
                plain[kind, at] = _pictures(pipe, part, at, seed)
            with _loaded(pipe, adapter):
                images = _pictures(pipe, part, at, seed) if adapter else plain[kind, at]
            for line in _judged(judge, second, part, images, plain[kind, at]):
                write({"row": row, "kind": kind, "index": at + line.pop("i"), **line})


def _adapter(pipe: Any, spec: ErasureSpec, method: Any, suite: Suite) -> ErasureAdapter | None:
    if method is None or isinstance(method, ErasureAdapter):
        return method
    if method == OTHER:
        return find_method("erasepro")(
            pipe, ErasureSpec((suite.control(spec),), preserve=spec.preserve)
        )
    if method == SCRAMBLED:
        return scrambled(find_method("erasepro")(pipe, spec))
    return find_method(method)(pipe, spec)


def scrambled(adapter: ErasureAdapter) -> ErasureAdapter:
    """The negative control: edits of the same size that answer to other inputs. It must come out useless."""
    mixed = {}
    for i, (name, factors) in enumerate(adapter.edits.items()):
        order = torch.randperm(factors.A.shape[1], generator=torch.Generator().manual_seed(i))
        mixed[name] = LowRank(factors.B, factors.A[:, order].contiguous())
    return replace(
        adapter, edits=mixed, keys={}, goals={}
    )  # it promises nothing that a load would check


def _told(adapter: ErasureAdapter) -> dict[str, Any]:
    """What the adapter says of itself, and this process's peak memory in MiB."""
    report = adapter.report
    names = ("listed_residual", "held_out_residual", "held_out_mean", "drift", "seconds")
    return {k: getattr(report, k) for k in names} | {
        "bytes": len(adapter.to_bytes()),
        "compression": max(layer.compression for layer in report.layers),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _loaded(pipe: Any, adapter: ErasureAdapter | None) -> Any:
    return _with(pipe, adapter) if adapter else nullcontext()


@contextmanager
def _with(pipe: Any, adapter: ErasureAdapter) -> Iterator[None]:
    pipe.load_erasure_adapter(adapter, adapter_name="evaluated")
    try:
        yield
    finally:
        pipe.unload_erasure_adapters()


def _pictures(pipe: Any, asks: Sequence[Ask], first: int, seed: int) -> list[Image.Image]:
    noise = [torch.Generator().manual_seed(seed * 100_000 + first + i) for i in range(len(asks))]
    texts = [ask.text for ask in asks]
    return pipe(texts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=noise).images


def _hit(told: Mapping[str, Sequence[Any]], i: int, ask: Ask, concept: Concept) -> bool:
    seen = told[ask.field][i]
    return seen is True if ask.field == "attribute" else seen in concept.words


def _judged(
    judge: Any,
    second: Any,
    asks: Sequence[Ask],
    images: list[Image.Image],
    plain: list[Image.Image],
) -> Iterator[dict[str, Any]]:
    """What each picture shows of what was asked, and how far it is from the unedited one."""
    other = second(images) if second and any(ask.concept for ask in asks) else None
    told, features, before = judge(images), judge.features(images), judge.features(plain)
    moved, far = pixel_change(images, plain), feature_change(features, before)
    for i, ask in enumerate(asks):
        line: dict[str, Any] = {"i": i, "mse": moved[i], "feature": far[i]}
        line["features"] = [round(float(x), 4) for x in features[i]]
        line["right"] = [bool(told[f][i] == word) for f, word in ask.says.items() if f != ask.field]
        if ask.concept:
            line["hit"] = _hit(told, i, ask, ask.concept)
            line["anchor"] = (
                None if ask.field == "attribute" else bool(told[ask.field][i] == ask.concept.anchor)
            )
            line["second"] = None if other is None else _hit(other, i, ask, ask.concept)
        yield line


# ------------------------------------------------------------------------------------------------ lines


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    """Every whole line of every shard; a line that a kill cut off is left out."""
    for file in sorted(folder.glob("shard-*.jsonl")):
        for line in file.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


@contextmanager
def _writer(
    folder: Path | None, index: int, lines: list[dict[str, Any]]
) -> Iterator[Callable[[dict[str, Any]], None]]:
    if folder is None:
        yield lines.append
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"shard-{index}.jsonl").open("a+b") as file:
        if file.tell() and not _ends_with_newline(file):
            file.write(b"\n")

        def write(line: dict[str, Any]) -> None:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()

        yield write


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, 2)
    return file.read(1) == b"\n"


def _same_run(lines: Iterable[Mapping[str, Any]], run: Mapping[str, Any], out: Path | None) -> None:
    for line in lines:
        if "run" in line and line["run"] != json.loads(json.dumps(run)):
            raise EvaluationError(
                f"{out} holds lines of another run (suite, spec, n or seed differ); give an empty folder"
            )


def aggregate(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Row -> measure -> number, from the lines alone, in whatever order they came.

    ACC_e, ACC_a: target, anchor seen in prompts that ask for the target. ACC_e2: target seen there by the suite's second
    detector, which knows words and no labels. ACC_ctx: what else they say, kept. ACC_g: target
    seen from synonyms and other phrasings. ACC_s, ACC_near: what other prompts say, kept; nearest neighbours apart.
    H_o = harmonic(1 - ACC_e, ACC_s, 1 - ACC_g). mse, feature, frechet: change of the other prompts' pictures.

    Raises:
        EvaluationError: A row lacks a kind of picture.
    """
    pictures: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {}
    told: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        if "kind" in line:
            pictures.setdefault(line["row"], {}).setdefault(line["kind"], {})[line["index"]] = line
        elif "adapter" in line:
            told[line["row"]] = line["adapter"]
    if UNEDITED not in pictures:
        raise EvaluationError(
            "no picture was judged, so there is no number; the lines hold no unedited row"
        )
    ordered = {
        row: {kind: [found[i] for i in sorted(found)] for kind, found in kinds.items()}
        for row, kinds in pictures.items()
    }
    base = [x["features"] for x in ordered[UNEDITED].get("other", [])]
    return {
        row: _measures(row, kinds, base) | dict(told.get(row, {})) for row, kinds in ordered.items()
    }


def _measures(
    row: str, kinds: Mapping[str, list[Mapping[str, Any]]], base: list[list[float]]
) -> dict[str, Any]:
    if missing := [kind for kind in KINDS if not kinds.get(kind)]:
        raise EvaluationError(
            f"row {row!r} has no picture of kind {missing[0]!r}; run the evaluation to its end"
        )
    target, general, near, other = (kinds[kind] for kind in KINDS)
    rates = {
        "ACC_e": rate([x["hit"] for x in target], "ACC_e"),
        "ACC_ctx": rate([r for x in target for r in x["right"]], "ACC_ctx"),
        "ACC_g": rate([x["hit"] for x in general], "ACC_g"),
        "ACC_s": rate([r for x in other for r in x["right"]], "ACC_s"),
        "ACC_near": rate([r for x in near for r in x["right"]], "ACC_near"),
    }
    if anchors := [x["anchor"] for x in target if x["anchor"] is not None]:
        rates["ACC_a"] = rate(anchors, "ACC_a")
    if second := [x["second"] for x in target if x.get("second") is not None]:
        rates["ACC_e2"] = rate(second, "ACC_e2")
    return rates | {
        "H_o": harmonic(1 - rates["ACC_e"].value, rates["ACC_s"].value, 1 - rates["ACC_g"].value),
        "mse": mean([x["mse"] for x in other], "mse"),
        "feature": mean([x["feature"] for x in other], "feature"),
        "frechet": frechet([x["features"] for x in other], base),
    }


COLUMNS = (
    "ACC_e",
    "ACC_e2",
    "ACC_a",
    "ACC_ctx",
    "ACC_g",
    "ACC_s",
    "ACC_near",
    "H_o",
    "mse",
    "feature",
    "frechet",
    "listed_residual",
    "held_out_mean",
    "drift",
    "seconds",
    "bytes",
    "peak_mib",
)


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows as a Markdown table; every estimate with its interval and n."""

    def cell(value: Any) -> str:
        if isinstance(value, Estimate):
            return f"{value.value:.3g} ({value.low:.2g} to {value.high:.2g}; n {value.n})"
        return "-" if value is None else f"{value:.3g}"

    lines = ["| row | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [
        f"| {row} | " + " | ".join(cell(x.get(c)) for c in COLUMNS) + " |"
        for row, x in found.items()
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """`[accelerate launch] -m diffusers_erasepro.evaluate --spec star.toml --methods erasepro,uce --out runs/star`."""
    parser = argparse.ArgumentParser(prog="diffusers_erasepro.evaluate", description=__doc__)
    parser.add_argument("--spec", type=Path, required=True, help="TOML of the concepts to erase")
    parser.add_argument("--methods", default="erasepro,uce", help="names, with commas between")
    parser.add_argument("--suite", default="glyphs")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder of the JSON lines; an interrupted run goes on there",
    )
    parser.add_argument("-n", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-controls", action="store_true")
    args = parser.parse_args(argv)
    spec, names = ErasureSpec.from_toml(args.spec.read_text()), args.methods.split(",")
    suite_named(args.suite)
    found = evaluate(
        glyphs.load_pipeline(),
        spec,
        dict(zip(names, names, strict=True)),
        args.suite,
        n=args.n,
        seed=args.seed,
        out=args.out,
        controls=not args.no_controls,
    )
    if PartialState().is_main_process:
        print(table(found))


if __name__ == "__main__":
    main()
