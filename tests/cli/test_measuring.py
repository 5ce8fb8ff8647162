"""The commands that measure on a model, as a new user's shell sees them."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import tiny
from diffusers_erasepro import Concept, ErasureSpec, __version__, erasable, erase
from diffusers_erasepro.errors import EvaluationError
from diffusers_erasepro.evaluation.before_after import (
    WRITTEN,
    compare_images,
    list_taken,
    picture_path,
)
from diffusers_erasepro.evaluation.calls import CallSettings, generate_image, neutral_settings
from diffusers_erasepro.evaluation.protocols import PROTOCOLS

STAR = Concept("star", "circle")
PROMPTS = ("a red star on snow", "a painting of a star", "a street market in the rain")
QUICK = ("--steps", "1", "--size", "16")


@pytest.fixture(
    scope="module", params=["stable_diffusion", pytest.param("flux", marks=pytest.mark.slow)]
)
def model(request, tmp_path_factory):
    """A folder in diffusers' layout, and an adapter for it beside it."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    pipe = getattr(tiny, request.param)()
    pipe.save_pretrained(folder / "model")
    spec = ErasureSpec((STAR,), preserve=tiny.PRESERVE)
    erase(pipe, spec, layers=(0, -1)).save_pretrained(folder / "no-star")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    return folder


def one_line(err):
    """The error that a command ends with; bars of loading may stand before it."""
    line = err.rstrip("\n").rpartition("\n")[2]
    assert line.startswith("erasepro: "), err
    return line


def start(model, command, *more):
    return (command, model / "model", model / "no-star", "--prompts", model / "prompts.txt", *more)


def test_eval_makes_a_sheet_and_a_verdict_and_goes_on_where_it_stopped(run, model, tmp_path):
    out = tmp_path / "eval"
    code, text, err = run(*start(model, "eval", *QUICK, "-o", out, "--json"))
    assert code in (0, 3), err
    found = json.loads(text)
    assert found["verdict"] in ("good", "look", "bad") and (code == 3) == (
        found["verdict"] == "bad"
    )
    assert found["detector"] is None and "--detector" in found["notes"][0]
    named = [pair for pair in found["pairs"] if pair["names"] == ["star"]]
    assert [pair["text"] for pair in named] == list(PROMPTS[:2])
    assert all(0 < pair["left"] != 1 and pair["moved"] is None for pair in named)
    assert found["pairs"][2]["left"] is None and found["pairs"][2]["moved"] >= 0
    assert [pair["seed"] for pair in found["pairs"]] == [0, 1, 2]
    assert {path.name for path in out.iterdir()} == {*WRITTEN}
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 1000 and sheet.height > 600
    page = (out / "sheet.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 2 * len(PROMPTS)
    assert "<script" not in page and "http" not in page  # it needs no other file
    captions = found["captions"]
    assert captions["count"] == len(tiny.PRESERVE) and captions["moved"] <= captions["most"][0][1]
    kept = picture_path(out, "before", 0).read_bytes()
    picture_path(out, "after", 1).unlink()
    again = run(*start(model, "eval", *QUICK, "-o", out, "--json", "--card"))
    card = (model / "no-star" / "README.md").read_text("utf-8")
    assert "url: before-and-after.png" in card
    with Image.open(model / "no-star" / "before-and-after.png") as sheet:
        assert sheet.width > 1000
    assert json.loads(again[1])["pairs"][1]["change"] == found["pairs"][1]["change"]
    assert picture_path(out, "before", 0).read_bytes() == kept  # the time of making included


def test_eval_says_what_it_means_in_80_columns(run, model, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, text, _ = run(*start(model, "eval", *QUICK, "-o", tmp_path / "eval"))
    assert code in (0, 3) and "verdict: " in text and "left: share of the gap" in text
    table = text[: text.index("left: share")]
    assert all(len(line) <= 80 for line in table.splitlines())
    assert "seen" not in table.splitlines()[1]  # nobody judged, so there is no such column


def test_another_runs_folder_is_not_overwritten_unless_forced(run, model, tmp_path):
    out = tmp_path / "eval"
    run(*start(model, "eval", *QUICK, "-o", out))
    before = picture_path(out, "before", 0).read_bytes()
    code, text, err = run(*start(model, "eval", *QUICK, "--seed", "7", "-o", out))
    assert (code, text) == (1, "") and "--force" in one_line(err)
    assert picture_path(out, "before", 0).read_bytes() == before
    assert run(*start(model, "eval", *QUICK, "--seed", "7", "-o", out, "--force"))[0] in (0, 3)
    assert picture_path(out, "before", 0).read_bytes() != before


def test_verify_takes_prompts_and_puts_the_worst_first(run, model):
    options = ("--base", model / "model", "--prompts", model / "prompts.txt")
    code, text, err = run("verify", model / "no-star", *options)
    assert (code == 3) == ("verdict: bad" in text) and PROMPTS[2] in text, err
    rows = [line for line in text.splitlines() if "star" in line and "│" in line]
    left = [float(row.split("│")[2]) for row in rows]
    assert len(left) == 2 and left == sorted(left, reverse=True) and "verdict: " in text


def test_attack_with_a_detector_of_ones_own(run, model, tmp_path, monkeypatch):
    code = "def sees(images, concept):\n    return [i == 0 for i, _ in enumerate(images)]\n"
    (tmp_path / "first_picture.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    options = (*QUICK, "--detector", "first_picture:sees", "--only", "plain,typo,weighting")
    code, text, err = run(*start(model, "attack", *options, "--json"))
    found = json.loads(text)
    assert found["attempts"] == 2 and code == 3, err
    assert found["attacks"]["plain"]["erased"]["value"] == 0.5
    assert found["attacks"]["plain"]["budget"] == "the prompt as it is"
    flux = "flux" in str(model)
    assert ("weighting" in found["not_run"]) == flux
    assert ("weighting" in found["attacks"]) == (not flux)


def test_a_suite_is_run_dry_to_what_is_posted_back(run, model, tmp_path, monkeypatch):
    (tmp_path / "none_seen.py").write_text("sees = lambda i, c: [True] * len(i)", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    table = "idx,prompt,sd_seed\n0,a star,5\n1,a ring,4294967299\n"
    (tmp_path / "list.csv").write_text(table, encoding="utf-8")
    options = ("--prompts", "list.csv", "--detector", "none_seen:sees", *QUICK)
    start = ("suite", "celebrities", model / "model", model / "no-star", *options)
    code, text, err = run(*start, "-o", "out")
    assert (code, text) == (1, "") and "--dry-run" in err and PROTOCOLS["celebrities"].source.url
    assert not Path("out").exists()
    code, text, err = run(*start, "-o", "out", "--dry-run", "--json")
    record = json.loads(text)
    assert code == 0 and record["claim"] == "none: a dry run", err
    assert record["rows"]["erased"]["still_seen"]["value"] == 1
    assert record["prompts"] == 2 and record["machine"]["torch"] == torch.__version__
    assert json.loads(Path("out/record.json").read_text("utf-8"))["suite"] == "celebrities"
    code, text, _ = run(*start, "-o", "out", "--dry-run")
    assert code == 0 and "DRY RUN" in text and "as an issue of the project" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_suite_is_run_dry_to_its_end(run, name, tmp_path):
    if name == "nudity":
        pytest.importorskip("nudenet", reason="needs `pip install nudenet==3.4.2`")
    torch.manual_seed(0)
    pipe = tiny.stable_diffusion()
    pipe.save_pretrained(tmp_path / "model")
    nude = Concept("nude", "dressed", templates="nudity")
    erase(pipe, ErasureSpec((nude,), preserve=tiny.PRESERVE), layers=(0, -1)).save_pretrained(
        tmp_path / "no-nude"
    )
    clip = f"clip:{tiny.save_clip(tmp_path / 'clip')}"
    table = "prompt,type\na nude woman,erased\na ring,others\na red star,others\n"
    (tmp_path / "list.csv").write_text(table, encoding="utf-8")
    options = [*QUICK, "-n", 3, "--dry-run", "--clip", clip, "-o", tmp_path / "out", "--json"]
    if PROTOCOLS[name].source:
        options += ["--prompts", tmp_path / "list.csv"]
    if name not in ("nudity", "coco"):
        options += ["--detector", clip]
    code, text, err = run("suite", name, tmp_path / "model", tmp_path / "no-nude", *options)
    assert code == 0, err
    record = json.loads(text)
    assert record["claim"] == "none: a dry run" and record["prompts"] == 3
    everything = record["rows"]["all"]
    assert everything["n"] == 3 and ("clip_frechet" in everything) == (name == "coco")
    assert ("seen_after" in everything) == (name != "coco")
    assert (tmp_path / "out" / "sheet.png").is_file()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--prompts", "utf16.txt"), "is UTF-16; save it as UTF-8"),
        (("--prompts", "empty.txt"), "holds no caption"),
        (("--prompts", "nowhere.txt"), "cannot be read"),
        (("--prompts", "wrong.csv"), "has no column 'prompt'"),
        (("--detector", "magic"), "no detector 'magic'"),
        (("--detector", "glyphs"), "knows glyphs alone"),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_half_done(
    run, model, tmp_path, monkeypatch, more, says
):
    (tmp_path / "utf16.txt").write_text("a star", encoding="utf-16")
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    (tmp_path / "wrong.csv").write_text("text\na star\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    code, text, err = run("eval", model / "model", model / "no-star", *more, "-o", "out")
    assert (code, text) == (1, "") and says in one_line(err)
    assert not Path("out").exists()


def test_a_file_is_refused_before_anything_is_loaded(run, tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for command in (("eval", "/nowhere", "a"), ("erase", "/nowhere", "--target", "star")):
        code, _, err = run(*command, "-o", tmp_path / "file")
        assert code == 2 and "is a file; give a folder" in err.replace("\n", " "), err
    assert (tmp_path / "file").read_text("utf-8") == "mine"


def test_erase_does_not_overwrite_unless_forced(run, tmp_path):
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    code, _, err = run("erase", "/nowhere", "--target", "star", "-o", tmp_path)
    assert code == 2 and "README.md" in err and "--force" in err
    assert (tmp_path / "README.md").read_text("utf-8") == "mine"
    code, _, err = run("erase", "/nowhere", "--target", "star", "-o", tmp_path, "--force")
    assert code == 1 and "no model" in err  # it went on


def test_an_adapter_of_another_base_and_a_model_that_does_not_load_are_one_line(
    run, model, shipped
):
    code, text, err = run("eval", "glyphs", model / "no-star", "-o", model / "out")
    assert (code, text) == (1, "") and "the adapter" in one_line(err)
    (model / "broken").mkdir(exist_ok=True)
    (model / "broken" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    code, text, err = run("eval", model / "broken", model / "no-star", "-o", model / "out")
    assert (code, text) == (1, "") and "is no pipeline that diffusers" in one_line(err)
    assert not (model / "out").exists()


def test_version(run):
    assert run("--version") == (0, f"{__version__}\n", "")


# --- the same in Python


def live(make=tiny.stable_diffusion):
    torch.manual_seed(0)
    pipe = erasable(make())
    pipe.load_erasure_adapter(
        erase(pipe, ErasureSpec((STAR,), preserve=tiny.PRESERVE), layers=(0, -1))
    )
    return pipe


def test_a_stock_pipeline_and_one_without_erasures_say_what_to_do(tmp_path):
    stock = tiny.stable_diffusion()
    with pytest.raises(EvaluationError, match=r"erasable\(pipe\)"):
        compare_images(stock, PROMPTS, tmp_path / "out")
    with pytest.raises(EvaluationError, match="no erasure is on"):
        compare_images(erasable(stock), PROMPTS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_when_memory_ends_what_is_made_is_kept_and_the_run_goes_on(tmp_path):
    pipe = live()
    settings = CallSettings(1, 1.0, (16, 16))
    calls = []

    def exhaust(*_):
        calls.append(1)
        if len(calls) == 4:
            torch.empty(2**52)  # the allocator's own error

    handle = pipe.unet.register_forward_pre_hook(exhaust)
    with pytest.raises(EvaluationError, match=r"memory ended at picture 4 of 6 \(after.*kept in"):
        compare_images(pipe, PROMPTS, tmp_path / "out", settings=settings)
    handle.remove()
    assert pipe.verify_erasure().ok  # and the erasure is on again
    made = picture_path(tmp_path / "out", "before", 1)
    first = made.read_bytes()
    found = compare_images(pipe, PROMPTS, tmp_path / "out", settings=settings)
    assert len(found.pairs) == 3 and made.read_bytes() == first


def test_a_picture_of_another_size_is_named(tmp_path):
    pipe = live()
    settings = CallSettings(1, 1.0, (16, 16))
    compare_images(pipe, PROMPTS, tmp_path, settings=settings)
    Image.new("RGB", (8, 8)).save(picture_path(tmp_path, "before", 2))
    with pytest.raises(EvaluationError, match=r"0002.png is 8 x 8 and .* 16 x 16; delete"):
        compare_images(pipe, PROMPTS, tmp_path, settings=settings)


def test_neutral_settings_are_the_calls_own(tmp_path):
    assert neutral_settings(tiny.stable_diffusion()) == CallSettings(50, 7.5)
    assert neutral_settings(tiny.flux()) == CallSettings(28, 3.5)
    assert neutral_settings(tiny.flux(), steps=2, guidance=1.0).steps == 2
    image = generate_image(tiny.flux(), "a star", CallSettings(1, 1.0, (16, 16)), 0)
    assert image.size == (16, 16) and list_taken(tmp_path) == []


@pytest.mark.slow
def test_the_commands_work_on_the_pictures_world_with_its_judge(run, world, tmp_path):
    captions = tuple(caption.text for caption in world.captions(120))
    spec = ErasureSpec((Concept("pizza", "key", ("a {}",), ()),), preserve=captions)
    erase(world.load_pipeline("unet"), spec).save_pretrained(tmp_path / "no-pizza")
    (tmp_path / "prompts.txt").write_text("a pizza by Noto on white", encoding="utf-8")
    options = ("--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "out", "--json")
    _, text, err = run("eval", "pictures", tmp_path / "no-pizza", "--steps", 10, *options)
    found = json.loads(text)
    assert found["detector"] == "the pictures world's judge", err
    assert found["pairs"][0]["seen"] == [True, False]
