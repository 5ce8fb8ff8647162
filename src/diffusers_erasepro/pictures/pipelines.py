"""Both pipelines of the pictures world, put together from stock classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

from ..errors import ErasureError
from .encoder import load_encoder, load_tokenizer
from .world import folder


def assembled(kind: str) -> Any:
    """The pipeline of this kind, in float32, without a progress bar."""
    if kind not in DENOISERS:
        known = ", ".join(map(repr, DENOISERS))
        raise ErasureError(f"the pictures world has no pipeline {kind!r}; it has {known}")
    pipe = DENOISERS[kind](folder())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _unet(files: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=_part(AutoencoderKL, files / "vae"),
        text_encoder=load_encoder(),
        tokenizer=load_tokenizer(),
        unet=_part(UNet2DConditionModel, files / "unet"),
        scheduler=DDIMScheduler.from_pretrained(files / "unet_scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _dit(files: Path) -> AuraFlowPipeline:
    return AuraFlowPipeline(
        vae=_part(AutoencoderKL, files / "vae"),
        text_encoder=load_encoder(),
        tokenizer=load_tokenizer(),
        transformer=_part(AuraFlowTransformer2DModel, files / "transformer"),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(files / "transformer_scheduler"),
    )


def _part(cls: Any, files: Path) -> Any:
    if not files.is_dir():
        raise ErasureError(
            f"this build of the pictures world has no {files.name!r}; update "
            "diffusers-erasepro-pictures"
        )
    return cls.from_pretrained(files, local_files_only=True).float().eval()


DENOISERS: dict[str, Callable[[Path], Any]] = {"unet": _unet, "dit": _dit}
