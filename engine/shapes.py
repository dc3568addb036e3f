"""Coloured shapes for the demo's scenes: outlines, colours and how they are drawn."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

Point = tuple[float, float]


def _ray(turn: float, radius: float = 1.0) -> Point:
    """Point at `turn` full turns clockwise from straight up; y points down, as in images."""
    return radius * math.sin(2 * math.pi * turn), -radius * math.cos(2 * math.pi * turn)


def _regular(corners: int, turn: float = 0.0) -> tuple[Point, ...]:
    return tuple(_ray(turn + i / corners) for i in range(corners))


def _ring(inner: float) -> tuple[Point, ...]:
    # One polygon with a seam: out along the rim and back along the hole, so that one COCO polygon can say it.
    rim = [_ray(i / 64) for i in range(65)]
    return (*rim, *((inner * x, inner * y) for x, y in reversed(rim)))


def _heart() -> tuple[Point, ...]:
    """The well-known trigonometric heart, its middle moved to the origin."""
    turns = [2 * math.pi * i / 64 for i in range(64)]
    heights = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    return tuple((math.sin(t) ** 3, -(height + 2.5) / 16) for t, height in zip(turns, heights, strict=True))


def _crescent(distance: float, radius: float) -> tuple[Point, ...]:
    """The unit disc less a disc of `radius` whose centre is `distance` to the right, moved to the middle."""
    meet = (1 - radius**2 + distance**2) / (2 * distance)
    outer, inner = math.acos(meet), math.acos((meet - distance) / radius)
    rim = [outer + 2 * (math.pi - outer) * i / 48 for i in range(49)]
    bite = [inner + 2 * (math.pi - inner) * i / 48 for i in range(48, -1, -1)]
    shift = (1 - meet) / 2
    return (
        *((shift + math.cos(t), math.sin(t)) for t in rim),
        *((shift + distance + radius * math.cos(t), radius * math.sin(t)) for t in bite),
    )


def _within_circle(outline: Sequence[Point]) -> tuple[Point, ...]:
    """The outline, scaled to touch the unit circle from within."""
    reach = max(math.hypot(x, y) for x, y in outline)
    return tuple((x / reach, y / reach) for x, y in outline)


_HALF_CROSS = ((-0.32, -1.0), (0.32, -1.0), (0.32, -0.32), (1.0, -0.32), (1.0, 0.32), (0.32, 0.32))

SHAPES: dict[str, tuple[Point, ...]] = {
    "circle": _regular(64),
    "square": _regular(4, 1 / 8),
    "triangle": _regular(3),
    "diamond": ((0.0, -1.0), (0.62, 0.0), (0.0, 1.0), (-0.62, 0.0)),
    "pentagon": _regular(5),
    "hexagon": _regular(6, 1 / 12),
    "star": tuple(_ray(i / 10, 0.42 if i % 2 else 1.0) for i in range(10)),
    "heart": _within_circle(_heart()),
    "cross": _within_circle((*_HALF_CROSS, *((-x, -y) for x, y in _HALF_CROSS))),
    "ring": _ring(0.55),
    "crescent": _within_circle(_crescent(0.4, 0.85)),
    "arrow": _within_circle(
        ((-1.0, -0.25), (0.1, -0.25), (0.1, -0.75), (1.0, 0.0), (0.1, 0.75), (0.1, 0.25), (-1.0, 0.25))
    ),
}
"""Outline of each category, within the unit circle, y down."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "orange": (250, 140, 30),
    "yellow": (246, 214, 50),
    "green": (44, 150, 60),
    "blue": (40, 90, 215),
    "purple": (125, 55, 170),
    "pink": (245, 130, 190),
    "black": (35, 35, 40),
}
"""RGB of each colour."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One object: category and colour by name, centre and circumradius in pixels (y down), rotation in turns."""

    category: str
    colour: str
    x: float
    y: float
    radius: float
    turn: float

    @property
    def outline(self) -> tuple[Point, ...]:
        """Corners in pixels."""
        cos, sin = math.cos(2 * math.pi * self.turn), math.sin(2 * math.pi * self.turn)
        return tuple(
            (self.x + self.radius * (cos * u - sin * v), self.y + self.radius * (sin * u + cos * v))
            for u, v in SHAPES[self.category]
        )


def render(shapes: Sequence[Shape], size: int, rng: random.Random) -> Image.Image:
    """Draw shapes on a plain light ground of `size` by `size` pixels; `rng` varies ground and colours a little."""
    # Drawn four times too large and averaged: Pillow draws polygons without antialiasing.
    scale = 4
    light = rng.randint(222, 242)
    image = Image.new("RGB", (scale * size, scale * size), _near((light, light, light), 6, rng))
    draw = ImageDraw.Draw(image)
    for shape in shapes:
        corners = [(scale * x, scale * y) for x, y in shape.outline]
        draw.polygon(corners, fill=_near(COLOURS[shape.colour], 10, rng))
    return image.reduce(scale)


def _near(colour: tuple[int, int, int], spread: int, rng: random.Random) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, channel + rng.randint(-spread, spread))) for channel in colour)
    return red, green, blue


def area(outline: Sequence[Point]) -> float:
    """Area inside an outline in square pixels, ``|Σ x_i y_{i+1} − x_{i+1} y_i| / 2``."""
    following = (*outline[1:], outline[0])
    return abs(sum(x * v - u * y for (x, y), (u, v) in zip(outline, following, strict=True))) / 2
