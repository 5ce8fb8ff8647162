"""The layers that PEFT hangs around a linear: what is theirs, and what an edit below them does."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from ..errors import AdapterStateError
from .hooks import names_of_hooks
from .linear import as_linear, base_linear, plain_weight, quantisation_of, resident_tensor

PROBES = 8
"""Random inputs that a layer is tried on."""
TRIED_SIZE = 0.1
"""Size of the edit that is tried below a layer, as a share of its weight."""
TOLERANCE = 1e-3
"""Largest relative difference that counts as none: the layer is tried in float32."""
ROUGH_TOLERANCE = 2e-2
"""The same of a layer that runs in 16 bits."""


def stock_modules(
    root: nn.Module, path: str = "", *, every_name: bool = False
) -> Iterator[tuple[str, nn.Module]]:
    """`named_modules()` as it was before PEFT: its layers give way to what they wrap.

    With `every_name` a module that stands in several places is there under each.
    """
    seen: set[nn.Module] = set()
    for found, module in _stock_modules(root, path):
        if every_name or module not in seen:
            seen.add(module)
            yield found, module


def _stock_modules(root: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(root, AuxiliaryTrainingWrapper):
        yield from _stock_modules(root.original_module, path)
        return
    if isinstance(root, BaseTunerLayer) and hasattr(root, "base_layer"):
        yield from _stock_modules(root.base_layer, path)  # type: ignore[arg-type]
        return
    yield path, root
    for name, child in root.named_children():
        yield from _stock_modules(child, f"{path}.{name}" if path else name)


def acting_adapters(layer: nn.Module) -> list[str]:
    """Names of the adapters that a PEFT layer computes with, those merged into its base too."""
    if not isinstance(layer, BaseTunerLayer) or layer.disable_adapters:
        return []
    known = layer._all_available_adapter_names()
    return [name for name in layer.active_adapters if name in known]


def changes_its_base(layer: nn.Module) -> bool:
    """Whether a PEFT layer computes anything else than the linear that it wraps.

    What is merged is in the base's weight, and the layer then calls the base alone.
    """
    return bool(acting_adapters(layer)) and not getattr(layer, "merged", False)


def isolated(layer: nn.Module) -> nn.Module:
    """A copy of one layer to try weights in: float32, eval mode, resident, without outer hooks.

    Where the weight is quantised, it keeps its dtype.

    Raises:
        AdapterStateError: A part of it has no values.
    """
    memo: dict[int, Any] = {}
    attributes = ("_hf_hook", "_old_forward", "_diffusers_hook", "forward")
    for module in layer.modules():
        found = [vars(module)[name] for name in attributes if name in vars(module)]
        memo |= dict.fromkeys(map(id, found))
    copied = copy.deepcopy(layer, memo)
    for module, original in zip(copied.modules(), layer.modules(), strict=True):
        for name in attributes:
            vars(module).pop(name, None)
        for name, value in original._parameters.items():
            if value is not None and value.is_meta:
                _refuse_part_loaded(layer, original)
                resident = resident_tensor(original, name).detach().clone()
                module._parameters[name] = nn.Parameter(resident, requires_grad=False)
    if quantisation_of(base_linear(copied)) is None:
        copied.float()
    return copied.eval()


def _refuse_part_loaded(layer: nn.Module, part: nn.Module) -> None:
    """An adapter's matrix that its file lacked has a shape, and no values (diffusers 0.42).

    Raises:
        AdapterStateError: That is so; nothing offloaded it.
    """
    offloaded = any(hasattr(module, "_hf_hook") for module in (layer, part))
    if part is not base_linear(layer) and isinstance(layer, BaseTunerLayer) and not offloaded:
        raise AdapterStateError(
            f"{_describe_tuner(layer)} was loaded in part only: one of its matrices has no values. "
            "Unload it (unload_lora_weights()), and load a whole file"
        )


@torch.no_grad()
def edited_module(root: nn.Module, name: str) -> nn.Module:
    """The module whose input x an edit B A below the layer `name` meets: it adds B A x.

    That is the linear itself, or the PEFT layer around it where that never calls it.

    Raises:
        AdapterStateError: A PEFT layer makes something else of the edit.
    """
    layer = root.get_submodule(name)
    _refuse_changing_hooks(name, layer)
    if not changes_its_base(layer):
        return base_linear(layer)
    probe = isolated(layer)
    base: Any = base_linear(probe)
    x = _probes(base)
    received: list[Tensor] = []
    base.register_forward_pre_hook(lambda _, args: received.append(args[0]))
    before = _call(layer, probe, x)
    edit = _tried_edit(base)
    added = (received[-1] if received else x).to(edit) @ edit.T
    if quantisation_of(base) is None:
        base.weight.data.add_(edit)
    else:
        base.register_forward_hook(lambda _, args, out: out + (args[0].to(edit) @ edit.T).to(out))
    after = _call(layer, probe, x)
    if not _close(after - before, added):
        raise AdapterStateError(
            f"{name}: {_describe_tuner(layer)} does not add to "
            "its base, so an edit below it cannot be solved. Disable or unload it, or bake it in "
            "(fuse_lora(), unload_lora_weights()), and try again; nothing was changed"
        )
    return base_linear(layer) if received else layer


@torch.no_grad()
def layer_weight(root: nn.Module, name: str) -> Tensor:
    """`(d_out, d_in)` what the layer `name` multiplies its input by, PEFT's part included.

    Raises:
        AdapterStateError: It does not just multiply, or not the input that an edit below meets.
    """
    layer = root.get_submodule(name)
    base: Any = base_linear(layer)
    weight = plain_weight(base).detach().cpu()
    if not changes_its_base(layer):
        return weight
    edited_module(root, name)
    probe = isolated(layer)
    probed: Any = base_linear(probe)
    received: list[Tensor] = []
    handle = probed.register_forward_pre_hook(lambda _, args: received.append(args[0]))
    x = _probes(probed)
    zero = _call(layer, probe, torch.zeros_like(x[:1]))
    out = _call(layer, probe, x) - zero
    straight = not received or torch.equal(received[-1], x)
    handle.remove()
    eye = torch.eye(probed.in_features, device=x.device, dtype=x.dtype)
    if quantisation_of(base) is None:
        columns = _call(layer, probe, eye) - zero
        found = columns.T.cpu()
    else:  # the rounding of both calls is the same
        columns = _call(layer, probe, eye) - probed(eye)
        found = weight + columns.T.cpu()
    if not straight or not _close(out.cpu(), x.cpu() @ found.T.to(x.device.type)):
        raise AdapterStateError(
            f"{name}: {_describe_tuner(layer)} is not linear in "
            "what it receives, or turns it before its base reads it, so this kind of edit cannot "
            "be solved below it. Edit encoder blocks, such as layers=(0, -1), or disable, unload "
            "or bake it in (fuse_lora(), unload_lora_weights()); nothing was changed"
        )
    return found.to(weight.dtype)


@torch.no_grad()
def without_edit(root: nn.Module, name: str, weight: Tensor | None) -> nn.Module:
    """A copy of the layer `name` as it is without our edit, in float32.

    Args:
        root: A component.
        name: The layer.
        weight: `(d_out, d_in)` of its linear without our edit; None where the edit is a hook.
    """
    probe = isolated(root.get_submodule(name))
    base: Any = base_linear(probe)
    base._forward_hooks.clear()
    if weight is not None:
        base.weight.data = as_linear(base, weight).to(base.weight)
    return probe


def _refuse_changing_hooks(name: str, layer: nn.Module) -> None:
    """What hooks hang at a linear must leave what it computes.

    Raises:
        AdapterStateError: They change it, and with it what an edit adds.
    """
    base: Any = base_linear(layer)
    hooks = names_of_hooks(layer, neutral=False)
    if not hooks or not hasattr(base, "in_features"):
        return
    x = _probes(base)
    if base.weight.is_floating_point() and base.weight.itemsize == 2:
        x = x.to(base.weight.dtype)
    wanted = _call(layer, isolated(layer), x.float())
    have = layer(x).float()
    tolerance = TOLERANCE if x.dtype == torch.float32 else ROUGH_TOLERANCE
    if not float((have - wanted).norm()) <= tolerance * float(wanted.norm()):
        raise AdapterStateError(
            f"{name}: the hook {', '.join(hooks)} changes what the linear computes, so an edit of "
            "its weight cannot be solved; remove it, erase, and add it again"
        )


def _probes(base: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(PROBES, base.in_features, generator=generator, dtype=torch.float32)
    dtype = base.weight.dtype if quantisation_of(base) is None else torch.float32
    return x.to(base.weight.device, dtype)


def _tried_edit(base: Any) -> Tensor:
    """A random edit `(d_out, d_in)` of rank 1, `TRIED_SIZE` of the weight."""
    generator = torch.Generator().manual_seed(1)
    column = torch.randn(base.out_features, 1, generator=generator, dtype=torch.float32)
    row = torch.randn(1, base.in_features, generator=generator, dtype=torch.float32)
    edit = column @ row
    size = TRIED_SIZE * plain_weight(base).detach().float().norm().cpu() / edit.norm()
    return (size * edit).to(base.weight.device)


def _call(layer: nn.Module, probe: nn.Module, x: Tensor) -> Tensor:
    """What the probe makes of x; what it raises is told with the layer's name.

    Raises:
        AdapterStateError: It does not run on its own, as with a router that wants a task.
    """
    try:
        return probe(x)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise AdapterStateError(
            f"{_describe_tuner(layer)} does not run on its own "
            f"({error}), so an edit below it cannot be solved; disable or unload it, and try again"
        ) from error


def _close(have: Tensor, want: Tensor) -> bool:
    return float((have - want).norm()) <= TOLERANCE * float(want.norm())


def _describe_tuner(layer: nn.Module) -> str:
    """The PEFT method and its adapters, for messages; LoRA's variants have names of their own."""
    variants = getattr(layer, "lora_variant", {})
    names = sorted({type(v).__name__ for v in variants.values()})
    method = type(layer).__module__.removeprefix("peft.tuners.").partition(".")[0]
    kind = ", ".join(names) or method
    adapters = ", ".join(map(repr, acting_adapters(layer)))
    return f"a PEFT layer of the kind {kind} ({adapters})"
