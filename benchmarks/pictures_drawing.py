"""Pictures of the pictures world for `pictures.py`: drawn once however many rows ask for them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from diffusers_erasepro import ErasureAdapter, erasable, pictures
from diffusers_erasepro.families.pipelines import family_of
from diffusers_erasepro.modules.fingerprint import fingerprints
from diffusers_erasepro.pictures import Caption
from harness import file_name
from pictures_cells import Prompt

BATCH = 50
"""Pictures drawn together."""
READ = 10
"""Prompts encoded together, always so many: another number changes the last bits."""
STEPS = 6
GUIDANCE = 4.0
SHOWN = 12
"""Of each kind of prompt, so many pictures are kept for the page."""
TRIED = 10
"""Pictures whose time says how long a page takes."""


class Studio:
    """A pipeline of the world, and the pictures that it has drawn.

    What a picture depends on is its key: the states that the denoiser reads, its weights, the seed,
    the steps. Two rows that agree in these share the picture.
    """

    def __init__(self, kind: str, folder: Path, *, steps: int = STEPS) -> None:
        self.pipe = erasable(pictures.load_pipeline(kind))
        self.shipped_scheduler = self.pipe.scheduler
        if kind == "unet":
            # a solver of second order needs fewer steps than the DDIM that is shipped
            found = DPMSolverMultistepScheduler.from_config(self.pipe.scheduler.config)
            self.pipe.scheduler = found
        self.kind = kind
        self.steps = steps
        self.denoiser = family_of(self.pipe).denoiser
        self.weights = weights_of(self.pipe, (self.denoiser, "vae"))
        self.folder = folder / self.weights[:12]
        self._drawn: dict[str, Image.Image] = {}

    @contextmanager
    def edited(self, adapter: ErasureAdapter | None) -> Iterator[str]:
        """Inside, the adapter is on; the value names the weights of the denoiser."""
        if adapter is None:
            yield self.weights
            return
        self.pipe.load_erasure_adapter(adapter, adapter_name="measured")
        try:
            edits = self.denoiser in adapter.components
            yield hashlib.sha1(adapter.to_bytes()).hexdigest() if edits else self.weights
        finally:
            self.pipe.unload_erasure_adapters()

    def draw(
        self, prompts: Sequence[Prompt], seed: int, denoiser: str, *, what: str, keep: bool
    ) -> list[Image.Image]:
        """One picture per prompt.

        Args:
            prompts: What to draw.
            seed: Of the noise.
            denoiser: Which weights draw, as `edited` says.
            what: Of the progress bar.
            keep: Whether the pictures are kept on disk too, for another start.
        """
        texts = [prompt.text for prompt in prompts]
        seeds = [seed * 100_003 + prompt.noise for prompt in prompts]
        (empty,) = self.states([""])
        read = self.states(texts)
        keys = [
            self._key(states, empty, denoiser, at) for states, at in zip(read, seeds, strict=True)
        ]
        missing = [i for i, key in enumerate(keys) if not self._find(key)]
        # two prompts that became one and start from one noise are one picture
        missing = [i for i in missing if keys.index(keys[i]) == i]
        bar = tqdm(total=len(missing), desc=what, leave=False, unit="picture")
        for first in range(0, len(missing), BATCH):
            part = missing[first : first + BATCH]
            if self.kind == "unet":
                asked = {
                    "prompt_embeds": read[part],
                    "negative_prompt_embeds": empty.expand(len(part), -1, -1),
                }
            else:
                asked = {"prompt": [texts[i] for i in part]}
            images = self._generate(asked, [seeds[i] for i in part])
            for i, image in zip(part, images, strict=True):
                self._keep(keys[i], image, on_disk=keep)
            bar.update(len(part))
        bar.close()
        return [self._drawn[key] for key in keys]

    def draw_with(self, captions: Sequence[Caption], steps: int, scheduler: Any) -> list[Any]:
        """A picture per caption with another scheduler; none is kept."""
        usual = self.pipe.scheduler, self.steps
        self.pipe.scheduler = scheduler
        self.steps = steps
        try:
            images = []
            for first in tqdm(range(0, len(captions), BATCH), desc=f"{steps} steps", leave=False):
                texts = [caption.text for caption in captions[first : first + BATCH]]
                seeds = list(range(first, first + len(texts)))
                images += self._generate({"prompt": texts}, seeds)
            return images
        finally:
            self.pipe.scheduler, self.steps = usual

    def seconds_of_a_picture(self) -> float:
        """Measured, of this process alone: a busy machine takes longer."""
        texts = [caption.text for caption in pictures.captions(TRIED)]
        began = time.process_time()
        self._generate({"prompt": texts}, list(range(TRIED)))
        return (time.process_time() - began) / TRIED

    @torch.no_grad()
    def states(self, texts: Sequence[str]) -> Tensor:
        """What the denoiser reads of prompts, `(n, 32, 384)`, in batches of one size."""
        found = []
        for first in range(0, len(texts), READ):
            part = list(texts[first : first + READ])
            filled = part + [""] * (READ - len(part))
            encoded = self.pipe.encode_prompt(
                filled, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            found.append(encoded[0][: len(part)])
        return torch.cat(found)

    def _key(self, states: Tensor, empty: Tensor, denoiser: str, noise: int) -> str:
        """What the picture of a prompt depends on."""
        key = hashlib.sha1(states.numpy().tobytes())
        key.update(empty.numpy().tobytes())
        key.update(f"{denoiser} {self.steps} {GUIDANCE} {noise}".encode())
        return key.hexdigest()

    def _generate(self, asked: dict[str, Any], seeds: Sequence[int]) -> list[Image.Image]:
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = self.pipe(
            **asked,
            num_inference_steps=self.steps,
            guidance_scale=GUIDANCE,
            height=64,
            width=64,
            generator=noise,
        )
        return drawn.images

    def _find(self, key: str) -> bool:
        """Whether there is such a picture; of one that lies on disk, it is read."""
        path = self.folder / f"{key}.png"
        if key not in self._drawn and path.exists():
            self._drawn[key] = Image.open(path).convert("RGB")
        return key in self._drawn

    def _keep(self, key: str, image: Image.Image, *, on_disk: bool) -> None:
        self._drawn[key] = image
        if on_disk:
            self.folder.mkdir(parents=True, exist_ok=True)
            image.save(self.folder / f"{key}.png")


def shown_folder(folder: Path, weights: str, cell: str, row: str) -> Path:
    """Where the page finds pictures."""
    return folder / "shown" / weights[:12] / file_name(cell) / file_name(row)


def weights_of(pipe: Any, parts: Sequence[str]) -> str:
    """A fingerprint of some components together."""
    found = hashlib.sha1()
    for part in parts:
        found.update(fingerprints(getattr(pipe, part), {})["float32"].encode())
    return found.hexdigest()
