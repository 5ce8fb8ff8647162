"""Edits of a component's weights: base bits kept once, one rounded sum on top, exact restore.

`stage` computes the new bits and touches nothing, `commit` writes them, or puts everything back.
What is known of a component's edits is an attribute of the component (the text encoder or the
denoiser), not of the pipeline: pipelines made by `from_pipe` share it, and a replaced component
loses it, as it loses the edit.
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
from ..families.pipelines import get_component
from ..linalg.low_rank import LowRank, finite
from ..modules.fingerprint import fingerprint
from ..modules.linear import base_linear, dtype_of, output_scale, shape_of, unwrapped
from ..modules.storage import cast_through, is_editable, refuse_tied, storages_of
from ..prompts.tokens import vocabulary_of
from .rwlock import WEIGHTS_LOCK

ATTRIBUTE = "_erasepro"
CASTS: tuple[tuple[torch.dtype, ...], ...] = (
    (),
    (torch.float16,),
    (torch.bfloat16,),
    (torch.float16, torch.bfloat16),
    (torch.bfloat16, torch.float16),
)
"""Dtypes a weight may have gone through since it was last seen; a pipeline that was `.half()` and
is float again lost bits."""


class EditHook:
    """Forward hook of a linear whose weight cannot be edited: adds B A x, or nothing for None."""

    def __init__(self) -> None:
        self.factors: LowRank | None = None

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.factors is None:
            return output
        return output + output_scale(module) * self.factors(args[0]).to(output)


@dataclass(frozen=True)
class EditedWeight:
    """What was written to one weight; all bits are `(d_out, d_in)`, on the CPU."""

    base: Tensor
    """The bits before any edit."""
    target: Tensor
    """The bits last written."""
    last: tuple[LowRank, Tensor] | None = None
    """The last edit and the bits it made of `base`: to switch it off and on again is to copy."""

    @classmethod
    def of(cls, live: Tensor) -> EditedWeight:
        """A weight without an edit."""
        bits = live.cpu().clone()
        return cls(bits, bits)

    def follow_casts(self, live: Tensor) -> EditedWeight | None:
        """The record after the casts that `live` went through; None if its values were changed."""
        for casts in CASTS:
            dtypes = (*casts, live.dtype)
            if not torch.equal(cast_through(self.target.to(live.device), dtypes), live):
                continue
            if not casts and live.dtype == self.base.dtype:
                return self
            return EditedWeight(cast_through(self.base, dtypes), cast_through(self.target, dtypes))
        return None

    def with_rows_of(self, live: Tensor) -> EditedWeight:
        """The record of a token embedding that has learned tokens more, or fewer, than before.

        Its rows are columns here, and those that came are no edit of ours.
        """
        known = self.target.shape[1]
        if live.shape[1] == known:
            return self
        if live.shape[1] < known:
            columns = live.shape[1]
            return EditedWeight(self.base[:, :columns], self.target[:, :columns])
        new = live[:, known:].cpu()
        base = torch.cat([self.base, new.to(self.base.dtype)], 1)
        return EditedWeight(base, torch.cat([self.target, new.to(self.target.dtype)], 1))

    def is_known(self, bits: Tensor) -> bool:
        """Whether these are the bits of the base or of the last edit, which are finite."""
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
    """Of the linears whose weight cannot be edited. A linear may be in both, if it was cast to
    8 bits later."""


def registry_of(root: nn.Module) -> Registry | None:
    """The component's registry, or None if no adapter was ever loaded into it."""
    return getattr(root, ATTRIBUTE, None)


def modules_with_registry(pipe: Any) -> dict[str, tuple[nn.Module, Registry]]:
    """Component name -> (module, registry), for components that have one."""
    found = {}
    for name, module in vars(pipe).items():
        if not isinstance(module, nn.Module):
            continue
        root = unwrapped(module)
        registry = registry_of(root)
        if registry is not None:
            found[name] = (root, registry)
    return found


TrackedWeights = Mapping[str, EditedWeight | None]
"""Weight -> its record after the casts it went through; None where its values were changed by
something else."""


def track_weights(root: nn.Module) -> TrackedWeights:
    """Compare every edited weight with what was last written to it."""
    registry = registry_of(root) or Registry()
    return {name: _track_weight(root, name, record) for name, record in registry.weights.items()}


def _track_weight(root: nn.Module, name: str, record: EditedWeight) -> EditedWeight | None:
    weight, *copies = storages_of(root, name)
    record = record.with_rows_of(weight)
    if all(record.follow_casts(bits) for bits in copies):
        return record.follow_casts(weight)
    return None


def original_weights(root: nn.Module, tracked: TrackedWeights | None = None) -> dict[str, Tensor]:
    """Stock module name -> bits without our edit, of every edited weight.

    Where something else changed the values, its change stays in.

    Args:
        root: A component.
        tracked: What `track_weights` gave just now; None to look again.
    """
    records = (registry_of(root) or Registry()).weights
    found = {}
    for name, record in (track_weights(root) if tracked is None else tracked).items():
        if record:
            bits = record.base
        else:
            live = storages_of(root, name)[0]
            _, bits = _edit_weight(live, records[name].with_rows_of(live), None, None)
        found[name.removeprefix("text_model.")] = bits
    return found


def base_fingerprint(
    root: nn.Module, tracked: TrackedWeights | None = None, vocabulary: int | None = None
) -> str:
    """Fingerprint of the component without our edits, in its dtype.

    `tracked` as for `original_weights`, `vocabulary` as for `base_parameters`.
    """
    return fingerprint(root, dtype_of(root), original_weights(root, tracked), vocabulary)


def is_base_of(
    pipe: Any,
    component: str,
    prints: Mapping[str, str],
    tracked: TrackedWeights | None = None,
) -> bool:
    """Whether a component, without our edits, has one of these fingerprints, by dtype.

    Learned tokens do not count. Older files counted all rows of the token embedding, those that
    no token has too.
    """
    root = get_component(pipe, component)
    expected = prints.get(str(dtype_of(root)).removeprefix("torch."))
    counted = (vocabulary_of(pipe, component), None)
    return any(expected == base_fingerprint(root, tracked, rows) for rows in dict.fromkeys(counted))


def resolve_edits(root: nn.Module, component: str, adapter: ErasureAdapter) -> dict[str, LowRank]:
    """The adapter's edits of `component` by live module name.

    Raises:
        BaseModelMismatchError: A module is missing or has another shape.
    """
    found = {}
    for stored, factors in adapter.of(component).items():
        name = live_name(root, stored)
        if name is None:
            raise BaseModelMismatchError(
                f"{component} has no layer {stored}, which the adapter edits; load it on its base "
                "model"
            )
        factors = _fit_rows(root.get_submodule(name), factors)
        shape = shape_of(root.get_submodule(name))
        expected = (factors.B.shape[0], factors.A.shape[1])
        if shape != expected:
            raise BaseModelMismatchError(
                f"{component}.{name} is {shape}, the adapter was made for {expected}; load it on "
                "its base model"
            )
        found[name] = factors
    return found


def _fit_rows(module: nn.Module, factors: LowRank) -> LowRank:
    """The edit of a token embedding with as many rows as that has, learned tokens included.

    Rows that it lacks are not edited; rows that are gone are left out if they were not.
    """
    columns = factors.A.shape[1]
    missing = shape_of(module)[1] - columns
    if not isinstance(base_linear(module), nn.Embedding) or not missing:
        return factors
    if missing > 0:
        return LowRank(factors.B, nn.functional.pad(factors.A, (0, missing)))
    kept, gone = factors.A.split([columns + missing, -missing], 1)
    return factors if gone.any() else LowRank(factors.B, kept)


@dataclass(frozen=True)
class WeightChange:
    """New bits of one tensor."""

    name: str
    """Of its module, after that of the component."""
    storage: Tensor
    """The live tensor, which `commit` writes to."""
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
    """The change that makes `adapter` the only edit of the component, and `registry` its registry.

    The new bits are base + B A, summed in float32 and rounded once. Where something else changed
    the weight meanwhile (a fused LoRA, say), only our difference is exchanged and that change
    stays.

    Raises:
        AdapterStateError: A weight would not be finite, is tied to another, or cannot be reached.
    """
    try:
        return _stage(root, component, adapter, registry)
    except AdapterStateError:
        raise
    except RuntimeError as error:
        raise AdapterStateError(
            f"the weights of {component} cannot be read ({error}): their device, or their memory, "
            "is gone. Nothing was changed; load the pipeline anew"
        ) from error


def _stage(
    root: nn.Module, component: str, adapter: ErasureAdapter | None, registry: Registry | None
) -> StagedEdit:
    old = registry_of(root) or Registry()
    edits = resolve_edits(root, component, adapter) if adapter else {}
    names = list(dict.fromkeys([*old.weights, *old.hooks, *edits]))
    refuse_tied(root, names)
    staged = StagedEdit(root, registry, [], {})
    weights = {}
    hooks = dict(old.hooks)
    for name in names:
        where = f"{component}.{name}"
        factors = edits.get(name)
        if factors is not None:
            _refuse_not_finite(where, factors.A, factors.B)
        hooked = name in old.hooks or not is_editable(root, name)
        if hooked:
            hook = hooks.setdefault(name, EditHook())
            staged.hooks[hook] = (base_linear(root.get_submodule(name)), factors)
        if name in old.weights or not hooked:
            storages = storages_of(root, name)
            live = storages[0]
            known = old.weights.get(name)
            record = known.with_rows_of(live) if known else EditedWeight.of(live)
            in_weight = None if hooked else factors
            weights[name], bits = _edit_weight(live, record, record.follow_casts(live), in_weight)
            if not record.is_known(bits):
                _refuse_not_finite(where, bits)
            for storage in storages:
                change = WeightChange(where, storage, storage.clone(), bits.to(storage))
                staged.changes.append(change)
    if registry is not None:
        registry.weights = weights
        registry.hooks = hooks
    return staged


def _edit_weight(
    live: Tensor, record: EditedWeight, tracked: EditedWeight | None, factors: LowRank | None
) -> tuple[EditedWeight, Tensor]:
    """The record and the live bits of a weight once `factors` are its only edit of ours."""
    edited = (tracked or record).with_edit(factors)
    if tracked:
        return edited, edited.target
    difference = (edited.target.float() - record.target.float()).to(live.device)
    return edited, (live.float() + difference).to(live.dtype)


def _refuse_not_finite(where: str, *tensors: Tensor) -> None:
    if not all(finite(t.float()) for t in tensors):
        raise AdapterStateError(
            f"{where} would hold values that are not finite; nothing was changed"
        )


@torch.no_grad()
def commit(staged: Sequence[StagedEdit]) -> None:
    """Carry out all of it; an exception or an interrupt on the way puts everything back.

    Raises:
        AdapterStateError: It did not come to an end, and a weight cannot be put back either.
    """
    registries = [registry_of(edit.root) for edit in staged]
    factors = _hook_factors(staged)
    try:
        for edit in staged:
            _write(edit.changes)
            _set_hooks(edit.hooks, keep=edit.registry is not None)
            _set_registry(edit.root, edit.registry)
    except BaseException as error:
        lost = []
        for edit, registry in zip(staged, registries, strict=True):
            lost += _roll_back(edit.changes)
            hooks = {hook: (linear, factors[hook]) for hook, (linear, _) in edit.hooks.items()}
            _set_hooks(hooks, keep=registry is not None)
            _set_registry(edit.root, registry)
        _refuse_lost(lost, error)
        raise


def _hook_factors(staged: Sequence[StagedEdit]) -> dict[EditHook, LowRank | None]:
    """What every hook adds now."""
    found = {}
    for edit in staged:
        for hook in edit.hooks:
            found[hook] = hook.factors
    return found


def _write(changes: Sequence[WeightChange]) -> None:
    for change in changes:
        change.storage.copy_(change.after)


def _roll_back(changes: Sequence[WeightChange]) -> list[str]:
    """Put the bits of before back; the names of those that take none any more."""
    lost = []
    for change in changes:
        try:
            change.storage.copy_(change.before)
        except RuntimeError:  # its device is gone, and with it what a later copy would need
            lost.append(change.name)
    return lost


def _refuse_lost(names: Sequence[str], error: BaseException | None = None) -> None:
    """Raise where weights could not be put back.

    Raises:
        AdapterStateError: There are some.
    """
    if names:
        why = f" ({error})" if error else ""
        raise AdapterStateError(
            f"{names[0]} and {len(names) - 1} other weights can be neither written nor put back"
            f"{why}: their device, or their memory, is gone, and they may hold a part of an edit. "
            "Load the pipeline anew"
        ) from error


def _set_hooks(hooks: Mapping[EditHook, tuple[nn.Module, LowRank | None]], *, keep: bool) -> None:
    """Set what each hook adds; register new ones, or remove all if they are not to be kept."""
    for hook, (linear, factors) in hooks.items():
        hook.factors = factors
        registered = [key for key, value in linear._forward_hooks.items() if value is hook]
        if keep and not registered:
            linear.register_forward_hook(hook)
        if not keep:
            for key in registered:
                del linear._forward_hooks[key]


def _set_registry(root: nn.Module, registry: Registry | None) -> None:
    if registry is not None:
        setattr(root, ATTRIBUTE, registry)
    elif hasattr(root, ATTRIBUTE):
        delattr(root, ATTRIBUTE)


@contextmanager
def unedited(pipe: Any) -> Iterator[None]:
    """Inside, every edited weight is without our edit; afterwards the bits are those of before."""
    roots = {name: root for name, (root, r) in modules_with_registry(pipe).items() if r.applied}
    if not roots:
        yield
        return
    with WEIGHTS_LOCK.writing(), torch.no_grad():
        staged = [stage(root, name, None, registry=None) for name, root in roots.items()]
        factors = _hook_factors(staged)
        try:
            for edit in staged:
                _write(edit.changes)
            for hook in factors:
                hook.factors = None
            yield
        finally:
            for hook, value in factors.items():
                hook.factors = value
            lost = []
            for edit in staged:
                lost += _roll_back(edit.changes)
            _refuse_lost(lost)
