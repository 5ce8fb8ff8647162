"""`layers="auto"`: the chain of layers whose noise predictions erase enough and drift least."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..adapters.adapter import ErasureAdapter
from ..adapters.report import Report
from ..config.options import Options
from ..config.plan import Layers, Plan
from ..config.spec import ErasureSpec
from ..errors import ConceptSpecError, IllPosedError
from .noise_predictions import NoisePredictions

CHAINS: tuple[Layers, ...] = (
    (0, -1),
    (1, -1),
    (0, "kv"),
    (1, "kv"),
    ("neurons", "eos_neurons", -1),
)
"""What is chosen from, beside what each concept's kind asks for: one early place or neurons, and
one place that closes what they leave.

Not here: blocks from 2 on with the last, and the last alone. A target came through in up to a
quarter of their images, though its noise predictions had met the anchor's. EOS neurons alone,
unless the kind asks for them: at the same drift here they flip twice as many images of other things
as word neurons do.
"""
STRONGER = (1, 3, 10, 30)
"""Where no chain erases enough, all are tried again with soft prompts that weigh so many times
more."""
ENOUGH = 0.15
"""Denoiser residual allowed. Two early worlds asked for 0.3; on the shipped one a style came
through in 0.115 of images at 0.19."""
NEARLY = 0.25
"""Allowed where no chain, however strong, gets under `ENOUGH`: with motions the least residual cost
other motions, while at 0.21 and 0.25 none came through in 48 clips of training phrasings."""
HELPS = 0.9
"""Stronger soft prompts that leave more than this of the least residual do not help: no stronger
ones are tried."""


@dataclass(frozen=True)
class Trial:
    """One way to erase that is tried."""

    plan: Plan
    soft_weight: float


@dataclass(frozen=True)
class Choice:
    """What was chosen, and what the denoiser made of it."""

    options: Options
    plan: Plan
    denoiser_residual: float | None
    denoiser_drift: float | None

    def add_to(self, report: Report) -> Report:
        """`report` with what the denoiser made of the trial."""
        return replace(
            report,
            denoiser_residual=self.denoiser_residual,
            denoiser_drift=self.denoiser_drift,
        )


def choose_layers(
    pipe: Any,
    spec: ErasureSpec,
    options: Options,
    usual: Plan,
    erase_as_planned: Callable[[ErasureSpec, Options, Plan], ErasureAdapter],
) -> Choice:
    """The trial of least denoiser drift among those whose denoiser residual is low enough.

    Trials are solved without the captions that judge them: on captions of its own metric a deeper
    chain looks better than it is.

    Args:
        pipe: As it is.
        spec: What to erase.
        options: As asked for; their layers are what is chosen.
        usual: What would be done if layers were not asked for.
        erase_as_planned: Makes the adapter of a trial.

    Raises:
        ConceptSpecError, IllPosedError: No trial could be solved; the first error.
    """
    predictions = NoisePredictions.of(pipe, spec, clip_skip=options.clip_skip)
    seen = set(predictions.captions)
    rest = tuple(caption for caption in spec.every_caption() if caption not in seen)
    unseen = replace(spec, preserve=rest)
    tried: dict[Trial, Report] = {}
    refused: list[Exception] = []
    for trial in trials(spec, options, usual, tried):
        asked = replace(options, soft_weight=trial.soft_weight)
        try:
            adapter = erase_as_planned(unseen, asked, trial.plan)
        except (ConceptSpecError, IllPosedError) as error:
            # an encoder too short for the chain, or an edit too large
            refused.append(error)
        else:
            tried[trial] = predictions.judge(adapter).report
    if not tried:
        raise refused[0]
    best = least_drift(tried, Trial(usual, options.soft_weight))
    report = tried[best]
    return Choice(
        as_options(options, best),
        best.plan,
        report.denoiser_residual,
        report.denoiser_drift,
    )


def as_options(options: Options, trial: Trial) -> Options:
    """`options` that ask for just this trial, so that the adapter records it."""
    recipes = dict(trial.plan.recipes)
    layers: Any = {target: recipe.layers for target, recipe in recipes.items()}
    alignment: Any = {target: recipe.alignment for target, recipe in recipes.items()}
    if len({*recipes.values()}) == 1:
        layers = next(iter(layers.values()))
        alignment = next(iter(alignment.values()))
    return replace(options, layers=layers, alignment=alignment, soft_weight=trial.soft_weight)


def trials(
    spec: ErasureSpec, options: Options, usual: Plan, tried: Mapping[Trial, Report]
) -> Iterator[Trial]:
    """The usual plan and every chain; and again with stronger soft prompts.

    As long as none tried erases enough and the last round helped. What comes through then are
    phrasings that no list holds.
    """
    plans = {usual: None}
    for chain in CHAINS:
        asked = replace(options, layers=chain)
        plans[asked.resolve(spec.concepts)] = None
    least = math.inf
    for times in STRONGER:
        for plan in plans:
            yield Trial(plan, times * options.soft_weight)
        before = least
        least = least_residual(tried.values())
        if not options.soft_weight or least <= ENOUGH or least > HELPS * before:
            return


def least_drift(tried: Mapping[Trial, Report], usual: Trial) -> Trial:
    """The trial of least denoiser drift among those that erase enough, or nearly.

    If none does, among those near the best.

    Args:
        tried: What each trial came to.
        usual: The trial that thousands of images stand behind; for it "nearly" is enough.
    """
    for bound in (ENOUGH, NEARLY, least_residual(tried.values()) / HELPS):
        enough = {}
        for trial, report in tried.items():
            residual, drift = _residual_and_drift(report)
            allowed = max(bound, NEARLY) if trial == usual else bound
            if residual <= allowed:
                enough[trial] = drift
        if enough:
            break
    return min(enough, key=enough.__getitem__)


def least_residual(reports: Iterable[Report]) -> float:
    """The least denoiser residual; infinite where nothing was tried."""
    return min((_residual_and_drift(report)[0] for report in reports), default=math.inf)


def _residual_and_drift(report: Report) -> tuple[float, float]:
    assert report.denoiser_residual is not None
    assert report.denoiser_drift is not None
    return report.denoiser_residual, report.denoiser_drift
