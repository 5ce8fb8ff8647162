"""The sheet of a comparison: one PNG, and one HTML file that needs no other."""

from __future__ import annotations

import base64
import html
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from ..config.words import count_noun
from .before_after import SIDES, Comparison, PicturePair
from .judgement import Judgement, judge_comparison, judge_pair
from .verdicts import Verdict

CELL = 256
"""Pixels of a picture on the PNG."""
EMBEDDED = 512
"""Pixels of a picture in the HTML file, at most; the folder has them whole."""
ACROSS = 2
"""Prompts beside each other on the PNG."""
GAP = 12
LINE = 17
CAPTION_LINES = 3
"""Of a prompt."""
CAPTION_COLUMNS = 66
FONT_SIZE = 13
VERDICT_COLORS = {Verdict.good: "#1a7f37", Verdict.look: "#9a6700", Verdict.bad: "#cf222e"}


def save_sheet(found: Comparison, path: Path) -> Path:
    """Every prompt with its two pictures and what was measured, on one PNG."""
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), FONT_SIZE)
    width = ACROSS * (2 * CELL + 3 * GAP) + GAP
    captions = [_caption_lines(pair) for pair in found.pairs]
    row = CELL + max(map(len, captions)) * LINE + 2 * GAP
    lines = wrap_lines(summary_lines(found), width // 8)
    top = len(lines) * LINE + 2 * GAP
    rows = -(-len(found.pairs) // ACROSS)
    sheet = Image.new("RGB", (width, top + rows * row + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((GAP, GAP + number * LINE), line, "black", font=font)
    for index, pair in enumerate(found.pairs):
        x = GAP + index % ACROSS * (2 * CELL + 3 * GAP)
        y = top + index // ACROSS * row
        for side, name in enumerate(SIDES):
            picture = fit(found.image(name, index), CELL)
            sheet.paste(picture, (x + side * (CELL + GAP), y))
        verdict = judge_pair(pair)
        words = captions[index]
        for number, line in enumerate(words):
            color = VERDICT_COLORS[verdict] if number == len(words) - 1 else "black"
            draw.text((x, y + CELL + 4 + number * LINE), line, color, font=font)
    sheet.save(path)
    return path


def _caption_lines(pair: PicturePair) -> list[str]:
    """What stands under a prompt's pictures; the beginning of a long prompt has to do."""
    prompt = textwrap.wrap(pair.text, CAPTION_COLUMNS)
    if len(prompt) > CAPTION_LINES:
        prompt = [*prompt[: CAPTION_LINES - 1], prompt[CAPTION_LINES - 1] + " ..."]
    return [*prompt, *measure_lines(pair)]


def fit(image: Image.Image, size: int) -> Image.Image:
    """A picture in a square of `size` pixels; a small one is enlarged without smoothing."""
    scale = size / max(image.size)
    wanted = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    square = Image.new("RGB", (size, size), "white")
    square.paste(image.resize(wanted, how))
    return square


def wrap_lines(lines: Sequence[str], columns: int) -> list[str]:
    """Lines of at most so many characters."""
    found: list[str] = []
    for line in lines:
        found += textwrap.wrap(line, columns) or [""]
    return found


def summary_lines(found: Comparison) -> list[str]:
    """What was compared and how, and the verdict with its reasons, a line each."""
    settings = found.settings
    steps = count_noun(settings.steps, "step")
    guidance = "" if settings.guidance is None else f", guidance {settings.guidance:g}"
    judged: Judgement = judge_comparison(found)
    before, after = found.seconds
    return [
        f"{found.pipeline}: {'; '.join(found.concepts)}",
        f"verdict: {judged.verdict}",
        *judged.reasons,
        f"left: before, right: after; {steps}{guidance}, the same seeds",
        f"seconds a picture: {before:.1f} before, {after:.1f} after; peak memory of the "
        f"{found.memory_of} {found.peak_mib:.0f} MiB",
        *found.notes,
    ]


def measure_lines(pair: PicturePair) -> list[str]:
    """What is known of one prompt, its verdict last."""
    facts = []
    if pair.seen is not None:
        words = ["seen" if seen else "not seen" for seen in pair.seen]
        facts.append(f"concept {words[0]} before, {words[1]} after")
    measured = f"pictures differ by {pair.change:.3f}"
    if pair.left is not None:
        measured = f"left 1 -> {pair.left:.3f}; {measured}"
    elif pair.moved is not None:
        measured = f"moved {pair.moved:.4f}; {measured}"
    return [*facts, f"seed {pair.seed}; {measured}; {judge_pair(pair)}"]


# --- HTML

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }}
body {{ margin: 1.5rem auto; max-width: 72rem; padding: 0 1rem; }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; }}
figure {{ margin: 0; border: 1px solid #8885; border-radius: .5rem; padding: .6rem; }}
figure div {{ display: flex; gap: .4rem; }}
figure img {{ width: 50%; height: auto; image-rendering: auto; }}
figcaption {{ overflow-wrap: anywhere; margin-top: .4rem; }}
small {{ opacity: .8; }}
.good {{ color: #1a7f37; }} .look {{ color: #9a6700; }} .bad {{ color: #cf222e; }}
b {{ font-weight: 650; }}
</style></head><body>
<h1>{title}</h1>
<ul>{summary}</ul>
{sections}
<p><small>Made by diffusers-erasepro; the pictures lie whole in {folder}.</small></p>
</body></html>
"""


def save_page(found: Comparison, path: Path) -> Path:
    """The sheet as one HTML file, the pictures inside, the worst prompts first."""
    path.write_text(build_page(found), encoding="utf-8", newline="\n")
    return path


def build_page(found: Comparison) -> str:
    """The HTML text of `save_page`."""
    summary = "".join(f"<li>{html.escape(line)}</li>" for line in summary_lines(found))
    sections = []
    headings = (
        ("Prompts that name what was erased, the most left first", found.naming()),
        ("Other prompts, the most moved first", found.others()),
    )
    for heading, pairs in headings:
        if pairs:
            figures = "\n".join(_figure(found, pair) for pair in pairs)
            sections.append(f'<h2>{heading}</h2>\n<div class="grid">\n{figures}\n</div>')
    if found.captions.count:
        rows = [
            f"<li>{change:.4f} {html.escape(text)}</li>" for text, change in found.captions.most
        ]
        count = found.captions.count
        sections.append(
            f"<h2>Of {count_noun(count, 'caption')}, what moved most</h2><ul>{''.join(rows)}</ul>"
        )
    return PAGE.format(
        title=html.escape(f"Before and after: {'; '.join(found.concepts)}"),
        summary=summary,
        sections="\n".join(sections),
        folder=html.escape(str(found.folder)),
    )


def _figure(found: Comparison, pair: PicturePair) -> str:
    index = found.pairs.index(pair)
    images = []
    for side in SIDES:
        data = embed(found.image(side, index))
        images.append(f'<img src="{data}" alt="{side}: {html.escape(pair.text)}" title="{side}">')
    verdict = judge_pair(pair)
    words = "<br>".join(html.escape(line) for line in measure_lines(pair))
    kinds = ", ".join(f"{kind} {share:.3f}" for kind, share in pair.left_by_kind.items())
    more = f"<br><small>left by kind of position: {kinds}</small>" if kinds else ""
    return (
        f"<figure><div>{''.join(images)}</div><figcaption>{html.escape(pair.text)}<br>"
        f'<small class="{verdict}">{words}</small>{more}</figcaption></figure>'
    )


def embed(image: Image.Image) -> str:
    """A picture as a data URI: a small one whole, a large one smaller and as JPEG."""
    content = io.BytesIO()
    if max(image.size) <= EMBEDDED // 2:
        image.save(content, "PNG")
        kind = "png"
    else:
        smaller = image.copy()
        smaller.thumbnail((EMBEDDED, EMBEDDED))
        smaller.save(content, "JPEG", quality=90)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
