"""The records of text encoders, and what they say of an encoder at hand."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from torch import nn

from ..errors import UnknownFamilyError
from .types import EncoderFamily, Reading, find_record

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
LLAMA = (*ATTENTION, "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

ENCODERS: list[EncoderFamily] = [
    EncoderFamily(
        classes=("CLIPTextModel", "CLIPTextModelWithProjection"),
        blocks=("encoder.layers", "text_model.encoder.layers"),
        writer="mlp.fc2",
        linears=(*ATTENTION, "self_attn.out_proj", "mlp.fc1", "mlp.fc2"),
        detector="mlp.fc1",
        activation="mlp.activation_fn",
        trees=True,
        padding_row="self_attn.out_proj",
        final_norm=("final_layer_norm", "text_model.final_layer_norm"),
        file_blocks="text_model.encoder.layers",
    ),
    EncoderFamily(
        classes=("T5EncoderModel", "UMT5EncoderModel"),
        blocks=("encoder.block",),
        writer="layer.1.DenseReluDense.wo",
        linears=(
            *(f"layer.0.SelfAttention.{x}" for x in "qkvo"),
            *(f"layer.1.DenseReluDense.{x}" for x in ("wi", "wi_0", "wi_1", "wo")),
        ),
        causal=False,
    ),
    EncoderFamily(
        classes=(
            "LlamaModel",
            "Qwen2Model",
            "Qwen2_5_VLForConditionalGeneration",
            "Qwen3Model",
            "Qwen3ForCausalLM",
            "MistralModel",
            "Mistral3ForConditionalGeneration",
        ),
        blocks=("layers", "model.layers", "model.language_model.layers"),
        writer="mlp.down_proj",
        linears=LLAMA,
    ),
    EncoderFamily(
        classes=("Gemma2Model", "Gemma2ForCausalLM"),
        blocks=("layers", "model.layers"),
        writer=None,
        linears=LLAMA,
    ),
]
"""Shipped records; `pipelines.register` puts others in front of them."""


def encoder_family_of(encoder: object) -> EncoderFamily:
    """The record of a text encoder.

    Raises:
        UnknownFamilyError: It has none.
    """
    return find_record(encoder, ENCODERS, "classes", "text-encoder family")


def blocks_of(encoder: nn.Module) -> nn.ModuleList:
    """The transformer blocks of a text encoder, shallow to deep."""
    return encoder.get_submodule(blocks_path(encoder))  # type: ignore[return-value]


def blocks_path(encoder: nn.Module) -> str:
    """The path of the block list inside a text encoder.

    Raises:
        UnknownFamilyError: It is at none of the record's paths.
    """
    names = {name for name, _ in encoder.named_modules()}
    paths = encoder_family_of(encoder).blocks
    for path in paths:
        if path in names:
            return path
    raise UnknownFamilyError(
        f"{type(encoder).__name__} has no block list at {' or '.join(paths)}; "
        "docs/families.md shows how to write its record"
    )


def blocks_read(encoder: nn.Module, readings: Sequence[Reading]) -> list[int]:
    """The blocks whose output a denoiser reads; what lies deeper than the last has no effect.

    Raises:
        UnknownFamilyError: The encoder has fewer blocks than the pipeline reads.
    """
    count = len(blocks_of(encoder))
    found = sorted({reading.block(count) for reading in readings})
    if not 0 <= found[0] <= found[-1] < count:
        raise UnknownFamilyError(
            f"{type(encoder).__name__} has {count} blocks, too few to read "
            f"{', '.join(map(str, readings))}"
        )
    return found


def final_norm_of(encoder: nn.Module) -> nn.Module:
    """The norm behind the last block.

    Raises:
        UnknownFamilyError: The record names none that is there.
    """
    paths = encoder_family_of(encoder).final_norm
    for path in paths:
        with suppress(AttributeError):
            return encoder.get_submodule(path)
    raise UnknownFamilyError(
        f"{type(encoder).__name__} has no final norm at {' or '.join(paths) or 'a known path'}, so "
        "what clip_skip reads of it is not known; see docs/families.md"
    )


def stored_name(component: str, module: str) -> str:
    """A module's name in a file; CLIP blocks are under `text_model.`, which every loader maps."""
    if component.startswith("text_encoder"):
        for family in ENCODERS:
            for path in sorted(family.blocks, key=len) if family.file_blocks else ():
                if module.startswith(f"{path}."):
                    return f"{component}.{family.file_blocks}{module.removeprefix(path)}"
    return f"{component}.{module}"


def live_name(root: nn.Module, stored: str) -> str | None:
    """The name in `root` of a module that a file calls `stored`; None if `root` has no such one."""
    for name in (stored, stored.removeprefix("text_model."), f"text_model.{stored}"):
        with suppress(AttributeError):
            root.get_submodule(name)
            return name
    return None
