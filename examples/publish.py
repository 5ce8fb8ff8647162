"""Make an erasure, look at it, publish it with its card and images, and load it back pinned.

python examples/publish.py OWNER/NAME        # needs `hf auth login`
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erasable, erase, glyphs

PROMPT = "a red heart on snow"


def main(repo_id: str) -> ErasureAdapter:
    """Publish to `repo_id`; returns the adapter as it came back, pinned to its commit."""
    pipe = erasable(glyphs.load_pipeline())
    spec = ErasureSpec([Concept("heart", anchor="circle")], preserve=glyphs.captions(400, seed=0))
    adapter = erase(pipe, spec)
    pipe.load_erasure_adapter(adapter)
    pipe.verify_erasure(raise_on_fail=True)
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "after.png"
        pipe(PROMPT, num_inference_steps=15).images[0].save(image)
        about = {"base_model": "glyphs", "license": "apache-2.0", "pictures": {PROMPT: image}}
        url = adapter.push_to_hub(repo_id, **about)
    print(url)
    return ErasureAdapter.from_pretrained(repo_id, revision=url.rsplit("/", 1)[-1])


if __name__ == "__main__":
    print(main(sys.argv[1]).origin)
