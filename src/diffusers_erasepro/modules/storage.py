"""Where the bits of a linear's weight live: the parameter below PEFT, its copy in a fused projection, the offload map."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterStateError
from .linear import FUSED, base_linear, plain_weight, quantisation_of, resident_tensor


def weight_of(root: nn.Module, name: str) -> Tensor:
    """`(d_out, d_in)` values of the linear `name`, below any PEFT wrapper, dequantised if need be."""
    return plain_weight(base_linear(root.get_submodule(name)))


def effective_weight(root: nn.Module, name: str) -> Tensor:
    """`weight_of`, and what the PEFT adapters that are active now add to it; on the CPU, which solves."""
    layer: Any = root.get_submodule(name)
    weight = weight_of(root, name).detach().cpu()
    if not hasattr(layer, "get_delta_weight") or layer.disable_adapters:
        return weight
    active = [
        n for n in layer.active_adapters if n in layer.lora_A and n not in layer.merged_adapters
    ]
    return weight + sum(layer.get_delta_weight(n).detach().cpu() for n in active)


@contextmanager
def without_loras(roots: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, PEFT layers compute with their base alone. The flag is set because PEFT's own switch changes what is trained."""
    layers: list[Any] = [
        m for root in roots for m in root.modules() if hasattr(m, "_disable_adapters")
    ]
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer._disable_adapters = was


def is_editable(root: nn.Module, name: str) -> bool:
    """Whether the weight can be written; if not, the edit has to be a hook."""
    return quantisation_of(base_linear(root.get_submodule(name))) is None


def storages_of(root: nn.Module, name: str) -> list[Tensor]:
    """Everything to write where the weight of `name` changes: itself first, then its rows in a fused projection."""
    places = [resident_tensor(base_linear(root.get_submodule(name)), "weight").detach()]
    if found := _fused(root, name):
        linear, rows = found
        places.append(resident_tensor(linear, "weight").detach()[rows])
    return places


def forward_of(root: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    """What the linear `name` computes in a call: through PEFT wrappers and hooks, or by its rows of a fused projection."""
    found = _fused(root, name)
    processor = getattr(root.get_submodule(name.rpartition(".")[0]), "processor", None)
    if found and "Fused" in type(processor).__name__:
        linear, rows = found
        return lambda x: linear(x)[..., rows]
    return root.get_submodule(name)


def _fused(root: nn.Module, name: str) -> tuple[nn.Module, slice] | None:
    """The fused linear that holds a copy of `name`, and its rows there."""
    above, _, leaf = name.rpartition(".")
    attention = root.get_submodule(above)
    for fused, parts in FUSED.items():
        linear = getattr(attention, fused, None)
        if leaf in parts and linear is not None:
            widths = [base_linear(getattr(attention, part)).out_features for part in parts]
            start = sum(widths[: parts.index(leaf)])  # type: ignore[arg-type]
            return linear, slice(start, start + widths[parts.index(leaf)])  # type: ignore[operator]
    return None


def refuse_tied(root: nn.Module, names: list[str]) -> None:
    """No weight of `names` may serve another module too: an edit of one would be an edit of both.

    Raises:
        AdapterStateError: Two modules share a parameter.
    """
    owners: dict[int, list[str]] = {}
    for name, value in root.named_parameters(remove_duplicate=False):
        owners.setdefault(id(value), []).append(name)
    for name in names:
        shared = owners.get(id(getattr(base_linear(root.get_submodule(name)), "weight", None)), [])
        if len(shared) > 1:
            raise AdapterStateError(
                f"{' and '.join(shared)} share one weight; untie them before editing {name}"
            )


def cast_through(bits: Tensor, journey: tuple[torch.dtype, ...]) -> Tensor:
    """`bits` after casts to each dtype in turn."""
    for dtype in journey:
        bits = bits.to(dtype)
    return bits
