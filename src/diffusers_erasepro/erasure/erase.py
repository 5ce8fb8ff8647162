"""The method. Read this first: one walk through the text encoder, solving as it goes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..adapters.adapter import ErasureAdapter
from ..adapters.header import refuse_unreadable
from ..config.options import AUTO, Options
from ..config.plan import Plan
from ..config.spec import Concept, ErasureSpec
from ..errors import EditTooLargeError, IllPosedError
from ..families.pipelines import family_of
from ..patching.weights import unedited
from ..prompts.alignment import CUT_PHRASE, rows_to_measure
from ..prompts.misspelt import notes_on_misspelt
from ..prompts.tokens import (
    TextPath,
    inversions_of,
    recording_once,
    text_paths,
    tokenizer_of,
)
from .assemble import ErasedEncoder, encoder_from_walk, merge_encoders, notes_of
from .auto_anchor import with_anchors
from .auto_layers import choose_layers
from .final_states import solve_for_final_states
from .float32 import in_float32
from .foreign_hooks import refuse_unsolved
from .last_words import CANNOT_TELL, notes_on_last_words
from .layerwise import walk
from .request import as_spec, below_loras, check_clip_skip, level_of_caller, resolve_layers
from .selectivity import MUCH_LEFT, measure_selectivity, notes_on_left
from .sites.embeddings import EmbeddingSite
from .sites.plan_edits import plan_edits
from .sites.planning import Planning, list_names, naming_encoder
from .sites.protocol import EditSite

FALLEN_BACK = "encoder blocks were edited instead of {}, as {}"
Planner = Callable[[Planning], list[EditSite]]


def erase(
    pipe: Any, spec: ErasureSpec | Concept | str, *, measure: bool = True, **options: Any
) -> ErasureAdapter:
    """Make the adapter that erases `spec` from `pipe`; the pipeline stays as it is, bit for bit.

    Per edited layer, shallow to deep, the smallest change (in the metric C of what the layer
    usually receives) that sends every listed target to its anchor exactly, given the shallower
    edits: min tr(D C D') s.t. D X = R (ErasePro, arXiv 2508.04472; block outputs, metric and soft
    prompts are our reading).

    LoRAs that are on do not count, as when an adapter is loaded: it is made for the base.

    Args:
        pipe: A diffusers pipeline, or a modular one, whose text encoders are of a known class
            (`families.encoders.ENCODERS`).
        spec: What to erase. A text is taken for the name of an object with nothing in its place.
        measure: Report held-out residual and drift; without, the edit alone is made, and they are
            NaN.
        layers: Encoder blocks to edit (-1 is the last that the pipeline reads), "embedding" for
            rows of the token embedding, where every token is its name's own, "gates" for steps of
            two idle neurons per token of a name, in the first block that tells it from everything
            else ("gates:2" is block 2), "otherwise:0" for block 0 on those words that rows and
            gates do not reach, or only in part ("otherwise:-1" for the last), "neurons" for two
            idle neurons of the first block per word, "eos_neurons" for two of the last block per
            concept (`erasure.sites.neurons`), and "kv" for the denoiser's linears that read the
            text states; or "auto" for what the noise predictions favour
            (`erasure.auto_layers.choose_layers`). A table gives layers by target. None, the
            default, is what each concept's kind asks for, ("embedding", "gates", "otherwise:0", -1)
            for those of the package; or (0, -1) where the first block is read, and with `keep` or
            `robust`, which hold more than rows and gates answer to.
        metric: "covariance" of the preserve captions, or "identity".
        alignment: Which token positions are constrained (`config.plan.ALIGNMENTS`), for all or by
            target; None is as with `layers`.
        ridge: Share of the identity mixed into the covariance; larger protects directions that no
            caption uses.
        soft_weight: Weight of the soft prompts; larger erases more phrasings and drifts more.
        soft_budget: Soft prompts in all. Many concepts share it; each word keeps two at least.
        rtol: Relative tolerance under which constraints count as duplicates.
        max_rank: Bound of each layer's rank; what lies above is cut from the soft part.
        max_edit_size: Largest ||D||_F / ||W||_F allowed for one concept; n may take sqrt(n) times
            as much.
        final_states: Whether rows of the embedding and the columns of gates are solved by L-BFGS
            for the states at every position, instead of taken from the anchor. None is where the
            anchor has another number of tokens, or holds the name.
        clip_skip: As the pipeline's call takes it: what it reads of CLIP lies so many blocks
            earlier, and there the erasure closes. For A1111 and ComfyUI, whose "clip skip 2" of
            Stable Diffusion is 1 here. None is 0.
        robust: Let the denoiser's readers also send the targets' states as the unedited encoder
            gives them to the anchors. That holds against embeddings made elsewhere, and costs
            drift.

    Raises:
        ConceptSpecError: The spec or an option cannot be meant.
        IllPosedError: No acceptable edit exists; the numbers are in the message.
        AdapterFormatError: The spec is too long for a file that can be read back.
        UnknownFamilyError: A text encoder has no record, or what the pipeline does with a prompt is
            not explained by them.
    """
    with below_loras(pipe):
        return erase_live(pipe, spec, measure=measure, **options)


def erase_live(
    pipe: Any, spec: ErasureSpec | Concept | str, *, measure: bool = True, **options: Any
) -> ErasureAdapter:
    """As `erase`, on top of the LoRAs that are on: `refit_erasure` does so."""
    began = time.perf_counter()
    spec = as_spec(spec)
    request = Options.of(options)
    family_of(pipe)  # refuses what is no known pipeline
    tokenizers = [tokenizer_of(path) for path in text_paths(pipe)]
    for note in notes_on_misspelt(spec.concepts, tokenizers):
        warnings.warn(note, stacklevel=level_of_caller())
    refuse_unreadable({"spec": spec.to_dict()})
    with unedited(pipe), torch.no_grad(), recording_once():
        check_clip_skip(pipe, request.clip_skip)
        spec = with_anchors(pipe, spec, request.alignment, request.clip_skip)
        if request.layers == AUTO:
            adapter = erase_with_chosen_layers(pipe, spec, request, measure=measure)
        else:
            adapter = erase_as_requested(pipe, spec, request, measure=measure)
    for note in adapter.report.notes:
        if note.startswith((CANNOT_TELL, CUT_PHRASE, MUCH_LEFT)):
            warnings.warn(note, stacklevel=level_of_caller())
    report = replace(adapter.report, seconds=time.perf_counter() - began)
    return replace(adapter, report=report)


def erase_as_requested(
    pipe: Any, spec: ErasureSpec, request: Options, *, measure: bool
) -> ErasureAdapter:
    """The erasure as asked for, and as each concept's kind asks for where that is left open.

    Gates and neurons that nobody named may turn out too large on a base; encoder blocks then do for
    the names concerned, beside the rows that names of their own tokens have, and the report says
    so.
    """
    plan = resolve_layers(pipe, spec, request)
    blocks = request.resolve(spec.concepts, selective=False)
    make = partial(erase_as_planned, pipe, spec, request, measure=measure)
    return make_or_fall_back(make, spec, plan, blocks)


def make_or_fall_back(
    make: Callable[[Plan], ErasureAdapter], spec: ErasureSpec, plan: Plan, blocks: Plan
) -> ErasureAdapter:
    """What `make` makes of the plan; or with blocks for those names whose gates turn out too large;
    or for all; or of `blocks`, without rows."""
    try:
        return make(plan)
    except IllPosedError as error:
        if plan == blocks:
            raise
        words = error.words if isinstance(error, EditTooLargeError) else ()
        targets = spec.targets_of(words)
        steps = {
            f"the gates of {list_names(targets)}": plan.without_neurons(blocks, targets),
            "gates or neurons": plan.without_neurons(blocks),
            "rows, gates or neurons": blocks,
        }
        instead, fewer = next((name, step) for name, step in steps.items() if step != plan)
        return fall_back(error, lambda: make_or_fall_back(make, spec, fewer, blocks), instead)


def erase_with_chosen_layers(
    pipe: Any, spec: ErasureSpec, request: Options, *, measure: bool
) -> ErasureAdapter:
    """The erasure with the layers that the noise predictions favour."""
    usual = resolve_layers(pipe, spec, replace(request, layers=None))
    trial = partial(erase_as_planned, pipe, measure=False)
    choice = choose_layers(pipe, spec, request, usual, trial)
    made = erase_as_planned(pipe, spec, choice.options, choice.plan, measure=measure)
    return replace(made, report=choice.add_to(made.report))


def fall_back(
    error: IllPosedError, make: Callable[[], ErasureAdapter], instead: str = "gates or neurons"
) -> ErasureAdapter:
    """What `make` makes of encoder blocks, with a note that says instead of what, and why."""
    made = make()
    note = FALLEN_BACK.format(instead, error)
    warnings.warn(note, stacklevel=level_of_caller())
    return replace(made, report=replace(made.report, notes=(*made.report.notes, note)))


def erase_as_planned(
    pipe: Any,
    spec: ErasureSpec,
    options: Options,
    plan: Plan,
    *,
    measure: bool,
    planner: Planner = plan_edits,
) -> ErasureAdapter:
    """The erasure in every text encoder that is there, and in what reads it if asked for."""
    parts = [
        erase_encoder(pipe, path, spec, options, plan, measure=measure, planner=planner)
        for path in text_paths(pipe, options.clip_skip)
    ]
    made = merge_encoders(parts)
    found: list[str] = []
    for part in parts:
        found += part.report.notes
    caveats = [*spec.caveats]
    for concept in spec.concepts:
        caveats += concept.caveats
    notes = (*notes_of(pipe, made), *dict.fromkeys([*found, *caveats]))
    inversions = inversions_of(pipe, spec.concepts)
    return replace(made, report=replace(made.report, notes=notes, inversions=inversions))


def erase_encoder(
    pipe: Any,
    path: TextPath,
    spec: ErasureSpec,
    options: Options,
    plan: Plan,
    *,
    measure: bool,
    planner: Planner,
) -> ErasedEncoder:
    """The erasure in one text encoder: plan the sites, walk through them, keep what they found."""
    with in_float32(path.encoder) as encoder:
        planning = Planning.of(pipe, path, encoder, spec, options, plan)
        sites = solve_for_final_states(planning, planner(planning))
        rows = dict(planning.rows)
        if measure:  # these only ride along
            alignments = plan.alignments(spec.concepts)
            captions = spec.preserve_captions()
            with naming_encoder(path):
                rows |= rows_to_measure(spec.concepts, captions, path, alignments)
        elif all(isinstance(site, EmbeddingSite) for site in sites):
            del rows["soft"]  # nothing is solved with them
        done = walk(encoder, rows, sites, path.use.readings)
        refuse_unsolved(encoder, path, rows["exact"], done)
        notes = notes_on_last_words(planning, done) if measure else ()
        notes = (*notes, *planning.notes)
        for step in done.steps:
            notes = (*notes, *step.edits.notes)
        selective = None
        if measure and any(recipe.edits_tokens for _, recipe in plan.recipes):
            selective = measure_selectivity(planning, done.edits_of(path.use.encoder))
            notes = (*notes, *notes_on_left(path.use.encoder, selective))
    made = encoder_from_walk(planning, done)
    return replace(made, report=replace(made.report, notes=notes, selectivity=selective))
