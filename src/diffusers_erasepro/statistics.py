"""What a base model's layers usually receive: one covariance per site, cached by content."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .solve import cholesky

BATCH = 64
CACHE_SIZE = 32
"""Matrices; of CLIP-L's fc2 one takes 75 MB."""
STATES = "states"
_cache: OrderedDict[tuple[Hashable, str], Tensor] = OrderedDict()


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
def second_moments(encoder: nn.Module, ids: Tensor, sites: Mapping[str, nn.Module], *, key: str) -> dict[str, Tensor]:
    """`K K' / m (d_in, d_in)` in float64 of every site's inputs over all positions of `ids`, and of the final states.

    The final states go by the name "states". All positions count, the padding too: the denoiser reads them all.

    Args:
        encoder: Runs unedited on `ids`.
        ids: `(n, length)` token ids of the preserve captions.
        sites: The linears to watch, by name.
        key: Fingerprint of the encoder; with the ids and the names it is the key of a small cache.
    """
    return _remembered(_content(ids, key), sites, lambda missing: _recorded(encoder, ids, missing).items())


def _recorded(encoder: nn.Module, ids: Tensor, sites: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    for batch in tqdm(ids.split(BATCH), desc="statistics", leave=False, delay=2):
        with record_inputs(sites) as seen:
            states = encoder(batch.to(_device(encoder))).last_hidden_state
        for name, x in (*seen.items(), (STATES, states)):
            flat = x.reshape(-1, x.shape[-1]).double()
            sums[name] = sums.get(name, 0) + flat.T @ flat
    return {name: total / ids.numel() for name, total in sums.items()}


def metrics(
    encoder: nn.Module, ids: Tensor, without: Tensor, empty: Tensor, sites: Mapping[str, nn.Module], *, key: str, ridge: float
) -> dict[str, Tensor]:
    """The metric of every site and of "states":  C = K K'/m + K0 K0'/m0 + ridge mean(diag) I = L L'.

    K holds the inputs of the preserve captions, K0 those of the empty prompt: classifier-free guidance reads it at
    every step of every picture, so it weighs as much as all captions together. Directions that neither uses stay
    cheap to change, but not free.

    Args:
        encoder: Runs unedited on the rows.
        ids: `(n, length)` token ids of a preserve list.
        without: `(k, length)` rows of that list that name a target. Their share is taken out again, so that another
            target costs the rows that name it, not a pass over the list.
        empty: `(1, length)`.
        sites: The linears to watch, by name.
        key: Fingerprint of the encoder.
        ridge: Share of the identity.

    Returns:
        Site -> its lower Cholesky factor L `(d_in, d_in)`, float64. It costs more than a solve, so it is cached too.
    """
    content = (*(_content(rows, key) for rows in (ids, without, empty)), ridge)

    def factors(missing: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
        every, unconditional = (second_moments(encoder, rows, missing, key=key) for rows in (ids, empty))
        named = second_moments(encoder, without, missing, key=key) if len(without) else dict.fromkeys(every, 0.0)
        for name in every:
            m = (len(ids) * every[name] - len(without) * named[name]) / (len(ids) - len(without))
            C = m + unconditional[name] + ridge * m.diagonal().mean() * torch.eye(len(m), dtype=m.dtype)
            yield name, cholesky(C, name)

    return _remembered(content, sites, factors)


def _content(ids: Tensor, key: str) -> str:
    return hashlib.sha256(ids.cpu().numpy().tobytes() + repr((key, ids.shape)).encode()).hexdigest()


def _remembered(
    content: Hashable, sites: Mapping[str, nn.Module], make: Callable[[Mapping[str, nn.Module]], Iterable[tuple[str, Tensor]]]
) -> dict[str, Tensor]:
    """What `make` gives for each site and for "states", computed only for sites not seen with this content."""
    missing = {name: module for name, module in sites.items() if (content, name) not in _cache}
    if missing or (content, STATES) not in _cache:
        _cache.update({(content, name): made for name, made in make(missing)})
    wanted = [(content, name) for name in (*sites, STATES)]
    for entry in wanted:
        _cache.move_to_end(entry)
    while len(_cache) > max(CACHE_SIZE, len(wanted)):
        _cache.popitem(last=False)
    return {name: _cache[content, name] for content, name in wanted}


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
