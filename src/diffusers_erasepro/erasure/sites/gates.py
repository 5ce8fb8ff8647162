"""Gates in the first block: a name is answered by a step, and what is only like it by nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...config.mentions import Mentions
from ...config.options import blocks_in
from ...config.plan import block_of_gates
from ...config.spec import Concept
from ...families.encoders import blocks_of, blocks_read, encoder_family_of
from ...linalg import gated_mlps
from ...linalg.gated_mlps import GatedMlpWeights, detect_products, solve_gated_mlp
from ...linalg.gates import (
    LEAST_MARGIN,
    Elsewhere,
    Gates,
    GateToken,
    detect_tokens,
    solve_gates,
)
from ...modules.linear import base_linear
from ...modules.tuners import edited_module
from ...prompts.alignment import Rows, kept_rows
from ...prompts.pairs import Pair, spread
from ...prompts.tokens import Tokens, tokenizer_of
from ...prompts.vocabulary import (
    Stranger,
    find_strangers,
    position_of_word,
    prompts_with_strangers,
    prompts_with_token,
    whole_words,
)
from ..covariance import inputs_received
from .neurons import Mlp, MlpSite, count_spare, find_mlp, has_gates, weights_of_mlp
from .planning import Planning, words_of
from .protocol import ByKind, Edits, Vectors

SCAN_FRAMES = ("a {}", "the photo of a {}")
"""In which every word of the vocabulary is scanned."""
IN_CAPTIONS = 5000
"""Words that are scanned in captions as well, each in place of another word: at all positions, and
beside all kinds of words."""
CAPTIONS = 1200
"""Captions that thresholds are set from, evenly spread over those to keep."""
STRANGERS = 5000
"""Words and names that stand in for another token of a name, and at most so many for a token; of
many names, fewer for each."""
MOST_STRANGERS = 300_000
"""For all tokens of all names, but 500 for each: they lie in memory side by side."""
PHRASINGS = 8
"""In which strangers stand, taking turns."""
SHUT = (
    "gates: {token} of {name!r} cannot be distinguished from other uses of it (margin "
    "{margin:.2f}, at least {least} is needed); no gate was made for it"
)
NO_PLACE = "gates: no gate was made in {where} ({encoder}), as {why}: only the other layers edit it"
NO_CAPTIONS = (
    "gates: no gate was made in {where}, as there are no captions to preserve that set its "
    "threshold: only the other layers edit it"
)
GATED = (
    "gates: no gate was made in {where}, whose MLPs are gated: there they hardly distinguish a "
    "name from others, and are tried only where a block is named, as in 'gates:0'"
)
DEEPEST = 2
"""Block up to which gates go where shallower ones cannot tell a name: deeper ones leave more in the
words around, which have read it by then."""
DEEPER = (
    "gates: not every token of {name!r} that its anchor lacks can be distinguished from other uses "
    "of it in the first block (by a margin of at least {least}); its gates are in block {block}"
)
NO_ROOM = (
    "gates: the {spare} idle neurons of one block of {where} are too few for {count} of {names} "
    "names; encoder blocks are edited for those"
)
UNSCANNED = (
    "no whole word of {where}'s vocabulary keeps its token in a plain phrase, so none was scanned: "
    "captions, near misses and the name itself set the thresholds of gates"
)
_scanned: dict[tuple[str, str], Tensor] = {}
"""The last scans of a vocabulary, by fingerprint of the encoder, name of the linear and texts."""


@dataclass(frozen=True)
class TokenOfName:
    """A token of a name."""

    word: str
    id: int
    back: int
    """Tokens of the name behind it."""

    def __str__(self) -> str:
        return f"{self.word}#{self.back}"


@dataclass(frozen=True)
class GateSite(MlpSite):
    """Steps of two idle neurons each, in one MLP; its two linears change together."""

    gates: Callable[[ByKind, ByKind], tuple[Gates, tuple[str, ...]]]
    """Inputs of the detector and gaps, to the gates and what is to be said of them."""
    names: Sequence[TokenOfName]
    """The tokens that may get one, in the order of the gates."""
    margins: tuple[float, ...]
    """How far each of them is told from everything else."""
    least: float
    """Margin from which on a token has a gate."""
    shared: Mapping[TokenOfName, TokenOfName]
    """Tokens of names that hold another name -> the token of that one, whose gate is theirs."""
    needed: Mapping[str, frozenset[TokenOfName]]
    """By word, the tokens that must have a gate, or the name is not reached."""
    solved: Edits | None = None
    """What was solved before, for the final states."""

    def words(self) -> set[str]:
        """Whose tokens they are."""
        return self._words_of(self.names)

    def unclear(self) -> set[str]:
        """Those of them of which a token that is needed, or every token, is told from nothing."""
        names = self._clear_names()
        clear = {*names}
        found = self.words() - self._words_of(names)
        for word in self.words():
            needed = {self.shared.get(token, token) for token in self.needed.get(word, ())}
            if not needed <= clear:
                found.add(word)
        return found

    def partial(self) -> set[str]:
        """Those of the unclear words of which some token has a gate all the same."""
        return self.unclear() & self._words_of(self._clear_names())

    def _clear_names(self) -> list[TokenOfName]:
        """The tokens that are told from everything else."""
        told = zip(self.names, self.margins, strict=True)
        return [name for name, margin in told if margin >= self.least]

    def _words_of(self, names: Sequence[TokenOfName]) -> set[str]:
        """The words that a gate of one of these tokens answers to."""
        answering = {*names}
        sharing = {token.word for token, whose in self.shared.items() if whose in answering}
        return sharing | {name.word for name in answering}

    def shares_of(self, edits: Edits) -> dict[str, dict[str, float]]:
        """By linear and word, the square of the norm of what a word's gates change there.

        What other neurons take over from those that the gates have taken is not counted.
        """
        if edits.vectors is None:
            return {}
        words = edits.vectors.words
        columns = edits.vectors.factors
        sizes = {self.mlp.writer: columns.B.norm(dim=0).square() * columns.A.square().sum(1)}
        for linear in (self.mlp.detector, self.mlp.factor):
            if linear is not None:  # neurons in the order of the gates
                rows = edits.factors[linear].A.square().sum(1)
                sizes[linear] = rows.reshape(len(words), -1).sum(1)
        found: dict[str, dict[str, float]] = {}
        for linear, each in sizes.items():
            found[linear] = dict.fromkeys(words, 0.0)
            for word, size in zip(words, each.tolist(), strict=True):
                found[linear][word] += size
        return found

    def solve(self, inputs: Mapping[str, ByKind], gap: ByKind) -> Edits:
        """The rows that detect the names, and the columns that write what is missing."""
        if self.solved is not None:
            return self.solved
        z = inputs[self.mlp.detector]
        found, notes = self.gates(z, gap)
        if not found.detector.rank:
            return Edits({}, {}, notes=notes)
        factors = {self.mlp.detector: found.detector, self.mlp.writer: found.writer}
        if self.mlp.factor is not None and found.factor is not None:
            factors[self.mlp.factor] = found.factor
        vectors = None
        if found.columns is not None:
            words = [name.word for i, name in enumerate(self.names) if found.has_gate(i)]
            vectors = Vectors(self.mlp.writer, found.columns, tuple(words))
        return Edits(factors, {}, notes=notes, vectors=vectors)


def gate_sites(planning: Planning) -> list[GateSite]:
    """The sites of the gates that concepts ask for: in the first block, or where they say.

    Tokens that get another row of the embedding get no gate. An encoder that has no place for them
    gets a note.

    Raises:
        ConceptSpecError: The encoder has no such block.
    """
    found = []
    for name, concepts in planning.plan.concepts_by_gates(planning.spec.concepts).items():
        words = {word for word in words_of(concepts) if _wants_gate(planning, word)}
        if not words:
            continue
        block = block_of_gates(name)
        if block is None:
            found += _shallowest_sites(planning, words)
        else:
            (block,) = blocks_in((block,), len(blocks_of(planning.live)))
            site = _site_in(planning, block, words)
            found += [] if site is None else [site]
    return found


def _wants_gate(planning: Planning, word: str) -> bool:
    """Whether a token of the word keeps its row."""
    return any(token.id not in planning.changed for token in planning.own_tokens[word].plain)


def _shallowest_sites(planning: Planning, words: set[str]) -> list[GateSite]:
    """Each word in the first block, or where that cannot tell it, in the first that can."""
    mlp = find_mlp(planning.live, 0)
    if mlp is not None and mlp.factor is not None:
        if not all(planning.has_row(word) for word in words):
            planning.notes.append(GATED.format(where=planning.path.use.encoder))
        return []
    first = _site_in(planning, 0, words)
    if first is None:
        return []
    deeper = []
    # the last block that is read closes what is left: a gate there, or behind it, is none
    count = blocks_read(planning.live, planning.path.use.readings)[-1] + 1
    lost = first.unclear()
    for block in range(1, min(DEEPEST + 1, count - 1)):
        if lost:
            site = _site_in(planning, block, lost)
            clear = set() if site is None else lost - site.unclear()
            alone = site if clear == lost else None
            if clear and alone is None:
                alone = _site_in(planning, block, clear)
            if alone is not None:
                deeper.append(alone)
                notes = [
                    DEEPER.format(name=n, block=block, least=first.least) for n in sorted(clear)
                ]
                planning.notes.extend(notes)
                lost -= clear
    if not deeper:
        return [first]
    rest = words.difference(*(site.words() for site in deeper))
    stayed = _site_in(planning, 0, rest)
    return [site for site in (stayed, *deeper) if site is not None]


def _site_in(planning: Planning, block: int, words: set[str]) -> GateSite | None:
    """The gates of some words in one block; None where they have no token to gate, or no place."""
    mlp = find_mlp(planning.live, block)
    if mlp is None or not has_gates(planning.live):
        planning.notes.append(_no_place(planning, mlp))
        return None
    if not planning.spec.preserve_captions():
        planning.notes.append(NO_CAPTIONS.format(where=planning.path.use.encoder))
        return None
    rows = {}
    tokens: dict[str, list[TokenOfName]] = {}
    for kind, pairs in planning.pairs.items():
        named = planning.names[kind].naming(words, pairs)
        rows[kind], tokens[kind] = _positions(planning, pairs, named)
    if not any(tokens.values()):
        return None
    shared = _shared_tokens(planning, rows, tokens)
    # a tokenizer may write a name otherwise where it begins a text, and every phrase may begin so
    written = frozenset[TokenOfName]().union(*tokens.values())
    needed = {}
    for word, some in tokens_in_need(planning, words).items():
        # of "vincent van gogh" it is "van gogh" that says who is meant
        needed[word] = some & shared.keys() or some & written
    tokens = {kind: [shared.get(token, token) for token in tokens[kind]] for kind in tokens}
    elsewhere, others = _collect_elsewhere(planning, mlp, rows, tokens)
    weights = weights_of_mlp(planning.live, mlp)
    names = list(others)

    def asked(z: ByKind, gap: ByKind) -> list[GateToken]:
        found = []
        for name in names:
            mine = {}
            for kind in z:
                marks = [n == name for n in tokens[kind]]
                mine[kind] = torch.tensor(marks, dtype=torch.bool)  # there may be none
            inputs = torch.cat([z[kind][mine[kind]] for kind in z])
            gaps = torch.cat([gap[kind][mine[kind]] for kind in gap])
            found.append(GateToken(str(name), inputs, gaps, others[name]))
        return found

    received = {kind: _at_positions(planning, mlp, found) for kind, found in rows.items()}
    wanted = asked(received, received)
    gates: Callable[[ByKind, ByKind], tuple[Gates, tuple[str, ...]]]
    if isinstance(weights, GatedMlpWeights):
        products = detect_products(wanted, elsewhere, weights.activation)
        margins = tuple(found.contrast for found in products)
        least = gated_mlps.LEAST_CONTRAST

        def gates(z: ByKind, gap: ByKind) -> tuple[Gates, tuple[str, ...]]:
            L2 = planning.regressions.get(mlp.writer)
            some = [products[i] for i in kept]
            found = solve_gated_mlp(asked(z, gap), elsewhere, weights, L2, some)
            return found, _notes(names, found)

    else:
        detections = detect_tokens(wanted, elsewhere)
        margins = tuple(found.low - found.high for found in detections)
        least = LEAST_MARGIN

        def gates(z: ByKind, gap: ByKind) -> tuple[Gates, tuple[str, ...]]:
            L2 = planning.regressions.get(mlp.writer)
            some = [detections[i] for i in kept]
            found = solve_gates(asked(z, gap), elsewhere, weights, L2, some)
            return found, _notes(names, found)

    kept = _that_fit(planning, mlp, names, [margin >= least for margin in margins])
    names = [names[i] for i in kept]
    margins = tuple(margins[i] for i in kept)
    component = planning.path.use.encoder
    return GateSite(component, mlp, weights, rows, gates, names, margins, least, shared, needed)


def tokens_in_need(planning: Planning, words: Set[str]) -> dict[str, frozenset[TokenOfName]]:
    """By word, the tokens that must have a gate for the name to be reached: they have no new row.

    These are those of `tokens_that_differ`; in a causal encoder the last token, which alone has
    read the whole name.
    """
    if not encoder_family_of(planning.live).causal:
        return tokens_that_differ(planning, words)
    found = {}
    for word in words:
        last = [token.id for token in planning.own_tokens[word].plain[-1:]]
        lacking = [token for token in last if token not in planning.changed]
        found[word] = frozenset(TokenOfName(word, token, 0) for token in lacking)
    return found


def tokens_that_differ(planning: Planning, words: Set[str]) -> dict[str, frozenset[TokenOfName]]:
    """By word, the tokens without a new row that are not their counterparts in the anchor.

    Of "cat face" that becomes a "dog face" it is "cat". Where the anchor has another number of
    tokens it is all of them.
    """
    tokenizer = tokenizer_of(planning.path)
    found = {}
    for concept in planning.spec.concepts:
        mine = [word for word in concept.words if word in words]
        if not mine:
            continue
        texts = ["a", f"a {concept.anchor}"]
        before, both = tokenizer(texts, add_special_tokens=False)["input_ids"]
        anchor = both[len(before) :]
        for word in mine:
            ids = [token.id for token in planning.own_tokens[word].plain]
            meets = anchor if len(ids) == len(anchor) else [None] * len(ids)
            differing: dict[int, TokenOfName] = {}  # of a token that stands there twice, the last
            for i, (token, met) in enumerate(zip(ids, meets, strict=True)):
                if token != met and token not in planning.changed:
                    differing[token] = TokenOfName(word, token, len(ids) - 1 - i)
            found[word] = frozenset(differing.values())
    return found


def _shared_tokens(
    planning: Planning,
    rows: Mapping[str, Rows],
    tokens: Mapping[str, Sequence[TokenOfName]],
) -> dict[TokenOfName, TokenOfName]:
    """Tokens of names that hold another name of the spec -> the token of that one.

    "gogh" of "vincent van gogh" is that of "van gogh": both are to become one token of the anchor,
    and the gate of the shorter name answers in the longer too. A second one would have to be told
    from it, or both would write. Where they are sent to different tokens each has its own.
    """
    meets: dict[TokenOfName, int] = {}
    for kind, found in rows.items():
        anchors = found.anchor_ids[found.row, found.anchor_at].tolist()
        for token, anchor in zip(tokens[kind], anchors, strict=True):
            meets.setdefault(token, anchor)
    ids = {}
    for word in dict.fromkeys(token.word for token in meets):
        ids[word] = [token.id for token in planning.own_tokens[word].plain]
    names: dict[int, list[str]] = {}
    for word in sorted(ids, key=lambda word: (len(ids[word]), word)):
        for token_id in ids[word]:
            names.setdefault(token_id, []).append(word)
    shared = {}
    for token, anchor in meets.items():
        own = ids[token.word]
        for word in names.get(token.id, ()):  # the shortest first
            if len(ids[word]) == len(own):
                break
            back = token.back - _tokens_behind(own, ids[word])
            other = TokenOfName(word, token.id, back)
            if meets.get(other) == anchor:
                shared[token] = other
                break
    return shared


def _tokens_behind(ids: Sequence[int], some: Sequence[int]) -> int:
    """How many of the ids stand behind `some` of them in a row; all where these do not."""
    for start in range(len(ids) - len(some) + 1):
        if [*ids[start : start + len(some)]] == [*some]:
            return len(ids) - len(some) - start
    return len(ids)


def _that_fit(
    planning: Planning, mlp: Mlp, names: Sequence[TokenOfName], opened: Sequence[bool]
) -> list[int]:
    """Which tokens to gate: all, or where blocks stand in for others, those of as many words as
    there are idle neurons for, in the order of the spec."""
    each = 2 if mlp.factor is None else 1
    room = count_spare(planning.live, mlp)
    stood_in: set[str] = set()
    for concept in planning.spec.concepts:
        stood_in |= {*concept.words} if planning.plan.recipe_of(concept).otherwise else set()
    everything = list(range(len(names)))
    if each * sum(opened) <= room or not stood_in.issuperset(name.word for name in names):
        return everything
    needed: dict[str, int] = {}
    for name, is_open in zip(names, opened, strict=True):
        needed[name.word] = needed.get(name.word, 0) + each * is_open
    fitting = set()
    for word, count in needed.items():
        if count <= room:
            fitting.add(word)
            room -= count
    planning.notes.append(
        NO_ROOM.format(
            where=planning.path.use.encoder,
            count=len(needed) - len(fitting),
            names=len(needed),
            spare=count_spare(planning.live, mlp),
        )
    )
    return [i for i in everything if names[i].word in fitting]


def _no_place(planning: Planning, mlp: Mlp | None) -> str:
    """Why this encoder has no gates."""
    why = "its MLPs have too few neurons"
    if mlp is None:
        why = "a norm follows every linear, or one linear is both halves of a gated MLP"
    encoder = type(planning.live).__name__
    return NO_PLACE.format(where=planning.path.use.encoder, encoder=encoder, why=why)


def _notes(names: Sequence[TokenOfName], found: Gates) -> tuple[str, ...]:
    notes = []
    for i, name in enumerate(names):
        if not found.has_gate(i):
            token = "the last token" if name.back == 0 else f"token {name.back} before the last"
            margin = found.margins[i]
            notes.append(SHUT.format(token=token, name=name.word, margin=margin, least=found.least))
    return tuple(notes)


def _positions(
    planning: Planning,
    pairs: Sequence[Pair],
    rows: Rows,
) -> tuple[Rows, list[TokenOfName]]:
    """The positions of the names' tokens that want a gate, and which token stands at each.

    Where attention is causal, a name's first tokens cannot know what follows: only its last has a
    gate.
    """
    causal = encoder_family_of(planning.live).causal
    plain = _plain_tokens(rows, pairs)
    kept = []
    names = []
    for row, at in zip(rows.row.tolist(), rows.target_at.tolist(), strict=True):
        token = plain[pairs[row].word].get(int(rows.target_ids[row, at]))
        wanted = (
            token is not None and token.id not in planning.changed and not (causal and token.back)
        )
        kept.append(wanted)
        if wanted and token is not None:
            names.append(token)
    return rows.only(torch.tensor(kept, dtype=torch.bool)), names


def _plain_tokens(rows: Rows, pairs: Sequence[Pair]) -> dict[str, dict[int, TokenOfName]]:
    """By word and id, the tokens of every word as it stands in the spec, in no other form."""
    found: dict[str, dict[int, TokenOfName]] = {pair.word: {} for pair in pairs}
    for row in rows.row.unique().tolist():
        pair = pairs[row]
        if pair.stands_for is None:
            ids = rows.target_ids[row, rows.target_at[rows.row == row]].tolist()
            for back, token_id in enumerate(reversed(ids)):
                token = TokenOfName(pair.word, token_id, back)
                found[pair.word].setdefault(token_id, token)
    return found


def _collect_elsewhere(
    planning: Planning,
    mlp: Mlp,
    rows: Mapping[str, Rows],
    tokens: Mapping[str, Sequence[TokenOfName]],
) -> tuple[Elsewhere, dict[TokenOfName, Tensor]]:
    """What the detector receives where no gate may fire; and per token, in other company."""
    spec = planning.spec
    captions = spread(spec.preserve_captions(), CAPTIONS)
    near = spec.near_prompts()
    named = Mentions(_words_and_forms(spec.concepts))
    tokenizer = tokenizer_of(planning.path)
    words = {w: i for w, i in whole_words(tokenizer).items() if w not in named}
    own = planning.own_tokens
    scans = _scan(planning, mlp, list(words.values()), captions)
    if not len(scans):
        planning.notes.append(UNSCANNED.format(where=planning.path.use.encoder))
    at_captions = _at_positions(planning, mlp, kept_rows(captions, planning.path))
    at_near = at_captions[:0]
    if near:
        at_near = _at_positions(planning, mlp, kept_rows(near, planning.path))
    found = _phrasings_of(planning, rows, tokens)
    most = max(500, min(STRANGERS, MOST_STRANGERS // max(len(found), 1)))
    strangers = find_strangers(tokenizer, words, most) if words else []
    beside = [phrasing for phrasings in found.values() for phrasing in phrasings]
    at_near = torch.cat([at_near, _beside_names(planning, mlp, beside)])
    others: dict[TokenOfName, Tensor] = {}
    for name, phrasings in found.items():
        shared = {token.id for token in own[name.word].plain if not token.own}
        common = shared & _words_of_one_token(planning, name.word)
        mine = strangers if name.id in common else []
        others[name] = _in_other_company(planning, mlp, phrasings, mine)
    return Elsewhere(at_captions, at_near, scans), others


@dataclass(frozen=True)
class PhrasingOfName:
    """A prompt that names a word."""

    prompt: str
    span: tuple[int, ...]
    """The token positions of the name."""
    at: int
    """The one that is looked at."""


def _phrasings_of(
    planning: Planning,
    rows: Mapping[str, Rows],
    tokens: Mapping[str, Sequence[TokenOfName]],
) -> dict[TokenOfName, list[PhrasingOfName]]:
    """Per token, the prompts in which its word stands as in the spec, evenly spread."""
    every: dict[TokenOfName, list[PhrasingOfName]] = {}
    for kind, found in rows.items():
        names = planning.names[kind]
        spans: dict[int, list[int]] = {}
        for row, at in zip(names.row.tolist(), names.target_at.tolist(), strict=True):
            spans.setdefault(row, []).append(at)
        places = zip(tokens[kind], found.row.tolist(), found.target_at.tolist(), strict=True)
        for name, row, at in places:
            pair = planning.pairs[kind][row]
            # another word for the hyphen of "golf-ball" would be near the name itself, and one for
            # "vincent" of "vincent van gogh" leaves a name
            if pair.stands_for is None and pair.word == name.word:
                phrasing = PhrasingOfName(pair.target.text, tuple(sorted(spans[row])), at)
                every.setdefault(name, []).append(phrasing)
    return {name: spread(phrasings, PHRASINGS) for name, phrasings in every.items()}


def _beside_names(planning: Planning, mlp: Mlp, phrasings: Sequence[PhrasingOfName]) -> Tensor:
    """What the detector receives at the other words of prompts with a name, and at their ends."""
    spans: dict[str, set[int]] = {}
    for phrasing in phrasings:
        spans.setdefault(phrasing.prompt, set()).update(phrasing.span)
    rows = kept_rows(list(spans), planning.path)
    texts = list(spans)
    apart = []
    for row, at in zip(rows.row.tolist(), rows.target_at.tolist(), strict=True):
        ids = rows.target_ids[row]
        named = {int(ids[place]) for place in spans[texts[row]]}
        apart.append(int(ids[at]) not in named)
    return _at_positions(planning, mlp, rows.only(torch.tensor(apart, dtype=torch.bool)))


def _words_and_forms(concepts: Sequence[Concept]) -> list[str]:
    """Every spelling of every word: these may answer."""
    found: list[str] = []
    for concept in concepts:
        found += [*concept.words, *(form.text for _, form in concept.forms)]
    return found


def _words_of_one_token(planning: Planning, name: str) -> set[int]:
    """Tokens of the name that are each a whole word of it; pieces of a rarer word are not."""
    tokenizer = tokenizer_of(planning.path)
    prefix = tokenizer("a", add_special_tokens=False)["input_ids"]
    found = set()
    for word in name.split():
        ids = tokenizer(f"a {word}", add_special_tokens=False)["input_ids"][len(prefix) :]
        found |= {*ids} if len(ids) == 1 else set()
    return found


def _in_other_company(
    planning: Planning,
    mlp: Mlp,
    phrasings: Sequence[PhrasingOfName],
    strangers: Sequence[Stranger],
) -> Tensor:
    """What the detector receives at a token of a name of whose tokens one is another word.

    That includes the token itself: "soccer" of "soccer ball" is like "golf" of "golf ball".
    """
    path = planning.path
    first = phrasings[0]
    if len(first.span) == 1 or not strangers:
        return _nothing_received(planning, mlp)
    found = []
    for turn, phrasing in enumerate(phrasings):
        at = phrasing.at
        mine = strangers[turn :: len(phrasings)]
        for other in phrasing.span:
            batches = prompts_with_strangers(path, phrasing.prompt, phrasing.span, other, mine)
            for tokens, ahead, more in batches:
                # of several tokens that stand for this one, the last
                place = at + ahead + (more if at >= other else 0)
                found.append(_inputs_at(planning, mlp, tokens, place))
    own = int(path.tokens([first.prompt]).ids[0][first.at])
    for frame in SCAN_FRAMES:
        if (frame_of := position_of_word(path, frame)) is not None:
            alone, place = frame_of
            tokens = prompts_with_token(path, alone, place, [own])
            found.append(_inputs_at(planning, mlp, tokens, place))
    return torch.cat(found)


def _nothing_received(planning: Planning, mlp: Mlp) -> Tensor:
    """`(0, d)` where there is no position to look at."""
    detector: Any = base_linear(planning.live.get_submodule(mlp.detector))
    return torch.zeros(0, detector.in_features, dtype=torch.float32)


def _scan(planning: Planning, mlp: Mlp, ids: Sequence[int], captions: Sequence[str]) -> Tensor:
    """`(w, d)` what the detector receives at the words of the vocabulary."""
    content = (f"{planning.content} {mlp.detector}", repr((ids, captions)))
    if not ids:  # a vocabulary of pieces only
        return _nothing_received(planning, mlp)
    if content not in _scanned:
        found = []
        for frame in SCAN_FRAMES:
            if (frame_of := position_of_word(planning.path, frame)) is not None:
                prompt, at = frame_of
                tokens = prompts_with_token(planning.path, prompt, at, ids)
                found.append(_inputs_at(planning, mlp, tokens, at))
        if not found:
            return _nothing_received(planning, mlp)
        found.append(_scan_in_captions(planning, mlp, ids, captions))
        _scanned.clear()
        _scanned[content] = torch.cat(found)
    return _scanned[content]


def _scan_in_captions(
    planning: Planning, mlp: Mlp, ids: Sequence[int], captions: Sequence[str]
) -> Tensor:
    """`(w, d)` the same of words that stand in a caption each, in place of a token of it."""
    if not captions:
        return _nothing_received(planning, mlp)
    words = spread(ids, IN_CAPTIONS)
    rows = kept_rows(captions, planning.path)
    places = spread(list(range(len(rows.row))), len(words))
    places = [places[i % len(places)] for i in range(len(words))]
    row = rows.row[places]
    at = rows.target_at[places]
    changed = rows.target.ids[row].clone()
    changed[torch.arange(len(row)), at] = torch.tensor(words, dtype=changed.dtype)
    mask = None if rows.target.mask is None else rows.target.mask[row]
    tokens = Tokens(changed, mask).cut(rows.length)
    count = torch.arange(len(row))
    return _at_positions(planning, mlp, Rows(tokens, tokens, count, at, at))


def _at_positions(planning: Planning, mlp: Mlp, rows: Rows) -> Tensor:
    """`(k, d)` what the detector receives at the aligned positions."""
    if not len(rows.row):
        return _nothing_received(planning, mlp)
    tokens = rows.target.cut(rows.length)
    needed = _needed_lengths(planning, tokens, rows)
    # rows of one length run side by side, and no position behind what is looked at
    order = needed.argsort(stable=True)
    rank = order.argsort()[rows.row]
    found = []
    places = []
    start = 0
    for batch in tokens[order].split():
        end = start + len(batch)
        mine = ((rank >= start) & (rank < end)).nonzero()[:, 0]
        received = _received(planning, mlp, batch.cut(int(needed[order[end - 1]])))
        found.append(received[rank[mine] - start, rows.target_at[mine]])
        places.append(mine)
        start = end
    return torch.cat(found)[torch.cat(places).argsort()]


def _needed_lengths(planning: Planning, tokens: Tokens, rows: Rows) -> Tensor:
    """`(n,)` how many positions of every row act on those that are looked at."""
    length = tokens.ids.shape[1]
    if encoder_family_of(planning.live).causal:
        return rows.needed[0].clamp(min=1)
    places = torch.arange(1, length + 1)
    return (tokens.read.cpu() * places).amax(1).clamp(min=1)


def _inputs_at(planning: Planning, mlp: Mlp, tokens: Tokens, at: int) -> Tensor:
    """`(n, d)` what the detector receives at one position of every row."""
    if encoder_family_of(planning.live).causal:
        tokens = tokens.cut(at + 1)
    batches = tqdm(list(tokens.split()), desc="scan of the vocabulary", leave=False, delay=2)
    return torch.cat([_received(planning, mlp, batch)[:, at] for batch in batches])


@torch.no_grad()
def _received(planning: Planning, mlp: Mlp, tokens: Tokens) -> Tensor:
    """`(n, length, d)` what the detector receives, in float32 on the CPU.

    With the changed rows, as another token of the name may have one.
    """
    detector = edited_module(planning.encoder, mlp.detector)
    read = planning.with_rows(tokens)
    (received,) = inputs_received(planning.encoder, read, {mlp.detector: detector}).values()
    return received.float().cpu()
