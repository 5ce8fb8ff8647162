"""How to erase, as it was asked for: one validated record that the adapter keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import ConceptSpecError
from .plan import (
    ALIGNMENTS,
    BLOCKS,
    EMBEDDING,
    GATES,
    NEURONS,
    OTHERWISE,
    READERS,
    Layers,
    Plan,
    Recipe,
    is_gates,
)
from .spec import Concept

METRICS = ("covariance", "identity")
AUTO: Layers = ("auto",)
"""Let the noise predictions choose the layers."""


@dataclass(frozen=True)
class Options:
    """The choices `erase` takes as keywords; `erase` documents them."""

    layers: Layers | Mapping[str, Layers] | None = None
    """For all concepts, or by target; None, or a target left out, is what the concept's kind asks
    for."""
    metric: str = "covariance"
    alignment: str | Mapping[str, str] | None = None
    ridge: float = 0.01
    soft_weight: float = 0.003
    soft_budget: int = 96
    rtol: float = 1e-7
    max_rank: int | None = None
    max_edit_size: float = 10.0
    robust: bool = False
    final_states: bool | None = None
    clip_skip: int = 0
    """0 is None too, as in diffusers."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _as_layers(self.layers))
        if isinstance(self.alignment, Mapping):
            object.__setattr__(self, "alignment", dict(self.alignment))
        check_choice("metric", self.metric, METRICS)
        for name in ("ridge", "soft_weight", "rtol", "max_edit_size"):
            check_number(name, getattr(self, name))
        if not isinstance(self.robust, bool):
            raise ConceptSpecError(f"robust must be True or False, got {self.robust!r}")
        if self.final_states not in (None, True, False):
            raise ConceptSpecError(
                f"final_states must be True, False or None, got {self.final_states!r}"
            )
        if self.clip_skip is None:
            object.__setattr__(self, "clip_skip", 0)
        _check_count("clip_skip", self.clip_skip, least=0)
        _check_count("soft_budget", self.soft_budget, least=0)
        if self.max_rank is not None:
            _check_count("max_rank", self.max_rank, least=1)
        for layers in _values(self.layers):
            if layers != AUTO or isinstance(self.layers, Mapping):
                _check_layers(layers)
        for alignment in _values(self.alignment):
            check_choice("alignment", alignment, tuple(ALIGNMENTS))

    @classmethod
    def of(cls, choices: Mapping[str, Any]) -> Options:
        """Options from keywords; an unknown one is an error that lists the known."""
        if unknown := sorted(set(choices) - set(cls.__dataclass_fields__)):
            known = ", ".join(cls.__dataclass_fields__)
            raise ConceptSpecError(f"unknown option {unknown[0]!r} (known: {known})")
        return cls(**choices)

    def resolve(self, concepts: Sequence[Concept], *, selective: bool = True) -> Plan:
        """What is left open decided, per concept by its kind.

        Args:
            concepts: Of the spec.
            selective: Without, encoder blocks stand in for the rows, gates and neurons of a kind.

        Raises:
            ConceptSpecError: Layers or an alignment are given for a target that the spec lacks.
        """
        targets = [concept.target for concept in concepts]
        for name in ("layers", "alignment"):
            given = getattr(self, name)
            stray = sorted(set(given) - set(targets)) if isinstance(given, Mapping) else []
            if stray:
                raise ConceptSpecError(
                    f"{name} are given for {stray[0]!r}, which is no target of the spec "
                    f"(targets: {', '.join(map(repr, targets))})"
                )
        return Plan(tuple((c.target, self._recipe(c, selective)) for c in concepts))

    def _recipe(self, concept: Concept, selective: bool) -> Recipe:
        usual = concept.recipe if selective else BLOCKS
        layers = _of(self.layers, concept.target)
        alignment = _of(self.alignment, concept.target)
        if layers is not None:
            usual = Recipe(layers)
        return usual if alignment is None else Recipe(usual.layers, alignment)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the file's header; keywords of `erase` again."""
        return asdict(self)


@dataclass(frozen=True)
class OtherMethod:
    """How an adapter was made that is not `erase`'s: recorded, and never solved again."""

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    alignment: str = "last_subject"
    """Where its listed residual is measured."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the file's header."""
        return asdict(self)


def read_options(data: Mapping[str, Any]) -> Options | OtherMethod:
    """What `to_dict` of either wrote; fields of a later version are left out."""
    kind: type[Options] | type[OtherMethod] = OtherMethod if "method" in data else Options
    return kind(**{k: v for k, v in data.items() if k in kind.__dataclass_fields__})


def blocks_in(layers: Layers, count: int) -> list[int]:
    """The encoder blocks among `layers`, shallow to deep, of an encoder with `count` blocks."""
    asked = [b for b in layers if isinstance(b, int)]
    for block in asked:
        if not -count <= block < count:
            raise ConceptSpecError(
                f"unknown layer {block}: the text encoder has blocks 0 to {count - 1} "
                "(or -1 for the last)"
            )
    return sorted({b % count for b in asked})


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise ConceptSpecError unless `value` is one of `known`."""
    if value not in known:
        raise ConceptSpecError(f"{name} {value!r} is not known (known: {', '.join(known)})")


def check_number(name: str, value: object) -> None:
    """Raise ConceptSpecError unless `value` is a finite number of at least 0."""
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not numeric or not math.isfinite(value) or value < 0:  # type: ignore[arg-type, operator]
        raise ConceptSpecError(f"{name} must be a finite number of at least 0, got {value!r}")


def _check_count(name: str, value: object, *, least: int) -> None:
    if type(value) is not int or value < least:
        raise ConceptSpecError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _as_layers(given: Any) -> Layers | dict[str, Layers] | None:
    """As a tuple, or a table of tuples; a single layer may stand alone."""
    if given is None:
        return None
    if isinstance(given, Mapping):
        return {target: _as_tuple(layers) for target, layers in given.items()}
    return _as_tuple(given)


def _as_tuple(layers: Any) -> Layers:
    return (layers,) if isinstance(layers, (int, str)) else tuple(layers)


def _values(given: Any) -> list[Any]:
    """What is given: one value, a table's values, or nothing."""
    if given is None:
        return []
    return [*given.values()] if isinstance(given, Mapping) else [given]


def _of(given: Any, target: str) -> Any:
    """What is given for one target."""
    return given.get(target) if isinstance(given, Mapping) else given


def _check_layers(layers: Layers) -> None:
    known = (EMBEDDING, GATES, *NEURONS, READERS)
    names = ", ".join(map(repr, known))
    if not layers:
        raise ConceptSpecError(
            f"layers is empty; name encoder blocks (such as 1, -1), {names}, or give 'auto'"
        )
    gates = [str(layer) for layer in layers if is_gates(layer)]
    if len(gates) > 1:
        raise ConceptSpecError(f"layers name gates twice, {gates[0]!r} and {gates[1]!r}; keep one")
    for layer in layers:
        start, _, number = str(layer).partition(":")
        counted = number.removeprefix("-") if start == OTHERWISE else number
        numbered = start in (GATES, OTHERWISE) and counted.isdecimal()
        if type(layer) is not int and layer not in known and not numbered:
            raise ConceptSpecError(
                f"unknown layer {layer!r}; layers are encoder blocks (0, 1, ..., -1), {names}, "
                f"'{OTHERWISE}:0' for what rows and gates do not reach, or 'auto' alone"
            )
    stand_ins = [str(layer) for layer in layers if str(layer).startswith(OTHERWISE)]
    if stand_ins and not gates and EMBEDDING not in layers:
        raise ConceptSpecError(
            f"{stand_ins[0]!r} stands in for rows and gates; name 'embedding' or 'gates' beside it"
        )
