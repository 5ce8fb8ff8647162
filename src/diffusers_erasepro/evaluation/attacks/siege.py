"""One concept under attack, and what an attack is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor
from tqdm.auto import trange

from ...config.mentions import Mentions, mentions, replace_mentions
from ...config.spec import Concept
from ...erasure.states import final_states
from ...errors import EvaluationError
from ...prompts.tokens import text_paths, token_ids, tokenizer_of
from ..calls import CallSettings, generate_image

IMAGES_AT_ONCE = 40
SEEDS_APART = 100_000
"""Image i of seed s starts from the noise of `s * SEEDS_APART + i`."""


@dataclass(frozen=True)
class Siege:
    """One concept under attack."""

    victim: Any
    """The pipeline that is attacked."""
    base: Any
    """The same without any erasure; attackers may hold it, as the base weights are public."""
    concept: Concept
    prompts: tuple[str, ...]
    """Texts that ask for the concept; each is one attempt."""
    seed: int = 0
    steps: int = 15
    guidance: float | None = 3.0
    """None where the pipeline's call takes none."""
    size: tuple[int, int] | None = None
    """Width and height in pixels; None leaves them to the pipeline."""
    at_once: int = IMAGES_AT_ONCE
    """Images generated together, where the pipeline is given states."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise EvaluationError("an attack needs at least one prompt that asks for the concept")
        for prompt in self.prompts:
            if prompt not in Mentions(self.concept.words):
                raise EvaluationError(
                    f"{prompt!r} does not name {self.concept.target!r}; "
                    "give prompts that ask for the concept"
                )

    @property
    def rng(self) -> np.random.Generator:
        """A fresh generator of the siege's seed."""
        return np.random.default_rng(self.seed)

    @property
    def neutral(self) -> list[str]:
        """The prompts with the anchor in the concept's place."""
        return [self.rename(prompt, self.concept.anchor) for prompt in self.prompts]

    @cached_property
    def latents(self) -> Tensor:
        """Clean latents of the base's images of the concept, `(n, c, h, w)`."""
        states = self.states(self.base, self.prompts)
        return self.generate_from(self.base, states, output_type="latent")

    def word_in(self, text: str) -> str:
        """The longest word of the concept that `text` names."""
        return max((word for word in self.concept.words if mentions(text, word)), key=len)

    def rename(self, text: str, name: str) -> str:
        """`text` with `name` in the concept's place."""
        return replace_mentions(text, self.word_in(text), name)

    def states(self, pipe: Any, texts: Sequence[str]) -> Tensor:
        """What the pipeline's encoder makes of `texts`, `(n, length, d)`."""
        return final_states(text_encoder(pipe), token_ids(tokenizer_of(text_paths(pipe)[0]), texts))

    def generate(self, texts: Sequence[str]) -> list[Image.Image]:
        """The victim's images of `texts`."""
        if not takes_states(self.victim):
            settings = CallSettings(self.steps, self.guidance, self.size)
            seeds = [self.seed * SEEDS_APART + i for i in range(len(texts))]
            pairs = zip(texts, seeds, strict=True)
            return [generate_image(self.victim, text, settings, seed) for text, seed in pairs]
        return self.generate_from(self.victim, self.states(self.victim, texts))

    def generate_from(self, pipe: Any, states: Tensor, **inputs: Any) -> Any:
        """One image per row of states; image i starts from the same noise in every attack.

        Args:
            pipe: The pipeline that generates.
            states: `(n, length, d)` states of prompts.
            inputs: What else the pipeline takes: a list or tensor with one item per row, a
                function of the batch's slice, or one value for all.
        """
        empty = self.states(pipe, [""])
        found = []
        for first in trange(0, len(states), self.at_once, desc="attack", leave=False, delay=2):
            rows = states[first : first + self.at_once]
            batch = slice(first, first + len(rows))
            seeds = [self.seed * SEEDS_APART + first + i for i in range(len(rows))]
            output = pipe(
                prompt_embeds=rows,
                negative_prompt_embeds=empty.expand(len(rows), -1, -1),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                **self._sizes(),
                **{name: _batch_of(value, batch) for name, value in inputs.items()},
            )
            found.append(output.images)
        if isinstance(found[0], Tensor):
            return torch.cat(found)
        return [image for images in found for image in images]

    def _sizes(self) -> dict[str, int]:
        if self.size is None:
            return {}
        width, height = self.size
        return {"width": width, "height": height}


@dataclass(frozen=True)
class Attack:
    """How to attack, and what it takes."""

    access: str
    """"prompt", "embedding", "image" or "weights": what the attacker can give or hold."""
    budget: str
    run: Callable[[Siege], list[Image.Image]]
    """Images, one per prompt of the siege."""
    any_pipeline: bool = False
    """Whether it only writes prompts, so that it can attack whatever takes one. The others give
    states to a U-Net with one text encoder, or train it."""


def takes_states(pipe: Any) -> bool:
    """Whether the attacks that give states, images or gradients know this pipeline.

    They are written for Stable Diffusion's: one text encoder, whose last states a U-Net reads
    without a mask.
    """
    if not isinstance(pipe, StableDiffusionPipeline):
        return False
    (path,) = text_paths(pipe)
    return path.tokens([""]).mask is None


def text_encoder(pipe: Any) -> Any:
    """The pipeline's first text encoder."""
    return text_paths(pipe)[0].encoder


def _batch_of(value: Any, batch: slice) -> Any:
    if isinstance(value, (list, Tensor)):
        return value[batch]
    return value(batch) if callable(value) else value
