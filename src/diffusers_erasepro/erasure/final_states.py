"""Rows and columns of gates, solved for the final states instead of taken from the anchor.

The row of a name's token becomes that of the anchor's token, and a gate writes what its block lacks
there: exact where name and anchor have as many tokens, and only near where they have not, for one
token cannot say "a" and "painter" to those that read it. Here the same vectors are solved by
L-BFGS, so that the states at every position come close to the anchor's. That is no closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..config.mentions import Mentions
from ..config.spec import Concept
from ..families.encoders import encoder_family_of
from ..families.types import Reading
from ..linalg.low_rank import LowRank, orthonormal, stack
from ..prompts.alignment import readable
from ..prompts.pairs import pairs_of, spread
from ..prompts.tokens import tokenizer_of
from .layerwise import walk
from .selectivity import KindsOfPosition, kinds_of_positions, read_state_by_position
from .sites.embeddings import EmbeddingSite
from .sites.gates import GateSite
from .sites.planning import Planning
from .sites.protocol import Edits, EditSite
from .states import edited, reading_states, states_of

SOLVED_PHRASES = 24
"""Listed phrasings of a word that its vectors are solved on."""
LBFGS_STEPS = 25
"""Of L-BFGS, at most; each runs the encoder and its gradient about once."""
SHRINKAGE = 0.01
"""Weight of |change|^2 / |vector|^2 beside the share of the gap that is left."""
MOST_RAW = 10
"""Names whose anchors have as many tokens that are solved for unless it is asked for: each takes
half a minute of a core on a small encoder."""
MOST_WEIGHTS = 1_000_000_000
"""Of an encoder that is solved through unless it is asked for: a step of T5-XXL takes minutes."""
TOO_LARGE = (
    "{where} has {count:.1f} billion weights, so no vectors were fitted there for {names}: the "
    "anchor's stand in, whose number of tokens is another; final_states=True fits them"
)
MANY_RAW = (
    "no vectors were fitted in {where} for {count} names: words that it reads before it knows the "
    "whole name, or beside it, still say some of what they said; final_states=True fits them, half "
    "a minute each"
)
SOLVED_NOTE = "new vectors were fitted for {names} in {where}, so that prompts read as the anchor's"


def solve_for_final_states(planning: Planning, sites: Sequence[EditSite]) -> list[EditSite]:
    """The sites, of which those with rows and columns to solve know what they are.

    The notes of the planning say which names were solved.
    """
    early = [site for site in sites if isinstance(site, (EmbeddingSite, GateSite))]
    concepts = concepts_to_solve(planning, early)
    reading = read_state_by_position(planning.path)
    if not concepts or not early or reading is None:
        return list(sites)
    where = planning.path.use.encoder
    names = ", ".join(repr(concept.target) for concept in concepts)
    count = sum(p.numel() for p in planning.encoder.parameters())
    if count > MOST_WEIGHTS and not planning.options.final_states:
        planning.notes.append(TOO_LARGE.format(where=where, count=count / 1e9, names=names))
        return list(sites)
    done = walk(planning.encoder, planning.rows, early, planning.path.use.readings)
    words = {word for concept in concepts for word in concept.words}
    found = [step.edits for step in done.steps]
    free = [i for i, edits in enumerate(found) if _columns_of(edits, words)]
    if not free:
        return list(sites)
    targets = _targets(planning, concepts, reading)
    solved = _solve(planning.encoder, reading, found, words, targets)
    planning.notes.append(SOLVED_NOTE.format(names=names, where=where))
    known = {id(step.site): edits for step, edits in zip(done.steps, solved, strict=True)}
    return [_knowing(site, known.get(id(site))) for site in sites]


def concepts_to_solve(
    planning: Planning, early: Sequence[EmbeddingSite | GateSite]
) -> list[Concept]:
    """All that rows or gates reach, or none, or those of them whose anchor's vectors fall short.

    That is where the anchor has another number of tokens, or holds the name; where the first tokens
    of a name stay as they are, as they have no gates in a causal encoder; and where the words
    around a name with gates have read it before those answer, in one that sees both ways. Of the
    last two at most `MOST_RAW` are solved.
    """
    asked = planning.options.final_states
    changed: set[int] = set()
    rowed: set[str] = set()
    gated: set[str] = set()
    for site in early:
        if isinstance(site, EmbeddingSite):
            changed |= set(site.rows)
            rowed |= set(site.words.values())
        else:
            gated |= site.words() - site.unclear()
    causal = encoder_family_of(planning.live).causal
    tokenizer = tokenizer_of(planning.path)
    found = []
    raw = []
    for concept in planning.spec.concepts:
        # what neither a row nor a gate reaches has no vectors to solve, what is met no gap
        unmet = not planning.met.issuperset(concept.words)
        is_reached = unmet and not (rowed | gated).isdisjoint(concept.words)
        if is_reached and concept.anchor and asked is not False:
            texts = [f"a {concept.target}", f"a {concept.anchor}"]
            ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
            longer = len(ids[0]) != len(ids[1])
            stay = {token.id for token in planning.own_tokens[concept.target].plain[:-1]} - changed
            if asked or longer or concept.anchor in Mentions([concept.target]):
                found.append(concept)
            elif stay if causal else not gated.isdisjoint(concept.words):
                raw.append(concept)
    if len(raw) > MOST_RAW:
        where = planning.path.use.encoder
        planning.notes.append(MANY_RAW.format(count=len(raw), where=where))
        return found
    names = {concept.target for concept in (*found, *raw)}
    return [concept for concept in planning.spec.concepts if concept.target in names]


@dataclass(frozen=True)
class _Targets:
    """Prompts, and the states that they shall have."""

    aligned: KindsOfPosition
    goal: Tensor
    """`(n, d)` at the aligned positions."""
    weights: Tensor
    """`(n,)` so that the gap as it is counts 1 per kind of position, in the mean over kinds."""


def _targets(planning: Planning, concepts: Sequence[Concept], reading: Reading) -> _Targets:
    path = planning.path
    pairs = []
    for concept in concepts:
        for word in concept.words:
            every = [*pairs_of([concept], "exact"), *pairs_of([concept], "soft")]
            named = readable([pair for pair in every if pair.word == word], path)
            pairs += spread(named, SOLVED_PHRASES)
    aligned = kinds_of_positions(pairs, path)
    # padding says nothing that the end does not, and takes most of the time
    kept = [i for i, kind in enumerate(aligned.kinds) if kind != "padding"]
    rows = aligned.rows
    aligned = KindsOfPosition(
        rows.only(torch.tensor(kept)), [aligned.kinds[i] for i in kept], aligned.unmatched
    )
    rows = aligned.rows
    anchor = states_of(planning.encoder, rows.anchor, [reading])[0]
    target = states_of(planning.encoder, rows.target, [reading])[0]
    goal = anchor[rows.row, rows.anchor_at]
    gap = (target[rows.row, rows.target_at] - goal).double().square().sum(1)
    weights = torch.zeros(len(gap), dtype=torch.float64)
    kinds = list(dict.fromkeys(aligned.kinds))
    for kind in kinds:
        mine = torch.tensor([other == kind for other in aligned.kinds])
        weights[mine] = 1 / gap[mine].sum().clamp_min(1e-12).cpu() / len(kinds)
    return _Targets(aligned, goal, weights)


def _columns_of(edits: Edits, words: set[str]) -> list[int]:
    """Which of an edit's vectors belong to one of the words."""
    if edits.vectors is None:
        return []
    return [i for i, word in enumerate(edits.vectors.words) if word in words]


def _solve(
    encoder: nn.Module,
    reading: Reading,
    found: Sequence[Edits],
    words: set[str],
    targets: _Targets,
) -> list[Edits]:
    """The edits with other vectors, so that the prompts' states come close to their goals."""
    free: dict[int, list[int]] = {}
    changes: dict[int, Tensor] = {}
    for i, edits in enumerate(found):
        columns = _columns_of(edits, words)
        if columns and edits.vectors is not None:
            free[i] = columns
            shape = len(edits.vectors.factors.B), len(columns)
            changes[i] = torch.zeros(shape, dtype=torch.float64, requires_grad=True)

    def edits_now() -> list[Edits]:
        return [
            _moved(edits, free[i], changes[i]) if i in free else edits
            for i, edits in enumerate(found)
        ]

    rows = targets.aligned.rows
    tokens = rows.target.cut(int(rows.target_at.max()) + 2)
    if tokens.mask is not None:
        tokens = rows.target.trimmed()
    optimizer = torch.optim.LBFGS(
        list(changes.values()),
        max_iter=LBFGS_STEPS,
        history_size=LBFGS_STEPS,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        linears: dict[str, list[LowRank]] = {}
        for edits in edits_now():
            for linear, factors in edits.factors.items():
                linears.setdefault(linear, []).append(factors)
        stacked = {linear: stack(parts) for linear, parts in linears.items()}
        with edited(encoder, stacked), reading_states(encoder, [reading]) as read:
            states = read(tokens)[0]
        have = states[rows.row, rows.target_at]
        distance = (have - targets.goal).double().square().sum(1).cpu()
        loss = (targets.weights * distance).sum()
        for change in changes.values():
            loss = loss + SHRINKAGE * change.square().sum() / change.shape[1]
        gradients = torch.autograd.grad(loss, list(changes.values()))
        for change, gradient in zip(changes.values(), gradients, strict=True):
            change.grad = gradient
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    for change in changes.values():
        change.requires_grad_(False)
    return [_compact(edits) for edits in edits_now()]


def _moved(edits: Edits, columns: Sequence[int], change: Tensor) -> Edits:
    """The edits once some of their vectors have moved, by shares of their lengths."""
    assert edits.vectors is not None
    linear = edits.vectors.linear
    vectors = edits.vectors.factors
    B = vectors.B[:, columns].double()
    A = vectors.A[columns].double()
    more = LowRank(change * B.norm(dim=0), A)
    old = edits.factors[linear]
    factors = stack([LowRank(old.B.double(), old.A.double()), more])
    moved = vectors.B.double().index_add(1, torch.tensor(columns), more.B)
    return replace(
        edits,
        factors={**edits.factors, linear: factors},
        vectors=replace(edits.vectors, factors=LowRank(moved, vectors.A)),
    )


def _compact(edits: Edits) -> Edits:
    """The same with as few directions as it takes."""
    if edits.vectors is None:
        return edits
    linear = edits.vectors.linear
    return replace(edits, factors={**edits.factors, linear: _merged(edits.factors[linear])})


def _merged(factors: LowRank) -> LowRank:
    """Equal rows of A once; else the fewest directions."""
    rows, which = torch.unique(factors.A, dim=0, return_inverse=True)
    if len(rows) < factors.rank:
        B = torch.zeros(len(factors.B), len(rows), dtype=factors.B.dtype)
        return LowRank(B.index_add(1, which, factors.B), rows)
    return orthonormal(factors, rtol=1e-12)


def _knowing(site: EditSite, edits: Edits | None) -> EditSite:
    if edits is not None and isinstance(site, (EmbeddingSite, GateSite)):
        return replace(site, solved=edits)
    return site
