"""Train a glyph world from nothing: `python tools/glyphs/train.py PART --out runs/first`.

Parts, in order: tokenizer, encoder, vae, judge, unet, pack, measure; `all` runs them one after the
other. Every part resumes from its newest checkpoint, so a killed run is started again with the same
command.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers, trainers
from torch import Tensor, nn
from tqdm.auto import tqdm, trange
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffusers_erasepro.glyphs.captions import captioned_scenes, mention, phrase
from diffusers_erasepro.glyphs.judge import Judge, JudgeNet, heads_of
from diffusers_erasepro.glyphs.render import SIZE, render
from diffusers_erasepro.glyphs.world import WORLDS, Scene, World, sample_scene

LENGTH = 64  # tokens per prompt
WIDTH = 128  # text encoder
LATENT = 8  # channels
BATCH = 48  # of the UNet


def mixed(enabled: bool = True) -> torch.autocast:
    """bfloat16 where the device has instructions for it; other CPUs emulate them, ten times slower
    than float32."""
    device = torch.get_default_device().type
    fast = (
        device != "cpu"
        or torch.cpu._is_avx512_bf16_supported()
        or torch.cpu._is_amx_tile_supported()
    )
    return torch.autocast(device, torch.bfloat16, enabled=enabled and fast)


class Run:
    """One training run: its world, seed and folder.

    Everything random derives from `seed` and a step.
    """

    def __init__(
        self, world: World, seed: int, out: Path, encoder_layers: int, scale: float
    ) -> None:
        self.world, self.seed, self.out, self.encoder_layers, self.scale = (
            world,
            seed,
            out,
            encoder_layers,
            scale,
        )
        self.flat = next(s for s, drawing in world.styles.items() if drawing == "flat")
        out.mkdir(parents=True, exist_ok=True)

    def rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])

    def note(self, **values: object) -> None:
        """Append a line to the run's log."""
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(values) + "\n")
        tqdm.write(json.dumps(values))

    def scene_pair(self, rng: np.random.Generator) -> tuple[str, Scene, Scene]:
        """A caption, what it mentions, and the full scene to render; no artist means flat."""
        scene = sample_scene(self.world, rng)
        said = mention(scene, rng)
        return phrase(self.world, said, rng), said, replace(scene, style=said.style or self.flat)


def fit(
    run: Run,
    part: str,
    model: nn.Module,
    step: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    ema: float = 0.0,
    save_every: int = 250,
) -> nn.Module:
    """AdamW with warm-up and cosine decay over `steps`; returns the averaged model if `ema`."""
    path = run.out / f"{part}.ckpt"
    steps = max(2, round(steps * run.scale))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2, betas=(0.9, 0.98))
    shadow = copy.deepcopy(model).requires_grad_(False) if ema else model
    start, seconds = 0, 0.0
    if path.exists():
        state = torch.load(path, map_location=torch.get_default_device(), weights_only=True)
        model.load_state_dict(state["model"])
        shadow.load_state_dict(state["shadow"])
        optimizer.load_state_dict(state["optimizer"])
        start, seconds = state["step"], state["seconds"]
    model.train()
    began = time.time()
    bar = trange(start, steps, initial=start, total=steps, desc=part, mininterval=5)
    mean = 0.0
    for i in bar:
        for group in optimizer.param_groups:
            group["lr"] = (
                lr
                * min(1, (i + 1) / 100)
                * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * i / steps)))
            )
        torch.manual_seed(run.seed * 1_000_003 + i)
        loss = step(i)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if ema:
            rate = min(ema, (i + 1) / (i + 10))
            torch._foreach_lerp_(
                list(shadow.parameters()), [p.detach() for p in model.parameters()], 1 - rate
            )
        mean = loss.item() if i == start else 0.98 * mean + 0.02 * loss.item()
        bar.set_postfix(loss=f"{mean:.4f}")
        if (i + 1) % save_every == 0 or i + 1 == steps:
            now = seconds + time.time() - began
            state = {
                "model": model.state_dict(),
                "shadow": shadow.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            torch.save({**state, "step": i + 1, "seconds": now}, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").rename(path)
            run.note(part=part, step=i + 1, steps=steps, loss=round(mean, 5), seconds=round(now))
    return shadow.eval().requires_grad_(False)


# ------------------------------------------------------------------------------------------------
# tokenizer


def train_tokenizer(run: Run, merges: int = 600) -> CLIPTokenizer:
    """A small byte-level BPE in CLIP's dialect; it never sees rare words and artists, which stay
    several tokens."""
    folder = run.out / "tokenizer"
    if folder.exists():
        return CLIPTokenizer.from_pretrained(folder)
    rng = run.rng(1)
    rare = re.compile("|".join(map(re.escape, (*run.world.rare, *run.world.styles))))
    corpus = [rare.sub("", run.scene_pair(rng)[0]) for _ in range(4000)]
    rust = CLIPTokenizer()._tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|startoftext|>", "<|endoftext|>"]
    rust.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=2 * len(alphabet) + len(special) + merges,
            special_tokens=special,
            end_of_word_suffix="</w>",
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    model = json.loads(rust.to_str())["model"]
    vocab = {
        token: i
        for i, token in enumerate(
            [*special, *sorted(alphabet), *(f"{c}</w>" for c in sorted(alphabet))]
        )
    }
    merge_list = [tuple(m) for m in model["merges"]][:merges]
    for left, right in merge_list:
        vocab.setdefault(left + right, len(vocab))
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merge_list, model_max_length=LENGTH)
    tokenizer.save_pretrained(folder)
    return tokenizer


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids `(n, LENGTH)`."""
    return tokenizer(
        texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


# ------------------------------------------------------------------------------------------------
# encoder


def new_encoder(run: Run, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_attention_heads=4,
        num_hidden_layers=run.encoder_layers,
        max_position_embeddings=LENGTH,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(run.seed)
    model = CLIPTextModel(config)
    for (
        name,
        p,
    ) in model.named_parameters():  # transformers' default init is meant for width 512 and up
        if p.ndim == 2:
            nn.init.normal_(p, std=0.02 if "position" in name else 0.05)
    return model


def questions(world: World) -> dict[str, tuple[str | None, ...]]:
    """What the encoder learns to reveal: every field of the caption, None for "not said"."""
    return {
        "shape": (*world.shapes, None),
        "style": (*world.styles, None),
        "color": (*world.colors, None),
        "background": (*world.backgrounds, None),
        "attribute": ("yes", None),
        "color2": (*world.colors, None),
        "shape2": (*world.shapes, None),
    }


def labels_of(world: World, said: Scene | None) -> list[int]:
    """The answer index to each of `questions`; None (an empty caption) says nothing."""
    values: dict[str, str | None] = dict.fromkeys(questions(world))
    if said:
        color2, shape2 = said.second or (None, None)
        values = {
            "shape": said.shape,
            "style": said.style,
            "color": said.color,
            "background": said.background,
            "attribute": "yes" if said.attribute else None,
            "color2": color2,
            "shape2": shape2,
        }
    return [answers.index(values[q]) for q, answers in questions(world).items()]


def train_encoder(run: Run, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Pretrain the text encoder to reveal, linearly, what a caption says at any position from EOS
    on; then freeze."""
    encoder = new_encoder(run, tokenizer)
    heads = nn.ModuleList([nn.Linear(WIDTH, len(a)) for a in questions(run.world).values()])

    def batch(rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
        pairs = [("", None) if rng.random() < 0.02 else run.scene_pair(rng)[:2] for _ in range(n)]
        return tokenize(tokenizer, [t for t, _ in pairs]), torch.tensor(
            [labels_of(run.world, s) for _, s in pairs]
        )

    def loss_of(rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
        ids, labels = batch(rng, n)
        with mixed():
            states = encoder(ids).last_hidden_state.float()
        eos = (ids == tokenizer.eos_token_id).int().argmax(-1)
        where = eos + torch.as_tensor(rng.random(n)).mul(LENGTH - eos).long()
        where = torch.where(torch.as_tensor(rng.random(n) < 0.3), eos, where)
        at = states[torch.arange(n), where]
        logits = [head(at) for head in heads]
        losses = [F.cross_entropy(x, y) for x, y in zip(logits, labels.T, strict=True)]
        right = torch.stack(
            [(x.argmax(-1) == y).float().mean() for x, y in zip(logits, labels.T, strict=True)]
        )
        return torch.stack(losses).sum(), right

    model = nn.ModuleList([encoder, heads])
    encoder.set_attn_implementation("eager")  # faster than the fused kernel here, in bf16 on a CPU
    fit(run, "encoder", model, lambda i: loss_of(run.rng(2, i), 64)[0], steps=1500, lr=1e-3)
    with torch.no_grad():
        right = loss_of(run.rng(3), 1000)[1]
    run.note(
        part="encoder",
        accuracy={
            q: round(r, 4) for q, r in zip(questions(run.world), right.tolist(), strict=True)
        },
    )
    encoder.set_attn_implementation("sdpa")
    return encoder


# ------------------------------------------------------------------------------------------------
# renders


def render_scenes(run: Run, rng: np.random.Generator, n: int) -> tuple[Tensor, list[Scene]]:
    """`n` renders as pixels `(n, 3, SIZE, SIZE)` in [-1, 1], and their scenes."""
    scenes = [sample_scene(run.world, rng, attribute=0.4) for _ in range(n)]
    stack = np.stack([render(run.world, s, rng) for s in scenes])
    return to_tensor(stack), scenes


def channels_last(module: Any) -> Any:
    """The memory layout CPU convolutions like best."""
    return module.to(memory_format=torch.channels_last)


def to_tensor(stack: np.ndarray) -> Tensor:
    return (torch.as_tensor(stack).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(
        memory_format=torch.channels_last
    )


def new_vae(run: Run) -> AutoencoderKL:
    torch.manual_seed(run.seed + 1)
    return AutoencoderKL(
        block_out_channels=(32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=LATENT,
        norm_num_groups=16,
        sample_size=SIZE,
        mid_block_add_attention=False,
    ).to(memory_format=torch.channels_last)


def train_vae(run: Run) -> AutoencoderKL:
    """Autoencoder 32 px -> 8 x 8 x 8; the last third of the steps trains the decoder alone, where
    detail is won."""
    vae = new_vae(run)
    total = max(2, round(1500 * run.scale))

    def step(i: int) -> Tensor:
        pixels, _ = render_scenes(run, run.rng(4, i), 24)
        decoder_only = i > total * 2 // 3
        with mixed(), torch.set_grad_enabled(not decoder_only):
            posterior = vae.encode(pixels).latent_dist
        z = (
            posterior.sample()
            if not decoder_only
            else posterior.mode() + 0.05 * torch.randn_like(posterior.mean)
        )
        with mixed():
            out = vae.decode(z.to(pixels.dtype)).sample.float()
        edges = (out.diff(dim=-1) - pixels.diff(dim=-1)).abs().mean() + (
            out.diff(dim=-2) - pixels.diff(dim=-2)
        ).abs().mean()
        loss = (out - pixels).abs().mean() + 2 * (out - pixels).square().mean() + 0.5 * edges
        return loss if decoder_only else loss + 5e-6 * posterior.kl().mean()

    fit(run, "vae", vae, step, steps=1500, lr=1.5e-3, ema=0.0)
    with torch.no_grad():
        z = vae.encode(render_scenes(run, run.rng(5), 256)[0]).latent_dist.mode()
    vae.register_to_config(scaling_factor=float(1 / z.std()))
    return vae


# ------------------------------------------------------------------------------------------------
# judge


def garbage(rng: np.random.Generator, pixels: Tensor) -> Tensor:
    """Images of nothing: noise, halves of two blended renders, blurred soup."""
    other = pixels.flip(0)
    kinds = [
        torch.randn_like(pixels).clamp(-1, 1),
        (pixels + other + pixels.roll(1, 0)) / 3,
        F.interpolate(F.avg_pool2d(pixels, 16), size=SIZE, mode="bilinear"),
        pixels[:, :, :, torch.randperm(SIZE)][:, :, torch.randperm(SIZE)],
    ]
    return kinds[int(rng.integers(len(kinds)))]


def judge_labels(run: Run, scenes: list[Scene]) -> dict[str, Tensor]:
    rows = [
        {
            "shape": s.shape,
            "style": s.style,
            "color": s.color,
            "background": s.background,
            "attribute": s.attribute is not None,
            "second": s.second[1] if s.second else None,
        }
        for s in scenes
    ]
    return {
        h.name: torch.tensor([h.answers.index(r[h.name]) for r in rows])
        for h in heads_of(run.world)
    }


def train_judge(run: Run, vae: AutoencoderKL) -> JudgeNet:
    """A classifier of renders and of their VAE reconstructions, blurred, noised and shifted;
    garbage has no shape."""
    heads = heads_of(run.world)
    torch.manual_seed(run.seed + 2)
    net = channels_last(JudgeNet(heads))

    def step(i: int) -> Tensor:
        rng = run.rng(6, i)
        pixels, scenes = render_scenes(run, rng, 64)
        with torch.no_grad(), mixed():
            some = slice(0, 24)
            noisy = vae.encode(pixels[some]).latent_dist.mode()
            pixels[some] = vae.decode(
                noisy + 0.15 * rng.random() * noisy.std() * torch.randn_like(noisy)
            ).sample.float()
            pixels = pixels * (1 + 0.15 * torch.randn(64, 1, 1, 1)) + 0.05 * torch.randn(
                64, 3, 1, 1
            )
            pixels = (pixels + 0.1 * rng.random() * torch.randn_like(pixels)).clamp(-1, 1)
            junk = garbage(rng, pixels)[:8]
        with mixed():
            out = {k: v.float() for k, v in net(torch.cat([pixels, junk])).items()}
        labels = judge_labels(run, scenes)
        nothing = torch.full((8,), len(heads[0].answers) - 1)
        loss = F.cross_entropy(out["shape"][64:], nothing)
        for head in heads:
            loss = loss + F.cross_entropy(
                out[head.name][:64], labels[head.name], label_smoothing=0.02
            )
        return loss

    judge = fit(run, "judge", net, step, steps=1500, lr=1.5e-3, ema=0.99)
    for part, count in (("renders", 600), ("reconstructions", 600)):
        pixels, scenes = render_scenes(run, run.rng(7), count)
        with torch.no_grad():
            shown = (
                torch.cat([vae(p).sample.clamp(-1, 1) for p in pixels.split(50)])
                if part != "renders"
                else pixels
            )
            out = judge(shown)
        labels = judge_labels(run, scenes)
        right = {
            h.name: (out[h.name].argmax(-1) == labels[h.name]).float().mean().item() for h in heads
        }
        run.note(
            part="judge", on=part, n=count, accuracy={k: round(v, 4) for k, v in right.items()}
        )
    assert isinstance(judge, JudgeNet)
    return judge


# ------------------------------------------------------------------------------------------------
# unet


def new_unet(run: Run) -> UNet2DConditionModel:
    torch.manual_seed(run.seed + 3)
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=LATENT,
        out_channels=LATENT,
        block_out_channels=(80, 160),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 5),
        norm_num_groups=16,
    ).to(memory_format=torch.channels_last)


def scheduler() -> DDIMScheduler:
    """Cosine schedule, v prediction, trailing steps down to pure noise; nothing clipped."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


@torch.no_grad()
def cache(
    run: Run, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, vae: AutoencoderKL, n: int
) -> tuple[Tensor, ...]:
    """Latents `(n, 8, 8, 8)` and text states `(n, LENGTH, WIDTH)` of `n` captioned renders, in
    half precision."""
    latents, states = [], []
    with mixed():
        for i in trange(0, n, 100, desc="cache", mininterval=5):
            rng = run.rng(8, i)
            triples = [run.scene_pair(rng) for _ in range(100)]
            pixels = to_tensor(np.stack([render(run.world, scene, rng) for _, _, scene in triples]))
            latents.append(
                (vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor).half()
            )
            with mixed(enabled=False):
                states.append(
                    encoder(
                        tokenize(tokenizer, [t for t, _, _ in triples])
                    ).last_hidden_state.half()
                )
    return torch.cat(latents), torch.cat(states)


def train_unet(
    run: Run, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, vae: AutoencoderKL
) -> UNet2DConditionModel:
    """Denoiser over frozen text states: v loss, one caption in ten empty for classifier-free
    guidance."""
    unet, noise_schedule = new_unet(run), scheduler()
    unet.set_attn_processor(
        AttnProcessor()
    )  # the fused kernel's bf16 backward takes a third of a step on a CPU
    latents, states = cache(
        run, tokenizer, encoder, vae, max(200, round(24_000 * min(1, run.scale)) // 100 * 100)
    )
    with torch.no_grad():
        empty = encoder(tokenize(tokenizer, [""])).last_hidden_state.half()

    def step(i: int) -> Tensor:
        rng = run.rng(9, i)
        pick = torch.as_tensor(rng.integers(len(latents), size=BATCH))
        x, text = latents[pick].float(), states[pick]
        text = torch.where(
            torch.as_tensor(rng.random(BATCH) < 0.1)[:, None, None], empty, text
        ).float()
        noise, t = torch.randn_like(x), torch.randint(1000, (BATCH,))
        noisy = noise_schedule.add_noise(x, noise, t).contiguous(memory_format=torch.channels_last)
        with mixed():
            out = unet(noisy, t, text).sample.float()
        return F.mse_loss(out, noise_schedule.get_velocity(x, noise, t))

    trained = fit(run, "unet", unet, step, steps=4500, lr=1e-3, ema=0.999)
    assert isinstance(trained, UNet2DConditionModel)
    trained.set_attn_processor(AttnProcessor2_0())
    return trained


# ------------------------------------------------------------------------------------------------
# pack, measure


def commit() -> str:
    """The commit that trains."""
    return (
        subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, encoding="utf-8"
        ).stdout.strip()
        or "unknown"
    )


def stamp(path: Path, recipe: dict[str, object]) -> None:
    """Write the recipe into a safetensors header."""
    save_file(
        load_file(path),
        path,
        metadata={"format": "pt", "erasepro.recipe": json.dumps(recipe, sort_keys=True)},
    )
    path.chmod(0o644)  # safetensors 0.8 writes files that only their owner can read


def pack(run: Run, pipe: StableDiffusionPipeline, judge: JudgeNet, folder: Path) -> None:
    """The world as a diffusers folder plus `judge.safetensors`, all in fp16, each stamped with its
    recipe."""
    recipe: dict[str, object] = {
        "command": f"python tools/glyphs/train.py all --world {run.world.name} --seed {run.seed}"
        f" --encoder-layers {run.encoder_layers} --device {torch.get_default_device().type}",
        "world": run.world.name,
        "seed": run.seed,
        "commit": commit(),
    }
    copy.deepcopy(pipe).to(torch.float16).save_pretrained(folder)
    save_file(
        {k: v.half().contiguous() for k, v in judge.state_dict().items()},
        folder / "judge.safetensors",
    )
    for path in folder.rglob("*.safetensors"):
        stamp(path, recipe)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 2**20
    run.note(part="pack", folder=str(folder), megabytes=round(size, 2))


@torch.no_grad()
def measure(
    run: Run,
    pipe: StableDiffusionPipeline,
    judge: Judge,
    n: int = 400,
    *,
    held_out: bool = True,
    steps: int = 15,
    guidance: float = 3.0,
) -> dict[str, float]:
    """How often a generated image shows what its caption says; only what is said counts."""
    pairs = captioned_scenes(n, seed=run.seed + 77, held_out=held_out, world=run.world)
    right: dict[str, list[bool]] = {}
    generator = torch.Generator("cpu").manual_seed(run.seed)
    for i in trange(0, n, 40, desc="measure"):
        chunk = pairs[i : i + 40]
        images = pipe(
            [t for t, _ in chunk],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
        )
        told = judge(images.images)
        for j, (_, said) in enumerate(chunk):
            truth = {
                "shape": said.shape,
                "style": said.style,
                "color": said.color,
                "background": said.background,
            }
            for key, value in truth.items():
                if value is not None:
                    right.setdefault(key, []).append(told[key][j] == value)
            right.setdefault("attribute", []).append(
                told["attribute"][j] == (said.attribute is not None)
            )
            right.setdefault("cracked" if said.attribute else "uncracked", []).append(
                right["attribute"][-1]
            )
    return {k: round(sum(v) / len(v), 4) for k, v in right.items()}


class Parts:
    """Every part of a world; asking for one trains what it stands on, or loads it where that is
    done."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.folder = run, folder

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        return train_tokenizer(self.run)

    @cached_property
    def encoder(self) -> CLIPTextModel:
        return train_encoder(self.run, self.tokenizer)

    @cached_property
    def vae(self) -> AutoencoderKL:
        return train_vae(self.run)

    @cached_property
    def judge(self) -> JudgeNet:
        return train_judge(self.run, self.vae)

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        return train_unet(self.run, self.tokenizer, self.encoder, self.vae)

    @cached_property
    def pack(self) -> StableDiffusionPipeline:
        pipe = StableDiffusionPipeline(
            vae=self.vae.to(memory_format=torch.contiguous_format),
            text_encoder=self.encoder,
            tokenizer=self.tokenizer,
            unet=self.unet.to(memory_format=torch.contiguous_format),
            scheduler=scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        pack(self.run, pipe, self.judge, self.folder)
        return pipe

    @cached_property
    def measure(self) -> None:
        judge = Judge(self.judge, heads_of(self.run.world))
        for held_out in (False, True):
            table = measure(self.run, self.pack, judge, held_out=held_out)
            self.run.note(part="measure", held_out=held_out, n=400, accuracy=table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("tokenizer", "encoder", "vae", "judge", "unet", "pack", "measure", "all")
    parser.add_argument("part", choices=parts, help="train this part and what it stands on")
    parser.add_argument("--world", choices=sorted(WORLDS), default="first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--encoder-layers", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("runs/first"), help="checkpoints and log")
    parser.add_argument(
        "--to", type=Path, help="where `pack` writes the world (default: OUT/world)"
    )
    parser.add_argument(
        "--device",
        default="cpu",
        help="cuda takes minutes where two cores take hours; the noise is another",
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="shrinks every step count; for trying the commands"
    )
    args = parser.parse_args()
    torch.set_default_device(args.device)
    run = Run(WORLDS[args.world], args.seed, args.out, args.encoder_layers, args.scale)
    getattr(
        Parts(run, args.to or args.out / "world"), "measure" if args.part == "all" else args.part
    )


if __name__ == "__main__":
    main()
