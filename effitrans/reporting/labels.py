"""Put labels next to points so that none lies on another label, a point or the edge."""

from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


DIRECTIONS = 8


@dataclass(frozen=True)
class Placed:
    """Where a label goes: the point its text is anchored at, and how."""

    x: float
    y: float
    anchor: str
    box: Box


def leader(point: tuple[float, float], label: Placed, radius: float = 5) -> tuple[float, float] | None:
    """Where a line from the point should meet a label that stands away from it; None if it is close by."""
    x, y = (min(max(value, low), high) for value, low, high in zip(point, label.box[:2], label.box[2:], strict=True))
    return (x, y) if abs(x - point[0]) + abs(y - point[1]) > radius + 12 else None


def overlap(a: Box, b: Box) -> float:
    """Common area."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def place(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    frame: Box,
    obstacles: Sequence[Box] = (),
    radius: float = 5,
) -> list[Placed]:
    """One place for each label, greedily, the most crowded points first.

    Args:
        points: the points.
        sizes: width and height of each label.
        frame: where labels must stay.
        obstacles: boxes to keep clear of, such as whiskers.
        radius: of the points, kept clear.
    """
    dots = [(x - radius, y - radius, x + radius, y + radius) for x, y in points]

    def crowd(i: int) -> float:
        x, y = points[i]
        return sum(1 / (1 + abs(x - px) + abs(y - py)) for px, py in points)

    placed: dict[int, Placed] = {}
    for i in sorted(range(len(points)), key=crowd, reverse=True):
        taken = [*dots, *(p.box for p in placed.values())]

        def cost(candidate: tuple[int, Placed], taken: list[Box] = taken, own: tuple[float, float] = sizes[i]) -> float:
            rank, place = candidate
            inside = overlap(place.box, frame)
            outside = own[0] * own[1] - inside
            hit = sum(overlap(place.box, box) for box in taken)
            touched = sum(overlap(place.box, box) for box in obstacles)
            # A label may lie on a line (it has a halo) rather than stand far from its point.
            ring, direction = divmod(rank, DIRECTIONS)
            return 30 * outside + 10 * hit + 0.15 * touched + 60 * ring + direction

        placed[i] = min(enumerate(_candidates(points[i], sizes[i], radius)), key=cost)[1]
    return [placed[i] for i in range(len(points))]


def _candidates(point: tuple[float, float], size: tuple[float, float], radius: float) -> list[Placed]:
    """Right, left, above, below and the corners, close by and then further away."""
    (x, y), (width, height) = point, size
    found = []
    for distance in (radius + 3, radius + 16, radius + 30):
        for dx, dy in ((1, 0), (1, -1), (1, 1), (-1, 0), (-1, -1), (-1, 1), (0, -1), (0, 1)):
            left = x + dx * distance - (width if dx < 0 else width / 2 if dx == 0 else 0)
            middle = y + dy * (distance + (height / 2 if dx == 0 else 3))
            box = (left, middle - height / 2, left + width, middle + height / 2)
            anchor = {1: "start", -1: "end", 0: "middle"}[dx]
            anchored = {1: left, -1: left + width, 0: x}[dx]
            found.append(Placed(anchored, middle + height * 0.32, anchor, box))
    return found
