"""The recipe. Read this first: one walk through the text encoder, solving as it goes."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import ErasureAdapter, LayerReport, Report
from .errors import ConceptSpecError, IllPosedError
from .factors import LowRank
from .families import base_linear, blocks_of, component, family_of, file_name, reader_paths, writer_path
from .fingerprint import fingerprints
from .measure import aligned_states, drift_of, residual_of
from .options import READERS, Options
from .prompts import ALIGNMENTS, distinct, pairs_of, rows_of, token_ids
from .solve import Edit, solve
from .spec import Concept, ErasureSpec
from .statistics import ridge, second_moments
from .walk import Step, walk
from .weights import originals, unedited


def erase(pipe: Any, spec: ErasureSpec | Concept, **options: Any) -> ErasureAdapter:
    """Make the adapter that erases `spec` from `pipe`; the pipeline stays as it is, bit for bit.

    Per edited layer, shallow to deep, the smallest change (in the metric C of what the layer usually
    receives) that sends every listed target to its anchor exactly, given the shallower edits:
    min tr(D C D') s.t. D X = R (ErasePro, arXiv 2508.04472; block outputs, metric, soft prompts: our reading).

    Args:
        pipe: A diffusers pipeline of a known family (`families.PIPELINES`).
        spec: What to erase.
        layers: Encoder blocks to edit (negative counts from the last) and "kv" for the denoiser's K/V linears.
        metric: "covariance" of the preserve captions, or "identity".
        alignment: Which token positions are constrained (`prompts.ALIGNMENTS`).
        ridge: Share of the identity mixed into the covariance; larger protects directions no caption uses.
        soft_weight: Weight of the soft prompts; larger erases more phrasings and drifts more.
        rtol: Relative tolerance under which constraints count as duplicates.
        max_rank: Bound of each layer's rank.
        max_edit_size: Largest ||D||_F / ||W||_F allowed.

    Raises:
        ConceptSpecError: The spec or an option cannot be meant.
        IllPosedError: No acceptable edit exists; the numbers are in the message.
        UnknownFamilyError: The pipeline has no record.
    """
    began = time.perf_counter()
    spec = ErasureSpec((spec,)) if isinstance(spec, Concept) else spec
    choice, family = _options(options), family_of(pipe)
    with unedited(pipe), torch.no_grad():
        parts = [_erase_encoder(pipe, spec, choice, *names) for names in family.encoders]
    report = Report(
        listed_residual=max(p.report.listed_residual for p in parts),
        held_out_residual=max(p.report.held_out_residual for p in parts),
        held_out_mean=max(p.report.held_out_mean for p in parts),
        drift=max(p.report.drift for p in parts),
        layers=tuple(layer for p in parts for layer in p.report.layers),
        seconds=time.perf_counter() - began,
    )
    merged = {name: {k: v for p in parts for k, v in getattr(p, name).items()} for name in ("base", "edits", "keys", "goals")}
    return ErasureAdapter(spec=spec, options=choice, report=report, **merged)


def _erase_encoder(pipe: Any, spec: ErasureSpec, choice: Options, name: str, tokenizer_name: str) -> ErasureAdapter:
    """The erasure in one text encoder, and in the K/V linears that read it if asked for."""
    tokenizer, live = getattr(pipe, tokenizer_name), component(pipe, name)
    blocks, alignment = choice.blocks(len(blocks_of(live))), ALIGNMENTS[choice.alignment]
    exact, soft, held_out = (distinct(pairs_of(spec.concepts, kind)) for kind in ("exact", "soft", "held_out"))
    exact_rows = rows_of(exact, tokenizer, alignment)
    soft_rows = rows_of(soft, tokenizer, alignment) if soft else None

    with quiet(live) as encoder:
        metrics = _metrics(encoder, tokenizer, spec, choice, blocks)

        def solver(site: str, X: Tensor, R: Tensor, Xs: Tensor, Rs: Tensor) -> Edit:
            soft_part = {"Xs": Xs, "Rs": Rs, "mu": choice.soft_weight}
            edit = solve(X, R, metrics[site], **soft_part, rtol=choice.rtol, max_rank=choice.max_rank, where=site)
            return _checked(edit, site, choice)

        steps = walk(encoder, exact_rows, soft_rows, blocks, solver) if blocks else []
        edits = {step.site: step.edit.factors for step in steps}
        have, goal = aligned_states(encoder, exact_rows, edits)
        readers: dict[str, tuple[Tensor, LowRank]] = {}
        if READERS in choice.layers:
            soft_states = aligned_states(encoder, soft_rows, edits) if soft_rows else (have[:0], goal[:0])
            shared = solver("states", have.T, (goal - have).T, soft_states[0].T, (soft_states[1] - soft_states[0]).T)
            readers = _readers(pipe, shared.factors)
        ours = (encoder, tokenizer)
        listed = residual_of(*ours, exact, alignment, edits, readers)
        unseen = residual_of(*ours, held_out, alignment, edits, readers)
        drift = drift_of(*ours, spec.preserve_captions(), edits)

    named = {file_name(name, site): factors for site, factors in edits.items()}
    keys = {file_name(name, step.site): step.X.T for step in steps}
    layers = [_layer(file_name(name, s.site), base_linear(live.get_submodule(s.site)).weight, s.edit, s.gap) for s in steps]
    base = {name: fingerprints(live, originals(live))}
    if readers:
        denoiser = family_of(pipe).denoiser
        named |= {f"{denoiser}.{path}": factors for path, (_, factors) in readers.items()}
        keys |= {f"{denoiser}.{path}": have for path in readers}
        gap = float(((goal - have).norm(dim=-1) / goal.norm(dim=-1)).mean())
        sized = {p: (W, Edit(f, shared.constraints, shared.dropped, shared.condition, 0.0, 0.0)) for p, (W, f) in readers.items()}
        layers += [_layer(f"{denoiser}.{path}", W, edit, gap) for path, (W, edit) in sized.items()]
        root = component(pipe, denoiser)
        base[denoiser] = fingerprints(root, originals(root))
    report = Report(
        listed_residual=float(listed.max()), held_out_residual=float(unseen.max()) if len(unseen) else float("nan"),
        held_out_mean=float(unseen.mean()) if len(unseen) else float("nan"), drift=drift, layers=tuple(layers),
    )  # fmt: skip
    single = {k: v.to(torch.float32) for k, v in named.items()}
    goals = {name: goal.float().cpu()}
    return ErasureAdapter(spec, choice, base, single, {k: v.float().cpu() for k, v in keys.items()}, goals, report)


def _options(options: Mapping[str, Any]) -> Options:
    try:
        return Options(**options)
    except TypeError as error:
        known = ", ".join(Options.__dataclass_fields__)
        raise ConceptSpecError(f"unknown option: {error} (known: {known})") from error


def _metrics(encoder: nn.Module, tokenizer: Any, spec: ErasureSpec, choice: Options, blocks: list[int]) -> dict[str, Tensor | None]:
    """The metric C of every site, or None for the identity."""
    sites = {writer_path(encoder, b): base_linear(encoder.get_submodule(writer_path(encoder, b))) for b in blocks}
    if choice.metric == "identity":
        return {**dict.fromkeys(sites), "states": None}
    captions = spec.preserve_captions()
    if not captions:
        raise ConceptSpecError("no preserve caption is left once those that name a target are taken out; give others")
    key = fingerprints(encoder, {})["float32"]
    moments = second_moments(encoder, token_ids(tokenizer, captions), sites, key=key)
    return {site: ridge(moment, choice.ridge) for site, moment in moments.items()}


def _checked(edit: Edit, site: str, choice: Options) -> Edit:
    if edit.residual > 1e-3:
        raise IllPosedError(
            f"{site}: {edit.constraints} constraints, {edit.dropped} of them nearly duplicates that contradict: residual "
            f"{edit.residual:.1e}, at most 1e-3; remove near-duplicate templates or concepts, or lower rtol={choice.rtol:g}"
        )
    return edit


def _readers(pipe: Any, shared: LowRank) -> dict[str, tuple[Tensor, LowRank]]:
    """K/V linears read one input, so one map `M = B A` of it serves all: D = W M."""
    family = family_of(pipe)
    root = component(pipe, family.denoiser)
    weights = {path: base_linear(root.get_submodule(path)).weight.detach() for path in reader_paths(root, family)}
    return {path: (W, LowRank(W.double() @ shared.B, shared.A)) for path, W in weights.items()}


def _layer(name: str, weight: Tensor, edit: Edit, gap: float) -> LayerReport:
    f = edit.factors
    norm = float(((f.B.T @ f.B) * (f.A @ f.A.T)).sum().clamp_min(0).sqrt())
    size = norm / float(weight.detach().double().norm())
    return LayerReport(name, f.rank, size, edit.condition, gap, edit.constraints, edit.dropped)


@contextmanager
def quiet(encoder: nn.Module) -> Iterator[nn.Module]:
    """The encoder in float32 and eval mode; a 16-bit one is copied, its own weights are not touched."""
    if next(encoder.parameters()).dtype != torch.float32:
        yield copy.deepcopy(encoder).float().eval()
        return
    training = encoder.training
    encoder.eval()
    try:
        yield encoder
    finally:
        encoder.train(training)
