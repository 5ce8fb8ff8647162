"""The judge of the pictures world, and its map into the encoder's sentence space.

    python tools/pictures/judge.py FOLDER --seconds 500
    python tools/pictures/judge.py FOLDER --words     # the map alone, for the shipped judge

Trains on renders and on the autoencoder's reconstructions of them, never on what a pipeline drew,
and no pipeline is trained on it. Writes FOLDER/judge.pt and FOLDER/words.safetensors.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from scenes import Pictures, paste, plain, things_of
from torch import Tensor
from tqdm import tqdm

from diffusers_erasepro.pictures.captions import BACKGROUNDS, STYLES
from diffusers_erasepro.pictures.judge import SIZE, JudgeNet, shipped_judge
from diffusers_erasepro.pictures.words import FRAME, Sentences

BATCH = 96
RATE = 2e-3
WEIGHTS = (1.0, 0.5, 0.3)
"""Of the losses of thing, hand, background."""
WORD_BATCHES = 20
"""Batches of pictures that the map into the sentence space is fitted on."""
RIDGE = 1e-3
"""Share of the mean squared feature on the diagonal of the map's normal equations."""


@dataclass(frozen=True)
class Sample:
    """Pictures and what they show."""

    pixels: Tensor
    truth: tuple[Tensor, Tensor, Tensor]
    """Indices of thing, hand, background."""


class Samples:
    """Scenes of one thing, at any size and place."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.pictures = Pictures(folder)
        self.things = list(things_of(folder))
        self.rng = random.Random(seed)
        entries = self.pictures.entries
        self.thing = torch.tensor([self.things.index(e["thing"]) for e in entries])
        self.hand = torch.tensor([STYLES.index(e["hand"]) for e in entries])
        self.vae = AutoencoderKL.from_pretrained(folder / "vae").float().eval()

    def drawn(self, n: int) -> Sample:
        rows = torch.randint(len(self.pictures.rgba), (n,))
        colors = torch.randint(len(BACKGROUNDS), (n,))
        size = self.rng.choice((44, 48, 52, 56, 60))
        top = self.rng.randint(0, SIZE - size)
        left = self.rng.randint(0, SIZE - size)
        canvas = plain(colors.tolist())
        paste(canvas, self.pictures.rgba[rows], size, top, left)
        return Sample(canvas / 127.5 - 1, (self.thing[rows], self.hand[rows], colors))

    @torch.no_grad()
    def through_autoencoder(self, x: Tensor) -> Tensor:
        return self.vae.decode(self.vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)

    def mixed(self, n: int) -> Sample:
        """Half renders, half reconstructions."""
        sample = self.drawn(n)
        half = sample.pixels[: n // 2]
        half.copy_(self.through_autoencoder(half))
        return sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--words", action="store_true", help="fit the map, keep the shipped judge")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    samples = Samples(args.folder, args.seed)
    if args.words:
        net = shipped_judge().net
    else:
        net = trained(samples, args.seconds)
        torch.save(net.state_dict(), args.folder / "judge.pt")
    matrix = word_map(net, samples)
    save_file({"map": matrix.half().contiguous()}, args.folder / "words.safetensors")
    report(net, samples)
    report_words(net, matrix, samples)


def trained(samples: Samples, seconds: float) -> JudgeNet:
    """A judge trained from scratch for so many seconds."""
    net = JudgeNet(len(samples.things))
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.02)
    began = time.monotonic()
    step = 0
    bar = tqdm(total=round(seconds), unit="s")
    while (past := (time.monotonic() - began) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 100) * max(0.03, 1 - past)
        sample = samples.mixed(BATCH)
        said = net(disturbed(sample.pixels))
        losses = [
            weight * F.cross_entropy(logits, truth, label_smoothing=0.05)
            for weight, logits, truth in zip(WEIGHTS, said, sample.truth, strict=True)
        ]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        bar.update(round(past * seconds) - bar.n)
        bar.set_postfix(step=step, loss=f"{loss.item():.3f}")
    bar.close()
    return net.eval()


def disturbed(x: Tensor) -> Tensor:
    """Noise and contrast of a random strength for every picture."""
    noise = 0.08 * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)
    return (x + noise) * (1 + 0.1 * torch.randn(len(x), 1, 1, 1))


@torch.no_grad()
def word_map(net: JudgeNet, samples: Samples) -> Tensor:
    """`(769, 384)`: the trunk's features, and one, to the sentence of the thing shown.

    Least squares with a ridge; no head of the judge takes part.
    """
    targets = Sentences()([FRAME.format(thing) for thing in samples.things]).double()
    width = 2 * 384 + 1
    gram = torch.zeros(width, width, dtype=torch.double)
    moments = torch.zeros(width, targets.shape[1], dtype=torch.double)
    for _ in tqdm(range(WORD_BATCHES), "words"):
        sample = samples.mixed(BATCH)
        features = F.pad(net.features(sample.pixels), (0, 1), value=1.0).double()
        gram += features.T @ features
        moments += features.T @ targets[sample.truth[0]]
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    return torch.linalg.solve(gram, moments)


@torch.no_grad()
def report(net: JudgeNet, samples: Samples, batches: int = 10) -> None:
    """Accuracy of thing, hand and background, on renders and on reconstructions."""
    right = torch.zeros(2, 3)
    for _ in range(batches):
        sample = samples.drawn(BATCH)
        for row, pixels in enumerate((sample.pixels, samples.through_autoencoder(sample.pixels))):
            for column, (said, truth) in enumerate(zip(net(pixels), sample.truth, strict=True)):
                right[row, column] += (said.argmax(1) == truth).float().mean() / batches
    for name, row in zip(("renders", "reconstructions"), right.tolist(), strict=True):
        print(name, " ".join(f"{share:.3f}" for share in row), f"(n = {batches * BATCH})")


@torch.no_grad()
def report_words(net: JudgeNet, matrix: Tensor, samples: Samples, pictures: int = 1000) -> None:
    """How often the map finds a thing's name among all names, and a synonym among other names."""
    sample = samples.drawn(pictures)
    truth = sample.truth[0]
    features = F.pad(net.features(sample.pixels), (0, 1), value=1.0)
    seen = F.normalize(features @ matrix.float(), dim=1)
    sentences = Sentences()
    cosines = seen @ sentences([FRAME.format(thing) for thing in samples.things]).T
    named = cosines.argmax(1) == truth
    print(f"words: names {named.float().mean():.3f} (n = {pictures})")
    others = cosines.scatter(1, truth[:, None], -1.0).amax(1)
    found = []
    for at, entry in enumerate(things_of(samples.folder).values()):
        rows = (truth == at).nonzero().flatten()
        for word in entry["synonyms"]:
            said = seen[rows] @ sentences([FRAME.format(word)])[0]
            found += (said > others[rows]).tolist()
    print(f"words: synonyms {sum(found) / len(found):.3f} (n = {len(found)})")


if __name__ == "__main__":
    main()
