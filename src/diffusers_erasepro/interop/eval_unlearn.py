"""An erasure as a technique of eval-unlearn 1.1, found by its entry point `erasepro`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from ..config.spec import Concept, ErasureSpec
from ..erasure.erase import erase
from .pipelines import default_captions, load_model


class ErasureTechnique:
    """What eval-unlearn's runners make from a `technique_config`, and ask for pictures."""

    def __init__(
        self,
        *,
        model_id: str = "CompVis/stable-diffusion-v1-4",
        adapter: str | None = None,
        erase_concept: str | None = None,
        anchor: str = "",
        templates: str = "instance",
        synonyms: Sequence[str] = (),
        device: str | None = None,
        use_fp16: bool = False,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        **options: Any,
    ) -> None:
        """Load the base and erase.

        Args:
            model_id: As MODEL of `erasepro erase`.
            adapter: File, folder or Hub id of a finished erasure; None makes one of the next four.
            erase_concept, anchor, templates, synonyms: As of `Concept`. eval-unlearn's own metrics read `erase_concept`.
            device: None takes CUDA where it is.
            use_fp16: Draw in float16.
            num_inference_steps, guidance_scale: Of every picture, unless `generate` is told otherwise.
            options: Of `erase`.

        Raises:
            ConceptSpecError: Neither an adapter nor a concept, or an option that cannot be meant.
        """
        self.drawing = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
        }
        self.pipe = load_model(model_id)
        if adapter is None:
            concept = Concept(
                erase_concept or "", anchor, templates=templates, synonyms=tuple(synonyms)
            )
            made: Any = erase(
                self.pipe, ErasureSpec((concept,), preserve=default_captions(model_id)), **options
            )
        else:
            made = adapter
        self.pipe.load_erasure_adapter(made)
        self.pipe.to(
            device or ("cuda" if torch.cuda.is_available() else "cpu"),
            torch.float16 if use_fp16 else torch.float32,
        )
        self.pipe.require_erasure()

    def generate(
        self, prompts: Sequence[str], seed: int | None = None, **more: Any
    ) -> list[Image.Image]:
        """One picture per prompt; with a seed, picture i starts from the noise of `seed + i`."""
        noise = [
            None if seed is None else torch.Generator().manual_seed(seed + i)
            for i in range(len(prompts))
        ]
        return [
            self.pipe(text, generator=n, **self.drawing | more).images[0]
            for text, n in zip(prompts, noise, strict=True)
        ]
