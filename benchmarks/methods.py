"""Ours and the peers, each at its recommended setting and at others."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from diffusers_erasepro import ErasureAdapter, ErasureSpec, erase
from diffusers_erasepro.baselines import literal, rece, speed, uce
from diffusers_erasepro.glyphs.world import World
from harness import Make

SIX = ("{}", "a {}", "a photo of a {}", "the {}", "a painting of a {}", "one {}")
OURS = "ours: default"


def every_setting(world: World) -> dict[str, Make]:
    """ "method: setting" -> how to make its adapter. A method's first is the recommended one."""
    words = (*world.shapes, *world.styles, *world.colors, *world.backgrounds)
    return {
        OURS: erase,
        "ours: soft_weight .03": partial(erase, soft_weight=0.03),
        "ours: layers (1, -1)": partial(erase, layers=(1, -1)),
        "UCE: 400 captions": uce,
        "UCE: words only": partial(uce_of_words, words=words),
        "UCE: 400 captions, erase x 10": partial(uce, erase_scale=10.0),
        "UCE: 400 captions, six templates": partial(uce, templates=SIX),
        "SPEED: V, threshold 0.1": speed,
        "SPEED: K and V, threshold 0.1": partial(speed, readers="kv"),
        "SPEED: K and V, threshold 0.01": partial(speed, readers="kv", threshold=0.01),
        "RECE: regulariser 1e-3": rece,
        "literal: identity": literal,
    }


def uce_of_words(pipe: Any, spec: ErasureSpec, *, words: Sequence[str]) -> ErasureAdapter:
    """UCE that keeps `words` without the targets, instead of captions."""
    targets: set[str] = set()
    for concept in spec.concepts:
        targets |= {*concept.words}
    return uce(pipe, spec, preserve=tuple(word for word in words if word not in targets))
