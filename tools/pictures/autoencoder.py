"""The autoencoder of the pictures world: 64 px to 8 x 8 x 8, 3.3 M parameters.

    python tools/pictures/autoencoder.py FOLDER --seconds 4200

Trains on scenes as they are drawn and writes FOLDER/vae; goes on from FOLDER/vae where it is.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from scenes import Pictures, paste, plain
from torch import Tensor
from tqdm import tqdm

from diffusers_erasepro.pictures.judge import SIZE

BATCH = 32
RATE = 1.2e-3
STEPS_KEPT = 400
"""Steps between checkpoints."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=4200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    pictures = Pictures(args.folder)
    vae = started(args.folder / "vae").train()
    optimizer = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.99))
    began = time.monotonic()
    step = 0
    bar = tqdm(total=round(args.seconds), unit="s")
    while (past := (time.monotonic() - began) / args.seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 100) * max(0.05, 1 - past)
        x = batch(pictures, rng)
        posterior = vae.encode(x).latent_dist
        value = loss(x, vae.decode(posterior.sample()).sample, posterior.kl())
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        bar.update(round(past * args.seconds) - bar.n)
        bar.set_postfix(step=step, loss=f"{value.item():.4f}")
        if step % STEPS_KEPT == 0:
            vae.save_pretrained(args.folder / "vae")
    vae.save_pretrained(args.folder / "vae")


def started(folder: Path) -> AutoencoderKL:
    """The one in the folder, or a new one."""
    if (folder / "config.json").exists():
        return AutoencoderKL.from_pretrained(folder).float()
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=16,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def batch(pictures: Pictures, rng: random.Random) -> Tensor:
    """Scenes of one thing (two thirds of the batches) or of two, `(n, 3, 64, 64)` in -1..1."""
    canvas = plain(torch.randint(8, (BATCH,)).tolist())
    if rng.random() < 1 / 3:
        for left in (0, 32):
            paste(canvas, anything(pictures), 32, rng.randint(0, 32), left)
    else:
        size = rng.choice((44, 48, 52, 56, 60, 64))
        top = rng.randint(0, SIZE - size)
        paste(canvas, anything(pictures), size, top, rng.randint(0, SIZE - size))
    return canvas / 127.5 - 1


def anything(pictures: Pictures) -> Tensor:
    return pictures.rgba[torch.randint(len(pictures.rgba), (BATCH,))]


def loss(x: Tensor, y: Tensor, kl: Tensor) -> Tensor:
    """L1 at three scales and of the edges, and a little KL."""
    error = y - x
    scales = sum(F.avg_pool2d(error, k).abs().mean() for k in (2, 4))
    across = (error[..., 1:] - error[..., :-1]).abs().mean()
    down = (error[:, :, 1:] - error[:, :, :-1]).abs().mean()
    return error.abs().mean() + 0.5 * scales + 0.5 * (across + down) + 1e-4 * kl.mean() / 512


if __name__ == "__main__":
    main()
