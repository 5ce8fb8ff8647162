"""The cells of results.py with more images: ours twice beside the best peer found there."""

from functools import partial

from diffusers_erasepro import erase
from harness import Cell, Experiment, main, parse_arguments
from methods import OURS, every_setting
from results import result_cells
from worlds import glyph_world, plain_cases

RIVALS = {
    "1 instance": "UCE: 400 captions",
    "5 instances": "SPEED: V, threshold 0.1",
    "9 instances": "UCE: 400 captions, six templates",
    "1 style": "RECE: regulariser 1e-3",
    "5 styles": "RECE: regulariser 1e-3",
    "1 attribute": "RECE: regulariser 1e-3",
}
"""The best setting of the best peer in results/methods-first.md, which other prompts chose."""
AUTO = "ours: layers auto"

if __name__ == "__main__":
    args = parse_arguments(600, 2, __doc__)
    world = glyph_world("first")
    suite = world.suite(partial(plain_cases, world=world.words))
    cells = {}
    for name, concepts in result_cells(world.concepts).items():
        cells[name] = Cell(concepts, suite, methods=(OURS, AUTO, RIVALS[name]))
    methods = every_setting(world.words)
    chosen = {OURS: methods[OURS], AUTO: partial(erase, layers="auto")}
    chosen |= {row: methods[row] for row in dict.fromkeys(RIVALS.values())}
    main(Experiment("cells", world, cells, chosen, args.n, args.seed, __doc__), args)
