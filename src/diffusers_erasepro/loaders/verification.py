"""Measure an erasure on the live modules, through the path that a call uses."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..adapters.adapter import ErasureAdapter
from ..adapters.report import ConceptLeft, Selectivity, least_selective
from ..config.mentions import find_mention
from ..config.options import Options, OtherMethod
from ..config.plan import is_gates, is_partial
from ..config.spec import Concept
from ..erasure.assemble import notes_on_lengths
from ..erasure.float32 import in_float32
from ..erasure.residuals import largest, relative, target_states
from ..erasure.selectivity import Compared, compare, left_by_concept, read_state_by_position
from ..erasure.states import edited, states_of
from ..errors import (
    AdapterIntegrityError,
    ConceptSpecError,
)
from ..families.encoders import take_neurons
from ..families.pipelines import family_of, get_component
from ..linalg.low_rank import LowRank
from ..modules.linear import base_linear, dtype_of, output_scale, plain_weight, resident_bias
from ..modules.storage import forward_of
from ..modules.tuners import acting_adapters, changes_its_base, without_edit
from ..patching.weights import (
    EditedWeight,
    Registry,
    TrackedWeights,
    is_base_of,
    modules_with_registry,
    original_weights,
    registry_of,
    resolve_edits,
    track_weights,
    unedited,
)
from ..prompts.alignment import Rows, rows_of
from ..prompts.learned_tokens import expand, expansions_of, learned_tokens
from ..prompts.pairs import Pair, Prompt, pairs_of, spread
from ..prompts.tokens import TextPath, Tokens, text_paths
from .locking import find_lost_edits, find_other_readings, get_adapters, get_states
from .recorded_calls import states_in_calls
from .stacking import SUM, SUM_WARNING

THRESHOLDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Largest residual that counts as zero, per dtype of the live weights: three times what rounding
was measured to do."""
NEVER_COVERED = (
    "images given as input (img2img, inpainting, IP-Adapter)",
    "whoever holds the files: fine-tuning, unloading, other checkpoints",
)
ENCODED = (
    "prompt_embeds made elsewhere: this erasure lives in the text encoder",
    "prompt weighting: states that were not solved for",
)
"""Ways around an erasure that edits a text encoder."""
ROBUST = (
    "prompt_embeds made elsewhere, other than the listed prompts' by the unedited encoder",
    ENCODED[1],
)
"""Ways around one made with `robust=True`."""
READ = (ENCODED[1],)
"""Ways around one that edits the denoiser alone."""
GIVEN_EMBEDDINGS = (
    "the last call was given prompt_embeds: if another text encoder, or this one without its "
    "erasure, made them, they were not erased"
)
"""What is said once such a call was made; that it can be made is said of every pipeline."""
UNSEEN_ENCODER = (
    "{} is read by the denoiser, and the erasure was made without it: the concept stays there; "
    "refit_erasure() solves it with all encoders"
)
READERS_COMPARED = 4
"""Of the denoiser's edited linears, so many show what is left of a concept."""
GATES_ROUND = 4.0
"""A gate is the difference of two neurons that are large where it is open, so that 16 bits round it
more: up to three times what `THRESHOLDS` allow ("golf ball" on MiniLM 0.0032 in float16, 0.022 in
bfloat16; "cross" of the glyphs 0.0056 and 0.015, solved slightly differently 0.0038 and 0.036)."""
MOST_ADMITTED = 0.1
"""No report excuses a larger residual: from there on the target shows in the images."""
Tracked = Mapping[str, TrackedWeights]
"""Component -> the edited weights as they are now."""


@dataclass(frozen=True)
class Verification:
    """What `verify_erasure` measured on the live modules."""

    ok: bool
    residual: float
    """Worst over the active adapters' listed prompts."""
    threshold: float
    uncovered: tuple[str, ...]
    """Routes and states this does not vouch for, in words."""
    residuals: dict[str, float]
    """Component, "call" or (where layers were sampled) layer -> worst residual."""
    prompts: dict[str, float] = field(default_factory=dict)
    """Given prompt -> residual of its concept.

    Phrasings that are not listed are met less exactly, so `ok` ignores these.
    """
    left: dict[str, ConceptLeft] = field(default_factory=dict)
    """Target -> what is left of it by kind of position, where that was asked for. `ok` ignores it,
    as it ignores `selectivity`."""
    selectivity: Selectivity | None = None
    """What is left of all concepts together, and what else moves, where that was asked for; of the
    text encoder that fares worst."""
    prompts_left: dict[str, float] = field(default_factory=dict)
    """Given prompt -> share of the gap to its anchor's that is left, the worst first; before the
    erasure it is 1. `ok` ignores it too."""


@torch.no_grad()
def verify(
    pipe: Any,
    *,
    prompts: Sequence[str] = (),
    images: bool = False,
    sample: int | None = None,
    selectivity: bool = False,
) -> Verification:
    """Measure everything active; `ErasureLoaderMixin.verify_erasure` says how."""
    active = active_edits(pipe)
    broken = find_lost_edits(pipe)
    if not active:
        broken.append("no erasure is active")
    for adapter in active:
        for encoder in list_unseen_encoders(pipe, adapter):
            broken.append(UNSEEN_ENCODER.format(encoder))
    # what was made for other readings is broken here, and has no goals to compare with
    here = [adapter for adapter in active if find_other_readings(pipe, adapter) is None]
    tracked: Tracked = {}
    residuals: dict[str, float] = {}
    if sample:
        for part, edits in _choose_layers(pipe, active, sample).items():
            residuals |= _measure_layers(pipe, part, edits)
    else:
        modules = modules_with_registry(pipe).items()
        tracked = {name: track_weights(root) for name, (root, _) in modules}
        call = images and not broken
        for adapter in here:
            residuals |= measure_listed(pipe, adapter, images=call, tracked=tracked)
    threshold = max([THRESHOLDS[torch.float32], *(allowed_residual(pipe, a) for a in active)])
    worst = float("inf") if broken else largest(residuals.values())
    notes = (
        *broken,
        *_list_off(pipe),
        *_list_unmeasured(pipe, active),
        *_list_changed(pipe, active, tracked),
        *_list_routes(pipe, active),
        *NEVER_COVERED,
    )
    by_prompt: dict[str, float] = {}
    for adapter in here:
        for text in prompts:
            by_prompt[text] = _measure_prompt(pipe, adapter, text)
    left: dict[str, ConceptLeft] = {}
    measured: list[Selectivity] = []
    for adapter in here if selectivity else ():
        for path in edited_paths(pipe, adapter):
            found = compare_live(path, adapter)
            if found is not None:
                measured.append(compare(found, adapter.spec))
                for target, one in left_by_concept(found, adapter.spec.concepts).items():
                    left[target] = one.worst_with(left[target]) if target in left else one
    return Verification(
        worst <= threshold,
        worst,
        threshold,
        notes,
        residuals,
        by_prompt,
        left,
        least_selective(measured),
    )


def compare_live(path: TextPath, adapter: ErasureAdapter) -> Compared | None:
    """The live encoder with its edits and without; None where it is read as one vector only.

    Where the denoiser's linears hold edits, what some of them make of the states counts.
    """
    reading = read_state_by_position(path)
    if reading is None:
        return None
    pipe = path.pipe
    family = family_of(pipe)
    readers: list[str] = []
    if family.reads_whole(path.use) and family.denoiser in adapter.components:
        edits = resolve_edits(get_component(pipe, family.denoiser), family.denoiser, adapter)
        readers = spread([*edits], READERS_COMPARED)

    def now(tokens: Tokens) -> Tensor:
        with evaluating(path.encoder):
            (states,) = states_of(path.encoder, tokens, [reading])
        if not readers:
            return states
        root = get_component(pipe, family.denoiser)
        x = states.to(dtype_of(root))
        return torch.cat([forward_of(root, name)(x) for name in readers], -1)

    def without(tokens: Tokens) -> Tensor:
        with unedited(pipe):
            return now(tokens)

    return Compared(path, now, without)


def active_edits(pipe: Any) -> list[ErasureAdapter]:
    """The edits in force: one, unless components came from different pipelines."""
    applied = [registry.applied for _, registry in modules_with_registry(pipe).values()]
    return list({id(adapter): adapter for adapter in applied if adapter}.values())


# --- measuring


@torch.no_grad()
def measure_listed(
    pipe: Any, adapter: ErasureAdapter, *, images: bool = False, tracked: Tracked | None = None
) -> dict[str, float]:
    """Component -> worst residual on the listed prompts, encoded now.

    Args:
        pipe: The live pipeline.
        adapter: What to measure.
        images: Also measure what the denoiser receives in real calls.
        tracked: The weights that the adapter edits here. Without, it is not in force, and what its
            factors would add counts.
    """
    found: dict[str, float] = {}
    for path in edited_paths(pipe, adapter):
        rows = _rows(path, adapter)
        with evaluating(path.encoder):
            have = target_states(path.encoder, rows, path.use.readings)
        found |= _measure_states(path, adapter, have, tracked or {})
    if images:
        found["call"] = _measure_calls(pipe, adapter, tracked or {})
    return found


@torch.no_grad()
def predict_residual(pipe: Any, adapter: ErasureAdapter, *, wide: bool = False) -> float:
    """Worst listed residual that `adapter` would have on the unedited pipeline.

    It is what the factors do, not what the adapter reports. `wide`: were its weights, as they are,
    computed with in float32.

    Raises:
        AdapterStateError: It cannot run in float32.
    """
    running = in_float32 if wide else evaluating
    residuals: list[float] = []
    for path in edited_paths(pipe, adapter):
        rows = _rows(path, adapter)
        edits = resolve_edits(path.encoder, path.use.encoder, adapter)
        with running(path.encoder) as encoder, edited(encoder, edits):
            have = target_states(encoder, rows, path.use.readings)
        for state, goal in zip(have, _goals(path, adapter), strict=True):
            if state.shape != goal.shape:
                raise AdapterIntegrityError(
                    f"the goals of {path.use.encoder} are {tuple(goal.shape)}, its spec asks for "
                    f"{tuple(state.shape)}"
                )
        residuals += _measure_states(path, adapter, have, None, wide=wide).values()
    return largest(residuals)


def edited_paths(pipe: Any, adapter: ErasureAdapter) -> list[TextPath]:
    """The text encoders that the adapter has goals for."""
    paths = text_paths(pipe, adapter.clip_skip)
    return [path for path in paths if path.use.encoder in adapter.goal_parts]


def _rows(path: TextPath, adapter: ErasureAdapter) -> Rows:
    concepts = adapter.spec.concepts
    return rows_of(pairs_of(concepts, "exact"), path, adapter.plan.alignments(concepts))


def _goals(path: TextPath, adapter: ErasureAdapter) -> list[Tensor]:
    names = [f"{path.use.encoder}.{reading}" for reading in path.use.readings]
    if missing_goals := [name for name in names if name not in adapter.goals]:
        raise AdapterIntegrityError(
            f"the adapter lacks the goals of {', '.join(missing_goals)}; "
            "fetch it again from its author"
        )
    return [adapter.goals[name] for name in names]


def _measure_states(
    path: TextPath,
    adapter: ErasureAdapter,
    have: Sequence[Tensor],
    tracked: Tracked | None,
    *,
    wide: bool = False,
) -> dict[str, float]:
    """Worst residual of what is read of an encoder.

    That is of the states, or of what the denoiser's edited linears make of them. `tracked`: what
    these hold; None if they do not hold the edit, so that it is added here, `wide` in float32.
    """
    family = family_of(path.pipe)
    use = path.use
    states = list(zip(have, _goals(path, adapter), use.readings, strict=True))
    found = {}
    if family.reads_whole(use) and family.denoiser in adapter.components:
        whole = next(i for i, (_, _, reading) in enumerate(states) if not reading.pooled)
        x, y, _ = states.pop(whole)
        if _is_robust(adapter):
            x = torch.cat([x, _unedited_states(adapter, use.encoder, y).to(x)])
            y = torch.cat([y, y])
        root = get_component(path.pipe, family.denoiser)
        edits = resolve_edits(root, family.denoiser, adapter)
        dtype = torch.float32 if wide else dtype_of(root)
        x = x.to(dtype)
        y = y.to(x.device, dtype)
        if tracked is None:
            found[family.denoiser] = _predict_readers(root, edits, x, y)
        else:
            added = _added_by(root, adapter, edits, tracked.get(family.denoiser, {}))
            found[family.denoiser] = _measure_readers(root, added, x, y)
    if states:
        found[use.encoder] = largest([relative(h.cpu(), g) for h, g, _ in states])
    return found


def _is_robust(adapter: ErasureAdapter) -> bool:
    return isinstance(adapter.options, Options) and adapter.options.robust


def _unedited_states(adapter: ErasureAdapter, encoder: str, goal: Tensor) -> Tensor:
    """The targets' states by the unedited encoder, `(k, d)` as `goal`.

    They are the second half of a robust adapter's keys.
    """
    keys = adapter.keys.get(f"{encoder}.states", torch.zeros(0, 0, dtype=torch.float32))
    if keys.shape != (2 * len(goal), goal.shape[1]):
        raise AdapterIntegrityError(
            f"a robust adapter with this spec holds {2 * len(goal)} keys of {encoder}.states, "
            f"this one {len(keys)}; fetch it again from its author"
        )
    return keys[len(goal) :]


def _measure_readers(
    root: nn.Module, added: Mapping[str, Callable[[Tensor], Tensor]], x: Tensor, y: Tensor
) -> float:
    """Worst residual after the edited readers, on states `(k, d)` that shall be `y` and are `x`.

    A style LoRA acts on anchors too, so it belongs to what is wanted; our edit does not.
    """
    residuals = []
    for name, ours in added.items():
        module: Any = base_linear(root.get_submodule(name))
        bias = _bias_at(module, x)
        out = forward_of(root, name)(torch.cat([x, y])).float() - bias
        wanted = out[len(x) :] - ours(y.float())
        if changes_its_base(root.get_submodule(name)):
            bits = original_weights(root).get(name.removeprefix("text_model."))
            stock = without_edit(root, name, bits)
            wanted = stock(y.float()).float() - bias
        residuals.append(relative(out[: len(x)], wanted))
    return largest(residuals)


def _bias_at(linear: Any, x: Tensor) -> Tensor | float:
    """A linear's bias in float32, from where it lies to where `x` is; 0 where it has none."""
    bias = resident_bias(linear)
    return 0.0 if bias is None else bias.to(x.device, torch.float32)


def _predict_readers(root: nn.Module, edits: Mapping[str, LowRank], x: Tensor, y: Tensor) -> float:
    """As `_measure_readers`, of linears that do not hold their edit yet, in the dtype of `x`."""
    residuals = []
    for name, factors in edits.items():
        reader: Any = base_linear(root.get_submodule(name))
        bias = _bias_at(reader, x)
        read = reader.forward
        if x.dtype != dtype_of(root):
            bias = 0.0
            read = partial(linear, weight=plain_weight(reader).to(x))
        residuals.append(relative(read(x) - bias + factors(x), read(y) - bias))
    return largest(residuals)


def _added_by(
    root: nn.Module, adapter: ErasureAdapter, edits: Mapping[str, LowRank], tracked: TrackedWeights
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Layer -> what its edit adds to its output.

    Where the edit was rounded, that is the bits written less those of the base; else the factors.
    Factors stand for a hook, too, and for an adapter that is not in force.
    """
    registry = registry_of(root) or Registry()
    weights = registry.weights if registry.applied is adapter else {}
    added: dict[str, Callable[[Tensor], Tensor]] = dict(edits)
    for name, written in weights.items():
        if name in registry.hooks or name not in edits:
            continue
        now = tracked.get(name) or written
        if now.target is not written.target or now.target.dtype != torch.float32:
            added[name] = partial(_difference, now)
    return added


def _difference(record: EditedWeight, y: Tensor) -> Tensor:
    return linear(y, record.target.to(y)) - linear(y, record.base.to(y))


def allowed_residual(pipe: Any, adapter: ErasureAdapter) -> float:
    """Largest residual that passes.

    It is what rounding explains in this dtype, or what the report admits, up to a limit. Rows of
    the embedding and gates alone close no gap to the end, whatever stands in for them elsewhere,
    and there is no limit but 1.
    """
    dtypes = {dtype_of(get_component(pipe, part)) for part in parts_of(adapter)}
    rounded = [rounding_residual(adapter, dtype) for dtype in dtypes]
    if has_gates(pipe, adapter) and dtypes != {torch.float32}:
        rounded = [min(GATES_ROUND * residual, MOST_ADMITTED) for residual in rounded]
    return max(admitted_residual(adapter), *rounded)


def has_gates(pipe: Any, adapter: ErasureAdapter) -> bool:
    """Whether gates are among its edits, and not only asked for."""
    if not any(is_gates(layer) for layer in adapter.plan.layers):
        return False
    encoders = [getattr(pipe, part, None) for part in adapter.goal_parts]
    return take_neurons(encoders, adapter.edits)


def parts_of(adapter: ErasureAdapter) -> tuple[str, ...]:
    """The components that it edits or has goals for."""
    return tuple(dict.fromkeys((*adapter.components, *adapter.goal_parts)))


def admitted_residual(adapter: ErasureAdapter) -> float:
    """What the report admits, up to a limit; 0 where the erasure closes nothing."""
    reported = adapter.report.listed_residual
    layers = {*adapter.plan.layers}
    partial = bool(layers) and all(is_partial(name) for name in layers)
    limit = 1.0 if partial else MOST_ADMITTED
    return min(2 * reported, limit) if reported < 1 else 0.0


def rounding_residual(adapter: ErasureAdapter, dtype: torch.dtype) -> float:
    """What rounding to `dtype` explains.

    In 16 bits the states come rounded to the denoiser's readers, whose outputs are compared, and
    the error goes through W and D alike: an edit s times as large as its weight makes it about
    sqrt(1 + s^2) times larger. What an edit of an encoder does is compared at the states: there
    it stays the same, 0.0065 to 0.0076 in bfloat16 for edits 0.15 to 3.0 times their weight.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return THRESHOLDS[torch.float32]
    sizes = [0.0]
    for layer in adapter.report.layers:
        if layer.name.partition(".")[0] not in adapter.goal_parts:
            sizes.append(layer.edit_size)
    return min(THRESHOLDS[dtype] * math.hypot(1, max(sizes)), MOST_ADMITTED)


def _measure_calls(pipe: Any, adapter: ErasureAdapter, tracked: Tracked) -> float:
    """Worst residual of what reaches the denoiser in calls with the listed prompts."""
    pairs = pairs_of(adapter.spec.concepts, "exact")
    paths = edited_paths(pipe, adapter)
    rows = [_rows(path, adapter) for path in paths]
    texts = [pair.target.text for pair in pairs]
    skip = {"clip_skip": adapter.clip_skip} if adapter.clip_skip else {}
    residuals: list[float] = []
    for path, have in zip(paths, states_in_calls(paths, rows, texts, **skip), strict=True):
        residuals += _measure_states(path, adapter, have, tracked).values()
    return largest(residuals)


def _choose_layers(
    pipe: Any, active: Sequence[ErasureAdapter], count: int
) -> dict[str, dict[str, LowRank]]:
    """Component -> layer -> factors, of `count` edited layers chosen at random."""
    layers = []
    for adapter in active:
        for part in adapter.components:
            layers += [(adapter, part, stored) for stored in adapter.of(part)]
    found: dict[str, dict[str, LowRank]] = {}
    for adapter, part, stored in random.sample(layers, min(count, len(layers))):
        one = replace(adapter, edits={f"{part}.{stored}": adapter.edits[f"{part}.{stored}"]})
        found.setdefault(part, {}).update(resolve_edits(get_component(pipe, part), part, one))
    return found


def _measure_layers(pipe: Any, part: str, edits: Mapping[str, LowRank]) -> dict[str, float]:
    """Layer -> ||what it adds to its input - what it shall add|| / ||what it shall add||.

    No prompt is encoded.
    """
    root = get_component(pipe, part)
    return {f"{part}.{n}": _missing_share(root, n, factors) for n, factors in edits.items()}


def _missing_share(root: nn.Module, name: str, factors: LowRank) -> float:
    """How much of the edit is missing from the live layer, 0 to 1.

    It is measured on a mixture `(1, d_in)` of the inputs that move the layer most: the rows of A,
    with signs drawn anew. One row is read about as fast as memory allows, several are not. Of a
    token embedding, on the tokens whose rows changed.
    """
    module: Any = base_linear(root.get_submodule(name))
    registry = registry_of(root) or Registry()
    if isinstance(module, nn.Embedding):
        return _missing_rows(root, name, factors)
    signs = random.choices((-1.0, 1.0), k=factors.rank)
    x = (factors.A.new_tensor([signs]) @ factors.A).to(
        next(module.parameters()).device, dtype_of(root)
    )
    live = forward_of(root, name)(x)
    record = registry.weights.get(name)
    if record is None or name in registry.hooks:
        wanted = module.forward(x) + factors(x)
    else:
        wanted = linear(x, record.target.to(x)) + _bias_at(module, x)
    return float((live - wanted).double().norm() / factors(x).double().norm())


def _missing_rows(root: nn.Module, name: str, factors: LowRank) -> float:
    """As `_missing_share`, of a token embedding."""
    module: Any = base_linear(root.get_submodule(name))
    registry = registry_of(root) or Registry()
    ids = factors.A.any(0).nonzero()[:, 0].to(next(module.parameters()).device)
    added = output_scale(module) * factors(ids).double()
    live = forward_of(root, name)(ids)
    record = registry.weights.get(name)
    if record is None or name in registry.hooks:
        wanted = module.forward(ids) + added.to(live)
    else:
        wanted = output_scale(module) * record.target.to(live).T[ids]
    return float((live - wanted).double().norm() / added.norm())


def _measure_prompt(pipe: Any, adapter: ErasureAdapter, text: str) -> float:
    """Residual of the concept in a prompt of the user's.

    It is measured against the same prompt with the anchor, unedited.
    """
    concept, pair = _find_pair(text, adapter.spec.concepts)
    residuals = []
    for path in edited_paths(pipe, adapter):
        rows = rows_of([pair], path, adapter.plan.alignment_of(concept))
        readings = path.use.readings
        anchors = Rows(rows.anchor, rows.target, rows.row, rows.anchor_at, rows.target_at)
        with evaluating(path.encoder):
            have = target_states(path.encoder, rows, readings)
            with unedited(pipe):
                goal = target_states(path.encoder, anchors, readings)
        residuals += [relative(h, g) for h, g in zip(have, goal, strict=True)]
    return largest(residuals)


def _find_pair(text: str, concepts: Sequence[Concept]) -> tuple[Concept, Pair]:
    """The first concept named in `text`, and the text with its anchor instead."""
    for concept in concepts:
        for word in sorted(concept.words, key=len, reverse=True):
            found = find_mention(text, word)
            if found is not None:
                at, stop = found
                anchor = text[:at] + concept.anchor + text[stop:]
                return concept, Pair(
                    Prompt(text, at, stop), Prompt(anchor, at, at + len(concept.anchor))
                )
    known: list[str] = []
    for concept in concepts:
        known += map(repr, concept.words)
    raise ConceptSpecError(
        f"prompt {text!r} names none of the erased concepts ({', '.join(known)}), so nothing says "
        "what it should become; leave it out, and see how far it moves by "
        "loaders.prompt_measures.measure_prompts or `erasepro verify --prompts`"
    )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """Inside, the module is in eval mode."""
    training = module.training
    if training:
        module.eval()
    try:
        yield module
    finally:
        if training:
            module.train()


# --- what is not covered


def list_unseen_encoders(pipe: Any, adapter: ErasureAdapter) -> list[str]:
    """Text encoders that the pipeline reads and the adapter neither edits nor has goals for.

    An adapter that has goals is measured at each of them, whether the encoder or the denoiser's
    readers carry the edit. One without any (imported) also counts as having seen what linears of
    the denoiser read that it edits: its verdict stays open, as nothing of it can be measured.
    """
    family = family_of(pipe)
    if adapter.imported and family.denoiser in adapter.components:
        return []
    seen = {*adapter.goal_parts, *(adapter.components if adapter.imported else ())}
    return [path.use.encoder for path in text_paths(pipe) if path.use.encoder not in seen]


def _list_unmeasured(pipe: Any, active: Sequence[ErasureAdapter]) -> list[str]:
    """What is on and was not solved here."""
    notes = [
        f"adapter {name!r} was imported: its effect cannot be measured"
        for name, adapter in get_adapters(pipe).items()
        if adapter.imported
    ]
    if any(_is_sum(adapter) for adapter in active):
        notes.append(SUM_WARNING)
    return notes


def _is_sum(adapter: ErasureAdapter) -> bool:
    return isinstance(adapter.options, OtherMethod) and adapter.options.method == SUM


def _list_off(pipe: Any) -> list[str]:
    return [f"adapter {name!r} is off" for name, on in get_states(pipe).items() if not on]


def _list_changed(pipe: Any, active: Sequence[ErasureAdapter], tracked: Tracked) -> list[str]:
    """Weights, or the base as a whole, that are no longer those the erasure was made for."""
    notes = []
    for adapter in active:
        notes += list_lost_inversions(pipe, adapter)
    for name, weights in tracked.items():
        if changed := [weight for weight, record in weights.items() if record is None]:
            notes.append(
                f"{name} was changed by someone else since the erasure was applied: "
                f"{', '.join(changed[:3])}"
            )
        made_for = [adapter.base[name] for adapter in active if name in adapter.base]
        if not all(is_base_of(pipe, name, prints, weights) for prints in made_for):
            notes.append(
                f"the weights of {name} are no longer those the erasure was made for; "
                "refit_erasure() solves it again"
            )
    return notes


def _list_routes(pipe: Any, active: Sequence[ErasureAdapter]) -> list[str]:
    """Ways around the edits in force."""
    if not active:
        return []
    family = family_of(pipe)
    denoiser = family.denoiser
    encoders = [use.encoder for use in family.encoders]
    if any(map(_is_robust, active)):
        notes = [*ROBUST]
    elif any(not set(encoders).isdisjoint(adapter.components) for adapter in active):
        notes = [*ENCODED]
    else:
        notes = [*READ]
    edits_encoder = notes != [*READ]
    if edits_encoder and getattr(pipe, "_erasure_given_embeddings", False):
        notes.append(GIVEN_EMBEDDINGS)
    notes += family.notes
    notes += _list_other_readings(pipe, active)
    notes += notes_on_lengths(pipe)
    for part in (denoiser, *encoders):
        loras = _list_loras(getattr(pipe, part, None))
        notes += [f"LoRA {name!r} is active in {part}" for name in loras]
    if getattr(getattr(pipe, denoiser, None), "encoder_hid_proj", None) is not None:
        notes.append(
            "an IP-Adapter is loaded: its images reach the denoiser through attention of their own"
        )
    if getattr(pipe, "controlnet", None) is not None:
        notes.append("controlnet reads the prompt through K/V of its own, which no edit covers")
    for use in family.encoders:
        tokenizer = getattr(pipe, use.tokenizer, None)
        for token in _list_unnamed(tokenizer, active):
            notes.append(f"learned token {token!r}: an embedding that no prompt of the spec holds")
    return notes


def list_lost_inversions(pipe: Any, adapter: ErasureAdapter) -> list[str]:
    """The textual inversions that an adapter was made with and that are not here, with what to do.

    Without them the prompts that it lists are other tokens.
    """
    notes = []
    for use in family_of(pipe).encoders:
        made_with = adapter.report.inversions.get(use.encoder, ())
        tokenizer = getattr(pipe, use.tokenizer, None)
        there = {*getattr(getattr(tokenizer, "tokenizer", tokenizer), "added_tokens_encoder", ())}
        if lost := [token for token in made_with if token not in there]:
            notes.append(
                f"{use.encoder} does not have the textual inversion {', '.join(map(repr, lost))} "
                "that the erasure was made with; pipe.load_textual_inversion it first"
            )
    return notes


def _list_unnamed(tokenizer: Any, active: Sequence[ErasureAdapter]) -> list[str]:
    """The learned tokens that no target or anchor of an adapter in force holds."""
    learned = expansions_of(tokenizer)
    said: set[str] = set()
    for adapter in active:
        for concept in adapter.spec.concepts:
            for word in (*concept.words, concept.anchor):
                said |= {word, *expand(word, learned).split()}
    return [token for token in learned_tokens(tokenizer) if token not in said]


def _list_other_readings(pipe: Any, active: Sequence[ErasureAdapter]) -> list[str]:
    """Calls with another `clip_skip` than the edits in force are made for."""
    if not any(use.skips for use in family_of(pipe).encoders):
        return []
    notes = []
    for made_for in sorted({adapter.clip_skip for adapter in active}):
        notes.append(
            f"calls with another clip_skip than {made_for}: states that were not solved for"
        )
        last = getattr(pipe, "_clip_skip", made_for) or 0
        if last != made_for:
            notes.append(
                f"the last call had clip_skip={last}, and the erasure is made for {made_for}; "
                f"make it with erase(..., clip_skip={last})"
            )
    return notes


def _list_loras(module: Any) -> list[str]:
    """Names of the LoRAs, and their like, that act in a component; they leave a `peft_config`."""
    if not hasattr(module, "peft_config"):
        return []
    names: set[str] = set()
    for layer in module.modules():
        names |= {*acting_adapters(layer)}
    return sorted(names)
