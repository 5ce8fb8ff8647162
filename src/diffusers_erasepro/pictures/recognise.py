"""Whether a pipeline is the pictures world, and what its judge can be asked about."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from ..errors import EvaluationError
from .captions import BACKGROUNDS, STYLES
from .world import folder, nearest, things

DENOISER_PARTS = ("unet", "transformer")


def is_pictures_world(pipe: Any) -> bool:
    """Whether a pipeline has the architecture of one of this world's.

    The weights may differ: an edit, a LoRA, another dtype or a fine-tune is the same world.
    """
    for part in DENOISER_PARTS:
        denoiser = getattr(pipe, part, None)
        if denoiser is not None and _shape_of(denoiser.config) == _shape_of(_shipped_config(part)):
            return True
    return False


def field_of(words: Sequence[str]) -> str:
    """What of a picture these words name: "thing", "hand" or "background".

    Raises:
        EvaluationError: The world has none of them, so that its judge cannot see it.
    """
    known = {"thing": things(), "hand": STYLES, "background": BACKGROUNDS}
    for field, answers in known.items():
        if any(word in answers for word in words):
            return field
    near = ", ".join(map(repr, nearest(words[0]))) or "see pictures.THINGS"
    raise EvaluationError(
        f"the pictures world has no {words[0]!r}, so its judge cannot see it; nearest: {near}"
    )


@cache
def _shipped_config(part: str) -> dict[str, Any]:
    path = folder() / part / "config.json"
    return json.loads(path.read_bytes()) if path.is_file() else {}


def _shape_of(config: Any) -> list[Any]:
    names = (
        "_class_name",
        "sample_size",
        "in_channels",
        "cross_attention_dim",
        "joint_attention_dim",
        "caption_channels",
        "num_attention_heads",
    )
    return [config.get(name) for name in names] + [list(config.get("block_out_channels") or ())]
