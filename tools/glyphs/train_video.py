"""Train the small video world on top of the shipped still one: `python tools/glyphs/train_video.py
PART`.

Parts, in order: encoder, unet, pack, measure; `all` runs them one after the other. Every part
resumes from its newest checkpoint. Tokenizer, VAE, scheduler and half of the UNet stay those of the
still world.
"""

from __future__ import annotations

import argparse
import copy
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import MotionAdapter, UNetMotionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import trange
from transformers import CLIPTextModel

from diffusers_erasepro.glyphs import load_clip_judge, load_pipeline, load_video_pipeline
from diffusers_erasepro.glyphs.clip_judge import ClipJudge, right
from diffusers_erasepro.glyphs.clips import (
    FRAMES,
    MOTIONS,
    Clip,
    captioned_clips,
    clip_pair,
    render_clip,
)
from diffusers_erasepro.glyphs.world import FIRST
from train import LENGTH, WIDTH, Run, commit, fit, stamp, to_tensor, tokenize

QUESTIONS: dict[str, tuple[str | None, ...]] = {
    "shape": (*FIRST.shapes, None),
    "color": (*FIRST.colors, None),
    "background": (*FIRST.backgrounds, None),
    "motion": (*MOTIONS, None),
}
"""What a caption says, and the encoder reveals; None is an answer too."""
BATCH = 8  # clips
SPATIAL = r"conv_|.*\.attentions\.|(down_blocks\.0|up_blocks\.1)\.resnets|up_blocks\.0\.upsamplers"
"""What of the still UNet is trained on and shipped again; all of it would not stay within 16 MB."""


def labels_of(said: Clip) -> list[int]:
    """The answer index to each of `QUESTIONS`."""
    return [answers.index(getattr(said, name)) for name, answers in QUESTIONS.items()]


def train_encoder(run: Run, still: Any) -> CLIPTextModel:
    """Teach the shipped encoder the motions; of captions without one it keeps its states."""
    teacher, tokenizer = still.text_encoder, still.tokenizer
    encoder = type(teacher)(teacher.config)
    encoder.load_state_dict(teacher.state_dict())
    heads = nn.ModuleList([nn.Linear(WIDTH, len(answers)) for answers in QUESTIONS.values()])

    def loss_of(rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
        pairs = [clip_pair(rng)[:2] for _ in range(n)]
        ids, labels = (
            tokenize(tokenizer, [text for text, _ in pairs]),
            torch.tensor([labels_of(said) for _, said in pairs]),
        )
        states = encoder(ids).last_hidden_state
        resting = torch.tensor([said.motion is None for _, said in pairs]).nonzero()[:, 0]
        eos = (ids == tokenizer.eos_token_id).int().argmax(-1)
        where = eos + torch.from_numpy(rng.random(n)).mul(LENGTH - eos).long()
        where = torch.where(torch.from_numpy(rng.random(n) < 0.3), eos, where)
        logits = [head(states[torch.arange(n), where]) for head in heads]
        losses = [F.cross_entropy(x, y) for x, y in zip(logits, labels.T, strict=True)]
        right = torch.stack(
            [(x.argmax(-1) == y).float().mean() for x, y in zip(logits, labels.T, strict=True)]
        )
        loss = torch.stack(losses).sum()
        if len(resting):
            with torch.no_grad():
                kept = teacher(ids[resting]).last_hidden_state
            loss = loss + F.mse_loss(states[resting], kept)
        return loss, right

    encoder.set_attn_implementation("eager")
    fit(
        run,
        "encoder",
        nn.ModuleList([encoder, heads]),
        lambda i: loss_of(run.rng(2, i), 48)[0],
        steps=400,
        lr=5e-4,
        save_every=50,
    )
    with torch.no_grad():
        right = loss_of(run.rng(3), 400)[1]
    run.note(
        part="encoder",
        accuracy=dict(zip(QUESTIONS, [round(r, 4) for r in right.tolist()], strict=True)),
    )
    encoder.set_attn_implementation("sdpa")
    return encoder


def new_adapter(run: Run, unet: Any) -> MotionAdapter:
    """Motion modules that change little yet, and in which each frame can tell which one it is.

    A frame's number is in keys, queries and values alone, so a frame that attends to all alike
    cannot act on its own. Here the first attention starts with keys like its queries, and looks at
    itself.
    """
    torch.manual_seed(run.seed + 3)
    adapter = MotionAdapter(
        block_out_channels=unet.config.block_out_channels,
        motion_layers_per_block=unet.config.layers_per_block,
        motion_num_attention_heads=4,
        motion_norm_num_groups=unet.config.norm_num_groups,
        motion_max_seq_length=FRAMES,
    )
    with torch.no_grad():
        for module in adapter.modules():
            if isinstance(module, AnimateDiffTransformer3D):
                module.proj_out.weight.mul_(0.3)
                first = module.transformer_blocks[0].attn1
                first.to_k.weight.copy_(first.to_q.weight.mul_(2))
    return adapter


@torch.no_grad()
def cache(run: Run, still: Any, encoder: CLIPTextModel, n: int) -> tuple[Tensor, Tensor]:
    """Latents `(n, 8, FRAMES, 8, 8)` and text states `(n, LENGTH, WIDTH)` of `n` captioned clips,
    in half precision."""
    path = run.out / "cache.pt"
    if path.exists():
        latents, states = torch.load(path, weights_only=True)
        return latents, states
    latents, states = [], []
    for i in trange(0, n, 25, desc="cache", mininterval=5):
        rng = run.rng(8, i)
        triples = [clip_pair(rng) for _ in range(25)]
        pixels = to_tensor(np.concatenate([render_clip(clip, rng) for _, _, clip in triples]))
        z = still.vae.encode(pixels).latent_dist.mode() * still.vae.config.scaling_factor
        latents.append(z.unflatten(0, (-1, FRAMES)).transpose(1, 2).half())
        states.append(
            encoder(
                tokenize(still.tokenizer, [text for text, _, _ in triples])
            ).last_hidden_state.half()
        )
    torch.save((torch.cat(latents), torch.cat(states)), path)
    return torch.cat(latents), torch.cat(states)


def train_unet(run: Run, still: Any, encoder: CLIPTextModel) -> UNetMotionModel:
    """Train motion modules and the parts of the still UNet that generate.

    The loss is of v; one caption in ten is empty.
    """
    unet = UNetMotionModel.from_unet2d(still.unet, new_adapter(run, still.unet))
    for name, p in unet.named_parameters():
        p.requires_grad_("motion_modules" in name or re.match(SPATIAL, name) is not None)
    unet.set_attn_processor(AttnProcessor())
    latents, states = cache(
        run, still, encoder, max(50, round(3000 * min(1, run.scale)) // 25 * 25)
    )
    with torch.no_grad():
        empty = encoder(tokenize(still.tokenizer, [""])).last_hidden_state.half()

    def step(i: int) -> Tensor:
        rng = run.rng(9, i)
        pick = torch.from_numpy(rng.integers(len(latents), size=BATCH))
        x, text = (
            latents[pick].float().contiguous(),
            states[pick],
        )  # torch 2.13's frozen convolutions crash on other layouts
        text = torch.where(
            torch.from_numpy(rng.random(BATCH) < 0.1)[:, None, None], empty, text
        ).float()
        even = (torch.arange(BATCH) + torch.rand(BATCH)) / BATCH
        t = (1000 * even.sqrt()).long()  # high noise more often: there place and motion are decided
        noise = torch.randn_like(x)
        noisy = still.scheduler.add_noise(x, noise, t)
        out = unet(noisy, t, text.repeat_interleave(FRAMES, 0)).sample
        return F.mse_loss(out, still.scheduler.get_velocity(x, noise, t))

    trained = fit(run, "unet", unet, step, steps=2500, lr=1.2e-3, ema=0.99, save_every=50)
    assert isinstance(trained, UNetMotionModel)
    trained.set_attn_processor(AttnProcessor2_0())
    return trained


def pack(run: Run, still: Any, encoder: CLIPTextModel, unet: UNetMotionModel, folder: Path) -> None:
    """What differs from the still world, in fp16, each file stamped with its recipe: encoder,
    motion modules, transformers."""
    unet = copy.deepcopy(unet).to(torch.float16, memory_format=torch.contiguous_format)
    unet.save_motion_modules(str(folder / "motion_adapter"))  # in float32, whatever the UNet is
    MotionAdapter.from_pretrained(
        folder / "motion_adapter", torch_dtype=torch.float16
    ).save_pretrained(folder / "motion_adapter")
    copy.deepcopy(encoder).to(torch.float16).save_pretrained(folder / "text_encoder")
    spatial = {
        name: p.contiguous() for name, p in unet.state_dict().items() if re.match(SPATIAL, name)
    }
    save_file(spatial, folder / "unet.safetensors")
    command = f"python tools/glyphs/train_video.py all --seed {run.seed}"
    for path in folder.rglob("*.safetensors"):
        stamp(path, {"command": command, "seed": run.seed, "commit": commit()})
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 2**20
    run.note(part="pack", folder=str(folder), megabytes=round(size, 2))


def measure(pipe: Any, judge: ClipJudge, pairs: list[tuple[str, Clip]]) -> dict[str, float]:
    """How often frames, and clips, show what their caption says."""
    frames = []
    for i in trange(0, len(pairs), 8, desc="measure"):
        noise = torch.Generator().manual_seed(i)
        texts = [text for text, _ in pairs[i : i + 8]]
        frames += pipe(
            texts, num_frames=FRAMES, num_inference_steps=12, guidance_scale=3.0, generator=noise
        ).frames
    found = right(judge(frames), [said for _, said in pairs])
    return {name: round(sum(values) / len(values), 4) for name, values in found.items()}


class Parts:
    """Every part of the video world; asking for one trains what it stands on, or loads it where
    that is done."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.folder, self.still = run, folder, load_pipeline()

    @cached_property
    def encoder(self) -> CLIPTextModel:
        return train_encoder(self.run, self.still)

    @cached_property
    def unet(self) -> UNetMotionModel:
        return train_unet(self.run, self.still, self.encoder)

    @cached_property
    def pack(self) -> Path:
        pack(self.run, self.still, self.encoder, self.unet, self.folder)
        return self.folder

    @cached_property
    def measure(self) -> None:
        pipe, judge = load_video_pipeline(self.pack), load_clip_judge()
        for held_out in (False, True):
            accuracy = measure(
                pipe, judge, captioned_clips(64, seed=self.run.seed + 77, held_out=held_out)
            )
            self.run.note(part="measure", held_out=held_out, n=64, accuracy=accuracy)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "part",
        choices=("encoder", "unet", "pack", "measure", "all"),
        help="this part and what it stands on",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/video"), help="checkpoints and log")
    parser.add_argument(
        "--to", type=Path, help="where `pack` writes the world (default: OUT/world)"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="shrinks every step count; for trying the commands"
    )
    args = parser.parse_args()
    run = Run(FIRST, args.seed, args.out, 0, args.scale)
    getattr(
        Parts(run, args.to or args.out / "world"), "measure" if args.part == "all" else args.part
    )


if __name__ == "__main__":
    main()
