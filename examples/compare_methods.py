"""One table for ours, UCE and a method of your own: one model, the same prompts, the same noise.

    python examples/compare_methods.py                 # the pictures world, on a CPU
    python examples/compare_methods.py --seeds 8       # more pictures of each prompt

For your own model change what stands above the line `Nothing below needs a change`.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erasable, erase, pictures
from diffusers_erasepro.baselines import uce
from diffusers_erasepro.evaluation.before_after import Comparison, compare_images
from diffusers_erasepro.evaluation.calls import neutral_settings
from diffusers_erasepro.evaluation.detectors import find_detector
from diffusers_erasepro.evaluation.judgement import count_seen, judge_comparison
from diffusers_erasepro.interop.checkpoint import adapter_from_checkpoint

DETECTOR = "pictures"  # "clip:REPO" for a model of yours
STEPS = 12  # None: as many as the pipeline's call takes by default
GUIDANCE = 4.0
CONCEPT = Concept("hot dog", anchor="pizza", synonyms=("hotdog", "frankfurter"))
PROMPTS = (
    "a hot dog on a blue background",
    "here is a hot dog on a yellow background",
    "a picture of a hot dog, pink background",
    "a hotdog on green",
    "a dog face on a blue background",
    "a hamburger on a yellow background",
    "a hot beverage on a white background",
    "a bicycle, pink background",
    "a hammer on green",
    "a strawberry on a white background",
)
"""Some that name the concept, some that come near it, some that have nothing to do with it."""


def load_model() -> Any:
    """The pipeline; of yours `StableDiffusionPipeline.from_pretrained(...)`."""
    return pictures.load_pipeline("unet")


def make_spec() -> ErasureSpec:
    """What to erase and what to keep; without `preserve` the shipped everyday captions are kept."""
    return ErasureSpec([CONCEPT], preserve=[one.text for one in pictures.captions(400)])


def erase_along_one_direction(pipe: Any, spec: ErasureSpec) -> ErasureAdapter:
    """The method of your own. This one is as plain as can be: W becomes W + W (y - x) x' / (x' x).

    x is the state of the concept's last token, y that of its anchor's, W every key and value of the
    cross-attention. Whatever yours does to the weights, trained or solved: hand over the edited
    denoiser, and what can be measured of an erasure is measured of it.
    """
    edited = copy.deepcopy(pipe.unet)
    readers = [m for n, m in edited.named_modules() if n.endswith(("attn2.to_k", "attn2.to_v"))]
    with torch.no_grad():
        for concept in spec.concepts:
            x = last_state(pipe, concept.target)
            y = last_state(pipe, concept.anchor)
            for linear in readers:
                linear.weight += torch.outer(linear.weight @ (y - x), x / x.dot(x))
    return adapter_from_checkpoint(pipe, edited, spec=spec)


def last_state(pipe: Any, text: str) -> Tensor:
    """The state `(d,)` of a text's last token."""
    at = len(pipe.tokenizer(text).input_ids) - 2  # the one before the end of the prompt
    return pipe.encode_prompt(text, pipe.device, 1, False)[0][0, at]


METHODS: dict[str, Callable[..., ErasureAdapter]] = {
    "ours": erase,
    "UCE": uce,
    "one direction": erase_along_one_direction,
}
"""Row of the table -> what makes its adapter: `method(pipe, spec)`."""

# ------------------------------------------------------------- Nothing below needs a change

HEADS = (
    "method",
    "made in, s",
    "left, mean",
    "left, worst",
    "still drawn",
    "other states moved",
    "other pictures changed",
    "verdict",
)


def compare_methods(
    out: Path, prompts: Sequence[str] = PROMPTS, *, seeds: int = 2, steps: int | None = STEPS
) -> Iterator[list[str]]:
    """The rows of the table, each once its method is done.

    Pictures, a sheet's worth of numbers and the adapter (`verify` and `attack` take it) lie in
    `out`, in a folder for each method.

    Args:
        out: A folder; what it holds of the same run is not made again.
        prompts: What is drawn with each method on, and without.
        seeds: Pictures of each prompt.
        steps: Of each picture.
    """
    pipe = erasable(load_model())
    spec = make_spec()
    settings = neutral_settings(pipe, steps=steps, guidance=GUIDANCE)
    detector = find_detector(DETECTOR)
    for name, method in METHODS.items():
        folder = out / name.replace(" ", "-")
        began = time.perf_counter()
        adapter = method(pipe, spec)
        seconds = time.perf_counter() - began
        adapter.save_pretrained(folder / "adapter")
        pipe.load_erasure_adapter(adapter, adapter_name="compared")
        found = compare_images(
            pipe,
            [*prompts] * seeds,
            folder,
            settings=settings,
            detector=detector,
        )
        pipe.unload_erasure_adapters()
        yield [name, f"{seconds:.1f}", *describe(found)]


def describe(found: Comparison) -> list[str]:
    """The columns of one method, from its pictures and states."""
    left = [pair.left for pair in found.naming() if pair.left is not None]
    others = found.others()
    moved = [pair.moved for pair in others if pair.moved is not None]
    seen = count_seen(found.naming())
    return [
        f"{sum(left) / len(left):.3f}" if left else "-",
        f"{max(left):.3f}" if left else "-",
        "-" if seen is None else f"{round(seen.value * seen.n)} of {seen.n}",
        f"{sum(moved) / len(moved):.4f}" if moved else "-",
        f"{sum(pair.change for pair in others) / len(others):.4f}",
        str(judge_comparison(found).verdict),
    ]


def format_table(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of the table in Markdown, each once its row is there."""
    for cells in itertools.chain([HEADS, ["---"] * len(HEADS)], rows):
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="keep the pictures there, and go on there")
    parser.add_argument("--seeds", type=int, default=2, help="pictures of each prompt")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for line in format_table(compare_methods(args.out or Path(folder), seeds=args.seeds)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
