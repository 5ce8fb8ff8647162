"""An erasure as a technique of eval-unlearn 1.1, found by its entry point `erasepro`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from ..config.spec import DEFAULT_KIND, Concept, ErasureSpec
from ..erasure.erase import erase
from .pipelines import default_captions, load_model


class ErasureTechnique:
    """What eval-unlearn's runners make from a `technique_config`, and ask for images."""

    def __init__(
        self,
        *,
        model_id: str = "CompVis/stable-diffusion-v1-4",
        adapter: str | None = None,
        erase_concept: str | None = None,
        device: str | None = None,
        use_fp16: bool = False,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        **options: Any,
    ) -> None:
        """Load the base and erase.

        Args:
            model_id: As MODEL of `erasepro erase`.
            adapter: File, folder or Hub id of a finished erasure; None makes one.
            erase_concept: Target of the `Concept`; eval-unlearn's own metrics read it too.
            device: None takes CUDA where it is.
            use_fp16: Generate in float16.
            num_inference_steps, guidance_scale: Of every image, unless `generate` is given others.
            options: `anchor`, `templates` and `synonyms` of the `Concept`; all others of `erase`.

        Raises:
            ConceptSpecError: Neither an adapter nor a concept, or an option that cannot be meant.
        """
        self.call_options = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
        }
        self.pipe = load_model(model_id)
        if adapter is None:
            concept = Concept(
                erase_concept or "",
                options.pop("anchor", ""),
                templates=options.pop("templates", DEFAULT_KIND),
                synonyms=tuple(options.pop("synonyms", ())),
            )
            spec = ErasureSpec((concept,), preserve=default_captions(model_id))
            self.pipe.load_erasure_adapter(erase(self.pipe, spec, **options))
        else:
            self.pipe.load_erasure_adapter(adapter)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipe.to(device)
        if use_fp16:
            self.pipe.to(torch.float16)
        self.pipe.require_erasure()

    def generate(
        self, prompts: Sequence[str], seed: int | None = None, **more: Any
    ) -> list[Image.Image]:
        """One image per prompt; with a seed, image i starts from the noise of `seed + i`."""
        images = []
        for index, text in enumerate(prompts):
            noise = None if seed is None else torch.Generator().manual_seed(seed + index)
            called = self.pipe(text, generator=noise, **self.call_options | more)
            images.append(called.images[0])
        return images
