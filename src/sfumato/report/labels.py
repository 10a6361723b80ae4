"""Where the names beside points go so that they cover neither each other nor a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Align = Literal["left", "center", "right"]

_GLYPH = 0.6
"""Width of an average glyph in font sizes; on the wide side, since the reader's font is not known."""

_MARKER = 8.0
"""Half of the square that a marker keeps free, in points."""


@dataclass(frozen=True)
class Box:
    """A rectangle in points."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """The area that two rectangles share."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, wide) * max(0.0, high)

    @property
    def area(self) -> float:
        """Width times height."""
        return (self.right - self.left) * (self.top - self.bottom)


@dataclass(frozen=True)
class Placed:
    """A label at an offset from its point; a ``far`` one wants a line to it."""

    text: str
    dx: float
    dy: float
    align: Align
    far: bool


def place_labels(
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    *,
    size: float,
    room: Box,
    keep_free: Sequence[Box] = (),
) -> list[Placed]:
    """Place each label, in order, where it collides least; among equals, the nearest place wins.

    Args:
        points: Positions in points.
        texts: One label each.
        size: Font size in points.
        room: What labels may not leave.
        keep_free: What else they should not cover.
    """
    taken = [*keep_free, *(Box(x - _MARKER, y - _MARKER, x + _MARKER, y + _MARKER) for x, y in points)]
    result = []
    for (x, y), text in zip(points, texts):
        candidates = _candidates(text, size)
        boxes = [_box(x, y, candidate, size) for candidate in candidates]
        costs = [_cost(box, taken, room) + 0.01 * index for index, box in enumerate(boxes)]
        best = min(range(len(costs)), key=costs.__getitem__)
        taken.append(boxes[best])
        result.append(candidates[best])
    return result


def _candidates(text: str, size: float) -> list[Placed]:
    near = _MARKER + 4
    places: list[tuple[float, float, Align, bool]] = [
        (near, 0, "left", False),
        (-near, 0, "right", False),
        (0, near + size / 2, "center", False),
        (0, -near - size / 2, "center", False),
    ]
    for step in range(1, 6):
        up = near + size / 2 + step * 1.35 * size
        places += [(18, up, "left", True), (18, -up, "left", True)]
        places += [(-18, up, "right", True), (-18, -up, "right", True)]
    return [Placed(text, *place) for place in places]


def _box(x: float, y: float, label: Placed, size: float) -> Box:
    width = _GLYPH * size * len(label.text)
    left = x + label.dx - {"left": 0.0, "center": width / 2, "right": width}[label.align]
    middle = y + label.dy
    return Box(left, middle - 0.65 * size, left + width, middle + 0.65 * size)


def _cost(box: Box, taken: Sequence[Box], room: Box) -> float:
    outside = box.area - box.overlap(room)
    return 4 * outside + sum(box.overlap(other) for other in taken)
