"""CPU seconds and memory of `erase` at true sizes, for docs/families.md. `python
benchmarks/true_size.py`

The pipelines of tests/tiny.py get text encoders of true sizes with random weights, mapped from
files like a checkpoint's; the files stay in runs/true_size, 15 GB. One thread; CPU seconds, so that
other work on the machine does not count. Each group of rows runs in a process of its own; rows that
are in true_size.jsonl are not measured again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn
from tqdm.auto import tqdm

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))
import tiny  # noqa: E402
from common import keep_line, kept_lines, provenance  # noqa: E402
from diffusers_erasepro import Concept, ErasureSpec, erase, glyphs  # noqa: E402

PAGE = ROOT / "docs" / "families.md"
ROWS = Path(__file__).parent / "true_size.jsonl"
WEIGHTS = ROOT / "runs" / "true_size"
START = "<!-- table: benchmarks/true_size.py -->"
END = "<!-- end of true sizes -->"
GIB = 2**30


def clip_l() -> nn.Module:
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            hidden_act="quick_gelu",
            bos_token_id=1,
            eos_token_id=3,
            pad_token_id=0,
        )
    )


def open_clip_g() -> nn.Module:
    return transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=20,
            hidden_act="gelu",
            projection_dim=1280,
            bos_token_id=1,
            eos_token_id=3,
            pad_token_id=0,
        )
    )


def t5_xxl(blocks: int = 24) -> nn.Module:
    return transformers.T5EncoderModel(
        transformers.T5Config(
            d_model=4096,
            d_ff=10240,
            d_kv=64,
            num_heads=64,
            num_layers=blocks,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=3,
        )
    )


class Layout(NamedTuple):
    """Text encoders of a pipeline, and how many preserve captions fill its widest metric."""

    pipeline: str
    dtype: torch.dtype
    encoders: dict[str, Callable[[], nn.Module]]
    captions: int


FLUX = {"text_encoder": clip_l, "text_encoder_2": t5_xxl}
LAYOUTS = {
    "SD 1.4: CLIP-L, float32": Layout(
        "StableDiffusionPipeline", torch.float32, {"text_encoder": clip_l}, 50
    ),
    "SDXL: CLIP-L, OpenCLIP-G, float16": Layout(
        "StableDiffusionXLPipeline",
        torch.float16,
        {"text_encoder": clip_l, "text_encoder_2": open_clip_g},
        70,
    ),
    "PixArt: T5-XXL, bfloat16": Layout(
        "PixArtAlphaPipeline", torch.bfloat16, {"text_encoder": t5_xxl}, 1200
    ),
    "Flux: CLIP-L, T5-XXL, bfloat16": Layout(
        "FluxPipeline", torch.bfloat16, {"text_encoder": clip_l, "text_encoder_2": t5_xxl}, 42
    ),
}
SD, SDXL, PIXART, FLUX = LAYOUTS
GROUPS = (
    (SD, "covariance", (1, 10, 100)),
    (SDXL, "covariance", (1, 10, 100)),
    *((layout, "identity", (n,)) for layout in (SDXL, PIXART, FLUX) for n in (1, 10, 100)),
    (PIXART, "covariance", (1,)),
)
"""SDXL's widest metric needs 5120 positions, T5-XXL's 10240: an hour on one core.

Flux gives T5 512 positions a prompt, without a mask.
"""


def built(layout: Layout) -> Any:
    """The tiny pipeline with its text encoders replaced."""
    pipe = tiny.build(layout.pipeline)
    for name, make in layout.encoders.items():
        with init_empty_weights():
            encoder = make().to(layout.dtype).eval()
        materialise(
            encoder,
            WEIGHTS / f"{type(encoder).__name__}-{layout.dtype}-{encoder.config.hidden_size}",
        )
        pipe.register_modules(**{name: encoder})
    return pipe


def materialise(model: nn.Module, folder: Path) -> None:
    """Random weights, parameter by parameter, each mapped from a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for path, module in tqdm(
        [*model.named_modules()], desc=type(model).__name__, leave=False, mininterval=5
    ):
        for leaf, empty in module._parameters.items():
            if empty is not None:
                module._parameters[leaf] = mapped(empty, folder / f"{path}.{leaf}")
    model.tie_weights()


def mapped(empty: Tensor, file: Path) -> nn.Parameter:
    if not file.exists():
        part = file.with_name(f"{file.name}.part")
        fill(
            torch.from_file(str(part), shared=True, size=empty.numel(), dtype=empty.dtype),
            empty.shape,
            crc32(file.name.encode()),
        )
        part.rename(file)
    weight = torch.from_file(str(file), shared=True, size=empty.numel(), dtype=empty.dtype)
    return nn.Parameter(weight.view(empty.shape), requires_grad=False)


def fill(weight: Tensor, shape: torch.Size, seed: int) -> None:
    noise = torch.ones(len(weight)) if len(shape) == 1 else normal().roll(seed) * shape[-1] ** -0.5
    for part in weight.split(len(noise)):
        part.copy_(noise[: len(part)])


@cache
def normal() -> Tensor:
    """Drawn once: billions of draws outlast the bench.

    A prime length, so that no two rows of a weight are the same.
    """
    return torch.randn(16_777_213)


@contextmanager
def watched() -> Iterator[list[int]]:
    """Inside, the bytes this process holds besides mapped files are noted, ten times a second."""
    seen = [own_bytes()]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            seen.append(own_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def own_bytes() -> int:
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        if line.startswith("RssAnon")
    )
    return int(line.split()[1]) * 1024


def measure(name: str, metric: str, counts: tuple[int, ...], blocks: int | None = None) -> None:
    """Each count once; where there is a metric the first count twice.

    The second time the metric is there already.

    With T5-XXL cut to some `blocks` the rows are printed and not kept: they tell the memory, in
    minutes.
    """
    layout = LAYOUTS[name]
    if blocks:
        layout = layout._replace(
            encoders={
                n: partial(t5_xxl, blocks) if m is t5_xxl else m for n, m in layout.encoders.items()
            }
        )
    captions = tuple(glyphs.captions(layout.captions, seed=0))
    pipe = built(layout)
    weights = sum(
        p.nbytes for encoder in layout.encoders for p in getattr(pipe, encoder).parameters()
    )
    plan = [(metric, n) for n in counts]
    if metric == "covariance":
        plan = [plan[0], *((f"{metric}, known", n) for n in counts)]
    for label, count in plan:
        spec = ErasureSpec(
            tuple(Concept(f"word{i}", "circle", ("a {}",), ()) for i in range(count)),
            preserve=captions,
        )
        began = time.process_time()
        with watched() as seen:
            report = erase(pipe, spec, metric=metric, measure=False, max_edit_size=1e9).report
        row = {
            "text encoders": name,
            "metric": label,
            "concepts": count,
            "CPU seconds": round(time.process_time() - began, 1),
            "weights, GiB": round(weights / GIB, 2),
            "at most beside them, GiB": round(max(seen) / GIB, 2),
            "listed residual": f"{report.listed_residual:.1e}",
        }
        if blocks:
            print(row)
        else:
            keep_line(ROWS, {"row": row, "machine": provenance(0)})


def table() -> str:
    rows = [kept["row"] for kept in kept_lines(ROWS)]
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row.values())) + " |" for row in rows)])


def write() -> None:
    """The table into its place on the page."""
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    machine = kept_lines(ROWS)[-1]["machine"]
    PAGE.write_text(
        f"{before}{START}\n`python benchmarks/true_size.py`, "
        f"{machine}.\n\n{table()}\n{END}{rest.split(END)[1]}",
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--group", type=int, help="measure this group of rows in this process, and write no table"
    )
    parser.add_argument(
        "--blocks",
        type=int,
        help="of a group: with so many of T5-XXL's blocks; prints its rows and keeps none",
    )
    parser.add_argument("--table", action="store_true", help="write the table of what is measured")
    asked = parser.parse_args()
    if asked.group is not None:
        return measure(*GROUPS[asked.group], blocks=asked.blocks)
    done = {
        (kept["row"]["text encoders"], kept["row"]["metric"].split(",")[0], kept["row"]["concepts"])
        for kept in kept_lines(ROWS)
    }
    for i, (name, metric, counts) in enumerate(() if asked.table else GROUPS):
        if (name, metric, counts[-1]) not in done:
            subprocess.run([sys.executable, __file__, "--group", str(i)], check=True)
    write()


if __name__ == "__main__":
    main()
