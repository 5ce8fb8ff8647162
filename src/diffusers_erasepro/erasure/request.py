"""What was asked for, checked against the pipeline before anything is solved."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..config.options import Options
from ..config.plan import NEURONS, Plan
from ..config.spec import Concept, ErasureSpec
from ..errors import ConceptSpecError
from ..families.encoders import blocks_of, blocks_read
from ..families.pipelines import family_of
from ..modules.storage import without_loras
from ..prompts.tokens import TextPath, text_paths
from .sites.neurons import has_room


def as_spec(given: ErasureSpec | Concept | str) -> ErasureSpec:
    """What was given, as a spec; a mere name is said to be taken for an object.

    Raises:
        ConceptSpecError: It is none of the three.
    """
    if isinstance(given, str):
        concept = Concept(given)
        warnings.warn(
            f"{given!r} is taken for an object with nothing in its place: Concept({given!r}, "
            f"anchor='', templates={concept.kind.name!r}); give a Concept to say what it becomes",
            stacklevel=level_of_caller(),
        )
        return ErasureSpec((concept,))
    if isinstance(given, Concept):
        return ErasureSpec((given,))
    if not isinstance(given, ErasureSpec):
        raise ConceptSpecError(
            f"what to erase must be an ErasureSpec, a Concept or a name, got {type(given).__name__}"
        )
    return given


def check_clip_skip(pipe: Any, blocks: int) -> None:
    """Refuse to skip blocks that nobody skips, or all of them.

    Raises:
        ConceptSpecError: The pipeline reads no encoder with `clip_skip`, or one has too few blocks.
    """
    if not blocks:
        return
    paths = [path for path in text_paths(pipe, blocks) if path.use.skips]
    if not paths:
        raise ConceptSpecError(
            f"clip_skip={blocks}: {type(pipe).__name__} reads no text encoder with clip_skip; "
            "leave it out"
        )
    for path in paths:
        count = len(blocks_of(path.encoder))
        first = min(reading.block(count) for reading in path.use.readings)
        if first < 0:
            raise ConceptSpecError(
                f"clip_skip={blocks}: {path.use.encoder} has {count} blocks, and nothing of them "
                f"would be read; skip at most {blocks + first}"
            )


def resolve_layers(pipe: Any, spec: ErasureSpec, request: Options) -> Plan:
    """The request with a recipe for every concept, as far as the pipeline's encoders allow."""
    blocks = request.resolve(spec.concepts, selective=False)
    paths = text_paths(pipe, request.clip_skip)
    if request.robust or spec.keep or any(map(_reads_first_block, paths)):
        return blocks
    plan = request.resolve(spec.concepts)
    words = sum(len(concept.words) for concept in spec.concepts)
    if {*plan.layers}.isdisjoint(NEURONS) or all(has_room(path.encoder, words) for path in paths):
        return plan
    return blocks


def _reads_first_block(path: TextPath) -> bool:
    """Whether an encoder's first block is read: what follows it closes nothing there."""
    return blocks_read(path.encoder, path.use.readings)[0] == 0


@contextmanager
def below_loras(pipe: Any) -> Iterator[None]:
    """Inside, LoRAs and other PEFT layers that are on in the pipeline's parts do not count.

    An adapter is made for the base alone: so it loads on every pipeline with that base, whatever
    was on here. `refit_erasure` solves on top.

    Raises:
        UnknownFamilyError: The pipeline has no record.
    """
    family = family_of(pipe)
    names = [*(use.encoder for use in family.encoders), family.denoiser]
    found = [getattr(pipe, name, None) for name in names]
    with without_loras(root for root in found if isinstance(root, nn.Module)):
        yield


def level_of_caller() -> int:
    """The stacklevel, for `erase`, of the first caller outside this package: it named the spec."""
    package = __name__.partition(".")[0]
    frame = sys._getframe(1)
    level = 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame = frame.f_back
        level += 1
    return level
