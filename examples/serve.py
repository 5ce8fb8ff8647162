"""An image service with two erasures that no request can switch off, and a health endpoint.

    pip install fastapi uvicorn
    uvicorn --app-dir examples serve:app

`POST /draw {"prompt": "a red star on snow", "seed": 0}` answers a PNG.
`GET /health` measures the erasures on the live weights. `erasepro serve-check` asks both.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, Response
from pydantic import BaseModel, Field

from diffusers_erasepro import erasable, glyphs

ADAPTERS = Path(__file__).parent.parent / "adapters" / "glyphs"
FILE = "pytorch_lora_weights.safetensors"
ERASED = ("no-star", "no-mira-voss")


def load() -> Any:
    """The pipeline with both erasures on and locked.

    It raises if they do not hold, so that no service starts without them.
    """
    pipe = erasable(glyphs.load_pipeline())
    for name in ERASED:
        pipe.load_erasure_adapter(ADAPTERS / name, adapter_name=name, locked=True)
    pipe.verify_erasure(raise_on_fail=True)
    return pipe


def hash_file(name: str) -> str:
    """sha256 of an adapter's file, by which `erasepro serve-check` knows it from others."""
    return hashlib.sha256((ADAPTERS / name / FILE).read_bytes()).hexdigest()


class Request(BaseModel):
    """What a client may say; no `prompt_embeds`, which would go around the text encoder."""

    prompt: str = Field(max_length=500)
    seed: int = Field(default=0, ge=0, lt=2**63)
    steps: int = Field(default=15, ge=1, le=50)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.pipe = load()
    app.state.one_at_a_time = threading.Lock()
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/draw", response_class=Response)
def draw(request: Request) -> Response:
    """A PNG of the prompt, with the erasures on."""
    noise = torch.Generator().manual_seed(request.seed)
    settings = {"num_inference_steps": request.steps, "guidance_scale": 3.0, "generator": noise}
    with app.state.one_at_a_time:  # a pipeline's scheduler has a state of its own
        image = app.state.pipe(request.prompt, **settings).images[0]
    content = io.BytesIO()
    image.save(content, "PNG")
    return Response(content.getvalue(), media_type="image/png")


@app.get("/health")
def health(response: Response) -> dict[str, Any]:
    """Whether the erasures hold now, measured; 503 if not."""
    with app.state.one_at_a_time:
        found = app.state.pipe.verify_erasure()
    on = app.state.pipe.get_erasure_adapters()
    ok = found.ok and all(on.get(name) for name in ERASED)
    response.status_code = 200 if ok else 503
    report = {"ok": ok, "residual": found.residual, "threshold": found.threshold, "erased": on}
    return report | {"files": {name: hash_file(name) for name in ERASED}}
