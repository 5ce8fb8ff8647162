"""Target and anchor prompts as one batch: rows, or trees that run a common beginning once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

import torch
from torch import Tensor

from .tokens import Tokens, join_tokens

Ids = tuple[int, ...]
MASKED = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Batch:
    """What the encoder runs, and where the positions of every prompt are found among its rows."""

    tokens: Tokens
    half: int
    """Its first so many rows are of targets, the others of anchors."""
    target_at: Tensor
    """`(n, length)` of each pair's target, where its positions are."""
    anchor_at: Tensor
    """`(n, length)` of each pair's anchor."""
    pooled_at: Tensor
    """`(2, n)` where a pooled reading has the vector of each target, and of each anchor."""


@dataclass(frozen=True)
class Tree:
    """Prompts that share their beginnings."""

    ids: Tensor
    """`(1, size)`"""
    mask: Tensor
    """`(1, 1, size, size)` what is added to the attention scores."""
    positions: Tensor
    """`(1, size)` as in their prompts."""
    paths: dict[Ids, list[int]]
    """Where the positions of each prompt went."""


def as_rows(targets: Tokens, anchors: Tokens, length: int | None = None) -> Batch:
    """Every prompt a row, an anchor once.

    Args:
        targets: One per pair.
        anchors: One per pair.
        length: What the rows are cut to, which is allowed where attention is causal.
    """
    distinct, of = anchors.unique()
    tokens = join_tokens([targets, distinct]).trimmed()
    tokens = tokens if length is None else tokens.cut(length)
    at = torch.arange(tokens.ids.numel()).reshape(tokens.ids.shape)
    row = torch.arange(len(tokens))
    half = len(targets)
    pooled = torch.stack([row[:half], row[half:][of]])
    return Batch(tokens, half, at[:half], at[half:][of], pooled)


def as_trees(targets: Tokens, anchors: Tokens, needed: Tensor, ends: Tensor | None = None) -> Batch:
    """Prompts that begin alike share those positions, and each sees its own beginning alone.

    Sorted prompts fill one tree after the other; what the next tree shares with the last is run
    again in it. All have one size, no longer than a prompt may be: the one that leaves least of
    them empty.

    Args:
        targets: `(n, length)`, without masks; attention is causal.
        anchors: `(n, length)`, the same.
        needed: `(2, n)` how many positions of each target, and of each anchor.
        ends: `(2, n)` the position where each is pooled, if it is; needed too.
    """
    ends = torch.zeros_like(needed) if ends is None else ends
    needed = needed.maximum(ends + 1)
    most = targets.ids.shape[1]
    target_ids = _cut(targets, needed[0])
    anchor_ids = _cut(anchors, needed[1])
    halves = [sorted({*target_ids}), sorted({*anchor_ids})]
    size = _best_size(halves, most)
    target_trees = [_grow(part, size) for part in _fill(halves[0], size)]
    anchor_trees = [_grow(part, size) for part in _fill(halves[1], size)]
    trees = [*target_trees, *anchor_trees]
    tokens = Tokens(
        torch.cat([tree.ids for tree in trees]),
        torch.cat([tree.mask for tree in trees]),
        torch.cat([tree.positions for tree in trees]),
    )
    target_at = _locate(target_ids, target_trees, 0, most)
    anchor_at = _locate(anchor_ids, anchor_trees, len(target_trees), most)
    pooled = [
        at.gather(1, end[:, None])[:, 0]
        for at, end in zip((target_at, anchor_at), ends, strict=True)
    ]
    return Batch(tokens, len(target_trees), target_at, anchor_at, torch.stack(pooled))


def _cut(tokens: Tokens, needed: Tensor) -> list[Ids]:
    return [tuple(ids[:k]) for ids, k in zip(tokens.ids.tolist(), needed.tolist(), strict=True)]


def _best_size(halves: Sequence[Sequence[Ids]], most: int) -> int:
    """The size, from the longest prompt to `most`, of which the trees have fewest positions."""
    longest = 0
    for prompts in halves:
        longest = max(longest, *(len(prompt) for prompt in prompts))

    def positions(size: int) -> int:
        return size * sum(len(_fill(prompts, size)) for prompts in halves)

    return min(range(longest, most + 1), key=positions)


def _shared(one: Ids, other: Ids) -> int:
    """How many tokens both begin with."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in same)


def _fill(prompts: Sequence[Ids], size: int) -> list[list[Ids]]:
    """Sorted prompts, tree after tree.

    Of each, only what it does not share with the one before takes room.
    """
    trees: list[list[Ids]] = [[]]
    room = size
    for before, prompt in pairwise([(), *prompts]):
        room -= len(prompt) - _shared(before, prompt)
        if room < 0:
            trees.append([])
            room = size - len(prompt)
        trees[-1].append(prompt)
    return trees


def _grow(prompts: Sequence[Ids], size: int) -> Tree:
    """Sorted prompts in one tree."""
    ids = torch.zeros(1, size, dtype=torch.long)
    positions = torch.zeros(1, size, dtype=torch.long)
    sees = torch.eye(size, dtype=torch.bool)
    paths: dict[Ids, list[int]] = {}
    taken = 0
    for before, prompt in pairwise([(), *prompts]):
        same = _shared(before, prompt)
        new = slice(taken, taken + len(prompt) - same)
        path = [*paths.get(before, [])[:same], *range(size)[new]]
        ids[0, new] = torch.tensor(prompt[same:])
        positions[0, new] = torch.arange(same, len(prompt))
        causal = torch.ones(len(prompt), len(prompt), dtype=torch.bool).tril()
        sees[new, path] = causal[same:]
        paths[prompt] = path
        taken = new.stop
    mask = torch.zeros(1, 1, size, size, dtype=torch.float32).masked_fill(~sees, MASKED)
    return Tree(ids, mask, positions, paths)


def _locate(prompts: Sequence[Ids], trees: Sequence[Tree], first: int, most: int) -> Tensor:
    """`(n, most)` where the positions of each prompt are; `first` counts the trees before these."""
    at: dict[Ids, list[int]] = {}
    for i, tree in enumerate(trees, first):
        size = tree.ids.shape[1]
        for ids, path in tree.paths.items():
            at[ids] = [i * size + k for k in path]
    return torch.tensor([at[ids] + [0] * (most - len(ids)) for ids in prompts])
