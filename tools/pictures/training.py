"""One training loop for both denoisers: seeded, resumable, limited in time, with progress."""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

UNCONDITIONAL = 0.1
"""Share of captions replaced by "", for classifier-free guidance."""
DECAY = 0.998
"""Of the moving average of the weights, which is what draws."""
SAVE_EVERY = 240.0
"""Seconds between checkpoints."""


@dataclass(frozen=True)
class Batch:
    """Latents scaled to unit variance, and what their captions say."""

    latents: Tensor
    """`(n, 8, 8, 8)`"""
    states: Tensor
    """`(n, 32, 384)`"""
    masks: Tensor
    """`(n, 32)` bool, which states are text."""


class Scenes:
    """What `latents.py` made, drawn from at random."""

    def __init__(self, file: Path) -> None:
        kept = torch.load(file)
        self.latents: Tensor = kept["latents"]
        self.states: Tensor = kept["states"]
        self.masks: Tensor = kept["masks"]
        self.scale: float = kept["scale"]

    def batch(self, n: int) -> Batch:
        """`n` scenes, a tenth of them with the empty caption, the last of the states."""
        rows = torch.randint(len(self.latents), (n,))
        said = torch.where(torch.rand(n) < UNCONDITIONAL, len(self.states) - 1, rows)
        latents = self.latents[rows].float() * self.scale
        return Batch(latents, self.states[said].float(), self.masks[said])


Loss = Callable[[nn.Module, Batch], Tensor]


def arguments(description: str, *, rate: float) -> argparse.Namespace:
    """What both denoisers' commands are asked."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path, help="holds latents.pt, takes the checkpoint")
    parser.add_argument("--seconds", type=float, default=6000, help="of training, resumed ones too")
    parser.add_argument("--start", type=Path, help="safetensors to begin from without a checkpoint")
    parser.add_argument("--only", default="", help="train weights with this in their name alone")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=rate)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


class Training:
    """A denoiser on its way: weights, their average, the optimizer, and how long it has run."""

    def __init__(self, model: nn.Module, checkpoint: Path, args: argparse.Namespace) -> None:
        self.model = model
        self.checkpoint = checkpoint
        for name, weight in model.named_parameters():
            weight.requires_grad_(args.only in name)
        self.trained = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.step = 0
        self.seconds = 0.0
        if args.start and not checkpoint.exists():
            model.load_state_dict(load_file(args.start))
        self.average = copy.deepcopy(model).requires_grad_(False)
        if checkpoint.exists():
            self._resume()

    def _resume(self) -> None:
        kept = torch.load(self.checkpoint)
        self.model.load_state_dict(kept["model"])
        self.average.load_state_dict(kept["average"])
        # moments of other weights than those trained now are of no use
        if len(kept["optimizer"]["param_groups"][0]["params"]) == len(self.trained):
            self.optimizer.load_state_dict(kept["optimizer"])
        self.step = kept["step"]
        self.seconds = kept["seconds"]

    def save(self) -> None:
        """Replaces the checkpoint in one move, so that a kill leaves a whole one."""
        new = self.checkpoint.with_suffix(".new")
        kept = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(kept, new)
        os.replace(new, self.checkpoint)

    def run(self, scenes: Scenes, loss: Loss, args: argparse.Namespace) -> None:
        """Steps until `args.seconds` of training have passed, those before a resume included."""
        torch.manual_seed(args.seed + self.step)
        mean = None
        saved = time.monotonic()
        bar = tqdm(total=round(args.seconds), initial=round(self.seconds), unit="s")
        while self.seconds < args.seconds:
            began = time.monotonic()
            rate = args.rate * rate_factor(self.step, self.seconds / args.seconds)
            value = self._step(loss, scenes.batch(args.batch), rate)
            mean = value if mean is None else 0.98 * mean + 0.02 * value
            self.seconds += time.monotonic() - began
            bar.update(round(self.seconds) - bar.n)
            bar.set_postfix(step=self.step, loss=f"{mean:.4f}", rate=f"{rate:.1e}")
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        bar.close()
        self.save()

    def _step(self, loss: Loss, batch: Batch, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        value = loss(self.model, batch)
        self.optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(DECAY, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for kept, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
                kept.lerp_(now, 1 - decay)
        return value.item()


def rate_factor(step: int, past: float) -> float:
    """A short rise, a plateau, and a straight fall over the last two fifths of the time."""
    rise = min(1.0, (step + 1) / 100)
    fall = min(1.0, max(0.02, (1 - past) / 0.4))
    return rise * fall
