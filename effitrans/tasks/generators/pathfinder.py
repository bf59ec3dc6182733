"""Pathfinder: are the two dots ends of the same dashed curve? (Linsley et al. 2018; Long Range Arena, Tay et al. 2021)

An image holds two long curves and some short ones that distract, all dashed. In a connected image both dots sit on
the ends of one long curve; otherwise on one end of each. Following the dashes is the only way to tell: every image has
curves whose dots could be put either way, as far from one another within half a pixel. Read as a sequence of pixels,
the clue spreads over the whole sequence.

Long Range Arena uses images of 32 x 32 (1,024 pixels) and, for Path-X, 128 x 128 (16,384); the default here is 16 x 16,
and `size: 32, num_dashes: 6, dash: 3, gap: 2, num_distractors: 3` is like the former. The curves are drawn by a
generator of our own: a point moves a pixel at a time, turning a little, and keeps away from what is drawn already.
"""

import math
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from effitrans.tasks.generators.base import Drawn

if TYPE_CHECKING:
    import numpy as np

CANDIDATES = 48
"""Curves that are drawn at random together, of which the first that fits is taken."""

TOLERANCE = 0.5
"""Pixels by which the distance of the dots of an unconnected image may be off that of the ends of its first curve."""


class Pathfinder(Drawn):
    """Columns `image` (rows of floats, 0 or 1) and `label` (1: connected, 0: apart; half of the rows each)."""

    generator: Literal["pathfinder"] = "pathfinder"
    """Names this generator."""
    size: int = Field(16, ge=8, le=512)
    """Height and width in pixels."""
    num_dashes: int = Field(4, ge=1, le=512)
    """Dashes of a long curve."""
    dash: int = Field(2, ge=1, le=512)
    """Length of a dash, in pixels."""
    gap: int = Field(1, ge=0, le=512)
    """Pixels between two dashes."""
    num_distractors: int = Field(1, ge=0, le=512)
    """Short curves, of a third as many dashes (at least one)."""
    curvature: float = Field(0.25, ge=0, le=1)
    """Standard deviation of the turn at each pixel, in radians."""

    @model_validator(mode="after")
    def _check_room(self) -> Self:
        needed, room = (2 * self.num_dashes + self.num_distractors) * (self.dash + self.gap) * 3, self.size**2
        if needed > room:
            raise ValueError(
                f"num_dashes {self.num_dashes} of {self.dash} + {self.gap} pixels do not fit into {self.size} x "
                f"{self.size}: raise size, or lower num_dashes or num_distractors"
            )
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "validation", "test")

    def columns(self, split: str) -> dict[str, list[Any]]:
        import numpy as np

        counts = {"train": self.train_rows, "validation": self.validation_rows, "test": self.test_rows}
        generator = np.random.default_rng([self.seed, self.splits.index(split)])
        labels = generator.permutation(np.arange(counts[split]) % 2).tolist()
        return {"image": [self._image(generator, bool(label)).tolist() for label in labels], "label": labels}

    def _image(self, generator: "np.random.Generator", connected: bool, attempts: int = 1000) -> "np.ndarray":
        for _ in range(attempts):
            curves = self._curves(generator)
            if curves is not None:
                return self._draw(curves, _dots(curves[0], curves[1], connected))
        raise ValueError(
            f"pathfinder found no room for its curves in {attempts} attempts: raise size, or lower num_dashes, "
            "num_distractors or curvature"
        )

    def _curves(self, generator: "np.random.Generator") -> "list[np.ndarray] | None":
        """Points [pixels, 2] of the long curves and then the others; None where one found no room."""
        import numpy as np

        taken = np.zeros((self.size, self.size), dtype=bool)
        curves = []
        short = max(1, self.num_dashes // 3)
        for dashes in [self.num_dashes] * 2 + [short] * self.num_distractors:
            beside = curves[0] if len(curves) == 1 else None
            curve = self._curve(generator, dashes * (self.dash + self.gap) - self.gap, taken, beside)
            if curve is None:
                return None
            curves.append(curve)
            for row, column in curve.round().astype(int):
                taken[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3] = True
        return curves

    def _curve(
        self, generator: "np.random.Generator", pixels: int, taken: "np.ndarray", beside: "np.ndarray | None"
    ) -> "np.ndarray | None":
        """Points a pixel apart that stay in the image, touch nothing taken, and do not come back to the same place.

        With `beside`, dots must be possible between that curve and this one.
        """
        import numpy as np

        shape = (CANDIDATES, pixels - 1)
        angles = np.cumsum(generator.normal(scale=self.curvature, size=shape), axis=1)
        angles += generator.uniform(0, 2 * math.pi, size=(CANDIDATES, 1))
        points = np.stack([np.sin(angles), np.cos(angles)], axis=-1).cumsum(axis=1)
        starts = generator.uniform(1, self.size - 2, size=(CANDIDATES, 1, 2))
        points = starts + np.concatenate([np.zeros((CANDIDATES, 1, 2)), points], axis=1)
        fits = ((points >= 1) & (points <= self.size - 2)).all(axis=(1, 2))
        cells = points.round().astype(int).clip(0, self.size - 1)
        fits &= ~taken[cells[..., 0], cells[..., 1]].any(axis=1)
        if beside is not None:
            fits &= _excess(beside, points).min(axis=(1, 2)) <= TOLERANCE
        for index in np.flatnonzero(fits):
            distance = np.linalg.norm(points[index, :, None] - points[index], axis=-1)
            along = np.abs(np.arange(pixels)[:, None] - np.arange(pixels))
            if not ((distance < 3) & (along > 5)).any():
                return points[index]
        return None

    def _draw(self, curves: "list[np.ndarray]", dots: "tuple[np.ndarray, np.ndarray]") -> "np.ndarray":
        import numpy as np

        image = np.zeros((self.size, self.size))
        for curve in curves:
            along = np.arange(len(curve)) % (self.dash + self.gap)
            rows, columns = curve[along < self.dash].round().astype(int).T
            image[rows, columns] = 1
        for row, column in np.round(dots).astype(int):
            image[row - 1 : row + 2, column - 1 : column + 2] = 1
        return image


def _excess(first: "np.ndarray", others: "np.ndarray") -> "np.ndarray":
    """[curves, 2, 2]: how much the distance of an end of `first` to one of each other curve is off that of its own."""
    import numpy as np

    reach = np.linalg.norm(first[-1] - first[0])
    steps = first[[0, -1]][:, None] - others[:, None, [0, -1]]
    return np.abs(np.linalg.norm(steps, axis=-1) - reach)


def _dots(first: "np.ndarray", second: "np.ndarray", connected: bool) -> "tuple[np.ndarray, np.ndarray]":
    """The ends of the first curve, or one of each that are as far apart."""
    if connected:
        return first[0], first[-1]
    one, other = divmod(int(_excess(first, second[None]).argmin()), 2)
    return first[-one], second[-other]
