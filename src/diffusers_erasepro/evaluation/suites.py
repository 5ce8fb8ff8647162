"""Suites: the prompts of an evaluation, what they should show, and the judges of the images.

Those of the field, for real bases, are in `protocols`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import glyphs
from ..config.mentions import Mentions
from ..config.spec import Concept, ErasureSpec
from ..erasure.states import final_states
from ..errors import EvaluationError
from ..glyphs.concept_prompts import kind_of, prompts_with, prompts_without
from ..glyphs.recognise import is_glyph_world
from ..glyphs.world import FIRST, Scene
from ..prompts.tokens import text_paths, token_ids, tokenizer_of
from .detectors import load_second_judge

KINDS = ("target", "general", "near", "other")
"""Of prompts: held-out phrasings of the target; other phrasings and synonyms; the concept's nearest
neighbours; anything else."""
NEIGHBOURS = 3
"""Words per concept that are its nearest neighbours."""


@dataclass(frozen=True)
class Case:
    """A prompt, and what its image should show."""

    text: str
    expected: Mapping[str, str | bool]
    """Field -> what the text asks for."""
    concept: Concept | None = None
    """The erased concept it asks for, if it does."""
    field: str = ""
    """The field of `expected` in which that concept would be seen."""


Cases = dict[str, list[Case]]
"""Kind of `KINDS` -> cases."""


@dataclass(frozen=True)
class Suite:
    """What to generate, and who judges what it shows."""

    name: str
    needs: str
    """Weights and detectors, with versions and thresholds."""
    cases: Callable[[Any, ErasureSpec, int, int], Cases] | None = None
    """`(pipe, spec, n, seed)` -> the cases; without them the suite cannot be run."""
    judge: Callable[[], Any] | None = None
    """Makes the judge: `judge(images)` -> field -> answers; `judge.features(images)`."""
    second: Callable[[], Any] | None = None
    """Makes an independent detector with the same answers; ACC_e2 is what it sees of the target."""
    check: Callable[[Any, ErasureSpec], None] | None = None
    """Raises EvaluationError where the judge cannot judge `(pipe, spec)`."""
    controls: tuple[Concept, ...] = ()
    """For the row "other concept erased": the first that has nothing to do with the spec. No case
    asks for it."""

    def control(self, spec: ErasureSpec) -> Concept:
        """What "other concept erased" erases beside `spec`.

        Raises:
            EvaluationError: Every control is a target or an anchor of the spec.
        """
        words = {concept.anchor for concept in spec.concepts}
        for concept in spec.concepts:
            words |= {*concept.words}
        for control in self.controls:
            if not words & {control.target, control.anchor}:
                return control
        raise EvaluationError(
            f"every control of the suite {self.name!r} is among the spec's concepts; "
            "erase fewer at once"
        )


def find_suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
        EvaluationError: There is none, or what it needs is not here.
    """
    if name not in SUITES:
        raise EvaluationError(f"no suite {name!r} (known: {', '.join(SUITES)})")
    return with_parts(SUITES[name])


def with_parts(suite: Suite) -> Suite:
    """The suite, if it has all that an evaluation needs.

    Raises:
        EvaluationError: It lacks prompts or a judge.
    """
    if suite.cases is None or suite.judge is None:
        raise EvaluationError(
            f"the suite {suite.name!r} needs what is not here: {suite.needs}; give a Suite with "
            "`cases` (the prompts) and `judge` (a detector that says what images show)"
        )
    return suite


def check_glyphs(pipe: Any, spec: ErasureSpec) -> None:
    """Refuse what the judge of the glyph world has never seen.

    Raises:
        EvaluationError: Another pipeline, or a concept that the world does not have.
    """
    if not is_glyph_world(pipe):
        raise EvaluationError(
            "the suite 'glyphs' is judged by the glyph world's own judge, which can say nothing "
            f"about the images of this {type(pipe).__name__}; give a Suite with `cases` (prompts) "
            "and `judge` (a detector that knows what the pipeline generates, such as one made "
            "with evaluation.detectors.TextToConcept)"
        )
    for concept in spec.concepts:
        kind_of(FIRST, concept)


def glyph_cases(pipe: Any, spec: ErasureSpec, n: int, seed: int) -> Cases:
    """Cases of the glyph world, about `n` per kind.

    Args:
        pipe: Its text encoder says which words are nearest to a concept.
        spec: What is erased.
        n: Cases per kind; each concept has its share.
        seed: Of the captions.
    """
    share = math.ceil(n / len(spec.concepts))
    control = SUITES["glyphs"].control(spec)
    targets = [concept.target for concept in spec.concepts]
    cases: Cases = {kind: [] for kind in KINDS}
    for concept in spec.concepts:
        cases["target"] += _target_cases(concept, share, seed)
        cases["general"] += _general_cases(concept, share)
        for word in nearest_words(pipe, concept, [*targets, control.target], NEIGHBOURS):
            count = math.ceil(share / NEIGHBOURS)
            cases["near"] += _near_cases(word, spec, count, seed)
    others = prompts_without([*spec.concepts, control], n, seed=seed, held_out=True)
    cases["other"] = [Case(text, _expected(scene)) for text, scene in others]
    return cases


def _target_cases(concept: Concept, n: int, seed: int) -> list[Case]:
    """Held-out phrasings that name the target."""
    field = kind_of(FIRST, concept)
    pairs = prompts_with(replace(concept, synonyms=()), n, seed=seed, held_out=True)
    return [Case(text, _expected(scene), concept, field) for text, scene in pairs]


def _general_cases(concept: Concept, n: int) -> list[Case]:
    """The concept's own held-out phrasings, with its words from the last synonym on."""
    field = kind_of(FIRST, concept)
    cases = []
    for i in range(n):
        word = concept.words[-1 - i % len(concept.words)]
        phrasing = concept.held_out[i % len(concept.held_out)]
        expected = True if field == "attribute" else word
        cases.append(Case(phrasing.format(word), {field: expected}, concept, field))
    return cases


def _near_cases(word: str, spec: ErasureSpec, n: int, seed: int) -> list[Case]:
    """Held-out phrasings that name `word` and nothing that is erased."""
    cases = []
    for text, scene in prompts_with(Concept(word), n, seed=seed, held_out=True):
        if not any(_mentions(concept, text) for concept in spec.concepts):
            cases.append(Case(text, _expected(scene)))
    return cases


def _mentions(concept: Concept, text: str) -> bool:
    return text in Mentions(concept.words)


def _expected(scene: Scene) -> dict[str, str | bool]:
    """Field -> what the image should show; fields that the caption leaves open are left out."""
    fields = ("shape", "style", "color", "background")
    expected: dict[str, str | bool] = {}
    for field in fields:
        if (word := getattr(scene, field)) is not None:
            expected[field] = word
    expected["attribute"] = scene.attribute is not None
    return expected


def nearest_words(pipe: Any, concept: Concept, without: Sequence[str], count: int) -> list[str]:
    """The words of the concept's kind whose states lie nearest to its own.

    For the attribute, shapes stand in.

    Args:
        pipe: Whose text encoder is asked.
        concept: Its own words and its anchor are no neighbours.
        without: Further words that are none.
        count: How many.
    """
    taken = (*without, *concept.words, concept.anchor)
    kind = FIRST.styles if kind_of(FIRST, concept) == "style" else FIRST.shapes
    words = [word for word in kind if word not in taken]
    path = text_paths(pipe)[0]
    ids = token_ids(tokenizer_of(path), [concept.target, *words])
    states = final_states(path.encoder, ids).flatten(1)
    gaps = (states[1:] - states[0]).norm(dim=1)
    return [words[int(i)] for i in gaps.argsort()[:count]]


SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "glyphs",
            "nothing: pipeline and judge are in the package",
            glyph_cases,
            glyphs.load_judge,
            load_second_judge,
            check_glyphs,
            controls=(
                Concept("drop", "bolt"),
                Concept("arrow", "diamond"),
                Concept("crescent", "square"),
            ),
        ),
    )
}
