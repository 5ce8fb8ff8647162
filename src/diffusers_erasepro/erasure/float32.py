"""A 16-bit encoder run in float32, without a second copy of its weights."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import CpuOffload
from torch import Tensor, nn

from ..errors import AdapterStateError
from ..families.encoders import blocks_of
from ..modules.hooks import (
    casts_weights,
    names_of_hooks,
    offloaded_values,
    refuse_on_disk,
    rehook,
)
from ..prompts.tokens import Tokens
from .states import run_encoder


@contextmanager
def in_float32(encoder: nn.Module) -> Iterator[nn.Module]:
    """The encoder in float32 and eval mode; of a 16-bit one a twin runs, its weights not touched.

    Raises:
        AdapterStateError: It does not run as it was loaded, or no twin can be made of it.
    """
    training = encoder.training
    encoder.eval()
    try:
        refuse_on_disk(encoder)
        ready = _streamed(_twin(encoder)) if any(_narrow(encoder)) else encoder
        _refuse_not_running(ready)
        yield ready
    finally:
        encoder.train(training)


def _refuse_not_running(encoder: nn.Module) -> None:
    """8-bit floats need hooks that widen them, and packed weights may know one dtype only.

    diffusers hangs no such hooks at the layers of some encoders (T5's norms).
    """
    idle = any(map(_bytes, encoder.parameters()))
    packed = any(hasattr(module, "qweight") for module in encoder.modules())
    if not idle and not packed:
        return
    try:
        run_encoder(encoder, Tokens(torch.zeros(1, 1, dtype=torch.long)), last_hidden=False)
    except RuntimeError as error:
        what = "8-bit floats" if idle else "packed weights"
        raise AdapterStateError(
            f"{type(encoder).__name__} holds {what} and does not run with them ({error}); load it "
            "in 32 or 16 bits to erase"
        ) from error


def _twin(encoder: nn.Module) -> nn.Module:
    """Modules and hooks of its own, the weights are the encoder's.

    Wherever they lie, no second copy is made.
    """
    maps = map(offloaded_values, encoder.modules())
    hook = getattr(encoder, "_hf_hook", None)
    offload = hook if isinstance(hook, CpuOffload) else None  # which holds the model before it, too
    shared = [*encoder.parameters(), *encoder.buffers(), *maps, offload]
    try:
        twin = copy.deepcopy(encoder, {id(x): x for x in shared if x is not None})
    except Exception as error:  # whatever a hook of somebody else's raises
        hooks = ", ".join(names_of_hooks(encoder)) or "a module"
        raise AdapterStateError(
            f"{type(encoder).__name__} has 16-bit weights and hooks that cannot be copied "
            f"({hooks}: {error}); erase before they are added (as by group offloading), or in "
            "float32"
        ) from error
    if offload:
        twin._hf_hook = Following(offload, encoder)
    return twin


class Following(CpuOffload):
    """Model offload of a twin.

    A copy of the encoder's hook would move the weights, which both share, and leave its buffers.
    """

    def __init__(self, hook: CpuOffload, encoder: nn.Module) -> None:
        super().__init__(hook.execution_device)
        self.hook, self.encoder = hook, encoder

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = self.hook.pre_forward(self.encoder, *args, **kwargs)
        for ours, theirs in zip(module.modules(), self.encoder.modules(), strict=True):
            ours._buffers.update(theirs._buffers)
        return given


def _streamed(twin: nn.Module) -> nn.Module:
    """Runs in float32: 16-bit weights are widened for the time their block runs.

    Outside the blocks, for the time their leaf does; of an embedding only the rows that it gives.
    So are 8-bit floats that a hook of diffusers would cast.
    """
    cast: set[nn.Module] = set()
    for module in twin.modules():
        if casts_weights(module):
            cast |= {*module.modules()}
    rehook(twin)
    blocks = list(blocks_of(twin))
    inside = {m for block in blocks for m in block.modules()}
    leaves = [m for m in twin.modules() if m not in inside and not any(m.children())]
    for part in (*blocks, *leaves):
        narrow = [*_narrow(part, cast)]
        if type(part) is nn.Embedding and part.weight.itemsize == 2:
            part.register_forward_hook(lambda _module, _ids, rows: rows.float())
        elif narrow:
            part.register_forward_pre_hook(lambda *_, narrow=narrow: _widen(narrow))
            part.register_forward_hook(lambda *_, narrow=narrow: _put_back(narrow))
    return twin


def _bytes(x: Tensor) -> bool:
    return x.is_floating_point() and x.itemsize == 1


def _narrow(
    root: nn.Module, cast: Container[nn.Module] = ()
) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Plain 16-bit parameters and buffers: who holds them, by which name.

    And 8-bit floats of modules in `cast`. Quantised ones compute in the dtype of their input.
    """
    for module in root.modules():
        stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for held in stores:
            for name, value in held.items():
                if type(value) not in (nn.Parameter, Tensor):
                    continue
                half = value.dtype in (torch.float16, torch.bfloat16)
                if half or (module in cast and _bytes(value)):
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
