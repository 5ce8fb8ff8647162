"""Text files of any origin: read as what they say, or refused by name, line and byte."""

import ast
import codecs
from pathlib import Path

import pytest

from diffusers_erasepro import Concept, ErasureSpec
from diffusers_erasepro.config.text_files import read_text_file, read_text_lines, write_text_file
from diffusers_erasepro.errors import AdapterFormatError, ConceptSpecError

ROOT = Path(__file__).parents[2]
WORDS = 'Käthe Öl, 猫, राम, "🔫"'


@pytest.fixture
def file(tmp_path):
    return tmp_path / "spec.toml"


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["no mark", "mark"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_utf8_is_read_with_and_without_a_mark_and_any_line_ending(file, mark, ending):
    file.write_bytes(mark + f"{WORDS}{ending}star{ending}".encode())
    assert read_text_file(file) == f"{WORDS}\nstar\n"


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_other_unicode_is_refused_by_name(file, codec):
    marks = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
    file.write_bytes(marks.get(codec, b"") + "target".encode(codec))
    name = "zero bytes" if codec == "utf-32-le" else codec[:6].upper()
    with pytest.raises(ConceptSpecError, match=rf"spec.toml.*{name}.*save it as UTF-8"):
        read_text_file(file)


def test_utf16_without_a_mark_is_refused_too(file):
    file.write_bytes("star".encode("utf-16-le"))
    with pytest.raises(ConceptSpecError, match="UTF-16 without a byte-order mark"):
        read_text_file(file)


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["no mark", "mark"])
@pytest.mark.parametrize(
    ("content", "line", "column", "byte"),
    [
        ("Käthe".encode("cp1252"), 1, 2, "0xe4"),
        ("é\nstar\nzwei Öl".encode()[:-3] + "Öl".encode("latin-1"), 3, 6, "0xd6"),
        ("猫".encode("shift_jis"), 1, 2, "0x4c"),
        ("star\n猫".encode()[:-1], 2, 1, "0xe7"),
    ],
)
def test_bytes_that_are_no_utf8_name_line_and_byte(file, mark, content, line, column, byte):
    file.write_bytes(mark + content)
    shift = 3 if mark and line == 1 else 0
    with pytest.raises(AdapterFormatError) as raised:
        read_text_file(file, error=AdapterFormatError)
    if byte == "0x4c":  # 猫 in Shift-JIS begins with a byte that starts a UTF-8 sequence
        assert "spec.toml, line 1" in str(raised.value)
    else:
        assert f"spec.toml, line {line}, byte {column + shift}: {byte}" in str(raised.value)


def test_lines_end_at_newlines_alone(file):
    file.write_bytes("a\u2028b\n\n  \n\x1cc\u0085d\r\ne".encode())
    assert read_text_lines(file) == ["a\u2028b", "\x1cc\u0085d", "e"]


def test_what_is_written_is_the_same_bytes_everywhere(file):
    write_text_file(file, f"{WORDS}\n")
    assert file.read_bytes() == f"{WORDS}\n".encode()


def test_a_spec_with_a_mark_is_a_spec():
    spec = ErasureSpec([Concept("Käthe Öl", "猫")])
    assert ErasureSpec.from_toml("\ufeff" + spec.to_toml()) == spec


@pytest.mark.parametrize(
    "make",
    [
        lambda half: Concept(half),
        lambda half: Concept("star", half),
        lambda half: Concept("star", "ring", synonyms=(half,)),
        lambda half: Concept("star", "ring", templates=("a {} " + half,)),
        lambda half: ErasureSpec([Concept("star")], preserve=(half,)),
        lambda half: ErasureSpec([Concept("star")], keep=(half,)),
    ],
)
def test_bytes_that_a_shell_could_not_decode_are_refused(make):
    with pytest.raises(ConceptSpecError, match=r"half a character \(U\+DCE4\)"):
        make(b"K\xe4the".decode("utf-8", "surrogateescape"))


def text_calls_without_encoding(tree):
    """Line numbers of calls that leave the encoding of a text to the machine."""
    found = []
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        if "encoding" in named:
            continue
        if name == "read_text":
            found += [call.lineno] * (not call.args)
        elif name == "write_text":
            found += [call.lineno] * (len(call.args) < 2)
        elif name in {"open", "fdopen", "NamedTemporaryFile", "TemporaryFile"}:
            at = 0 if isinstance(call.func, ast.Attribute) and name == "open" else 1
            modes = [*call.args[at : at + 1], *[named[m] for m in ("mode",) if m in named]]
            mode = modes[0].value if modes and isinstance(modes[0], ast.Constant) else "r"
            owner = getattr(getattr(call.func, "value", None), "id", "")
            if owner in {"Image", "tarfile", "zipfile", "webbrowser"}:
                continue
            found += [call.lineno] * (isinstance(mode, str) and "b" not in mode)
        elif name in {"run", "Popen", "check_output"}:
            text = named.get("text", named.get("universal_newlines"))
            found += [call.lineno] * (isinstance(text, ast.Constant) and text.value is True)
    return found


@pytest.mark.parametrize("folder", ["src", "adapters", "examples", "benchmarks", "tools", "worlds"])
def test_no_text_is_opened_in_whatever_code_page_the_machine_has(folder):
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        lines = text_calls_without_encoding(ast.parse(path.read_text(encoding="utf-8")))
        found += [f"{path.relative_to(ROOT)}:{line}" for line in lines]
    assert not found


def test_the_check_sees_such_calls():
    code = (
        "p.read_text(); p.write_text('a'); open('f'); p.open('a'); run(c, text=True)\n"
        "p.read_text('utf-8'); open('f', 'rb'); p.open('wb'); open('f', encoding='utf-8')"
    )
    assert text_calls_without_encoding(ast.parse(code)) == [1] * 5
