"""What each chain of layers leaves and moves, on phrasings that no list holds and no page judges.

Nothing here is held out: the recipes and the chains of `layers="auto"` were chosen by it. Single
flips make a mean square, so it takes thousands of images. r and d are what `layers="auto"` sees.
"""

from functools import partial

from diffusers_erasepro import Concept, erase
from diffusers_erasepro.baselines import uce
from frames import framed_cases
from harness import Cell, Experiment, main, parse_arguments
from worlds import glyph_world

MORE = {"crescent": "circle", "arrow": "square", "drop": "triangle", "bolt": "diamond"}
"""Shapes beyond those of first_light.py, and their anchors."""
CHAINS = (
    (0, -1),
    (1, -1),
    (2, -1),
    (-1,),
    ("neurons", -1),
    ("neurons", "eos_neurons", -1),
    ("eos_neurons", -1),
)
COLUMNS = ("ACC_e", "ACC_a", "mse", "median", "flipped", "r", "d")

if __name__ == "__main__":
    args = parse_arguments(6000, 3, __doc__)
    world = glyph_world("first")
    concepts = world.concepts | {target: Concept(target, MORE[target]) for target in MORE}
    suite = world.suite(framed_cases, "frames")
    cells = {target: Cell((concept,), suite) for target, concept in concepts.items()}
    methods = {", ".join(map(str, chain)): partial(erase, layers=chain) for chain in CHAINS}
    methods["UCE"] = uce
    chains = Experiment(
        "chains", world, cells, methods, args.n, args.seed, __doc__, COLUMNS, predictions=True
    )
    main(chains, args)
