"""The recipe. Read this first: one walk through the text encoder, solving as it goes."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import ErasureAdapter
from .errors import ConceptSpecError
from .factors import LowRank
from .families import PipelineFamily, Site, base_linear, blocks_of, component, family_of, file_name, reader_paths, sites_of
from .fingerprint import fingerprints
from .measure import aligned_states, drift_of, read_residual, residual_of
from .options import READERS, Options
from .prompts import ALIGNMENTS, distinct, pairs_of, rows_of, token_ids
from .report import NAN, LayerReport, Report, layer_report, worst
from .solve import Edit, solve
from .spec import Concept, ErasureSpec
from .statistics import metrics
from .walk import Step, walk, working
from .weights import originals, unedited, weight_of


def erase(pipe: Any, spec: ErasureSpec | Concept, **options: Any) -> ErasureAdapter:
    """Make the adapter that erases `spec` from `pipe`; the pipeline stays as it is, bit for bit.

    Per edited layer, shallow to deep, the smallest change (in the metric C of what the layer usually
    receives) that sends every listed target to its anchor exactly, given the shallower edits:
    min tr(D C D') s.t. D X = R (ErasePro, arXiv 2508.04472; block outputs, metric, soft prompts: our reading).

    Args:
        pipe: A diffusers pipeline of a known family (`families.PIPELINES`).
        spec: What to erase.
        variant: "block" edits the linear that writes the residual stream last, "linear" every one (`families.VARIANTS`).
        layers: Encoder blocks to edit (negative counts from the last) and "kv" for the denoiser's K/V linears.
        metric: "covariance" of the preserve captions, or "identity".
        alignment: Which token positions are constrained (`prompts.ALIGNMENTS`).
        ridge: Share of the identity mixed into the covariance; larger protects directions no caption uses.
        soft_weight: Weight of the soft prompts; larger erases more phrasings and drifts more.
        rtol: Relative tolerance under which constraints count as duplicates.
        max_rank: Bound of each layer's rank; what lies above is cut from the soft part.
        max_edit_size: Largest ||D||_F / ||W||_F allowed.

    Raises:
        ConceptSpecError: The spec or an option cannot be meant.
        IllPosedError: No acceptable edit exists; the numbers are in the message.
        UnknownFamilyError: The pipeline has no record.
    """
    began = time.perf_counter()
    spec = ErasureSpec((spec,)) if isinstance(spec, Concept) else spec
    choice, family = Options.of(options), family_of(pipe)
    with unedited(pipe), torch.no_grad():
        parts = [_erase_encoder(pipe, family, spec, choice, *names) for names in family.encoders]
    report = worst([part.report for part in parts], seconds=time.perf_counter() - began)
    return _joined(parts, report)


def _erase_encoder(
    pipe: Any, family: PipelineFamily, spec: ErasureSpec, choice: Options, name: str, tokenizer_name: str
) -> ErasureAdapter:
    """The erasure in one text encoder, and in the K/V linears that read it if asked for."""
    tokenizer, live, alignment = getattr(pipe, tokenizer_name), component(pipe, name), ALIGNMENTS[choice.alignment]
    exact, soft, held_out = (distinct(pairs_of(spec.concepts, kind)) for kind in ("exact", "soft", "held_out"))
    exact_rows = rows_of(exact, tokenizer, alignment)
    soft_rows = rows_of(soft, tokenizer, alignment) if soft else None
    sites = sites_of(live, choice.blocks(len(blocks_of(live))), choice.variant)

    with working(live) as encoder:
        C = _metrics(encoder, tokenizer, spec, choice, sites)

        def solver(site: str, X: Tensor, R: Tensor, Xs: Tensor, Rs: Tensor) -> Edit:
            return solve(
                X, R, C.get(site), Xs=Xs, Rs=Rs, mu=choice.soft_weight, rtol=choice.rtol, max_rank=choice.max_rank, where=site
            )  # fmt: skip

        steps = walk(encoder, exact_rows, soft_rows, sites, solver)
        edits = {step.site: step.edit.factors for step in steps}

        # What the encoder still leaves open, the denoiser's readers close: one map of the states serves them all.
        X, Y = (states.T for states in aligned_states(encoder, exact_rows, edits))
        readers: dict[str, tuple[Tensor, LowRank]] = {}
        if READERS in choice.layers:
            Xs, Ys = (s.T for s in aligned_states(encoder, soft_rows, edits)) if soft_rows else (X[:, :0], Y[:, :0])
            shared = solver("states", X, Y - X, Xs, Ys - Xs)
            readers = _readers(pipe, family, shared.factors)

        listed = read_residual(X.T, Y.T, readers)
        unseen = residual_of(encoder, tokenizer, held_out, alignment, edits, readers)
        drift = drift_of(encoder, tokenizer, spec.preserve_captions(), edits)

    layers = [_report(live, name, step, choice) for step in steps]
    layers += [
        layer_report(f"{family.denoiser}.{path}", W, factors, shared, _gap(X, Y), limit=choice.max_edit_size)
        for path, (W, factors) in readers.items()
    ]
    report = Report(
        float(listed.max()), float(unseen.max()) if len(unseen) else NAN, drift, tuple(layers),
        held_out_mean=float(unseen.mean()) if len(unseen) else NAN,
    )  # fmt: skip
    roots = {name: live} | ({family.denoiser: component(pipe, family.denoiser)} if readers else {})
    return ErasureAdapter(
        spec, choice, report=report,
        base={part: fingerprints(root, originals(root)) for part, root in roots.items()},
        edits={file_name(name, site): f.to(torch.float32) for site, f in edits.items()}
        | {f"{family.denoiser}.{path}": f.to(torch.float32) for path, (_, f) in readers.items()},
        keys={file_name(name, step.site): step.X.T.float().cpu() for step in steps}
        | ({f"{name}.states": X.T.float().cpu()} if readers else {}),
        goals={name: Y.T.float().cpu()},
    )  # fmt: skip


def _metrics(encoder: nn.Module, tokenizer: Any, spec: ErasureSpec, choice: Options, sites: list[Site]) -> dict[str, Tensor]:
    """The metric C of every site; none for the identity."""
    if choice.metric == "identity":
        return {}
    captions = spec.preserve_captions()
    if not captions:
        raise ConceptSpecError("no preserve caption is left once those that name a target are taken out; give others")
    linears = {site.linear: base_linear(encoder.get_submodule(site.linear)) for site in sites}
    key = fingerprints(encoder, {})["float32"]
    ids, empty = token_ids(tokenizer, captions), token_ids(tokenizer, [""])
    return metrics(encoder, ids, empty, linears, key=key, ridge=choice.ridge)


def _readers(pipe: Any, family: PipelineFamily, shared: LowRank) -> dict[str, tuple[Tensor, LowRank]]:
    """Every K/V linear W reads the same states, so one map B A of them serves all: D = (W B) A."""
    root = component(pipe, family.denoiser)
    weights = {path: weight_of(root, path).detach() for path in reader_paths(root, family)}
    return {path: (W, LowRank(W.double() @ shared.B, shared.A)) for path, W in weights.items()}


def _report(encoder: nn.Module, name: str, step: Step, choice: Options) -> LayerReport:
    weight = weight_of(encoder, step.site)
    return layer_report(file_name(name, step.site), weight, step.edit.factors, step.edit, step.gap, limit=choice.max_edit_size)


def _gap(X: Tensor, Y: Tensor) -> float:
    return float(((Y - X).norm(dim=0) / Y.norm(dim=0)).mean())


def _joined(parts: list[ErasureAdapter], report: Report) -> ErasureAdapter:
    """One adapter for all encoders."""

    def merged(name: str) -> dict[str, Any]:
        return {k: v for part in parts for k, v in getattr(part, name).items()}

    first = parts[0]
    return ErasureAdapter(
        first.spec, first.options, merged("base"), merged("edits"), merged("keys"), merged("goals"), report=report
    )
