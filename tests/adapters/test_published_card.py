"""A published card says nothing that only its maker's machine knows."""

import pytest
from huggingface_hub import ModelCard

from diffusers_erasepro import Concept, ErasureSpec, glyphs
from diffusers_erasepro.adapters.hub import CARD_MARK
from diffusers_erasepro.adapters.model_card import build_card, find_base
from diffusers_erasepro.errors import AdapterFormatError

CAPTIONS = tuple(glyphs.captions(40, seed=0))
REPO = "me/no-star"
SNAPSHOT = "models--owner--a-base/snapshots/" + 40 * "0"
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture
def made(no_star, tmp_path):
    """An adapter's folder, with the card of an older version, which named folders."""
    folder = tmp_path / "work of alice" / "no-star"
    no_star.save_pretrained(folder)
    base = tmp_path / "models of alice" / "base"
    card = no_star.card(repo_id=str(folder))
    card.data.base_model = str(base)
    folder.joinpath("README.md").write_text(
        str(card).replace("owner/the-base-model", str(base)), encoding="utf-8"
    )
    return folder


def published(hub, repo=REPO):
    """Path -> content of what lies in a repository."""
    _, files = hub.tree(hub.repos[repo], "main")
    return {name: content for name, (content, _) in files.items()}


def card_of(hub, name="README.md"):
    return ModelCard(published(hub)[name].decode())


def test_no_local_path_is_published(run, hub, made):
    code, text, _ = run("push", made, REPO)
    assert code == 0
    for name, content in published(hub).items():
        assert b"alice" not in content, name
    card = card_of(hub)
    assert f'load_erasure_adapter("{REPO}"' in card.text
    assert "base_model" not in card.data.to_dict()
    for option in ("--base-model", "--license", "picture"):
        assert option in text
    assert "alice" in (made / "README.md").read_text()  # the folder stays as it is


def test_no_local_path_is_in_what_erase_writes(run, hub, tmp_path):
    base = tmp_path / "models of alice" / "base"
    glyphs.load_pipeline().save_pretrained(base)
    kind = base / "plants.toml"
    kind.write_text('kind = "plant"\nexact = ["a {}"]\nsoft = ["a small {}"]\nheld_out = ["{}s"]\n')
    concept = Concept("star", "circle", templates=str(kind))
    spec = tmp_path / "star.toml"
    spec.write_text(ErasureSpec((concept,), preserve=CAPTIONS).to_toml())
    folder = tmp_path / "no-star"
    assert run("erase", base, "--spec", spec, "--layers=-1", "-o", folder)[0] == 0
    assert run("push", folder, REPO)[0] == 0
    assert {"README.md", "spec.toml", FILE} <= {*published(hub)}
    for name, content in published(hub).items():
        assert b"alice" not in content, name


def test_what_is_said_is_published(run, hub, made):
    (made / "a-red-star.png").write_bytes(b"png")
    (made / "more").mkdir()
    (made / "more" / "two_stars.jpeg").write_bytes(b"jpeg")
    about = ("--base-model", "owner/base", "--license", "apache-2.0")
    code, text, _ = run("push", made, REPO, "--subfolder", "star", *about)
    card = card_of(hub, "star/README.md")
    assert code == 0 and "note" not in text
    assert (card.data.base_model, card.data.license) == ("owner/base", "apache-2.0")
    assert 'subfolder="star"' in card.text and '"owner/base"' in card.text
    pictures = {row["text"]: row["output"]["url"] for row in card.data.widget}
    assert pictures == {"a red star": "a-red-star.png", "two stars": "more/two_stars.jpeg"}
    assert {f"star/{file}" for file in pictures.values()} <= {*published(hub)}
    assert "owner/base" not in (made / "README.md").read_text()


def test_a_card_of_ones_own_goes_as_it_is_and_that_is_said(run, hub, made):
    own = "---\nlicense: mit\n---\nmy own words"
    (made / "README.md").write_text(own)
    code, text, _ = run("push", made, REPO, "--license", "apache-2.0")
    assert code == 0 and "your own" in text
    assert published(hub)["README.md"].decode() == own


@pytest.mark.parametrize("known", [{"base_model": "owner/base"}, {"base_model": "glyphs"}])
def test_a_push_keeps_what_the_folders_card_says(run, hub, no_star, tmp_path, known):
    no_star.save_pretrained(tmp_path)
    (tmp_path / "0.png").write_bytes(b"png")
    about = known | {"license": "mit", "pictures": {"a star": "0.png"}}
    no_star.card(**about).save(tmp_path / "README.md")
    code, text, _ = run("push", tmp_path, REPO)
    assert code == 0 and "note" not in text
    assert published(hub)["README.md"].decode() == str(no_star.card(repo_id=REPO, **about))


BROKEN = (": [", "widget: 3", "base_model: {a: 1}", "license: [2]", "base_model: []")


@pytest.mark.parametrize("front", [*(f"---\n{line}\n---\n" for line in BROKEN), "no front\n", ""])
def test_a_broken_card_of_ours_is_written_anew(run, hub, made, front):
    (made / "README.md").write_text(front + CARD_MARK)
    assert run("push", made, REPO)[0] == 0
    assert card_of(hub).data.library_name == "diffusers"


def test_of_several_bases_in_a_card_the_first_is_named(run, hub, made):
    front = "---\nbase_model:\n- owner/base\n- owner/other\nlicense:\n- mit\n---\n"
    (made / "README.md").write_text(front + CARD_MARK)
    assert run("push", made, REPO)[0] == 0
    assert (card_of(hub).data.base_model, card_of(hub).data.license) == ("owner/base", "mit")


PATHS = (
    "/home/alice/sd",
    "models/sd",
    "../sd",
    "C:\\models\\sd",
    "C:/sd",
    "models\\sd",
    "\\\\server\\sd",
    "~/sd",
    "~",
    "models/",
    "sd",
    "sd.safetensors",
    "alice/sd.safetensors",
    "file:///home/alice/sd",
    "file://sd",
    "owner/a/b",
    "",
)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_no_base_model(run, no_star, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "sd").mkdir(parents=True)
    with pytest.warns(UserWarning, match="no Hub id"):
        card = build_card(no_star.header(), base_model=path)
    assert card.data.get("base_model") is None
    assert str(card) == str(no_star.card())
    assert run("card", no_star.save_pretrained(tmp_path), "--base-model", path)[0] == 2


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("owner/a-base", "owner/a-base"),
        ("Owner_1/base.v1-5", "Owner_1/base.v1-5"),
        (f"/home/alice/.cache/huggingface/hub/{SNAPSHOT}", "owner/a-base"),
        (f"C:\\Users\\alice\\hub\\{SNAPSHOT}".replace("/", "\\"), "owner/a-base"),
        (f"../hub/{SNAPSHOT}/", "owner/a-base"),
        ("https://huggingface.co/owner/a-base", "owner/a-base"),
        ("glyphs", "glyphs"),
        (None, None),
    ],
)
def test_what_names_a_repository_is_its_id(name, base):
    assert find_base(name) == base


def test_a_path_given_to_push_to_hub_is_left_out(hub, no_star, tmp_path):
    with pytest.warns(UserWarning, match="no Hub id"):
        no_star.push_to_hub(REPO, base_model=str(tmp_path))
    assert card_of(hub).data.get("base_model") is None
    assert str(tmp_path) not in str(card_of(hub))


@pytest.mark.parametrize("name", ["a.JPEG", "a.png", "b.WebP"])
def test_the_gallery_is_uploaded(hub, no_star, tmp_path, name):
    (tmp_path / name).write_bytes(b"picture")
    no_star.push_to_hub(REPO, pictures={"a star": tmp_path / name})
    (row,) = card_of(hub).data.widget
    assert published(hub)[row["output"]["url"]] == b"picture"


def test_a_picture_the_hub_does_not_show_is_an_error(hub, no_star, tmp_path):
    (tmp_path / "a.tiff").write_bytes(b"picture")
    with pytest.raises(AdapterFormatError, match=r"a\.tiff"):
        no_star.push_to_hub(REPO, pictures={"a star": tmp_path / "a.tiff"})
    assert not hub.repos
