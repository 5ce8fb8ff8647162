"""Does an erasure hold? Measured on the live modules, through the path a call really uses."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear

from ..adapters.adapter import ErasureAdapter
from ..config.mentions import find_mention
from ..config.options import Options, OtherMethod
from ..config.spec import Concept
from ..erasure.residuals import largest, relative, target_states
from ..erasure.states import edited
from ..errors import AdapterIntegrityError, ConceptSpecError, UnknownFamilyError
from ..families.pipelines import family_of, get_component
from ..linalg.low_rank import LowRank
from ..modules.linear import base_linear, dtype_of
from ..modules.storage import forward_of
from ..patching.weights import (
    EditedWeight,
    Registry,
    TrackedWeights,
    base_fingerprint,
    modules_with_registry,
    registry_of,
    resolve_edits,
    track_weights,
    unedited,
)
from ..prompts.alignment import Rows, rows_of
from ..prompts.pairs import Pair, Prompt, pairs_of
from ..prompts.tokens import TextPath, text_paths
from .locking import missing
from .stacking import SUM, SUMMED

THRESHOLDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Largest residual that counts as zero, per dtype of the live weights (three times what rounding was seen to do)."""
NEVER_COVERED = (
    "images given as input (img2img, inpainting, IP-Adapter)",
    "whoever holds the files: fine-tuning, unloading, other checkpoints",
)
ENCODED = (
    "prompt_embeds made elsewhere: this erasure lives in the text encoder",
    "clip_skip and prompt weighting: states that were not solved for",
)
"""Ways around an erasure that edits a text encoder."""
ROBUST = (
    "prompt_embeds made elsewhere, other than the listed prompts' by the unedited encoder",
    ENCODED[1],
)
"""Ways around one made with `robust=True`."""
READ = ("clip_skip and prompt weighting: states that were not solved for",)
"""Ways around one that edits the denoiser alone."""
CALL_STEPS = 2
MOST_ADMITTED = 0.1
"""No report excuses a larger residual: from there on the target shows in what is drawn."""
Seen = Mapping[str, TrackedWeights]
"""Component -> the edited weights that were looked at."""


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
    """Given prompt -> residual of its concept; phrasings that are not listed are met less exactly, so `ok` ignores these."""


@torch.no_grad()
def verify(
    pipe: Any, *, prompts: Sequence[str] = (), images: bool = False, sample: int | None = None
) -> Verification:
    """Measure everything active; `ErasureLoaderMixin.verify_erasure` says how."""
    active = _active(pipe)
    broken = [*missing(pipe), *([] if active else ["no erasure is active"])]
    seen = (
        {}
        if sample
        else {name: track_weights(root) for name, (root, _) in modules_with_registry(pipe).items()}
    )
    if sample:
        measured = [
            _sampled(pipe, part, edits) for part, edits in _drawn(pipe, active, sample).items()
        ]
    else:
        measured = [listed(pipe, a, images=images and not broken, seen=seen) for a in active]
    residuals = {name: value for part in measured for name, value in part.items()}
    threshold = max([THRESHOLDS[torch.float32], *(allowed(pipe, a) for a in active)])
    worst = float("inf") if broken else largest(residuals.values())
    notes = (
        *broken,
        *_off(pipe),
        *_unsure(pipe, active),
        *_changed(pipe, active, seen),
        *_routes(pipe, active),
        *NEVER_COVERED,
    )
    told = {text: _told(pipe, a, text) for a in active for text in prompts}
    return Verification(worst <= threshold, worst, threshold, notes, residuals, told)


def _active(pipe: Any) -> list[ErasureAdapter]:
    """The edits in force: one for all components, unless components came from different pipelines."""
    return list(
        {
            id(r.applied): r.applied for _, r in modules_with_registry(pipe).values() if r.applied
        }.values()
    )


# ------------------------------------------------------------------------------------------------ measuring


@torch.no_grad()
def listed(
    pipe: Any, adapter: ErasureAdapter, *, images: bool = False, seen: Seen | None = None
) -> dict[str, float]:
    """Component -> worst residual on the listed prompts, encoded now.

    `seen`: the weights that the adapter edits here; without, it is not in force, and what its factors would add counts.
    """
    found: dict[str, float] = {}
    for path in _paths(pipe, adapter):
        rows = _rows(path, adapter)
        with evaluating(path.encoder):
            have = target_states(path.encoder, rows, path.use.readings)
        found |= _read(path, adapter, have, seen or {})
    return found | ({"call": _called(pipe, adapter, seen or {})} if images else {})


@torch.no_grad()
def promised(pipe: Any, adapter: ErasureAdapter) -> float:
    """Worst listed residual that `adapter` would have on the unedited pipeline: what its factors do, not what it reports."""
    each: list[float] = []
    for path in _paths(pipe, adapter):
        rows, encoder = _rows(path, adapter), path.encoder
        with (
            evaluating(encoder),
            edited(encoder, resolve_edits(encoder, path.use.encoder, adapter)),
        ):
            have = target_states(encoder, rows, path.use.readings)
        for state, goal in zip(have, _goals(path, adapter), strict=True):
            if state.shape != goal.shape:
                raise AdapterIntegrityError(
                    f"the goals of {path.use.encoder} are {tuple(goal.shape)}, its spec asks for {tuple(state.shape)}"
                )
        each += _read(path, adapter, have, None).values()
    return largest(each)


def _paths(pipe: Any, adapter: ErasureAdapter) -> list[TextPath]:
    """The text encoders that the adapter has goals for."""
    return [path for path in text_paths(pipe) if path.use.encoder in adapter.goal_parts]


def _rows(path: TextPath, adapter: ErasureAdapter) -> Rows:
    concepts = adapter.spec.concepts
    return rows_of(pairs_of(concepts, "exact"), path, adapter.plan.alignments(concepts))


def _goals(path: TextPath, adapter: ErasureAdapter) -> list[Tensor]:
    names = [f"{path.use.encoder}.{reading}" for reading in path.use.readings]
    if missing_goals := [name for name in names if name not in adapter.goals]:
        raise AdapterIntegrityError(
            f"the adapter lacks the goals of {', '.join(missing_goals)}; fetch it again from its author"
        )
    return [adapter.goals[name] for name in names]


def _read(
    path: TextPath, adapter: ErasureAdapter, have: Sequence[Tensor], seen: Seen | None
) -> dict[str, float]:
    """Worst residual of what is read of an encoder: of the states, or of what the denoiser's edited linears make of them.

    `seen`: what these hold; None if they do not hold the edit, so that it is added here.
    """
    family, goals, use = family_of(path.pipe), _goals(path, adapter), path.use
    states, found = list(zip(have, goals, use.readings, strict=True)), {}
    if use == family.read_whole and family.denoiser in adapter.components:
        x, y, _ = states.pop(
            next(i for i, (_, _, reading) in enumerate(states) if not reading.pooled)
        )
        if _robust(adapter):
            x, y = (
                torch.cat([x, _unedited_states(adapter, use.encoder, y).to(x)]),
                torch.cat([y, y]),
            )
        root = get_component(path.pipe, family.denoiser)
        edits = resolve_edits(root, family.denoiser, adapter)
        x, y = x.to(dtype_of(root)), y.to(x.device, dtype_of(root))
        found[family.denoiser] = (
            _promised(root, edits, x, y)
            if seen is None
            else _readers(root, _added(root, adapter, edits, seen.get(family.denoiser, {})), x, y)
        )
    if states:
        found[use.encoder] = largest([relative(h.cpu(), g) for h, g, _ in states])
    return found


def _robust(adapter: ErasureAdapter) -> bool:
    return isinstance(adapter.options, Options) and adapter.options.robust


def _unedited_states(adapter: ErasureAdapter, encoder: str, goal: Tensor) -> Tensor:
    """The targets' states by the unedited encoder, `(k, d)` as `goal`: of a robust adapter's keys the second half."""
    keys = adapter.keys.get(f"{encoder}.states", torch.zeros(0, 0))
    if keys.shape != (2 * len(goal), goal.shape[1]):
        raise AdapterIntegrityError(
            f"a robust adapter with this spec holds {2 * len(goal)} keys of {encoder}.states, this one {len(keys)}; fetch it "
            "again from its author"
        )
    return keys[len(goal) :]


def _readers(
    root: nn.Module, added: Mapping[str, Callable[[Tensor], Tensor]], x: Tensor, y: Tensor
) -> float:
    """Worst residual after the edited readers, on states `(k, d)` that shall be `y` and are `x`.

    A style LoRA acts on anchors too, so it belongs to what is wanted; our edit does not.
    """
    each = []
    for name, ours in added.items():
        module: Any = base_linear(root.get_submodule(name))
        out = forward_of(root, name)(torch.cat([x, y])).float() - (
            0 if module.bias is None else module.bias.float()
        )
        each.append(relative(out[: len(x)], out[len(x) :] - ours(y.float())))
    return largest(each)


def _promised(root: nn.Module, edits: Mapping[str, LowRank], x: Tensor, y: Tensor) -> float:
    """As `_readers`, of linears that do not hold their edit yet."""
    each = []
    for name, factors in edits.items():
        linear: Any = base_linear(root.get_submodule(name))
        bias = 0 if linear.bias is None else linear.bias
        each.append(relative(linear.forward(x) - bias + factors(x), linear.forward(y) - bias))
    return largest(each)


def _added(
    root: nn.Module, adapter: ErasureAdapter, edits: Mapping[str, LowRank], seen: TrackedWeights
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Layer -> what its edit adds to its output: where it was rounded, the bits written less those of the base; else the factors.

    Factors stand for a hook, too, and for an adapter that is not in force.
    """
    registry = registry_of(root) or Registry()
    weights = registry.weights if registry.applied is adapter else {}
    records = {n: (r, seen.get(n) or r) for n, r in weights.items() if n not in registry.hooks}
    rounded = {
        n: now
        for n, (r, now) in records.items()
        if now.target is not r.target or now.target.dtype != torch.float32
    }
    return {
        n: partial(_difference, rounded[n]) if n in rounded else factors
        for n, factors in edits.items()
    }


def _difference(record: EditedWeight, y: Tensor) -> Tensor:
    return linear(y, record.target.to(y)) - linear(y, record.base.to(y))


def allowed(pipe: Any, adapter: ErasureAdapter) -> float:
    """Largest residual that counts as kept: what rounding explains in this dtype, or what the report admits, up to a limit."""
    own = adapter.report.listed_residual
    dtypes = {
        dtype_of(get_component(pipe, part)) for part in {*adapter.components, *adapter.goal_parts}
    }
    return max(
        min(2 * own, MOST_ADMITTED) if own < 1 else 0.0,
        *(rounding(adapter, dtype) for dtype in dtypes),
    )


def rounding(adapter: ErasureAdapter, dtype: torch.dtype) -> float:
    """What rounding to `dtype` explains.

    In 16 bits the states come rounded to the edited layers, and the error goes through W and D alike: an edit s times as
    large as its weight makes it about sqrt(1 + s^2) times larger.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return THRESHOLDS[torch.float32]
    largest_edit = max((layer.edit_size for layer in adapter.report.layers), default=0.0)
    return min(THRESHOLDS[dtype] * math.hypot(1, largest_edit), MOST_ADMITTED)


def _called(pipe: Any, adapter: ErasureAdapter, seen: Seen) -> float:
    """Worst residual of the states that reach the denoiser in real calls with the listed prompts."""
    family, pairs = family_of(pipe), pairs_of(adapter.spec.concepts, "exact")
    if len(family.encoders) != 1 or any(reading.pooled for reading in family.encoders[0].readings):
        raise UnknownFamilyError(
            f"images=True knows pipelines that read one text encoder's states, not {type(pipe).__name__}"
        )
    (path,), received = _paths(pipe, adapter), []
    rows = _rows(path, adapter)
    keep = lambda _, args, kwargs: received.append(kwargs["encoder_hidden_states"])  # noqa: E731
    handle = get_component(pipe, family.denoiser).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        for pair in pairs:
            pipe(
                pair.target.text,
                num_inference_steps=CALL_STEPS,
                guidance_scale=1.0,
                output_type="latent",
            )
    finally:
        handle.remove()
    states = path.use.readings[0].received(torch.cat(received[:: len(received) // len(pairs)]))
    return largest(_read(path, adapter, [states[rows.row, rows.target_at]], seen).values())


def _drawn(
    pipe: Any, active: Sequence[ErasureAdapter], count: int
) -> dict[str, dict[str, LowRank]]:
    """Component -> layer -> factors, of `count` edited layers."""
    layers = [(a, part, stored) for a in active for part in a.components for stored in a.of(part)]
    found: dict[str, dict[str, LowRank]] = {}
    for adapter, part, stored in random.sample(layers, min(count, len(layers))):
        one = replace(adapter, edits={f"{part}.{stored}": adapter.edits[f"{part}.{stored}"]})
        found.setdefault(part, {}).update(resolve_edits(get_component(pipe, part), part, one))
    return found


def _sampled(pipe: Any, part: str, edits: Mapping[str, LowRank]) -> dict[str, float]:
    """Layer -> ||what it adds to its input - what it shall add|| / ||what it shall add||. No prompt is encoded."""
    root = get_component(pipe, part)
    return {f"{part}.{n}": _share_left(root, n, factors) for n, factors in edits.items()}


def _share_left(root: nn.Module, name: str, factors: LowRank) -> float:
    """How much of the edit is missing from the live layer, 0 to 1, on a mixture `(1, d_in)` of the inputs that move it most.

    The rows of A are mixed with signs drawn anew: one row is read about as fast as memory allows, several are not.
    """
    module: Any = base_linear(root.get_submodule(name))
    registry = registry_of(root) or Registry()
    signs = torch.tensor([random.choices((-1.0, 1.0), k=factors.rank)])
    x = (signs.to(factors.A) @ factors.A).to(next(module.parameters()).device, dtype_of(root))
    live, record = forward_of(root, name)(x), registry.weights.get(name)
    if record is None or name in registry.hooks:
        wanted = module.forward(x) + factors(x)
    else:
        wanted = linear(x, record.target.to(x), module.bias)
    return float((live - wanted).double().norm() / factors(x).double().norm())


def _told(pipe: Any, adapter: ErasureAdapter, text: str) -> float:
    """Residual of the concept in a prompt of the user's, against the same prompt with the anchor, unedited."""
    (concept, pair), each = _pair_in(text, adapter.spec.concepts), []
    for path in _paths(pipe, adapter):
        rows, readings = (
            rows_of([pair], path, adapter.plan.alignment_of(concept)),
            path.use.readings,
        )
        anchors = Rows(rows.anchor, rows.target, rows.row, rows.anchor_at, rows.target_at)
        with evaluating(path.encoder):
            have = target_states(path.encoder, rows, readings)
            with unedited(pipe):
                goal = target_states(path.encoder, anchors, readings)
        each += [relative(h, g) for h, g in zip(have, goal, strict=True)]
    return largest(each)


def _pair_in(text: str, concepts: Sequence[Concept]) -> tuple[Concept, Pair]:
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
    known = ", ".join(repr(w) for c in concepts for w in c.words)
    raise ConceptSpecError(f"prompt {text!r} names none of the erased concepts ({known})")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, the module is in eval mode."""
    training = module.training
    if training:
        module.eval()
    try:
        yield
    finally:
        if training:
            module.train()


# ------------------------------------------------------------------------------------------------ what is not covered


def _unsure(pipe: Any, active: Sequence[ErasureAdapter]) -> list[str]:
    """What is on and was not solved here."""
    loaded = {n: a for _, r in modules_with_registry(pipe).values() for n, a in r.adapters.items()}
    notes = [
        f"adapter {n!r} was imported: its effect cannot be measured"
        for n, a in loaded.items()
        if a.imported
    ]
    return [*notes, *([SUMMED] if any(a.options == OtherMethod(SUM) for a in active) else [])]


def _off(pipe: Any) -> list[str]:
    states = {n: on for _, r in modules_with_registry(pipe).values() for n, on in r.on.items()}
    return [f"adapter {n!r} is off" for n, on in states.items() if not on]


def _changed(pipe: Any, active: Sequence[ErasureAdapter], seen: Seen) -> list[str]:
    """Weights, or the base as a whole, that are no longer those the erasure was made for."""
    notes = []
    for name, weights in seen.items():
        root = get_component(pipe, name)
        if changed := [weight for weight, record in weights.items() if record is None]:
            notes.append(
                f"{name} was changed by someone else since the erasure was applied: {', '.join(changed[:3])}"
            )
        prints = [a.base[name] for a in active if name in a.base]
        if any(
            base_fingerprint(root, weights) != p.get(str(dtype_of(root)).removeprefix("torch."))
            for p in prints
        ):
            notes.append(
                f"the weights of {name} are no longer those the erasure was made for; refit_erasure() solves it again"
            )
    return notes


def _routes(pipe: Any, active: Sequence[ErasureAdapter]) -> list[str]:
    """Ways around the edits in force."""
    if not active:
        return []
    denoiser, encoders = family_of(pipe).denoiser, [use.encoder for use in family_of(pipe).encoders]
    in_encoder = any(name in a.components for a in active for name in encoders)
    notes = [*(ROBUST if any(map(_robust, active)) else ENCODED if in_encoder else READ)]
    notes += [
        f"LoRA {n!r} is active in {part}"
        for part in (denoiser, *encoders)
        for n in _loras(getattr(pipe, part, None))
    ]
    if getattr(getattr(pipe, denoiser, None), "encoder_hid_proj", None) is not None:
        notes.append(
            "an IP-Adapter is loaded: its images reach the denoiser through attention of their own"
        )
    if getattr(pipe, "controlnet", None) is not None:
        notes.append("controlnet reads the prompt through K/V of its own, which no edit covers")
    for use in family_of(pipe).encoders:
        added = [
            t
            for t in getattr(getattr(pipe, use.tokenizer, None), "added_tokens_encoder", {})
            if not t.startswith("<|")
        ]
        notes += [
            f"learned token {t!r}: an embedding that no prompt of the spec holds" for t in added
        ]
    return notes


def _loras(module: Any) -> list[str]:
    """Names of the LoRAs that act in a component; whoever puts one there leaves a `peft_config`."""
    layers = (
        [m for m in module.modules() if isinstance(m, LoraLayer)]
        if hasattr(module, "peft_config")
        else []
    )
    return sorted(
        {n for m in layers if not m.disable_adapters for n in m.active_adapters if n in m.lora_A}
    )
