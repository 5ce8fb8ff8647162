"""The three students: small encoders of the real classes, before they have learnt anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

WIDTH, BLOCKS, HEADS = 256, 6, 4
SPREAD = 1.0
"""Root mean square of a token's embedding."""


def _clip(tokenizer: PreTrainedTokenizerFast) -> nn.Module:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=BLOCKS,
            num_attention_heads=HEADS,
            max_position_embeddings=77,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _t5(tokenizer: PreTrainedTokenizerFast) -> nn.Module:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=WIDTH // HEADS,
            d_ff=640,
            num_heads=HEADS,
            num_layers=BLOCKS,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )


def _qwen3(tokenizer: PreTrainedTokenizerFast) -> nn.Module:
    return Qwen3Model(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=BLOCKS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS // 2,
            head_dim=WIDTH // HEADS,
            max_position_embeddings=512,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


@dataclass(frozen=True)
class Student:
    """How one kind of student is made and read."""

    make: Callable[[PreTrainedTokenizerFast], nn.Module]
    writers: tuple[str, ...]
    """Ends of the names of linears that write into the stream."""
    mean: bool
    """Whether a sentence is the mean of its states; else it is the last one."""
    cased: bool
    """Whether its tokens tell capitals; every other text is then trained on without them."""


STUDENTS = {
    "clip": Student(_clip, ("out_proj", "fc2"), mean=False, cased=False),
    "t5": Student(_t5, (".o", ".wo"), mean=True, cased=True),
    "qwen3": Student(_qwen3, ("o_proj", "down_proj"), mean=False, cased=True),
}


def make_student(kind: str, tokenizer: PreTrainedTokenizerFast, teacher: Any) -> nn.Module:
    """A student whose embedding is the teacher's, projected, and whose blocks hardly write yet.

    Args:
        kind: `clip`, `t5` or `qwen3`.
        tokenizer: The student's.
        teacher: With `model` and `tokenizer`.
    """
    student = STUDENTS[kind].make(tokenizer)
    for name, module in student.named_modules():
        if isinstance(module, nn.Linear):
            spread = module.in_features**-0.5
            if name.endswith(STUDENTS[kind].writers):
                spread *= (2 * BLOCKS) ** -0.5
            if name.endswith("SelfAttention.q"):
                spread *= (WIDTH // HEADS) ** -0.5  # T5 does not divide by it later
            nn.init.normal_(module.weight, std=spread)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    words = teacher.model.embeddings.word_embeddings.weight.detach()
    basis = torch.linalg.svd(words - words.mean(0), full_matrices=False).Vh[:WIDTH]
    table = _matching_rows(tokenizer, teacher.tokenizer, words) @ basis.T
    scale = SPREAD / table.square().mean().sqrt()
    with torch.no_grad():
        student.get_input_embeddings().weight.copy_(table * scale)
        if kind == "clip":
            places = teacher.model.embeddings.position_embeddings.weight[:77]
            (own,) = [p for n, p in student.named_parameters() if "position_embedding" in n]
            own.copy_((places - places.mean(0)) @ basis.T * scale)
    return student


def _matching_rows(
    tokenizer: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast, words: Tensor
) -> Tensor:
    """For every token the mean of the teacher's rows for the same letters."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    rows = torch.empty(len(tokens), words.shape[1])
    inside = other.get_vocab()
    for at, token in enumerate(tokens):
        text = tokenizer.convert_tokens_to_string([token.removesuffix("</w>")]).strip().lower()
        starts = token.endswith("</w>") or token[0] in "Ġ▁"
        if not starts and f"##{text}" in inside:
            ids = [inside[f"##{text}"]]
        else:
            ids = other(text, add_special_tokens=False).input_ids
        rows[at] = words[ids or [other.sep_token_id]].mean(0)
    return rows - words.mean(0)
