"""The numbers of docs/video.md: shapes and motions erased from moving glyphs, every frame judged, on held-out prompts."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm, trange

from common import change, erased, provenance, wilson
from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erasable, erase, glyphs
from diffusers_erasepro.config.options import Layers
from diffusers_erasepro.erasure.auto_layers import ENOUGH, NEARLY, Look
from diffusers_erasepro.erasure.layerwise import states_of
from diffusers_erasepro.evaluation.plots import save_grid
from diffusers_erasepro.families.encoders import blocks_of
from diffusers_erasepro.families.types import Reading
from diffusers_erasepro.glyphs.clip_judge import right
from diffusers_erasepro.glyphs.clips import (
    FRAMES,
    Clip,
    caption_of,
    captioned_clips,
    mention_clip,
    render_clip,
    sample_clip,
)
from diffusers_erasepro.prompts.pairs import ALIGNMENTS, rows_to_solve, text_paths
from train import to_tensor  # tools/glyphs, put on the path by common

Pairs = list[tuple[str, Clip]]
Clips = list[list[Image.Image]]
CONCEPTS: tuple[tuple[str, Concept], ...] = (
    ("shape", Concept("star", "circle")),
    ("shape", Concept("heart", "triangle")),
    ("motion", Concept("rising", "resting", templates="unsafe")),
    ("motion", Concept("quobbling", "resting", templates="unsafe")),
)
EVERY = tuple(concept for _, concept in CONCEPTS)
DEFAULT, AUTO = "default", "auto"
"""Choices beside the chains: layers by kind, word neurons for the shapes and blocks 0 and last for the motions; and auto's."""
Made = dict[str, dict[str, ErasureAdapter]]
"""Concept -> name of a chain, or `AUTO` -> adapter."""
Rows = dict[tuple[str, str], "Row"]
FRAMEWISE = ("shape", "color", "background")


def prompts_with(field: str, concept: Concept, n: int, seed: int) -> Pairs:
    """`n` held-out captions that ask for the concept, each with what it says."""
    rng = np.random.default_rng([seed, 1])
    said = [
        replace(mention_clip(sample_clip(rng), rng), **{field: concept.target}) for _ in range(n)
    ]
    return [(caption_of(clip, rng, held_out=True), clip) for clip in said]


def prompts_without(n: int, seed: int) -> Pairs:
    """`n` held-out captions that name another shape and none of the concepts."""
    rng, found = np.random.default_rng([seed, 2]), Pairs()
    words = {concept.target for concept in EVERY}
    while len(found) < n:
        said = mention_clip(sample_clip(rng), rng)
        if said.shape and not words & {said.shape, said.motion}:
            found.append((caption_of(said, rng, held_out=True), said))
    return found


@dataclass(frozen=True)
class Row:
    """One concept under one choice of layers."""

    concept: str
    layers: str
    target: float
    """Share of the target prompts' frames that still show the shape, or of their clips that still move so."""
    anchor: float
    context: float
    """Accuracy on what else the target prompts say, in frames."""
    frames: float
    """Accuracy on the other prompts: shape, colour and background in frames."""
    motions: float
    """Accuracy on the other prompts: motion of clips."""
    change: float
    """Mean frame-to-frame change of the judge's features on the other prompts."""
    mse: float
    """Mean change of the other prompts' frames against the unedited ones, same seeds."""


class Bench:
    """Clips drawn once and kept, and what the judge says of them."""

    def __init__(
        self, folder: Path, kept: Path, n: int, others: int, seed: int, steps: int
    ) -> None:
        self.pipe, self.judge = (
            erasable(glyphs.load_video_pipeline(folder)),
            glyphs.load_clip_judge(),
        )
        self.kept, self.n, self.seed, self.steps = kept, n, seed, steps
        self.others = prompts_without(others, seed)
        self.separations = separations_table(self.pipe)
        kept.mkdir(parents=True, exist_ok=True)

    def draw(self, name: str, pairs: Pairs) -> Clips:
        """One clip per caption; caption i always starts from the same noise."""
        starts = trange(0, len(pairs), 8, desc=name, leave=False)
        return [
            clip
            for i in starts
            for clip in self._batch(name, i, [text for text, _ in pairs[i : i + 8]])
        ]

    def _batch(self, name: str, first: int, texts: Sequence[str]) -> Clips:
        """The clips of these captions, the first of which is caption `first`. What was drawn before is read."""
        path = (
            self.kept
            / f"{name}.{hashlib.sha256(repr((first, texts)).encode()).hexdigest()[:12]}.npy"
        )
        if not path.exists():
            noise = [
                torch.Generator().manual_seed(self.seed * 100_000 + first + j)
                for j in range(len(texts))
            ]
            drawn = self.pipe(
                texts,
                num_frames=FRAMES,
                num_inference_steps=self.steps,
                guidance_scale=3.0,
                generator=noise,
            ).frames
            np.save(path, np.array([[np.asarray(f) for f in clip] for clip in drawn]))
        return [[Image.fromarray(frame) for frame in clip] for clip in np.load(path)]

    def row(
        self, field: str, concept: Concept, layers: str, adapter: ErasureAdapter | None = None
    ) -> Row:
        """Drawn with `adapter` on; clips of an adapter for several concepts serve all their rows."""
        with erased(self.pipe, adapter) if adapter else nullcontext():
            edit = "unedited" if adapter is None else adapter.digest[:12]
            targets = prompts_with(field, concept, self.n, self.seed)
            told = self.judge(self.draw(f"{edit}.{concept.target}", targets))
            clips = self.draw(f"{edit}.others", self.others)
        kept, base = (
            right(self.judge(clips), [said for _, said in self.others]),
            self.draw("unedited.others", self.others),
        )
        context = right(told, [said for _, said in targets])
        return Row(
            concept.target,
            layers,
            share(told[field], concept.target),
            share(told[field], concept.anchor),
            mean([v for name in FRAMEWISE if name != field for v in context[name]]),
            mean([v for name in FRAMEWISE for v in kept[name]]),
            mean(kept["motion"]),
            float(self.judge.changes(clips).mean()),
            float(change(frames_of(clips), frames_of(base)).mean()),
        )


def mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def share(answers: list[Any], word: str) -> float:
    """Share of all frames, or clips, of which the judge says `word`."""
    flat = [v for answer in answers for v in (answer if isinstance(answer, list) else [answer])]
    return mean([v == word for v in flat])


def frames_of(clips: Clips) -> list[Image.Image]:
    return [frame for clip in clips for frame in clip]


def named(layers: Layers) -> str:
    return "+".join(map(str, layers))


def made(
    pipe: Any, concept: Concept, preserve: tuple[str, ...], kept: Path
) -> dict[str, ErasureAdapter]:
    """An adapter per chain that `layers="auto"` looks at, each with its denoiser residual and drift, and what it makes of
    them; made before, read."""
    spec, paths = (
        ErasureSpec((concept,), preserve=preserve),
        {c: kept / f"{concept.target}-{named(c)}" for c in EARLY},
    )
    if not all(path.exists() for path in paths.values()):
        with torch.no_grad():
            look = Look.at(pipe, spec)
        unseen = replace(spec, preserve=tuple(t for t in preserve if t not in look.captions))
        for layers, path in tqdm(paths.items(), desc=f"{concept.target}: chains", leave=False):
            r, d = look.compare(erase(pipe, unseen, layers=layers, measure=False))
            whole = erase(pipe, spec, layers=layers)
            replace(
                whole, report=replace(whole.report, denoiser_residual=r, denoiser_drift=d)
            ).save_pretrained(path)
    if not (auto := kept / f"{concept.target}-{AUTO}").exists():
        erase(pipe, spec, layers=AUTO).save_pretrained(auto)
    return {named(c): ErasureAdapter.from_pretrained(p) for c, p in paths.items()} | {
        AUTO: ErasureAdapter.from_pretrained(auto)
    }


def separation(pipe: Any, concept: Concept) -> list[float]:
    """CLEAR's criterion, our reading of its abstract: per block, |mean target - mean anchor|^2 over the variance within both.

    Read at the last subject token of the soft prompts.
    """
    path = text_paths(pipe)[0]
    rows = rows_to_solve((concept,), path, ALIGNMENTS["last_subject"], soft_budget=96)["soft"]
    readings = [Reading("hidden_states", i + 1) for i in range(len(blocks_of(path.encoder)) - 1)]
    readings.append(path.use.readings[0])
    sides = zip(
        states_of(path.encoder, rows.target, readings),
        states_of(path.encoder, rows.anchor, readings),
        strict=True,
    )
    found = []
    for targets, anchors in sides:
        a, b = (
            targets[rows.row, rows.target_at].double(),
            anchors[rows.row, rows.anchor_at].double(),
        )
        within = a.var(0).sum() + b.var(0).sum()
        found.append(float((a.mean(0) - b.mean(0)).square().sum() / within))
    return found


def judged_renders(judge: Any, vae: Any, n: int) -> list[str]:
    """The judge itself: on clips drawn by code, and on what the VAE leaves of them."""
    rng = np.random.default_rng(5)
    full = [sample_clip(rng) for _ in range(n)]
    stacks = [render_clip(clip, rng) for clip in full]
    with torch.no_grad():
        again = [
            ((vae(to_tensor(s)).sample.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).byte().numpy()
            for s in stacks
        ]
    lines = []
    for name, clips in (("judge on renders", stacks), ("judge on reconstructions", again)):
        found = right(judge([[Image.fromarray(f) for f in clip] for clip in clips]), full)
        lines.append(
            f"| {name}, {n} clips | "
            + " | ".join(f"{mean(found[k]):.3f}" for k in (*FRAMEWISE, "motion"))
            + " |"
        )
    return lines


def drawn_right(bench: Bench) -> list[str]:
    """The unedited pipeline: what its clips show of what the captions say."""
    lines = []
    for name, held_out in (("training", False), ("**held-out**", True)):
        pairs = captioned_clips(bench.n, seed=bench.seed + 50, held_out=held_out)
        clips = bench.draw(f"unedited.{'held-out' if held_out else 'training'}", pairs)
        found = right(bench.judge(clips), [said for _, said in pairs])
        by = " | ".join(f"{mean(found[k]):.3f}" for k in (*FRAMEWISE, "motion"))
        lines.append(f"| drawn from {name} phrasings, {bench.n} clips | {by} |")
    return lines


def row_line(row: Row, base: Row, n: int) -> str:
    low, high = wilson(row.target, n)
    return (
        f"| {row.concept} | {row.layers} | {row.target:.3f} ({low:.2f} to {high:.2f}) | {row.anchor:.3f} | {row.context:.3f} | "
        f"{row.frames:.3f} | {row.motions:.3f} | {100 * (row.change / base.change - 1):+.1f} % | {row.mse:.5f} |"
    )


EARLY = ((0, -1), (1, -1), (2, -1), (3, -1), (-1,), (0, "kv"), (1, "kv"))
"""The fixed choices beside auto's: one early block, and one place that closes what it leaves."""
HEAD = (
    "| erased | layers | target left (95 %, by clips) | anchor | rest of the prompt | others: frames | others: motion | "
    "others: frame-to-frame change | others: mse |",
    "|---|---|---|---|---|---|---|---|---|",
)


def promises(rows: Rows, layers: str) -> list[str]:
    """What was asked, what was measured with this choice of layers, and whether it holds."""
    lines = ["| what | allowed | worst measured | holds |", "|---|---|---|---|"]

    def line(
        what: str,
        allowed: str,
        values: dict[str, float],
        most: float,
        form: str,
        *,
        drawn: float = 1.0,
    ) -> None:
        worst = max(values, key=values.__getitem__)
        holds = (
            "**no**"
            if values[worst] > most
            else "yes"
            if drawn >= 0.5
            else "no proof: hardly drawn before"
        )
        lines.append(f"| {what} | {allowed} | {form.format(values[worst])} ({worst}) | {holds} |")

    base, done = (
        rows[EVERY[0].target, "unedited"],
        [c.target for c in EVERY if (c.target, layers) in rows],
    )
    for field, unit in (("shape", "frames"), ("motion", "clips")):
        left = {
            c.target: rows[c.target, layers].target
            for f, c in CONCEPTS
            if f == field and c.target in done
        } or {"none yet": 1.0}
        before = min(
            (rows[t, "unedited"].target for t in left if (t, "unedited") in rows), default=0.0
        )
        line(
            f"erased {field} still there, {unit} (unedited from {before:.2f})",
            "<= .05",
            left,
            0.05,
            "{:.3f}",
            drawn=before,
        )
    for name in ("frames", "motions"):
        lost = {t: getattr(base, name) - getattr(rows[t, layers], name) for t in done}
        line(f"accuracy of other prompts lost, {name}", "<= .02", lost, 0.02, "{:.3f}")
    moved = {t: abs(rows[t, layers].change / base.change - 1) for t in done}
    line(
        "frame-to-frame change of other prompts, against unedited", "+-10 %", moved, 0.10, "{:.1%}"
    )
    return lines


def best_fixed(adapters: Made) -> str:
    """The one chain for all concepts by the rule auto has for one: fewest residuals over the bound, then least mean drift."""

    def cost(layers: str) -> tuple[int, float]:
        reports = [found[layers].report for found in adapters.values()]
        return sum((r.denoiser_residual or 0) > ENOUGH for r in reports), sum(
            r.denoiser_drift or 0 for r in reports
        )

    return min(map(named, EARLY), key=cost)


def strip(
    bench: Bench, field: str, concept: Concept, adapter: ErasureAdapter, images: Path
) -> list[str]:
    """Eight frames before and after, for the first prompt whose unedited clip shows the concept most."""
    pairs = prompts_with(field, concept, bench.n, bench.seed)
    before, after = (
        bench.draw(f"{e}.{concept.target}", pairs) for e in ("unedited", adapter.digest[:12])
    )
    told = bench.judge(before)[field]
    i = max(range(bench.n), key=lambda i: share([told[i]], concept.target))
    rows = {"unedited": before[i], f"{concept.target} erased": after[i]}
    save_grid(
        images / f"video-{concept.target}.png",
        [f"frame {k}" for k in range(FRAMES)],
        rows,
        title=pairs[i][0],
    )
    return [f"![{concept.target}, before and after](images/video-{concept.target}.png)", ""]


def chains_table(adapters: Made, rows: Rows, fixed: str) -> list[str]:
    """Per concept and chain: what the noise predictions say, and, where it was drawn, what is seen."""
    lines = [
        "| erased | layers | soft weight | r | d | target left | others: frames | others: mse |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for target, found in adapters.items():
        for layers, adapter in found.items():
            row, report, options = rows.get((target, layers)), adapter.report, adapter.options
            seen = f"{row.target:.3f} | {row.frames:.3f} | {row.mse:.5f}" if row else "- | - | -"
            name = {AUTO: f"**auto**: {named(options.layers)}", fixed: f"{fixed} (best fixed)"}.get(
                layers, layers
            )
            numbers = f"{options.soft_weight:g} | {report.denoiser_residual:.3f} | {report.denoiser_drift:.4f}"
            lines.append(f"| {target} | {name} | {numbers} | {seen} |")
    return lines


def separations_table(pipe: Any) -> list[str]:
    found = {concept.target: separation(pipe, concept) for concept in EVERY}
    blocks = range(len(found["star"]))
    lines = [
        f"| erased | {' | '.join(f'block {i}' for i in blocks)} |",
        "|---|" + "---|" * len(blocks),
    ]
    for target, values in found.items():
        cells = (f"**{v:.1f}**" if v == max(values) else f"{v:.1f}" for v in values)
        lines.append(f"| {target} | {' | '.join(cells)} |")
    return lines


INTRO = """
Prompts are held-out phrasings; preserve list: `captioned_clips(400, seed=0)`, training phrasings. The pipeline is
`glyphs.load_video_pipeline()`, a stock `AnimateDiffPipeline`; [the glyph world](glyphs.md#moving-glyphs) says how it was
trained. Shape, colour and background are counted per frame in which the glyph should be there, the motion per clip.
"""
CELLS = """
Target left: share of frames that show the shape, of clips that move so. Its interval takes clips as the trials, as frames
of one clip are not independent. The other prompts name another shape and none of the four concepts.
"""
LAYERS = """
`layers="auto"` compares noise predictions of whole clips, and draws nothing: r is what is left of the target, d is drift.
It takes the least d with r <= {enough}; where no chain erases so much, it tries them again with a soft weight of 3, 10 and 30
times the default; if none ever does, it takes the least d with r <= {nearly}, and only then the least r. The second bound
was set on training phrasings. Best fixed is the one chain for all four concepts by the same numbers: fewest r above the
first bound, then least mean d; here {fixed}. Drawn are the default, auto's choice and the best fixed.
"""
CLEAR = """
CLEAR (arXiv 2605.25941) edits where concept and non-concept separate. Our reading, per block of the text encoder: squared
distance of the mean target and the mean anchor over the variance within both, at the last subject token.
"""


def write(
    page: Path, bench: Bench, head: list[str], rows: Rows, adapters: Made, pictures: list[str]
) -> None:
    """The page, with what has been drawn so far."""
    n, auto = bench.n, any(choice == AUTO for _, choice in rows)
    text = [
        *head,
        "",
        "## Asked and measured",
        "",
        "With the default, `erase(pipe, spec)`: word neurons for shapes, blocks 0 and last for motions; each concept alone:",
        ", ".join(f"{c.target} to {c.anchor}" for c in EVERY) + ".",
        "",
        *promises(rows, DEFAULT),
        "",
        *(
            ['With `erase(pipe, spec, layers="auto")`:', "", *promises(rows, AUTO), ""]
            if auto
            else []
        ),
        "## Before and after",
        "",
        *pictures,
        "## Every cell",
        CELLS,
        *HEAD,
        *(row_line(row, rows[t, "unedited"], n) for (t, _), row in sorted(rows.items())),
    ]
    if adapters:
        fixed = best_fixed(adapters)
        text += [
            "",
            "## Which layers",
            LAYERS.format(enough=ENOUGH, nearly=NEARLY, fixed=fixed),
            *chains_table(adapters, rows, fixed),
        ]
    page.write_text("\n".join([*text, CLEAR, *bench.separations, ""]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=48, help="clips per cell")
    parser.add_argument(
        "--others",
        type=int,
        default=96,
        help="clips of other prompts, of which one may be lost in fifty",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--folder", type=Path, default=glyphs.VIDEO, help="where the weights are")
    parser.add_argument(
        "--kept",
        type=Path,
        default=Path("runs/video-bench"),
        help="what an earlier start made is read from here",
    )
    parser.add_argument(
        "--page", type=Path, default=Path("docs/video.md"), help="written again after every cell"
    )
    args = parser.parse_args()
    bench = Bench(args.folder, args.kept, args.n, args.others, args.seed, args.steps)
    preserve = tuple(text for text, _ in captioned_clips(400, seed=0))
    base = judged_renders(bench.judge, bench.pipe.vae, 2 * args.n) + drawn_right(bench)
    head = [
        "# Moving glyphs, measured",
        "",
        f"`benchmarks/video.py` wrote this page: {provenance(args.seed)},",
        f"{args.n} clips of {FRAMES} frames per cell, {args.others} of others, {args.steps} steps, guidance 3, float32.",
        INTRO,
        "| share right | shape | colour | background | motion |",
        "|---|---|---|---|---|",
        *base,
    ]
    rows, adapters, pictures = Rows(), Made(), list[str]()

    def note(concept: Concept, key: str, row: Row) -> None:
        rows[concept.target, key] = row
        tqdm.write(json.dumps(vars(row)))
        write(args.page, bench, head, rows, adapters, pictures)

    for field, concept in tqdm(CONCEPTS, desc="default"):
        alone = erase(bench.pipe, ErasureSpec((concept,), preserve=preserve))
        rows[concept.target, "unedited"] = bench.row(field, concept, "unedited")
        row = bench.row(field, concept, DEFAULT, alone)
        pictures += strip(bench, field, concept, alone, args.page.parent / "images")
        note(concept, DEFAULT, row)
    together = erase(bench.pipe, ErasureSpec(EVERY, preserve=preserve))
    for field, concept in tqdm(CONCEPTS, desc="all at once"):
        note(concept, "together", bench.row(field, concept, f"{DEFAULT}, all four", together))
    for concept in tqdm(EVERY, desc="every chain"):
        adapters[concept.target] = made(bench.pipe, concept, preserve, args.kept / "adapters")
    fixed = best_fixed(adapters)
    for field, concept in tqdm(CONCEPTS, desc="auto and best fixed"):
        for layers in sorted({AUTO, fixed} - {DEFAULT}):
            note(
                concept, layers, bench.row(field, concept, layers, adapters[concept.target][layers])
            )
    write(args.page, bench, head, rows, adapters, pictures)


if __name__ == "__main__":
    main()
