"""Linears as they are found: quantised, cast to 8 bits, offloaded, fused. One record per quantisation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterStateError


@dataclass(frozen=True)
class Quantisation:
    """A way to store a weight that cannot be edited in place."""

    name: str
    weights: tuple[str, ...]
    """Class names of the weight, looked for among its base classes; or names of dtypes."""
    plain: Callable[[Any], Tensor]
    """The weight `(d_out, d_in)` of a linear as floats."""


def _nf4(linear: Any) -> Tensor:
    """On CPUs with bfloat16 products a layer packs its weight anew in its first call, and rounds the scales: so do we, before it
    and after it (bitsandbytes 0.50)."""
    from bitsandbytes import functional as bnb

    weight, state = linear.weight.data, copy.copy(linear.weight.quant_state)
    if getattr(state, "packing_format_for_cpu", False):
        scales, state.original_nested = state.absmax.T.reshape(-1).float(), False
        weight, state = bnb._convert_weight_packed_for_cpu_inverse(weight, state)
        state.absmax = scales
    elif getattr(linear, "support_avx512bf16_for_cpu", False) and weight.device.type == "cpu":
        if state.nested:
            state.absmax, state.nested = (
                bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset,
                False,
            )
        state.absmax = state.absmax.to(torch.bfloat16).float()
    return bnb.dequantize_4bit(weight, state)


def _int8(linear: Any) -> Tensor:
    weight, state = linear.weight, getattr(linear, "state", None)
    scale = weight.SCB if weight.SCB is not None else state.SCB if state else None
    if scale is None:
        raise AdapterStateError(
            "this 8-bit weight is not quantised yet; move the model to its device first"
        )
    return weight.data.float() * (scale.float() / 127)[:, None].to(weight.device)


def _gguf(linear: Any) -> Tensor:
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    return dequantize_gguf_tensor(linear.weight).as_subclass(Tensor)


QUANTISATIONS = (
    Quantisation("torchao", ("TorchAOBaseTensor",), lambda linear: linear.weight.dequantize()),
    Quantisation("bitsandbytes 4 bit", ("Params4bit",), _nf4),
    Quantisation("bitsandbytes 8 bit", ("Int8Params",), _int8),
    Quantisation("GGUF", ("GGUFParameter",), _gguf),
    Quantisation(
        "8-bit floats",
        ("float8_e4m3fn", "float8_e5m2"),
        lambda linear: linear.weight.detach().float(),
    ),
)


FUSED = {
    "to_kv": ("to_k", "to_v"),
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}
"""Fused linear -> the linears whose rows it copies, in `Attention.fuse_projections` (diffusers 0.42)."""


def unwrapped(module: nn.Module) -> nn.Module:
    """The module below a `torch.compile` wrapper."""
    return getattr(module, "_orig_mod", module)


def base_linear(module: nn.Module) -> nn.Module:
    """The linear below a PEFT wrapper."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module  # type: ignore[operator]


def quantisation_of(linear: nn.Module) -> Quantisation | None:
    """The record of a linear's weight, or None if it can be edited in place.

    Raises:
        AdapterStateError: It is no floating-point parameter, and no record knows it.
    """
    weight = getattr(linear, "weight", None)
    if weight is None:
        raise AdapterStateError(f"{type(linear).__name__} has no weight to edit")
    names = {c.__name__ for c in type(weight).__mro__} | {str(weight.dtype).removeprefix("torch.")}
    for record in QUANTISATIONS:
        if names & set(record.weights):
            return record
    if not weight.is_floating_point() or weight.itemsize < 2:
        known = ", ".join(r.name for r in QUANTISATIONS)
        raise AdapterStateError(
            f"a {type(linear).__name__} of {weight.dtype} cannot be edited or hooked (known: {known})"
        )
    return None


def resident_tensor(module: nn.Module, name: str) -> Tensor:
    """A parameter of `module` itself where its values are: below accelerate's offloading, the CPU copy.

    Raises:
        AdapterStateError: There are no values to edit: on disk, or on the meta device.
    """
    value = getattr(module, name)
    if not value.is_meta:
        return value
    kept = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
    if kept is not None:
        one, again = kept[name], kept[name]
        if (
            one.data_ptr() == again.data_ptr()
        ):  # from the disk every look gives other memory, and an edit would be lost
            return one
    raise AdapterStateError(
        f"the {name} of a {type(module).__name__} is on {'disk' if kept is not None else 'the meta device'}; "
        "load the erasure before offloading, or offload to the CPU"
    )


def plain_weight(linear: nn.Module) -> Tensor:
    """`(d_out, d_in)` values of a linear's weight, dequantised if need be."""
    record = quantisation_of(linear)
    return record.plain(linear) if record else resident_tensor(linear, "weight")


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` wraps the module or a part of it."""
    return hasattr(module, "_orig_mod") or any(
        m._compiled_call_impl is not None for m in module.modules()
    )


def dtype_of(root: nn.Module) -> torch.dtype:
    """The dtype `root` lives in; weights stored in 8 bits do not count."""
    return next(
        (p.dtype for p in root.parameters() if p.is_floating_point() and p.itemsize > 1),
        torch.float32,
    )


def device_of(root: nn.Module) -> torch.device:
    """Where `root` computes; offloaded weights lie elsewhere, or nowhere."""
    hooks = (getattr(module, "_hf_hook", None) for module in root.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    return torch.device(next((d for d in devices if d is not None), next(root.parameters()).device))
