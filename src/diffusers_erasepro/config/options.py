"""How to erase: every choice of the method as one validated record that the adapter keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from ..erasure.sites.neurons import PLACES
from ..errors import ConceptSpecError
from ..families.variants import VARIANTS
from ..prompts.pairs import ALIGNMENTS, Alignment
from .spec import Concept
from .template_set import BLOCKS, Layers, Recipe

METRICS = ("covariance", "identity")
READERS = "kv"
"""The name that stands for the denoiser's K/V linears among `layers`."""
NEURONS = tuple(PLACES)
"""The names that stand for idle neurons of the first block, and of the last that is read."""
AUTO: Layers = ("auto",)
"""Let the noise predictions choose the layers."""


@dataclass(frozen=True)
class Options:
    """The choices `erase` takes as keywords; `erase` documents them."""

    variant: str = "block"
    layers: Layers | None = None
    metric: str = "covariance"
    alignment: str | None = None
    ridge: float = 0.01
    soft_weight: float = 0.003
    soft_budget: int = 96
    rtol: float = 1e-7
    max_rank: int | None = None
    max_edit_size: float = 10.0
    robust: bool = False
    each: tuple[tuple[str, Layers, str], ...] = ()
    """Target, layers and alignment of each concept, where they differ; then `layers` and `alignment` are None."""

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "layers", self.layers if self.layers is None else _tuple(self.layers)
        )
        object.__setattr__(
            self,
            "each",
            tuple((target, _tuple(layers), held) for target, layers, held in self.each),
        )
        _one_of("variant", self.variant, tuple(VARIANTS))
        _one_of("metric", self.metric, METRICS)
        for name in ("ridge", "soft_weight", "rtol", "max_edit_size"):
            number(name, getattr(self, name))
        if not isinstance(self.robust, bool):
            raise ConceptSpecError(f"robust must be True or False, got {self.robust!r}")
        for name, least in (("soft_budget", 0), ("max_rank", 1)):
            value = getattr(self, name)
            if (name, value) != ("max_rank", None) and (type(value) is not int or value < least):
                raise ConceptSpecError(
                    f"{name} must be a whole number of at least {least}, got {value!r}"
                )
        for layers in ([] if self.layers in (None, AUTO) else [self.layers]) + [
            layers for _, layers, _ in self.each
        ]:
            _check_layers(layers)
        for alignment in ([] if self.alignment is None else [self.alignment]) + [
            held for _, _, held in self.each
        ]:
            _one_of("alignment", alignment, tuple(ALIGNMENTS))
        if self.takes_neurons and self.variant != "block":
            raise ConceptSpecError(
                f"neurons among the layers go with variant='block', got {self.variant!r}"
            )

    @classmethod
    def of(cls, choices: dict[str, Any]) -> Options:
        """Options from keywords; an unknown one is an error that lists the known."""
        if unknown := sorted(set(choices) - set(cls.__dataclass_fields__)):
            known = ", ".join(cls.__dataclass_fields__)
            raise ConceptSpecError(f"unknown option {unknown[0]!r} (known: {known})")
        return cls(**choices)

    def settled(self, concepts: Sequence[Concept], *, neurons: bool) -> Options:
        """What is left open decided, per concept by its kind; without `neurons`, encoder blocks stand in for them."""
        recipes = {c.target: self._settled(c, neurons=neurons) for c in concepts}
        if len(alike := {*recipes.values()}) == 1:
            (recipe,) = alike
            return replace(self, layers=recipe.layers, alignment=recipe.alignment, each=())
        return replace(
            self,
            layers=None,
            alignment=None,
            each=tuple((t, r.layers, r.alignment) for t, r in recipes.items()),
        )

    def _settled(self, concept: Concept, *, neurons: bool) -> Recipe:
        if found := self._each.get(concept.target):
            return found
        usual = concept.recipe if neurons and self.variant == "block" else BLOCKS
        if self.layers is not None:
            usual = Recipe(self.layers)
        return usual if self.alignment is None else replace(usual, alignment=self.alignment)

    def recipe(self, concept: Concept) -> Recipe:
        """Of settled options: where a concept is edited, and which positions are held."""
        if self.layers is None or self.alignment is None:
            return self._each[concept.target]
        return Recipe(self.layers, self.alignment)

    def alignment_of(self, concept: Concept) -> Alignment:
        """Of settled options: which positions of its prompts are held."""
        return ALIGNMENTS[self.recipe(concept).alignment]

    @cached_property
    def _each(self) -> dict[str, Recipe]:
        return {target: Recipe(layers, alignment) for target, layers, alignment in self.each}

    @property
    def every_layer(self) -> Layers:
        """The layers of all concepts, as far as they are settled."""
        return tuple(
            dict.fromkeys(
                [*(self.layers or ()), *(x for _, layers, _ in self.each for x in layers)]
            )
        )

    @property
    def edits_readers(self) -> bool:
        """Whether the denoiser's K/V linears are edited too."""
        return READERS in self.every_layer or self.robust

    @property
    def takes_neurons(self) -> bool:
        """Whether idle neurons are given to the words."""
        return with_neurons(self.every_layer)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Foreign:
    """How an adapter was made that is not `erase`'s: recorded, and never solved again."""

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    alignment: str = "last_subject"
    """Where its listed residual is measured."""

    @property
    def takes_neurons(self) -> bool:
        """Only `erase` gives neurons away."""
        return False

    def alignment_of(self, concept: Concept) -> Alignment:
        """The same for every concept."""
        return ALIGNMENTS[self.alignment]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def blocks_in(layers: Layers, count: int) -> list[int]:
    """The encoder blocks among `layers`, shallow to deep, of an encoder with `count` blocks."""
    asked = [b for b in layers if isinstance(b, int)]
    for block in asked:
        if not -count <= block < count:
            raise ConceptSpecError(
                f"unknown layer {block}: the text encoder has blocks 0 to {count - 1} (or -1 for the last)"
            )
    return sorted({b % count for b in asked})


def held(options: Options | Foreign, concepts: Sequence[Concept]) -> dict[str, Alignment]:
    """By word, which positions of its prompts are held."""
    return {word: options.alignment_of(concept) for concept in concepts for word in concept.words}


def recorded(data: Mapping[str, Any]) -> Options | Foreign:
    """What `to_dict` of either wrote; fields of a later version are left out."""
    kind: type[Options] | type[Foreign] = Foreign if "method" in data else Options
    return kind(**{k: v for k, v in data.items() if k in kind.__dataclass_fields__})


def with_neurons(layers: Layers) -> bool:
    """Whether idle neurons are among `layers`."""
    return any(name in layers for name in NEURONS)


def _tuple(layers: Any) -> Layers:
    return (layers,) if isinstance(layers, (int, str)) else tuple(layers)


def _check_layers(layers: Layers) -> None:
    names = f"{', '.join(map(repr, NEURONS))} or {READERS!r}"
    if not layers:
        raise ConceptSpecError(
            f"layers is empty; name encoder blocks (such as 1, -1), {names}, or give 'auto'"
        )
    for layer in layers:
        if type(layer) is not int and layer not in (*NEURONS, READERS):
            raise ConceptSpecError(
                f"unknown layer {layer!r}; layers are encoder blocks (0, 1, ..., -1), {names}, or 'auto' alone"
            )


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConceptSpecError(f"{name} {value!r} is not known (known: {', '.join(known)})")


def number(name: str, value: object) -> None:
    """Raise ConceptSpecError unless `value` is a finite number of at least 0."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value < 0
    ):
        raise ConceptSpecError(f"{name} must be a finite number of at least 0, got {value!r}")
