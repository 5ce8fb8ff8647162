"""Each concept erased alone, ours beside UCE, on held-out prompts of a glyph world."""

from functools import partial

from diffusers_erasepro import erase
from diffusers_erasepro.baselines import uce
from harness import Cell, Experiment, main, parse_arguments
from worlds import glyph_world, plain_cases

METHODS = {"ours": erase, "ours, blocks 0 and last": partial(erase, layers=(0, -1)), "UCE": uce}

if __name__ == "__main__":
    args = parse_arguments(160, 2, __doc__)
    world = glyph_world(args.world, args.folder)
    suite = world.suite(partial(plain_cases, world=world.words))
    cells = {target: Cell((concept,), suite) for target, concept in world.concepts.items()}
    main(Experiment("first-light", world, cells, METHODS, args.n, args.seed, __doc__), args)
