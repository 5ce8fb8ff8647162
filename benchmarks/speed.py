"""The numbers of docs/speed.md: seconds per edit on the SD 1.4 layout, random weights, beside UCE's official script."""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from matplotlib.figure import Figure
from tqdm.auto import tqdm
from transformers import CLIPTextConfig, CLIPTextModel

from common import provenance
from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erasable, erase, glyphs
from diffusers_erasepro.compose import combined

SYLLABLES = ("ba", "do", "ki", "lu", "me", "no", "pa", "ri", "so", "tu", "va", "ze")
ANCHOR = "a painter"
EXACT = {"templates": ("a {}",), "soft_templates": ()}


def layout(seed: int, *, denoiser: bool) -> Any:
    """A pipeline with SD 1.4's text encoder, and its UNet where asked for; the tokenizer is the glyph world's."""
    torch.manual_seed(seed)
    small = glyphs.load_pipeline()
    small.tokenizer.model_max_length = 77
    config = small.text_encoder.config
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            max_position_embeddings=77, projection_dim=768, bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8) if denoiser else small.unet
    return erasable(
        StableDiffusionPipeline(
            small.vae, encoder.eval(), small.tokenizer, unet, small.scheduler, None, None, requires_safety_checker=False
        )
    )  # fmt: skip


def names(count: int, seed: int) -> list[str]:
    """Different invented names of two words."""
    rng, found = np.random.default_rng(seed), dict[str, None]()
    while len(found) < count:
        found[" ".join("".join(rng.choice(SYLLABLES, 2)) for _ in range(2))] = None
    return list(found)


def official_uce(script: Path) -> Callable[..., None]:
    """The function of the official script, as it is; it wants two globals that its command line sets."""
    scope: dict[str, Any] = {"__name__": "uce"}
    exec(compile(script.read_text(), str(script), "exec"), scope)
    torch.set_grad_enabled(True)  # the script turns it off for the whole process
    scope |= {"device": "cpu", "torch_dtype": torch.float32}
    return scope["UCE"]


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median of `repeats`."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def spec_of(words: Sequence[str], preserve: tuple[str, ...], **concept: Any) -> ErasureSpec:
    return ErasureSpec(tuple(Concept(w, ANCHOR, **concept) for w in words), preserve=preserve)


def toggles(pipe: Any, made: Sequence[ErasureAdapter]) -> tuple[float, float]:
    """Seconds of a joint solve of a set not seen before, and of switching a set that was."""
    unseen = seconds(lambda: combined(pipe, made), 1)
    pipe.load_erasure_adapters({f"a{i}": adapter for i, adapter in enumerate(made)})
    switched = []
    for _ in range(5):
        pipe.disable_erasure()
        switched.append(seconds(pipe.enable_erasure, 1))
    pipe.unload_erasure_adapters()
    return unseen, statistics.median(switched)


def alone(count: int, seed: int) -> str:
    """Seconds and peak memory of one default edit, in this process and without a denoiser."""
    pipe, preserve = layout(seed, denoiser=False), tuple(glyphs.captions(100, seed=0))
    spec = spec_of(names(count, seed), preserve)
    taken = seconds(lambda: erase(pipe, spec, measure=False, max_edit_size=1e9), 1)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return f"{count} concepts in a process of their own, statistics included: {taken:.0f} s, {memory:.1f} GiB at most."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uce", type=Path, help="trainscripts/uce_sd_erase.py of a checkout of the official code")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--alone", type=int, metavar="COUNT", help="print seconds and memory of one edit, and write no page")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page", type=Path, default=Path("docs/speed.md"))
    args = parser.parse_args()
    if args.alone:
        return print(alone(args.alone, args.seed))
    if args.uce is None:
        parser.error("the following arguments are required: --uce")
    where, preserve = provenance(args.seed), tuple(glyphs.captions(100, seed=0))
    uce, pipe = official_uce(args.uce), layout(args.seed, denoiser=True)
    words = names(max(args.counts), args.seed)
    limits = {"max_edit_size": 1e9}  # random weights: nothing is near anything
    kinds: dict[str, Callable[[ErasureSpec], Any]] = {
        "ours, exact": lambda spec: erase(pipe, spec, measure=False, **limits),
        "ours, default": lambda spec: erase(pipe, spec, measure=False, **limits),
        "ours, default, measured": lambda spec: erase(pipe, spec, **limits),
    }
    began = time.perf_counter()
    first = erase(pipe, spec_of(words[:1], preserve), **limits)
    statistic = time.perf_counter() - began
    found: dict[str, list[float]] = {"UCE, official": [], **{kind: [] for kind in kinds}}
    for count in tqdm(args.counts, desc="concepts"):
        repeats, some = 3 if count <= 10 else 1, words[:count]
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            run = lambda: uce(pipe, some, [ANCHOR] * len(some), [], 1, 1, 0.5, folder, "uce")  # noqa: B023, E731
            found["UCE, official"].append(seconds(run, repeats))
        for kind, make in kinds.items():
            spec = spec_of(some, preserve, **(EXACT if "exact" in kind else {}))
            found[kind].append(seconds(lambda: make(spec), repeats))  # noqa: B023
        tqdm.write(f"{count} { ({kind: values[-1] for kind, values in found.items()}) }")
    unseen, switched = toggles(pipe, [erase(pipe, spec_of([w], preserve), measure=False, **limits) for w in words[:10]])
    write(args, where, found, first, statistic, unseen, switched)


def write(
    args: argparse.Namespace, where: str, found: dict[str, list[float]], first: ErasureAdapter, statistic: float,
    unseen: float, switched: float,
) -> None:  # fmt: skip
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for kind, values in found.items():
        axes.loglog(args.counts, values, "o-", label=kind)
    axes.set(xlabel="concepts", ylabel="seconds per edit")
    axes.legend()
    figure.savefig(args.page.parent / "images" / "speed.png", dpi=110)
    most = [sys.executable, __file__, "--alone", str(max(args.counts)), "--seed", str(args.seed)]
    told = subprocess.run(most, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    uce = found["UCE, official"]
    rows = [
        f"| {kind} | {' | '.join(f'{v:.2f} ({v / u:.2f})' for v, u in zip(values, uce, strict=True))} |"
        for kind, values in found.items()
    ]
    args.page.write_text("\n".join([
        "# Speed, beside UCE's official script", "",
        f"`python benchmarks/speed.py --uce .../trainscripts/uce_sd_erase.py` wrote this page: {where}.",
        "SD 1.4 layout, random weights, float32; the edit alone, without loading a model; UCE without a preserve list.",
        f"Ours with cached statistics of 100 captions (computed once per base and list: {statistic:.0f} s).",
        "Exact: one template. Default: with soft prompts. Measured: held-out residual and drift reported too.",
        "Median of three, one run above 10.", "",
        f"| seconds (against UCE) | {' | '.join(map(str, args.counts))} |", "|---|" + "---|" * len(args.counts), *rows,
        "", "![scaling](images/speed.png)", "",
        f"One-concept adapter: {len(first.to_bytes()) / 2**20:.2f} MiB in float32. Ten adapters: {unseen:.2f} s for a set not",
        f"seen before, {1000 * switched:.0f} ms to switch a set that was. {told}", "",
    ]))  # fmt: skip


if __name__ == "__main__":
    main()
