"""Find arguments of a call under which a text encoder receives what no edit answers to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..adapters.adapter import ErasureAdapter
from ..families.encode_prompt import parameters_of
from ..prompts.pairs import pairs_of
from ..prompts.tokens import TextPath, Tokens, text_paths

GIVEN = (
    "prompt",
    "negative_prompt",
    "prompt_2",
    "negative_prompt_2",
    "prompt_3",
    "negative_prompt_3",
    "num_images_per_prompt",
    "num_videos_per_prompt",
    "device",
    "dtype",
    "do_classifier_free_guidance",
    "lora_scale",
    "clip_skip",
    "image",
    "images",
)
"""Arguments of `encode_prompt` that leave open how one text becomes tokens: what is said is the
spec's business, every encoder has its own edit, and `clip_skip` has a rule of its own. What a
picture before the prompt leaves of a concept is said in `uncovered`; no two pictures are alike."""
LAYERS = ("text_encoder_out_layers",)
"""Arguments that say which hidden states are read."""
PROMPTS_TRIED = 8
"""Listed prompts that a call's arguments are tried on."""


def list_arguments(pipe: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a call that may change how a prompt is encoded, and are not the defaults."""
    if arguments.get("prompt") is None:
        return {}  # embeddings made elsewhere, which `verify_erasure` lists
    accepted = parameters_of(pipe, "encode_prompt")
    defaults = parameters_of(pipe, "__call__")
    found = {}
    for name, value in arguments.items():
        asked = name in accepted and name not in GIVEN and not isinstance(value, Tensor)
        if asked and value is not None and value != defaults[name].default:
            found[name] = value
    return found


def gives_embeddings(arguments: Mapping[str, Any]) -> bool:
    """Whether a call brings the states of its prompt, which any encoder may have made."""
    return any(
        "prompt_embeds" in name and not name.startswith("negative") and value is not None
        for name, value in arguments.items()
    )


def find_uncovered(
    pipe: Any, adapters: Sequence[ErasureAdapter], arguments: Mapping[str, Any]
) -> str | None:
    """Why a call with these arguments (`list_arguments`) would not be erased; None if it would.

    The listed prompts are encoded as with the defaults, for which the edits were solved, and as
    with `arguments`: what an encoder attends to must be the same tokens. Truncation may end a
    prompt earlier.
    """
    for name in LAYERS:
        if name in arguments:
            return (
                f"with {name}={arguments[name]!r} the denoiser reads hidden states that the "
                "erasure was not solved for"
            )
    texts: dict[str, None] = {}
    for adapter in adapters:
        exact = pairs_of(adapter.spec.concepts, "exact")
        texts |= dict.fromkeys(pair.target.text for pair in exact[:PROMPTS_TRIED])
    for path in text_paths(pipe):
        usual = path.tokens([*texts])
        for name, value in arguments.items():
            asked = path.tokens([*texts], {name: value})
            if path.reads_padding and usual.ids.shape != asked.ids.shape:
                return (
                    f"{path.use.encoder} does not mask its padding, and the erasure was solved "
                    f"for {usual.ids.shape[1]} tokens: with {name}={value!r} it gets "
                    f"{asked.ids.shape[1]}, and part of the concept would come back"
                )
            if not _same_tokens(path, usual, asked):
                return (
                    f"with {name}={value!r} {path.use.encoder} receives other tokens than those "
                    "that the erasure was solved for, and part of the concept would come back"
                )
    return None


def _same_tokens(path: TextPath, usual: Tokens, asked: Tokens) -> bool:
    """Whether each row attends to the same tokens, up to where one of them is truncated."""
    for one, one_read, other, other_read in zip(
        usual.ids, usual.read, asked.ids, asked.read, strict=True
    ):
        shown = one[one_read]
        shown_then = other[other_read]
        if len(shown) == len(shown_then):
            length = len(shown)
        else:  # the last token of a truncated row may be EOS
            length = min(len(shown), len(shown_then)) - 1
        if not torch.equal(shown[:length], shown_then[:length]):
            return False
    return True
