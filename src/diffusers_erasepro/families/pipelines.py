"""The records of pipelines, and what they say of a pipeline at hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ..errors import AdapterStateError, UnknownFamilyError
from ..modules.linear import unwrapped
from .encoders import ENCODERS, encoder_family_of
from .observe import PADDING, notes_on_rewriting, observe
from .types import (
    LAST,
    DenoiserFamily,
    EncoderFamily,
    PipelineFamily,
    Reading,
    Use,
    find_record,
)

FLAG_OF_MASK = "use_attention_mask"
"""Of a text encoder's configuration."""
NEXT_TO_LAST = Reading("hidden_states", -2)
CLIP_LAST = replace(LAST, skips=True)
CLIP_NEXT_TO_LAST = replace(NEXT_TO_LAST, skips=True)
POOLER = Reading("pooler_output")
PROJECTED = Reading("text_embeds")
CLIP_UNET = r"\.attn2\.to_[kv]$"
SPATIAL_UNET = r"\.attentions\..+" + CLIP_UNET
"""The attn2 of motion modules attends to frames, not to text."""
CONTEXT = r"^context_embedder$"
QWEN_TEXT = r"^txt_in$"
Z_TEXT = r"^cap_embedder\.1$"
CAPTION = r"^caption_projection\.linear_1$"


def _single_encoder(*readings: Reading) -> tuple[Use, ...]:
    return (Use("text_encoder", "tokenizer", readings),)


PIPELINES: list[PipelineFamily] = [
    PipelineFamily(
        pipelines=(
            "StableDiffusionPipeline",
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionInpaintPipeline",
            "StableDiffusionControlNetPipeline",
            "StableDiffusionControlNetImg2ImgPipeline",
            "StableDiffusionControlNetInpaintPipeline",
        ),
        encoders=_single_encoder(CLIP_LAST),
        denoiser="unet",
        readers=CLIP_UNET,
        stock=("unet", "text_encoder"),
    ),
    PipelineFamily(
        pipelines=("AnimateDiffPipeline",),
        encoders=_single_encoder(CLIP_LAST),
        denoiser="unet",
        readers=SPATIAL_UNET,
        stock=("unet", "text_encoder"),
        frames=8,
    ),
    PipelineFamily(
        pipelines=(
            "StableDiffusionXLPipeline",
            "StableDiffusionXLImg2ImgPipeline",
            "StableDiffusionXLInpaintPipeline",
            "StableDiffusionXLControlNetPipeline",
            "StableDiffusionXLControlNetImg2ImgPipeline",
            "StableDiffusionXLControlNetInpaintPipeline",
            "StableDiffusionXLControlNetUnionPipeline",
        ),
        encoders=(
            Use("text_encoder", "tokenizer", (CLIP_NEXT_TO_LAST,)),
            Use("text_encoder_2", "tokenizer_2", (CLIP_NEXT_TO_LAST, PROJECTED)),
        ),
        denoiser="unet",
        stock=("unet", "text_encoder", "text_encoder_2"),
    ),
    PipelineFamily(
        pipelines=(
            "StableDiffusion3Pipeline",
            "StableDiffusion3Img2ImgPipeline",
            "StableDiffusion3InpaintPipeline",
            "StableDiffusion3ControlNetPipeline",
            "StableDiffusion3ControlNetInpaintingPipeline",
        ),
        encoders=(
            Use("text_encoder", "tokenizer", (CLIP_NEXT_TO_LAST, PROJECTED)),
            Use("text_encoder_2", "tokenizer_2", (CLIP_NEXT_TO_LAST, PROJECTED)),
            Use("text_encoder_3", "tokenizer_3", (LAST,)),
        ),
        denoiser="transformer",
        stock=("transformer", "text_encoder", "text_encoder_2"),
    ),
    PipelineFamily(
        pipelines=(
            "FluxPipeline",
            "FluxImg2ImgPipeline",
            "FluxInpaintPipeline",
            "FluxFillPipeline",
            "FluxKontextPipeline",
            "FluxKontextInpaintPipeline",
            "FluxControlPipeline",
            "FluxControlNetPipeline",
        ),
        encoders=(
            Use("text_encoder", "tokenizer", (POOLER,)),
            Use("text_encoder_2", "tokenizer_2", (LAST,)),
        ),
        denoiser="transformer",
        readers=CONTEXT,
        stock=("transformer", "text_encoder"),
    ),
    PipelineFamily(
        pipelines=("Flux2Pipeline",),
        encoders=_single_encoder(*(Reading("hidden_states", i) for i in (10, 20, 30))),
        denoiser="transformer",
        stock=("transformer",),
    ),
    PipelineFamily(
        pipelines=("Flux2KleinPipeline", "Flux2KleinInpaintPipeline"),
        encoders=_single_encoder(*(Reading("hidden_states", i) for i in (9, 18, 27))),
        denoiser="transformer",
        stock=("transformer",),
        notes=(PADDING.format("text_encoder"),),
    ),
    PipelineFamily(  # no ControlNet: it would read the prompt beside the denoiser
        pipelines=("SanaPipeline", "SanaSprintPipeline"),
        encoders=_single_encoder(LAST),
        denoiser="transformer",
        readers=CAPTION,
        stock=("transformer",),
    ),
    PipelineFamily(  # Gemma-2 as Sana, and a norm in between
        pipelines=("Lumina2Pipeline",),
        encoders=_single_encoder(
            replace(NEXT_TO_LAST, norm="time_caption_embed.caption_embedder.0")
        ),
        denoiser="transformer",
        readers=r"^time_caption_embed\.caption_embedder\.1$",
        stock=("transformer",),
    ),
    PipelineFamily(
        pipelines=("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
        encoders=_single_encoder(LAST),
        denoiser="transformer",
        readers=CAPTION,
    ),
    PipelineFamily(
        pipelines=(
            "AuraFlowPipeline",
            "ChromaPipeline",
            "ChromaImg2ImgPipeline",
            "ChromaInpaintPipeline",
        ),
        encoders=_single_encoder(LAST),
        denoiser="transformer",
        readers=CONTEXT,
        stock=("transformer",),
    ),
    PipelineFamily(
        pipelines=(
            "QwenImagePipeline",
            "QwenImageImg2ImgPipeline",
            "QwenImageInpaintPipeline",
            "QwenImageControlNetPipeline",
        ),
        encoders=_single_encoder(Reading("hidden_states", -1, norm="txt_norm")),
        denoiser="transformer",
        readers=QWEN_TEXT,
        stock=("transformer",),
    ),
    PipelineFamily(
        pipelines=(
            "ZImagePipeline",
            "ZImageImg2ImgPipeline",
            "ZImageInpaintPipeline",
            "ZImageControlNetPipeline",
        ),
        encoders=_single_encoder(replace(NEXT_TO_LAST, norm="cap_embedder.0")),
        denoiser="transformer",
        readers=Z_TEXT,
        stock=("transformer",),
    ),
    PipelineFamily(
        pipelines=("HunyuanVideoPipeline", "HunyuanVideoFramepackPipeline"),
        encoders=(
            Use("text_encoder", "tokenizer", (Reading("hidden_states", -3),)),
            Use("text_encoder_2", "tokenizer_2", (POOLER,)),
        ),
        denoiser="transformer",
        readers=r"^context_embedder\.(proj_in|time_text_embed\.text_embedder\.linear_1)$",
        stock=("transformer",),
    ),
    PipelineFamily(  # Wan 2.2 has two denoisers
        pipelines=(
            "WanPipeline",
            "WanImageToVideoPipeline",
            "WanVideoToVideoPipeline",
            "WanVACEPipeline",
        ),
        encoders=_single_encoder(LAST),
        denoiser="transformer",
        stock=("transformer",),
    ),
    PipelineFamily(
        pipelines=("MochiPipeline",),
        encoders=_single_encoder(LAST),
        denoiser="transformer",
        readers=r"^time_embed\.(caption_proj|pooler\.to_(kv|q))$",
        stock=("transformer",),
    ),
    PipelineFamily(
        pipelines=("LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline"),
        encoders=_single_encoder(LAST),
        denoiser="transformer",
        readers=CAPTION,
        stock=("transformer",),
    ),
    PipelineFamily(
        pipelines=(
            "CogVideoXPipeline",
            "CogVideoXImageToVideoPipeline",
            "CogVideoXVideoToVideoPipeline",
        ),
        encoders=_single_encoder(LAST),
        denoiser="transformer",
        readers=r"^patch_embed\.text_proj$",
        stock=("transformer",),
    ),
]
"""Shipped records; `register` puts others in front of them.

Linears that text and image tokens share (Flux single blocks, CogVideoX, Z-Image) match no
`readers`: an edit of them would touch image tokens. There the encoders carry the erasure.
"""

DENOISER_FAMILIES: list[DenoiserFamily] = [
    DenoiserFamily(("UNet2DConditionModel",), CLIP_UNET),
    DenoiserFamily(("UNetMotionModel",), SPATIAL_UNET, frames=8),
    DenoiserFamily(("FluxTransformer2DModel", "AuraFlowTransformer2DModel"), CONTEXT),
    DenoiserFamily(("ChromaTransformer2DModel",), CONTEXT),
    DenoiserFamily(("SanaTransformer2DModel", "SanaVideoTransformer3DModel"), CAPTION),
    DenoiserFamily(("PixArtTransformer2DModel", "LTXVideoTransformer3DModel"), CAPTION),
    DenoiserFamily(("PRXTransformer2DModel",), r"^txt_in$"),
    DenoiserFamily(("QwenImageTransformer2DModel",), QWEN_TEXT, norm="txt_norm"),
    DenoiserFamily(("ZImageTransformer2DModel",), Z_TEXT, norm="cap_embedder.0"),
    DenoiserFamily(("SanaWMTransformer3DModel",), r"^y_embedder\.y_proj\.fc1$"),
    DenoiserFamily(("MotifVideoTransformer3DModel",), r"^context_embedder\.linear_1$"),
    DenoiserFamily(
        ("Lumina2Transformer2DModel",),
        r"^time_caption_embed\.caption_embedder\.1$",
        norm="time_caption_embed.caption_embedder.0",
    ),
    DenoiserFamily(
        ("HunyuanVideoTransformer3DModel",),
        r"^context_embedder\.(proj_in|time_text_embed\.text_embedder\.linear_1)$",
    ),
    DenoiserFamily(("MochiTransformer3DModel",), r"^time_embed\.(caption_proj|pooler\.to_(kv|q))$"),
    DenoiserFamily(("CogVideoXTransformer3DModel",), r"^patch_embed\.text_proj$"),
]
"""What reads the text states, of pipelines that are observed; a denoiser without a record is read
by nothing that `layers="kv"` may edit."""

DENOISER_NAMES = ("transformer", "unet", "prior", "decoder")
"""What pipelines call the component that reads the text states, the usual ones first."""

_OBSERVED: WeakKeyDictionary[Any, tuple[tuple[object, ...], PipelineFamily]] = WeakKeyDictionary()
"""Per pipeline, what was observed, and with which components."""


def register(*records: EncoderFamily | PipelineFamily) -> None:
    """Make records known, before the shipped ones; `docs/families.md` shows how to write one."""
    for record in records:
        table: list[Any] = PIPELINES if isinstance(record, PipelineFamily) else ENCODERS
        table.insert(0, record)


def family_of(pipe: Any) -> PipelineFamily:
    """What a pipeline reads of its text encoders.

    As a record says, found by its class or a base class whose `encode_prompt` it has; of any other,
    as `observe` finds. A record spares the run of the encoders.

    Raises:
        UnknownFamilyError: It cannot be observed, or its `encode_prompt` is not explained.
        AdapterStateError: Its `encode_prompt` does not run.
    """
    with suppress(UnknownFamilyError):
        record = find_record(pipe, PIPELINES, "pipelines", "pipeline family")
        if _encodes_as_recorded(type(pipe), record):
            notes = (*notes_on_rewriting(pipe), *_notes_on_masks(pipe, record))
            return replace(record, notes=(*record.notes, *notes)) if notes else record
    return observed_family_of(pipe)


def _encodes_as_recorded(cls: type, record: PipelineFamily) -> bool:
    """Whether a class has the `encode_prompt` of the base that a record names."""
    bases = [base for base in cls.__mro__ if base.__name__ in record.pipelines]
    own = getattr(cls, "encode_prompt", None)
    return any(getattr(base, "encode_prompt", None) is own for base in bases[-1:])


def _notes_on_masks(pipe: Any, record: PipelineFamily) -> list[str]:
    """The encoders that mask their padding by their configuration, which the denoiser reads.

    Stable Diffusion's `encode_prompt` masks the padding where `config.use_attention_mask` is set,
    as around a BERT, and gives the denoiser the states of all positions, without a mask.
    """
    base = [cls for cls in type(pipe).__mro__ if cls.__name__ in record.pipelines][-1]
    own = getattr(base, "encode_prompt", None)
    if own is None or FLAG_OF_MASK not in own.__code__.co_names:
        return []
    encoders = {use.encoder: getattr(pipe, use.encoder, None) for use in record.encoders}
    return [
        PADDING.format(name)
        for name, encoder in encoders.items()
        if getattr(getattr(encoder, "config", None), FLAG_OF_MASK, False)
    ]


def observed_family_of(pipe: Any) -> PipelineFamily:
    """What is observed of a pipeline; once, as long as its components stay.

    Raises:
        UnknownFamilyError: It cannot be observed, or its `encode_prompt` is not explained.
        AdapterStateError: Its `encode_prompt` does not run.
    """
    components = getattr(pipe, "components", None)
    if not isinstance(components, Mapping):
        raise UnknownFamilyError(
            f"{type(pipe).__name__} is not a pipeline: it has no components; hand in a "
            "DiffusionPipeline"
        )
    key = tuple(map(id, components.values()))
    known = _OBSERVED.get(pipe)
    if known is None or known[0] != key:
        known = (key, _observe_family(pipe, components))
        _OBSERVED[pipe] = known
    return known[1]


def _observe_family(pipe: Any, components: Mapping[str, Any]) -> PipelineFamily:
    seen = observe(pipe)
    denoiser = next((n for n in DENOISER_NAMES if isinstance(components.get(n), nn.Module)), "")
    uses = seen.uses
    record = None
    if sum(use.per_position for use in uses) == 1:
        record = _denoiser_record(pipe, denoiser, {use.encoder for use in uses})
    if record is not None and record.norm is not None:
        uses = tuple(use._replace(readings=_behind(use, record.norm)) for use in uses)
    return PipelineFamily(
        pipelines=(type(pipe).__name__,),
        encoders=uses,
        denoiser=denoiser,
        readers=None if record is None else record.readers,
        stock=_stock_parts(pipe, denoiser, uses),
        frames=None if record is None else record.frames,
        notes=seen.notes,
    )


def _behind(use: Use, norm: str) -> tuple[Reading, ...]:
    """The readings, with the denoiser's norm behind those of every position."""
    return tuple(r if r.pooled else replace(r, norm=norm) for r in use.readings)


def _denoiser_record(pipe: Any, denoiser: str, encoders: set[str]) -> DenoiserFamily | None:
    """The record of the denoiser, if nothing beside it may read the prompt too."""
    if not denoiser:
        return None
    module = get_component(pipe, denoiser)
    for name, other in pipe.components.items():
        mixed = hasattr(other, "save_pretrained") and isinstance(other, nn.Module)
        if not mixed or name in {denoiser, *encoders}:
            continue
        if not any(part in name for part in ("vae", "vqvae", "image_encoder", "safety", "motion")):
            return None
    with suppress(UnknownFamilyError):
        record = find_record(module, DENOISER_FAMILIES, "classes", "denoiser")
        pattern = re.compile(record.readers)
        if any(pattern.search(name) for name, _ in module.named_modules()):
            return record
    return None


def _stock_parts(pipe: Any, denoiser: str, uses: tuple[Use, ...]) -> tuple[str, ...]:
    """What stock `load_lora_weights` reaches: of text encoders, only CLIP (diffusers 0.42)."""
    loadable = getattr(type(pipe), "_lora_loadable_modules", ())
    found = [denoiser] if denoiser in loadable else []
    for use in uses:
        family = encoder_family_of(get_component(pipe, use.encoder))
        if use.encoder in loadable and family.file_blocks is not None:
            found.append(use.encoder)
    return tuple(found)


def get_component(pipe: Any, name: str) -> nn.Module:
    """A component of the pipeline, below a `torch.compile` wrapper.

    Raises:
        AdapterStateError: The pipeline was loaded without it.
    """
    module = getattr(pipe, name, None)
    if not isinstance(module, nn.Module):  # a deleted one leaves its config entry
        raise AdapterStateError(
            f"the pipeline's {name} is None; load the pipeline with its {name} to erase there"
        )
    return unwrapped(module)


def reader_paths(denoiser: nn.Module, family: PipelineFamily) -> list[str]:
    """Module names of the linears that read the text states; PEFT wrappers keep those names."""
    pattern = re.compile(family.readers or r"(?!)")
    return [name for name, _ in denoiser.named_modules() if pattern.search(name)]
