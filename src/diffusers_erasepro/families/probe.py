"""Records proposed for a pipeline that has none, by looking at it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .encode_prompt import encode, tensors_in
from .types import LAST, POOLED, EncoderFamily, PipelineFamily, Reading, Use


class Proposal(NamedTuple):
    """Records for a pipeline that has none; read them before you `register` them."""

    pipeline: PipelineFamily
    encoders: tuple[EncoderFamily, ...]


@torch.no_grad()
def propose_records(pipe: Any) -> Proposal:
    """Propose records for `pipe`.

    Blocks and writers of its encoders are found by their shape and by trying them; what is read,
    by comparing the encoders' outputs with what `encode_prompt` returns. The denoiser's readers and
    the reach of the stock loader cannot be seen from outside; they are left empty.
    """
    components = pipe.components
    with _recording_outputs(pipe) as outputs:
        found = encode(pipe, ["a star"])
    tensors = [x for x in tensors_in(found) if x.ndim and len(x)]
    returned = [x[0] if len(x) == 1 else x for x in tensors]  # a list holds no batches
    uses = []
    for name in components:
        if name in outputs:
            tokenizer = name.replace("text_encoder", "tokenizer")
            uses.append(Use(name, tokenizer, _readings(outputs[name], returned)))
    denoiser = next((n for n in ("transformer", "unet") if n in components), "")
    encoders = tuple(propose_encoder(getattr(pipe, use.encoder)) for use in uses)
    return Proposal(PipelineFamily((type(pipe).__name__,), tuple(uses), denoiser), encoders)


def write_record(family: EncoderFamily) -> str:
    """The lines that register a record of a text encoder."""
    lines = [
        "from diffusers_erasepro.families.pipelines import register",
        "from diffusers_erasepro.families.types import EncoderFamily",
        "",
        "register(",
        "    EncoderFamily(",
        f"        classes={family.classes!r},",
        f"        blocks={family.blocks!r},",
        f"        writer={family.writer!r},",
        "        linears=(",
        *(f"            {linear!r}," for linear in family.linears),
        "        ),",
        f"        causal={family.causal!r},",
        f"        embeddings={family.embeddings!r},",
        "    )",
        ")",
    ]
    return "\n".join(lines)


@contextmanager
def _recording_outputs(pipe: Any) -> Iterator[dict[str, Any]]:
    """Inside, text encoders give all hidden states; yields component name -> its last output."""
    encoders = {
        name: module
        for name, module in pipe.components.items()
        if name.startswith("text_encoder") and isinstance(module, nn.Module)
    }
    outputs: dict[str, Any] = {}
    handles = []

    def ask(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"output_hidden_states": True}

    try:
        for name, encoder in encoders.items():

            def keep(_: nn.Module, args: Any, output: Any, name: str = name) -> None:
                outputs[name] = output

            handles.append(encoder.register_forward_pre_hook(ask, with_kwargs=True))
            handles.append(encoder.register_forward_hook(keep))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _readings(output: Any, returned: Sequence[Tensor]) -> tuple[Reading, ...]:
    """Which fields of an encoder's output are among the tensors `returned` for the same prompt."""
    count = len(output.hidden_states) - 1
    inner = [Reading("hidden_states", i - count - 1) for i in range(1, count + 1)]
    closing = [LAST] if "last_hidden_state" in output else inner[-1:]
    pooled = [Reading(name) for name in POOLED if name in output]
    candidates = [*inner[:-1], *closing, *pooled]
    return tuple(reading for reading in candidates if _is_returned(reading, output, returned))


def _is_returned(reading: Reading, output: Any, returned: Sequence[Tensor]) -> bool:
    states = reading.of(output)[0]
    rank = 1 if reading.pooled else 2
    return any(x.ndim == rank and _contains_a_row(x, states) for x in returned)


def _contains_a_row(returned: Tensor, states: Tensor) -> bool:
    """Whether some row of `returned` begins or ends with a row of `states`, or stacks it.

    One row is enough: others may be padding, which a pipeline may replace.
    """
    width = states.shape[-1]
    if not returned.is_floating_point() or returned.shape[-1] < width:
        return False
    rows = returned.reshape(-1, returned.shape[-1])
    stacked = rows.shape[1] % width == 0
    step = width if stacked else rows.shape[1] - width
    parts = rows.unfold(1, width, step).reshape(-1, width).double()
    wanted = states.double()
    tolerance = 1e-6 * (1 + wanted.norm(dim=1))[:, None]
    return bool((torch.cdist(wanted, parts) < tolerance).any())


def propose_encoder(encoder: nn.Module) -> EncoderFamily:
    """A record for a text encoder, by its shape and by trying it."""
    lists = {
        name: module
        for name, module in encoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1 and "vis" not in name
    }
    path = max(lists, key=lambda n: sum(p.numel() for p in lists[n].parameters()))
    block = lists[path][0]
    linears = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
    table = _find_table(encoder)
    width = encoder.get_submodule(table).embedding_dim
    writers = [
        name
        for name, linear in linears.items()
        if linear.out_features == width and _writes_stream(encoder, block, linear)
    ]
    first = _run_block(encoder, block, 1, 2)[0]
    first_before_another = _run_block(encoder, block, 1, 3)[0]
    return EncoderFamily(
        classes=(type(encoder).__name__,),
        blocks=(path,),
        writer=writers[-1] if writers else None,
        linears=tuple(linears),
        causal=torch.allclose(first, first_before_another),
        embeddings=(table,),
    )


def _find_table(encoder: nn.Module) -> str:
    """The name of the largest embedding that runs: T5's `shared` only lends its weight."""
    tables = {n: m for n, m in encoder.named_modules() if isinstance(m, nn.Embedding)}
    ran: list[str] = []
    handles = []
    for name, table in tables.items():
        hook = table.register_forward_hook(lambda *_, name=name: ran.append(name))
        handles.append(hook)
    try:
        encoder(torch.tensor([[1, 2]], device=next(encoder.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return max(ran, key=lambda name: tables[name].num_embeddings)


def _run_block(encoder: nn.Module, block: nn.Module, *ids: int) -> Tensor:
    """`(n, d)` what `block` gives for n token ids.

    0 may be padding, which some encoders embed as zeros.
    """
    outputs: list[Tensor] = []

    def keep(_: nn.Module, args: Any, output: Any) -> None:
        outputs.append(output if isinstance(output, Tensor) else output[0])

    handle = block.register_forward_hook(keep)
    try:
        encoder(torch.tensor([ids], device=next(encoder.parameters()).device))
    finally:
        handle.remove()
    return outputs[0][0]


def _writes_stream(encoder: nn.Module, block: nn.Module, linear: nn.Module) -> bool:
    """Whether the linear's output is added to the block's as it is.

    It is, where no norm follows and nothing else in the block reads it.
    """
    before = _run_block(encoder, block, 1, 2)
    amount = before.abs().max()  # as large as the stream, so that 16 bits see it
    handle = linear.register_forward_hook(lambda _, __, output: output + amount)
    try:
        after = _run_block(encoder, block, 1, 2)
    finally:
        handle.remove()
    return bool(((after - before) / amount - 1).abs().max() < 0.05)
