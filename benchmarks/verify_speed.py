"""How long `verify_erasure` takes on the layout of Stable Diffusion 1.5, its weights random."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from common import provenance
from diffusers_erasepro import Concept, ErasureSpec, erasable, erase, glyphs


def pipeline() -> Any:
    """SD 1.5's denoiser (32 K/V linears of 768 inputs) and text encoder (12 blocks of 768),
    without a VAE."""
    torch.manual_seed(0)
    tokenizer = glyphs.load_pipeline().tokenizer
    vocabulary = len(tokenizer)
    text = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
        vocab_size=vocabulary,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    return StableDiffusionPipeline(
        vae=None,
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def median(call: Callable[[], object], repeats: int = 9) -> float:
    """Milliseconds."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def main() -> None:
    pipe = erasable(pipeline())
    spec = ErasureSpec(
        (Concept("star", anchor="circle"),), preserve=tuple(glyphs.captions(100, seed=0))
    )
    pipe.load_erasure_adapter(erase(pipe, spec, layers=("kv",), max_edit_size=1e3))
    rows = {
        "one edited layer, `sample=1`": lambda: pipe.verify_erasure(sample=1),
        "all 32 edited layers, `sample=32`": lambda: pipe.verify_erasure(sample=32),
        "listed prompts encoded anew, fingerprints: `verify_erasure()`": lambda: (
            pipe.verify_erasure()
        ),
    }
    print(f"{provenance(0)}, float32; median of 9, in ms\n\n| what | ms |\n|---|---|")
    for name, call in rows.items():
        call()
        print(f"| {name} | {median(call):.1f} |", flush=True)


if __name__ == "__main__":
    main()
