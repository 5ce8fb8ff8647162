"""What the kinds of edit are planned from: request, prompts, and the metrics of the base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from ...config.options import Options
from ...config.plan import ALIGNMENTS, Plan
from ...config.spec import Concept, ErasureSpec
from ...errors import ConceptSpecError
from ...modules.fingerprint import fingerprint_learned, fingerprint_with_loras, fingerprints
from ...prompts.alignment import Rows, rows_of, sort_pairs
from ...prompts.own_tokens import OwnTokens, own_tokens_of
from ...prompts.pairs import Pair, pairs_to_solve
from ...prompts.tokens import TextPath, Tokens, tokenizer_of

LISTED = 5
"""Names that a message lists."""


@dataclass(frozen=True)
class Planning:
    """One text encoder of a pipeline, and what shall be erased from it."""

    pipe: Any
    path: TextPath
    encoder: nn.Module
    """Runs in float32; its weights are the live encoder's."""
    spec: ErasureSpec
    options: Options
    plan: Plan
    pairs: Mapping[str, Sequence[Pair]]
    """Per kind, "exact" and "soft"."""
    rows: Mapping[str, Rows]
    """Of `pairs`, aligned as each concept's recipe says."""
    base: Mapping[str, str]
    """Dtype -> fingerprint of the live encoder."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """By linear, or "states": the Cholesky factor of its metric. Filled once every site is known,
    in one pass over the captions."""
    regressions: dict[str, Tensor] = field(default_factory=dict)
    """By the linear behind an MLP's neurons: the same with a smaller ridge, for what the others
    replace of those that gates take. Filled with the metrics."""
    kept: dict[str, Tensor] = field(default_factory=dict)
    """By linear, or "states": its inputs at the prompts in `keep`. Filled with the metrics."""
    changed: dict[int, int] = field(default_factory=dict)
    """Token id -> token id whose row of the embedding it gets. Filled while the sites are
    planned."""
    unreached: set[str] = field(default_factory=set)
    """Words for which rows or gates are asked and neither is there. Filled while the sites are
    planned."""
    met: set[str] = field(default_factory=set)
    """Words of which every prompt, with the changed rows, has the anchor's tokens, one by one: the
    encoder reads the anchor's prompt. Filled while the sites are planned."""
    notes: list[str] = field(default_factory=list)
    """What this encoder has no place for, and why. Filled while the sites are planned."""

    @classmethod
    def of(
        cls,
        pipe: Any,
        path: TextPath,
        encoder: nn.Module,
        spec: ErasureSpec,
        options: Options,
        plan: Plan,
    ) -> Planning:
        """The prompts of the spec, tokenized and aligned for one encoder."""
        pairs = pairs_to_solve(spec.concepts, soft_budget=options.soft_budget)
        alignments = plan.alignments(spec.concepts)
        with naming_encoder(path):
            soft = sort_pairs(pairs["soft"], path)
            pairs["soft"] = soft.readable
            rows = {kind: rows_of(found, path, alignments) for kind, found in pairs.items()}
        base = fingerprints(path.encoder, {}, vocabulary=path.vocabulary)
        notes = soft.notes(path.use.encoder)
        return cls(pipe, path, encoder, spec, options, plan, pairs, rows, base, notes=notes)

    @cached_property
    def own_tokens(self) -> dict[str, OwnTokens]:
        """By word, which of its tokens only that word uses."""
        return own_tokens_of(self.spec, tokenizer_of(self.path))

    @cached_property
    def names(self) -> Mapping[str, Rows]:
        """Per kind, the rows of `pairs` aligned at every token of the name."""
        read = partial(rows_of, source=self.path, held=ALIGNMENTS["subject"], with_pooled=False)
        return {kind: read(pairs) for kind, pairs in self.pairs.items()}

    @cached_property
    def content(self) -> str:
        """A fingerprint of what the encoder computes, learned tokens included."""
        key = fingerprint_with_loras(self.live, self.base)
        return key + fingerprint_learned(self.live, self.path.vocabulary)

    @property
    def live(self) -> nn.Module:
        """The pipeline's own encoder."""
        return self.path.encoder

    def has_row(self, word: str) -> bool:
        """Whether a token of the word gets another row."""
        return any(token in self.changed for token in self.own_tokens[word].rows)

    def with_rows(self, tokens: Tokens) -> Tokens:
        """What the encoder reads in their place once the rows are changed."""
        if not self.changed or not len(tokens):
            return tokens
        row_of = torch.arange(1 + max(int(tokens.ids.max()), *self.changed))
        row_of[list(self.changed)] = torch.tensor(list(self.changed.values()))
        return replace(tokens, ids=row_of.to(tokens.ids)[tokens.ids])

    def count_concepts(self, words: Set[str]) -> int:
        """How many concepts have one of the words."""
        return sum(not words.isdisjoint(concept.words) for concept in self.spec.concepts)

    def positions_of(self, concepts: Sequence[Concept]) -> Mapping[str, Rows]:
        """The aligned positions of prompts that name one of `concepts`."""
        return self.positions_naming(words_of(concepts))

    def positions_naming(self, words: Set[str]) -> Mapping[str, Rows]:
        """The aligned positions of prompts that name one of `words`."""
        if words_of(self.spec.concepts) <= words:
            return self.rows
        return {kind: rows.naming(words, self.pairs[kind]) for kind, rows in self.rows.items()}


def words_of(concepts: Sequence[Concept]) -> set[str]:
    """Targets and synonyms."""
    words: set[str] = set()
    for concept in concepts:
        words |= {*concept.words}
    return words


def list_names(names: Sequence[str]) -> str:
    """The first of the names, for a message."""
    return ", ".join(map(repr, names[:LISTED])) + (" ..." if names[LISTED:] else "")


@contextmanager
def naming_encoder(path: TextPath) -> Iterator[None]:
    """Inside, an error about the spec says which text encoder it met."""
    try:
        yield
    except ConceptSpecError as error:
        raise ConceptSpecError(f"{path.use.encoder}: {error}") from error
