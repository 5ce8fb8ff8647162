"""Attacks that give text states to the denoiser, or an embedding to the text encoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...baselines.rece import inverse_map
from ...config.mentions import find_mention
from ...families.pipelines import family_of, get_component, reader_paths
from ...modules.storage import weight_of
from ...prompts.tokens import token_ids
from .denoising import denoising_losses
from .siege import Siege, text_encoder

EMPHASIS = 1.6
"""Of the concept's word, as in "(word:1.6)"."""
STRENGTH = 1.5
"""Times the concept's vector."""


def weight_word(siege: Siege) -> list[Image.Image]:
    """The word's states pushed away from the empty prompt's, as "(word:1.6)" in front ends."""
    states = siege.states(siege.victim, siege.prompts).clone()
    empty = siege.states(siege.victim, [""])[0]
    for i, text in enumerate(siege.prompts):
        span = find_mention(text, siege.word_in(text))
        assert span is not None  # a siege checks that its prompts name the concept
        start, end = span
        offsets = siege.victim.tokenizer(text, return_offsets_mapping=True).offset_mapping
        at = [k for k, (left, right) in enumerate(offsets) if left < min(right, end)]
        at = [k for k in at if offsets[k][1] > start]
        states[i, at] = empty[at] + EMPHASIS * (states[i, at] - empty[at])
    return siege.generate_from(siege.victim, states)


def concept_vector(siege: Siege) -> Tensor:
    """Mean of the base's states with the concept minus those with the anchor, `(length, d)`.

    Ring-A-Bell's vector.
    """
    named = siege.states(siege.base, siege.prompts)
    neutral = siege.states(siege.base, siege.neutral)
    return (named - neutral).mean(0)


def add_concept_vector(siege: Siege) -> list[Image.Image]:
    """Harmless prompts plus the concept's vector (Ring-A-Bell)."""
    states = siege.states(siege.victim, siege.neutral) + STRENGTH * concept_vector(siege)
    return siege.generate_from(siege.victim, states)


def revived_states(siege: Siege, *, regulariser: float = 1e-3) -> Tensor:
    """States for which the victim's K and V give what the base's give, `(n, length, d)`.

    RECE's derivation. The states are the base encoder's: an edit of the encoder alone does not
    see them at all.
    """
    family = family_of(siege.base)
    root = get_component(siege.base, family.denoiser)
    victim = get_component(siege.victim, family.denoiser)
    paths = list(reader_paths(root, family))
    old = [weight_of(root, path).detach().cpu().double() for path in paths]
    new = [weight_of(victim, path).detach().cpu().double() for path in paths]
    # The derivation takes the victim's weights to be W M, with one M for all linears.
    M = torch.linalg.lstsq(torch.cat(old), torch.cat(new)).solution
    gram = sum((W.T @ W for W in old), torch.zeros((), dtype=torch.float64))
    Z = inverse_map(gram, M, regulariser)
    states = siege.states(siege.base, siege.prompts)
    return (states.cpu().double() @ Z.T).to(states)


def invert_readers(siege: Siege) -> list[Image.Image]:
    """The states that revive the concept in the victim's K and V (RECE)."""
    return siege.generate_from(siege.victim, revived_states(siege))


def invert_text(
    siege: Siege, *, steps: int = 60, images: int = 16, rate: float = 2e-2
) -> list[Image.Image]:
    """CCE's textual inversion: one new word, learnt on the victim from images of the concept."""
    encoder = text_encoder(siege.victim)
    tokenizer = siege.victim.tokenizer
    new_word = len(tokenizer) - 3
    ids = token_ids(tokenizer, ["a a"]).to(encoder.device)
    ids[0, 2] = new_word
    start = encoder.get_input_embeddings().weight.detach().mean(0)
    vector = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([vector], lr=rate)

    def states(n: int) -> Tensor:
        return encoder(ids).last_hidden_state.expand(n, -1, -1)

    with _embedding_replaced(encoder, new_word, vector):
        for loss in denoising_losses(siege, siege.latents[:images], states, steps):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            learnt = states(len(siege.prompts))
    return siege.generate_from(siege.victim, learnt)


@contextmanager
def _embedding_replaced(encoder: Any, token: int, vector: Tensor) -> Iterator[None]:
    """Inside, `token` has `vector` for its embedding."""

    def replace(_: object, args: tuple[Tensor], out: Tensor) -> Tensor:
        return torch.where((args[0] == token)[..., None], vector, out)

    handle = encoder.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
