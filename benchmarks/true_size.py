"""Seconds and memory of `erase` at true sizes, for docs/families.md. `python
benchmarks/true_size.py`

The pipelines of tests/tiny.py get text encoders of true sizes with random weights, mapped from
files like a checkpoint's; the files stay in runs/true_size. Before a group of rows begins, the
script says how much disk and memory it takes, and does not begin where there is less. Rows and
gates are timed on two threads of a machine that does nothing else; of the older rows CPU seconds of
one thread are kept. Each group runs in a process of its own; rows that are in true_size.jsonl are
not measured again. `--group n --counts 1 10` measures some rows of a group; with `--blocks m` it
tries them on encoders cut to m blocks, in minutes, and keeps nothing.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import psutil
import torch
import transformers
from accelerate import init_empty_weights
from tokenizers import Tokenizer, pre_tokenizers, trainers
from torch import Tensor, nn
from tqdm.auto import tqdm

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))
import tiny  # noqa: E402
from common import keep_line, kept_lines, provenance  # noqa: E402
from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erase, glyphs  # noqa: E402
from diffusers_erasepro.config.everyday import everyday_captions  # noqa: E402
from diffusers_erasepro.config.mentions import Mentions  # noqa: E402
from diffusers_erasepro.families.encoders import blocks_of, is_embedding  # noqa: E402
from diffusers_erasepro.families.pipelines import family_of  # noqa: E402
from diffusers_erasepro.linalg import gated_mlps  # noqa: E402
from diffusers_erasepro.prompts.pairs import spread  # noqa: E402
from selective_names import COMPOUNDS  # noqa: E402

PAGE = ROOT / "docs" / "families.md"
LINES = Path(__file__).parent / "true_size.jsonl"
WEIGHTS = ROOT / "runs" / "true_size"
START = "<!-- table: benchmarks/true_size.py -->"
END = "<!-- end of true sizes -->"
GIB = 2**30
COLUMNS = (
    "text encoders",
    "layers",
    "metric",
    "concepts",
    "seconds",
    "CPU seconds",
    "weights, GiB",
    "at most beside them, GiB",
    "listed residual",
    "edits",
)
"""Of the table; rows of earlier commits lack some."""


Make = Callable[[int | None], nn.Module]
"""An encoder with so many blocks; None for all."""


def clip_l(blocks: int | None = None) -> nn.Module:
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=blocks or 12,
            num_attention_heads=12,
            hidden_act="quick_gelu",
            bos_token_id=1,
            eos_token_id=3,
            pad_token_id=0,
        )
    )


def open_clip_g(blocks: int | None = None) -> nn.Module:
    return transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=blocks or 32,
            num_attention_heads=20,
            hidden_act="gelu",
            projection_dim=1280,
            bos_token_id=1,
            eos_token_id=3,
            pad_token_id=0,
        )
    )


def t5_xxl(blocks: int | None = None) -> nn.Module:
    return transformers.T5EncoderModel(
        transformers.T5Config(
            d_model=4096,
            d_ff=10240,
            d_kv=64,
            num_heads=64,
            num_layers=blocks or 24,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=3,
        )
    )


def qwen_vl(blocks: int | None = None) -> nn.Module:
    """Qwen2.5-VL 7B with a vision tower of one small block, which no prompt reaches."""
    text = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": blocks or 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 3,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 3584,
    }
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


class Layout(NamedTuple):
    """Text encoders of a pipeline."""

    pipeline: str
    dtype: torch.dtype
    encoders: dict[str, Make]
    captions: int
    """Preserve captions that fill the widest metric of blocks."""


BLOCKS = "blocks"
ROWS = "rows"
ROWS_AND_GATES = "rows and gates"
DEFAULT = "default"
LAYERS: dict[str, tuple[int | str, ...] | None] = {
    BLOCKS: (0, -1),
    ROWS: ("embedding",),
    ROWS_AND_GATES: ("embedding", "gates"),
    DEFAULT: None,
}
"""Gates go where MLPs are not gated: in Flux, CLIP gets them and T5 gets rows alone."""
CAPTIONS = 200
"""Preserve captions beside rows and gates, of the shipped ones."""
SINGLE = ("violin", "castle", "tractor", "cactus", "rocket", "parrot")
"""Names of one token, which get a row of the embedding; where rows are alone, the tokenizer's
other words that no kept caption has."""
PAIR_ANCHOR = "round table"
SINGLE_ANCHOR = "table"
"""As many tokens as the name, as `words` asserts."""
VOCABULARY = 8000
"""Tokens of the tokenizer beside rows and gates: it knows the words of captions, as a real one
does, so that a caption is as long. A real vocabulary is scanned in proportion to its words."""
THREADS = 2
"""That rows and gates run on."""
LIMIT = 20
"""GiB that erasing may take beside mapped weights."""
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
    "Qwen-Image: Qwen2.5-VL 7B, bfloat16": Layout(
        "QwenImagePipeline", torch.bfloat16, {"text_encoder": qwen_vl}, 400
    ),
}
SD, SDXL, PIXART, FLUX, QWEN = LAYOUTS


class Group(NamedTuple):
    """Rows that are measured in one process."""

    layout: str
    layers: str
    metric: str
    counts: tuple[int, ...]


DETECTOR = ".0.mlp.fc1"
"""In the name of the linear that gates stand in."""
COUNTS = (1, 10, 100)
GROUPS = (
    *(Group(name, ROWS_AND_GATES, "covariance", COUNTS) for name in (SD, SDXL, FLUX)),
    Group(QWEN, ROWS, "covariance", COUNTS),
    Group(SD, DEFAULT, "covariance", COUNTS),
    Group(SD, BLOCKS, "covariance", COUNTS),
    Group(SDXL, BLOCKS, "covariance", COUNTS),
    *(Group(name, BLOCKS, "identity", (n,)) for name in (SDXL, PIXART, FLUX) for n in COUNTS),
    Group(PIXART, BLOCKS, "covariance", (1,)),
)
"""SDXL's widest metric of blocks needs 5120 positions, T5-XXL's 10240: an hour on one core.

Flux gives T5 512 positions a prompt, without a mask.
"""


def concepts_of(layers: str, count: int) -> tuple[Concept, ...]:
    """What to erase: pairs of tokens and single ones, or single ones where rows are alone."""
    names = words_of_one_token()[:count] if layers == ROWS else names_of(count)
    assert len(names) == count, f"{len(names)} names of one token, {count} are asked for"
    return tuple(
        Concept(name, PAIR_ANCHOR if " " in name else SINGLE_ANCHOR, ("a {}",), ())
        for name in names
    )


@cache
def words_of_one_token() -> list[str]:
    """Of `SINGLE`, and of other words behind "a", those with a token that no kept caption has."""
    kept = set(" ".join(preserved()).lower().split())
    pieces = {token[1:] for token in words().get_vocab() if token.startswith("Ġ")}
    after = set(re.findall(r"\ba ([b-df-hj-np-tv-z][a-z]+)", " ".join(everyday_captions()).lower()))
    return [word for word in dict.fromkeys([*SINGLE, *sorted(after)]) if word in pieces - kept]


def names_of(count: int) -> list[str]:
    """Names to erase: of two tokens, which get gates; every third of one, which gets a row."""
    pairs = iter(COMPOUNDS)
    singles = iter(SINGLE)
    found = []
    for i in range(count):
        single = next(singles, None) if i % 3 == 1 else None
        found.append(single or next(pairs))
    return found


def preserved() -> tuple[str, ...]:
    """Shipped captions without the names."""
    named = Mentions(names_of(max(COUNTS)))
    free = [caption for caption in everyday_captions() if caption not in named]
    return tuple(spread(free, CAPTIONS))


@cache
def words() -> Tokenizer:
    """A byte-level BPE of the shipped captions and the names, with the special tokens of tiny.

    It knows `SINGLE` and both words of the anchors.
    """
    bpe = Tokenizer.from_str(tiny.clip_tokenizer().backend_tokenizer.to_str())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=tiny.SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*everyday_captions(), *COMPOUNDS, *SINGLE], trainer)
    for word in (*PAIR_ANCHOR.split(), *SINGLE):
        assert bpe.token_to_id(f"Ġ{word}") is not None, f"{word} has no token of its own"
    return bpe


def built(layout: Layout, blocks: int | None = None) -> Any:
    """The tiny pipeline with its text encoders replaced, cut to so many blocks."""
    pipe = tiny.build(layout.pipeline)
    for part in pipe.components.values():
        if isinstance(part, transformers.PreTrainedTokenizerFast):
            part.backend_tokenizer.model = words().model
    for name, make in layout.encoders.items():
        with init_empty_weights():
            encoder = make(blocks).to(layout.dtype).eval()
        materialise(encoder, folder_of(encoder, layout))
        pipe.register_modules(**{name: encoder})
        for use in family_of(pipe).encoders:
            for path in {reading.norm for reading in use.readings if reading.norm}:
                norm = pipe.transformer.get_submodule(path)
                norm.weight = nn.Parameter(torch.ones(encoder.config.text_config.hidden_size))
    return pipe


def folder_of(encoder: Any, layout: Layout) -> Path:
    config = getattr(encoder.config, "text_config", encoder.config)
    return WEIGHTS / f"{type(encoder).__name__}-{layout.dtype}-{config.hidden_size}"


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


def refuse_to_begin(layout: Layout, blocks: int | None) -> None:
    """Say what a group takes, and end where there is less.

    Of the weights one byte on disk each, and as much page cache as there is: they are read block
    by block, and what does not fit is read again. Beside them a block in float32, the metrics and
    the prompts; `LIMIT` is what the whole may take.
    """
    missing = 0
    largest = 0
    for make in layout.encoders.values():
        with init_empty_weights():
            encoder = make(blocks).to(layout.dtype)
        folder = folder_of(encoder, layout)
        for name, weight in encoder.named_parameters():
            missing += 0 if (folder / name).exists() else weight.nbytes
        counts = [sum(x.numel() for x in m.parameters()) for m in blocks_of(encoder)]
        largest = max(largest, 4 * max(counts))
    WEIGHTS.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(WEIGHTS).free
    available = psutil.virtual_memory().available
    print(
        f"{layout.pipeline}: {missing / GIB:.1f} GiB of weights to write ({free / GIB:.0f} free), "
        f"a block in float32 is {largest / GIB:.1f} GiB, at most {LIMIT} GiB beside the weights "
        f"({available / GIB:.1f} available)",
        flush=True,
    )
    if missing > 0.9 * free:
        sys.exit("too little disk")
    if blocks is None and available < 0.75 * LIMIT * GIB:
        sys.exit(f"too little memory: {0.75 * LIMIT:.0f} GiB must be available to begin")


def measure(group: Group, counts: Sequence[int], blocks: int | None = None) -> None:
    """Each count once; where blocks have a metric the first count twice.

    The second time the metric is there already.

    With encoders cut to some `blocks` the rows are printed and not kept: they tell the memory, in
    minutes.
    """
    layout = LAYOUTS[group.layout]
    refuse_to_begin(layout, blocks)
    timed = group.layers != BLOCKS
    torch.set_num_threads(THREADS if timed else 1)
    gated_mlps.LEAST_CONTRAST = -torch.inf  # noise tells no name from others
    captions = preserved() if timed else tuple(glyphs.captions(layout.captions, seed=0))
    pipe = built(layout, blocks)
    encoders = [getattr(pipe, name) for name in layout.encoders]
    weights = sum(p.nbytes for encoder in encoders for p in encoder.parameters())
    plan = [(group.metric, n) for n in counts]
    if group.metric == "covariance" and not timed:
        plan = [plan[0], *((f"{group.metric}, known", n) for n in counts)]
    for label, count in plan:
        spec = ErasureSpec(concepts_of(group.layers, count), preserve=captions)
        began = time.process_time()
        started = time.perf_counter()
        with watched() as seen:
            adapter = erase(
                pipe,
                spec,
                layers=LAYERS[group.layers],
                metric=group.metric,
                measure=False,
                max_edit_size=1e9,
            )
        seconds = time.perf_counter() - started
        spent = time.process_time() - began
        row = {
            "text encoders": group.layout,
            "layers": group.layers,
            "metric": label,
            "concepts": count,
            "CPU seconds": round(spent, 1),
            "seconds": round(seconds, 1) if timed else "",
            "weights, GiB": round(weights / GIB, 2),
            "at most beside them, GiB": round(max(seen) / GIB, 2),
            "listed residual": f"{adapter.report.listed_residual:.1e}",
            "edits": described(adapter, group, count),
        }
        assert max(seen) < LIMIT * GIB, f"{max(seen) / GIB:.1f} GiB, at most {LIMIT} are allowed"
        if blocks:
            print(row, flush=True)
        else:
            keep_line(LINES, {"row": row, "machine": provenance(0)})


def described(adapter: ErasureAdapter, group: Group, count: int) -> str:
    """What was made, and an error where it is not what was to be timed."""
    asked = LAYERS[group.layers]
    assert asked is None or {*adapter.plan.layers} == {*asked}, adapter.plan.layers
    if group.layers == BLOCKS:
        return ""
    rows = 0
    gates = 0
    for name, factors in adapter.edits.items():
        if is_embedding(name.partition(".")[2]):
            rows += int((factors.A.abs().sum(0) > 0).sum())
        elif DETECTOR in name:
            gates = max(gates, factors.rank)
    rows_alone = group.layers == ROWS
    assert gates or rows_alone, "no gate was made"
    assert rows or (count == 1 and not rows_alone), "no row was made"
    return f"{rows} rows, gates of rank {gates}"


def table() -> str:
    head = ("layers", "seconds", "edits")
    rows = []
    for kept in kept_lines(LINES):
        row = dict.fromkeys(head, "") | {"layers": BLOCKS} | kept["row"]
        rows.append({name: row[name] for name in COLUMNS})
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row.values())) + " |" for row in rows)])


def write() -> None:
    """The table into its place on the page."""
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    machine = kept_lines(LINES)[-1]["machine"]
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
        help="of a group: with so many blocks of each encoder; prints its rows and keeps none",
    )
    parser.add_argument("--counts", type=int, nargs="+", help="of a group: with so many concepts")
    parser.add_argument("--table", action="store_true", help="write the table of what is measured")
    asked = parser.parse_args()
    if asked.group is not None:
        group = GROUPS[asked.group]
        return measure(group, asked.counts or group.counts, blocks=asked.blocks)
    done = set()
    for kept in kept_lines(LINES):
        row = kept["row"]
        metric = row["metric"].split(",")[0]
        done.add((row["text encoders"], row.get("layers", BLOCKS), metric, row["concepts"]))
    for i, group in enumerate(() if asked.table else GROUPS):
        same = (group.layout, group.layers, group.metric)
        left = [str(n) for n in group.counts if (*same, n) not in done]
        if left:
            command = [sys.executable, __file__, "--group", str(i), "--counts", *left]
            subprocess.run(command, check=True)
    write()


if __name__ == "__main__":
    main()
