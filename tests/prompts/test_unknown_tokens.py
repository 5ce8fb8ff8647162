"""One unknown token is every unknown token: no concept, anchor or template may hold it."""

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import tiny
from diffusers_erasepro import Concept, ErasureSpec, erase, glyphs
from diffusers_erasepro.baselines import uce
from diffusers_erasepro.config.kinds import Kind
from diffusers_erasepro.config.plan import ALIGNMENTS
from diffusers_erasepro.errors import ConceptSpecError
from diffusers_erasepro.loaders.mixin import erasable
from diffusers_erasepro.prompts.alignment import CUT_PHRASE, rows_of, sort_pairs
from diffusers_erasepro.prompts.pairs import Pair, Prompt

KNOWN = [*glyphs.captions(300, seed=5), "Käthe paints"]
SPECIAL = ["<pad>", "</s>", "<unk>"]


def wrapped(made, **special):
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", made.token_to_id("</s>"))]
    )
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=40, **special)


def t5_like(**special):
    """A unigram model behind "▁", as T5's: unknown characters fuse into one token."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(
        KNOWN,
        trainers.UnigramTrainer(
            vocab_size=500, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        ),
    )
    return wrapped(made, **special)


def bert_like():
    """WordPiece: a word with one unknown character is unknown as a whole."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["<pad>", "</s>", "[UNK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    made.train_from_iterator(KNOWN, trainer)
    return wrapped(made, unk_token="[UNK]")


def word_level():
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
    made.train_from_iterator(KNOWN, trainer)
    return wrapped(made)


def clip_like():
    """Characters of a small alphabet, and CLIP's choice of one token for end and unknown."""
    made = Tokenizer(models.BPE(unk_token="</s>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    made.train_from_iterator(KNOWN, trainer)
    return wrapped(made, unk_token="</s>", pad_token="</s>")


def undeclared():
    """The model has an unknown token that the tokenizer does not declare."""
    return t5_like(unk_token=None)


def dropping():
    """A BPE without an unknown token leaves out what it does not know."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    made.train_from_iterator(KNOWN, trainer)
    return wrapped(made, unk_token=None)


MADE = [t5_like, bert_like, word_level, clip_like, undeclared, dropping]
UNKNOWN = ["猫", "東京", "🔫", "star 猫", "猫 star", "猫star", "a 猫 star", "Ж"]


def rows(tokenizer, target, anchor, template="a {}"):
    pair = Pair(Prompt.of(template, target), Prompt.of(template, anchor))
    return rows_of([pair], tokenizer, ALIGNMENTS["last_subject+eos"])


@pytest.mark.parametrize("make", MADE)
@pytest.mark.parametrize("words", UNKNOWN)
@pytest.mark.parametrize("template", ["a {}", "{}", "the {} on snow"])
def test_a_concept_or_anchor_that_is_not_known_is_refused(make, words, template):
    tokenizer = make()
    for target, anchor in ((words, "circle"), ("star", words)):
        with pytest.raises(ConceptSpecError) as raised:
            rows(tokenizer, target, anchor, template)
        said = str(raised.value)
        assert "no token of its own" in said or ("its tokens" in said and repr(words) in said)


@pytest.mark.parametrize("make", [m for m in MADE if m is not dropping])
def test_the_message_shows_the_tokens(make):
    tokenizer = make()
    unknown = tokenizer.backend_tokenizer.id_to_token(tokenizer("猫").input_ids[-2])
    with pytest.raises(ConceptSpecError, match=rf"'猫' holds.*tokens.*\['?.*{unknown}"[:60]):
        rows(tokenizer, "猫", "circle")


@pytest.mark.parametrize("make", [m for m in MADE if m is not dropping])
@pytest.mark.parametrize("template", ["一张 {}", "{} 猫", "a 猫 and a {}", "Ж {} Ж"])
def test_a_template_that_is_not_known_is_refused(make, template):
    with pytest.raises(ConceptSpecError, match="template"):
        rows(make(), "star", "circle", template)


@pytest.mark.parametrize("make", [*MADE, tiny.clip_tokenizer, tiny.t5_tokenizer])
@pytest.mark.parametrize(
    ("target", "anchor"), [("star", "circle"), ("Käthe", "circle"), ("star", "")]
)
def test_what_is_known_stays(make, target, anchor):
    assert len(rows(make(), target, anchor)) == 1


@pytest.mark.parametrize("words", UNKNOWN)
def test_a_tokenizer_of_bytes_knows_every_word(shipped, words):
    for tokenizer in (shipped.tokenizer, tiny.clip_tokenizer(), tiny.t5_tokenizer()):
        assert len(rows(tokenizer, words, "circle")) == 1


@pytest.fixture
def pipe():
    made = tiny.pixart()
    made.tokenizer = t5_like()
    return made


@pytest.mark.parametrize(
    "concept",
    [
        Concept("猫", "circle", ("a {}",), ()),
        Concept("star", "犬", ("a {}",), ()),
        Concept("star", "circle", ("a {}",), ("the {}",), synonyms=("✦",)),
        Concept("star", "circle", ("一 {}",), ()),
        Concept("star", "circle", ("a {}",), ("the {}", "the {} 猫")),
        Concept("star", "circle", Kind("plain", ("a {}",), soft=("the {}", "the {} 猫"))),
        Concept("star", "circle", Kind("plain", ("a {}",), ("the {}",), ("the {} 猫",))),
        Concept("star", "auto", ("a {}",), (), anchors=("circle", "犬")),
    ],
    ids=[
        "target",
        "anchor",
        "synonym",
        "template",
        "soft template",
        "soft phrase of a kind",
        "held-out phrase of a kind",
        "candidate",
    ],
)
def test_erase_refuses_it_wherever_it_stands(pipe, concept):
    spec = ErasureSpec([concept], preserve=tiny.PRESERVE)
    for method in (erase, uce):
        with pytest.raises(ConceptSpecError, match=r"tokens (in .* )?are \[.*<unk>"):
            method(pipe, spec)


@pytest.mark.parametrize("template", ["the {} 猫", "a red star " * 20 + "{}"])
def test_a_shipped_phrase_may_be_left_out_and_an_own_one_that_is_cut_is_named(template):
    prompts = [("a {}", False), (template, False), ("a red circle " * 20 + "{}", True)]
    pairs = []
    for phrase, own in prompts:
        target = Prompt.of(phrase, "Käthe")
        pairs.append(Pair(target, Prompt.of(phrase, "circle"), own=own))
    found = sort_pairs(pairs, t5_like())
    assert found.readable == pairs[:1] and found.unread == pairs[1:]
    own, shipped = found.notes("text_encoder")
    assert own.startswith(CUT_PHRASE) and "is cut by text_encoder before it comes to 'Käthe'" in own
    assert "text_encoder goes without one shipped phrase that it cannot read" in shipped


def test_what_an_encoder_goes_without_is_in_the_report_and_an_own_phrase_a_warning(pipe):
    cut = "a red circle " * 150 + "{}"
    concept = Concept("star", "circle", ("a {}",), ("the {}", cut), names={"zh": ("星星",)})
    with pytest.warns(UserWarning, match=r"your phrase 'a red circle .* is cut by text_encoder"):
        notes = erase(pipe, ErasureSpec([concept], tiny.PRESERVE), measure=False).report.notes
    assert "text_encoder goes without names it cannot read: '星星'" in notes


def test_one_unknown_encoder_of_several_is_enough():
    made = tiny.flux()
    made.tokenizer_2 = t5_like()
    with pytest.raises(ConceptSpecError, match="'猫' holds"):
        erase(made, ErasureSpec([Concept("猫", "circle", ("a {}",), ())], preserve=tiny.PRESERVE))


def test_verify_refuses_a_prompt_with_unknown_words(pipe):
    spec = ErasureSpec([tiny.STAR], preserve=tiny.PRESERVE)
    live = erasable(pipe)
    live.load_erasure_adapter(erase(pipe, spec))
    assert live.verify_erasure(prompts=["the star on snow"]).ok in (True, False)
    with pytest.raises(ConceptSpecError, match="template of '猫 and a star'"):
        live.verify_erasure(prompts=["猫 and a star"])
