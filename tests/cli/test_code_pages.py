"""The command line on a machine whose code page is not UTF-8."""

import builtins
import io
import os
import subprocess
import sys

import pytest

from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, glyphs

SPEC = ErasureSpec(
    [Concept("Käthe Öl", "Łukasz", templates=("a {}",))], preserve=glyphs.captions(30, seed=0)
)
WARNED = """
import sys, warnings
warnings.filterwarnings("error", category=EncodingWarning, module="diffusers_erasepro")
from diffusers_erasepro.cli.main import main
main()
"""


@pytest.fixture
def cp1252(monkeypatch):
    """Text files open as on Windows in western Europe, unless the code says otherwise."""
    stock = builtins.open

    def text_encoding(encoding, stacklevel=2):
        return "cp1252" if encoding in (None, "locale") else encoding

    def opened(file, mode="r", buffering=-1, encoding=None, *args, **kwargs):
        text = "b" not in mode
        return stock(
            file, mode, buffering, text_encoding(encoding) if text else None, *args, **kwargs
        )

    monkeypatch.setattr(io, "text_encoding", text_encoding)
    monkeypatch.setattr(builtins, "open", opened)


def saved(tmp_path, content):
    path = tmp_path / "spec.toml"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["no mark", "mark"])
def test_a_spec_in_utf8_erases_what_it_names(run, cp1252, tmp_path, mark):
    spec = saved(tmp_path, mark + SPEC.to_toml().encode())
    code, _, error = run("erase", "glyphs", "--spec", spec, "-o", tmp_path / "out")
    assert code == 0, error
    made = ErasureAdapter.from_pretrained(tmp_path / "out")
    assert made.spec.concepts == SPEC.concepts
    again = (tmp_path / "out" / "spec.toml").read_bytes()
    assert ErasureSpec.from_toml(again.decode()).concepts == SPEC.concepts
    assert "Käthe Öl" in (tmp_path / "out" / "README.md").read_bytes().decode()


def test_captions_in_utf8_are_kept_as_they_are(run, cp1252, tmp_path):
    file = tmp_path / "keep.txt"
    captions = ["Öl auf Leinwand", "猫", *glyphs.captions(30, seed=0)]
    captions = [text for text in captions if "star" not in text]
    file.write_bytes(("\ufeff\r\n" + "\r\n".join(captions)).encode())
    args = ("--target", "star", "--anchor", "ring", "--preserve-file", file, "-o", tmp_path / "out")
    code, _, error = run("erase", "glyphs", *args)
    assert code == 0, error
    made = ErasureAdapter.from_pretrained(tmp_path / "out")
    assert made.spec.preserve == tuple(captions)


@pytest.mark.parametrize("codec", ["utf-16", "cp1252"])
def test_what_is_not_utf8_ends_in_one_line(run, tmp_path, codec):
    text = SPEC.to_toml().replace("Łukasz", "Łukasz" if codec == "utf-16" else "Lukas")
    spec = saved(tmp_path, text.encode(codec))
    code, _, error = run("erase", "glyphs", "--spec", spec, "-o", tmp_path / "out")
    assert code == 1 and "spec.toml" in error and "UTF-8" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def shell(*args, **environ):
    return subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", WARNED, *map(str, args)],
        capture_output=True,
        env=os.environ | environ,
        check=False,
    )


def test_a_console_of_another_code_page_prints_escapes(no_star, tmp_path):
    spec = SPEC.to_dict() | {"concepts": [{"target": "猫", "anchor": "Käthe"}]}
    cat = ErasureAdapter(
        ErasureSpec.from_dict(spec), no_star.options, no_star.base, no_star.edits, no_star.keys,
        no_star.goals, no_star.report, no_star.plan,
    )  # fmt: skip
    cat.save_pretrained(tmp_path / "cat")
    cat.save_pretrained(tmp_path / "猫")
    for command in (("show", tmp_path / "cat"), ("list", tmp_path), ("card", tmp_path / "cat")):
        done = shell(*command, PYTHONIOENCODING="cp1252", PYTHONUTF8="0")
        assert done.returncode == 0, done.stderr.decode("cp1252")
        assert rb"\u732b" in done.stdout
    done = shell("show", tmp_path / "犬", PYTHONIOENCODING="cp1252", PYTHONUTF8="0")
    assert done.returncode == 1 and rb"\u72ac" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.slow
def test_the_plainest_locale_erases_the_same_bytes(run, tmp_path):
    spec = saved(tmp_path, SPEC.to_toml().encode())
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = shell("erase", "glyphs", "--spec", spec, "-o", tmp_path / "c", **plain)
    assert done.returncode == 0, done.stderr
    assert run("erase", "glyphs", "--spec", spec, "-o", tmp_path / "utf8")[0] == 0
    for file in (tmp_path / "c").iterdir():
        if file.name != "README.md":  # names its folder
            assert file.read_bytes() == (tmp_path / "utf8" / file.name).read_bytes()
