"""One concept under attack, and what an attack is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import trange

from ...config.mentions import Mentions, mentions, replace_mentions
from ...config.spec import Concept
from ...erasure.states import final_states
from ...errors import EvaluationError
from ...families.pipelines import family_of, get_component
from ...prompts.tokens import token_ids

IMAGES_AT_ONCE = 40
"""Images generated together."""


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
    guidance: float = 3.0

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
        return final_states(text_encoder(pipe), token_ids(pipe.tokenizer, texts))

    def generate(self, texts: Sequence[str]) -> list[Image.Image]:
        """The victim's images of `texts`."""
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
        for first in trange(0, len(states), IMAGES_AT_ONCE, desc="attack", leave=False, delay=2):
            rows = states[first : first + IMAGES_AT_ONCE]
            batch = slice(first, first + len(rows))
            seeds = [self.seed * 100_000 + first + i for i in range(len(rows))]
            output = pipe(
                prompt_embeds=rows,
                negative_prompt_embeds=empty.expand(len(rows), -1, -1),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                **{name: _batch_of(value, batch) for name, value in inputs.items()},
            )
            found.append(output.images)
        if isinstance(found[0], Tensor):
            return torch.cat(found)
        return [image for images in found for image in images]


@dataclass(frozen=True)
class Attack:
    """How to attack, and what it takes."""

    access: str
    """"prompt", "embedding", "image" or "weights": what the attacker can give or hold."""
    budget: str
    run: Callable[[Siege], list[Image.Image]]
    """Images, one per prompt of the siege."""


def text_encoder(pipe: Any) -> Any:
    """The pipeline's first text encoder."""
    return get_component(pipe, family_of(pipe).encoders[0][0])


def _batch_of(value: Any, batch: slice) -> Any:
    if isinstance(value, (list, Tensor)):
        return value[batch]
    return value(batch) if callable(value) else value
