"""One forward pass, shallow to deep: every site solves on the way through, no weight is touched."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from accelerate.hooks import CpuOffload
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import AdapterStateError
from ..families.encoders import blocks_of, encoder_family_of
from ..families.types import LAST, Reading
from ..families.variants import Site
from ..linalg.constrained import Edit
from ..linalg.low_rank import LowRank
from ..modules.linear import base_linear, device_of, is_compiled
from ..prompts.pairs import Rows, Tokens, joined
from ..prompts.prefix_tree import Batch, as_rows, as_trees
from .sites.neurons import Heard, Neurons

PART = 8192
"""Positions that a block runs on at a time. Of T5-XXL at Flux's 512 positions a prompt, attention scores and MLP take 105 MB
a prompt: a hundred at once would be ten gigabytes."""
Solver = Callable[[str, Tensor, Tensor, Tensor, Tensor], Edit]
"""`(site, X, R, Xs, Rs) -> Edit`, with exact columns X, R and soft columns Xs, Rs."""


@dataclass(frozen=True)
class Step:
    """What happened at one site of the walk."""

    site: str
    edit: Edit
    X: Tensor
    """`(d_in, n)` the keys: inputs at the exact positions, in the edited stream."""
    gap: float
    """Mean ||anchor - target|| / ||anchor|| at the exact positions, before this site's edit."""


def _hidden(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _replace(output: Tensor | tuple[Tensor, ...], hidden: Tensor) -> Tensor | tuple[Tensor, ...]:
    return hidden if isinstance(output, Tensor) else (hidden, *output[1:])


@dataclass(frozen=True)
class Walk:
    """What a walk leaves behind."""

    steps: list[Step]
    """One per site, shallow to deep."""
    states: dict[str, list[tuple[Tensor, Tensor]]]
    """Per kind of rows, per reading: edited target states and anchor states, `(k, d)` at the aligned positions, or
    `(n, d)` if pooled."""


@contextmanager
def reading(
    encoder: nn.Module, readings: Sequence[Reading]
) -> Iterator[Callable[[Tokens], list[Tensor]]]:
    """Inside, the function given runs tokens and returns what the denoiser reads, `(n, length, d)` or `(n, 1, d)` each.

    Of trees, what is pooled is `(n, length, d)` too: a vector at every position.

    Inner states are taken from the blocks: transformers notes its `hidden_states` before other hooks have changed them.
    """
    seen: dict[Reading, Tensor] = {}
    blocks = blocks_of(encoder)

    def keep(which: Reading) -> Callable[..., None]:
        return lambda _, __, output: seen.__setitem__(which, _hidden(output))

    def read(tokens: Tokens) -> list[Tensor]:
        output = run(encoder, tokens, last_hidden=any(r.index == -1 for r in readings))
        everywhere = tokens.positions is not None
        return [
            r.received(
                seen.pop(r)
                if r.inner
                else r.everywhere(encoder, output)
                if r.pooled and everywhere
                else r.of(output)
            )
            for r in readings
        ]

    inner = [r for r in readings if r.inner]
    handles = [blocks[r.block(len(blocks))].register_forward_hook(keep(r)) for r in inner]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


def run(encoder: Any, tokens: Tokens, *, last_hidden: bool) -> Any:
    """The encoder's output, without what no pipeline reads: caches and logits."""
    device = device_of(encoder)
    spared = {"use_cache": False, "logits_to_keep": 1}
    arguments: dict[str, Any] = {
        k: v for k, v in spared.items() if k in inspect.signature(encoder.forward).parameters
    }
    if tokens.mask is not None:
        arguments["attention_mask"] = tokens.mask.to(device)
    if tokens.positions is not None:
        arguments["position_ids"] = tokens.positions.to(device)
    if last_hidden:
        arguments["output_hidden_states"] = True
    with (
        torch.compiler.set_stance("force_eager") if is_compiled(encoder) else nullcontext()
    ):  # compiled code sees no new hook
        return encoder(tokens.ids.to(device), **arguments)


@torch.no_grad()
def walk(
    encoder: Any,
    rows: Mapping[str, Rows],
    sites: Sequence[Site],
    solver: Solver,
    readings: Sequence[Reading] = (LAST,),
    neurons: Sequence[Neurons] = (),
    parts: Mapping[str, Mapping[str, Rows]] | None = None,
) -> Walk:
    """Run targets and anchors side by side through `encoder`, and solve at each of `sites` on the way.

    Where a site closes its gap the target rows' output is `h`, the anchor rows' is `h0`; the edit D of its linear
    must add `R = h0 - h` at the aligned positions of the "exact" rows, and would at those of the "soft" rows. The
    target rows then go on with `h + D x` (at every position, as the edited weight would), so the next site sees the
    edited stream. Rows of other kinds only ride along, to be measured at the end. `neurons` come before a site of their block.
    `parts`: by site, the same rows with the positions that it holds, where those are not all.

    Where attention is causal, what comes after the last aligned position matters to none, and is cut; of encoders that run as
    trees (`tree.as_trees`) what several prompts begin with is run once.
    """
    first = dict(zip(rows, accumulate(map(len, rows.values()), initial=0), strict=False))
    batch = _batch(encoder, rows, neurons, readings)
    half = batch.half
    steps: list[Step] = []
    inputs: dict[Site, list[Tensor]] = {site: [] for site in sites}

    def both(kind: str, out: Tensor, aligned: Mapping[str, Rows] = rows) -> tuple[Tensor, Tensor]:
        """What stands at the aligned positions of the targets and of their anchors, `(k, d)` each, on the CPU, which solves."""
        at, out = aligned[kind].row + first[kind], out.flatten(0, 1)
        targets, anchors = (
            batch.target_at[at, aligned[kind].target_at],
            batch.anchor_at[at, aligned[kind].anchor_at],
        )
        return out[targets].cpu(), out[anchors].cpu()

    def pair(kind: str, pooled: bool, states: Tensor) -> tuple[Tensor, Tensor]:
        """What the denoiser reads of the targets and of their anchors."""
        if not pooled:
            return both(kind, states)
        targets, anchors = batch.pooled_at[:, first[kind] : first[kind] + len(rows[kind])]
        return states.flatten(0, 1)[targets].cpu(), states.flatten(0, 1)[anchors].cpu()

    def columns(
        kind: str, x: Tensor, out: Tensor, aligned: Mapping[str, Rows]
    ) -> tuple[Tensor, Tensor]:
        """X `(d_in, k)` and R `(d_out, k)`."""
        have, goal = both(kind, out, aligned)
        return both(kind, x, aligned)[0].T, (goal - have).T

    def solve_at(site: Site) -> Callable[..., object]:
        def hook(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> object:
            out, x = _hidden(output).clone(), torch.cat(inputs.pop(site))
            aligned = (parts or {}).get(site.linear, rows)
            X, R = columns("exact", x, out, aligned)
            edit = solver(site.linear, X, R, *columns("soft", x, out, aligned))
            goal = both("exact", out, aligned)[1].norm(dim=-1)
            steps.append(Step(site.linear, edit, X.double(), float((R.norm(dim=0) / goal).mean())))
            out[:half] += edit.factors(x[:half])  # in the precision the edit will run in
            return _replace(output, out)

        return hook

    def give_away(given: Neurons, heard: Heard) -> Callable[..., object]:
        """Detector and writer change together, so the target rows go through both once more."""

        def hook(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> object:
            out, (z, sums, told) = _hidden(output).clone(), heard.taken()
            ends = {kind: both(kind, out, given.rows) for kind in given.rows}
            lacking = {kind: goal - have for kind, (have, goal) in ends.items()}
            detector, writer = given.solver(
                {kind: both(kind, z, given.rows)[0] for kind in given.rows}, lacking
            )
            before, told = (
                told[:half],
                torch.cat([heard.activation(sums[:half] + detector(z[:half])), told[half:]]),
            )
            out[:half] += nn.functional.linear(
                told[:half] - before, given.writer.to(told)
            ) + writer(told[:half])
            gap = float((lacking["exact"].norm(dim=-1) / ends["exact"][1].norm(dim=-1)).mean())
            for name, factors, x in (
                (given.mlp.detector, detector, z),
                (given.mlp.writer, writer, told),
            ):
                keys = both("exact", x, given.rows)[0].T.double()
                steps.append(
                    Step(
                        name,
                        Edit(factors, keys.shape[1], dropped=0, condition=1.0, residual=math.nan),
                        keys,
                        gap,
                    )
                )
            for site in sites:  # the next to solve here hears what the neurons now say
                if site.linear == given.mlp.writer:
                    inputs[site] = [told]
            return _replace(output, out)

        return hook

    handles = []
    try:
        for given in neurons:
            heard, block = Heard(encoder, given.mlp), encoder.get_submodule(given.mlp.closes)
            handles += [
                *heard.handles,
                block.register_forward_hook(give_away(given, heard), prepend=True),
            ]
        for site in sites:
            keep = lambda _, args, site=site: inputs[site].append(args[0])  # noqa: E731
            handles.append(
                base_linear(encoder.get_submodule(site.linear)).register_forward_pre_hook(keep)
            )
            handles.append(encoder.get_submodule(site.closes).register_forward_hook(solve_at(site)))
        with (
            _in_parts(encoder, sites),
            reading(encoder, readings) as read,
        ):  # last, so that its hooks see the edited stream
            states = read(batch.tokens)
    finally:
        for handle in handles:
            handle.remove()
    pooled = [r.pooled for r in readings]
    return Walk(
        steps,
        {kind: [pair(kind, *one) for one in zip(pooled, states, strict=True)] for kind in rows},
    )


def _batch(
    encoder: nn.Module,
    rows: Mapping[str, Rows],
    neurons: Sequence[Neurons],
    readings: Sequence[Reading],
) -> Batch:
    """Targets and anchors as they are run, up to the last position that anyone asks for."""
    targets, anchors = (
        joined([getattr(r, half) for r in rows.values()]) for half in ("target", "anchor")
    )
    asked = [
        [r, *(given.rows[kind] for given in neurons if kind in given.rows)]
        for kind, r in rows.items()
    ]
    needed = torch.cat([torch.stack([r.needed for r in some]).amax(0) for some in asked], 1)
    if runs_trees(encoder) and targets.mask is None:
        pooled = any(r.pooled for r in readings)
        return as_trees(
            targets, anchors, needed, _ends(encoder, targets, anchors) if pooled else None
        )
    return as_rows(
        targets, anchors, int(needed.max()) if encoder_family_of(encoder).causal else None
    )


def _ends(encoder: Any, *halves: Tokens) -> Tensor:
    """`(2, n)` where CLIP pools: at its first EOS, or at the highest id where an old config calls EOS 2 (transformers 5.23)."""
    eos = encoder.config.eos_token_id
    return torch.stack(
        [half.ids.argmax(1) if eos == 2 else (half.ids == eos).int().argmax(1) for half in halves]
    )


def runs_trees(encoder: Any) -> bool:
    """Whether prompts may share positions: not in an attention without free masks, nor in 8-bit floats, which run in a
    precision of their own."""
    free = getattr(encoder.config, "_attn_implementation", None) in ("eager", "sdpa")
    return encoder_family_of(encoder).trees and free and not any(map(_bytes, encoder.parameters()))


@contextmanager
def _in_parts(encoder: nn.Module, sites: Sequence[Site]) -> Iterator[None]:
    """Inside, every block runs on `PART` positions at a time, unless a site closes within one and needs all rows there."""
    blocks = blocks_of(encoder)
    parted = (
        [*blocks] if {encoder.get_submodule(site.closes) for site in sites} <= {*blocks} else []
    )
    own = {block: vars(block).get("forward") for block in parted}  # where offloading hangs its own
    try:
        for block in parted:
            vars(block)["forward"] = partial(_by_parts, block.forward)
        yield
    finally:
        for block, forward in own.items():
            vars(block).pop("forward", None)
            if forward is not None:
                vars(block)["forward"] = forward


def _by_parts(forward: Callable[..., Any], hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    """What `forward` makes of `hidden (n, length, d)`, some rows after the others; two at least, as 1 may also mean "for all"."""
    rows = len(hidden)
    count = min(-(-rows * hidden.shape[1] // PART), rows // 2)
    if count < 2:
        return forward(hidden, *args, **kwargs)
    flat, tree = tree_flatten(((hidden, *args), kwargs))
    split = [x.tensor_split(count) if _per_row(x, rows) else [x] * count for x in flat]
    calls = (tree_unflatten(list(values), tree) for values in zip(*split, strict=True))
    made = [tree_flatten(forward(*a, **k)) for a, k in calls]
    values = (
        torch.cat(x) if _per_row(x[0], len(split[0][0])) else x[0]
        for x in zip(*(flat for flat, _ in made), strict=True)
    )
    return tree_unflatten(list(values), made[0][1])


def _per_row(x: object, rows: int) -> bool:
    return isinstance(x, Tensor) and x.ndim > 1 and len(x) == rows


@contextmanager
def edited(root: nn.Module, edits: Mapping[str, LowRank]) -> Iterator[None]:
    """Inside, each named linear of `root` also adds its edit's `B A x`; the weights stay as they are."""

    def add(factors: LowRank) -> Callable[..., Tensor]:
        return lambda _, args, out: out + factors(args[0])

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
    with reading(encoder, readings) as read:
        return [
            torch.cat(same) for same in zip(*(read(part) for part in tokens.split()), strict=True)
        ]


def final_states(encoder: Any, ids: Tensor) -> Tensor:
    """Last hidden states `(n, length, d)` of plain token ids."""
    if not len(ids):
        return next(encoder.parameters()).new_zeros(0, ids.shape[1], encoder.config.hidden_size)
    return states_of(encoder, Tokens(ids), [LAST])[0]


@contextmanager
def working(encoder: nn.Module) -> Iterator[nn.Module]:
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
        run(encoder, Tokens(torch.zeros(1, 1, dtype=torch.long)), last_hidden=False)
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
