"""From a finished walk to the adapter and its report."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..adapters.adapter import ErasureAdapter
from ..adapters.header import describe_clip_skip
from ..adapters.report import (
    NAN,
    EncoderReport,
    LayerReport,
    Report,
    SizeLimit,
    layer_report,
    worst,
)
from ..families.encoders import embeddings_path, stored_name, take_neurons
from ..families.pipelines import family_of, get_component
from ..linalg.low_rank import LowRank
from ..modules.fingerprint import fingerprints
from ..modules.storage import weight_of
from ..prompts.tokens import text_paths
from .layerwise import Step, Walk
from .residuals import read_residual
from .sites.gates import GateSite
from .sites.planning import Planning
from .sites.protocol import STATES
from .sites.readers import ReaderSite

LENGTH_ARGUMENT = "max_sequence_length"
"""The argument of a call that says how many tokens a prompt is padded to."""
BESIDE = "past the edits: {}"
"""What of a prompt no edit of the encoders reaches, as the pipeline was observed."""
NOT_ADDABLE = (
    "gates and neurons of two adapters may be the same ones: load_erasure_adapter solves them "
    "together, stock load_lora_weights would add them up"
)


@dataclass(frozen=True)
class ErasedEncoder:
    """One text encoder's share of an adapter; it may hold no edit, where others hold some."""

    planning: Planning
    base: Mapping[str, Mapping[str, str]]
    edits: Mapping[str, LowRank]
    keys: Mapping[str, Tensor]
    goals: Mapping[str, Tensor]
    report: Report


def encoder_from_walk(planning: Planning, done: Walk) -> ErasedEncoder:
    """What a finished walk leaves of one text encoder.

    Raises:
        IllPosedError: An edit is larger than the options allow.
    """
    name = planning.path.use.encoder
    base = {name: dict(planning.base)}
    edits: dict[str, LowRank] = {}
    keys: dict[str, Tensor] = {}
    for step in done.steps:
        part = step.site.component
        if part not in base:
            base[part] = fingerprints(get_component(planning.pipe, part), {})
        for linear, key in step.keys.items():
            stored = f"{name}.{STATES}" if linear == STATES else stored_name(part, linear)
            keys[stored] = key.T.float().cpu()
    for part in base:
        for linear, factors in done.edits_of(part).items():
            edits[stored_name(part, linear)] = factors.to(torch.float32)
    _leave_learned_out(planning, edits)
    goals = {}
    for reading, (_, goal) in zip(planning.path.use.readings, done.states["exact"], strict=True):
        goals[f"{name}.{reading}"] = goal.float().cpu()
    return ErasedEncoder(
        planning,
        base=base,
        edits=edits,
        keys=keys,
        goals=goals,
        report=_report(planning, done),
    )


def _leave_learned_out(planning: Planning, edits: dict[str, LowRank]) -> None:
    """Cut the columns of learned tokens off an edit of the token embedding that changes none.

    So the file is that which is made without them.
    """
    count = planning.path.vocabulary
    name = stored_name(planning.path.use.encoder, embeddings_path(planning.live))
    factors = edits.get(name)
    if factors is not None and count is not None and not factors.A[:, count:].any():
        edits[name] = LowRank(factors.B, factors.A[:, :count].contiguous())


def merge_encoders(parts: Sequence[ErasedEncoder]) -> ErasureAdapter:
    """One adapter for all encoders.

    Raises:
        IllPosedError: None of them holds an edit.
    """

    def merged(name: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for part in parts:
            found |= getattr(part, name)
        return found

    planning = parts[0].planning
    return ErasureAdapter(
        planning.spec,
        planning.options,
        base=merged("base"),
        edits=merged("edits"),
        keys=merged("keys"),
        goals=merged("goals"),
        report=worst([part.report for part in parts]),
        plan=planning.plan,
    )


def notes_of(pipe: Any, adapter: ErasureAdapter) -> tuple[str, ...]:
    """What was left out, and which routes do not see the whole edit."""
    family = family_of(pipe)
    notes = []
    for use in family.encoders:
        if getattr(pipe, use.encoder, None) is None:
            notes.append(f"{use.encoder} is None and was skipped: the pipeline reads nothing of it")
    for part in adapter.components:
        if part not in family.stock:
            notes.append(
                f"stock load_lora_weights does not reach {part}: load with load_erasure_adapter"
            )
    notes += [BESIDE.format(note) for note in family.notes]
    notes += notes_on_lengths(pipe)
    encoders = [getattr(pipe, use.encoder, None) for use in family.encoders]
    if adapter.plan.assigns_neurons and take_neurons(encoders, adapter.edits):
        notes.append(NOT_ADDABLE)
    if any(use.skips for use in family.encoders):
        readings = {encoder.name: encoder.readings for encoder in adapter.report.encoders}
        notes += describe_clip_skip(adapter.edits, readings, adapter.clip_skip)
    return tuple(notes)


def notes_on_lengths(pipe: Any) -> list[str]:
    """Encoders for which the length of a call's prompts matters."""
    defaults = inspect.signature(pipe.__call__).parameters
    if LENGTH_ARGUMENT not in defaults:
        return []
    length = defaults[LENGTH_ARGUMENT].default
    return [
        f"{LENGTH_ARGUMENT} other than {length}: {path.use.encoder} does not mask its "
        "padding, so that the edit holds at this length; an erasable pipeline refuses others"
        for path in text_paths(pipe)
        if path.reads_padding
    ]


def _report(planning: Planning, done: Walk) -> Report:
    """What the walk found at the readings, or at the edited readers of them."""
    residuals = _residuals(planning, done)
    exact = residuals["exact"]
    unseen = residuals.get("held_out", torch.zeros(0, dtype=torch.float32))
    kept = residuals.get("kept", torch.zeros(0, dtype=torch.float32))
    numbers: dict[str, Any] = {
        "listed_residual": float(exact.max()),
        "held_out_residual": float(unseen.max()) if len(unseen) else NAN,
        "held_out_mean": float(unseen.mean()),
        "drift": float(kept.mean()),
    }
    use = planning.path.use
    encoder = EncoderReport(use.encoder, tuple(map(str, use.readings)), **numbers)
    layers: list[LayerReport] = []
    for step in done.steps:
        layers += _layer_reports(planning, step)
    return Report(**numbers, encoders=(encoder,), layers=tuple(layers))


def _residuals(planning: Planning, done: Walk) -> dict[str, Tensor]:
    """Per kind of prompts, relative residuals at all readings."""
    closed: list[tuple[Tensor, LowRank]] = []
    for step in done.steps:
        if isinstance(step.site, ReaderSite):
            weights = step.site.weights
            closed = [(weights[path], f) for path, f in step.edits.factors.items()]
    readings = planning.path.use.readings
    found = {}
    for kind, pairs in done.states.items():
        each = []
        for reading, (have, goal) in zip(readings, pairs, strict=True):
            each.append(read_residual(have, goal, () if reading.pooled else closed))
        found[kind] = torch.cat(each)
    return found


def _layer_reports(planning: Planning, step: Step) -> list[LayerReport]:
    """One per linear that a step edited."""
    limit = SizeLimit(planning.options.max_edit_size, len(planning.spec.concepts))
    root = get_component(planning.pipe, step.site.component)
    weights: Mapping[str, Tensor] = getattr(step.site, "weights", {})
    shares = step.site.shares_of(step.edits) if isinstance(step.site, GateSite) else {}
    found = []
    for linear, factors in step.edits.factors.items():
        weight = weights[linear] if linear in weights else weight_of(root, linear)
        found.append(
            layer_report(
                stored_name(step.site.component, linear),
                weight,
                factors,
                step.edits.solution,
                gap=step.gap,
                limit=limit,
                shares=shares.get(linear),
            )
        )
    return found
