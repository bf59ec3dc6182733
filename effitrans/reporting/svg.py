"""A little SVG: shapes and text with colours that follow the page, and stand alone where there is no page.

Colours are names of CSS variables with a fallback (`COLOURS`), so that a drawing turns dark with the page around it and
can still be lifted out of it. Text stays text.
"""

import math
from html import escape

COLOURS = {
    "ink": "#1c1e21",
    "muted": "#5f656d",
    "line": "#dcdcd6",
    "panel": "#ffffff",
    "accent": "#0f6b62",
    "loss": "#b3452b",
    "soft": "#c9e2de",
}
"""Variable -> its colour in light mode, used where no page defines it."""

DARK = {
    "ink": "#e9e7e2",
    "muted": "#a2a8af",
    "line": "#34393e",
    "panel": "#191c1f",
    "accent": "#63c9bb",
    "loss": "#f0957a",
    "soft": "#21433f",
}

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def colour(name: str) -> str:
    """The CSS value of a colour."""
    return f"var(--{name}, {COLOURS[name]})"


def text_width(text: str, size: float) -> float:
    """Rough width of a text in a sans-serif face."""
    narrow = sum(character in "ilj.,:;|!' ()[]" for character in text)
    return size * (0.6 * (len(text) - narrow) + 0.36 * narrow)


class Drawing:
    """Collects elements; `svg` gives the finished picture."""

    def __init__(self, width: float, height: float, title: str, description: str = ""):
        self.width, self.height = width, height
        self.title, self.description = title, description
        self.parts: list[str] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, stroke: str = "line", width: float = 1, dash: str = ""):
        """A straight line."""
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke-width="{width}"{dashes}'
            f' style="stroke:{colour(stroke)}"/>'
        )

    def path(self, points: list[tuple[float, float]], stroke: str = "accent", width: float = 1.5, dash: str = ""):
        """A line through points."""
        steps = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<path d="{steps}" fill="none" stroke-width="{width}" stroke-linejoin="round"{dashes}'
            f' style="stroke:{colour(stroke)}"/>'
        )

    def area(self, points: list[tuple[float, float]], fill: str = "soft", opacity: float = 0.4):
        """A filled polygon."""
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polygon points="{corners}" style="fill:{colour(fill)};fill-opacity:{opacity:g}"/>')

    def rect(
        self, x: float, y: float, width: float, height: float, fill: str = "accent", stroke: str = "", radius: float = 1
    ):
        """A rectangle, filled or (fill "") outlined."""
        style = f"fill:{colour(fill) if fill else 'none'}" + (f";stroke:{colour(stroke)}" if stroke else "")
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" rx="{radius}"'
            f' style="{style}"/>'
        )

    def cell(self, x: float, y: float, side: float, share: float, tip: str):
        """A square of a matrix, shaded from nothing (0) to full (1); `tip` shows when the pointer rests on it."""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" rx="1"'
            f' style="fill:{colour("accent")};fill-opacity:{0.04 + 0.66 * share:.2f}">'
            f"<title>{escape(tip)}</title></rect>"
        )

    def circle(self, x: float, y: float, radius: float, fill: str = "accent", stroke: str = "", tip: str = ""):
        """A dot; `tip` shows when the pointer rests on it."""
        style = f"fill:{colour(fill)}" + (f";stroke:{colour(stroke)};stroke-width:1.75" if stroke else "")
        inside = f"<title>{escape(tip)}</title>" if tip else ""
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" style="{style}">{inside}</circle>')

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 12,
        fill: str = "ink",
        anchor: str = "start",
        weight: int = 400,
        rotate: float = 0,
        halo: bool = False,
    ):
        """A text; `anchor` is start, middle or end; `halo` keeps it apart from what it lies on."""
        turned = f' transform="rotate({rotate:g} {x:.1f} {y:.1f})"' if rotate else ""
        around = (
            f";stroke:{colour('panel')};stroke-width:3.5px;paint-order:stroke;stroke-linejoin:round" if halo else ""
        )
        bold = f' font-weight="{weight}"' if weight != 400 else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}"{bold}{turned}'
            f' style="fill:{colour(fill)}{around}">{escape(text)}</text>'
        )

    def svg(self, standalone: bool = False) -> str:
        """The picture. `standalone` adds the name space, a background and the dark colours, for a file of its own."""
        head = f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" font-family="{escape(FONT)}"'
        body = f"<title>{escape(self.title)}</title>"
        body += f"<desc>{escape(self.description)}</desc>" if self.description else ""
        if standalone:
            head += f' xmlns="http://www.w3.org/2000/svg" width="{self.width:g}" height="{self.height:g}"'
            dark = ";".join(f"--{name}:{value}" for name, value in DARK.items())
            body += f"<style>@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
            body += f'<rect width="100%" height="100%" style="fill:{colour("panel")}"/>'
        return f"{head}>{body}{''.join(self.parts)}</svg>"


def beside(drawings: list[Drawing], gap: float = 16) -> Drawing:
    """Several drawings in one row."""
    width = sum(drawing.width for drawing in drawings) + gap * (len(drawings) - 1)
    whole = Drawing(width, max(d.height for d in drawings), "; ".join(d.title for d in drawings))
    x = 0.0
    for drawing in drawings:
        whole.parts.append(f'<g transform="translate({x:.1f} 0)">{"".join(drawing.parts)}</g>')
        x += drawing.width + gap
    return whole


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within a range, about this many.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = high - low
    if span <= 0:
        return [low]
    step = 10 ** math.floor(math.log10(span / about))
    step *= min((m for m in (1, 2, 5, 10)), key=lambda m: abs(span / (step * m) - about))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]
