"""Textual inversions: tokens that were added to a tokenizer, and what prompts make of them.

One of several vectors is one token in a prompt and several in its row: diffusers adds `<toy>`,
`<toy>_1`, `<toy>_2` to the tokenizer, and writes all of them where a prompt says `<toy>`
(`TextualInversionLoaderMixin.maybe_convert_prompt`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from typing import Any


def expansions_of(tokenizer: Any) -> dict[str, str]:
    """Learned tokens of several vectors -> what diffusers writes for them in a prompt."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # below a processor
    added: Set[str] = {*getattr(tokenizer, "added_tokens_encoder", ())}
    found = {}
    for token in added:
        parts = [token]
        while (part := f"{token}_{len(parts)}") in added:
            parts.append(part)
        if len(parts) > 1:
            found[token] = " ".join(parts)
    return dict(sorted(found.items()))


def expand(text: str, expansions: Mapping[str, str]) -> str:
    """A prompt as diffusers writes it before it is tokenized."""
    for token, written in expansions.items():
        text = text.replace(token, written)
    return text


def shrink(text: str, expansions: Mapping[str, str]) -> tuple[str, list[tuple[int, int]]]:
    """A prompt as it was before `expand`.

    Returns:
        The text, and per character of the long one the characters `[start, stop)` of the short one
        that it stands for.
    """
    tokens = {written: token for token, written in expansions.items()}
    longest = sorted(tokens, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest)) if tokens else r"(?!)")
    short = ""
    found: list[tuple[int, int]] = []
    done = 0
    for match in pattern.finditer(text):
        found += [(len(short) + i, len(short) + i + 1) for i in range(match.start() - done)]
        short += text[done : match.start()]
        token = tokens[match.group()]
        found += [(len(short), len(short) + len(token))] * len(match.group())
        short += token
        done = match.end()
    found += [(len(short) + i, len(short) + i + 1) for i in range(len(text) - done)]
    return short + text[done:], found


def learned_tokens(tokenizer: Any) -> list[str]:
    """Tokens that were added to a tokenizer, by textual inversion say, and not trained with it.

    Those that it was published with are special (T5's <extra_id_0>), in the vocabulary of its
    model (Gemma's <unused0>), or in the files that it was loaded from (Qwen's <tool_call>).
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # below a processor
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    trained = getattr(tokenizer, "vocab_size", 0)
    filed = getattr(tokenizer, "init_kwargs", {}).get("added_tokens_decoder") or {}
    known = {int(i) for i in filed if not takes_inversions(tokenizer)}
    return [
        str(token)
        for i, token in added.items()
        if i >= trained and not token.special and i not in known
    ]


def takes_inversions(tokenizer: Any) -> bool:
    """Whether diffusers loads textual inversions into it, which are saved in its files then."""
    return any(name in type(tokenizer).__name__ for name in ("CLIP", "T5"))


def learned_in(tokenizer: Any, texts: Iterable[str]) -> tuple[str, ...]:
    """The learned tokens in some texts, in the order in which they come, each once."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # below a processor
    known = {*learned_tokens(tokenizer)}
    if not known:
        return ()
    expansions = expansions_of(tokenizer)
    found: dict[str, None] = {}
    for text in texts:
        for token in tokenizer.tokenize(expand(text, expansions)):
            if token in known:
                found[token] = None
    return tuple(found)
