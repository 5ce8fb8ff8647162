"""The registry of edited weights: base bits kept once, one rounded sum on top, exact restore.

State sits on the component (an attribute of the text encoder or denoiser), not on the pipeline: pipelines made
by `from_pipe` share it, and a replaced component loses it, as it loses the edit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.adapter import ErasureAdapter
from ..errors import AdapterStateError, BaseModelMismatchError
from ..families.encoders import live_name
from ..linalg.low_rank import LowRank, finite
from ..modules.fingerprint import fingerprint
from ..modules.linear import base_linear, dtype_of, unwrapped
from ..modules.storage import cast_through, is_editable, refuse_tied, storages_of
from .rwlock import WEIGHTS_LOCK

ATTRIBUTE = "_erasepro"
HALF, BRAIN = torch.float16, torch.bfloat16
JOURNEYS: tuple[tuple[torch.dtype, ...], ...] = (
    (),
    (HALF,),
    (BRAIN,),
    (HALF, BRAIN),
    (BRAIN, HALF),
)
"""Dtypes a weight may have gone through between two looks; a pipeline that was `.half()` and is float again lost bits."""


class EditHook:
    """Forward hook of a linear whose weight cannot be edited: adds B A x, or nothing while `factors` is None."""

    def __init__(self) -> None:
        self.factors: LowRank | None = None

    def __call__(self, _: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out if self.factors is None else out + self.factors(args[0]).to(out)


@dataclass(frozen=True)
class EditedWeight:
    """One weight under our care."""

    base: Tensor
    """The bits before any edit, on the CPU."""
    target: Tensor
    """The bits last written."""
    last: tuple[LowRank, Tensor] | None = None
    """The last edit and the bits it made of `base`: to switch it off and on again is to copy."""

    @classmethod
    def of(cls, live: Tensor) -> EditedWeight:
        """A weight without an edit."""
        bits = live.cpu().clone()
        return cls(bits, bits)

    def followed(self, live: Tensor) -> EditedWeight | None:
        """The record after the dtype moves that `live` went through; None if someone else changed the values."""
        for journey in JOURNEYS:
            path = (*journey, live.dtype)
            if torch.equal(cast_through(self.target.to(live.device), path), live):
                moved = journey or live.dtype != self.base.dtype
                return (
                    EditedWeight(cast_through(self.base, path), cast_through(self.target, path))
                    if moved
                    else self
                )
        return None

    def holds(self, bits: Tensor) -> bool:
        """Whether these are the bits of the base or of the last edit, which were looked at before."""
        return bits is self.base or (self.last is not None and bits is self.last[1])

    def with_edit(self, factors: LowRank | None) -> EditedWeight:
        """Base + B A, summed in float32 and rounded once; the base itself for None."""
        if factors is None:
            return EditedWeight(self.base, self.base, self.last)
        if self.last and self.last[0] is factors:
            return EditedWeight(self.base, self.last[1], self.last)
        dense = factors.to(torch.float32).dense().to(self.base.device)
        bits = (self.base.float() + dense).to(self.base.dtype)
        return EditedWeight(self.base, bits, (factors, bits))


@dataclass
class Registry:
    """Everything this package knows about one component."""

    adapters: dict[str, ErasureAdapter] = field(default_factory=dict)
    on: dict[str, bool] = field(default_factory=dict)
    resume: tuple[str, ...] = ()
    """What `enable_erasure` turns on again."""
    applied: ErasureAdapter | None = None
    """The one edit that stands for all active adapters; None where nothing is active."""
    locks: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    """Locked adapter -> salt and hash of the token that unlocks it."""
    weights: dict[str, EditedWeight] = field(default_factory=dict)
    hooks: dict[str, EditHook] = field(default_factory=dict)
    """Of the linears whose weight cannot be edited; a linear may be in both, if it was cast to 8 bits later."""


def registry_of(root: nn.Module) -> Registry | None:
    """The component's registry, or None if no adapter was ever loaded into it."""
    return getattr(root, ATTRIBUTE, None)


def modules_with_registry(pipe: Any) -> dict[str, tuple[nn.Module, Registry]]:
    """Component name -> (module, registry), for components that have one."""
    found = {}
    for name, module in vars(pipe).items():
        root = unwrapped(module) if isinstance(module, nn.Module) else None
        if root is not None and (registry := registry_of(root)) is not None:
            found[name] = (root, registry)
    return found


TrackedWeights = Mapping[str, EditedWeight | None]
"""Weight -> its record after the dtype moves it went through; None where someone else changed the values."""


def track_weights(root: nn.Module) -> TrackedWeights:
    """A look at every weight under our care."""
    return {
        name: _followed(root, name, record)
        for name, record in (registry_of(root) or Registry()).weights.items()
    }


def _followed(root: nn.Module, name: str, record: EditedWeight) -> EditedWeight | None:
    first, *copies = storages_of(root, name)
    return record.followed(first) if all(record.followed(place) for place in copies) else None


def original_weights(root: nn.Module, seen: TrackedWeights | None = None) -> dict[str, Tensor]:
    """Plain module name -> bits without our edit, of every weight under our care; a change by someone else stays in.

    `seen`: what `known` gave just now.
    """
    weights = (registry_of(root) or Registry()).weights
    found = track_weights(root) if seen is None else seen
    bits = {
        n: r.base if r else _written(storages_of(root, n)[0], weights[n], None, None)[1]
        for n, r in found.items()
    }
    return {name.removeprefix("text_model."): value for name, value in bits.items()}


def base_fingerprint(root: nn.Module, seen: TrackedWeights | None = None) -> str:
    """Fingerprint of the component without our edits, in the dtype it lives in; `seen` as for `originals`."""
    return fingerprint(root, dtype_of(root), original_weights(root, seen))


def resolve_edits(root: nn.Module, component: str, adapter: ErasureAdapter) -> dict[str, LowRank]:
    """The adapter's edits of `component` by live module name.

    Raises:
        BaseModelMismatchError: A module is missing or has another shape.
    """
    found = {}
    for stored, factors in adapter.of(component).items():
        name = live_name(root, stored)
        shape = (factors.B.shape[0], factors.A.shape[1])
        if name is None:
            raise BaseModelMismatchError(
                f"{component} has no layer {stored}, which the adapter edits; load it on its base model"
            )
        linear: Any = base_linear(root.get_submodule(name))
        have = (linear.out_features, linear.in_features)
        if have != shape:
            raise BaseModelMismatchError(
                f"{component}.{name} is {have}, the adapter was made for {shape}"
            )
        found[name] = factors
    return found


# ------------------------------------------------------------------------------------------------ staging


@dataclass(frozen=True)
class WeightChange:
    """Bits on their way into one place."""

    place: Tensor
    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class StagedEdit:
    """All that `commit` will do to one component; nothing is touched yet."""

    root: nn.Module
    registry: Registry | None
    """The new one; None forgets the component."""
    changes: list[WeightChange]
    hooks: dict[EditHook, tuple[nn.Module, LowRank | None]]
    """Hook -> its linear, and what it shall add."""


def stage(
    root: nn.Module, component: str, adapter: ErasureAdapter | None, *, registry: Registry | None
) -> StagedEdit:
    """The plan that makes `adapter` the only edit of the component, and `registry` what is known of it.

    The new bits are base + B A, summed in float32 and rounded once. Where someone else changed the weight
    meanwhile (a fused LoRA, say), only our difference is exchanged and their change stays.

    Raises:
        AdapterStateError: A weight would not be finite, is tied to another, or cannot be reached.
    """
    old, edits = (
        registry_of(root) or Registry(),
        resolve_edits(root, component, adapter) if adapter else {},
    )
    names = list(dict.fromkeys([*old.weights, *old.hooks, *edits]))
    refuse_tied(root, names)
    plan = StagedEdit(root, registry, [], {})
    weights, hooks = {}, dict(old.hooks)
    for name in names:
        factors, hooked = edits.get(name), name in old.hooks or not is_editable(root, name)
        _check_finite(f"{component}.{name}", factors)
        if hooked:
            hooks.setdefault(name, EditHook())
            plan.hooks[hooks[name]] = (base_linear(root.get_submodule(name)), factors)
        if name in old.weights or not hooked:
            live = storages_of(root, name)[0]
            record = old.weights.get(name) or EditedWeight.of(live)
            weights[name], bits = _written(
                live, record, record.followed(live), None if hooked else factors
            )
            if not record.holds(bits):
                _check_finite(f"{component}.{name}", bits)
            plan.changes.extend(
                WeightChange(place, place.clone(), bits.to(place))
                for place in storages_of(root, name)
            )
    if registry is not None:
        registry.weights, registry.hooks = weights, hooks
    return plan


def _written(
    live: Tensor, record: EditedWeight, followed: EditedWeight | None, factors: LowRank | None
) -> tuple[EditedWeight, Tensor]:
    """The record and the live bits of a weight once it holds `factors` as its only edit of ours."""
    made = (followed or record).with_edit(factors)
    if followed:
        return made, made.target
    ours = (made.target.float() - record.target.float()).to(live.device)
    return made, (live.float() + ours).to(live.dtype)


def _check_finite(where: str, values: Tensor | LowRank | None) -> None:
    tensors = (
        [values.A, values.B] if isinstance(values, LowRank) else [] if values is None else [values]
    )
    if not all(finite(t.float()) for t in tensors):
        raise AdapterStateError(
            f"{where} would hold values that are not finite; nothing was changed"
        )


# ------------------------------------------------------------------------------------------------ writing


@torch.no_grad()
def commit(plans: Sequence[StagedEdit]) -> None:
    """Carry out all plans; an exception or an interrupt on the way puts everything back."""
    before = [
        (plan, registry_of(plan.root), {hook: hook.factors for hook in plan.hooks})
        for plan in plans
    ]
    try:
        for plan in plans:
            _write(plan.changes)
            _hang(plan.hooks, keep=plan.registry is not None)
            _remember(plan.root, plan.registry)
    except BaseException:
        for plan, registry, factors in before:
            _put_back(plan.changes)
            _hang(
                {h: (linear, factors[h]) for h, (linear, _) in plan.hooks.items()},
                keep=registry is not None,
            )
            _remember(plan.root, registry)
        raise


def _write(changes: Sequence[WeightChange]) -> None:
    for change in changes:
        change.place.copy_(change.after)


def _put_back(changes: Sequence[WeightChange]) -> None:
    for change in changes:
        change.place.copy_(change.before)


def _hang(hooks: Mapping[EditHook, tuple[nn.Module, LowRank | None]], *, keep: bool) -> None:
    """Set what each hook adds; hang up new ones, take all down if they are not to be kept."""
    for hook, (linear, factors) in hooks.items():
        hook.factors = factors
        hanging = [key for key, value in linear._forward_hooks.items() if value is hook]
        if keep and not hanging:
            linear.register_forward_hook(hook)
        if not keep:
            for key in hanging:
                del linear._forward_hooks[key]


def _remember(root: nn.Module, registry: Registry | None) -> None:
    if registry is not None:
        setattr(root, ATTRIBUTE, registry)
    elif hasattr(root, ATTRIBUTE):
        delattr(root, ATTRIBUTE)


@contextmanager
def unedited(pipe: Any) -> Iterator[None]:
    """Inside, every edited weight is without our edit; afterwards the bits are those from before."""
    edited = {n: (root, r) for n, (root, r) in modules_with_registry(pipe).items() if r.applied}
    if not edited:
        yield
        return
    with WEIGHTS_LOCK.writing(), torch.no_grad():
        plans = [stage(root, name, None, registry=None) for name, (root, _) in edited.items()]
        factors = {hook: hook.factors for plan in plans for hook in plan.hooks}
        try:
            for plan in plans:
                _write(plan.changes)
                for hook in plan.hooks:
                    hook.factors = None
            yield
        finally:
            for hook, value in factors.items():
                hook.factors = value
            for plan in plans:
                _put_back(plan.changes)
