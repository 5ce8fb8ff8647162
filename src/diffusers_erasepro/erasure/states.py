"""What a denoiser reads of a text encoder: its states, taken from a running encoder."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm
from transformers.modeling_outputs import BaseModelOutput

from ..families.encoders import blocks_of, embeddings_path, encoder_family_of, final_norm_of
from ..families.types import LAST, Reading
from ..linalg.low_rank import LowRank
from ..modules.linear import (
    base_linear,
    device_of,
    is_compiled,
    output_scale,
    resident_tensor,
)
from ..prompts.tokens import Tokens


def hidden_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The hidden states of a block's output."""
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def reading_states(
    encoder: nn.Module, readings: Sequence[Reading]
) -> Iterator[Callable[[Tokens], list[Tensor]]]:
    """Inside, the function given runs tokens and returns what the denoiser reads.

    Per reading `(n, length, d)`, or `(n, 1, d)` if pooled; of trees, what is pooled is
    `(n, length, d)` too, a vector at every position. Inner states are taken from the blocks:
    transformers notes its `hidden_states` before other hooks have changed them.
    """
    seen: dict[Reading, Tensor] = {}
    blocks = blocks_of(encoder)
    last_hidden = any(reading.index == -1 for reading in readings)

    def keep(which: Reading) -> Callable[..., None]:
        return lambda _, __, output: seen.__setitem__(which, hidden_of(output))

    def inner(reading: Reading) -> Tensor:
        states = seen.pop(reading)
        return apply_final_norm(encoder, states) if reading.final_norm else states

    def read(tokens: Tokens) -> list[Tensor]:
        output = run_encoder(encoder, tokens, last_hidden=last_hidden)
        found = []
        for reading in readings:
            if reading.inner:
                states = inner(reading)
            elif reading.pooled and tokens.positions is not None:
                states = reading.everywhere(encoder, output)
            else:
                states = reading.of(output)
            found.append(reading.received(states))
        return found

    handles = []
    try:
        for reading in readings:
            if reading.inner:
                block = blocks[reading.block(len(blocks))]
                handles.append(block.register_forward_hook(keep(reading)))
        yield read
    finally:
        for handle in handles:
            handle.remove()


def apply_final_norm(encoder: nn.Module, states: Tensor) -> Tensor:
    """What the encoder's final norm makes of the states `(n, length, d)` of an earlier block.

    From its values, wherever they lie: the module itself may be offloaded again by now.
    """
    norm: Any = final_norm_of(encoder)
    weight = resident_tensor(norm, "weight").to(states)
    bias = resident_tensor(norm, "bias").to(states)
    return layer_norm(states, weight.shape, weight, bias, norm.eps)


def run_encoder(encoder: Any, tokens: Tokens, *, last_hidden: bool) -> Any:
    """The encoder's output, without what no pipeline reads: caches and logits."""
    device = device_of(encoder)
    spared = {"use_cache": False, "logits_to_keep": 1}
    known = inspect.signature(encoder.forward).parameters
    arguments: dict[str, Any] = {k: v for k, v in spared.items() if k in known}
    family = encoder_family_of(encoder)
    if family.rows_only:
        table = encoder.get_submodule(embeddings_path(encoder))
        return BaseModelOutput(last_hidden_state=table(tokens.ids.to(device)))
    if family.causal and not family.trees and _hands_on_keywords(known):
        arguments["use_cache"] = False  # a cache would hold the rows that ran before
    if tokens.mask is not None:
        arguments["attention_mask"] = tokens.mask.to(device)
    if tokens.positions is not None:
        arguments["position_ids"] = tokens.positions.to(device)
    if last_hidden:
        arguments["output_hidden_states"] = True
    # compiled code sees no new hook
    eager = torch.compiler.set_stance("force_eager") if is_compiled(encoder) else nullcontext()
    with eager:
        return encoder(tokens.ids.to(device), **arguments)


def _hands_on_keywords(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether a forward hands other keywords on to the model within."""
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


@contextmanager
def edited(root: nn.Module, edits: Mapping[str, LowRank]) -> Iterator[None]:
    """Inside, each named linear of `root` also adds its edit's `B A x`; no weight is touched."""

    def add(factors: LowRank) -> Callable[..., Tensor]:
        return lambda module, args, out: out + output_scale(module) * factors(args[0]).to(out)

    handles = []
    try:
        for name, factors in edits.items():
            handles.append(
                base_linear(root.get_submodule(name)).register_forward_hook(add(factors))
            )
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def states_of(encoder: Any, tokens: Tokens, readings: Sequence[Reading]) -> list[Tensor]:
    """What the denoiser reads, per reading `(n, length, d)`, or `(n, 1, d)` if pooled."""
    with reading_states(encoder, readings) as read:
        parts = [read(part) for part in tokens.split()]
    return [torch.cat(same) for same in zip(*parts, strict=True)]


def final_states(encoder: Any, ids: Tensor) -> Tensor:
    """Last hidden states `(n, length, d)` of plain token ids."""
    if not len(ids):
        return next(encoder.parameters()).new_zeros(0, ids.shape[1], encoder.config.hidden_size)
    return states_of(encoder, Tokens(ids), [LAST])[0]
