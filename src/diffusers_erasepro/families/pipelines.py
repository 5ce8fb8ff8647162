"""The records of pipelines, and what they say of a pipeline at hand."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from torch import nn

from ..errors import AdapterStateError
from ..modules.linear import unwrapped
from .encoders import ENCODERS
from .types import LAST, EncoderFamily, PipelineFamily, Reading, Use, find_record

NEXT_TO_LAST = Reading("hidden_states", -2)
CLIP_LAST = replace(LAST, skips=True)
CLIP_NEXT_TO_LAST = replace(NEXT_TO_LAST, skips=True)
POOLER = Reading("pooler_output")
PROJECTED = Reading("text_embeds")
CLIP_UNET = r"\.attn2\.to_[kv]$"
SPATIAL_UNET = r"\.attentions\..+" + CLIP_UNET
"""The attn2 of motion modules attends to frames, not to text."""
CONTEXT = r"^context_embedder$"
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
        encoders=_single_encoder(Reading("hidden_states", -1)),
        denoiser="transformer",
        stock=("transformer",),
    ),
    PipelineFamily(
        pipelines=(
            "ZImagePipeline",
            "ZImageImg2ImgPipeline",
            "ZImageInpaintPipeline",
            "ZImageControlNetPipeline",
        ),
        encoders=_single_encoder(NEXT_TO_LAST),
        denoiser="transformer",
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


def register(*records: EncoderFamily | PipelineFamily) -> None:
    """Make records known, before the shipped ones; `docs/families.md` shows how to write one."""
    for record in records:
        table: list[Any] = PIPELINES if isinstance(record, PipelineFamily) else ENCODERS
        table.insert(0, record)


def family_of(pipe: object) -> PipelineFamily:
    """The record of a pipeline, found by its class or a base class.

    Raises:
        UnknownFamilyError: It has none.
    """
    return find_record(pipe, PIPELINES, "pipelines", "pipeline family")


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
