"""The documents: snippets run, links lead somewhere, figures are those of the result files.

Every Python snippet runs, page by page, in a folder of its own. The site builds without a warning.
"""

import json
import posixpath
import re
import subprocess
import sys
from pathlib import Path

import insert_figures
import pytest
import repository_links

import tiny

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
LINKED = [
    *PAGES,
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "benchmarks" / "results").glob("*.md")),
    *sorted((ROOT / "notes").glob("*.md")),
    ROOT / "adapters" / "README.md",
]
"""Pages whose links are looked up."""
MODEL = re.compile(r'StableDiffusionPipeline\.from_pretrained\("([^"]+)"')
LONG = ("research",)
"""Pages whose snippets take many seconds."""
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, marks=[pytest.mark.slow] if p.stem in LONG else [], id=p.stem)
        for p in PAGES
        if SNIPPET.search(p.read_text())
    ],
)
def test_the_snippets_run(page, tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    for model in {*MODEL.findall(page.read_text())}:  # a folder of that name, a small layout
        tiny.build("StableDiffusionPipeline").save_pretrained(model)
    names = {}
    for code in SNIPPET.findall(page.read_text()):
        exec(compile(code, str(page), "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize("world", ["glyphs", "pictures"])
def test_the_notebook_runs_from_top_to_bottom(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "examples" / "first-erasure.ipynb").read_text())
    names = {}
    for cell in notebook["cells"]:
        assert not cell.get("outputs"), "committed without outputs"
        if cell["cell_type"] == "code":
            code = "".join(cell["source"]).replace('WORLD = "glyphs"', f'WORLD = "{world}"')
            exec(compile(code, "first-erasure.ipynb", "exec"), names)
    assert names["WORLD"] == world
    off_is_base = zip(names["again"], names["before"], strict=True)
    assert all(now.tobytes() == base.tobytes() for now, base in off_is_base)
    if world == "glyphs":
        assert names["judge"](names["before"])["shape"] == ["star", "star", "heart", "ring"]
        assert names["judge"](names["after"])["shape"] == ["circle", "circle", "heart", "ring"]


def test_tables_of_several_files_stand_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setattr(insert_figures, "RESULTS", tmp_path)
    (tmp_path / "a-first.md").write_text("## Rows\n\n| row | left |\n|---|---|\n| star | 0.1 |\n")
    (tmp_path / "a-second.md").write_text("## Rows\n\n| row | left |\n|---|---|\n| disc | 0.2 |\n")
    begin = (
        "<!-- table: a-first.md + a-second.md + a-third.md; heading: Rows; row; left as gap -->\n"
    )
    end = "<!-- end of table -->"
    lines = ("| row | gap: first | gap: second |", "|---|---|---|")
    rows = ("| star | 0.1 | - |", "| disc | - | 0.2 |")
    found = insert_figures.insert_figures(f"{begin}old\n{end}")
    assert found == "\n".join((begin, *lines, *rows, "", end))
    missing = insert_figures.insert_figures(f"<!-- table: no.md; row; left -->\n{end}")
    assert "Not measured yet." in missing


def slugs(page):
    """The anchors of a page's headings, as GitHub and MkDocs write them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {re.sub(r"\s+", "-", heading.strip()) for heading in plain}


def test_links_between_pages_and_files_lead_somewhere():
    for page in LINKED:
        for target in re.findall(r"\]\((?!https?:|mailto:)([^)]+)", page.read_text()):
            name, _, anchor = target.partition("#")
            found = (page.parent / name) if name else page
            assert found.exists(), f"{page.name}: {target}"
            if anchor and found.suffix == ".md":
                assert anchor in slugs(found), f"{page.name}: {target}"


def test_links_on_a_package_index_are_those_of_the_clone():
    address = repository_links.repository_address()
    text = (ROOT / "README.md").read_text()
    absolute = repository_links.make_absolute(text, "README.md", address)
    targets = re.findall(r"\]\(([^)]+)", absolute)
    assert targets and all(re.match("https?:|#", target) for target in targets)
    for target in targets:
        if target.startswith(f"{address}/"):
            path = target.removeprefix(f"{address}/").partition("#")[0].split("/", 2)
            assert path[:2] in (["blob", "main"], ["raw", "main"])
            assert (ROOT / path[2]).exists(), target


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_the_address_of_the_repository_stands_in_one_place():
    listed = subprocess.run(
        ["git", "grep", "-l", repository_links.repository_address()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert listed.stdout.split() == ["pyproject.toml"]


def test_links_that_leave_the_documents_go_to_the_repository():
    text = "[a](../../benchmarks/results/speed.md#x) ![b](../images/b.png) [c](https://c.d)"
    address = "https://example.org/o/n"
    found = repository_links.make_absolute(
        text, "docs/guides/page.md", address, lambda path: not path.startswith("docs/")
    )
    there = posixpath.join(address, "blob/main/benchmarks/results/speed.md#x")
    assert found == f"[a]({there}) ![b](../images/b.png) [c](https://c.d)"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_figures_are_those_of_the_result_files(page):
    text = page.read_text()
    assert insert_figures.insert_figures(text) == text, "python tools/insert_figures.py"


def test_a_figure_that_differs_from_its_file_is_put_right(tmp_path, monkeypatch):
    monkeypatch.setattr(insert_figures, "RESULTS", tmp_path)
    head = "# Cells\n\n| erased | method | left |\n|---|---|---|\n"
    rows = "| star | ours | **0.02** (n 9) |\n| cat | ours | 0.1 |\n"
    (tmp_path / "cells.md").write_text(head + rows)
    (tmp_path / "lines.jsonl").write_text('{"row": "a", "left": 0.5}\n')
    sources = {
        "cells.md; star; left": "0.02",
        "all: cells.md; Cells; star; left": "0.02 (n 9)",
        "most: cells.md; ours; left": "0.1",
        "lines.jsonl; a; left": "0.5",
        "not-there.md; star; left": "-",
    }
    page = "; ".join(f"1<!-- {source} -->" for source in sources)
    want = "; ".join(f"{shown}<!-- {source} -->" for source, shown in sources.items())
    assert insert_figures.insert_figures(page) == want
    assert insert_figures.insert_figures(want) == want
    with pytest.raises(insert_figures.FigureError, match="0 rows"):
        insert_figures.insert_figures("0.3<!-- cells.md; heart; left -->")


def test_commands_in_the_documents_exist():
    from diffusers_erasepro.cli.main import app

    known = {c.name or c.callback.__name__ for c in app.registered_commands}
    for page in PAGES:
        for command in re.findall(
            r"^(?:    |\$ )erasepro ([a-z-]+)", page.read_text(), re.MULTILINE
        ):
            assert command in known, f"{page.name}: erasepro {command}"


def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
