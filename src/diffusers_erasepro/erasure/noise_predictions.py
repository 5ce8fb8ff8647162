"""What reaches the image: noise predictions on fixed latents, compared without generating one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..adapters.adapter import ErasureAdapter
from ..config.spec import ErasureSpec
from ..errors import UnknownFamilyError
from ..families.pipelines import family_of, get_component
from ..patching.weights import resolve_edits
from ..prompts.pairs import pairs_of, spread
from ..prompts.tokens import Tokens, token_ids
from .states import edited, states_of

PROMPTS_COMPARED = 16
RESERVED = 8
"""One in so many preserve captions at most is kept aside to judge by."""
STEADY = 0.9
"""Share of the captions that count; the others move most."""
SCHEDULE_STEPS = 6
COMPARED = 3
"""Latents are those of the first `COMPARED` of `SCHEDULE_STEPS` steps, which decide an image."""
GUIDANCE_SCALE = 3.0
NoiseStep = tuple[Tensor, Tensor, Tensor, Tensor]
"""A step: timestep, latents, and two predictions there of the unedited denoiser."""


@dataclass(frozen=True)
class NoisePredictions:
    """The unedited denoiser's predictions, and the latents they were made on."""

    pipe: Any
    captions: tuple[str, ...]
    """What other prompts stand for: some of the preserve list, which a metric should not see then,
    and some of the shipped corpus. On phrasings that no list holds an edit moves several times as
    much, and other chains move least."""
    targets: Tensor
    """`(n, length)` ids of prompts with a target."""
    keeps: Tensor
    """`(m, length)` ids of `captions`."""
    empty: Tensor
    """`(1, length)` ids of the empty prompt."""
    anchored: list[NoiseStep]
    """Per step: what the anchors and the targets predict, on the anchors' own latents."""
    kept: list[NoiseStep]
    """Per step: what the captions and the empty prompt predict, on the captions' latents."""
    clip_skip: int = 0
    """Of all prompts, as tools that read files have it; diffusers leaves it out of the negative."""

    @classmethod
    def of(
        cls, pipe: Any, spec: ErasureSpec, *, seed: int = 0, clip_skip: int = 0
    ) -> NoisePredictions:
        """Predictions of the pipeline as it is, for prompts of `spec`.

        Raises:
            UnknownFamilyError: The pipeline has no noise prediction that is known here.
        """
        tokenizer = getattr(pipe, _unet_family(pipe).encoders[0][1])
        captions = captions_to_judge(spec)
        exact = pairs_of(spec.concepts, "exact")
        pairs = spread(exact + pairs_of(spec.concepts, "soft"), PROMPTS_COMPARED)
        targets = token_ids(tokenizer, [pair.target.text for pair in pairs])
        anchors = token_ids(tokenizer, [pair.anchor.text for pair in pairs])
        keeps = token_ids(tokenizer, captions)
        empty = token_ids(tokenizer, [""])
        target_states, anchor_states, kept_states, empty_states = [
            _states(pipe, ids, clip_skip) for ids in (targets, anchors, keeps, empty)
        ]
        anchored = _denoise(pipe, anchor_states, target_states, seed)
        kept = _denoise(pipe, kept_states, empty_states, seed)
        return cls(pipe, captions, targets, keeps, empty, anchored, kept, clip_skip)

    def judge(self, adapter: ErasureAdapter) -> ErasureAdapter:
        """`adapter` with its denoiser residual and drift in the report."""
        residual, drift = self.compare(adapter)
        report = replace(adapter.report, denoiser_residual=residual, denoiser_drift=drift)
        return replace(adapter, report=report)

    @torch.no_grad()
    def compare(self, adapter: ErasureAdapter) -> tuple[float, float]:
        """Residual and drift of the denoiser under `adapter`'s edit.

        r = |e'(target) - e(anchor)| / |e(target) - e(anchor)|, on the anchor's own latents: what is
        left of the target.
        d = |g dc - (g - 1) du| / (g |e(keep) - e("")|) with dc = e'(keep) - e(keep) and
        du = e'("") - e(""): how far the guided prediction of another prompt moves, in units of what
        its words do. The mean over the prompts but for the tenth that moves most, as one prompt
        close to the brink would decide any sum.
        """
        residuals = []
        drifts = []
        with _edited(self.pipe, adapter):
            target = _states(self.pipe, self.targets, self.clip_skip)
            keep = _states(self.pipe, self.keeps, self.clip_skip)
            empty = _states(self.pipe, self.empty, self.clip_skip)
            for t, x, goal, before in self.anchored:
                moved = _norm(_predict(self.pipe, x, t, target) - goal)
                residuals.append(moved / _norm(before - goal))
            for change, effect in guided(self.pipe, self.kept, keep, empty):
                drifts.append(_norms(change) / (GUIDANCE_SCALE * _norms(effect)))
        count = math.ceil(STEADY * len(self.keeps))
        steady = torch.stack(drifts).mean(0).sort().values[:count]
        return sum(residuals) / len(residuals), float(steady.mean())


def captions_to_judge(spec: ErasureSpec) -> tuple[str, ...]:
    """Some captions of the preserve list, and some of the shipped corpus that it does not hold."""
    listed = spec.preserve_captions()
    corpus = replace(spec, preserve=None).preserve_captions()
    other = sorted(set(corpus) - set(spec.every_caption()))
    most = min(PROMPTS_COMPARED, max(1, len(listed) // RESERVED))
    return (*spread(listed, most), *spread(other, PROMPTS_COMPARED))


def guided(
    pipe: Any, steps: Iterable[NoiseStep], keep: Tensor, empty: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Per step: how far states `keep` and `empty` move the guided prediction.

    And beside it e(keep) - e("") of the unedited denoiser.
    """
    for t, x, kept, unconditional in steps:
        dc = _predict(pipe, x, t, keep) - kept
        du = _predict(pipe, x, t, empty) - unconditional
        yield GUIDANCE_SCALE * dc - (GUIDANCE_SCALE - 1) * du, kept - unconditional


def _unet_family(pipe: Any) -> Any:
    """The pipeline's record, if its denoiser is a UNet that reads one text encoder.

    Raises:
        UnknownFamilyError: It is not.
    """
    family = family_of(pipe)
    if family.denoiser != "unet" or len(family.encoders) != 1:
        raise UnknownFamilyError(
            "layers='auto' looks through a UNet that reads one text encoder; give "
            f"{type(pipe).__name__} its layers"
        )
    config: Any = get_component(pipe, family.denoiser).config
    if config.in_channels != config.out_channels:
        raise UnknownFamilyError(
            f"layers='auto' cannot draw with a UNet of {config.in_channels} channels in, "
            f"{config.out_channels} out; erase on its text-to-image sibling, whose text encoder is "
            "the same"
        )
    return family


def _states(pipe: Any, ids: Tensor, clip_skip: int) -> Tensor:
    use = family_of(pipe).encoders[0].skipping(clip_skip)
    return states_of(get_component(pipe, use.encoder), Tokens(ids), use.readings)[0]


def _predict(pipe: Any, latents: Tensor, t: Tensor, states: Tensor) -> Tensor:
    """`(n, c, h, w)`, or `(n, c, frames, h, w)`.

    A single row of states serves all latents, and every frame of a clip.
    """
    family = family_of(pipe)
    states = states.expand(len(latents), -1, -1).to(latents)
    states = states.repeat_interleave(family.frames or 1, dim=0)
    return get_component(pipe, family.denoiser)(latents, t, encoder_hidden_states=states).sample


def _denoise(pipe: Any, states: Tensor, others: Tensor, seed: int) -> list[NoiseStep]:
    """The first steps of generating from `states`; what `others` predict on the same latents."""
    family = family_of(pipe)
    config: Any = get_component(pipe, family.denoiser).config
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(SCHEDULE_STEPS)
    frames = () if family.frames is None else (family.frames,)
    shape = (len(states), config.in_channels, *frames, config.sample_size, config.sample_size)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator, dtype=torch.float32)
    latents = noise.to(states) * scheduler.init_noise_sigma
    steps = []
    for t in scheduler.timesteps[:COMPARED]:
        x = scheduler.scale_model_input(latents, t)
        predicted = _predict(pipe, x, t, states)
        steps.append((t, x, predicted, _predict(pipe, x, t, others)))
        latents = scheduler.step(predicted, t, latents).prev_sample
    return steps


@contextmanager
def _edited(pipe: Any, adapter: ErasureAdapter) -> Iterator[None]:
    """Inside, the pipeline computes with the adapter's edits; no weight is touched."""
    with ExitStack() as stack:
        for part in adapter.components:
            root = get_component(pipe, part)
            stack.enter_context(edited(root, resolve_edits(root, part, adapter)))
        yield


def _norms(x: Tensor) -> Tensor:
    """`(n,)`"""
    return x.double().flatten(1).norm(dim=1)


def _norm(x: Tensor) -> float:
    return float(x.double().norm())
