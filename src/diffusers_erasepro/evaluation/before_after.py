"""Before and after: a pipeline's pictures with its erasures and without, kept as they are made."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin
from tqdm.auto import tqdm

from ..adapters.adapter import ErasureAdapter
from ..config.mentions import Mentions
from ..config.spec import Concept
from ..config.text_files import write_text_file
from ..errors import EvaluationError
from ..loaders.locking import get_adapters, get_states
from ..loaders.mixin import ErasureLoaderMixin
from ..loaders.prompt_measures import PromptMeasure, measure_prompts
from ..prompts.pairs import spread
from .calls import (
    CallSettings,
    generate_image,
    neutral_settings,
    peak_memory,
    saying_what_to_do,
)
from .detectors import Detector
from .metrics import pixel_change

SIDES = ("before", "after")
RUN_FILE = "run.json"
"""What was asked; pictures of another run are not mixed with these."""
RESULT_FILE = "result.json"
SHEET_FILE = "sheet.png"
PAGE_FILE = "sheet.html"
WRITTEN = (*SIDES, RUN_FILE, RESULT_FILE, SHEET_FILE, PAGE_FILE)
"""All that an evaluation writes in its folder."""
WATCHED_CAPTIONS = 100
MOST_MOVED = 5
"""Captions that a result lists."""
SECONDS = "erasepro:seconds"
"""The text of a PNG that says how long it took."""
NO_DETECTOR = (
    "no detector was given, so nobody judged whether a picture shows the concept; "
    "--detector clip:REPO does, or look at the sheet"
)


@dataclass(frozen=True)
class PicturePair:
    """One prompt: its two pictures, and what is known of them."""

    text: str
    seed: int
    names: tuple[str, ...]
    """Targets of the erasures that it names."""
    change: float
    """Root of the mean squared difference of the two pictures, 0 to 1."""
    seconds: tuple[float, float]
    """Before and after."""
    seen: tuple[bool, bool] | None = None
    """Whether the concept was seen before, and after; None where nobody judged."""
    left: float | None = None
    """Share of the gap between the prompt and its anchor's that is left; before the erasure it is
    1 by definition. None where the prompt names nothing erased."""
    left_by_kind: Mapping[str, float] = field(default_factory=dict)
    """The same by kind of position: "name", "other", "ends", "padding"."""
    moved: float | None = None
    """Mean relative change of the states of a prompt that names nothing erased."""
    note: str = ""
    """Why the states could not be measured."""


@dataclass(frozen=True)
class Captions:
    """How far captions moved that the adapters were made to keep; no picture is made of them."""

    count: int
    moved: float
    """In the mean; NaN of none."""
    most: tuple[tuple[str, float], ...]
    """Those that moved most, with how far."""


@dataclass(frozen=True)
class Comparison:
    """What `compare_images` found."""

    folder: Path
    pipeline: str
    erasures: tuple[str, ...]
    concepts: tuple[str, ...]
    """Each "target -> anchor"."""
    settings: CallSettings
    pairs: tuple[PicturePair, ...]
    """In the order of the prompts."""
    detector: str | None
    notes: tuple[str, ...]
    """What was left out, and why."""
    captions: Captions
    peak_mib: float
    memory_of: str
    """"GPU" or "process"."""

    def image(self, side: str, index: int) -> Image.Image:
        """The picture of one prompt, "before" or "after"."""
        return Image.open(picture_path(self.folder, side, index)).convert("RGB")

    @property
    def seconds(self) -> tuple[float, float]:
        """Mean of a picture before, and after."""
        before = [pair.seconds[0] for pair in self.pairs]
        after = [pair.seconds[1] for pair in self.pairs]
        return sum(before) / len(before), sum(after) / len(after)

    def naming(self) -> list[PicturePair]:
        """Those whose prompt names something erased, the most left first."""
        found = [pair for pair in self.pairs if pair.names]
        return sorted(found, key=lambda pair: -(pair.left or 0.0))

    def others(self) -> list[PicturePair]:
        """Those whose prompt names nothing erased, the most moved first."""
        found = [pair for pair in self.pairs if not pair.names]
        return sorted(found, key=lambda pair: -(pair.moved or pair.change))

    def first(self, most: int) -> Comparison:
        """Of its first prompts alone."""
        return replace(self, pairs=self.pairs[:most])

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(replace(self, folder=str(self.folder)))  # type: ignore[arg-type]


def picture_path(folder: Path, side: str, index: int) -> Path:
    """Where the picture of one prompt lies."""
    return folder / side / f"{index:04}.png"


def compare_images(
    pipe: Any,
    prompts: Sequence[str],
    out: str | Path,
    *,
    seeds: int | Sequence[int] = 0,
    settings: CallSettings | None = None,
    detector: Detector | None = None,
    questions: Sequence[Concept] | None = None,
    force: bool = False,
) -> Comparison:
    """Make every prompt's picture with the erasures that are on, and without, from the same noise.

    Each picture is kept in `out` as soon as it is made, and what is there is not made again.

    Args:
        pipe: An erasable pipeline with its erasures on; it is left as it was.
        prompts: One picture each, before and after.
        out: Folder of the pictures.
        seeds: One for each prompt, or the first one's, and every further prompt has the next.
        settings: Steps, guidance and size; None takes the call's own defaults.
        detector: Who judges; None leaves that column out.
        questions: What the detector is asked of each prompt; None asks for the concept that it
            names, or for the first that is erased.
        force: Make everything again where `out` holds another run.

    Raises:
        EvaluationError: No erasure is on, no prompt, a detector that does not know the model or a
            concept, another run in `out`, or memory ended half-way: what was made is kept.
    """
    folder = Path(out)
    concepts = active_concepts(pipe)
    settings = settings or neutral_settings(pipe)
    if not prompts:
        raise EvaluationError("no prompt, so no picture; give at least one")
    if isinstance(seeds, int):
        seeds = range(seeds, seeds + len(prompts))
    if questions is None:
        questions = [find_concept(text, concepts) or concepts[0] for text in prompts]
    if detector is not None:
        for concept in dict.fromkeys(questions):
            detector.check(pipe, concept)
    begin_run(folder, describe_run(pipe, prompts, seeds, settings), force=force)
    pipe.set_progress_bar_config(disable=True)
    _generate_missing(pipe, prompts, seeds, folder, settings)
    pairs = []
    for index, measure in enumerate(measure_prompts(pipe, prompts)):
        pairs.append(_measure_pair(measure, seeds[index], folder, index))
    if detector is not None:
        pairs = _judge_pairs(pairs, questions, folder, detector)
    peak, where = peak_memory()
    return Comparison(
        folder,
        type(pipe).__name__,
        tuple(name for name, on in get_states(pipe).items() if on),
        tuple(f"{concept.target} -> {concept.anchor or 'nothing'}" for concept in concepts),
        settings,
        tuple(pairs),
        None if detector is None else detector.name,
        () if detector else (NO_DETECTOR,),
        measure_captions(pipe),
        round(peak, 1),
        where,
    )


def active_adapters(pipe: Any) -> list[ErasureAdapter]:
    """The erasures that are on.

    Raises:
        EvaluationError: The pipeline has no erasure methods, or none is on.
    """
    if not isinstance(pipe, ErasureLoaderMixin):
        raise EvaluationError(
            f"this {type(pipe).__name__} has no erasure methods; give them to it with "
            "`pipe = erasable(pipe)`, and load an adapter with load_erasure_adapter"
        )
    states = get_states(pipe)
    found = [adapter for name, adapter in get_adapters(pipe).items() if states[name]]
    if not found:
        raise EvaluationError(
            "no erasure is on, so there is no after; load an adapter with load_erasure_adapter"
        )
    return found


def active_concepts(pipe: Any) -> list[Concept]:
    """What the erasures that are on take out; errors as of `active_adapters`."""
    found: list[Concept] = []
    for adapter in active_adapters(pipe):
        found += adapter.spec.concepts
    return list(dict.fromkeys(found))


def find_concept(text: str, concepts: Sequence[Concept]) -> Concept | None:
    """The first concept that a text names, or None."""
    return next((concept for concept in concepts if text in Mentions(concept.words)), None)


def describe_run(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], settings: CallSettings
) -> dict[str, Any]:
    """What has to be the same for pictures to belong together."""
    states = get_states(pipe)
    adapters = {}
    base: dict[str, dict[str, str]] = {}
    for name, adapter in get_adapters(pipe).items():
        if states[name]:
            adapters[name] = hashlib.sha256(adapter.to_bytes()).hexdigest()
            base |= {part: dict(prints) for part, prints in adapter.base.items()}
    return {
        "pipeline": type(pipe).__name__,
        "dtype": str(pipe.dtype),
        "base": base,
        "erasures": adapters,
        "prompts": list(prompts),
        "seeds": list(seeds),
        "settings": asdict(settings),
    }


# --- the folder


def begin_run(folder: Path, run: Mapping[str, Any], *, force: bool = False) -> None:
    """Say in `folder` what is asked, or go on where the same was asked before.

    Raises:
        EvaluationError: It is a file, or holds another run or other things that would be
            overwritten.
    """
    wanted = json.dumps(run, indent=2, sort_keys=True)
    if folder.exists() and not folder.is_dir():
        raise EvaluationError(f"{folder} is a file; give a folder to write to")
    record = folder / RUN_FILE
    same = record.is_file() and record.read_text(encoding="utf-8") == wanted
    if not same and (taken := list_taken(folder)):
        if not force:
            raise EvaluationError(
                f"{folder} holds {', '.join(taken)} of another run (model, adapters, prompts, "
                "seed, steps, guidance or size differ); give another folder, or overwrite them "
                "with --force"
            )
        for side in SIDES:
            for path in (folder / side).glob("[0-9]*.png"):
                path.unlink()
    for side in SIDES:
        (folder / side).mkdir(parents=True, exist_ok=True)
    write_text_file(record, wanted)


def list_taken(folder: Path) -> list[str]:
    """What an evaluation would overwrite in a folder."""
    return [name for name in WRITTEN if (folder / name).exists()]


def _generate_missing(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    settings: CallSettings,
) -> None:
    """Make and keep every picture that the folder lacks, a pair at a time."""
    missing = []
    for index in range(len(prompts)):
        missing += [(index, side) for side in SIDES if not _is_made(folder, side, index)]
    total = len(SIDES) * len(prompts)
    kept = f"; what was made before is kept in {folder}, and the same command goes on there"
    for done, (index, side) in enumerate(
        tqdm(missing, desc="pictures", initial=total - len(missing), total=total, unit="picture")
    ):
        at = f"picture {total - len(missing) + done + 1} of {total} ({side}, {prompts[index]!r})"
        started = time.perf_counter()
        with saying_what_to_do(at, kept):
            if side == "before":
                with pipe.erasure_disabled():
                    image = generate_image(pipe, prompts[index], settings, seeds[index])
            else:
                image = generate_image(pipe, prompts[index], settings, seeds[index])
        seconds = time.perf_counter() - started
        save_picture(picture_path(folder, side, index), image, seconds)


def _is_made(folder: Path, side: str, index: int) -> bool:
    return picture_path(folder, side, index).is_file()


def save_picture(path: Path, image: Image.Image, seconds: float) -> None:
    """Keep a picture and how long it took; it is there wholly or not at all."""
    facts = PngImagePlugin.PngInfo()
    facts.add_text(SECONDS, f"{seconds:.3f}")
    unfinished = path.with_suffix(".part")
    image.save(unfinished, "PNG", pnginfo=facts)
    os.replace(unfinished, path)


# --- measuring


def measure_captions(pipe: Any) -> Captions:
    """How far the captions of the erasures that are on moved, of those that name nothing erased."""
    listed: list[str] = []
    for adapter in active_adapters(pipe):
        listed += adapter.spec.preserve_captions()
    moved = []
    for one in measure_prompts(pipe, spread(tuple(dict.fromkeys(listed)), WATCHED_CAPTIONS)):
        if one.moved is not None:
            moved.append((one.text, one.moved))
    moved.sort(key=lambda pair: -pair[1])
    mean = sum(change for _, change in moved) / len(moved) if moved else math.nan
    return Captions(len(moved), mean, tuple(moved[:MOST_MOVED]))


def _measure_pair(measure: PromptMeasure, seed: int, folder: Path, index: int) -> PicturePair:
    """What two pictures say by themselves, beside what the states say."""
    before = picture_path(folder, "before", index)
    after = picture_path(folder, "after", index)
    with Image.open(before) as one, Image.open(after) as other:
        if one.size != other.size:
            raise EvaluationError(
                f"{before} is {one.size[0]} x {one.size[1]} and {after} {other.size[0]} x "
                f"{other.size[1]}; delete the one that is not of this run, and run again"
            )
        (change,) = pixel_change([one], [other])
        seconds = (float(one.info.get(SECONDS, "nan")), float(other.info.get(SECONDS, "nan")))
    return PicturePair(
        measure.text,
        seed,
        measure.names,
        math.sqrt(change),
        seconds,
        left=measure.left,
        left_by_kind=measure.left_by_kind,
        moved=measure.moved,
        note=measure.note,
    )


def _judge_pairs(
    pairs: Sequence[PicturePair],
    questions: Sequence[Concept],
    folder: Path,
    detector: Detector,
) -> list[PicturePair]:
    """The pairs, with what the detector sees of the concept that is asked of each."""
    judged = []
    for index, pair in enumerate(tqdm(pairs, desc="judge", leave=False, delay=2)):
        both = [Image.open(picture_path(folder, side, index)).convert("RGB") for side in SIDES]
        before, after = detector(both, questions[index])
        judged.append(replace(pair, seen=(before, after)))
    return judged
