"""How to erase: every choice of the method as one validated record that the adapter keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .errors import ConceptSpecError
from .families import VARIANTS
from .prompts import ALIGNMENTS

METRICS = ("covariance", "identity")
Layers = tuple[int | str, ...]
READERS = "kv"
"""The name that stands for the denoiser's K/V linears among `layers`."""
NEURONS = ("neurons", "eos_neurons")
"""The names that stand for idle neurons of the first block, and of the last that is read (`neurons.PLACES`)."""
AUTO: Layers = ("auto",)
"""Let the noise predictions choose the layers."""


@dataclass(frozen=True)
class Options:
    """The choices `erase` takes as keywords; `erase` documents them."""

    variant: str = "block"
    layers: Layers = (0, -1)
    metric: str = "covariance"
    alignment: str = "last_subject+eos"
    ridge: float = 0.01
    soft_weight: float = 0.003
    soft_budget: int = 96
    rtol: float = 1e-7
    max_rank: int | None = None
    max_edit_size: float = 10.0
    robust: bool = False

    def __post_init__(self) -> None:
        one = isinstance(self.layers, (int, str))
        object.__setattr__(self, "layers", (self.layers,) if one else tuple(self.layers))
        _one_of("variant", self.variant, tuple(VARIANTS))
        _one_of("metric", self.metric, METRICS)
        _one_of("alignment", self.alignment, tuple(ALIGNMENTS))
        for name in ("ridge", "soft_weight", "rtol", "max_edit_size"):
            number(name, getattr(self, name))
        if not isinstance(self.robust, bool):
            raise ConceptSpecError(f"robust must be True or False, got {self.robust!r}")
        for name, least in (("soft_budget", 0), ("max_rank", 1)):
            value = getattr(self, name)
            if (name, value) != ("max_rank", None) and (type(value) is not int or value < least):
                raise ConceptSpecError(f"{name} must be a whole number of at least {least}, got {value!r}")
        names = f"{', '.join(map(repr, NEURONS))} or {READERS!r}"
        if not self.layers:
            raise ConceptSpecError(f"layers is empty; name encoder blocks (such as 1, -1), {names}, or give 'auto'")
        for layer in self.layers if self.layers != AUTO else ():
            if type(layer) is not int and layer not in (*NEURONS, READERS):
                raise ConceptSpecError(
                    f"unknown layer {layer!r}; layers are encoder blocks (0, 1, ..., -1), {names}, or 'auto' alone"
                )
        if self.takes_neurons and self.variant != "block":
            raise ConceptSpecError(f"neurons among the layers go with variant='block', got {self.variant!r}")

    @classmethod
    def of(cls, choices: dict[str, Any]) -> Options:
        """Options from keywords; an unknown one is an error that lists the known."""
        if unknown := sorted(set(choices) - set(cls.__dataclass_fields__)):
            known = ", ".join(cls.__dataclass_fields__)
            raise ConceptSpecError(f"unknown option {unknown[0]!r} (known: {known})")
        return cls(**choices)

    @property
    def edits_readers(self) -> bool:
        """Whether the denoiser's K/V linears are edited too."""
        return READERS in self.layers or self.robust

    @property
    def takes_neurons(self) -> bool:
        """Whether idle neurons are given to the words."""
        return any(name in self.layers for name in NEURONS)

    def blocks(self, count: int) -> list[int]:
        """The encoder blocks asked for, shallow to deep, of an encoder with `count` blocks."""
        asked = [b for b in self.layers if isinstance(b, int)]
        for block in asked:
            if not -count <= block < count:
                raise ConceptSpecError(
                    f"unknown layer {block}: the text encoder has blocks 0 to {count - 1} (or -1 for the last)"
                )
        return sorted({b % count for b in asked})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"layers": list(self.layers)}


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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def recorded(data: Mapping[str, Any]) -> Options | Foreign:
    """What `to_dict` of either wrote; fields of a later version are left out."""
    kind: type[Options] | type[Foreign] = Foreign if "method" in data else Options
    return kind(**{k: v for k, v in data.items() if k in kind.__dataclass_fields__})


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConceptSpecError(f"{name} {value!r} is not known (known: {', '.join(known)})")


def number(name: str, value: object) -> None:
    """Raise ConceptSpecError unless `value` is a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ConceptSpecError(f"{name} must be a finite number of at least 0, got {value!r}")
