"""Spans and alignments, on the shipped tokenizer."""

import pytest
import torch

from diffusers_erasepro import Concept
from diffusers_erasepro.config.plan import ALIGNMENTS
from diffusers_erasepro.errors import ConceptSpecError
from diffusers_erasepro.families.encode_prompt import tokenize
from diffusers_erasepro.prompts.alignment import aligned, rows_of, rows_to_solve, span
from diffusers_erasepro.prompts.pairs import Pair, Prompt, pairs_of, pairs_to_solve


@pytest.fixture
def tokenizer(shipped):
    return shipped.tokenizer


def mark(tokenizer, prompt):
    return tokenize(tokenizer, [prompt.text]).locate(0, prompt.text, "")


def marks(tokenizer, p):
    return mark(tokenizer, p.target), mark(tokenizer, p.anchor)


def pair(template, target, anchor):
    return Pair(Prompt.of(template, target), Prompt.of(template, anchor))


@pytest.mark.parametrize("words", ["star", "crescent", "Mira Voss", "été", "星", "a b c"])
@pytest.mark.parametrize("template", ["{}", "a {}", "look:  {}, on snow", "{} and more"])
def test_span_holds_just_the_tokens_of_the_concept(tokenizer, template, words):
    prompt = Prompt.of(template, words)
    at, (eos,) = span(mark(tokenizer, prompt), prompt)
    ids = tokenizer(prompt.text).input_ids
    assert [ids[i] for i in at] == tokenizer(words).input_ids[1:-1]
    assert ids[eos] == tokenizer.eos_token_id and tokenizer.eos_token_id not in ids[:eos]


def test_the_empty_anchor_sits_on_the_token_before(tokenizer):
    for template, at in (("a {} shape", 1), ("{} shape", 0), ("{}", 0)):
        prompt = Prompt.of(template, "")
        assert span(mark(tokenizer, prompt), prompt)[0] == [at]


def test_last_subject_token_meets_last_anchor_token(tokenizer):
    p = pair("a red {} on snow", "crescent", "star")
    (target, (t_eos,)), (anchor, (a_eos,)) = (
        span(m, q) for m, q in zip(marks(tokenizer, p), (p.target, p.anchor), strict=True)
    )
    assert len(target) > len(anchor)
    assert aligned(p, marks(tokenizer, p), ALIGNMENTS["last_subject+eos"]) == [
        (target[-1], anchor[-1]),
        (t_eos, a_eos),
    ]
    whole = aligned(p, marks(tokenizer, p), ALIGNMENTS["subject"])
    assert [t for t, _ in whole] == target and whole[-1][1] == anchor[-1]


def test_the_last_tokens_of_a_longer_name_meet_the_anchors(tokenizer):
    for target, anchor in (("Odo Brandt Odo Brandt", "Una Flatt"), ("Una Flatt", "Una Flatt Odo")):
        p = pair("a ring by {}", target, anchor)
        (names, _), (instead, _) = (
            span(m, q) for m, q in zip(marks(tokenizer, p), (p.target, p.anchor), strict=True)
        )
        ahead = max(0, len(names) - len(instead))
        meets = dict(aligned(p, marks(tokenizer, p), ALIGNMENTS["subject"]))
        assert [*meets] == names and len(instead) > 1
        assert [meets[at] for at in names[:ahead]] == instead[:1] * ahead
        assert [meets[at] for at in names[ahead:-1]] == instead[: len(names) - ahead - 1]
        assert meets[names[-1]] == instead[-1]


def test_suffix_and_padding_go_by_offset_from_the_end_of_the_span(tokenizer):
    p = pair("a {} on snow", "crescent", "star")
    found = aligned(p, marks(tokenizer, p), ALIGNMENTS["all"])
    shift = found[-1][0] - found[-1][1]
    after = [(t, a) for t, a in found if t > span(mark(tokenizer, p.target), p.target)[0][-1]]
    assert after and all(t - a == shift for t, a in after)


def test_a_concept_past_the_limit_is_an_error_with_both_numbers(tokenizer):
    with pytest.raises(
        ConceptSpecError, match=r"truncated.*needs \d+ tokens, the tokenizer allows 64"
    ):
        rows_of([pair("very " * 70 + "{}", "star", "circle")], tokenizer, ALIGNMENTS["subject"])


def test_same_tokens_are_an_error(tokenizer):
    with pytest.raises(ConceptSpecError, match="the same tokens"):
        rows_of([pair("a {}", "st\u00e9", "ste\u0301")], tokenizer, ALIGNMENTS["subject"])


def test_one_prompt_cannot_mean_two_things(tokenizer):
    with pytest.raises(ConceptSpecError, match="'a circle' and to 'a ring'"):
        rows_of(
            [pair("a {}", "star", "circle"), pair("a {}", "STAR", "ring")],
            tokenizer,
            ALIGNMENTS["subject"],
        )


def test_pairs_cover_synonyms_and_templates():
    concept = Concept("star", "circle", templates=("a {}", "the {}"), synonyms=("spark",))
    assert [p.target.text for p in pairs_of([concept], "exact")] == ["a star"]
    assert [p.target.text for p in pairs_of([concept], "soft")] == [
        "the star",
        "a spark",
        "the spark",
    ]


@pytest.mark.parametrize(("budget", "soft"), [(0, 4), (10, 10), (1000, 32)])
def test_words_share_the_soft_budget(tokenizer, budget, soft):
    phrases = tuple(f"{{}} on page {page}" for page in range(16))
    concepts = [Concept(word, "circle", ("a {}",), phrases) for word in ("star", "ring")]
    pairs = pairs_to_solve(concepts, soft_budget=budget)
    plain = [pair for pair in pairs["soft"] if pair.stands_for is None]
    assert (len(pairs["exact"]), len(plain)) == (2, soft)
    rows = rows_to_solve(concepts, tokenizer, ALIGNMENTS["subject"], soft_budget=budget)
    assert len(rows["exact"]) == 2 and len(rows["soft"]) >= soft


def test_a_phrase_that_names_another_target_is_not_asked_of_this_one(tokenizer):
    star = Concept("star", "circle")
    style = Concept("Mira Voss", "Una Flatt", ("{}",), ("a star by {}", "a ring by {}"))
    together, alone = (
        {p.target.text for p in pairs_of(c, "soft")} for c in ([star, style], [style])
    )
    assert {t for t in alone if "star" in t} and not {
        t for t in together if "star" in t and "Voss" in t
    }


def test_rows_index_both_sides(tokenizer):
    rows = rows_of(
        pairs_of([Concept("crescent", "star", ("a {}",))], "exact"),
        tokenizer,
        ALIGNMENTS["last_subject+eos"],
    )
    assert rows.row.tolist() == [0, 0]
    assert torch.equal(
        rows.target_ids[0, rows.target_at[1:]], rows.anchor_ids[0, rows.anchor_at[1:]]
    )
