"""Target and anchor prompts as one batch; of a causal encoder as trees, where what several begin with is run once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from .tokens import Tokens, join_tokens

Ids = tuple[int, ...]
UNSEEN = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Batch:
    """What the encoder runs, and where the positions of every pair of prompts are found among those of all its rows."""

    tokens: Tokens
    half: int
    """Its first so many rows are of targets, the others of anchors."""
    target_at: Tensor
    """`(n, length)`"""
    anchor_at: Tensor
    """`(n, length)`"""
    pooled_at: Tensor
    """`(2, n)` where a pooled reading has the vector of each target, and of each anchor."""


def as_rows(targets: Tokens, anchors: Tokens, length: int | None = None) -> Batch:
    """Every prompt a row, an anchor once; cut to `length` where one is given, which is allowed where attention is causal."""
    distinct, of = anchors.unique()
    tokens = join_tokens([targets, distinct]).trimmed()
    tokens = tokens if length is None else tokens.cut(length)
    at = torch.arange(tokens.ids.numel()).reshape(tokens.ids.shape)
    row = torch.arange(len(tokens))
    pooled = torch.stack([row[: len(targets)], row[len(targets) :][of]])
    return Batch(tokens, len(targets), at[: len(targets)], at[len(targets) :][of], pooled)


def as_trees(targets: Tokens, anchors: Tokens, needed: Tensor, ends: Tensor | None = None) -> Batch:
    """Prompts that begin alike share those positions, and each sees its own beginning alone.

    Sorted prompts fill one tree after the other; what the next tree shares with the last is run again in it. All have one
    size, no longer than a prompt may be: the one that leaves least of them empty.

    Args:
        targets, anchors: `(n, length)` each, without masks; attention is causal.
        needed: `(2, n)` how many positions of each target, and of each anchor.
        ends: `(2, n)` the position where each is pooled, if it is; needed too.
    """
    ends = torch.zeros_like(needed) if ends is None else ends
    needed = needed.maximum(ends + 1)
    halves, most = [_cut(targets, needed[0]), _cut(anchors, needed[1])], targets.ids.shape[1]
    prompts = [sorted({*half}) for half in halves]
    sizes = range(max(len(prompt) for half in prompts for prompt in half), most + 1)
    shared = [[_shared(*both) for both in zip([(), *half], half, strict=False)] for half in prompts]
    size = min(
        sizes,
        key=lambda size: (
            size * sum(len(_filled(*half, size)) for half in zip(prompts, shared, strict=True))
        ),
    )
    trees = [
        [_grown(tree, size) for tree in _filled(*half, size)]
        for half in zip(prompts, shared, strict=True)
    ]
    tokens = Tokens(
        *(torch.cat(x) for x in zip(*(tree[:3] for half in trees for tree in half), strict=True))
    )
    target_at, anchor_at = (
        _found(*x, size, most) for x in zip(halves, trees, (0, len(trees[0])), strict=True)
    )
    pooled = torch.stack(
        [
            at.gather(1, end[:, None])[:, 0]
            for at, end in zip((target_at, anchor_at), ends, strict=True)
        ]
    )
    return Batch(tokens, len(trees[0]), target_at, anchor_at, pooled)


def _cut(tokens: Tokens, needed: Tensor) -> list[Ids]:
    return [tuple(ids[:k]) for ids, k in zip(tokens.ids.tolist(), needed.tolist(), strict=True)]


def _shared(one: Ids, other: Ids) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _filled(prompts: Sequence[Ids], shared: Sequence[int], size: int) -> list[list[Ids]]:
    """Sorted prompts, tree after tree: of each, only what it does not share with the one before takes room."""
    trees, room = [list[Ids]()], size
    for prompt, same in zip(prompts, shared, strict=True):
        room -= len(prompt) - same
        if room < 0:
            trees.append([])
            room = size - len(prompt)
        trees[-1].append(prompt)
    return trees


Tree = tuple[Tensor, Tensor, Tensor, dict[Ids, list[int]]]
"""Ids `(1, size)`, mask `(1, 1, size, size)` and positions `(1, size)` for the encoder, and where those of each prompt went."""


def _grown(prompts: Sequence[Ids], size: int) -> Tree:
    """Sorted prompts in one tree."""
    ids, positions = torch.zeros(2, 1, size, dtype=torch.long)
    sees, paths, taken = torch.eye(size, dtype=torch.bool), dict[Ids, list[int]](), 0
    for before, prompt in zip([(), *prompts], prompts, strict=False):
        same = _shared(before, prompt)
        new = slice(taken, taken := taken + len(prompt) - same)
        paths[prompt] = path = [*paths.get(before, [])[:same], *range(size)[new]]
        ids[0, new], positions[0, new] = (
            torch.tensor(prompt[same:]),
            torch.arange(same, len(prompt)),
        )
        sees[new, path] = torch.ones(len(prompt), len(prompt), dtype=torch.bool).tril()[same:]
    return ids, torch.where(sees, 0.0, UNSEEN)[None, None], positions, paths


def _found(
    prompts: Sequence[Ids], trees: Sequence[Tree], first: int, size: int, most: int
) -> Tensor:
    """`(n, most)` where the positions of each prompt are; `first` counts the trees before these."""
    at = {
        ids: [i * size + k for k in path]
        for i, tree in enumerate(trees, first)
        for ids, path in tree[3].items()
    }
    return torch.tensor([at[ids] + [0] * (most - len(ids)) for ids in prompts])
