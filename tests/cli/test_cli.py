"""The command line as a shell sees it.

Output, exit codes, one-line errors, and what it does not import.
"""

import json
import re
import resource
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest

from diffusers_erasepro import ErasureAdapter, __version__
from diffusers_erasepro.cli.comparison_tables import list_doubts
from diffusers_erasepro.cli.tables import describe_captions, describe_verification
from diffusers_erasepro.evaluation import runner

HEAVY = ("torch", "diffusers", "transformers", "peft", "matplotlib", "pandas")


@pytest.fixture
def folder(no_star, tmp_path):
    no_star.save_pretrained(tmp_path / "no-star")
    return tmp_path / "no-star"


def python(code, *args):
    """A fresh interpreter, as a user's shell starts it."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=False
    )


def test_erase_by_options_and_by_spec_then_show_and_verify(run, tmp_path):
    out = tmp_path / "no-ring"
    code, text, _ = run(
        "erase", "glyphs", "--target", "ring", "--anchor", "circle", "-o", out, "--json"
    )
    assert code == 0 and json.loads(text)["report"]["listed_residual"] < 1e-5
    assert {p.name for p in out.iterdir()} == {
        "pytorch_lora_weights.safetensors",
        "spec.toml",
        "README.md",
    }
    assert run("erase", "glyphs", "--spec", out / "spec.toml", "-o", tmp_path / "again")[0] == 0
    assert (
        ErasureAdapter.from_pretrained(out).to_bytes()
        == ErasureAdapter.from_pretrained(tmp_path / "again").to_bytes()
    )
    code, text, _ = run("show", out)
    assert code == 0 and "ring -> circle" in text and "It does not" in text
    code, text, _ = run("verify", out, "--base", "glyphs")
    assert code == 0 and text.startswith("holds: residual")


def test_explain_ends_with_an_error_where_erase_would(run):
    asked = ("erase", "glyphs", "--target", "ring", "--anchor", "a ring", "--explain")
    code, text, err = run(*asked)
    assert code == 1 and not text and re.search("erasepro: .*ring.*\n$", err)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"preserve": ["a ring"]}, "preserves one caption"),
        ({"preserve": ["a ring", "a moon"]}, "preserves 2 captions"),
    ],
)
def test_captions_are_counted_as_a_person_counts(spec, says):
    assert describe_captions(spec) == says


def test_every_option_of_erase_reaches_the_adapter(run, tmp_path):
    captions = tmp_path / "captions.txt"
    lines = [f"a red {shape} on snow\n" for shape in ("ring", "square", "heart", "moon", "plus")]
    captions.write_text("".join(lines) + "".join(lines).replace("red", "blue"), encoding="utf-8")
    concept = ("--target", "star", "--anchor", "circle", "--templates", "style")
    concept += ("--synonym", "spark", "--synonym", "bolt", "--preserve-file", captions)
    solver = ("--layers", "0,-1", "--robust", "--clip-skip", "1")
    code, text, err = run("erase", "glyphs", *concept, *solver, "-o", tmp_path / "a", "--json")
    assert code == 0, err
    header = json.loads(text)
    (made,) = header["spec"]["concepts"]
    words = ["star", "circle", "style", ["spark", "bolt"]]
    assert [made[k] for k in ("target", "anchor", "templates", "synonyms")] == words
    assert header["spec"]["preserve"] == captions.read_text(encoding="utf-8").splitlines()
    options = header["options"]
    assert [options[k] for k in ("layers", "robust", "clip_skip")] == [[0, -1], True, 1]


def test_verify_fails_with_its_own_exit_code(run, folder, monkeypatch):
    from diffusers_erasepro.loaders import compatibility as fit
    from diffusers_erasepro.loaders import verification as verify

    monkeypatch.setattr(
        fit, "allowed_residual", lambda *_: 1.0
    )  # let it load, so that only the live check is left to fail
    monkeypatch.setattr(verify, "THRESHOLDS", dict.fromkeys(verify.THRESHOLDS, 0.0))
    code, text, _ = run("verify", folder, "--base", "glyphs", "--json")
    assert code == 3 and json.loads(text)["ok"] is False


def test_list_and_card(run, folder):
    (folder / "other.safetensors").write_bytes(b"not an adapter")
    code, text, _ = run("list", folder.parent, "--json")
    assert code == 0 and list(json.loads(text)) == ["no-star/pytorch_lora_weights.safetensors"]
    code, text, _ = run("list", folder.parent)
    assert code == 0 and "star -> circle" in text


def test_push_pull_lock(run, hub, folder, tmp_path):
    assert run("push", folder, "me/no-star", "--private")[0] == 0
    code, text, _ = run(
        "pull",
        "me/no-star",
        "--lock",
        tmp_path / "erasures.lock",
        "-o",
        tmp_path / "copy",
        "--json",
    )
    got = json.loads(text)
    assert code == 0 and got["commit"] == hub.repos["me/no-star"].branches["main"]
    assert (tmp_path / "copy" / "pytorch_lora_weights.safetensors").read_bytes() == next(
        folder.iterdir()
    ).read_bytes()
    code, text, _ = run("verify", tmp_path / "erasures.lock", "--base", "glyphs")
    assert code == 0 and text.startswith("holds")
    code, text, err = run("pull", "me/none")
    assert (
        (code, text) == (1, "")
        and err.startswith("erasepro: ")
        and "me/none" in err
        and err.count("\n") == 1
    )
    code, text, _ = run("card", folder, "--repo-id", "me/no-star")
    assert code == 0 and 'load_erasure_adapter("me/no-star"' in text


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("show", "/nowhere"), 1, "no file or folder at /nowhere"),
        (("verify", "/nowhere", "--base", "nonsense"), 1, "no model 'nonsense'"),
        (("verify", "/nowhere", "--base", "a.ckpt"), 1, "no model 'a.ckpt'"),
        (("erase", "glyphs", "--spec", "/nowhere", "-o", "x"), 1, "No such file or directory"),
        (("erase", "glyphs", "--target", "a", "--anchor", "a", "-o", "x"), 1, "nothing to erase"),
        (("erase", "glyphs", "-o", "x"), 2, "give either --target or --spec"),
        (("erase", "glyphs", "--target", "a"), 2, "give a folder to write to"),
        (("erase", "glyphs", "--spec", "s.toml", "--anchor", "x", "-o", "x"), 2, "--anchor would"),
        (("export", "/nowhere"), 2, "Missing option"),
        (("list", "/nowhere"), 2, "does not exist"),
        (("nonsense",), 2, "No such command"),
        (("card", "/nowhere"), 1, "no file or folder at /nowhere"),
        (("eval", "glyphs", "/nowhere"), 1, "no file or folder at /nowhere"),
        (("attack", "glyphs", "/nowhere"), 1, "no file or folder at /nowhere"),
        (("attack", "a/b", "x"), 2, "give --detector"),
        (("suite", "imagenet", "glyphs", "x"), 1, "no suite 'imagenet' (known: glyphs, nudity"),
        (("suite", "instances", "x", "x", "--prompts", "pyproject.toml"), 1, "makes its prompts"),
        (("suite", "coco", "x", "x"), 1, "data/coco_30k.csv and give it with --prompts"),
        (("push", "/nowhere", "me/x"), 2, "does not exist"),
        (("export", "/nowhere", "-o", "x.safetensors"), 1, "no file or folder at /nowhere"),
        (
            ("import", "/nowhere", "--base", "glyphs", "--target", "a", "-o", "x"),
            2,
            "does not exist",
        ),
    ],
)
def test_errors_end_in_one_line_and_a_code(run, args, code, says):
    got, out, err = run(*args)
    assert (got, out) == (code, "") and says in err and "Traceback" not in err
    if code == 1:
        assert err.startswith("erasepro: ") and err.count("\n") == 1


def test_a_mere_target_is_said_to_be_an_object_with_nothing_in_its_place(run):
    note = "note: 'star' is taken for an object with nothing in its place"
    assert note in run("erase", "nonsense", "--target", "star", "-o", "x")[2]
    assert note not in run("erase", "nonsense", "--target", "star", "--anchor", "a", "-o", "x")[2]
    assert note not in run("erase", "glyphs", "--target", "star")[2]


def test_debug_gives_the_traceback():
    start = "import sys; sys.argv[0] = 'erasepro'; "
    code = start + "from diffusers_erasepro.cli.main import main; main()"
    done = python(code, "--debug", "show", "/no")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_show_reads_the_header_without_torch(folder):
    code = "import sys; sys.argv[0] = 'erasepro'\n"
    code += "try:\n from diffusers_erasepro.cli.main import main; main()\n"
    code += f"finally: print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    for command in (("show", folder), ("show", folder, "--json"), ("list", folder), ("--help",)):
        done = python(code, *command)
        assert done.returncode == 0 and done.stderr.strip().endswith("[]"), done.stderr


def cpu_seconds(code, *args, tries=5):
    """Least processor time of a fresh interpreter.

    Elapsed time would measure what else the machine does.
    """
    spent = [0.0]
    for _ in range(tries):
        assert python(code, *args).returncode == 0
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(used.ru_utime + used.ru_stime)
    return min(b - a for a, b in pairwise(spent[1:]))


def test_the_list_of_commands_shows_whole_sentences(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, text, _ = run("--help")
    assert code == 0 and "..." not in text.partition("Commands:")[2]
    assert max(map(len, text.splitlines())) <= 80
    for sentence in ("save, load, switch, compare.", "from its header alone."):
        assert sentence in " ".join(text.split())


@pytest.mark.parametrize("module", ["diffusers_erasepro", "diffusers_erasepro.cli"])
def test_it_runs_as_a_module(module):
    command = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{__version__}\n"), done.stderr


def verified(name, fires):
    """As `verify` measures it: so much left at the name, so many captions that move."""
    shares = {"name": name, "ends": 0.1}
    left = {"listed": {"name": 0.0}, "held_out": shares, "unmatched": {}}
    moved = {"left": shares, "near": 0.01, "near_worst": 0.02, "drift": 0.03, "fires": fires}
    found = {"ok": True, "residual": 1e-7, "threshold": 1e-5, "uncovered": []}
    return found | {"left": {"Van Gogh": left}, "selectivity": moved | {"captions": 100}}


def test_an_erasure_that_holds_on_its_listed_prompts_alone_is_doubted():
    found = verified(0.84, 54)
    (doubt,) = list_doubts(found, (0, -1))
    assert "0.84 of 'Van Gogh' is left at the name" in doubt
    assert "in 54 of 100 other captions a token moves by over a tenth" in doubt
    assert "erasepro eval" in doubt and "--layers=embedding,gates,-1" in doubt
    assert "--layers" not in list_doubts(found, ("embedding", "gates", -1))[0]
    lines = describe_verification(found, [doubt])
    assert lines[0].startswith("holds: residual")
    assert "nothing else" in lines[1] and lines[2] == f"warning: {doubt}"
    assert "0.840 at the name" in lines[4] and "a token moves" in " ".join(lines)
    assert " ".join(lines).count("0.840") == 1  # not by the concept and again by the whole


def test_one_that_goes_far_is_not_doubted():
    assert list_doubts(verified(0.5, 10), (0, -1)) == []


def test_help_and_import_are_quick():
    main = (
        "import sys; sys.argv[0] = 'erasepro'; from diffusers_erasepro.cli.main import main; main()"
    )
    assert cpu_seconds(main, "--help") <= 0.3
    assert cpu_seconds("import diffusers_erasepro") - cpu_seconds("pass") <= 0.05


@pytest.mark.slow
def test_suite_and_attack_count_on_the_glyph_world(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "STEPS", 4)
    lines = ("-n", 4, "-o", tmp_path / "lines", "--json")
    code, text, _ = run("suite", "glyphs", "glyphs", folder, "--against", "", *lines)
    found = json.loads(text)
    assert code == 0 and found["this"]["ACC_e"]["value"] < found["unedited"]["ACC_e"]["value"]
    options = ("--only", "plain,typo", "-n", 4, "--steps", 4, "--json")
    code, text, _ = run("attack", "glyphs", folder, *options)
    plain = json.loads(text)["attacks"]["plain"]
    assert code == 0 and plain["unedited"]["value"] >= 0.5
    bound = pytest.approx(0.49, abs=0.01)
    assert plain["erased"] == {"value": 0.0, "low": 0.0, "high": bound, "n": 4}
    assert run("attack", "glyphs", folder, "--only", "magic")[0] == 1


@pytest.mark.filterwarnings("always")
def test_what_is_wrong_with_a_name_or_a_file_is_one_line(run, tmp_path):
    code, _, err = run("erase", "no/model", "--target", "cat", "--preserve-file", tmp_path / "no")
    assert code == 1 and re.fullmatch("erasepro: captions cannot be read .*\n", err)
    code, _, err = run("erase", "glyphs", "--target", "st\u200bar")
    assert code == 2 and re.match("warning: target holds invisible .*\nUsage:", err), err


def test_show_prints_the_notes_of_the_report(run, no_star, tmp_path):
    note = "of 3 captions to preserve 1 names what is erased and is left out"
    noted = replace(no_star, report=replace(no_star.report, notes=(note,)))
    noted.save_pretrained(tmp_path)
    _, text, _ = run("show", tmp_path)
    assert f"Notes: - {note} It promises" in " ".join(text.split())
