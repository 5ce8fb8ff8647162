"""How badly a victim predicts the noise in images of the concept: what attacks minimise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import trange

from .siege import Siege


def denoising_losses(
    siege: Siege, latents: Tensor, states: Callable[[int], Tensor], steps: int, batch: int = 8
) -> Iterator[Tensor]:
    """The victim's loss on one random batch after the other.

    Args:
        siege: Whose victim and seed.
        latents: `(n, c, h, w)` clean latents to choose from.
        states: Batch size -> text states `(batch, length, d)`, as they are at that step.
        steps: How many batches.
        batch: Latents per batch.
    """
    rng = torch.Generator().manual_seed(siege.seed)
    scheduler = siege.victim.scheduler
    last = scheduler.config.num_train_timesteps
    for _ in trange(steps, desc="learn", leave=False, delay=2):
        x = latents[torch.randint(len(latents), (batch,), generator=rng)]
        noise = torch.randn(x.shape, generator=rng, dtype=torch.float32).to(x)
        t = torch.randint(last, (batch,), generator=rng).to(x.device)
        noisy = scheduler.add_noise(x, noise, t)
        predicted = siege.victim.unet(noisy, t, encoder_hidden_states=states(batch)).sample
        yield (predicted - denoising_target(scheduler, x, noise, t)).square().mean()


def denoising_target(scheduler: Any, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the denoiser should predict: the noise, or the velocity."""
    if scheduler.config.prediction_type == "epsilon":
        return noise
    return scheduler.get_velocity(x, noise, t)
