"""What a person sees.

The target is gone from the pictures, the rest is as it was, and the grid shows it.
"""

import re

import pytest
from PIL import Image
from rich.console import Console

from diffusers_erasepro import glyphs
from diffusers_erasepro.cli import demo, demo_pictures
from diffusers_erasepro.evaluation.plots import save_before_after, save_depth, save_grid

STARS = tuple(
    f"a {color} star {ground}"
    for color in glyphs.COLORS[:4]
    for ground in ("on sand", "upon the snow")
)
HEARTS = tuple(prompt.replace("star", "heart") for prompt in STARS)


def test_an_erased_shape_is_drawn_as_its_anchor_and_others_stay(pipe, no_star):
    judge = glyphs.load_judge()
    before = judge(demo.generate(pipe, STARS + HEARTS, steps=6))["shape"]
    pipe.load_erasure_adapter(no_star)
    after = judge(demo.generate(pipe, STARS + HEARTS, steps=6))["shape"]
    assert before.count("star") >= 7 and after.count("star") == 0
    assert after[:8].count("circle") >= 7
    assert after[8:] == before[8:]


def test_a_grid_has_a_column_per_prompt_and_a_row_per_state(tmp_path):
    images = [Image.new("RGB", (32, 32), c) for c in ("red", "blue", "green")]
    path = save_grid(
        tmp_path / "deep" / "grid.png", ["one", "two", "three"], {"base": images, "erased": images}
    )
    width, height = Image.open(path).size
    assert width > height > 200


def test_before_and_after_stand_beside_each_other_under_a_heading(tmp_path):
    red, blue = (Image.new("RGB", (64, 64), color) for color in ("red", "blue"))
    pairs = [(f"prompt number {i} with a few more words", red, blue) for i in range(4)]
    path = save_before_after(tmp_path / "deep" / "pairs.png", {"one": pairs[:1], "more": pairs})
    sheet = Image.open(path).convert("RGB")
    colors = {color: count for count, color in sheet.getcolors(1 << 20)}
    inside = 174**2  # and a line around
    assert colors[255, 0, 0] == colors[0, 0, 255] == 5 * inside
    assert 900 < sheet.width < 1300


def test_the_depth_figure_is_written(tmp_path):
    assert (
        Image.open(
            save_depth(
                tmp_path / "depth.png", {"star": [1.0, 0.5], "ring": [0.9, 0.1]}, title="size"
            )
        ).size[0]
        > 300
    )


def last_lines(console):
    """What a demo says at its end."""
    return [line for line in console.export_text().splitlines() if line][-3:]


@pytest.mark.slow
def test_the_demo_does_the_main_job(tmp_path):
    console = Console(record=True, width=240)
    demo.run(tmp_path, console)
    assert "to the bit: True" in console.export_text(clear=False)
    made, did, then = last_lines(console)
    assert made.startswith("made: no-star")
    assert did.startswith("did: the judge sees what is erased in 6 of 9 pictures before and in 0")
    assert re.match(r"next: \S+ erase MODEL --target", then)
    assert Image.open(tmp_path / "before-after.png").size[0] > 800
    assert {p.name for p in tmp_path.iterdir()} == {*demo.DEMO_CONCEPTS, "before-after.png"}


@pytest.mark.slow
def test_the_demo_of_real_things_does_the_main_job(world, tmp_path):
    console = Console(record=True, width=240)
    found = demo_pictures.run_pictures(tmp_path, console)
    assert found["same_bits"]
    assert found["erased_seen"][0] > 0 and found["erased_seen"][1] == 0
    assert found["others_same_bits"] == len(demo_pictures.PROMPTS_KEPT)
    assert [line.split(":")[0] for line in last_lines(console)] == ["made", "did", "next"]
    names = {*demo_pictures.PICTURES_CONCEPTS, "before-after.png"}
    assert {p.name for p in tmp_path.iterdir()} == names
