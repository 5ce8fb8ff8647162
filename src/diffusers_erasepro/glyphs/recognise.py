"""Whether a pipeline is the glyph world: its judge can say nothing about others."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from . import WEIGHTS


def is_glyph_world(pipe: Any) -> bool:
    """Whether a pipeline knows the shipped world's words and draws with its architecture.

    The weights may differ: an edit, a LoRA, another dtype or a fine-tune is the same world.
    """
    tokenizer: Any = getattr(pipe, "tokenizer", None)
    known = hasattr(tokenizer, "get_vocab") and tokenizer.get_vocab() == _words()
    return known and draws_glyphs(pipe)


def draws_glyphs(pipe: Any) -> bool:
    """Whether a pipeline has the architecture of glyph worlds, whatever words it knows."""
    unet = getattr(pipe, "unet", None)
    return unet is not None and _layout(unet.config) == _layout(_config())


@cache
def _words() -> dict[str, int]:
    content = (WEIGHTS / "tokenizer" / "tokenizer.json").read_bytes()
    found = json.loads(content)
    added = {token["content"]: token["id"] for token in found["added_tokens"]}
    return found["model"]["vocab"] | added


@cache
def _config() -> dict[str, Any]:
    return json.loads((WEIGHTS / "unet" / "config.json").read_bytes())


def _layout(config: Any) -> list[Any]:
    names = ("_class_name", "sample_size", "in_channels", "cross_attention_dim")
    return [config.get(name) for name in names] + [list(config.get("block_out_channels") or ())]
