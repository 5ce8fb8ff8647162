"""What a person sees.

The target is gone from the pictures, the rest is as it was, and the grid shows it.
"""

import pytest
from PIL import Image
from rich.console import Console

from diffusers_erasepro import glyphs
from diffusers_erasepro.cli import demo
from diffusers_erasepro.evaluation.plots import save_depth, save_grid

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


def test_the_depth_figure_is_written(tmp_path):
    assert (
        Image.open(
            save_depth(
                tmp_path / "depth.png", {"star": [1.0, 0.5], "ring": [0.9, 0.1]}, title="size"
            )
        ).size[0]
        > 300
    )


@pytest.mark.slow
def test_the_demo_does_the_main_job(tmp_path):
    console = Console(record=True, width=160)
    demo.run(tmp_path, console)
    text = console.export_text()
    assert "to the bit: True" in text
    assert Image.open(tmp_path / "before-after.png").size[0] > 800
    assert {p.name for p in tmp_path.iterdir()} == {*demo.DEMO_CONCEPTS, "before-after.png"}
