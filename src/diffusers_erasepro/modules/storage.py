"""Where the bits of a linear's weight are: below PEFT, in fused copies, in the offload map."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterStateError
from .hooks import refuse_on_disk
from .linear import (
    FUSED,
    as_linear,
    base_linear,
    plain_weight,
    quantisation_of,
    resident_tensor,
    shape_of,
)
from .tuners import layer_weight


def weight_of(root: nn.Module, name: str) -> Tensor:
    """`(d_out, d_in)` values of the linear `name`, below any PEFT wrapper, dequantised."""
    refuse_on_disk(root)
    return plain_weight(base_linear(root.get_submodule(name)))


def effective_weight(root: nn.Module, name: str) -> Tensor:
    """`weight_of`, with what active PEFT adapters make of it; `(d_out, d_in)`, on the CPU.

    Raises:
        AdapterStateError: They make something else of it than a weight that edits add to.
    """
    return layer_weight(root, name)


@contextmanager
def without_loras(roots: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, PEFT layers compute with their base alone.

    Their flag is set directly, because PEFT's own switch changes what is trained. Layers with
    something merged are left alone: they call their base, and the flag would make them undo the
    merge in place.
    """
    layers: list[Any] = []
    for root in roots:
        for module in root.modules():
            if hasattr(module, "_disable_adapters") and not getattr(module, "merged", False):
                layers.append(module)
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer._disable_adapters = was


def is_editable(root: nn.Module, name: str) -> bool:
    """Whether the weight can be written; if not, the edit has to be a hook.

    Raises:
        AdapterStateError: Neither can be, and the message says of which module.
    """
    try:
        return quantisation_of(base_linear(root.get_submodule(name))) is None
    except AdapterStateError as error:
        raise AdapterStateError(f"{name}: {error}") from error


def storages_of(root: nn.Module, name: str) -> list[Tensor]:
    """Every tensor `(d_out, d_in)` to write where the weight of `name` changes.

    The weight itself comes first, then its rows in a fused projection.
    """
    refuse_on_disk(root)
    base = base_linear(root.get_submodule(name))
    storages = [as_linear(base, resident_tensor(base, "weight").detach())]
    if fused := _fused_copy(root, name):
        linear, rows = fused
        storages.append(resident_tensor(linear, "weight").detach()[rows])
    return storages


def forward_of(root: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    """What the linear `name` computes in a call of the model.

    That is through PEFT wrappers and hooks, or by its rows of a fused projection.
    """
    fused = _fused_copy(root, name)
    processor = getattr(root.get_submodule(name.rpartition(".")[0]), "processor", None)
    if fused and "Fused" in type(processor).__name__:
        linear, rows = fused
        return lambda x: linear(x)[..., rows]
    return root.get_submodule(name)


def _fused_copy(root: nn.Module, name: str) -> tuple[nn.Module, slice] | None:
    """The fused linear that has a copy of `name`, and its rows there."""
    above, _, leaf = name.rpartition(".")
    attention = root.get_submodule(above)
    for fused, parts in FUSED.items():
        linear = getattr(attention, fused, None)
        if linear is None or leaf not in parts:
            continue
        widths = [shape_of(getattr(attention, part))[0] for part in parts]
        index = parts.index(leaf)
        start = sum(widths[:index])
        return linear, slice(start, start + widths[index])
    return None


def refuse_tied(root: nn.Module, names: Sequence[str]) -> None:
    """No weight of `names` may serve another module too: an edit of one would edit both.

    A token embedding may also be the head that predicts tokens, or have two names: no pipeline
    reads that head, and the names are one table.

    Raises:
        AdapterStateError: Two modules share a parameter.
    """
    owners: dict[int, list[str]] = {}
    for name, value in root.named_parameters(remove_duplicate=False):
        owners.setdefault(id(value), []).append(name)
    for name in names:
        base = base_linear(root.get_submodule(name))
        if isinstance(base, nn.Embedding):
            continue
        weight = getattr(base, "weight", None)
        shared = owners.get(id(weight), [])
        if len(shared) > 1:
            raise AdapterStateError(
                f"{' and '.join(shared)} share one weight; untie them before editing {name}"
            )


def cast_through(bits: Tensor, dtypes: Sequence[torch.dtype]) -> Tensor:
    """`bits` after a cast to each dtype in turn."""
    for dtype in dtypes:
        bits = bits.to(dtype)
    return bits
