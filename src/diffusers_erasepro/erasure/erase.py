"""The recipe. Read this first: one walk through the text encoder, solving as it goes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.adapter import ErasureAdapter
from ..adapters.report import NAN, EncoderReport, Report, layer_report, worst
from ..config.options import AUTO, READERS, Options, blocks_in, held
from ..config.spec import Concept, ErasureSpec
from ..config.template_set import Layers
from ..errors import ConceptSpecError, IllPosedError
from ..families.encoders import blocks_read, stored_name
from ..families.pipelines import family_of, get_component, reader_paths
from ..families.types import PipelineFamily, Reading
from ..families.variants import Site, sites_of
from ..linalg.constrained import Edit, solve
from ..linalg.low_rank import LowRank, stack
from ..modules.fingerprint import fingerprint_with_loras, fingerprints
from ..modules.linear import base_linear
from ..modules.storage import effective_weight, weight_of
from ..patching.weights import unedited
from ..prompts.pairs import (
    Pair,
    Rows,
    TextPath,
    pairs_to_solve,
    rows_of,
    rows_to_measure,
    text_paths,
)
from .auto_anchor import with_anchors
from .auto_layers import Look, choices, least_drift
from .covariance import STATES, kept_inputs, metrics_of
from .layerwise import Solver, Step, Walk, states_of, walk, working
from .residuals import read_residual
from .sites.idle import asked_for, given_away
from .sites.neurons import Mlp, room_for

ALONE = (
    "two adapters with neurons may have given away the same ones: load_erasure_adapter solves them together, stock "
    "load_lora_weights would add them up"
)

INSTEAD = "encoder blocks were edited instead of neurons, as {}"


def erase(
    pipe: Any, spec: ErasureSpec | Concept, *, measure: bool = True, **options: Any
) -> ErasureAdapter:
    """Make the adapter that erases `spec` from `pipe`; the pipeline stays as it is, bit for bit.

    Per edited layer, shallow to deep, the smallest change (in the metric C of what the layer usually
    receives) that sends every listed target to its anchor exactly, given the shallower edits:
    min tr(D C D') s.t. D X = R (ErasePro, arXiv 2508.04472; block outputs, metric, soft prompts: our reading).

    Args:
        pipe: A diffusers pipeline of a known family (`families.PIPELINES`).
        spec: What to erase.
        measure: Report held-out residual and drift; without, the edit alone is made, and they are NaN.
        variant: "block" edits the linear that writes the residual stream last, "linear" every one (`families.VARIANTS`).
        layers: Encoder blocks to edit (-1 is the last that the pipeline reads), "neurons" for two idle neurons of the first
            block per word, "eos_neurons" for two of the last block per concept (`neurons`), and "kv" for the denoiser's linears
            that read the text states; or "auto" for the chain of `denoiser.CHAINS`, its alignment, and the soft weight from
            `soft_weight` up, that the noise predictions favour; the adapter records them. None, the default, is what each
            concept's kind asks for (`templates.Recipe`), or (0, -1) where an encoder has no neurons to give, and with `keep`
            or `robust`, which hold more than neurons answer to.
        metric: "covariance" of the preserve captions, or "identity".
        alignment: Which token positions are constrained (`prompts.ALIGNMENTS`); None is as with `layers`.
        ridge: Share of the identity mixed into the covariance; larger protects directions no caption uses.
        soft_weight: Weight of the soft prompts; larger erases more phrasings and drifts more.
        soft_budget: Soft prompts in all. Many concepts share it; each word keeps two at least.
        rtol: Relative tolerance under which constraints count as duplicates.
        max_rank: Bound of each layer's rank; what lies above is cut from the soft part.
        max_edit_size: Largest ||D||_F / ||W||_F allowed for one concept; n may take sqrt(n) times as much.
        each: Where concepts differ: target, layers and alignment of each.
        robust: Let the denoiser's readers also send the targets' states as the unedited encoder gives them to the anchors.
            That holds against embeddings made elsewhere, and costs drift.

    Raises:
        ConceptSpecError: The spec or an option cannot be meant.
        IllPosedError: No acceptable edit exists; the numbers are in the message.
        UnknownFamilyError: The pipeline has no record.
    """
    began = time.perf_counter()
    spec = ErasureSpec((spec,)) if isinstance(spec, Concept) else spec
    choice, family = Options.of(options), family_of(pipe)
    with unedited(pipe), torch.no_grad():
        spec = with_anchors(pipe, spec, choice.alignment)
        adapter = (_chosen if choice.layers == AUTO else _usual)(
            pipe, family, spec, choice, measure
        )
    return replace(adapter, report=replace(adapter.report, seconds=time.perf_counter() - began))


def _usual(
    pipe: Any, family: PipelineFamily, spec: ErasureSpec, choice: Options, measure: bool
) -> ErasureAdapter:
    """The erasure as chosen, and as each concept's kind asks for where that is left open.

    Neurons that nobody named may turn out too large on a base; encoder blocks then do, and the report says so.
    """
    settled = _settled(pipe, spec, choice)
    blocks = choice.settled(spec.concepts, neurons=False)
    try:
        return _erase(pipe, family, spec, settled, measure)
    except IllPosedError as error:
        if settled == blocks:
            raise
        return instead(error, lambda: _erase(pipe, family, spec, blocks, measure))


def instead(error: IllPosedError, make: Callable[[], ErasureAdapter]) -> ErasureAdapter:
    """What `make` makes of encoder blocks, with a note that says why."""
    note = INSTEAD.format(error)
    warnings.warn(note, stacklevel=4)
    made = make()
    return replace(made, report=replace(made.report, notes=(*made.report.notes, note)))


def _settled(pipe: Any, spec: ErasureSpec, choice: Options) -> Options:
    """`choice` with a recipe for every concept."""
    words, paths = sum(len(c.words) for c in spec.concepts), text_paths(pipe)
    deep = all(blocks_read(path.encoder, path.use.readings)[0] > 0 for path in paths)
    neurons = (
        deep
        and not spec.keep
        and not choice.robust
        and all(room_for(path.encoder, words) for path in paths)
    )
    return choice.settled(spec.concepts, neurons=neurons)


def _erase(
    pipe: Any, family: PipelineFamily, spec: ErasureSpec, choice: Options, measure: bool
) -> ErasureAdapter:
    """The erasure in every text encoder that is there."""
    if choice.edits_readers and family.read_whole is None:
        asked = "robust=True" if choice.robust else f"layers {READERS!r}"
        raise ConceptSpecError(
            f"{asked}: no linear of {type(pipe).__name__}'s denoiser reads the states of one text encoder and nothing "
            "else; edit encoder blocks, such as layers=(0, -1)"
        )
    made = _joined(
        [_erase_encoder(pipe, family, spec, choice, measure, path) for path in text_paths(pipe)]
    )
    return replace(made, report=replace(made.report, notes=_notes(pipe, family, made)))


def _erase_encoder(
    pipe: Any,
    family: PipelineFamily,
    spec: ErasureSpec,
    choice: Options,
    measure: bool,
    path: TextPath,
) -> ErasureAdapter:
    """The erasure in one text encoder, and in the denoiser's linears that read it if asked for."""
    (name, _, readings), live = path.use, path.encoder
    closing_at = blocks_read(live, readings)
    sites = sites_of(live, _blocks(choice.every_layer, closing_at), choice.variant)
    mlps = asked_for(live, spec, choice, closing_at)
    pairs = pairs_to_solve(spec.concepts, soft_budget=choice.soft_budget)
    with _named(name):
        positions = held(choice, spec.concepts)
        rows = {kind: rows_of(found, path, positions) for kind, found in pairs.items()}
        if measure:  # these only ride along
            rows |= rows_to_measure(spec.concepts, spec.preserve_captions(), path, positions)
    parts = _parts(live, spec, choice, closing_at, pairs, rows)
    base = {name: fingerprints(live, {})}

    with working(live) as encoder:
        linears, key = (
            _linears(encoder, sites, mlps.values()),
            fingerprint_with_loras(live, base[name]),
        )
        covariance = choice.metric == "covariance"
        L = (
            metrics_of(encoder, path, spec, linears, key=key, ridge=choice.ridge)
            if covariance
            else {}
        )
        solver = _solver(
            choice, pairs["exact"], rows, parts, L, kept_inputs(encoder, path, spec, sites)
        )
        neurons = given_away(live, path, spec, choice, mlps, pairs, rows, L)
        done = walk(encoder, rows, sites, solver, readings, neurons, parts)
        closing = choice.edits_readers and path.use == family.read_whole
        left = (
            _left_to_readers(encoder, readings, rows, done, robust=choice.robust) if closing else {}
        )

    layers = [
        _Layer(stored_name(name, s.site), weight_of(live, s.site), s.edit.factors, s)
        for s in done.steps
    ]
    readers: list[_Layer] = []
    if closing:  # what the encoder leaves open, the denoiser's readers close
        readers = _readers(pipe, family, left, solver)
        root = get_component(pipe, family.denoiser)
        base[family.denoiser] = fingerprints(root, {})
    return ErasureAdapter(
        spec,
        choice,
        report=_report(path, choice, len(spec.concepts), done, layers, readers),
        base=base,
        edits=_summed(layers + readers),
        keys={x.stored: x.step.X.T.float().cpu() for x in layers}
        | {f"{name}.states": x.step.X.T.float().cpu() for x in readers},
        goals={
            f"{name}.{r}": goal.float().cpu()
            for r, (_, goal) in zip(readings, done.states["exact"], strict=True)
        },
    )


def _summed(layers: Sequence[_Layer]) -> dict[str, LowRank]:
    """Edits by stored name; a linear that neurons and a later site change gets both."""
    names = dict.fromkeys(x.stored for x in layers)
    return {n: stack([x.factors for x in layers if x.stored == n]).to(torch.float32) for n in names}


def _parts(
    live: nn.Module,
    spec: ErasureSpec,
    choice: Options,
    closing: Sequence[int],
    pairs: Mapping[str, Sequence[Pair]],
    rows: Mapping[str, Rows],
) -> dict[str, dict[str, Rows]]:
    """Of sites that not every concept asks for: the positions that those hold which do."""
    blocks = {c.target: _blocks(choice.recipe(c).layers, closing) for c in spec.concepts}
    found: dict[str, dict[str, Rows]] = {}
    for block in {b for asked in blocks.values() for b in asked}:
        those = [c for c in spec.concepts if block in blocks[c.target]]
        if len(those) < len(spec.concepts):
            words = {word for c in those for word in c.words}
            part = {kind: rows[kind].naming(words, pairs[kind]) for kind in pairs}
            found |= {site.linear: part for site in sites_of(live, [block], choice.variant)}
    return found


def _linears(
    encoder: nn.Module, sites: Sequence[Site], mlps: Iterable[Mlp]
) -> dict[str, nn.Module]:
    """The linears whose inputs want a metric."""
    names = (
        *(name for mlp in mlps for name in (mlp.detector, mlp.writer)),
        *(site.linear for site in sites),
    )
    return {name: base_linear(encoder.get_submodule(name)) for name in names}


def _whole(readings: Sequence[Reading]) -> int:
    """Which reading is the sequence that the readers take; the others are pooled."""
    return next(i for i, r in enumerate(readings) if not r.pooled)


def _left_to_readers(
    encoder: nn.Module,
    readings: Sequence[Reading],
    rows: Mapping[str, Rows],
    done: Walk,
    *,
    robust: bool,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Per kind of rows, states and the anchor's states that the denoiser's readers shall take them for.

    The states are the edited targets'; if `robust`, the unedited encoder's too, as one hands them in who goes around the edit.
    """
    whole, found = _whole(readings), {}
    for kind in ("exact", "soft"):
        have, goal = done.states[kind][whole]
        if robust:
            unedited_states = states_of(encoder, rows[kind].target, readings)[whole][
                rows[kind].row, rows[kind].target_at
            ]
            have, goal = torch.cat([have, unedited_states.cpu()]), torch.cat([goal, goal])
        found[kind] = have, goal
    return found


def _report(
    path: TextPath,
    choice: Options,
    concepts: int,
    done: Walk,
    layers: list[_Layer],
    readers: list[_Layer],
) -> Report:
    """What the walk found at the readings, or at the edited readers of them."""
    readings, closed = path.use.readings, [(x.weight, x.factors) for x in readers]
    residual = {
        kind: torch.cat(
            [
                read_residual(*pair, closed if readers and i == _whole(readings) else ())
                for i, pair in enumerate(pairs)
            ]
        )
        for kind, pairs in done.states.items()
    }
    unseen, kept = (residual.get(kind, torch.zeros(0)) for kind in ("held_out", "kept"))
    numbers: dict[str, Any] = {
        "listed_residual": float(residual["exact"].max()),
        "held_out_residual": float(unseen.max()) if len(unseen) else NAN,
        "held_out_mean": float(unseen.mean()),
        "drift": float(kept.mean()),
    }
    return Report(
        **numbers,
        encoders=(EncoderReport(path.use.encoder, tuple(map(str, readings)), **numbers),),
        layers=tuple(
            layer_report(
                x.stored, x.weight, x.factors, x.step, limit=choice.max_edit_size, concepts=concepts
            )
            for x in layers + readers
        ),
    )


def _blocks(layers: Layers, closing: Sequence[int]) -> list[int]:
    """The blocks to edit. Layers count back from the last block that is read; who edits it edits every block that is."""
    blocks = blocks_in(layers, closing[-1] + 1)
    return sorted({*blocks, *closing}) if closing[-1] in blocks else blocks


@contextmanager
def _named(encoder: str) -> Iterator[None]:
    """Inside, an error about the spec says which text encoder it met."""
    try:
        yield
    except ConceptSpecError as error:
        raise ConceptSpecError(f"{encoder}: {error}") from error


def _notes(pipe: Any, family: PipelineFamily, adapter: ErasureAdapter) -> tuple[str, ...]:
    missing = [use.encoder for use in family.encoders if getattr(pipe, use.encoder, None) is None]
    beyond = [part for part in adapter.components if part not in family.stock]
    return (
        *(f"{name} is None and was skipped: the pipeline reads nothing of it" for name in missing),
        *(
            f"stock load_lora_weights does not reach {name}: load with load_erasure_adapter"
            for name in beyond
        ),
        *([ALONE] if adapter.options.takes_neurons else []),
    )


@dataclass(frozen=True)
class _Layer:
    """An edited linear on its way into the adapter."""

    stored: str
    weight: Tensor
    factors: LowRank
    step: Step


def _solver(
    choice: Options,
    listed: Sequence[Pair],
    rows: Mapping[str, Rows],
    parts: Mapping[str, Mapping[str, Rows]],
    L: Mapping[str, Tensor],
    K: Mapping[str, Tensor],
) -> Solver:
    """`solve` with this choice's numbers, each site's metric L L' and the keys K to leave alone."""

    def solver(site: str, X: Tensor, R: Tensor, Xs: Tensor, Rs: Tensor) -> Edit:
        columns = [listed[i] for i in parts.get(site, rows)["exact"].row]
        mu = choice.soft_weight * len(
            {pair.word for pair in columns}
        )  # a concept weighs the same in any company
        names = [pair.target.text for pair in columns]
        return solve(
            X,
            R,
            L=L.get(site),
            K=K.get(site),
            Xs=Xs,
            Rs=Rs,
            mu=mu,
            rtol=choice.rtol,
            max_rank=choice.max_rank,
            where=site,
            names=names,
        )

    return solver


def _readers(
    pipe: Any, family: PipelineFamily, states: Mapping[str, tuple[Tensor, Tensor]], solver: Solver
) -> list[_Layer]:
    """Every linear W among the readers has the same input, so one map B A of it serves all: D = (W B) A."""
    (X, Y), (Xs, Ys) = ((have.T, goal.T) for have, goal in (states["exact"], states["soft"]))
    edit = solver(STATES, X, Y - X, Xs, Ys - Xs)
    step = Step(STATES, edit, X.double(), float(((Y - X).norm(dim=0) / Y.norm(dim=0)).mean()))
    root, shared = get_component(pipe, family.denoiser), edit.factors
    weights = {path: effective_weight(root, path) for path in reader_paths(root, family)}
    return [
        _Layer(f"{family.denoiser}.{path}", W, LowRank(W.double() @ shared.B, shared.A), step)
        for path, W in weights.items()
    ]


def _chosen(
    pipe: Any, family: PipelineFamily, spec: ErasureSpec, choice: Options, measure: bool
) -> ErasureAdapter:
    """The adapter of the best chain: least denoiser drift among those whose denoiser residual is low enough.

    Chains are tried without the captions that judge them: on captions of its own metric a deeper chain looks better than it is.
    """
    look, tried, refused = Look.at(pipe, spec), dict[Options, Report](), []
    unseen = replace(
        spec, preserve=tuple(t for t in spec.every_caption() if t not in look.captions)
    )
    usual = _settled(pipe, spec, replace(choice, layers=None))
    for chosen in choices(spec, choice, usual, tried):
        try:
            tried[chosen] = look.judged(_erase(pipe, family, unseen, chosen, measure=False)).report
        except (
            ConceptSpecError,
            IllPosedError,
        ) as error:  # an encoder too short for the chain, or an edit too large
            refused.append(error)
    if not tried:
        raise refused[0]
    best = least_drift(tried, usual)
    whole, seen = _erase(pipe, family, spec, best, measure), tried[best]
    report = replace(
        whole.report, denoiser_residual=seen.denoiser_residual, denoiser_drift=seen.denoiser_drift
    )
    return replace(whole, report=report)


def _joined(parts: list[ErasureAdapter]) -> ErasureAdapter:
    """One adapter for all encoders."""

    def merged(name: str) -> dict[str, Any]:
        return {k: v for part in parts for k, v in getattr(part, name).items()}

    first = parts[0]
    return ErasureAdapter(
        first.spec,
        first.options,
        merged("base"),
        merged("edits"),
        merged("keys"),
        merged("goals"),
        report=worst([part.report for part in parts]),
    )
