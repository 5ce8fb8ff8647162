"""The model card.

Valid by the Hub's own classes, a pure function, its snippet works when pasted.
"""

import re

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from diffusers_erasepro import glyphs
from diffusers_erasepro.adapters.header import read_header


def python_of(card):
    return re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1]


def test_the_hubs_own_classes_accept_it(hub, no_star):
    card = no_star.card(
        repo_id="me/no-star",
        base_model="owner/base",
        license="apache-2.0",
        pictures={"a star": "0.png"},
    )
    card.validate()
    data = ModelCard(str(card)).data
    assert (data.library_name, data.base_model, data.license) == (
        "diffusers",
        "owner/base",
        "apache-2.0",
    )
    assert data.to_dict()["base_model_relation"] == "adapter"
    assert {"concept-erasure", "lora", "template:sd-lora"} <= set(data.tags)
    assert data.widget == [{"text": "a star", "output": {"url": "0.png"}}]


def test_it_is_a_function_of_the_header_alone(no_star, tmp_path):
    from diffusers_erasepro.adapters.model_card import build_card

    header = read_header(no_star.save_pretrained(tmp_path))
    assert str(build_card(header)) == str(no_star.card()) == str(no_star.card())


def test_it_says_what_was_measured_and_what_is_not_promised(no_star):
    text = no_star.card().text
    assert f"{no_star.report.listed_residual:.1e}" in text and f"{no_star.report.drift:.3f}" in text
    assert all(layer.name in text for layer in no_star.report.layers)
    assert "Do not use it as the only control for illegal content" in text


@pytest.mark.parametrize("base", ["glyphs", pytest.param("owner/base", marks=pytest.mark.slow)])
def test_the_snippet_works_when_pasted(no_star, tmp_path, monkeypatch, base):
    monkeypatch.chdir(tmp_path)
    no_star.save_pretrained("no-star")
    code = python_of(no_star.card(repo_id="no-star", base_model=base, prompt="a red star on snow"))
    assert len(code.strip().splitlines()) <= 12
    code = code.replace("owner/base", str(glyphs.WEIGHTS))  # no base is on this Hub
    exec(code, {})
    before, after = (Image.open(f"{name}.png") for name in ("before", "after"))
    assert glyphs.load_judge()([before, after])["shape"] == ["star", "circle"]


@pytest.mark.parametrize("target", ['a "quoted" name', "back\\slash", "naïve | piped", "{braces}"])
def test_odd_names_do_not_break_the_card(no_star, target):
    header = no_star.header()
    header["spec"] = {"concepts": [header["spec"]["concepts"][0] | {"target": target}]}
    from diffusers_erasepro.adapters.model_card import build_card

    made = build_card(header)
    compile(python_of(made), "snippet", "exec")
    rows = [line for line in made.text.splitlines() if line.startswith("| ") and "circle" in line]
    assert len(rows) == 1 and len(re.findall(r"(?<!\\)\|", rows[0])) == 5
