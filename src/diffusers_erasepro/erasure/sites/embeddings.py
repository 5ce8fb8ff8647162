"""Rows of the token embedding: a token that only the name uses becomes the anchor's token.

Rank one, no statistics, and exact at every position where name and anchor have the same number of
tokens: the encoder reads the anchor's prompt. EmbEdit (arXiv 2412.03400) edits rows first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config.plan import EMBEDDING
from ...config.spec import Concept
from ...families.encoders import embeddings_path, encoder_family_of
from ...linalg.low_rank import LowRank
from ...modules.linear import output_scale
from ...modules.storage import weight_of
from ...prompts.alignment import Rows, counterparts
from ...prompts.own_tokens import OwnTokens
from ...prompts.pairs import Prompt
from .neurons import tries_gates
from .planning import Planning, words_of
from .protocol import ByKind, Edits, Vectors

NOT_OWN = "embedding: not every token of {name!r} is its own ({why}); no row was changed for it"
PARTLY_OWN = (
    "embedding: of {name!r} {given} has the row of the anchor's token; the other tokens keep "
    "theirs, and say what they said, as they are not its own ({why})"
)
NO_ANCHOR = "embedding: {name!r} has an empty anchor, which has no row; no row was changed for it"
SAME_ROW = (
    "embedding: {name!r} ends in the token that its anchor {anchor!r} ends in; no row was changed "
    "for it"
)


@dataclass(frozen=True)
class EmbeddingSite:
    """Rows of the token embedding that become other rows."""

    component: str
    module: str
    positions: Mapping[str, Rows]
    rows: Mapping[int, int]
    """Token id of a name -> token id whose row it gets."""
    words: Mapping[int, str]
    """Token id -> the target whose it is."""
    weight: Tensor
    """`(d, vocabulary)` the table."""
    scale: float
    """What the module multiplies a row by."""
    solved: Edits | None = None
    """What was solved before, for the final states."""

    @property
    def output(self) -> str:
        """The token embedding."""
        return self.module

    @property
    def inputs(self) -> tuple[str, ...]:
        """The token embedding; what it receives are ids."""
        return (self.module,)

    def solve(self, inputs: Mapping[str, ByKind], gap: ByKind) -> Edits:
        """One direction per row: the difference to the anchor's, at the one-hot of the token."""
        if self.solved is not None:
            return self.solved
        ids = list(self.rows)
        table = self.weight.float()
        differences = table[:, list(self.rows.values())] - table[:, ids]
        picks = torch.zeros(len(ids), table.shape[1], dtype=torch.float32)
        picks[torch.arange(len(ids)), ids] = 1.0
        factors = LowRank(differences, picks)
        words = tuple(self.words[token] for token in ids)
        return Edits({self.module: factors}, {}, vectors=Vectors(self.module, factors, words))

    def apply(
        self, output: Tensor, inputs: Mapping[str, Tensor], edits: Edits
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Every position of such a token gets the other row."""
        added = edits.factors[self.module](inputs[self.module])
        return output + self.scale * added.to(output), {}


def embedding_sites(planning: Planning) -> list[EmbeddingSite]:
    """The site of the token embedding, if a concept asks for it and has a token of its own."""
    concepts = planning.plan.concepts_at(EMBEDDING, planning.spec.concepts)
    rows: dict[int, int] = {}
    words: dict[int, str] = {}
    for concept, found in rows_to_change(planning, concepts).items():
        rows |= found
        words |= dict.fromkeys(found, concept)
    if not rows:
        return []
    path = embeddings_path(planning.live)
    weight = weight_of(planning.live, path).detach().cpu()
    positions = planning.positions_of(concepts)
    name = planning.path.use.encoder
    scale = output_scale(planning.live.get_submodule(path))
    return [EmbeddingSite(name, path, positions, rows, words, weight, scale)]


def rows_to_change(planning: Planning, concepts: Sequence[Concept]) -> dict[str, dict[int, int]]:
    """By target, token id -> id of the anchor's token, for every token that is its name's own.

    A name that shares some of its tokens keeps all of its rows where gates are tried on it, but for
    causal encoders: there the gate of its last token is all that it has.
    The notes of the planning say which names keep theirs, and which some of them.
    """
    if not concepts:
        return {}
    own = planning.own_tokens
    anchors = anchor_tokens(planning)
    found: dict[str, dict[int, int]] = {}
    notes = planning.notes
    causal = encoder_family_of(planning.live).causal
    # half a name is told from nothing: "van" beside "painter"; gates take such names whole
    whole = {}
    for asked in {planning.plan.recipe_of(concept).gates for concept in concepts}:
        whole[asked] = not causal and tries_gates(planning.live, asked)
    for concept in concepts:
        if not concept.anchor:
            notes.append(NO_ANCHOR.format(name=concept.target))
            continue
        mine: dict[int, int] = {}
        gated = whole[planning.plan.recipe_of(concept).gates]
        numbers = [form.text for _, form in concept.forms if form.text in own]
        for word in (*concept.words, *numbers):
            if own[word].complete or not gated:
                mine |= _rows_of_word(own[word], anchors)
        changed = {token: anchor for token, anchor in mine.items() if token != anchor}
        plain = own[concept.target].plain
        why = "; ".join(f"{token.text}: {token.why}" for token in plain if not token.own)
        if not mine:
            notes.append(NOT_OWN.format(name=concept.target, why=why))
        elif not changed:
            notes.append(SAME_ROW.format(name=concept.target, anchor=concept.anchor))
        elif why and (some := [token.text for token in plain if token.id in changed]):
            given = ", ".join(map(repr, some))
            notes.append(PARTLY_OWN.format(name=concept.target, given=given, why=why))
        found[concept.target] = changed
    return found


def words_met(planning: Planning) -> set[str]:
    """The words that the encoder reads as their anchors, token by token, in every listed phrase.

    Of a synonym these are the phrases in which the concept's target is listed.
    """
    if not planning.changed:
        return set()
    listed: set[tuple[str, str]] = set()
    for concept in planning.spec.concepts:
        for word in concept.words:
            listed |= {(word, Prompt.of(phrase, word).text) for phrase in concept.exact}
    found = words_of(planning.spec.concepts)
    for kind, rows in planning.rows.items():
        same = (planning.with_rows(rows.target).ids == rows.anchor_ids).all(1)
        same &= (rows.target.read == rows.anchor.read).all(1)
        for pair, is_met in zip(planning.pairs[kind], same.tolist(), strict=True):
            if not is_met and (pair.word, pair.target.text) in listed:
                found.discard(pair.word)
    return found


def anchor_tokens(planning: Planning) -> dict[int, int]:
    """Token id of a target -> id of the anchor's token that it is aligned with; the first found."""
    found: dict[int, int] = {}
    for rows in planning.names.values():
        targets = rows.target_ids[rows.row, rows.target_at].tolist()
        anchors = rows.anchor_ids[rows.row, rows.anchor_at].tolist()
        for target, anchor in zip(targets, anchors, strict=True):
            found.setdefault(target, anchor)
    return found


def _rows_of_word(own: OwnTokens, anchors: Mapping[int, int]) -> dict[int, int]:
    """In every spelling of a word, its own tokens get the rows that the plain spelling's get."""
    plain = [anchors.get(token.id) for token in own.plain]
    found = {}
    for tokens in own.spellings:
        for token, at in zip(tokens, counterparts(len(tokens), len(plain)), strict=True):
            anchor = anchors.get(token.id, plain[at])
            if token.id in own.rows and anchor is not None:
                found[token.id] = anchor
    return found
