"""What a base model's layers usually receive: one covariance per site, cached by content."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..config.everyday import everyday_captions
from ..config.spec import ErasureSpec
from ..config.words import count_noun
from ..errors import ConceptSpecError
from ..families.types import LAST, Reading
from ..linalg.constrained import cholesky
from ..modules.hooks import has_hooks_of_others, refuse_uncalled
from ..modules.linear import base_linear, device_of
from ..prompts.tokens import TextPath, Tokens
from .disk_cache import read_cached, write_cached
from .sites.protocol import STATES
from .states import reading_states, run_encoder

CACHE_BYTES = 2 << 30
"""Of CLIP-L's fc2 one matrix takes 75 MB."""
PLENTY = 10
"""Positions of captions for each dimension of a linear from which on a regression of some of its
inputs on the others needs hardly a ridge."""
RIDGE_OF_PLENTY = 1e-4
"""The ridge then. In MiniLM's first block the loss of four neurons moves captions a third as far
as with 0.01, and other texts too."""
_moments: OrderedDict[tuple[Hashable, str], Tensor] = OrderedDict()


class _AllReceived(Exception):
    """Raised where the last of the layers is reached: deeper blocks need not run."""


@contextmanager
def record_inputs(sites: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collect what each named layer receives; every hook is gone afterwards."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _, args: seen.__setitem__(name, args[0].detach())

    handles = [m.register_forward_pre_hook(keep(name)) for name, m in sites.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def inputs_received(
    encoder: nn.Module, tokens: Tokens, sites: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    """`(n, length, d_in)` what each named layer receives; blocks behind the last need not run."""
    # offloading moves weights back once a module has run
    whole = any(hasattr(module, "_hf_hook") for module in encoder.modules())

    def stop(*_: object) -> None:
        if not whole and len(seen) == len(sites):
            raise _AllReceived

    with record_inputs(sites) as seen:
        handles = [module.register_forward_pre_hook(stop) for module in sites.values()]
        try:
            run_encoder(encoder, tokens, last_hidden=False)
        except _AllReceived:
            pass
        finally:
            for handle in handles:
                handle.remove()
    return seen


@torch.no_grad()
def second_moments(
    encoder: nn.Module,
    tokens: Tokens,
    sites: Mapping[str, nn.Module],
    *,
    key: str,
    states: Reading | None = LAST,
    on_disk: bool = False,
) -> dict[str, Tensor]:
    """`K K' / m (d_in, d_in)` in float64 of what every site receives, and of `states`.

    These go by the name "states"; where None are asked for, blocks behind the last site need not
    run. Every position counts that the denoiser reads, the padding too unless a mask hides it.

    Args:
        encoder: Runs unedited on `ids`.
        tokens: The preserve captions.
        sites: The linears to watch, by name.
        key: Fingerprint of the encoder; with the tokens and the names it is the key of a small
            cache.
        states: What is read of the encoder's output.
        on_disk: Keep them for other processes (`disk_cache`), with the same bits.
    """
    content = _content(tokens, key, states)
    on_disk = on_disk and not has_hooks_of_others(encoder)

    def make(missing: Mapping[str, nn.Module]) -> Iterable[tuple[str, Tensor]]:
        if not on_disk:
            return _recorded(encoder, tokens, missing, states).items()
        attention = getattr(encoder.config, "_attn_implementation", None)
        where = repr((content, device_of(encoder).type, attention))
        names = _names(missing, states)
        found = read_cached(where, names)
        if lacking := {*names} - {*found}:
            sites = {name: module for name, module in missing.items() if name in lacking}
            made = _recorded(encoder, tokens, sites, states if STATES in lacking else None)
            write_cached(where, {name: made[name] for name in sorted(lacking)})
            found = made | found
        return found.items()

    return _remembered(content, _names(sites, states), sites, make)


def _names(sites: Iterable[str], states: Reading | None) -> tuple[str, ...]:
    """Of all that is asked for."""
    return tuple(sites) if states is None else (*sites, STATES)


def _recorded(
    encoder: nn.Module, tokens: Tokens, sites: Mapping[str, nn.Module], states: Reading | None
) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    batches = [batch.trimmed() for batch in tokens.split()]
    for batch in tqdm(batches, desc="statistics", leave=False, delay=2):
        for name, x in _received_with_states(encoder, batch, sites, states).items():
            flat = (x[:, 0] if x.shape[1] == 1 else x[batch.read]).cpu().double()
            sums[name] = sums.get(name, 0) + flat.T @ flat
    refuse_uncalled(encoder, [name for name in sites if name not in sums])
    return {name: total / max(1, int(tokens.read.sum())) for name, total in sums.items()}


def _received_with_states(
    encoder: nn.Module, tokens: Tokens, sites: Mapping[str, nn.Module], states: Reading | None
) -> dict[str, Tensor]:
    if states is None:
        return inputs_received(encoder, tokens, sites)
    with record_inputs(sites) as seen, reading_states(encoder, [states]) as read:
        (seen[STATES],) = read(tokens)
    return seen


def metrics(
    encoder: nn.Module,
    lists: Sequence[Tokens],
    without: Tokens,
    empty: Tokens,
    sites: Mapping[str, nn.Module],
    *,
    key: str,
    ridge: float,
    states: Reading | None = LAST,
) -> dict[str, Tensor]:
    """The metric of every site, and of "states" where some are read, as its Cholesky factor.

        C = K K'/m + K0 K0'/m0 + ridge mean(diag) I = L L'

    K holds the inputs of the preserve captions, K0 those of the empty prompt: classifier-free
    guidance reads it at every step of every image, so it weighs as much as all captions together.
    Directions that neither uses stay cheap to change, but not free.

    Args:
        encoder: Runs unedited on the rows.
        lists: The captions to keep. What many specs share is a list of its own, whose statistics
            are computed once for all of them.
        without: Rows of these lists that name a target. Their share is taken out again, so that
            another target costs the rows that name it, not a pass over the list.
        empty: The unconditional prompt.
        sites: The linears to watch, by name.
        key: Fingerprint of the encoder.
        ridge: Share of the identity.
        states: What is read of the encoder's output; None where no site needs it.

    Returns:
        Site -> its lower Cholesky factor L `(d_in, d_in)`, float64. It costs more than a solve, so
        it is cached too.
    """
    content = (*(_content(rows, key, states) for rows in (*lists, without, empty)), ridge)
    counts = [int(rows.read.sum()) for rows in lists]
    count = sum(counts)
    less = int(without.read.sum())

    def factors(missing: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
        def moments(rows: Tokens, *, on_disk: bool = False) -> dict[str, Tensor]:
            return second_moments(encoder, rows, missing, key=key, states=states, on_disk=on_disk)

        every = [moments(rows, on_disk=True) for rows in lists]
        unconditional = moments(empty)
        named = moments(without) if less else dict.fromkeys(unconditional, 0.0)
        for name in unconditional:
            # in place: T5-XXL's take 840 MB each
            C = counts[0] * every[0][name]
            for some, found in zip(counts[1:], every[1:], strict=True):
                C.add_(found[name], alpha=some)
            C.sub_(less * named[name]).div_(count - less)
            ridged = ridge * C.diagonal().mean()
            C.add_(unconditional[name]).diagonal().add_(ridged)
            yield name, cholesky(C, name)

    return _remembered(content, _names(sites, states), sites, factors)


def metrics_of(
    encoder: nn.Module,
    path: TextPath,
    spec: ErasureSpec,
    linears: Mapping[str, nn.Module],
    *,
    key: str,
    ridge: float,
    states: Reading | None = LAST,
    for_regression: bool = False,
) -> dict[str, Tensor]:
    """`metrics` of what a spec keeps.

    Args:
        encoder: Runs unedited.
        path: Tokenizes the captions.
        spec: Says what is kept.
        linears: Those to watch, by name.
        key: Fingerprint of the encoder.
        ridge: Share of the identity.
        states: What is read of the encoder's output; None where nothing is.
        for_regression: The metric shall say how well some inputs of a linear replace others, not
            what may be changed; then the share is smaller where there are captions enough.

    Raises:
        ConceptSpecError: It keeps too few captions for a covariance.
    """
    every = spec.every_caption()
    kept = spec.preserve_captions()
    if not kept:
        raise ConceptSpecError(
            "no preserve caption is left once those that name a target are taken out; give others"
        )
    if 2 * len(kept) < len(every):
        every = kept
    named = sorted(set(every) - set(kept))
    lists = _split(every, spec)
    tokens = path.tokens([*chain(*lists, named)])
    found = []
    start = 0
    for some in lists:
        rows = tokens[start : start + len(some)]
        # so that what a list is padded to does not depend on the others
        found.append(rows.trimmed() if len(lists) > 1 else rows)
        start += len(some)
    without = tokens[start:]
    count = sum(int(rows.read.sum()) for rows in found) - int(without.read.sum())
    width = _enough(kept, count, linears)
    if for_regression and count >= PLENTY * width:
        ridge = min(ridge, RIDGE_OF_PLENTY)
    return metrics(
        encoder,
        found,
        without,
        path.empty(),
        linears,
        key=key,
        ridge=ridge,
        states=states,
    )


def _split(captions: Sequence[str], spec: ErasureSpec) -> list[list[str]]:
    """The captions of a spec: apart those that it shares with others, which name no concept.

    These are its preserve list, or the shipped everyday captions where it keeps them all.
    """
    shared = dict.fromkeys(everyday_captions())
    if spec.preserve is not None and not spec.everyday:
        shared = dict.fromkeys(spec.preserve)
    if not {*shared} <= {*captions}:
        return [[*captions]]
    others = [text for text in captions if text not in shared]
    return [some for some in (others, [*shared]) if some]


def _enough(captions: Sequence[str], rows: int, linears: Mapping[str, nn.Module]) -> int:
    """The width of the widest linear, for which there are rows enough.

    Fewer rows than dimensions are no covariance: whole directions would be free to change.

    Raises:
        ConceptSpecError: There are fewer.
    """
    widths: dict[str, Any] = {n: base_linear(m).in_features for n, m in linears.items()} or {
        "the reader": 0
    }
    name = max(widths, key=widths.__getitem__)
    width = int(widths[name])
    if rows < width:
        raise ConceptSpecError(
            f"the captions to preserve that name no target ({len(captions)}) give the metric "
            f"{count_noun(rows, 'row')}, {name} needs {width}; give about "
            f"{-(-width * len(captions) // rows)} captions, or metric='identity'"
        )
    return width


def kept_inputs(
    encoder: nn.Module, path: TextPath, spec: ErasureSpec, linears: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    """What every site, and "states", receives at the prompts to keep; nothing there may change."""
    if not spec.keep:
        return {}
    tokens = path.tokens(spec.keep)
    states = path.use.readings[0]
    with record_inputs(linears) as seen, reading_states(encoder, [states]) as read:
        (seen[STATES],) = read(tokens)
    return {
        name: (x[tokens.read].T if x.shape[1] > 1 else x[:, 0].T).cpu() for name, x in seen.items()
    }


def _content(tokens: Tokens, key: str, states: Reading | None) -> str:
    digest = hashlib.sha256(repr((key, str(states), tokens.ids.shape)).encode())
    norm = []
    if states is not None and states.through is not None:
        norm = [states.through.weight.float()]
    for part in (tokens.ids, tokens.read, *norm):
        digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()


def _remembered(
    content: Hashable,
    names: Sequence[str],
    sites: Mapping[str, nn.Module],
    make: Callable[[Mapping[str, nn.Module]], Iterable[tuple[str, Tensor]]],
) -> dict[str, Tensor]:
    """What `make` gives by name; sites seen with this content are remembered."""
    found = {name: _moments[content, name] for name in names if (content, name) in _moments}
    if len(found) < len(names):
        found |= make({name: module for name, module in sites.items() if name not in found})
    for name in names:
        _moments[content, name] = found[name]
        _moments.move_to_end((content, name))
    while sum(m.nbytes for m in _moments.values()) > CACHE_BYTES and len(_moments) > len(names):
        _moments.popitem(last=False)
    return {name: found[name] for name in names}
