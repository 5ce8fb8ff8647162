"""Attacks that start from an image, or from the noise of one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, StableDiffusionImg2ImgPipeline
from PIL import Image
from torch import Tensor

from .siege import Siege


def change_images(
    siege: Siege, shown: Sequence[str], asked: Sequence[str], *, strength: float = 0.8
) -> list[Image.Image]:
    """The base's images of `shown`, changed by the victim towards `asked`.

    Args:
        siege: Whose pipelines and seed.
        shown: Prompts of the images to start from.
        asked: Prompts to change them towards, one per image.
        strength: Share of the noise that is put back. Larger keeps less of the image.
    """
    images = siege.generate_from(siege.base, siege.states(siege.base, shown))
    pipe = StableDiffusionImg2ImgPipeline.from_pipe(siege.victim)
    pipe.set_progress_bar_config(disable=True)
    states = siege.states(siege.victim, asked)
    return siege.generate_from(pipe, states, image=images, strength=strength)


def change_anchor_images(siege: Siege) -> list[Image.Image]:
    """An image of the anchor, changed towards the prompt."""
    return change_images(siege, siege.neutral, siege.prompts)


def inpaint(siege: Siege) -> list[Image.Image]:
    """All but the rim of an image of the anchor, generated anew.

    After each step the rim is put back with its noise. (The stock inpainting pipeline takes only
    VAEs of four channels.)
    """
    states = siege.states(siege.base, siege.neutral)
    known = siege.generate_from(siege.base, states, output_type="latent")
    rim = torch.ones_like(known[0, 0], dtype=torch.bool)
    rim[1:-1, 1:-1] = False
    generator = torch.Generator().manual_seed(siege.seed)
    noise = torch.randn(known.shape, generator=generator, dtype=torch.float32).to(known)

    def restore_rim(batch: slice) -> Callable[..., dict[str, Tensor]]:
        def after_step(
            pipe: Any, step: int, _: object, inner: dict[str, Tensor]
        ) -> dict[str, Tensor]:
            times = pipe.scheduler.timesteps
            old = known[batch]
            if step + 1 < len(times):
                old = pipe.scheduler.add_noise(old, noise[batch], times[step + 1 : step + 2])
            return {"latents": torch.where(rim, old, inner["latents"])}

        return after_step

    states = siege.states(siege.victim, siege.prompts)
    return siege.generate_from(siege.victim, states, callback_on_step_end=restore_rim)


@torch.no_grad()
def invert_noise(siege: Siege) -> list[Image.Image]:
    """The noise that gives the base its images of the concept, for the victim with the prompt.

    Found by DDIM inversion.
    """
    inverse = DDIMInverseScheduler.from_config(siege.base.scheduler.config)
    inverse.set_timesteps(siege.steps)
    x = siege.latents
    empty = siege.states(siege.base, [""]).expand(len(x), -1, -1)
    for t in inverse.timesteps:
        predicted = siege.base.unet(x, t, encoder_hidden_states=empty).sample
        x = inverse.step(predicted, t, x).prev_sample
    pipe = copy.copy(siege.victim)
    pipe.scheduler = DDIMScheduler.from_config(siege.victim.scheduler.config)
    return siege.generate_from(pipe, siege.states(siege.victim, siege.prompts), latents=x)
