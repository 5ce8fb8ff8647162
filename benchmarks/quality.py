"""Ours beside UCE, SPEED, RECE and the literal formula, each over its settings."""

from functools import partial

from harness import Cell, Experiment, main, parse_arguments
from methods import every_setting
from worlds import glyph_world, plain_cases

if __name__ == "__main__":
    args = parse_arguments(200, 1, __doc__)
    world = glyph_world(args.world, args.folder)
    concepts = tuple(world.concepts.values())
    jointly = {
        "1 shape": concepts[:1],
        "4 shapes": concepts[:4],
        "2 styles": concepts[4:6],
        "attribute": concepts[6:],
        "all seven": concepts,
    }
    suite = world.suite(partial(plain_cases, world=world.words))
    cells = {name: Cell(some, suite) for name, some in jointly.items()}
    methods = every_setting(world.words)
    main(Experiment("quality", world, cells, methods, args.n, args.seed, __doc__), args)
