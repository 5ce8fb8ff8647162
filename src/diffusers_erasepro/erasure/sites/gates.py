"""Gates in the first block: a name is answered by a step, and what is only like it by nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...config.mentions import Mentions
from ...config.plan import GATES
from ...config.spec import Concept
from ...families.encoders import encoder_family_of
from ...linalg.gated_mlps import GatedMlpWeights, solve_gated_mlp
from ...linalg.gates import Elsewhere, Gates, GateToken, solve_gates
from ...modules.linear import base_linear
from ...modules.tuners import edited_module
from ...prompts.alignment import Rows, kept_rows
from ...prompts.pairs import Pair, spread
from ...prompts.tokens import Tokens, tokenizer_of
from ...prompts.vocabulary import position_of_word, prompts_with_token, whole_words
from ..states import run_encoder
from .neurons import Mlp, MlpSite, find_mlp, has_gates, weights_of_mlp
from .planning import Planning, words_of
from .protocol import ByKind, Edits

SCAN_FRAMES = ("a {}", "the photo of a {}")
"""In which every word of the vocabulary is scanned."""
CAPTIONS = 800
"""Captions that thresholds are set from, evenly spread over those to keep."""
COMPANIONS = 4000
"""Words that stand in for the other tokens of a name, evenly spread over the vocabulary."""
SHUT = (
    "gates: {token} of {name!r} is not told from other uses of it (margin {margin:.2f}, at least "
    "{least}); no gate was made for it"
)
NO_PLACE = "gates: no gate was made in {where} ({encoder}), as {why}: only the other layers edit it"
_scanned: dict[tuple[str, str], Tensor] = {}
"""The last scan of a vocabulary, by fingerprint of the encoder and name of the linear."""


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

    def solve(self, inputs: Mapping[str, ByKind], gap: ByKind) -> Edits:
        """The rows that detect the names, and the columns that write what is missing."""
        z = inputs[self.mlp.detector]
        found, notes = self.gates(z, gap)
        if not found.detector.rank:
            return Edits({}, {}, notes=notes)
        factors = {self.mlp.detector: found.detector, self.mlp.writer: found.writer}
        if self.mlp.factor is not None and found.factor is not None:
            factors[self.mlp.factor] = found.factor
        return Edits(factors, {}, notes=notes)


def gate_sites(planning: Planning, changed: Mapping[int, int]) -> list[GateSite]:
    """The site of the first block's gates, if a concept asks for them.

    Args:
        planning: Of one encoder.
        changed: Tokens that get another row of the embedding, and so no gate.

    An encoder that has no place for them gets a note.
    """
    concepts = planning.plan.concepts_at(GATES, planning.spec.concepts)
    if not concepts:
        return []
    mlp = find_mlp(planning.live, 0)
    if mlp is None or not has_gates(planning.live):
        planning.notes.append(_no_place(planning, mlp))
        return []
    rows = {}
    tokens: dict[str, list[TokenOfName]] = {}
    for kind, pairs in planning.pairs.items():
        named = planning.names[kind].naming(words_of(concepts), pairs)
        rows[kind], tokens[kind] = _positions(planning, pairs, named, changed)
    if not any(tokens.values()):
        return []
    elsewhere, others = _collect_elsewhere(planning, mlp, rows, tokens)
    weights = weights_of_mlp(planning.live, mlp)

    def gates(z: ByKind, gap: ByKind) -> tuple[Gates, tuple[str, ...]]:
        names = list(others)
        asked = []
        for name in names:
            mine = {}
            for kind in z:
                marks = [n == name for n in tokens[kind]]
                mine[kind] = torch.tensor(marks, dtype=torch.bool)  # there may be none
            inputs = torch.cat([z[kind][mine[kind]] for kind in z])
            gaps = torch.cat([gap[kind][mine[kind]] for kind in gap])
            asked.append(GateToken(str(name), inputs, gaps, others[name]))
        L2 = planning.metrics.get(mlp.writer)
        if isinstance(weights, GatedMlpWeights):
            found = solve_gated_mlp(asked, elsewhere, weights, L2)
        else:
            found = solve_gates(asked, elsewhere, weights, L2)
        return found, _notes(names, found)

    return [
        GateSite(
            planning.path.use.encoder,
            mlp,
            weights,
            rows,
            gates,
        )
    ]


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
    changed: Mapping[int, int],
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
        wanted = token is not None and token.id not in changed and not (causal and token.back)
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
    scans = _scan(planning, mlp, list(words.values()))
    at_captions = _at_positions(planning, mlp, kept_rows(captions, planning.path))
    at_near = at_captions[:0]
    if near:
        at_near = _at_positions(planning, mlp, kept_rows(near, planning.path))
    others: dict[TokenOfName, Tensor] = {}
    for kind, found in rows.items():
        for name, row, at in zip(
            tokens[kind], found.row.tolist(), found.target_at.tolist(), strict=True
        ):
            if name not in others:
                text = planning.pairs[kind][row].target.text
                every = planning.names[kind]
                span = every.target_at[every.row == row].tolist()
                shared = {token.id for token in own[name.word].plain if not token.own}
                common = shared & _words_of_one_token(planning, name.word)
                company = words if name.id in common else {}
                others[name] = _in_other_company(planning, mlp, text, span, at, company)
    return Elsewhere(at_captions, at_near, scans), others


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
    prompt: str,
    span: Sequence[int],
    at: int,
    words: Mapping[str, int],
) -> Tensor:
    """What the detector receives at token `at` of a name whose other tokens are other words."""
    path = planning.path
    ids = path.tokens([prompt]).ids[0]
    own = int(ids[at])
    if len(span) == 1 or not words:
        return _nothing_received(planning, mlp)
    companions = spread(list(words.values()), COMPANIONS)
    found = []
    for other in span:
        if other != at:
            strangers = [token for token in companions if token != int(ids[other])]
            tokens = prompts_with_token(path, prompt, other, strangers, stop=max(span) + 2)
            found.append(_inputs_at(planning, mlp, tokens, at))
    for frame in SCAN_FRAMES:
        alone, place = position_of_word(path, frame)
        found.append(
            _inputs_at(planning, mlp, prompts_with_token(path, alone, place, [own]), place)
        )
    return torch.cat(found)


def _nothing_received(planning: Planning, mlp: Mlp) -> Tensor:
    """`(0, d)` where there is no position to look at."""
    detector: Any = base_linear(planning.live.get_submodule(mlp.detector))
    return torch.zeros(0, detector.in_features, dtype=torch.float32)


def _scan(planning: Planning, mlp: Mlp, ids: Sequence[int]) -> Tensor:
    """`(w, d)` what the detector receives at every word of the vocabulary."""
    content = (f"{planning.content} {mlp.detector}", repr(ids))
    if not ids:  # a vocabulary of pieces only
        return _nothing_received(planning, mlp)
    if content not in _scanned:
        found = []
        for frame in SCAN_FRAMES:
            prompt, at = position_of_word(planning.path, frame)
            found.append(
                _inputs_at(planning, mlp, prompts_with_token(planning.path, prompt, at, ids), at)
            )
        _scanned.clear()
        _scanned[content] = torch.cat(found)
    return _scanned[content]


def _at_positions(planning: Planning, mlp: Mlp, rows: Rows) -> Tensor:
    """`(k, d)` what the detector receives at the aligned positions."""
    parts = []
    start = 0
    for batch in rows.target.split():
        mine = (rows.row >= start) & (rows.row < start + len(batch))
        received = _received(planning, mlp, batch.cut(rows.length))
        parts.append(received[rows.row[mine] - start, rows.target_at[mine]])
        start += len(batch)
    return torch.cat(parts)


def _inputs_at(planning: Planning, mlp: Mlp, tokens: Tokens, at: int) -> Tensor:
    """`(n, d)` what the detector receives at one position of every row."""
    batches = tqdm(list(tokens.split()), desc="scan of the vocabulary", leave=False, delay=2)
    return torch.cat([_received(planning, mlp, batch)[:, at] for batch in batches])


class _Enough(Exception):
    """Raised where the detector is reached: deeper blocks need not run."""


@torch.no_grad()
def _received(planning: Planning, mlp: Mlp, tokens: Tokens) -> Tensor:
    """`(n, length, d)` what the detector receives, in float32 on the CPU."""
    encoder = planning.encoder
    seen: list[Tensor] = []
    # offloading moves weights back once a module has run
    whole = any(hasattr(module, "_hf_hook") for module in encoder.modules())

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].detach().float().cpu())
        if not whole:
            raise _Enough

    handle = edited_module(encoder, mlp.detector).register_forward_pre_hook(keep)
    try:
        run_encoder(encoder, tokens, last_hidden=False)
    except _Enough:
        pass
    finally:
        handle.remove()
    return torch.cat(seen)
