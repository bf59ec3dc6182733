"""The frame that plots share: axes with round ticks."""

from dataclasses import dataclass

from effitrans.reporting.svg import Drawing, ticks

WIDTH, HEIGHT = 440, 320
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 16, 46


@dataclass(frozen=True)
class Axis:
    """A linear scale from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low or 1) * (self.end - self.start)


def axes(drawing: Drawing, x_axis: Axis, y_axis: Axis, x_label: str, y_label: str) -> None:
    """Draw the grid, the ticks and the labels."""
    for value in ticks(y_axis.low, y_axis.high):
        drawing.line(LEFT, y_axis(value), x_axis.end, y_axis(value))
        drawing.text(LEFT - 8, y_axis(value) + 4, f"{value:g}", 12, "muted", "end")
    drawing.line(LEFT, HEIGHT - BOTTOM, x_axis.end, HEIGHT - BOTTOM, "muted")
    for value in ticks(x_axis.low, x_axis.high):
        drawing.line(x_axis(value), HEIGHT - BOTTOM, x_axis(value), HEIGHT - BOTTOM + 4, "muted")
        drawing.text(x_axis(value), HEIGHT - BOTTOM + 17, f"{value:g}", 12.5, "muted", "middle")
    drawing.text((LEFT + x_axis.end) / 2, HEIGHT - 8, x_label, 12.5, "muted", "middle")
    drawing.text(13, (TOP + HEIGHT - BOTTOM) / 2, y_label, 12.5, "muted", "middle", rotate=-90)
