"""Which scripts a tokenizer has learned."""

import pytest
from vocabularies import TOKENIZERS, VocabularyError, load_tokenizer

from diffusers_erasepro.prompts.scripts import knows_script

FOREIGN = ["皮卡丘", "梵高", "Ван Гог", "ゴッホ", "ねこ", "스누피", "بيكاسو"]


def load(name):
    try:
        return load_tokenizer(name)
    except VocabularyError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_vocabulary_knows_latin_letters(name):
    tokenizer = load(name)
    for text in ("Pikachu", "R2-D2", "Spider-Man", "Cézanne", "McDonald's", "Krefeld", "pistola"):
        assert knows_script(tokenizer, text), text


@pytest.mark.parametrize("name", ["clip", "t5", "bert"])
def test_these_spell_other_scripts_without_having_read_them(name):
    tokenizer = load(name)
    assert [text for text in FOREIGN if knows_script(tokenizer, text)] == []


def test_qwen_reads_them():
    tokenizer = load("qwen3")
    assert [text for text in FOREIGN if not knows_script(tokenizer, text)] == []


def test_one_foreign_letter_is_enough_to_be_foreign():
    assert not knows_script(load("clip"), "Pikachu ピカチュウ")
    assert not knows_script(load("t5"), "Ван Gogh")


def test_a_script_without_a_sample_is_judged_by_the_text():
    for name in TOKENIZERS:
        assert not knows_script(load(name), "ბათუმი"), name
