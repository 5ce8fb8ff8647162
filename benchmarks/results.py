"""Every method and setting on six cells of the shipped world, with the package's own suite."""

from diffusers_erasepro import Concept
from diffusers_erasepro.evaluation.suites import find_suite
from harness import COLUMNS, Cell, Experiment, main, parse_arguments
from methods import every_setting
from worlds import glyph_world

SHAPES = ("star", "heart", "cross", "ring", "arrow", "diamond", "triangle", "square", "crescent")
STYLES = ("Mira Voss", "Ola Brenn", "Mara Vance", "Tilo Kern", "Odo Brandt")
MEASURES = (*COLUMNS, "ACC_e2", "ACC_g", "ACC_near", "H_o", "feature", "frechet", "seconds")
TEXT = """ACC_g: target seen from synonyms and other phrasings; ACC_near: nearest neighbours kept;
ACC_e2: target seen by the [second judge](second-judge.md). [official-code.md](official-code.md)
holds the peers beside their authors' code. The world has 12 shapes, 7 styles and one attribute."""


def result_cells(concepts: dict[str, Concept]) -> dict[str, tuple[Concept, ...]]:
    """What is erased jointly."""
    shapes = tuple(Concept(shape, "circle") for shape in SHAPES)
    styles = tuple(Concept(style, "Una Flatt", templates="style") for style in STYLES)
    return {
        "1 instance": shapes[:1],
        "5 instances": shapes[:5],
        "9 instances": shapes,
        "1 style": styles[:1],
        "5 styles": styles,
        "1 attribute": tuple(concepts.values())[-1:],
    }


if __name__ == "__main__":
    args = parse_arguments(48, 1, __doc__)
    world = glyph_world("first")
    suite = find_suite("glyphs")
    cells = {name: Cell(some, suite) for name, some in result_cells(world.concepts).items()}
    methods = every_setting(world.words)
    main(Experiment("results", world, cells, methods, args.n, args.seed, TEXT, MEASURES), args)
