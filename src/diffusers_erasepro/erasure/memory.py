"""Whether a solve fits into memory: what it takes at least, against what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import torch
from torch import nn

from ..config.words import count_noun
from ..errors import NotEnoughMemoryError
from ..families.encoders import blocks_of
from ..modules.linear import device_of, dtype_of, shape_of
from .layerwise import batch_of
from .sites.planning import Planning
from .sites.protocol import EditSite

GIB = 2**30
FLOAT32 = 4
FLOAT64 = 8
MATRICES = 3
"""Of every linear while its metric is made: the captions' moments, those of the empty prompt, and
the Cholesky factor."""
COPIES_OF_INPUT = 2
"""Of what an edited linear receives: as it came, block part by block part, and joined."""
COPIES_OF_STREAM = 4
"""Of the residual stream in a block: what came, the normed, what is added, the sum."""
CONTAINER = Path("/sys/fs/cgroup")
"""Where a container of Linux says what it may use."""


def available_memory() -> int:
    """Bytes that this process may still take: of the machine, of its container, of its limit."""
    found = [psutil.virtual_memory().available]
    process = psutil.Process()
    if hasattr(psutil, "RLIMIT_AS"):  # not on every system
        limit, _ = process.rlimit(psutil.RLIMIT_AS)
        if limit != psutil.RLIM_INFINITY:
            found.append(limit - process.memory_info().vms)
    files = [CONTAINER / name for name in ("memory.max", "memory.current", "memory.stat")]
    if all(file.is_file() for file in files):
        text = {file.name: file.read_text(encoding="utf-8") for file in files}
        parts = dict(line.split() for line in text["memory.stat"].splitlines())
        if text["memory.max"].strip() != "max":
            cached = int(parts.get("inactive_file", "0"))
            found.append(int(text["memory.max"]) - int(text["memory.current"]) + cached)
    return max(0, min(found))


def refuse_too_small(
    planning: Planning, sites: Sequence[EditSite], linears: Mapping[str, nn.Module]
) -> None:
    """Refuse a solve that cannot fit, before it begins; what is counted is certainly allocated.

    What the encoder itself takes on a GPU is not counted.

    Raises:
        NotEnoughMemoryError: It takes more than there is.
    """
    widths = [shape_of(module)[1] for module in linears.values()]
    matrices = 0
    if planning.options.metric == "covariance":
        matrices = FLOAT64 * sum(width**2 for width in widths)
    running = 0
    block = 0
    if device_of(planning.encoder).type == "cpu":
        running = _bytes_of_walk(planning, sites, widths)
        block = _bytes_of_block(planning.encoder)
    needed = block + max(MATRICES * matrices, matrices + running)
    available = available_memory()
    if needed > available:
        concepts = count_noun(len(planning.spec.concepts), "concept")
        raise NotEnoughMemoryError(
            f"{planning.path.use.encoder}: this solve takes at least {_gib(needed)} of memory "
            f"beside the weights ({_gib(MATRICES * matrices)} while the metrics of "
            f"{count_noun(len(widths), 'linear')} are made, {_gib(running)} for the prompts of "
            f"{concepts}, {_gib(block)} for a block in float32), and "
            f"{_gib(available)} are available; erase fewer concepts at a time, pass "
            "metric='identity', or make room. Nothing was changed"
        )


def _bytes_of_walk(planning: Planning, sites: Sequence[EditSite], widths: Sequence[int]) -> int:
    """What the prompts' positions take where a block is edited."""
    batch = batch_of(planning.encoder, planning.rows, sites, planning.path.use.readings)
    table = next(m for m in planning.encoder.modules() if isinstance(m, nn.Embedding))
    stream = table.embedding_dim
    width = COPIES_OF_INPUT * max(widths, default=0) + COPIES_OF_STREAM * stream
    return FLOAT32 * batch.tokens.ids.numel() * width


def _bytes_of_block(encoder: nn.Module) -> int:
    """A block of 16-bit weights is widened while it runs."""
    if dtype_of(encoder) == torch.float32:
        return 0
    largest = 0
    for block in blocks_of(encoder):
        largest = max(largest, sum(x.numel() for x in block.parameters()))
    return FLOAT32 * largest


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"
