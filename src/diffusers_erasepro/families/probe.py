"""Records proposed for a pipeline that has none, by looking at it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .encode_prompt import call_arguments
from .types import LAST, POOLED, EncoderFamily, PipelineFamily, Reading, Use


class Proposal(NamedTuple):
    """Records for a pipeline that has none, made by looking; read them before you `register` them."""

    pipeline: PipelineFamily
    encoders: tuple[EncoderFamily, ...]


@torch.no_grad()
def propose_records(pipe: Any) -> Proposal:
    """Propose records for `pipe`: its encoders' blocks and writers by shape, and what `encode_prompt` returns of them.

    Readers and the reach of the stock loader cannot be seen from outside; they are left empty.
    """
    names = [
        n
        for n, m in pipe.components.items()
        if n.startswith("text_encoder") and isinstance(m, nn.Module)
    ]
    heard: dict[str, Any] = {}

    def ask(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"output_hidden_states": True}

    handles = [getattr(pipe, n).register_forward_pre_hook(ask, with_kwargs=True) for n in names]
    handles += [
        getattr(pipe, n).register_forward_hook(lambda _, __, out, n=n: heard.__setitem__(n, out))
        for n in names
    ]
    try:
        found = pipe.encode_prompt(**call_arguments(pipe, ["a star"], False))
    finally:
        for handle in handles:
            handle.remove()
    returned = [x[0] for x in found if x is not None and len(x)]
    uses = [
        Use(n, n.replace("text_encoder", "tokenizer"), _readings(heard[n], returned))
        for n in names
        if n in heard
    ]
    denoiser = next((n for n in ("transformer", "unet") if n in pipe.components), "")
    encoders = tuple(_proposed(getattr(pipe, use.encoder)) for use in uses)
    return Proposal(PipelineFamily((type(pipe).__name__,), tuple(uses), denoiser), encoders)


def _readings(output: Any, returned: Sequence[Tensor]) -> tuple[Reading, ...]:
    """Which fields of an encoder's output are among the tensors returned, looked for by one row of each."""
    count = len(output.hidden_states) - 1
    inner = [Reading("hidden_states", i - count - 1) for i in range(1, count + 1)]
    closing = [LAST] if "last_hidden_state" in output else inner[-1:]
    wanted = [*inner[:-1], *closing, *(Reading(name) for name in POOLED if name in output)]
    return tuple(
        r
        for r in wanted
        if any(x.ndim == 2 - r.pooled and _holds(x, r.of(output)[0]) for x in returned)
    )


def _holds(returned: Tensor, states: Tensor) -> bool:
    """Whether a row of `returned` begins or ends with, or stacks, some row of `states` that is not padding: any will do."""
    width = states.shape[-1]
    if not returned.is_floating_point() or returned.shape[-1] < width:
        return False
    rows = returned.reshape(-1, returned.shape[-1])
    parts = rows.unfold(
        1, width, width if rows.shape[1] % width == 0 else rows.shape[1] - width
    ).reshape(-1, width)
    return bool(
        (
            torch.cdist(states.double(), parts.double())
            < 1e-6 * (1 + states.double().norm(dim=1))[:, None]
        ).any()
    )


def _proposed(encoder: nn.Module) -> EncoderFamily:
    lists = {
        n: m
        for n, m in encoder.named_modules()
        if isinstance(m, nn.ModuleList) and len(m) > 1 and "vis" not in n
    }
    path = max(lists, key=lambda n: sum(p.numel() for p in lists[n].parameters()))
    block = lists[path][0]
    linears = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
    width = next(m for m in encoder.modules() if isinstance(m, nn.Embedding)).embedding_dim
    writers = [
        n for n, m in linears.items() if m.out_features == width and _writes(encoder, block, m)
    ]
    causal = torch.allclose(_stream(encoder, block, 1, 2)[0], _stream(encoder, block, 1, 3)[0])
    return EncoderFamily(
        (type(encoder).__name__,), (path,), writers[-1] if writers else None, tuple(linears), causal
    )


def _stream(encoder: nn.Module, block: nn.Module, *ids: int) -> Tensor:
    """`(n, d)` what a block gives for n token ids; 0 may be padding, which some embed as zeros."""
    seen: list[Tensor] = []
    handle = block.register_forward_hook(
        lambda _, __, out: seen.append(out if isinstance(out, Tensor) else out[0])
    )
    try:
        encoder(torch.tensor([ids], device=next(encoder.parameters()).device))
    finally:
        handle.remove()
    return seen[0][0]


def _writes(encoder: nn.Module, block: nn.Module, linear: nn.Module) -> bool:
    """Whether the linear's output is added to the block's as it is: no norm follows, and nothing else in the block reads it."""
    before = _stream(encoder, block, 1, 2)
    amount = before.abs().max()  # as large as the stream, so that 16 bits see it
    handle = linear.register_forward_hook(lambda _, __, out: out + amount)
    try:
        after = _stream(encoder, block, 1, 2)
    finally:
        handle.remove()
    return bool(((after - before) / amount - 1).abs().max() < 0.05)
