"""A thin slice of docs/loading.md's table; `python benchmarks/loading.py` makes the whole."""

import pytest

import loading

SLICE = [
    ("CLIP", "blocks", "sequential offload (accelerate.cpu_offload)"),
    ("CLIP", "K/V", "group offload, leaf, after the erasure"),
    ("T5", "K/V", "sequential offload (accelerate.cpu_offload)"),  # a parameter of the model itself
    ("CLIP", "blocks", "from_pretrained of a sharded checkpoint"),
    ("T5", "K/V", "torchao, 8-bit weights"),
]


@pytest.mark.parametrize(("architecture", "layers", "title"), SLICE)
def test_an_erasure_holds_on_this_way(architecture, layers, title):
    found = loading.try_cell(architecture, layers, loading.way_named(title))
    assert found.result == "holds", found


@pytest.mark.parametrize("layers", ["blocks", "K/V"])
def test_the_referee_sees_an_erasure_that_is_not_there(layers):
    """A way that loses the edited weights: the referee says so by itself, and so does verify."""

    def lose(pipe, folder):
        fresh = loading.build("CLIP")
        for name in ("text_encoder", "unet"):
            state = getattr(fresh, name).state_dict()
            getattr(pipe, name).load_state_dict(state)

    lost = loading.Way("weights loaded again", lose, late=True)
    found = loading.try_cell("CLIP", layers, lost)
    assert found.result == "listed", found
    assert found.left > 0.9 or found.effect < 0.1, found


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(len(loading.ARCHITECTURES)))
def test_no_way_is_silent(turn):
    """Each way once, the architectures and kinds of edit taking turns: five minutes of one core.

    `benchmarks/loading.py` tries all.
    """
    faults = []
    every = [*loading.cells()]
    for i, way in enumerate(loading.WAYS[turn :: len(loading.ARCHITECTURES)]):
        mine = [cell for cell in every if cell[2] == way]
        architecture, layers, _ = mine[(7 * turn + 5 * i) % len(mine)]
        found = loading.try_cell(architecture, layers, way)
        if found.result in loading.FAULTS:
            faults.append(found)
    assert not faults
