"""The registry of edited weights: base bits kept once, one rounded sum on top, exact restore.

State sits on the component (an attribute of the text encoder or denoiser), not on the pipeline: pipelines made
by `from_pipe` share it, and a replaced component loses it, as it loses the edit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import ErasureAdapter
from .errors import AdapterStateError, BaseModelMismatchError
from .factors import LowRank
from .families import base_linear, module_name
from .fingerprint import fingerprint

ATTRIBUTE = "_erasepro"
LOCK = threading.RLock()
"""Held while weights change, so that no two threads interleave."""


@dataclass
class EditedWeight:
    """One weight under our care."""

    base: Tensor
    """The bits before any edit, on the CPU."""
    target: Tensor
    """The bits last written."""


@dataclass
class Registry:
    """Everything this package knows about one component."""

    adapters: dict[str, ErasureAdapter] = field(default_factory=dict)
    on: dict[str, bool] = field(default_factory=dict)
    resume: tuple[str, ...] = ()
    """What `enable_erasure` turns on again."""
    applied: ErasureAdapter | None = None
    """The one edit that stands for all active adapters; None where nothing is active."""
    weights: dict[str, EditedWeight] = field(default_factory=dict)


def registry_of(root: nn.Module) -> Registry | None:
    """The component's registry, or None if no adapter was ever loaded into it."""
    return getattr(root, ATTRIBUTE, None)


def modules_with_registry(pipe: Any) -> dict[str, tuple[nn.Module, Registry]]:
    """Component name -> (module, registry), for components that have one."""
    found = {}
    for name, module in pipe.components.items():
        root = getattr(module, "_orig_mod", module)
        if isinstance(root, nn.Module) and (registry := registry_of(root)) is not None:
            found[name] = (root, registry)
    return found


def originals(root: nn.Module) -> dict[str, Tensor]:
    """Plain module name -> base bits, of every weight under our care."""
    registry = registry_of(root)
    weights = registry.weights if registry else {}
    return {name.replace(".base_layer", "").removeprefix("text_model."): w.base for name, w in weights.items()}


def base_fingerprint(root: nn.Module) -> str:
    """Fingerprint of the component without our edits, in the dtype it lives in."""
    return fingerprint(root, next(root.parameters()).dtype, originals(root))


def weight_of(root: nn.Module, name: str) -> nn.Parameter:
    """The editable weight of the linear `name`, below any PEFT wrapper.

    Raises:
        AdapterStateError: The weight is offloaded or quantised, so it cannot be edited in place.
    """
    linear = base_linear(root.get_submodule(name))
    weight = getattr(linear, "weight", None)
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point() or weight.itemsize < 2:
        raise AdapterStateError(f"{name} is a {type(linear).__name__} whose weight cannot be edited in place (quantised?)")
    if weight.is_meta:
        raise AdapterStateError(f"{name} has its weight offloaded; load the erasure before enabling offload")
    return weight


def resolved(root: nn.Module, component: str, adapter: ErasureAdapter) -> dict[str, LowRank]:
    """The adapter's edits of `component` by live module name.

    Raises:
        BaseModelMismatchError: A module is missing or has another shape.
    """
    found = {}
    for stored, factors in adapter.of(component).items():
        name = module_name(root, stored)
        shape = (factors.B.shape[0], factors.A.shape[1])
        if name is None:
            raise BaseModelMismatchError(f"{component} has no layer {stored}, which the adapter edits; load it on its base model")
        have = tuple(weight_of(root, name).shape)
        if have != shape:
            raise BaseModelMismatchError(f"{component}.{name} is {have}, the adapter was made for {shape}")
        found[name] = factors
    return found


def staged(root: nn.Module, component: str, adapter: ErasureAdapter | None) -> dict[str, tuple[EditedWeight, Tensor]]:
    """What `commit` will write: name -> (record, bits), nothing touched yet.

    The new bits are base + B A, summed in float32 and rounded once. Where someone else changed the weight
    meanwhile (a fused LoRA, say), only our difference is exchanged and their change stays.
    """
    registry = registry_of(root) or Registry()
    edits = resolved(root, component, adapter) if adapter else {}
    plan = {}
    for name in dict.fromkeys([*registry.weights, *edits]):
        live = weight_of(root, name).detach()
        old = registry.weights.get(name) or EditedWeight(live.cpu().clone(), live.cpu().clone())
        target = old.base
        if name in edits:
            target = (old.base.float() + edits[name].to(torch.float32).dense()).to(old.base.dtype)
        bits = target.to(live)
        if not torch.equal(live, old.target.to(live)):
            bits = (live.float() + (target.float() - old.target.float()).to(live.device)).to(live.dtype)
        if not torch.isfinite(bits).all():
            raise AdapterStateError(f"{component}.{name} would hold values that are not finite; nothing was changed")
        plan[name] = (EditedWeight(old.base, target), bits)
    return plan


def commit(root: nn.Module, plan: Mapping[str, tuple[EditedWeight, Tensor]], registry: Registry) -> None:
    """Write staged bits and replace the component's registry."""
    with torch.no_grad():
        for name, (record, bits) in plan.items():
            weight_of(root, name).copy_(bits)
            registry.weights[name] = record
    setattr(root, ATTRIBUTE, registry)


def is_intact(root: nn.Module) -> bool:
    """Whether every weight under our care holds the bits last written."""
    registry = registry_of(root)
    weights = registry.weights if registry else {}
    return all(torch.equal(weight_of(root, n).detach(), w.target.to(weight_of(root, n))) for n, w in weights.items())


@contextmanager
def unedited(pipe: Any) -> Iterator[None]:
    """Inside, every edited weight is without our edit; afterwards the bits are those from before."""
    with LOCK:
        kept: list[tuple[nn.Parameter, Tensor]] = []
        try:
            for name, (root, _) in modules_with_registry(pipe).items():
                for module, (_, bits) in staged(root, name, None).items():
                    weight = weight_of(root, module)
                    kept.append((weight, weight.detach().clone()))
                    weight.data.copy_(bits)
            yield
        finally:
            for weight, bits in kept:
                weight.data.copy_(bits)
