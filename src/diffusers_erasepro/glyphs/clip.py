"""The glyph world's CLIP: images and captions in one space, trained without labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..erasure.states import final_states
from ..prompts.tokens import token_ids
from .judge import JudgeNet, to_pixels

SPACE = 64
"""Dimensions that images and texts share."""


class ClipNet(nn.Module):
    """An image tower, and the projections of both sides.

    The text tower is the world's own encoder, as in Stable Diffusion.
    """

    def __init__(self, text_width: int, width: int = 96) -> None:
        super().__init__()
        self.tower = JudgeNet((), width)
        self.image = nn.Linear(width, SPACE)
        self.text = nn.Linear(text_width, SPACE)
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float32))
        """Logarithm of what cosines are multiplied by in training."""

    def project_images(self, pixels: Tensor) -> Tensor:
        """Unit vectors `(n, SPACE)` of pixels `(n, 3, SIZE, SIZE)` in [-1, 1]."""
        return F.normalize(self.image(self.tower.features(pixels)), dim=-1)

    def project_captions(self, states: Tensor) -> Tensor:
        """Unit vectors `(n, SPACE)` of the text encoder's states at EOS `(n, text_width)`."""
        return F.normalize(self.text(states), dim=-1)


class GlyphCLIP:
    """Images and texts -> unit vectors of one space."""

    def __init__(self, net: ClipNet, encoder: Any, tokenizer: Any) -> None:
        self.net = net.eval()
        self.encoder = encoder.eval()
        self.tokenizer = tokenizer

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors of images, `(n, SPACE)`."""
        return torch.cat(
            [
                self.net.project_images(to_pixels(images[i : i + 64]))
                for i in range(0, len(images), 64)
            ]
        )

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of texts, `(n, SPACE)`."""
        return self.net.project_captions(at_eos(self.encoder, self.tokenizer, texts))


def at_eos(encoder: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """The text encoder's states at EOS, `(n, d)`."""
    rows = token_ids(tokenizer, texts)
    eos = (rows == tokenizer.eos_token_id).int().argmax(-1)
    return final_states(encoder, rows)[torch.arange(len(rows)), eos]
