"""What reaches the picture: noise predictions on fixed latents, compared without drawing one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..adapters.adapter import ErasureAdapter
from ..adapters.report import Report
from ..config.options import Options, with_neurons
from ..config.spec import ErasureSpec
from ..errors import UnknownFamilyError
from ..families.pipelines import family_of, get_component
from ..patching.weights import resolve_edits
from ..prompts.pairs import Pair, pairs_of, spread, token_ids
from .layerwise import edited, final_states

K = TypeVar("K")
CHAINS: tuple[dict[str, Any], ...] = (
    {"layers": (0, -1)},
    {"layers": (1, -1)},
    {"layers": (0, "kv")},
    {"layers": (1, "kv")},
    {"layers": ("neurons", "eos_neurons", -1)},
)
"""What `layers="auto"` chooses from, beside what each concept's kind asks for: one early place or neurons, and one place that
closes what they leave.

Not here: blocks from 2 on with the last, and the last alone. A target came through in up to a quarter of their pictures, though
its noise predictions had met the anchor's. EOS neurons alone, unless the kind asks for them: at the same drift here they flip
twice as many pictures of other things as word neurons do.
"""
STRONGER = (1, 3, 10, 30)
"""Where no chain erases enough, "auto" tries them again with the soft prompts weighing so many times more."""
ENOUGH = 0.15
"""Denoiser residual allowed. method.md's worlds asked for .3; on the shipped one a style came through in .115 of
pictures at .19."""
NEARLY = 0.25
"""Allowed where no chain, however strong, gets under `ENOUGH`: with motions the least residual cost other motions, while
at .21 and .25 none came through in 48 clips of training phrasings."""
HELPS = 0.9
"""Stronger soft prompts that leave more than this of the least residual do not help: no stronger ones are tried."""
PROMPTS = 16
LENT = 8
"""One in so many preserve captions at most is lent to judge by."""
STEADY = 0.9
"""Share of the captions that count; the others move most."""
STEPS, LOOKS = 6, 3
"""Latents are those of the first `LOOKS` steps of a drawing of `STEPS` steps: there a picture is decided."""
GUIDANCE = 3.0


@dataclass(frozen=True)
class Look:
    """The unedited denoiser's predictions, and the latents they were made on."""

    pipe: Any
    captions: tuple[str, ...]
    """What other prompts stand for: some of the preserve list, which a metric should not see then, and some of the shipped
    corpus. On phrasings that no list holds an edit moves several times as much, and other chains move least."""
    targets: Tensor
    """`(n, length)` ids of prompts with a target."""
    keeps: Tensor
    """`(m, length)` ids of `captions`."""
    empty: Tensor
    """`(1, length)` ids of the empty prompt."""
    anchored: list[tuple[Tensor, Tensor, Tensor, Tensor]]
    """Per step: timestep, latents, and what the anchors and the targets predict there, unedited."""
    kept: list[tuple[Tensor, Tensor, Tensor, Tensor]]
    """Per step: timestep, latents, and what the captions and the empty prompt predict there, unedited."""

    @classmethod
    def at(cls, pipe: Any, spec: ErasureSpec, *, seed: int = 0) -> Look:
        """Look at the pipeline as it is, for prompts of `spec`.

        Raises:
            UnknownFamilyError: The pipeline has no noise prediction that is known here.
        """
        family = family_of(pipe)
        if family.denoiser != "unet" or len(family.encoders) != 1:
            raise UnknownFamilyError(
                f"layers='auto' looks through a UNet that reads one text encoder; give {type(pipe).__name__} its layers"
            )
        config: Any = get_component(pipe, family.denoiser).config
        if config.in_channels != config.out_channels:
            raise UnknownFamilyError(
                f"layers='auto' cannot draw with a UNet of {config.in_channels} channels in, {config.out_channels} out; erase on "
                "its text-to-image sibling, whose text encoder is the same"
            )
        tokenizer = getattr(pipe, family.encoders[0][1])
        captions = _judging(spec)
        pairs: list[Pair] = spread(
            pairs_of(spec.concepts, "exact") + pairs_of(spec.concepts, "soft"), PROMPTS
        )
        targets, anchors, keeps = (
            token_ids(tokenizer, texts)
            for texts in (
                [p.target.text for p in pairs],
                [p.anchor.text for p in pairs],
                captions,
            )
        )
        empty = token_ids(tokenizer, [""])
        of = lambda ids: _states(pipe, ids)  # noqa: E731
        return cls(
            pipe,
            captions,
            targets,
            keeps,
            empty,
            _followed(pipe, of(anchors), of(targets), seed),
            _followed(pipe, of(keeps), of(empty), seed),
        )

    def judged(self, adapter: ErasureAdapter) -> ErasureAdapter:
        """`adapter` with its denoiser residual and drift in the report."""
        residual, drift = self.compare(adapter)
        return replace(
            adapter,
            report=replace(adapter.report, denoiser_residual=residual, denoiser_drift=drift),
        )

    @torch.no_grad()
    def compare(self, adapter: ErasureAdapter) -> tuple[float, float]:
        """Residual and drift of the denoiser under `adapter`'s edit.

        r = |e'(target) - e(anchor)| / |e(target) - e(anchor)|, on the anchor's own way: what is left of the target.
        d = |g dc - (g - 1) du| / (g |e(keep) - e("")|) with dc = e'(keep) - e(keep), du = e'("") - e(""): how far the
        guided prediction of another prompt moves, in units of what its words do. The mean over the prompts but for the tenth that
        moves most: the one that hangs by a breath decides any sum, and its choice flipped more pictures of ten concepts.
        """
        with _edited(self.pipe, adapter):
            target, keep, empty = (
                _states(self.pipe, ids) for ids in (self.targets, self.keeps, self.empty)
            )
            r = [
                _norm(_predict(self.pipe, x, t, target) - a) / _norm(b - a)
                for t, x, a, b in self.anchored
            ]
            d = [
                _each(moved) / (GUIDANCE * _each(said))
                for moved, said in guided(self.pipe, self.kept, keep, empty)
            ]
        steady = torch.stack(d).mean(0).sort().values[: math.ceil(STEADY * len(self.keeps))]
        return sum(r) / len(r), float(steady.mean())


def _judging(spec: ErasureSpec) -> tuple[str, ...]:
    """Captions to judge by: some lent of the preserve list, and some of the shipped corpus that it does not hold."""
    listed = spec.preserve_captions()
    corpus = replace(spec, preserve=None).preserve_captions()
    unheard = sorted(set(corpus) - set(spec.every_caption()))
    return (*spread(listed, min(PROMPTS, max(1, len(listed) // LENT))), *spread(unheard, PROMPTS))


def guided(
    pipe: Any, way: Iterable[tuple[Tensor, ...]], keep: Tensor, empty: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Per step of `way`: how far states `keep` and `empty` move the guided prediction, and e(keep) - e("") of the unedited."""
    for t, x, k, e in way:
        dc, du = _predict(pipe, x, t, keep) - k, _predict(pipe, x, t, empty) - e
        yield GUIDANCE * dc - (GUIDANCE - 1) * du, k - e


def choices(
    spec: ErasureSpec, choice: Options, usual: Options, tried: Mapping[Options, Report]
) -> Iterator[Options]:
    """The usual choice and every chain; and again with stronger soft prompts, while none tried erases enough and that helps.

    What leaks then are phrasings that no list holds.
    """
    least = math.inf
    chains = [
        chain for chain in CHAINS if choice.variant == "block" or not with_neurons(chain["layers"])
    ]
    chosen = [
        usual,
        *(replace(choice, **chain).settled(spec.concepts, neurons=True) for chain in chains),
    ]
    for times in STRONGER:
        yield from (
            replace(one, soft_weight=times * choice.soft_weight) for one in dict.fromkeys(chosen)
        )
        before, least = least, least_residual(tried.values())
        if not choice.soft_weight or least <= ENOUGH or least > HELPS * before:
            return


def least_drift(tried: Mapping[K, Report], usual: K) -> K:
    """The key of the least denoiser drift among reports that erase enough, or nearly; if none does, among those near the best.

    Args:
        tried: What was made, by choice.
        usual: The choice that thousands of pictures stand behind; for it "nearly" is enough.
    """
    seen = {key: _seen(report) for key, report in tried.items()}
    for bound in (ENOUGH, NEARLY, least_residual(tried.values()) / HELPS):
        if enough := {
            key: d for key, (r, d) in seen.items() if r <= bound or (key == usual and r <= NEARLY)
        }:
            break
    return min(enough, key=enough.__getitem__)


def least_residual(reports: Iterable[Report]) -> float:
    """The least denoiser residual; infinite where nothing was tried."""
    return min((_seen(report)[0] for report in reports), default=math.inf)


def _seen(report: Report) -> tuple[float, float]:
    assert report.denoiser_residual is not None and report.denoiser_drift is not None
    return report.denoiser_residual, report.denoiser_drift


def _states(pipe: Any, ids: Tensor) -> Tensor:
    return final_states(get_component(pipe, family_of(pipe).encoders[0][0]), ids)


def _predict(pipe: Any, latents: Tensor, t: Tensor, states: Tensor) -> Tensor:
    """`(n, c, h, w)`, or `(n, c, frames, h, w)`; a single row of states serves all latents, and every frame of a clip."""
    family = family_of(pipe)
    states = (
        states.expand(len(latents), -1, -1).to(latents).repeat_interleave(family.frames or 1, dim=0)
    )
    return get_component(pipe, family.denoiser)(latents, t, encoder_hidden_states=states).sample


def _followed(
    pipe: Any, states: Tensor, others: Tensor, seed: int
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The way of a drawing by `states`: timestep, latents, its prediction, and what `others` predict on the same latents."""
    family = family_of(pipe)
    config: Any = get_component(pipe, family.denoiser).config
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)
    frames = () if family.frames is None else (family.frames,)
    shape = (len(states), config.in_channels, *frames, config.sample_size, config.sample_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    latents = noise.to(states) * scheduler.init_noise_sigma
    way = []
    for t in scheduler.timesteps[:LOOKS]:
        x = scheduler.scale_model_input(latents, t)
        way.append((t, x, _predict(pipe, x, t, states), _predict(pipe, x, t, others)))
        latents = scheduler.step(way[-1][2], t, latents).prev_sample
    return way


@contextmanager
def _edited(pipe: Any, adapter: ErasureAdapter) -> Iterator[None]:
    """Inside, the pipeline computes with the adapter's edits; no weight is touched."""
    with ExitStack() as stack:
        for part in adapter.components:
            root = get_component(pipe, part)
            stack.enter_context(edited(root, resolve_edits(root, part, adapter)))
        yield


def _each(x: Tensor) -> Tensor:
    """`(n,)` norms."""
    return x.double().flatten(1).norm(dim=1)


def _norm(x: Tensor) -> float:
    return float(x.double().norm())
