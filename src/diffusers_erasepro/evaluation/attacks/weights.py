"""Attacks that train the victim's weights."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from peft import LoraConfig
from PIL import Image
from torch import Tensor

from .denoising import denoising_losses
from .siege import Siege


def relearn(
    siege: Siege, *, steps: int = 40, rank: int = 4, rate: float = 2e-3
) -> list[Image.Image]:
    """A LoRA on the victim's cross-attention, trained on a few images of the concept.

    Args:
        siege: Its victim stays as it is; a copy of the denoiser is trained.
        steps: Batches.
        rank: Of the LoRA.
        rate: Learning rate.
    """
    named = siege.states(siege.victim, siege.prompts)
    mean = named[: len(siege.latents)].mean(0, keepdim=True)
    trained = copy.copy(siege.victim)
    trained.unet = copy.deepcopy(siege.victim.unet)
    trained.unet.requires_grad_(False)
    trained.unet.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=r".*attn2\.(to_q|to_k|to_v|to_out\.0)",
            init_lora_weights=True,
        )
    )
    parameters = [p for p in trained.unet.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=rate)
    learner = replace(siege, victim=trained)

    def states(n: int) -> Tensor:
        return mean.expand(n, -1, -1)

    torch.manual_seed(siege.seed)
    for loss in denoising_losses(learner, siege.latents, states, steps):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return learner.generate(siege.prompts)
