"""One forward pass, shallow to deep: every site solves on the way through, no weight is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..families.encoders import blocks_of, encoder_family_of
from ..families.types import LAST, Reading
from ..linalg.low_rank import LowRank, stack
from ..modules.hooks import refuse_uncalled
from ..modules.tuners import edited_module
from ..prompts.alignment import Rows
from ..prompts.prefix_tree import Batch, as_rows, as_trees
from ..prompts.tokens import Tokens, join_tokens
from .sites.protocol import INPUT, STATES, Edits, EditSite, inputs_of
from .states import hidden_of, reading_states

PART = 8192
"""Positions that a block runs on at a time. Of T5-XXL at Flux's 512 positions a prompt, attention
scores and MLP take 105 MB a prompt: a hundred at once would be ten gigabytes."""
SOLVED = ("exact", "soft")
"""The kinds of prompts that sites answer for; prompts of other kinds ride along, to be measured."""


@dataclass(frozen=True)
class Step:
    """What happened at one site of the walk."""

    site: EditSite
    edits: Edits
    keys: Mapping[str, Tensor]
    """By linear, or `STATES`: `(d_in, n)` in float64, the inputs at the exact positions, in the
    edited stream."""
    gap: float
    """Mean ||anchor - target|| / ||anchor|| at the exact positions, before this site's edit; at the
    soft ones where there are no others."""


@dataclass(frozen=True)
class Walk:
    """What a walk leaves behind."""

    steps: list[Step]
    """One per site, shallow to deep."""
    states: dict[str, list[tuple[Tensor, Tensor]]]
    """Per kind of rows, per reading: edited target states and anchor states, `(k, d)` at the
    aligned positions, or `(n, d)` if pooled."""

    def edits_of(self, component: str) -> dict[str, LowRank]:
        """The edits of one component's linears; one that several sites change gets all of them."""
        found: dict[str, list[LowRank]] = {}
        for step in self.steps:
            if step.site.component == component:
                for linear, factors in step.edits.factors.items():
                    found.setdefault(linear, []).append(factors)
        return {linear: stack(parts) for linear, parts in found.items()}


@torch.no_grad()
def walk(
    encoder: Any,
    rows: Mapping[str, Rows],
    sites: Sequence[EditSite],
    readings: Sequence[Reading] = (LAST,),
) -> Walk:
    """Run targets and anchors side by side through `encoder`, and solve at each site on the way.

    Where the module `site.output` has run, the target rows' output is `h` and the anchor rows' is
    `h0`; the site's edits must add `h0 - h` at the aligned positions of the "exact" rows, and would
    at those of the "soft" rows. The target rows then go on with the output that the edited weights
    would give, so that the next site sees the edited stream. Rows of other kinds only ride along,
    to be measured at the end.

    Where attention is causal, what comes after the last aligned position matters to none, and is
    cut; of encoders that run as trees (`prompts.prefix_tree`) what several prompts begin with is
    run once.

    Raises:
        IllPosedError: From a site's solve. No hook is left behind.
    """
    run = _Run(encoder, rows, batch_of(encoder, rows, sites, readings))
    outputs: dict[str, list[EditSite]] = {}
    for site in sites:
        outputs.setdefault(site.output, []).append(site)
    behind = outputs.pop(STATES, [])
    # states are read last, so that those hooks see the edited stream
    with (
        run.hooks(outputs),
        _in_parts(encoder, outputs),
        reading_states(encoder, readings) as read,
    ):
        states = read(run.batch.tokens)
    solved = {step.site.output for step in run.steps}
    missed = [name.removesuffix(INPUT) for name in outputs if name not in solved]
    refuse_uncalled(encoder, missed)
    found = {kind: run.read(kind, readings, states) for kind in rows}
    whole = next((i for i, reading in enumerate(readings) if not reading.pooled), 0)
    for site in behind:
        run.solve(site, states[whole], {STATES: states[whole]})
    return Walk(run.steps, found)


class _Run:
    """The state of one walk: its batch, and what the hooks have seen and solved so far."""

    def __init__(self, encoder: nn.Module, rows: Mapping[str, Rows], batch: Batch) -> None:
        self.encoder = encoder
        self.rows = rows
        self.batch = batch
        self.steps: list[Step] = []
        self.seen: dict[str, list[Tensor]] = {}
        self.first: dict[str, int] = {}
        count = 0
        for kind, found in rows.items():
            self.first[kind] = count
            count += len(found)

    @contextmanager
    def hooks(self, outputs: Mapping[str, Sequence[EditSite]]) -> Iterator[None]:
        """Inside, inputs are collected and every site solves where its output has run."""
        every: list[EditSite] = []
        for sites in outputs.values():
            every += sites
        handles = []
        try:
            for name in inputs_of(every):
                module = edited_module(self.encoder, name)
                handles.append(module.register_forward_pre_hook(self._keeper(name)))
            for name, sites in outputs.items():
                module = self.encoder.get_submodule(name.removesuffix(INPUT))
                if name.endswith(INPUT):
                    handles.append(module.register_forward_pre_hook(self._solver_before(sites)))
                else:
                    handles.append(module.register_forward_hook(self._solver(sites)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keeper(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        """A hook that notes what a module receives, some rows after the others."""

        def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.seen.setdefault(name, []).append(args[0])

        return keep

    def _solver(self, sites: Sequence[EditSite]) -> Callable[..., object]:
        """A hook that solves the sites of one output, one after the other."""

        def hook(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> object:
            out = self._solve_all(sites, hidden_of(output))
            return out if isinstance(output, Tensor) else (out, *output[1:])

        return hook

    def _solver_before(self, sites: Sequence[EditSite]) -> Callable[..., object]:
        """The same for sites that close the gap of what a module receives."""

        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> object:
            return (self._solve_all(sites, args[0]), *args[1:])

        return hook

    def _solve_all(self, sites: Sequence[EditSite], out: Tensor) -> Tensor:
        """`out` once the sites that close its gap are solved."""
        names = inputs_of(sites)
        refuse_uncalled(self.encoder, [name for name in names if name not in self.seen])
        inputs = {name: torch.cat(self.seen.pop(name)) for name in names}
        for site in sites:
            out = self.solve(site, out, inputs)
        return out

    def solve(self, site: EditSite, out: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Solve one site, note the step, and return the output as it will be.

        Args:
            site: Its inputs and its output are known.
            out: `(rows, length, d)`
            inputs: By module, `(rows, length, d_in)`; those that the edits change are replaced.
        """
        half = self.batch.half
        positions = {k: rows for k, rows in site.positions.items() if k in self.rows}
        seen = {}
        for name in site.inputs:
            seen[name] = {k: self.pair(inputs[name], k, positions[k])[0] for k in positions}
        gap = {}
        goals = {}
        for kind, rows in positions.items():
            have, goals[kind] = self.pair(out, kind, rows)
            gap[kind] = goals[kind] - have
        lacking = {kind: gap[kind].norm(dim=-1) / goals[kind].norm(dim=-1) for kind in gap}
        # synonyms have no exact positions of their own
        asked = lacking["exact"] if len(lacking["exact"]) else torch.cat(list(lacking.values()))
        edits = site.solve(seen, gap)
        targets, changed = site.apply(
            out[:half], {name: inputs[name][:half] for name in site.inputs}, edits
        )
        keys = {name: key.double() for name, key in edits.keys.items()}
        for name, x in changed.items():
            inputs[name] = torch.cat([x, inputs[name][half:]])
            if name in edits.factors:
                keys[name] = self.pair(inputs[name], "exact", positions["exact"])[0].T.double()
        self.steps.append(Step(site, edits, keys, float(asked.mean())))
        return torch.cat([targets, out[half:]])

    def pair(self, out: Tensor, kind: str, rows: Rows) -> tuple[Tensor, Tensor]:
        """What stands at the aligned positions of targets and of anchors, `(k, d)` each.

        On the CPU, which solves.
        """
        at = rows.row + self.first[kind]
        flat = out.flatten(0, 1)
        targets = self.batch.target_at[at, rows.target_at]
        anchors = self.batch.anchor_at[at, rows.anchor_at]
        return flat[targets].cpu(), flat[anchors].cpu()

    def read(
        self, kind: str, readings: Sequence[Reading], states: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Per reading, what the denoiser reads of the targets and of their anchors."""
        found = []
        for reading, state in zip(readings, states, strict=True):
            if reading.pooled:
                some = slice(self.first[kind], self.first[kind] + len(self.rows[kind]))
                targets, anchors = self.batch.pooled_at[:, some]
                flat = state.flatten(0, 1)
                found.append((flat[targets].cpu(), flat[anchors].cpu()))
            else:
                found.append(self.pair(state, kind, self.rows[kind]))
        return found


def batch_of(
    encoder: nn.Module,
    rows: Mapping[str, Rows],
    sites: Sequence[EditSite],
    readings: Sequence[Reading],
) -> Batch:
    """Targets and anchors as they are run, up to the last position that anyone asks for."""
    targets = join_tokens([found.target for found in rows.values()])
    anchors = join_tokens([found.anchor for found in rows.values()])
    needed = torch.cat([_needed(kind, found, sites) for kind, found in rows.items()], 1)
    if runs_trees(encoder) and targets.mask is None:
        pooled = any(r.pooled for r in readings)
        ends = _ends(encoder, targets, anchors) if pooled else None
        return as_trees(targets, anchors, needed, ends)
    causal = encoder_family_of(encoder).causal
    return as_rows(targets, anchors, int(needed.max()) if causal else None)


def _needed(kind: str, rows: Rows, sites: Sequence[EditSite]) -> Tensor:
    """`(2, n)` tokens of each target and each anchor up to the last that is needed."""
    asked = [rows, *(site.positions[kind] for site in sites if kind in site.positions)]
    return torch.stack([found.needed for found in asked]).amax(0)


def _ends(encoder: Any, *halves: Tokens) -> Tensor:
    """`(2, n)` where CLIP pools: at its first EOS.

    Or at the highest id, where an old config calls EOS 2 (transformers 5.23).
    """
    eos = encoder.config.eos_token_id
    found = []
    for half in halves:
        ends = half.ids if eos == 2 else (half.ids == eos).int()
        found.append(ends.argmax(1))
    return torch.stack(found)


def runs_trees(encoder: Any) -> bool:
    """Whether prompts may share positions.

    Not in an attention without free masks, nor in 8-bit floats, which run in a precision of their
    own.
    """
    free = getattr(encoder.config, "_attn_implementation", None) in ("eager", "sdpa")
    narrow = any(p.is_floating_point() and p.itemsize == 1 for p in encoder.parameters())
    return encoder_family_of(encoder).trees and free and not narrow


@contextmanager
def _in_parts(encoder: nn.Module, outputs: Mapping[str, Sequence[EditSite]]) -> Iterator[None]:
    """Inside, every block runs on `PART` positions at a time, and on equal rows once.

    Unless a site's output lies within the block, so that it needs all rows there. What enters an
    edited layer of the block is noted row by row, so that equal rows run there too.
    """
    closing = {encoder.get_submodule(name.removesuffix(INPUT)) for name in outputs}
    noted: set[nn.Module] = set()
    for sites in outputs.values():
        noted |= {encoder.get_submodule(name) for name in inputs_of(sites) if name != STATES}
    parted = [block for block in blocks_of(encoder) if not closing & ({*block.modules()} - {block})]
    own = {block: vars(block).get("forward") for block in parted}  # where offloading hangs its own
    try:
        for block in parted:
            run = partial(_by_parts, block.forward)
            noting = bool(noted & {*block.modules()})
            vars(block)["forward"] = run if noting else partial(_without_repeats, run)
        yield
    finally:
        for block, forward in own.items():
            vars(block).pop("forward", None)
            if forward is not None:
                vars(block)["forward"] = forward


def _without_repeats(forward: Callable[..., Any], hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    """What `forward` makes of `hidden (n, length, d)`, rows that are equal bit by bit run once.

    A name whose rows of the embedding are the anchor's is such a row, and so are prompts with the
    same anchor: at T5-XXL's size each takes minutes.
    """
    rows = len(hidden)
    flat, tree = tree_flatten(((hidden, *args), kwargs))
    first, place = _repeats([x for x in flat if _per_row(x, rows)])
    if len(first) == rows:
        return forward(hidden, *args, **kwargs)
    given, named = tree_unflatten([x[first] if _per_row(x, rows) else x for x in flat], tree)
    leaves, made = tree_flatten(forward(*given, **named))
    if len(first) == 1:  # one row is what all rows get; expanding copies nothing
        every = [x.expand(rows, *x.shape[1:]) if _per_row(x, 1) else x for x in leaves]
    else:
        every = [x[place] if _per_row(x, len(first)) else x for x in leaves]
    return tree_unflatten(every, made)


def _repeats(each: Sequence[Tensor]) -> tuple[list[int], list[int]]:
    """The first of all rows that are equal in every tensor, and which of these each row equals."""
    # of bytes: a sum of floats depends on where a row lies
    sums = torch.stack([x.flatten(1).contiguous().view(torch.uint8).sum(1) for x in each], 1)
    found: dict[tuple[int, ...], list[int]] = {}
    first: list[int] = []
    place: list[int] = []
    for row, key in enumerate(map(tuple, sums.tolist())):
        candidates = found.setdefault(key, [])
        same = (i for i in candidates if all(torch.equal(x[row], x[first[i]]) for x in each))
        at = next(same, len(first))
        if at == len(first):
            first.append(row)
            candidates.append(at)
        place.append(at)
    return first, place


def _by_parts(forward: Callable[..., Any], hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    """What `forward` makes of `hidden (n, length, d)`, some rows after the others.

    Two at least, as 1 may also mean "for all".
    """
    rows = len(hidden)
    count = min(-(-rows * hidden.shape[1] // PART), rows // 2)
    if count < 2:
        return forward(hidden, *args, **kwargs)
    flat, tree = tree_flatten(((hidden, *args), kwargs))
    split = [x.tensor_split(count) if _per_row(x, rows) else [x] * count for x in flat]
    parts = []
    for values in zip(*split, strict=True):
        given, named = tree_unflatten(list(values), tree)
        parts.append(tree_flatten(forward(*given, **named)))
    joined = []
    for values in zip(*(leaves for leaves, _ in parts), strict=True):
        per_row = _per_row(values[0], len(split[0][0]))
        joined.append(torch.cat(values) if per_row else values[0])
    return tree_unflatten(joined, parts[0][1])


def _per_row(x: object, rows: int) -> bool:
    return isinstance(x, Tensor) and x.ndim > 1 and len(x) == rows
