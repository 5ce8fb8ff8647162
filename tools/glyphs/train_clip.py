"""Train the glyph world's CLIP: `python tools/glyphs/train_clip.py --to
src/diffusers_erasepro/glyphs/weights`.

Renders and their captions, no labels. Resumes from its newest checkpoint; started again, it goes
on or is done.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from diffusers_erasepro.glyphs import load_pipeline
from diffusers_erasepro.glyphs.clip import ClipNet, at_eos
from diffusers_erasepro.glyphs.render import render
from diffusers_erasepro.glyphs.world import FIRST
from train import WIDTH, Run, channels_last, commit, fit, stamp, to_tensor

BATCH = 96


def train(run: Run, still: Any) -> ClipNet:
    """Each render's own caption among all of the batch, and the other way (CLIP's loss)."""
    torch.manual_seed(run.seed + 5)
    net = channels_last(ClipNet(WIDTH))

    def step(i: int) -> Tensor:
        rng = run.rng(10, i)
        triples = [run.scene_pair(rng) for _ in range(BATCH)]
        pixels = to_tensor(np.stack([render(run.world, scene, rng) for _, _, scene in triples]))
        pixels = (pixels + 0.1 * rng.random() * torch.randn_like(pixels)).clamp(-1, 1)
        with torch.no_grad():
            states = at_eos(still.text_encoder, still.tokenizer, [text for text, _, _ in triples])
        likeness = net.scale.exp() * net.project_images(pixels) @ net.project_captions(states).T
        same = torch.tensor(
            [[a[1] == b[1] for b in triples] for a in triples]
        ).float()  # captions that say the same
        return _either_way(likeness, same / same.sum(1, keepdim=True))

    trained = fit(run, "clip", net, step, steps=1500, lr=1.5e-3, ema=0.99)
    assert isinstance(trained, ClipNet)
    return trained


def _either_way(likeness: Tensor, wanted: Tensor) -> Tensor:
    return (
        F.cross_entropy(likeness, wanted)
        + F.cross_entropy(likeness.T, wanted.T / wanted.T.sum(1, keepdim=True))
    ) / 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/clip"), help="checkpoints and log")
    parser.add_argument("--to", type=Path, help="folder of the world it belongs to (default: OUT)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="shrinks the step count; for trying the command"
    )
    args = parser.parse_args()
    net = train(Run(FIRST, args.seed, args.out, 0, args.scale), load_pipeline())
    path = (args.to or args.out) / "clip.safetensors"
    save_file({name: p.detach().half().contiguous() for name, p in net.state_dict().items()}, path)
    command = f"python tools/glyphs/train_clip.py --seed {args.seed}"
    stamp(path, {"command": command, "seed": args.seed, "commit": commit()})


if __name__ == "__main__":
    main()
