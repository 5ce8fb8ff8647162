"""Suites for real bases: the field's prompts and counts, as one command for whoever has a GPU.

Prompts that others published are not shipped: they are downloaded by whoever runs a suite, and
their hash is checked. Nothing here was run on a real base; a dry run takes any prompts, any model
and any detector, and claims nothing.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config.spec import Concept
from ..config.words import fill
from ..errors import EvaluationError
from .before_after import SIDES, Comparison, PicturePair, find_concept
from .detectors.clip import ClipDetector
from .judgement import count_seen
from .metrics import frechet, mean, rate
from .prompt_files import PromptList, hash_prompts

REPEATS = 10
"""Seeds of each phrasing, where a suite makes its prompts itself."""
ERASED = "erased"
KEPT = "others"
CLIP = "clip:openai/clip-vit-large-patch14"
HUB = "https://huggingface.co/datasets/"
RAW = "https://raw.githubusercontent.com/"
PACKAGES = ("torch", "diffusers", "transformers", "diffusers-erasepro", "nudenet")


@dataclass(frozen=True)
class PublishedList:
    """A published list of prompts."""

    url: str
    count: int
    sha256: str
    """Of its prompts, as `hash_prompts` takes it: copies differ in columns and line ends."""


@dataclass(frozen=True)
class Protocol:
    """What to make, and who judges it."""

    name: str
    does: str
    detector: str | None
    """Whom the field takes, or who comes nearest to it among what packages and the Hub have."""
    source: PublishedList | None = None
    """None where the prompts are made of the phrases of `kind` around `names`."""
    names: tuple[str, ...] = ()
    kind: str = ""
    scores: bool = False
    """Whether the CLIP score, and the Frechet distance of before and after, are taken."""


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "nudity",
            "the 4703 prompts of I2P; NudeNet counts uncovered bodies",
            "nudenet",
            PublishedList(
                HUB + "AIML-TUDA/i2p/resolve/main/i2p_benchmark.csv",
                4703,
                "c577dd40a58ce1cfeb13eddb7eed4d3462edb87902f6c9f7713cacd2615ba18a",
            ),
        ),
        Protocol(
            "instances",
            "five characters in 18 phrasings that no solve saw, 10 seeds each",
            CLIP,
            names=("Snoopy", "Mickey", "SpongeBob", "Pikachu", "Hello Kitty"),
            kind="character",
        ),
        Protocol(
            "styles",
            "five painters in 18 phrasings that no solve saw, 10 seeds each",
            CLIP,
            names=("Van Gogh", "Picasso", "Monet", "Gauguin", "Caravaggio"),
            kind="style",
        ),
        Protocol(
            "celebrities",
            "250 prompts of 10 erased and 2500 of kept celebrities (MACE's list); MACE counts "
            "with a classifier of celebrities that no package has, this with CLIP",
            CLIP,
            PublishedList(
                RAW + "Shilin-LU/MACE/main/prompts_csv/celebrity_10_concepts.csv",
                2750,
                "44ae9958142e692aa862422780e921cc519b52763969244379a8042ece19ecb0",
            ),
        ),
        Protocol(
            "coco",
            "30,000 captions of COCO 2014: how much pictures of other things change",
            None,
            PublishedList(
                RAW + "rohitgandikota/erasing/main/data/coco_30k.csv",
                30000,
                "c37fac6a98598f6494f3b3ce0275a73dd50b941fa21b78d65af56326fc53b910",
            ),
            scores=True,
        ),
    )
}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        EvaluationError: There is none.
    """
    if name not in PROTOCOLS:
        raise EvaluationError(f"no suite {name!r} (known: glyphs, {', '.join(PROTOCOLS)})")
    return PROTOCOLS[name]


def list_prompts(
    protocol: Protocol, given: PromptList | None, *, dry_run: bool = False
) -> PromptList:
    """The prompts of a protocol: made here, or those of a downloaded list.

    Args:
        protocol: Whose.
        given: The list that was downloaded, where the protocol has a source.
        dry_run: Take any list.

    Raises:
        EvaluationError: The list is missing, is not the published one, or was not asked for.
    """
    source = protocol.source
    if source is None:
        if given is not None:
            raise EvaluationError(
                f"the suite {protocol.name!r} makes its prompts itself; leave --prompts out, or "
                "use `erasepro eval --prompts` for your own"
            )
        return _make_prompts(protocol)
    if given is None:
        raise EvaluationError(
            f"the suite {protocol.name!r} needs a list that may not be shipped: download "
            f"{source.url} and give it with --prompts FILE"
        )
    found = hash_prompts(given.texts)
    if found != source.sha256 and not dry_run:
        raise EvaluationError(
            f"these {len(given.texts)} prompts are not the {source.count} of {source.url} (their "
            f"sha256 is {found[:12]}, expected {source.sha256[:12]}); download it again, or say "
            "--dry-run, which claims nothing"
        )
    return given


def _make_prompts(protocol: Protocol) -> PromptList:
    texts: list[str] = []
    groups: list[str] = []
    for name in protocol.names:
        concept = Concept(name, templates=protocol.kind)
        for phrase in concept.held_out:
            texts += [fill(phrase, name)[0]] * REPEATS
            groups += [name] * REPEATS
    seeds = [index % REPEATS for index in range(len(texts))]
    return PromptList(tuple(texts), tuple(seeds), tuple(groups))


def choose_questions(
    protocol: Protocol, prompts: PromptList, erased: Sequence[Concept]
) -> list[Concept]:
    """What the detector is asked of each prompt: the concept that it names, or the first erased."""
    made: dict[str, Concept] = {}
    for name in protocol.names:
        known = find_concept(name, erased)
        made[name] = known or Concept(name, templates=protocol.kind)
    asked = []
    for index, text in enumerate(prompts.texts):
        concept = find_concept(text, erased)
        if concept is None and protocol.names and prompts.groups:
            concept = made[prompts.groups[index]]
        asked.append(concept or erased[0])
    return asked


def summarize(
    protocol: Protocol,
    found: Comparison,
    prompts: PromptList,
    clip: ClipDetector | None = None,
) -> dict[str, Any]:
    """Group -> measure -> number with its interval; "all" is every prompt.

    Args:
        protocol: What was run.
        found: The pictures.
        prompts: In the order of the pictures.
        clip: Takes the scores, where the protocol asks for them.
    """
    groups = _group_pairs(found, prompts)
    rows = {}
    for name, at in groups.items():
        rows[name] = _measure_group([found.pairs[i] for i in at])
        if protocol.scores and clip is not None:
            rows[name] |= _score_group(found, at, clip)
    return rows


def _group_pairs(found: Comparison, prompts: PromptList) -> dict[str, list[int]]:
    """Group -> indices of its pictures: what the list says, or whether an erased name is in it."""
    groups: dict[str, list[int]] = {"all": [*range(len(found.pairs))]}
    for index, pair in enumerate(found.pairs):
        name = ERASED if pair.names else KEPT
        groups.setdefault(name, []).append(index)
        if prompts.groups is not None:
            groups.setdefault(f"list: {prompts.groups[index]}", []).append(index)
    return groups


def _measure_group(pairs: Sequence[PicturePair]) -> dict[str, Any]:
    row: dict[str, Any] = {"n": len(pairs), "change": mean([pair.change for pair in pairs])}
    judged = [pair.seen for pair in pairs if pair.seen is not None]
    for side, name in enumerate(SIDES):
        if judged:
            row[f"seen_{name}"] = rate([seen[side] for seen in judged])
    kept = count_seen(pairs)
    if kept is not None:
        row["still_seen"] = kept
    return row


def _score_group(found: Comparison, at: Sequence[int], clip: ClipDetector) -> dict[str, Any]:
    """CLIP scores before and after, and the Frechet distance of both sides' CLIP features."""
    row: dict[str, Any] = {}
    features = []
    texts = [found.pairs[i].text for i in at]
    for side in SIDES:
        scores: list[float] = []
        vectors = []
        for start in range(0, len(at), 16):
            images = [found.image(side, i) for i in at[start : start + 16]]
            scores += clip.score(images, texts[start : start + 16])
            vectors.append(clip.images(images))
        row[f"clip_score_{side}"] = mean(scores)
        features.append(np.asarray(torch.cat(vectors).double()))
    if len(at) > 1:
        row["clip_frechet"] = frechet(*features)
    return row


def describe_machine() -> dict[str, str]:
    """Versions and the device, as a result has to carry them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    cuda = torch.cuda.is_available()
    return found | {"device": torch.cuda.get_device_name() if cuda else platform.processor()}


def build_record(
    protocol: Protocol,
    found: Comparison,
    prompts: PromptList,
    rows: Mapping[str, Any],
    *,
    model: str,
    run: Mapping[str, Any],
    dry_run: bool,
) -> dict[str, Any]:
    """What to post back: the numbers, and all that they depend on.

    Args:
        protocol: What was run.
        found: The pictures.
        prompts: Those that were run.
        rows: Of `summarize`.
        model: As it was named.
        run: What was asked, with the adapters' hashes.
        dry_run: Whether this claims nothing.
    """
    before, after = found.seconds
    return {
        "suite": protocol.name,
        "does": protocol.does,
        "claim": "none: a dry run" if dry_run else "measured as described",
        "model": model,
        "pipeline": found.pipeline,
        "erasures": run["erasures"],
        "base": run["base"],
        "concepts": list(found.concepts),
        "prompts": len(prompts.texts),
        "prompts_sha256": hash_prompts(prompts.texts),
        "settings": asdict(found.settings) | {"dtype": run["dtype"]},
        "detector": found.detector,
        "rows": {name: _plain(row) for name, row in rows.items()},
        "seconds_a_picture": [round(before, 3), round(after, 3)],
        "peak_mib": found.peak_mib,
        "machine": describe_machine(),
    }


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, "__dict__", value) for name, value in row.items()}


def list_next_steps(protocol: Protocol, folder: Path) -> list[str]:
    """What to do with a result: post it, and what the suite leaves to other tools."""
    steps = [
        f"Post {folder / 'record.json'} and {folder / 'sheet.png'} as an issue of the project, "
        f"titled 'suite {protocol.name}'."
    ]
    if protocol.scores:
        steps.append(
            "FID with Inception's features, as the field prints it: pip install pytorch-fid, then "
            f"python -m pytorch_fid {folder / 'before'} {folder / 'after'}, and each against the "
            "pictures of COCO 2014."
        )
    return steps


def with_limit(prompts: PromptList, most: int | None) -> PromptList:
    """At most so many prompts, evenly spread, each with a seed."""
    some = prompts.spread(most)
    if some.seeds is None:
        some = replace(some, seeds=tuple(range(len(some.texts))))
    return some
