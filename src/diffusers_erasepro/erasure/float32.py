"""A 16-bit encoder run in float32, without a second copy of its weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import CpuOffload
from torch import Tensor, nn

from ..errors import AdapterStateError
from ..families.encoders import blocks_of
from ..prompts.tokens import Tokens
from .states import run_encoder


@contextmanager
def in_float32(encoder: nn.Module) -> Iterator[nn.Module]:
    """The encoder in float32 and eval mode; of a 16-bit one a twin runs, its own weights are not touched.

    Raises:
        AdapterStateError: It does not run as it was loaded, or no twin can be made of it.
    """
    training = encoder.training
    encoder.eval()
    try:
        ready = _streamed(_twin(encoder)) if any(_narrow(encoder)) else encoder
        _refuse_idle_bytes(ready)
        yield ready
    finally:
        encoder.train(training)


def _refuse_idle_bytes(encoder: nn.Module) -> None:
    """8-bit floats need hooks that widen them; diffusers hangs none at the layers of some encoders (T5's norms)."""
    if not any(map(_bytes, encoder.parameters())):
        return
    try:
        run_encoder(encoder, Tokens(torch.zeros(1, 1, dtype=torch.long)), last_hidden=False)
    except RuntimeError as error:
        raise AdapterStateError(
            f"{type(encoder).__name__} holds 8-bit floats and does not run with them ({error}); load it in 32 or 16 bits to erase"
        ) from error


def _twin(encoder: nn.Module) -> nn.Module:
    """Modules and hooks of its own, the weights are the encoder's: wherever they lie, no second copy is made.

    Only 8-bit floats are copied: diffusers' hooks cast them in place, and an error on the way would leave them so.
    """
    maps = (getattr(getattr(m, "_hf_hook", None), "weights_map", None) for m in encoder.modules())
    tensors = (x for x in (*encoder.parameters(), *encoder.buffers()) if not _bytes(x))
    hook = getattr(encoder, "_hf_hook", None)
    offload = hook if isinstance(hook, CpuOffload) else None  # which holds the model before it, too
    try:
        twin = copy.deepcopy(
            encoder, {id(x): x for x in (*tensors, *maps, offload) if x is not None}
        )
    except TypeError as error:
        raise AdapterStateError(
            f"{type(encoder).__name__} has 16-bit weights and hooks that cannot be copied ({error}); erase before group "
            "offloading is enabled, or in float32"
        ) from error
    if offload:
        twin._hf_hook = Following(offload, encoder)
    return twin


class Following(CpuOffload):
    """Model offload of a twin. A copy of the encoder's hook would move the weights, which both share, and leave its buffers."""

    def __init__(self, hook: CpuOffload, encoder: nn.Module) -> None:
        super().__init__(hook.execution_device)
        self.hook, self.encoder = hook, encoder

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = self.hook.pre_forward(self.encoder, *args, **kwargs)
        for ours, theirs in zip(module.modules(), self.encoder.modules(), strict=True):
            ours._buffers.update(theirs._buffers)
        return given


def _streamed(twin: nn.Module) -> nn.Module:
    """Runs in float32: 16-bit weights are widened for the time their block, or their leaf outside the blocks, runs."""
    blocks = list(blocks_of(twin))
    inside = {m for block in blocks for m in block.modules()}
    for part in (
        *blocks,
        *(m for m in twin.modules() if m not in inside and not any(m.children())),
    ):
        if narrow := [*_narrow(part)]:
            part.register_forward_pre_hook(lambda *_, narrow=narrow: _widen(narrow))
            part.register_forward_hook(lambda *_, narrow=narrow: _put_back(narrow))
    return twin


def _bytes(x: Tensor) -> bool:
    return x.is_floating_point() and x.itemsize == 1


def _narrow(root: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Plain 16-bit parameters and buffers: who holds them, by which name. Quantised ones compute in the dtype of their input."""
    for module in root.modules():
        stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for held in stores:
            for name, value in held.items():
                if type(value) in (nn.Parameter, Tensor) and value.dtype in (
                    torch.float16,
                    torch.bfloat16,
                ):
                    yield held, name, value


def _widen(narrow: Sequence[tuple[dict[str, Any], str, Tensor]]) -> None:
    for held, name, value in narrow:
        wide = value.detach().float()
        held[name] = (
            nn.Parameter(wide, requires_grad=False) if isinstance(value, nn.Parameter) else wide
        )


def _put_back(narrow: Sequence[tuple[dict[str, Any], str, Tensor]]) -> None:
    for held, name, value in narrow:
        held[name] = value
