"""Tokens that a tokenizer was published with are no learned ones; loading warns of nothing."""

import logging

import pytest
import transformers
from transformers import AddedToken

import tiny
from diffusers_erasepro import glyphs
from diffusers_erasepro.interop.pipelines import load_model
from diffusers_erasepro.prompts.learned_tokens import learned_tokens

PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581a", -1.0), ("\u2581star", -2.0)]


def t5():
    return transformers.T5Tokenizer(vocab=PIECES)


def special_ones():
    found = tiny.clip_tokenizer()
    found.add_tokens([AddedToken("<|im_end|>", special=True), AddedToken("[INST]", special=True)])
    return found


@pytest.mark.parametrize("make", [t5, special_ones, tiny.clip_tokenizer, tiny.chat_tokenizer])
def test_only_a_learned_token_is_listed(make):
    tokenizer = make()
    assert learned_tokens(tokenizer) == []
    tokenizer.add_tokens(["<thing>", "<thing>_1"])
    assert learned_tokens(tokenizer) == ["<thing>", "<thing>_1"]


def test_tokens_of_a_file_are_stock_ones_but_where_inversions_are_saved_too(tmp_path):
    for make, expected in ((tiny.chat_tokenizer, []), (t5, ["<tool_call>"])):
        tokenizer = make()
        tokenizer.add_tokens(["<tool_call>"])
        tokenizer.save_pretrained(tmp_path)
        assert learned_tokens(type(tokenizer).from_pretrained(tmp_path)) == expected


LOADERS = {
    "glyphs": glyphs.load_pipeline,
    "video": glyphs.load_video_pipeline,
    "folder": lambda: load_model(str(glyphs.WEIGHTS)),
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_loading_a_glyph_pipeline_warns_of_nothing(load, caplog):
    logger = logging.getLogger("diffusers")
    propagates = logger.propagate
    logger.propagate = True
    try:
        load()
    finally:
        logger.propagate = propagates
    assert [record.message for record in caplog.records if "float32" in record.message] == []
