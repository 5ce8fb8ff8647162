"""The recipe. Read this first: one walk through the text encoder, solving as it goes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import ErasureAdapter
from .denoiser import CHAINS, Look, least_drift
from .errors import ConceptSpecError, IllPosedError
from .factors import LowRank
from .families import PipelineFamily, Site, base_linear, blocks_of, component, family_of, file_name, reader_paths, sites_of
from .fingerprint import fingerprints
from .measure import read_residual
from .options import AUTO, READERS, Options
from .places import weight_of
from .prompts import ALIGNMENTS, rows_by_kind, token_ids
from .report import NAN, Report, layer_report, worst
from .solve import Edit, solve
from .spec import Concept, ErasureSpec
from .statistics import STATES, metrics, record_inputs
from .walk import Solver, Step, final_states, walk, working
from .weights import originals, unedited


def erase(pipe: Any, spec: ErasureSpec | Concept, **options: Any) -> ErasureAdapter:
    """Make the adapter that erases `spec` from `pipe`; the pipeline stays as it is, bit for bit.

    Per edited layer, shallow to deep, the smallest change (in the metric C of what the layer usually
    receives) that sends every listed target to its anchor exactly, given the shallower edits:
    min tr(D C D') s.t. D X = R (ErasePro, arXiv 2508.04472; block outputs, metric, soft prompts: our reading).

    Args:
        pipe: A diffusers pipeline of a known family (`families.PIPELINES`).
        spec: What to erase.
        variant: "block" edits the linear that writes the residual stream last, "linear" every one (`families.VARIANTS`).
        layers: Encoder blocks to edit (negative counts from the last) and "kv" for the denoiser's K/V linears; or
            "auto" for the chain of `denoiser.CHAINS` that the noise predictions favour, which the adapter records.
        metric: "covariance" of the preserve captions, or "identity".
        alignment: Which token positions are constrained (`prompts.ALIGNMENTS`).
        ridge: Share of the identity mixed into the covariance; larger protects directions no caption uses.
        soft_weight: Weight of the soft prompts; larger erases more phrasings and drifts more.
        soft_budget: Soft prompts in all. Many concepts share it; each word keeps two at least.
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
        adapter = (_chosen if choice.layers == AUTO else _erase)(pipe, family, spec, choice)
    return replace(adapter, report=replace(adapter.report, seconds=time.perf_counter() - began))


def _erase(pipe: Any, family: PipelineFamily, spec: ErasureSpec, choice: Options) -> ErasureAdapter:
    """The erasure in every text encoder."""
    return _joined([_erase_encoder(pipe, family, spec, choice, *names) for names in family.encoders])


def _erase_encoder(
    pipe: Any, family: PipelineFamily, spec: ErasureSpec, choice: Options, name: str, tokenizer_name: str
) -> ErasureAdapter:
    """The erasure in one text encoder, and in the K/V linears that read it if asked for."""
    tokenizer, live = getattr(pipe, tokenizer_name), component(pipe, name)
    rows = rows_by_kind(
        spec.concepts, spec.preserve_captions(), tokenizer, ALIGNMENTS[choice.alignment], soft_budget=choice.soft_budget
    )
    sites = sites_of(live, choice.blocks(len(blocks_of(live))), choice.variant)

    base = {name: fingerprints(live, originals(live))}

    with working(live) as encoder:
        L = _metrics(encoder, tokenizer, spec, choice, sites, key=next(iter(base[name].values())))
        solver = _solver(spec, choice, L, _kept(encoder, tokenizer, spec, sites))
        done = walk(encoder, rows, sites, solver)

    layers = [_Layer(file_name(name, s.site), weight_of(live, s.site), s.edit.factors, s) for s in done.steps]
    readers: list[_Layer] = []
    if READERS in choice.layers:  # what the encoder still leaves open, the denoiser's K/V close
        readers = _readers(pipe, family, done.states, solver)
    residual = {kind: read_residual(*pair, [(r.weight, r.factors) for r in readers]) for kind, pair in done.states.items()}
    unseen = residual["held_out"]
    report = Report(
        float(residual["exact"].max()), float(unseen.max()) if len(unseen) else NAN, float(residual["kept"].mean()),
        tuple(layer_report(x.stored, x.weight, x.factors, x.step, limit=choice.max_edit_size) for x in layers + readers),
        held_out_mean=float(unseen.mean()) if len(unseen) else NAN,
    )  # fmt: skip
    if readers:
        root = component(pipe, family.denoiser)
        base[family.denoiser] = fingerprints(root, originals(root))
    return ErasureAdapter(
        spec, choice, report=report, base=base,
        edits={x.stored: x.factors.to(torch.float32) for x in layers + readers},
        keys={x.stored: x.step.X.T.float().cpu() for x in layers} | {f"{name}.states": x.step.X.T.float().cpu() for x in readers},
        goals={name: done.states["exact"][1].float().cpu()},
    )  # fmt: skip


@dataclass(frozen=True)
class _Layer:
    """An edited linear on its way into the adapter."""

    stored: str
    weight: Tensor
    factors: LowRank
    step: Step


def _metrics(
    encoder: nn.Module, tokenizer: Any, spec: ErasureSpec, choice: Options, sites: list[Site], *, key: str
) -> dict[str, Tensor]:
    """The metric's factor L of every site; none for the identity."""
    if choice.metric == "identity":
        return {}
    every, kept = spec.every_caption(), spec.preserve_captions()
    if not kept:
        raise ConceptSpecError("no preserve caption is left once those that name a target are taken out; give others")
    if 2 * len(kept) < len(every):
        every = kept
    linears = {site.linear: base_linear(encoder.get_submodule(site.linear)) for site in sites}
    named = sorted(set(every) - set(kept))
    ids, without, empty = (token_ids(tokenizer, texts) for texts in (every, named, [""]))
    return metrics(encoder, ids, without, empty, linears, key=key, ridge=choice.ridge)


def _kept(encoder: nn.Module, tokenizer: Any, spec: ErasureSpec, sites: list[Site]) -> dict[str, Tensor]:
    """What every site, and "states", receives at all positions of the prompts to keep; nothing there may change."""
    if not spec.keep:
        return {}
    linears = {site.linear: base_linear(encoder.get_submodule(site.linear)) for site in sites}
    with record_inputs(linears) as seen:
        states = final_states(encoder, token_ids(tokenizer, spec.keep), batch=len(spec.keep))
    return {name: x.reshape(-1, x.shape[-1]).T for name, x in (*seen.items(), (STATES, states))}


def _solver(spec: ErasureSpec, choice: Options, L: Mapping[str, Tensor], K: Mapping[str, Tensor]) -> Solver:
    """`solve` with this choice's numbers, each site's metric L L' and the keys K to leave alone."""
    mu = choice.soft_weight * sum(len(c.words) for c in spec.concepts)  # a word weighs the same in any company

    def solver(site: str, X: Tensor, R: Tensor, Xs: Tensor, Rs: Tensor) -> Edit:
        return solve(
            X, R, L=L.get(site), K=K.get(site), Xs=Xs, Rs=Rs, mu=mu, rtol=choice.rtol,
            max_rank=choice.max_rank, where=site,
        )  # fmt: skip

    return solver


def _readers(pipe: Any, family: PipelineFamily, states: Mapping[str, tuple[Tensor, Tensor]], solver: Solver) -> list[_Layer]:
    """Every K/V linear W reads the same states, so one map B A of them serves all: D = (W B) A."""
    (X, Y), (Xs, Ys) = ((have.T, goal.T) for have, goal in (states["exact"], states["soft"]))
    edit = solver(STATES, X, Y - X, Xs, Ys - Xs)
    step = Step(STATES, edit, X.double(), float(((Y - X).norm(dim=0) / Y.norm(dim=0)).mean()))
    root, shared = component(pipe, family.denoiser), edit.factors
    weights = {path: weight_of(root, path).detach() for path in reader_paths(root, family)}
    return [_Layer(f"{family.denoiser}.{path}", W, LowRank(W.double() @ shared.B, shared.A), step) for path, W in weights.items()]


def _chosen(pipe: Any, family: PipelineFamily, spec: ErasureSpec, choice: Options) -> ErasureAdapter:
    """The adapter of the best chain: least denoiser drift among those whose denoiser residual is low enough."""
    made, refused = [], []
    for layers in CHAINS:
        try:
            made.append(_erase(pipe, family, spec, replace(choice, layers=layers)))
        except (ConceptSpecError, IllPosedError) as error:  # an encoder too short for the chain, or an edit too large
            refused.append(error)
    if not made:
        raise refused[0]
    look = Look.at(pipe, spec)
    return least_drift([look.judged(adapter) for adapter in made])


def _joined(parts: list[ErasureAdapter]) -> ErasureAdapter:
    """One adapter for all encoders."""

    def merged(name: str) -> dict[str, Any]:
        return {k: v for part in parts for k, v in getattr(part, name).items()}

    first = parts[0]
    return ErasureAdapter(
        first.spec, first.options, merged("base"), merged("edits"), merged("keys"), merged("goals"),
        report=worst([part.report for part in parts]),
    )  # fmt: skip
