"""A linear as a model has it: wrapped, quantised, cast to 8 bits, offloaded, fused.

Each quantisation is one record of `QUANTISATIONS`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterStateError
from .hooks import hooks_of, offloaded_values


@dataclass(frozen=True)
class Quantisation:
    """A way to store a weight that cannot be edited in place."""

    name: str
    weights: tuple[str, ...]
    """Class names of the weight, or of the linear, looked for among the base classes; or names of
    dtypes."""
    plain: Callable[[Any], Tensor]
    """The weight `(d_out, d_in)` of a linear as floats."""


def _dequantise_nf4(linear: Any) -> Tensor:
    """The floats that a 4-bit layer computes with.

    On CPUs with bfloat16 products the layer packs its weight anew in its first call, and rounds the
    scales (bitsandbytes 0.50). So do we, before that call and after it.
    """
    from bitsandbytes import functional as bnb

    weight = linear.weight.data
    state = copy.copy(linear.weight.quant_state)
    if getattr(state, "packing_format_for_cpu", False):
        scales = state.absmax.T.reshape(-1).float()
        state.original_nested = False
        weight, state = bnb._convert_weight_packed_for_cpu_inverse(weight, state)
        state.absmax = scales
    elif getattr(linear, "support_avx512bf16_for_cpu", False) and weight.device.type == "cpu":
        if state.nested:
            state.absmax = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
            state.nested = False
        state.absmax = state.absmax.to(torch.bfloat16).float()
    return bnb.dequantize_4bit(weight, state)


def _dequantise_int8(linear: Any) -> Tensor:
    weight = linear.weight
    state = getattr(linear, "state", None)
    scale = weight.SCB
    if scale is None and state:
        scale = state.SCB
    if scale is None:
        raise AdapterStateError(
            "this 8-bit weight is not quantised yet; move the model to its device first"
        )
    return weight.data.float() * (scale.float() / 127)[:, None].to(weight.device)


def _dequantise_gguf(linear: Any) -> Tensor:
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    return dequantize_gguf_tensor(linear.weight).as_subclass(Tensor)


def _dequantise_sdnq(linear: Any) -> Tensor:
    from sdnq.utils import get_sdnq_params

    unpack = linear.sdnq_dequantizer
    packed = unpack.use_quantized_matmul
    return unpack(**get_sdnq_params(linear), skip_quantized_matmul=packed, skip_compile=True)


QUANTISATIONS = (
    Quantisation("torchao", ("TorchAOBaseTensor",), lambda linear: linear.weight.dequantize()),
    Quantisation("bitsandbytes 4 bit", ("Params4bit",), _dequantise_nf4),
    Quantisation("bitsandbytes 8 bit", ("Int8Params",), _dequantise_int8),
    Quantisation("GGUF", ("GGUFParameter",), _dequantise_gguf),
    Quantisation(
        "8-bit floats",
        ("float8_e4m3fn", "float8_e5m2"),
        lambda linear: linear.weight.detach().float(),
    ),
    Quantisation("quanto", ("QTensor",), lambda linear: linear.weight.dequantize()),
    Quantisation("SDNQ", ("SDNQLinear",), _dequantise_sdnq),
)


FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
"""Dtypes that hooks widen before anything is computed."""
ROUNDED_INPUTS = 1e-3
"""Relative difference from the product with the plain weight, at which inputs are rounded too."""
FUSED = {
    "to_kv": ("to_k", "to_v"),
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}
"""Fused linear -> the linears whose rows it copies, in `Attention.fuse_projections`
(diffusers 0.42)."""


def unwrapped(module: nn.Module) -> nn.Module:
    """The module below a `torch.compile` wrapper."""
    return getattr(module, "_orig_mod", module)


def base_linear(module: nn.Module) -> nn.Module:
    """The linear below a PEFT wrapper."""
    if hasattr(module, "get_base_layer"):
        return module.get_base_layer()  # type: ignore[operator]
    return module


def shape_of(module: nn.Module) -> tuple[int, int]:
    """`(d_out, d_in)` of a linear, or of a token embedding, which is a linear of one-hot ids."""
    base: Any = base_linear(module)
    if isinstance(base, nn.Embedding):
        return base.embedding_dim, base.num_embeddings
    return base.out_features, base.in_features


def output_scale(module: nn.Module) -> float:
    """What a module multiplies its weight's answer by: Gemma's token embedding by sqrt(d)."""
    return float(getattr(base_linear(module), "scalar_embed_scale", 1.0))


def as_linear(module: nn.Module, weight: Tensor) -> Tensor:
    """A weight of `module` as `(d_out, d_in)`: a token embedding keeps its own transposed."""
    return weight.T if isinstance(module, nn.Embedding) else weight


def quantisation_of(linear: nn.Module) -> Quantisation | None:
    """The record of a linear's weight, or None if it can be edited in place.

    Raises:
        AdapterStateError: It is no floating-point parameter, and no record knows it.
    """
    weight = getattr(linear, "weight", None)
    if weight is None:
        raise AdapterStateError(f"{type(linear).__name__} has no weight to edit")
    names = {c.__name__ for c in (*type(weight).__mro__, *type(linear).__mro__)}
    names.add(str(weight.dtype).removeprefix("torch."))
    for record in QUANTISATIONS:
        if names & set(record.weights):
            return record
    if not weight.is_floating_point() or weight.itemsize < 2:
        known = ", ".join(record.name for record in QUANTISATIONS)
        library = type(linear).__module__.partition(".")[0]
        raise AdapterStateError(
            f"a {type(linear).__name__} of {weight.dtype} cannot be edited or hooked (known: "
            f"{known}); its class comes from {library}. Load this part in 16 or 32 bits; or merge "
            "the erasure into a full-precision checkpoint (load it there, then save_pretrained) "
            "and quantise that; or add a Quantisation to modules.linear.QUANTISATIONS that reads "
            "its weight, and the edit is a hook around it"
        )
    return None


def resident_tensor(module: nn.Module, name: str) -> Tensor:
    """A parameter of `module` itself where its values are: the CPU copy where it is offloaded.

    Raises:
        AdapterStateError: There are no values to edit: on disk, on the meta device, or freed.
    """
    value = getattr(module, name)
    if not value.is_meta:
        _refuse_freed(module, name, value)
        return value
    offloaded = offloaded_values(module)
    if offloaded is not None:
        values = offloaded[name]
        if values.data_ptr() == offloaded[name].data_ptr():
            return values  # from the disk each access gives other memory; an edit would be lost
    where = "the meta device" if offloaded is None else "disk"
    raise AdapterStateError(
        f"the {name} of one {type(module).__name__} is on {where}, and cannot be read or edited "
        "there; erase, load, switch and verify before offloading so, or offload to the CPU"
    )


def resident_bias(linear: Any) -> Tensor | None:
    """The bias of a linear where its values are, as `resident_tensor`; None where it has none."""
    return None if linear.bias is None else resident_tensor(linear, "bias").detach()


def _refuse_freed(module: nn.Module, name: str, value: Tensor) -> None:
    """To read what stands in freed memory is no error of torch's: it ends the process.

    Raises:
        AdapterStateError: The tensor has a shape, and no byte.
    """
    plain = type(value) in (Tensor, nn.Parameter)
    if plain and value.numel() and not value.untyped_storage().nbytes():
        raise AdapterStateError(
            f"the {name} of a {type(module).__name__} has no memory any more: something freed it, "
            "as sharding does between calls. Gather the weights, or load the pipeline anew"
        )


def plain_weight(linear: nn.Module) -> Tensor:
    """`(d_out, d_in)` values of a linear's weight, dequantised if need be."""
    record = quantisation_of(linear)
    plain = record.plain(linear) if record else resident_tensor(linear, "weight")
    return as_linear(linear, plain)


@torch.no_grad()
def rounds_inputs(root: nn.Module) -> bool:
    """Whether a quantised linear of `root` multiplies in 8 bits, so that its input is rounded too.

    Then the smallest difference of a batch, such as another length, changes the last of 8 bits.
    One linear is tried: a library treats all alike.
    """
    for module in root.modules():
        if not isinstance(module, nn.Linear) or module.weight.is_meta:
            continue
        if quantisation_of(module) is None or module.weight.dtype in FLOAT8:
            continue
        weight = plain_weight(module).float()
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4, module.in_features, generator=generator, dtype=torch.float32)
        x = x.to(weight.device, dtype_of(root))
        wanted = x.float() @ weight.T
        if module.bias is not None:
            wanted += module.bias.float()
        off = (module.forward(x).float() - wanted).norm() / wanted.norm()
        return bool(off > ROUNDED_INPUTS)
    return False


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` wraps the module or a part of it."""
    return hasattr(module, "_orig_mod") or any(
        m._compiled_call_impl is not None for m in module.modules()
    )


def dtype_of(root: nn.Module) -> torch.dtype:
    """The dtype of `root`; weights stored in 8 bits do not count."""
    for parameter in root.parameters():
        if parameter.is_floating_point() and parameter.itemsize > 1:
            return parameter.dtype
    return torch.float32


def device_of(root: nn.Module) -> torch.device:
    """Where `root` computes; offloaded weights are elsewhere, or nowhere."""
    for module in root.modules():
        for hook in hooks_of(module):
            device: Any = getattr(hook, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return next(root.parameters()).device
