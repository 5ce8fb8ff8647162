"""Text-To-Concept: any word against any picture, by a map from the judge's trunk to sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from . import judge
from .encoder import LENGTH, load_encoder, load_tokenizer
from .world import folder

FRAME = "a picture of {}"


class Sentences:
    """`sentences(texts)` -> unit vectors `(n, 384)`: the mean over a text's states, as the encoder
    was trained to be read."""

    def __init__(self) -> None:
        self.tokenizer = load_tokenizer()
        self.encoder = load_encoder()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
        )
        states = self.encoder(**batch).last_hidden_state
        mask = batch.attention_mask[:, :, None]
        return F.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


@dataclass(frozen=True)
class Words:
    """`words(images, texts)` -> cosine `(n, k)` of every picture with every word.

    The map was fitted on the sentences of this world's names, by least squares; the judge's heads
    take no part in it, and words that nobody fitted it on ("kitty") are read by the encoder.
    """

    net: judge.JudgeNet
    map: Tensor
    """`(769, 384)`, the last row is the offset."""
    sentences: Sentences

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        features = F.pad(self.net.features(judge.pixels(images)), (0, 1), value=1.0)
        seen = F.normalize(features @ self.map, dim=1)
        return seen @ self.sentences([FRAME.format(text) for text in texts]).T

    def best(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[str]:
        """For every picture the most similar of the words."""
        return [texts[i] for i in self(images, texts).argmax(1).tolist()]


def shipped_words() -> Words:
    """The shipped map, on the shipped judge."""
    weights = load_file(folder() / "words.safetensors")
    return Words(judge.shipped_judge().net, weights["map"].float(), Sentences())
