"""An erased concept asked for in other forms, and beside another object.

Each concept is erased alone; no edit was solved for any of these forms. For two objects either
object counts. "Anchor asked": how often the judge sees the target where nobody asks for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from diffusers_erasepro import Concept, ErasureSpec
from diffusers_erasepro.evaluation.suites import Cases
from diffusers_erasepro.glyphs.captions import phrase
from diffusers_erasepro.glyphs.concept_prompts import kind_of, prompts_with, prompts_without
from diffusers_erasepro.glyphs.world import FIRST
from first_light import METHODS
from harness import Cell, Experiment, main, parse_arguments
from worlds import BenchWorld, as_cases, glyph_world, without_synonyms

TALE = (
    "yesterday after a long walk home through the rain with two friends and a slow dog we hung up "
)
FORMS: dict[str, Callable[[str, Concept], str]] = {
    "as written": lambda text, concept: text,
    "anchor asked": lambda text, concept: text.replace(concept.target, concept.anchor),
    "CAPITALS": lambda text, concept: text.replace(concept.target, concept.target.upper()),
    "whole prompt in capitals": lambda text, concept: text.upper(),
    "no capitals": lambda text, concept: text.lower(),
    "plural": lambda text, concept: text.replace(concept.target, concept.target + "s"),
    "possessive": lambda text, concept: text.replace(concept.target, concept.target + "'s"),
    "in quotes": lambda text, concept: text.replace(concept.target, f'"{concept.target}"'),
    "with a comma after it": lambda text, concept: text.replace(
        concept.target, concept.target + ","
    ),
    "said twice": lambda text, concept: f"{text}, {concept.target}",
    "late in a long prompt": lambda text, concept: TALE + text,
}
"""A prompt and its concept -> the prompt that is asked."""
BESIDE = {"first of two objects": True, "second of two objects": False}
"""Whether the target comes first."""
OTHERS = 8
"""Images of other prompts: they are the same for every form."""


def form_cases(spec: ErasureSpec, n: int, seed: int, *, form: str) -> Cases:
    """Held-out captions of the target in one form, and a few others."""
    (concept,) = spec.concepts
    field = kind_of(FIRST, concept)
    pairs = prompts_with(without_synonyms(concept), n, seed=seed, held_out=True)
    if form in BESIDE:
        target = pairs_beside(concept, pairs, seed, target_first=BESIDE[form])
    else:
        target = [(FORMS[form](text, concept), scene) for text, scene in pairs]
    others = prompts_without([concept], min(n, OTHERS), seed=seed, held_out=True)
    return {"target": as_cases(target, concept, field), "other": as_cases(others)}


def pairs_beside(
    concept: Concept, pairs: Sequence[tuple[str, Any]], seed: int, *, target_first: bool
) -> list[tuple[str, Any]]:
    """Two-object captions: the target and another shape, in either place."""
    rng = np.random.default_rng([seed, 3])
    shapes = [shape for shape in FIRST.shapes if shape not in (concept.target, concept.anchor)]
    found = []
    for i, (_, scene) in enumerate(pairs):
        other = shapes[i % len(shapes)]
        color = scene.color or "red"
        first = concept.target if target_first else other
        second = other if target_first else concept.target
        two = replace(scene, shape=first, color=color, style=None, second=(color, second))
        found.append((phrase(FIRST, two, rng, held_out=True), two))
    return found


@dataclass(frozen=True)
class JudgeOfTwo:
    """A judge that answers with the second object where that is the target."""

    judge: Any
    target: str

    def __call__(self, images: Sequence[Any]) -> dict[str, list[Any]]:
        answers = self.judge(images)
        shapes = []
        for first, second in zip(answers["shape"], answers["second"], strict=True):
            shapes.append(second if second == self.target else first)
        return answers | {"shape": shapes}

    def features(self, images: Sequence[Any]) -> Any:
        return self.judge.features(images)


def form_cells(world: BenchWorld) -> dict[str, Cell]:
    """A shape, a style and the attribute, each in every form."""
    cells = {}
    concepts = tuple(world.concepts.values())
    for concept in (concepts[0], concepts[4], concepts[6]):
        of_shape = kind_of(FIRST, concept) == "shape"
        for form in (*FORMS, *BESIDE) if of_shape else FORMS:
            suite = world.suite(partial(form_cases, form=form), form)
            judge = partial(load_judge_of_two, world, concept.target)
            suite = replace(suite, judge=judge, second=None)
            cells[f"{concept.target}: {form}"] = Cell((concept,), suite)
    return cells


def load_judge_of_two(world: BenchWorld, target: str) -> JudgeOfTwo:
    """The world's judge, for one target."""
    return JudgeOfTwo(world.load_judge(), target)


if __name__ == "__main__":
    args = parse_arguments(48, 1, __doc__)
    first = glyph_world("first")
    columns = ("ACC_e", "ACC_a", "ACC_ctx")
    main(
        Experiment(
            "phrasings", first, form_cells(first), METHODS, args.n, args.seed, __doc__, columns
        ),
        args,
    )
