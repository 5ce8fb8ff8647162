"""The paper's formula read literally: every linear of the text encoder, then every K and V."""

from __future__ import annotations

from typing import Any

from ..adapters.adapter import ErasureAdapter
from ..config.options import READERS
from ..config.spec import Concept, ErasureSpec
from ..erasure.erase import erase
from ..families.encoders import blocks_of
from ..families.pipelines import family_of, get_component


def literal(pipe: Any, spec: ErasureSpec | Concept, **options: Any) -> ErasureAdapter:
    """Every linear edited on its own, with the identity for a metric and no soft prompt.

    Args:
        pipe: As for `erase`.
        spec: As for `erase`.
        options: Options of `erase` that shall differ: `metric`, `layers`, `alignment`, ...
    """
    encoder = get_component(pipe, family_of(pipe).encoders[0][0])
    formula: dict[str, Any] = {
        "variant": "linear",
        "layers": (*range(len(blocks_of(encoder))), READERS),
        "metric": "identity",
        "alignment": "last_subject",
        "soft_weight": 0.0,
    }
    return erase(pipe, spec, **(formula | options))
