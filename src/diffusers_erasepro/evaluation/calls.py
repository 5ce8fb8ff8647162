"""One picture of any pipeline: from its call's own defaults, on a seed, in memory that may end."""

from __future__ import annotations

import inspect
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..errors import EvaluationError


@dataclass(frozen=True)
class CallSettings:
    """How every picture is made, with the erasures and without."""

    steps: int
    guidance: float | None
    """None where the call takes none."""
    size: tuple[int, int] | None = None
    """Width and height in pixels; None leaves them to the pipeline."""


def neutral_settings(
    pipe: Any,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    size: tuple[int, int] | None = None,
) -> CallSettings:
    """What a call of this pipeline does unless it is told otherwise.

    Args:
        pipe: Whose call is read.
        steps, guidance, size: Instead of the call's defaults.

    Raises:
        EvaluationError: The call takes no such argument, or no number can be meant.
    """
    known = inspect.signature(pipe.__call__).parameters
    kind = type(pipe).__name__
    if "num_inference_steps" not in known or "prompt" not in known:
        raise EvaluationError(
            f"{kind} takes no prompt with a number of steps; pictures cannot be asked of it"
        )
    if guidance is not None and "guidance_scale" not in known:
        raise EvaluationError(f"a call of {kind} takes no guidance_scale; leave guidance out")
    if size is not None and not {"width", "height"} <= {*known}:
        raise EvaluationError(f"a call of {kind} takes no width and height; leave size out")
    if steps is None:
        steps = known["num_inference_steps"].default
    if guidance is None and "guidance_scale" in known:
        guidance = known["guidance_scale"].default
    if not isinstance(steps, int) or steps < 1:
        raise EvaluationError(f"a picture takes at least one step, got {steps}")
    return CallSettings(steps, None if guidance is None else float(guidance), size)


def generate_image(pipe: Any, text: str, settings: CallSettings, seed: int) -> Image.Image:
    """The picture of one prompt, from the noise of one seed; of a video its middle frame."""
    known = inspect.signature(pipe.__call__).parameters
    arguments: dict[str, Any] = {"generator": torch.Generator().manual_seed(seed)}
    if settings.guidance is not None:
        arguments["guidance_scale"] = settings.guidance
    if settings.size is not None:
        width, height = settings.size
        arguments |= {"width": width, "height": height}
    if "output_type" in known:
        arguments["output_type"] = "pil"
    output = pipe(prompt=text, num_inference_steps=settings.steps, **arguments)
    if hasattr(output, "images"):
        return output.images[0]
    frames = output.frames[0]
    return frames[len(frames) // 2]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ended, of a GPU or of the machine."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    )


@contextmanager
def saying_what_to_do(at: str, kept: str = "") -> Iterator[None]:
    """Inside, the end of memory is an error that says where it ended, and what takes less.

    Args:
        at: What is being done.
        kept: What of it is not lost.

    Raises:
        EvaluationError: Memory ended.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise EvaluationError(
            f"memory ended at {at}{kept}; a smaller --size, --dtype float16 or bfloat16, and "
            "--offload take less"
        ) from error


def peak_memory() -> tuple[float, str]:
    """The largest memory so far in MiB, and whose: the GPU's if there is one."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20, "GPU"
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, "process"
