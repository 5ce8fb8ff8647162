"""The numbers of benchmarks/results/speed.md.

Seconds per edit on the SD 1.4 layout, random weights, beside UCE's official script.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
from diffusers_erasepro.loaders.stacking import combine
from official_agreement import official_rece, official_speed
from stacking import timed

SYLLABLES = ("ba", "do", "ki", "lu", "me", "no", "pa", "ri", "so", "tu", "va", "ze")
ANCHOR = "a painter"
UCE = "UCE, official"
LIMITS = {"max_edit_size": 1e9}  # random weights: nothing is near anything
EXACT = {"templates": ("a {}",), "soft_templates": ()}


def layout(seed: int, *, denoiser: bool) -> Any:
    """A pipeline with SD 1.4's text encoder, and its UNet where asked for.

    The tokenizer is the glyph world's.
    """
    torch.manual_seed(seed)
    small = glyphs.load_pipeline()
    small.tokenizer.model_max_length = 77
    config = small.text_encoder.config
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=77,
            projection_dim=768,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
        )
    )
    unet = (
        UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        if denoiser
        else small.unet
    )
    return erasable(
        StableDiffusionPipeline(
            small.vae,
            encoder.eval(),
            small.tokenizer,
            unet,
            small.scheduler,
            None,
            None,
            requires_safety_checker=False,
        )
    )


def names(count: int, seed: int) -> list[str]:
    """Different invented names of two words."""
    rng = np.random.default_rng(seed)
    found = dict[str, None]()
    while len(found) < count:
        found[" ".join("".join(rng.choice(SYLLABLES, 2)) for _ in range(2))] = None
    return list(found)


def official_uce(script: Path) -> Callable[..., None]:
    """The function of the official script, as it is.

    It wants two globals that its command line sets.
    """
    scope: dict[str, Any] = {"__name__": "uce"}
    exec(compile(script.read_text(encoding="utf-8"), str(script), "exec"), scope)
    torch.set_grad_enabled(True)  # the script turns it off for the whole process
    scope |= {"device": "cpu", "torch_dtype": torch.float32}
    return scope["UCE"]


def peers(
    args: argparse.Namespace, pipe: Any, preserve: Sequence[str]
) -> dict[str, Callable[[Sequence[str]], Any]]:
    """Row -> an official edit of some words, as far as the official code was given."""

    def concepts(words: Sequence[str]) -> tuple[Concept, ...]:
        return tuple(Concept(w, ANCHOR) for w in words)

    function = official_uce(args.uce / "trainscripts/uce_sd_erase.py")

    @torch.no_grad()
    def uce(words: Sequence[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            function(pipe, list(words), [ANCHOR] * len(words), [], 1, 1, 0.5, folder, "uce")

    found: dict[str, Callable[[Sequence[str]], Any]] = {UCE: uce}
    if args.speed:
        found["SPEED, official"] = lambda words: official_speed(
            args.speed, pipe, concepts(words), list(preserve), augment=10, seed=args.seed
        )
    if args.rece:
        found["RECE, official, one round after UCE"] = lambda words: official_rece(
            args.rece, pipe, concepts(words), [], {}, 1
        )
    return found


@dataclass(frozen=True)
class Cost:
    """What an edit takes."""

    seconds: float
    mib: float
    """Peak of the process's memory above where it began."""


def cost(call: Callable[[], Any], repeats: int) -> Cost:
    """Medians of `repeats`."""
    taken = []
    for _ in range(repeats):
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(
            0
        )  # or what an earlier edit has given back would hide this one's peak
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak counts from here
        start = resident("VmRSS")
        began = time.perf_counter()
        call()
        taken.append((time.perf_counter() - began, resident("VmHWM") - start))
    return Cost(*map(statistics.median, zip(*taken, strict=True)))


def resident(field: str) -> float:
    """MiB, by Linux's name for it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024


def spec_of(words: Sequence[str], preserve: tuple[str, ...], **concept: Any) -> ErasureSpec:
    return ErasureSpec(tuple(Concept(w, ANCHOR, **concept) for w in words), preserve=preserve)


def live(count: int, seed: int) -> str:
    """What loading and switching take in this process, without a denoiser."""
    pipe = layout(seed, denoiser=False)
    preserve = tuple(glyphs.captions(100, seed=0))
    made = [
        erase(pipe, spec_of([w], preserve), measure=False, **LIMITS) for w in names(count, seed)
    ]

    with tempfile.TemporaryDirectory() as folder:
        made[0].save_pretrained(folder)
        loading, _ = timed(lambda: pipe.load_erasure_adapter(folder, adapter_name="one"))
        pipe.unload_erasure_adapters()
    unseen, _ = timed(lambda: combine(pipe, made))
    pipe.load_erasure_adapters({f"a{i}": adapter for i, adapter in enumerate(made)})
    switched = []
    for _ in range(15):
        pipe.disable_erasure()
        switched.append(timed(pipe.enable_erasure)[0])
    return (
        f"In a process of its own: one adapter is loaded from disk in {1000 * loading:.0f} ms "
        "(with one pass of the encoder, to "
        f"see that it erases); {count} not seen together before take {unseen:.2f} s, and to "
        "switch them on again "
        f"{1000 * statistics.median(switched):.0f} ms."
    )


def alone(count: int, seed: int) -> str:
    """Seconds and peak memory of one default edit, in this process and without a denoiser."""
    pipe = layout(seed, denoiser=False)
    preserve = tuple(glyphs.captions(100, seed=0))
    spec = spec_of(names(count, seed), preserve)
    taken = cost(lambda: erase(pipe, spec, measure=False, **LIMITS), 1).seconds
    memory = resident("VmHWM") / 1024
    spent = f"{taken:.0f} s, {memory:.1f} GiB at most"
    return f"{count} concepts in a process of their own, statistics included: {spent}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("uce", "rece", "speed"):
        parser.add_argument(
            f"--{name}", type=Path, help=f"folder of the official {name} repository"
        )
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument(
        "--most",
        type=int,
        nargs=2,
        default=[100, 10],
        metavar=("SPEED", "RECE"),
        help="concepts for these peers",
    )
    parser.add_argument(
        "--alone",
        type=int,
        metavar="COUNT",
        help="print seconds and memory of one edit, and write no page",
    )
    parser.add_argument(
        "--live",
        type=int,
        metavar="COUNT",
        help="print what loading and switching take, and write no page",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page", type=Path, default=Path("benchmarks/results/speed.md"))
    args = parser.parse_args()
    if args.alone or args.live:
        return print(alone(args.alone, args.seed) if args.alone else live(args.live, args.seed))
    if args.uce is None:
        parser.error("the following arguments are required: --uce")
    where = provenance(args.seed)
    preserve = tuple(glyphs.captions(100, seed=0))
    pipe = layout(args.seed, denoiser=True)
    words = names(max(args.counts), args.seed)
    statistic, first = timed(lambda: erase(pipe, spec_of(words[:1], preserve), **LIMITS))
    edits: dict[str, Callable[[Sequence[str]], Any]] = {
        **peers(args, pipe, preserve),
        "ours, exact": lambda some: erase(
            pipe, spec_of(some, preserve, **EXACT), measure=False, **LIMITS
        ),
        "ours, default": lambda some: erase(pipe, spec_of(some, preserve), measure=False, **LIMITS),
        "ours, default, measured": lambda some: erase(pipe, spec_of(some, preserve), **LIMITS),
    }
    most = {
        "SPEED, official": args.most[0],
        "RECE, official, one round after UCE": args.most[1],
        "ours, default, measured": 100,
    }
    found: dict[str, dict[int, Cost]] = {row: {} for row in edits}
    for count, row in tqdm(
        [(c, row) for c in args.counts for row in edits if c <= most.get(row, c)], desc="edits"
    ):
        found[row][count] = cost(
            partial(edits[row], words[:count]), 3 if count <= 10 and row not in most else 1
        )
        tqdm.write(f"{count} {row}: {found[row][count]}")
    write(args, where, found, first, statistic)


def scaling(path: Path, found: dict[str, dict[int, Cost]]) -> None:
    """Concepts against seconds and against memory."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, field, label in zip(
        figure.subplots(1, 2), ("seconds", "mib"), ("seconds per edit", "MiB, peak"), strict=True
    ):
        for row, costs in found.items():
            line = "o-" if row.startswith("ours") else "s--"
            axes.loglog(
                list(costs),
                [
                    max(1.0, getattr(c, field)) if field == "mib" else c.seconds
                    for c in costs.values()
                ],
                line,
                label=row,
            )
        axes.set(xlabel="concepts", ylabel=label)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def told(*arguments: str) -> str:
    """The last line that this script prints with other arguments, in a process of its own."""
    return subprocess.run(
        [sys.executable, __file__, *arguments], check=True, capture_output=True, encoding="utf-8"
    ).stdout.splitlines()[-1]


def write(
    args: argparse.Namespace,
    where: str,
    found: dict[str, dict[int, Cost]],
    first: ErasureAdapter,
    statistic: float,
) -> None:
    scaling(args.page.parent / "images" / "speed.png", found)
    seed = ("--seed", str(args.seed))

    def cell(row: str, count: int) -> str:
        if count not in found[row]:
            return "-"
        mine = found[row][count]
        return (
            f"{mine.seconds:.2f} ({mine.seconds / found[UCE][count].seconds:.2f}), {mine.mib:.0f}"
        )

    rows = [f"| {row} | {' | '.join(cell(row, count) for count in args.counts)} |" for row in found]
    args.page.write_text(
        "\n".join(
            [
                "# Speed, beside the peers' official code",
                "",
                (
                    "`python benchmarks/speed.py --uce FOLDER --speed FOLDER --rece FOLDER` "
                    f"wrote this page: {where}."
                ),
                (
                    "SD 1.4 layout, random weights, float32; the edit alone, without loading a "
                    "model. UCE and RECE without a preserve list"
                ),
                (
                    "(RECE encodes each caption again for each linear), RECE's one round without "
                    "the UCE edit it starts from; SPEED with 100"
                ),
                (
                    "captions. Ours with cached statistics of 100 captions (computed once per "
                    f"base and list: {statistic:.0f} s)."
                ),
                (
                    "Exact: one template. Default: with soft prompts. Measured: held-out "
                    "residual and drift reported too."
                ),
                (
                    "Median of three, one run above 10 and of SPEED and RECE. Memory: peak of "
                    "the process above where the edit began."
                ),
                "",
                f"| seconds (against UCE), MiB | {' | '.join(map(str, args.counts))} |",
                "|---|" + "---|" * len(args.counts),
                *rows,
                "",
                "![scaling](images/speed.png)",
                "",
                f"One-concept adapter: {len(first.to_bytes()) / 2**20:.2f} MiB in float32.",
                told("--live", "10", *seed),
                "",
                told("--alone", str(max(args.counts)), *seed),
                "",
            ]
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
