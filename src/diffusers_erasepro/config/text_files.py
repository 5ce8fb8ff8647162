"""Text files as users have them: UTF-8, read and written the same wherever the machine stands."""

from __future__ import annotations

import codecs
import sys
from io import TextIOWrapper
from pathlib import Path

from ..errors import ConceptSpecError, ErasureError

_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte-order marks of what is not read. UTF-32's come first, as one begins like UTF-16's."""


def read_text_file(path: Path, *, error: type[ErasureError] = ConceptSpecError) -> str:
    """The text of a UTF-8 file, a byte-order mark taken off, every line ending in one newline.

    Args:
        path: The file.
        error: What to raise where it is no UTF-8 text.

    Raises:
        ErasureError: UTF-16 or UTF-32, or bytes that are not UTF-8; the message names file, line
            and byte, and what to do.
        OSError: The file cannot be opened.
    """
    content = Path(path).read_bytes()
    for mark, name in _OTHER_MARKS.items():
        if content.startswith(mark):
            raise error(f"{path} is {name}; save it as UTF-8")
    if b"\0" in content:
        raise error(
            f"{path} holds zero bytes: UTF-16 without a byte-order mark, or no text at all; save "
            "it as UTF-8"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        at = fault.start + 3 * content.startswith(codecs.BOM_UTF8)
        line = content.count(b"\n", 0, at) + 1
        column = at - content.rfind(b"\n", 0, at)
        raise error(
            f"{path}, line {line}, byte {column}: 0x{content[at]:02x} is not UTF-8 ({fault.reason})"
            "; save the file as UTF-8, it may be in a code page such as cp1252"
        ) from fault
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file that are not blank, such as captions or prompts.

    Raises:
        ConceptSpecError: As `read_text_file`.
    """
    return [line for line in read_text_file(path).split("\n") if line.strip()]


def read_captions(path: Path) -> tuple[str, ...]:
    """Captions or prompts of a file, one a line.

    Raises:
        ConceptSpecError: The file is not there, is no text, or holds none.
    """
    try:
        lines = read_text_lines(path)
    except OSError as error:
        raise ConceptSpecError(
            f"captions cannot be read from {str(path)!r} ({error.strerror}); give a text file with "
            "one a line"
        ) from error
    if not lines:
        raise ConceptSpecError(f"{path} holds no caption; write one a line, or leave it out")
    return tuple(lines)


def write_text_file(path: Path, text: str) -> None:
    """Write UTF-8 with the same bytes on every machine."""
    Path(path).write_text(text, encoding="utf-8", newline="\n")


def escape_on_console() -> None:
    """From here on, a character that the console's code page lacks is printed as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
