"""The adapter of finished edits, compressed and measured as those of `erase` are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..adapters.adapter import ErasureAdapter
from ..adapters.report import NAN, LayerReport, Report, frobenius
from ..config.options import OtherMethod
from ..config.plan import ALIGNMENTS
from ..config.spec import ErasureSpec
from ..erasure.residuals import aligned_states, read_residual
from ..families.encoders import stored_name
from ..families.pipelines import get_component, reader_paths
from ..families.types import LAST, PipelineFamily
from ..linalg.low_rank import LowRank, compress
from ..modules.fingerprint import fingerprints
from ..modules.storage import weight_of
from ..prompts.alignment import rows_to_measure, rows_to_solve
from ..prompts.tokens import text_paths, vocabulary_of

COMPRESSION = 1e-4
"""Largest relative error of an edit's low-rank factors."""
Compressed = dict[str, tuple[LowRank, float]]
"""Module name -> the factors of its edit, and their relative error."""


def assemble_adapter(
    pipe: Any,
    family: PipelineFamily,
    spec: ErasureSpec,
    made_by: OtherMethod,
    encoder: Any,
    edits: Mapping[str, Mapping[str, LowRank]],
    *,
    error: float = COMPRESSION,
    measure: bool = True,
) -> ErasureAdapter:
    """The adapter of finished edits, without keys: beside others it is added, not solved again.

    Args:
        pipe: The pipeline that the edits belong to.
        family: Its record.
        spec: What the edits erase.
        made_by: Recorded as the adapter's options.
        encoder: The text encoder to measure with, unedited.
        edits: Component -> module name -> change of its weight.
        error: Largest relative error of the low-rank factors.
        measure: Report what the spec's prompts become; that is known where the pipeline reads the
            last states of one text encoder alone. Without, the adapter has no goals.
    """
    use = text_paths(pipe)[0].use
    compressed: dict[str, Compressed] = {}
    factors: dict[str, LowRank] = {}
    layers: list[LayerReport] = []
    for part, changes in edits.items():
        root = get_component(pipe, part)
        compressed[part] = {path: compress(edit, error) for path, edit in changes.items()}
        for path, (edit, lost) in compressed[part].items():
            name = stored_name(part, path)
            factors[name] = edit.to(torch.float32)
            layers.append(_report_layer(name, edit, weight_of(root, path), lost))

    base = {}
    for part in compressed:
        vocabulary = vocabulary_of(pipe, part)
        base[part] = fingerprints(get_component(pipe, part), {}, vocabulary=vocabulary)
    adapter = ErasureAdapter(
        spec,
        made_by,
        base=base,
        edits=factors,
        keys={},
        goals={},
        report=Report(NAN, NAN, NAN, tuple(layers)),
    )
    if not measure:
        return adapter
    tokenizer = getattr(pipe, use.tokenizer)
    alignment = ALIGNMENTS[made_by.alignment]
    rows = rows_to_solve(spec.concepts, tokenizer, alignment, soft_budget=0)
    rows |= rows_to_measure(spec.concepts, spec.preserve_captions(), tokenizer, alignment)
    in_encoder = {path: edit for path, (edit, _) in compressed.get(use.encoder, {}).items()}
    readers = _edited_readers(pipe, family, compressed.get(family.denoiser, {}))
    residual: dict[str, Tensor] = {}
    goals: dict[str, Tensor] = {}
    for kind in ("exact", "held_out", "kept"):
        have, goals[kind] = aligned_states(encoder, rows[kind], in_encoder)
        residual[kind] = read_residual(have, goals[kind], readers)

    unseen = residual["held_out"]
    report = replace(
        adapter.report,
        listed_residual=float(residual["exact"].max()),
        held_out_residual=float(unseen.max()) if len(unseen) else NAN,
        held_out_mean=float(unseen.mean()) if len(unseen) else NAN,
        drift=float(residual["kept"].mean()),
    )
    states = {f"{use.encoder}.{LAST}": goals["exact"].float().cpu()}
    return replace(adapter, report=report, goals=states)


def reads_last_states_alone(pipe: Any) -> bool:
    """Whether the pipeline reads the last states of one text encoder, and nothing else."""
    uses = [path.use for path in text_paths(pipe)]
    return len(uses) == 1 and uses[0].readings == (LAST,)


def _edited_readers(
    pipe: Any, family: PipelineFamily, edits: Compressed
) -> list[tuple[Tensor, LowRank]]:
    """Weight and change of every K/V linear that is edited."""
    denoiser = get_component(pipe, family.denoiser)
    return [
        (weight_of(denoiser, path).detach(), edits[path][0])
        for path in reader_paths(denoiser, family)
        if path in edits
    ]


def _report_layer(name: str, edit: LowRank, weight: Tensor, lost: float) -> LayerReport:
    """A layer's line of the report; what only `erase` measures is not a number."""
    return LayerReport(
        name,
        edit.rank,
        frobenius(edit) / float(weight.detach().double().norm()),
        condition=NAN,
        gap=NAN,
        constraints=0,
        dropped=0,
        compression=lost,
    )
