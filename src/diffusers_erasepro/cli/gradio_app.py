"""A page to click: erase, compare before and after with the same seeds, switch, save."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from ..adapters.header import format_measure
from ..config.kinds import known_kinds
from ..config.spec import Concept, ErasureSpec
from ..errors import ErasureError
from ..interop.pipelines import default_captions, default_prompts, default_templates, load_model

PAGE_STEPS = 15
BY_MODEL = "as the model asks"
"""The choice that leaves the kind open."""


class Session:
    """One pipeline and what was erased from it; Gradio's queue lets one event in at a time."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.pipe = load_model(model)
        self.captions = default_captions(model)
        self.folder = Path(tempfile.mkdtemp(prefix="erasepro-ui-"))

    def erase(self, target: str, anchor: str, templates: str) -> tuple[Any, str, str]:
        """Make, save and switch on an adapter; the switches, the report and the file."""
        from ..erasure.erase import erase

        with show_errors():
            kind = default_templates(self.model, target) if templates == BY_MODEL else templates
            spec = ErasureSpec((Concept(target, anchor, templates=kind),), preserve=self.captions)
            adapter = erase(self.pipe, spec)
            name = self.pipe.load_erasure_adapter(adapter, adapter_name=self.name_for(target))
            file = adapter.save_pretrained(self.folder / name)
        report = adapter.report
        words = (
            f"**{name}** in {report.seconds:.1f} s: residual {report.listed_residual:.1e} "
            "on listed prompts, "
            f"{format_measure(report.held_out_mean, '.2f')} on unseen phrasings, "
            f"drift {format_measure(report.drift, '.3f')}"
        )
        return self.switches(), words, str(file)

    def name_for(self, target: str) -> str:
        """A free adapter name made of the target's letters."""
        plain = "no-" + re.sub(r"[^a-z0-9]+", "-", target.lower()).strip("-")[:50]
        taken = self.pipe.get_erasure_adapters()
        names = [plain, *(f"{plain}-{number}" for number in range(2, 1000))]
        return next(name for name in names if name not in taken)

    def switches(self) -> Any:
        states = self.pipe.get_erasure_adapters()
        return gr.update(choices=list(states), value=[n for n, on in states.items() if on])

    def switch(self, names: list[str]) -> str:
        """Switch exactly these on; what the live pipeline measures then."""
        with show_errors():
            self.pipe.set_erasure_adapters(names)
        if not names:
            return "All off: the base, bit for bit."
        found = self.pipe.verify_erasure()
        verdict = "Holds" if found.ok else "DOES NOT HOLD"
        return f"{verdict}: residual {found.residual:.1e}, at most {found.threshold:.0e} allowed"

    def generate(self, prompts: str, seed: float) -> list[tuple[Any, str]]:
        """Before and after for each prompt, from the same noise."""
        texts = [line.strip() for line in prompts.splitlines() if line.strip()]
        if not texts:
            raise gr.Error("no prompts; write at least one line")
        with show_errors():
            with self.pipe.erasure_disabled():
                before = self.generate_images(texts, int(seed))
            after = self.generate_images(texts, int(seed))
        pairs = zip(texts, before, after, strict=True)
        shown = []
        for text, image_before, image_after in pairs:
            shown += [(image_before, f"before: {text}"), (image_after, f"after: {text}")]
        return shown

    def generate_images(self, texts: list[str], seed: int) -> Any:
        noise = [torch.Generator().manual_seed(seed + i) for i in range(len(texts))]
        return self.pipe(
            texts, num_inference_steps=PAGE_STEPS, guidance_scale=3.0, generator=noise
        ).images


@contextmanager
def show_errors() -> Iterator[None]:
    """Our errors as messages on the page."""
    try:
        yield
    except ErasureError as error:
        raise gr.Error(str(error)) from error


def page(model: str) -> Any:
    """The page for one model, as a Gradio application."""
    session = Session(model)
    with gr.Blocks(title="erasepro", analytics_enabled=False) as blocks:
        gr.Markdown(f"## Erase a concept from `{model}`")
        with gr.Row():
            target = gr.Textbox(label="Target", placeholder="what to erase")
            anchor = gr.Textbox(label="Anchor", placeholder="what it becomes; empty: nothing")
            kinds = [BY_MODEL, *known_kinds()]
            templates = gr.Dropdown(kinds, value=BY_MODEL, label="Kind")
        erase = gr.Button("Erase", variant="primary")
        report = gr.Markdown()
        switches = gr.CheckboxGroup([], label="Erasures that are on")
        state = gr.Markdown()
        with gr.Row():
            examples = "\n".join(default_prompts(model, ""))
            prompts = gr.Textbox(examples, label="Prompts, one a line", lines=3)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        draw = gr.Button("Draw before and after")
        gallery = gr.Gallery(label="Before and after", columns=2, object_fit="contain")
        file = gr.File(label="The adapter", interactive=False)
        bind(erase.click, session.erase, [target, anchor, templates], [switches, report, file])
        bind(anchor.submit, session.erase, [target, anchor, templates], [switches, report, file])
        bind(switches.input, session.switch, [switches], [state])
        bind(draw.click, session.generate, [prompts, seed], [gallery])
    return blocks


def bind(
    event: Callable[..., Any], work: Callable[..., Any], inputs: list[Any], outputs: list[Any]
) -> None:
    """One event at a time over all of them: they share a pipeline."""
    event(work, inputs, outputs, concurrency_limit=1, concurrency_id="pipe")


def serve(model: str, *, host: str = "127.0.0.1", port: int | None = None) -> None:
    """Serve the page until interrupted."""
    page(model).launch(server_name=host, server_port=port, quiet=True)
