"""The judge: a classifier of glyph images that answers per question where it is sure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .render import SIZE
from .world import World


@dataclass(frozen=True)
class Head:
    """One question and its possible answers; the last may be None ("nothing of the kind")."""

    name: str
    answers: tuple[str | bool | None, ...]


def heads_of(world: World) -> tuple[Head, ...]:
    """The questions a judge of `world` answers."""
    return (
        Head("shape", (*world.shapes, None)),
        Head("style", tuple(world.styles)),
        Head("color", tuple(world.colors)),
        Head("background", tuple(world.backgrounds)),
        Head("attribute", (False, True)),
        Head("second", (*world.shapes, None)),
    )


class JudgeNet(nn.Module):
    """Convolutions `(n, 3, SIZE, SIZE)` -> features `(n, width)` -> one row of logits per head."""

    def __init__(self, heads: Sequence[Head], width: int = 160) -> None:
        super().__init__()
        channels = (3, 32, 64, 128, width)
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(itertools.pairwise(channels)):
            layers += [
                nn.Conv2d(a, b, 3, stride=1 if i == 0 else 2, padding=1),
                nn.GroupNorm(8, b),
                nn.SiLU(),
            ]
            layers += [nn.Conv2d(b, b, 3, padding=1), nn.GroupNorm(8, b), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.mix = nn.Sequential(nn.Linear(width * (SIZE // 8) ** 2, width), nn.SiLU())
        self.heads = nn.ModuleDict({h.name: nn.Linear(width, len(h.answers)) for h in heads})

    def features(self, pixels: Tensor) -> Tensor:
        """Features `(n, width)` of pixels `(n, 3, SIZE, SIZE)` in [-1, 1]."""
        return self.mix(self.trunk(pixels).flatten(1))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        features = self.features(pixels)
        return {name: head(features) for name, head in self.heads.items()}


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """PIL images -> `(n, 3, SIZE, SIZE)` in [-1, 1]."""
    arrays = [
        np.asarray(i.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32)
        for i in images
    ]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1


class Judge:
    """`judge(images)` -> a list of answers per question, in the words captions use.

    An answer is None where the image holds nothing of the kind, or where the judge is less
    sure than `min_confidence`, so that garbage is never counted as "target gone, rest kept".
    `"second"` is the shape of an object beside the first, `"confidence"` the least sure head.
    """

    def __init__(
        self, net: JudgeNet, heads: Sequence[Head], *, min_confidence: float = 0.4
    ) -> None:
        self.net = net.eval()
        self.heads = tuple(heads)
        self.min_confidence = min_confidence

    @torch.no_grad()
    def probabilities(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Head name -> `(n, answers)`; the columns are `heads_of(world)`'s answers."""
        parts = [self.net(pixels) for pixels in self._batches(images)]
        found = {}
        for head in self.heads:
            logits = torch.cat([part[head.name] for part in parts])
            found[head.name] = logits.softmax(-1)
        return found

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """`(n, width)` features, for distances between sets of images."""
        return torch.cat([self.net.features(pixels) for pixels in self._batches(images)])

    def _batches(self, images: Sequence[Image.Image]) -> Iterator[Tensor]:
        device = next(self.net.parameters()).device
        return (to_pixels(images[i : i + 64]).to(device) for i in range(0, len(images), 64))

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, list]:
        return self.answers(self.probabilities(images))

    def answers(self, probabilities: dict[str, Tensor]) -> dict[str, list]:
        """The words of `(n, answers)` probabilities per head, None below `min_confidence`."""
        answers: dict[str, list] = {}
        for head in self.heads:
            sure, index = probabilities[head.name].max(-1)
            answers[head.name] = [
                head.answers[i] if s >= self.min_confidence else None
                for s, i in zip(sure.tolist(), index.tolist(), strict=True)
            ]
        best = torch.stack([p.max(-1).values for p in probabilities.values()])
        answers["confidence"] = best.min(0).values.tolist()
        return answers
