"""Words that a tokenizer does not know: one unknown token stands for all of them."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Set
from typing import Any

from tokenizers.models import Unigram
from torch import Tensor

from ..errors import ConceptSpecError
from ..families.encode_prompt import PromptSpan
from .pairs import Prompt


def refuse_unknown_tokens(
    tokenizer: Any, unknown: Set[int], prompt: Prompt, span: PromptSpan, ids: Tensor
) -> None:
    """Refuse a prompt whose words the tokenizer does not tell from others.

    Args:
        tokenizer: What made the tokens.
        unknown: Its `unknown_ids`.
        prompt: A concept in its template.
        span: Where the prompt is in its row.
        ids: `(length,)` the row.

    Raises:
        ConceptSpecError: A token of the concept or of its template is the unknown one, or
            characters of the concept are in no token.
    """
    row = ids.tolist()
    concept: list[int] = []
    template: list[int] = []
    covered: set[int] = set()
    for position in range(span.first, span.stop):
        offset = span.offsets[position]
        if offset is None or not offset[0] < offset[1]:
            continue
        start, stop = offset
        covered |= {*range(start, stop)}
        if start < prompt.stop and stop > prompt.start:
            concept.append(row[position])
        elif start < len(prompt.text) and stop > 0:
            template.append(row[position])
    words = prompt.text[prompt.start : prompt.stop]
    if unknown & {*concept}:
        raise ConceptSpecError(
            f"{words!r} holds what {type(tokenizer).__name__} does not know: its tokens in "
            f"{prompt.text!r} are {tokenizer.convert_ids_to_tokens(concept)}; every other unknown "
            "word has the same, so they would be erased with it. Write it in words that the "
            "tokenizer knows"
        )
    if unknown & {*template}:
        raise ConceptSpecError(
            f"the template of {prompt.text!r} holds what {type(tokenizer).__name__} does not know: "
            f"its tokens are {tokenizer.convert_ids_to_tokens(template)}; write it in words that "
            "the tokenizer knows"
        )
    lost = [
        prompt.text[i]
        for i in range(prompt.start, prompt.stop)
        if i not in covered and unicodedata.category(prompt.text[i])[0] not in "ZCM"
    ]
    if lost:
        raise ConceptSpecError(
            f"{words!r}: {type(tokenizer).__name__} drops {''.join(lost)!r}, its tokens are "
            f"{tokenizer.convert_ids_to_tokens(concept)}; other words have the same. Write it in "
            "words that the tokenizer knows"
        )


def unknown_ids(tokenizer: Any) -> set[int]:
    """What a tokenizer makes of words it does not know; empty if it spells everything in bytes."""
    found = {tokenizer.unk_token_id}
    model = tokenizer.backend_tokenizer.model
    if getattr(model, "unk_token", None):
        found.add(tokenizer.backend_tokenizer.token_to_id(model.unk_token))
    elif isinstance(model, Unigram) and tokenizer.unk_token_id is None:  # told only in writing
        found.add(json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("unk_id"))
    return {i for i in found if i is not None}
