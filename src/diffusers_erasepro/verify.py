"""Does an erasure hold? Measured on the live modules, through the path a call really uses."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import ErasureAdapter
from .errors import AdapterIntegrityError, ConceptSpecError, UnknownFamilyError
from .families import base_linear, component, family_of
from .guard import missing
from .linears import dtype_of
from .measure import largest, relative
from .places import path_of
from .prompts import ALIGNMENTS, Pair, Prompt, Rows, pairs_of, rows_of
from .spec import Concept
from .walk import edited, final_states
from .weights import base_fingerprint, changed_by_others, modules_with_registry, registry_of, resolved, unedited

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
READ = ("clip_skip and prompt weighting: states that were not solved for",)
"""Ways around one that edits the denoiser alone."""
CALL_STEPS = 2


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
def verify(pipe: Any, *, prompts: Sequence[str] = (), images: bool = False, sample: int | None = None) -> Verification:
    """Measure everything active; `ErasureLoaderMixin.verify_erasure` says how."""
    active = _active(pipe)
    broken = [*missing(pipe), *([] if active else ["no erasure is active"])]
    measured = [(_sampled(pipe, a, sample) if sample else listed(pipe, a, images=images and not broken)) for a in active]
    residuals = {name: value for part in measured for name, value in part.items()}
    threshold = max([THRESHOLDS[torch.float32], *(allowed(pipe, a) for a in active)])
    worst = float("inf") if broken else largest(residuals.values())
    notes = (*broken, *_off(pipe), *_changed(pipe, active, deep=sample is None), *_routes(pipe, active), *NEVER_COVERED)
    told = {text: _told(pipe, a, text) for a in active for text in prompts}
    return Verification(worst <= threshold, worst, threshold, notes, residuals, told)


def _active(pipe: Any) -> list[ErasureAdapter]:
    """The edits in force: one for all components, unless components came from different pipelines."""
    return list({id(r.applied): r.applied for _, r in modules_with_registry(pipe).values() if r.applied}.values())


# ------------------------------------------------------------------------------------------------ measuring


@torch.no_grad()
def listed(pipe: Any, adapter: ErasureAdapter, *, images: bool = False) -> dict[str, float]:
    """Component -> worst residual on the listed prompts, encoded now."""
    found: dict[str, float] = {}
    for encoder_name, tokenizer_name in family_of(pipe).encoders:
        if encoder_name in adapter.goals:
            encoder, rows = component(pipe, encoder_name), _rows(pipe, adapter, tokenizer_name)
            with evaluating(encoder):
                have = final_states(encoder, rows.target_ids)[rows.row, rows.target_at]
            found |= _read(pipe, adapter, have, encoder_name)
    return found | ({"call": _called(pipe, adapter)} if images else {})


@torch.no_grad()
def promised(pipe: Any, adapter: ErasureAdapter) -> float:
    """Worst listed residual that `adapter` would have on the unedited pipeline: what its factors do, not what it reports."""
    each, denoiser = [], family_of(pipe).denoiser
    for encoder_name, tokenizer_name in family_of(pipe).encoders:
        if encoder_name not in adapter.goals:
            continue
        rows, goal = _rows(pipe, adapter, tokenizer_name), adapter.goals[encoder_name]
        encoder: Any = component(pipe, encoder_name)
        if goal.shape != (want := (len(rows.row), encoder.config.hidden_size)):
            raise AdapterIntegrityError(f"the goals of {encoder_name} are {tuple(goal.shape)}, its spec asks for {want}")
        with evaluating(encoder), edited(encoder, resolved(encoder, encoder_name, adapter)):
            have = final_states(encoder, rows.target_ids)[rows.row, rows.target_at]
        if denoiser not in adapter.components:
            each.append(relative(have.cpu(), goal))
            continue
        root: Any = component(pipe, denoiser)
        x, y = have.to(dtype_of(root)), goal.to(have.device, dtype_of(root))
        for name, factors in resolved(root, denoiser, adapter).items():
            forward = base_linear(root.get_submodule(name)).forward
            each.append(relative(forward(x) + factors(x), forward(y)))
    return largest(each)


def allowed(pipe: Any, adapter: ErasureAdapter) -> float:
    """Largest residual that counts as kept: what rounding explains in this dtype, or what the adapter's report admits."""
    own = adapter.report.listed_residual
    dtypes = {dtype_of(component(pipe, part)) for part in {*adapter.components, *adapter.goals}}
    return max(2 * own if own < 1 else 0.0, *(THRESHOLDS.get(d, 1e-5) for d in dtypes))


def _rows(pipe: Any, adapter: ErasureAdapter, tokenizer_name: str) -> Rows:
    alignment = ALIGNMENTS[adapter.options.alignment]
    return rows_of(pairs_of(adapter.spec.concepts, "exact"), getattr(pipe, tokenizer_name), alignment)


def _read(pipe: Any, adapter: ErasureAdapter, have: Tensor, encoder_name: str) -> dict[str, float]:
    """Worst residual of states `(k, d)`: of themselves, or of what the denoiser's edited K/V make of them."""
    goal, denoiser = adapter.goals[encoder_name], family_of(pipe).denoiser
    if denoiser not in adapter.components:
        return {encoder_name: largest([relative(have.cpu(), goal)])}
    root, each = component(pipe, denoiser), []
    x, y = have.to(dtype_of(root)), goal.to(have.device, dtype_of(root))
    for name, factors in resolved(root, denoiser, adapter).items():
        live = path_of(root, name)  # a style LoRA acts on anchors too, so it belongs to what is wanted; our edit does not
        each.append(relative(live(x), live(y) - factors(y)))
    return {denoiser: largest(each)}


def _called(pipe: Any, adapter: ErasureAdapter) -> float:
    """Worst residual of the states that reach the denoiser in real calls with the listed prompts."""
    family = family_of(pipe)
    if len(family.encoders) != 1:
        raise UnknownFamilyError(f"images=True knows pipelines with one text encoder, {type(pipe).__name__} has more")
    (encoder_name, tokenizer_name), seen = family.encoders[0], []
    rows, pairs = _rows(pipe, adapter, tokenizer_name), pairs_of(adapter.spec.concepts, "exact")
    keep = lambda _, args, kwargs: seen.append(kwargs["encoder_hidden_states"])  # noqa: E731
    handle = component(pipe, family.denoiser).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        for pair in pairs:
            pipe(pair.target.text, num_inference_steps=CALL_STEPS, guidance_scale=1.0, output_type="latent")
    finally:
        handle.remove()
    states = torch.cat(seen[:: len(seen) // len(pairs)])
    return largest(_read(pipe, adapter, states[rows.row, rows.target_at], encoder_name).values())


def _sampled(pipe: Any, adapter: ErasureAdapter, count: int) -> dict[str, float]:
    """Layer -> ||what it adds to its stored keys - what it shall add|| / ||what it shall add||, for so many layers.

    0 is erased, 1 is not erased. No prompt is encoded.
    """
    layers = [
        (part, root, name, factors)
        for part in adapter.components
        for root in [component(pipe, part)]
        for name, factors in resolved(root, part, adapter).items()
    ]
    return {f"{part}.{n}": _share_left(root, n, f) for part, root, n, f in random.sample(layers, min(count, len(layers)))}


def _share_left(root: nn.Module, name: str, factors: Any) -> float:
    """How much of the edit is missing from the live layer, on the inputs that move it most: the rows of A."""
    linear: Any = base_linear(root.get_submodule(name))
    registry = registry_of(root)
    x = factors.A.to(next(linear.parameters()).device, dtype_of(root))
    live = path_of(root, name)(x)
    record = registry.weights.get(name) if registry else None
    plain = torch.nn.functional.linear
    wanted = plain(x, record.target.to(x), linear.bias) if record else linear.forward(x) + factors(x)
    return float((live - wanted).double().norm() / factors(x).double().norm())


def _told(pipe: Any, adapter: ErasureAdapter, text: str) -> float:
    """Residual of the concept in a prompt of the user's, against the same prompt with the anchor, unedited."""
    pair, each = _pair_in(text, adapter.spec.concepts), []
    for encoder_name, tokenizer_name in family_of(pipe).encoders:
        encoder = component(pipe, encoder_name)
        rows = rows_of([pair], getattr(pipe, tokenizer_name), ALIGNMENTS[adapter.options.alignment])
        with evaluating(encoder):
            have = final_states(encoder, rows.target_ids)[rows.row, rows.target_at]
            with unedited(pipe):
                goal = final_states(encoder, rows.anchor_ids)[rows.row, rows.anchor_at]
        each.append(relative(have, goal))
    return largest(each)


def _pair_in(text: str, concepts: Sequence[Concept]) -> Pair:
    """The first concept word in `text`, and the text with its anchor instead."""
    for concept in concepts:
        for word in sorted(concept.words, key=len, reverse=True):
            at = text.casefold().find(word.casefold())
            if at >= 0:
                anchor = text[:at] + concept.anchor + text[at + len(word) :]
                return Pair(Prompt(text, at, at + len(word)), Prompt(anchor, at, at + len(concept.anchor)))
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


def _off(pipe: Any) -> list[str]:
    """Adapters that are loaded and not vouched for."""
    states = {n: on for _, r in modules_with_registry(pipe).values() for n, on in r.on.items()}
    adapters = {n: a for _, r in modules_with_registry(pipe).values() for n, a in r.adapters.items()}
    imported = [f"adapter {n!r} was imported: its effect cannot be measured" for n, a in adapters.items() if a.imported]
    return [f"adapter {n!r} is off" for n, on in states.items() if not on] + imported


def _changed(pipe: Any, active: Sequence[ErasureAdapter], *, deep: bool) -> list[str]:
    """Weights, or the base as a whole, that are no longer those the erasure was made for."""
    notes = []
    for name, (root, _) in modules_with_registry(pipe).items():
        changed = changed_by_others(root)
        if changed:
            notes.append(f"{name} was changed by someone else since the erasure was applied: {', '.join(changed[:3])}")
        prints = [a.base[name] for a in active if name in a.base]
        if deep and any(base_fingerprint(root) != p.get(str(dtype_of(root)).removeprefix("torch.")) for p in prints):
            notes.append(f"the weights of {name} are no longer those the erasure was made for; refit_erasure() solves it again")
    return notes


def _routes(pipe: Any, active: Sequence[ErasureAdapter]) -> list[str]:
    """Ways around the edits in force."""
    if not active:
        return []
    denoiser, encoders = family_of(pipe).denoiser, [name for name, _ in family_of(pipe).encoders]
    notes = [*(ENCODED if any(name in a.components for a in active for name in encoders) else READ)]
    notes += [f"LoRA {n!r} is active in {part}" for part in (denoiser, *encoders) for n in _loras(getattr(pipe, part, None))]
    if getattr(getattr(pipe, denoiser, None), "encoder_hid_proj", None) is not None:
        notes.append("an IP-Adapter is loaded: its images reach the denoiser through attention of their own")
    if getattr(pipe, "controlnet", None) is not None:
        notes.append("controlnet reads the prompt through K/V of its own, which no edit covers")
    for _, tokenizer_name in family_of(pipe).encoders:
        added = [t for t in getattr(getattr(pipe, tokenizer_name, None), "added_tokens_encoder", {}) if not t.startswith("<|")]
        notes += [f"learned token {t!r}: an embedding that no prompt of the spec holds" for t in added]
    return notes


def _loras(module: Any) -> list[str]:
    """Names of the PEFT adapters that act in a component."""
    layers = [m for m in module.modules() if hasattr(m, "active_adapters") and hasattr(m, "lora_A")] if module is not None else []
    return sorted({n for m in layers if not m.disable_adapters for n in m.active_adapters if n in m.lora_A})
