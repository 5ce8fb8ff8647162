"""Scenes as images: signed distances, a fill per style, a crack for the attribute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .world import Scene, World

SIZE = 32
Array = NDArray[Any]

COLOR_RGB = {
    "red": (215, 30, 40),
    "green": (15, 135, 55),
    "blue": (30, 75, 220),
    "yellow": (248, 205, 15),
    "purple": (130, 35, 165),
    "orange": (242, 120, 15),
}
GROUND_RGB = {  # (above the horizon, below it)
    "snow": ((188, 204, 228), (232, 237, 247)),
    "night": ((44, 48, 104), (70, 62, 112)),
    "sand": ((252, 240, 208), (212, 182, 132)),
    "meadow": ((214, 236, 250), (150, 202, 118)),
    "sea": ((242, 224, 214), (84, 168, 184)),
}
WHITE = np.array([255.0] * 3)
BLACK = np.array([12.0] * 3)


def polygon(points: list[tuple[float, float]]) -> Callable[[Array, Array], Array]:
    """Signed distance to a closed polygon, negative inside (y points down)."""
    v = np.array(points)

    def distance(x: Array, y: Array) -> Array:
        best = np.full(x.shape, np.inf)
        sign = np.ones(x.shape)
        for (ax, ay), (bx, by) in zip(v, np.roll(v, 1, axis=0), strict=True):
            ex = bx - ax
            ey = by - ay
            wx = x - ax
            wy = y - ay
            t = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
            best = np.minimum(best, (wx - ex * t) ** 2 + (wy - ey * t) ** 2)
            above = y >= ay
            below = y < by
            left = ex * wy > ey * wx
            sign = np.where((above & below & left) | (~above & ~below & ~left), -sign, sign)
        return sign * np.sqrt(best)

    return distance


def disc(cx: float, cy: float, r: float) -> Callable[[Array, Array], Array]:
    """Signed distance to a disc."""
    return lambda x, y: np.hypot(x - cx, y - cy) - r


def _star() -> list[tuple[float, float]]:
    turns = np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2, 0.42, 1.05)
    return list(zip(radii * np.sin(turns), -radii * np.cos(turns) + 0.05, strict=True))


def _heart() -> list[tuple[float, float]]:
    t = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return list(zip(x / 17, y / 17, strict=True))


a = 0.31
DISTANCES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": disc(0, 0, 0.86),
    "square": polygon([(-0.78, -0.78), (0.78, -0.78), (0.78, 0.78), (-0.78, 0.78)]),
    "triangle": polygon([(0, -0.92), (0.98, 0.78), (-0.98, 0.78)]),
    "star": polygon(_star()),
    "heart": polygon(_heart()),
    "cross": polygon(
        [
            (-a, -1),
            (a, -1),
            (a, -a),
            (1, -a),
            (1, a),
            (a, a),
            (a, 1),
            (-a, 1),
            (-a, a),
            (-1, a),
            (-1, -a),
            (-a, -a),
        ]
    ),
    "crescent": lambda x, y: np.maximum(disc(-0.05, 0, 0.95)(x, y), -disc(0.42, -0.12, 0.72)(x, y)),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.66) - 0.27,
    "diamond": polygon([(0, -1.05), (0.66, 0), (0, 1.05), (-0.66, 0)]),
    "arrow": polygon(
        [(-1, -0.3), (0.05, -0.3), (0.05, -0.85), (1.05, 0), (0.05, 0.85), (0.05, 0.3), (-1, 0.3)]
    ),
    "drop": lambda x, y: np.minimum(
        disc(0, 0.33, 0.62)(x, y), polygon([(0, -1.1), (0.54, 0.05), (-0.54, 0.05)])(x, y)
    ),
    "bolt": polygon(
        [(0.25, -1.1), (-0.7, 0.2), (-0.08, 0.2), (-0.3, 1.1), (0.7, -0.25), (0.08, -0.25)]
    ),
}

PIXEL = 2 / SIZE


def _band(inside: Array) -> Array:
    """Coverage in [0, 1] of `inside > 0`, one pixel of anti-aliasing."""
    return np.clip(0.5 + inside / PIXEL, 0, 1)


# Each style: (x, y in image units, signed distance) -> how much of the second tone shows. Periods
# are seven pixels and more, because finer patterns do not survive the VAE.
PATTERNS: dict[str, tuple[Array, Callable[[Array, Array, Array], Array]]] = {
    "flat": (WHITE, lambda x, y, d: np.zeros_like(d)),
    "stripes": (WHITE, lambda x, y, d: _band(0.14 * np.sin(2 * np.pi * y / 0.45))),
    "dots": (
        WHITE,
        lambda x, y, d: _band(0.14 - np.hypot((x + 0.22) % 0.44 - 0.22, (y + 0.22) % 0.44 - 0.22)),
    ),
    "checks": (
        BLACK,
        lambda x, y, d: _band(0.2 * np.sin(np.pi * x / 0.29) * np.sin(np.pi * y / 0.29)),
    ),
    "ink": (BLACK, lambda x, y, d: _band(d + 0.125)),
    "shade": (BLACK, lambda x, y, d: np.clip(0.45 + 1.1 * y, 0, 0.85)),
    "echo": (WHITE, lambda x, y, d: np.zeros_like(d)),
}


def _paint(picture: Array, cover: Array, color: Array) -> None:
    picture += cover[..., None] * (color - picture)


def paint_glyph(
    picture: Array,
    world: World,
    scene: Scene,
    shape: str,
    color: str,
    centre: tuple[float, float],
    radius: float,
    rng: np.random.Generator,
) -> None:
    """Draw one object into `picture (SIZE, SIZE, 3)`, in place."""
    line = (np.arange(SIZE) + 0.5) * PIXEL - 1
    x, y = np.meshgrid(line - centre[0], line - centre[1])
    angle = rng.uniform(-0.12, 0.12)
    u = (np.cos(angle) * x + np.sin(angle) * y) / radius
    v = (np.cos(angle) * y - np.sin(angle) * x) / radius
    distance = DISTANCES[world.shapes[shape]]
    if scene.attribute is None:
        d = distance(u, v) * radius
        crack = None
    else:  # two halves slide apart along a zigzag, with a dark line between them
        zig = 0.28 * (np.abs(((v + rng.uniform(-0.2, 0.2)) * 1.6) % 2 - 1) - 0.5) * 2 + 0.25 * v
        side = np.sign(u - zig)
        d = distance(u - 0.16 * side, v - 0.08 * side) * radius
        gap = (0.15 - np.abs(u - zig)) * radius
        crack = _band(np.minimum(gap, -(distance(u, v) - 0.05) * radius))
    style = world.styles[scene.style or next(s for s, d in world.styles.items() if d == "flat")]
    tint = np.array(COLOR_RGB[world.colors[color]], dtype=np.float64)
    if style == "echo":  # the outline again, one gap further out; not inside a ring's hole
        _paint(picture, _band(0.06 - np.abs(d - 0.2)) * (np.hypot(u, v) > 0.75), tint)
    second, pattern = PATTERNS[style]
    mix = pattern(x, y, d)[..., None]
    cover = _band(-d)[..., None]
    picture += cover * (tint * (1 - mix) + second * mix - picture)
    if crack is not None:
        _paint(picture, crack, BLACK)


def ground(world: World, background: str, horizon: float) -> Array:
    """The background alone `(SIZE, SIZE, 3)`, its horizon at that height below the middle."""
    colors = np.array(GROUND_RGB[world.backgrounds[background]], dtype=np.float64)
    above = colors[0]
    below = colors[1]
    height: Array = (np.arange(SIZE) + 0.5) * PIXEL - 1
    rows = _band(height - horizon)
    return np.repeat((above + rows[:, None] * (below - above))[:, None], SIZE, axis=1)


def render(world: World, scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Picture `(SIZE, SIZE, 3)` of a full scene; `rng` sets place, size and tilt."""
    assert scene.shape and scene.color and scene.background, "render needs a full scene"
    picture = ground(world, scene.background, rng.uniform(0.05, 0.35))
    dx, dy = rng.uniform(-0.09, 0.09, size=2)
    if scene.second is None:
        paint_glyph(
            picture, world, scene, scene.shape, scene.color, (dx, dy), rng.uniform(0.58, 0.68), rng
        )
    else:
        other_color, other_shape = scene.second
        paint_glyph(
            picture,
            world,
            scene,
            scene.shape,
            scene.color,
            (-0.5 + dx / 2, dy),
            rng.uniform(0.36, 0.4),
            rng,
        )
        paint_glyph(
            picture,
            world,
            scene,
            other_shape,
            other_color,
            (0.5 + dx / 2, dy),
            rng.uniform(0.36, 0.4),
            rng,
        )
    return np.clip(picture, 0, 255).astype(np.uint8)


def image(world: World, scene: Scene, rng: np.random.Generator) -> Image.Image:
    """`render` as a PIL image."""
    return Image.fromarray(render(world, scene, rng))
