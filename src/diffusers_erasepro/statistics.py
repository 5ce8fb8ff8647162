"""What a base model's layers usually receive: one covariance per site, cached by content."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .families import Reading
from .prompts import Tokens
from .walk import run

CACHE_SIZE = 32
"""Matrices; of CLIP-L's fc2 one takes 75 MB."""
STATES = "states"
LAST = Reading("last_hidden_state")
_cache: OrderedDict[tuple[str, str], Tensor] = OrderedDict()


@contextmanager
def record_inputs(sites: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collect what each named layer receives; every hook is gone afterwards."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        return lambda _, args: seen.__setitem__(name, args[0].detach())

    handles = [m.register_forward_pre_hook(keep(name)) for name, m in sites.items()]  # type: ignore[arg-type]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def second_moments(
    encoder: nn.Module, tokens: Tokens, sites: Mapping[str, nn.Module], *, key: str, states: Reading | None = LAST
) -> dict[str, Tensor]:
    """`K K' / m (d_in, d_in)` in float64 of every site's inputs over the positions of `tokens`, and of what is read.

    Every position counts that the denoiser reads: the padding too, unless a mask hides it.

    Args:
        encoder: Runs unedited on `ids`.
        tokens: The preserve captions.
        sites: The linears to watch, by name.
        key: Fingerprint of the encoder; with the tokens and the names it is the key of a small cache.
        states: What readers read of the encoder, which goes by the name "states"; None leaves it out.
    """
    content = hashlib.sha256(repr((key, str(states), tokens.ids.shape)).encode())
    for part in (tokens.ids, tokens.read):
        content.update(part.cpu().numpy().tobytes())
    digest = content.hexdigest()
    names = (*sites, STATES) if states else tuple(sites)
    if missing := [name for name in names if (digest, name) not in _cache]:
        for name, moment in _recorded(encoder, tokens, {n: m for n, m in sites.items() if n in missing}, states).items():
            _cache[digest, name] = moment
    wanted = [(digest, name) for name in names]
    for entry in wanted:
        _cache.move_to_end(entry)
    while len(_cache) > max(CACHE_SIZE, len(wanted)):
        _cache.popitem(last=False)
    return {name: _cache[digest, name] for digest, name in wanted}


def _recorded(
    encoder: nn.Module, tokens: Tokens, sites: Mapping[str, nn.Module], states: Reading | None
) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    deep = states is not None and states.index is not None
    for batch in tqdm(list(tokens.split()), desc="statistics", leave=False, delay=2):
        with record_inputs(sites) as seen:
            output = run(encoder, batch, hidden_states=deep)
        if states:
            seen[STATES] = states.of(output)
        for name, x in seen.items():
            flat = x[batch.read.to(x.device)].double()
            sums[name] = sums.get(name, 0) + flat.T @ flat
    return {name: total / max(1, int(tokens.read.sum())) for name, total in sums.items()}


def metrics(
    encoder: nn.Module, tokens: Tokens, empty: Tokens, sites: Mapping[str, nn.Module], *, key: str, ridge: float,
    states: Reading | None = LAST,
) -> dict[str, Tensor]:
    """The metric of every site and of "states":  C = K K'/m + K0 K0'/m0 + ridge mean(diag) I.

    K holds the inputs of the preserve captions `tokens`, K0 those of the empty prompt: classifier-free guidance reads
    it at every step of every picture, so it weighs as much as all captions together. Directions that neither uses
    stay cheap to change, but not free.
    """
    usual, unconditional = (second_moments(encoder, rows, sites, key=key, states=states) for rows in (tokens, empty))
    return {
        name: m + unconditional[name] + ridge * m.diagonal().mean() * torch.eye(len(m), dtype=m.dtype)
        for name, m in usual.items()
    }
