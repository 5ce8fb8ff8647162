"""The records of text encoders, and what they say of an encoder at hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
        embeddings=("embeddings.token_embedding", "text_model.embeddings.token_embedding"),
        file_embeddings="text_model.embeddings.token_embedding",
    ),
    EncoderFamily(
        classes=("BertModel",),
        blocks=("encoder.layer",),
        writer="output.dense",
        linears=(
            *(f"attention.self.{x}" for x in ("query", "key", "value")),
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        ),
        causal=False,
        detector="intermediate.dense",
        activation="intermediate.intermediate_act_fn",
        stream="output.LayerNorm",
        embeddings=("embeddings.word_embeddings",),
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
        detector="layer.1.DenseReluDense.wi_0",
        activation="layer.1.DenseReluDense.act",
        factor="layer.1.DenseReluDense.wi_1",
        embeddings=("encoder.embed_tokens", "shared"),
    ),
    EncoderFamily(
        classes=(
            "LlamaModel",
            "Qwen2Model",
            "LlamaForCausalLM",
            "LlavaForConditionalGeneration",
            "Qwen2VLForConditionalGeneration",
            "Qwen2_5_VLForConditionalGeneration",
            "Qwen2_5_VLTextModel",
            "Qwen3Model",
            "Qwen3ForCausalLM",
            "Qwen3VLModel",
            "Qwen3VLForConditionalGeneration",
            "MistralModel",
            "Mistral3Model",
            "Mistral3ForConditionalGeneration",
            "Ministral3Model",
            "SmolLM3Model",
            "SmolLM3ForCausalLM",
            "GemmaModel",
        ),
        blocks=(
            "layers",
            "model.layers",
            "language_model.layers",
            "model.language_model.layers",
        ),
        writer="mlp.down_proj",
        linears=LLAMA,
        detector="mlp.gate_proj",
        activation="mlp.act_fn",
        factor="mlp.up_proj",
        embeddings=(
            "embed_tokens",
            "model.embed_tokens",
            "language_model.embed_tokens",
            "model.language_model.embed_tokens",
        ),
    ),
    EncoderFamily(
        classes=("GlmModel",),
        blocks=("layers",),
        writer="mlp.down_proj",
        linears=(*ATTENTION, "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
        embeddings=("embed_tokens",),
    ),
    EncoderFamily(
        classes=(
            "Gemma2Model",
            "Gemma2ForCausalLM",
            "Gemma3TextModel",
            "Gemma3Model",
            "Gemma3ForConditionalGeneration",
        ),
        blocks=(
            "layers",
            "model.layers",
            "language_model.layers",
            "model.language_model.layers",
        ),
        writer=None,
        linears=LLAMA,
        embeddings=("embed_tokens", "model.embed_tokens", "model.language_model.embed_tokens"),
    ),
    EncoderFamily(  # Anima's: T5 ids that attend to the states of Qwen3
        classes=("AnimaTextConditioner",),
        blocks=("blocks",),
        writer=None,
        linears=(),
        causal=False,
        embeddings=("embed",),
        rows_only=True,
    ),
    EncoderFamily(
        classes=("T5GemmaEncoder", "T5Gemma2Encoder", "T5Gemma2TextEncoder"),
        blocks=("layers", "text_model.layers"),
        writer=None,
        linears=LLAMA,
        causal=False,
        embeddings=("embed_tokens", "text_model.embed_tokens"),
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


def embeddings_path(encoder: nn.Module) -> str:
    """The path of the token embedding inside a text encoder.

    Raises:
        UnknownFamilyError: It is at none of the record's paths.
    """
    paths = encoder_family_of(encoder).embeddings
    for path in paths:
        with suppress(AttributeError):
            encoder.get_submodule(path)
            return path
    raise UnknownFamilyError(
        f"{type(encoder).__name__} has no token embedding at {' or '.join(paths) or 'a known path'}"
        "; docs/families.md shows how to write its record"
    )


def take_neurons(encoders: Iterable[nn.Module | None], modules: Iterable[str]) -> bool:
    """Whether edits of these modules change what an MLP's neurons answer to, in an encoder.

    Gates and pairs of neurons do, by the linear that the activation follows; blocks and rows do
    not.

    Args:
        encoders: Those of a pipeline; one that is missing has no neurons.
        modules: Names, as in a file.
    """
    families = [encoder_family_of(encoder) for encoder in encoders if encoder is not None]
    endings = tuple(f".{family.detector}" for family in families if family.detector is not None)
    return any(name.endswith(endings) for name in modules)


def is_embedding(stored: str) -> bool:
    """Whether a module's name, live or in a file, is that of a token embedding."""
    for family in ENCODERS:
        if any(stored == path or stored.endswith(f".{path}") for path in family.embeddings):
            return True
    return False


def stored_name(component: str, module: str) -> str:
    """A module's name in a file; CLIP's are under `text_model.`, which every loader maps."""
    if component.startswith("text_encoder"):
        for family in ENCODERS:
            if family.file_embeddings and module in family.embeddings:
                return f"{component}.{family.file_embeddings}"
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
