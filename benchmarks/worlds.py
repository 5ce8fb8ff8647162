"""The worlds of the benchmarks: pipeline, judge, captions to keep, prompts of concepts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from diffusers_erasepro import Concept, ErasureSpec, glyphs
from diffusers_erasepro.evaluation.detectors import load_second_judge
from diffusers_erasepro.evaluation.suites import Case, Cases, Suite
from diffusers_erasepro.glyphs.concept_prompts import kind_of, prompts_with, prompts_without
from diffusers_erasepro.glyphs.world import WORLDS, Scene, World

FIELDS = ("shape", "style", "color", "background")
DRAWINGS = (
    ("shape", "star", "circle"),
    ("shape", "heart", "triangle"),
    ("shape", "cross", "square"),
    ("shape", "ring", "diamond"),
    ("style", "stripes", "flat"),
    ("style", "ink", "flat"),
)
"""Field, target and anchor, by what is drawn: each world has words of its own for them."""


@dataclass(frozen=True)
class BenchWorld:
    """What an experiment needs of a world."""

    name: str
    words: World
    load_pipeline: Callable[[], Any]
    load_judge: Callable[[], Any]

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """The preserve list of every method."""
        return tuple(glyphs.captions(400, seed=0, world=self.words))

    @cached_property
    def concepts(self) -> dict[str, Concept]:
        """By target: four shapes, two styles and the attribute."""
        found = {}
        for field, drawn, anchor in DRAWINGS:
            words = {drawing: word for word, drawing in getattr(self.words, f"{field}s").items()}
            kind = glyphs.templates(field)
            found[words[drawn]] = Concept(words[drawn], words[anchor], templates=kind)
        damaged, *synonyms = self.words.attribute_words
        intact = self.words.attribute_opposites[0]
        found[damaged] = Concept(
            damaged, intact, templates=glyphs.templates("attribute"), synonyms=tuple(synonyms)
        )
        return found

    def suite(self, cases: Callable[[ErasureSpec, int, int], Cases], name: str = "") -> Suite:
        """A suite of these cases, judged by the world's judge."""
        second = load_second_judge if self.name == "first" else None
        return Suite(
            name or f"glyphs, {self.name}",
            "nothing: pipeline and judge are at hand",
            lambda pipe, spec, n, seed: fill_kinds(cases(spec, n, seed)),
            self.load_judge,
            second,
        )


def glyph_world(name: str, folder: Path | None = None) -> BenchWorld:
    """The world of that name; weights that are not shipped lie in `folder`."""
    weights = folder or glyphs.WEIGHTS
    return BenchWorld(
        name,
        WORLDS[name],
        partial(glyphs.load_pipeline, weights),
        partial(glyphs.load_judge, weights),
    )


def plain_cases(
    spec: ErasureSpec, n: int, seed: int, *, world: World, held_out: bool = True
) -> Cases:
    """Captions that name the targets, and captions that name another shape and none of them."""
    share = -(-n // len(spec.concepts))
    target = []
    for concept in spec.concepts:
        pairs = prompts_with(concept, share, seed=seed, held_out=held_out, world=world)
        target += as_cases(pairs, concept, kind_of(world, concept))
    others = prompts_without(spec.concepts, n, seed=seed, held_out=held_out, world=world)
    return {"target": target, "other": as_cases(others)}


def as_cases(
    pairs: Sequence[tuple[str, Scene]], concept: Concept | None = None, field: str = ""
) -> list[Case]:
    """Captions with what they say as cases; `concept` is what they ask for in `field`."""
    return [Case(text, expected_of(scene), concept, field) for text, scene in pairs]


def expected_of(scene: Scene) -> dict[str, str | bool]:
    """Field -> what the image should show; what the caption leaves open is left out."""
    expected: dict[str, str | bool] = {}
    for field in FIELDS:
        if (word := getattr(scene, field)) is not None:
            expected[field] = word
    return expected | {"attribute": scene.attribute is not None}


def fill_kinds(cases: Cases) -> Cases:
    """`evaluate` wants every kind of prompt; where an experiment has none, one image stands in."""
    general = cases.get("general") or cases["target"][:1]
    near = cases.get("near") or cases["other"][:1]
    return {
        "target": cases["target"],
        "general": general,
        "near": near,
        "other": cases["other"],
    }


def without_synonyms(concept: Concept) -> Concept:
    """The concept by its own name alone."""
    return replace(concept, synonyms=())
