"""Numbers as people read them. One place, so that page, Markdown, card and terminal say the same."""

from effitrans.evaluation.record import Interval
from effitrans.tasks.metrics import describe

MISSING = "–"


def quality(name: str, value: float | None, sign: bool = False) -> str:
    """A metric: 89.6 %, 0.873, 17.2; with `sign` as a difference: +0.4 points.

    >>> quality("accuracy", 0.8956), quality("perplexity", 17.24), quality("accuracy", -0.004, sign=True)
    ('89.6 %', '17.2', '−0.4')
    """
    if value is None:
        return MISSING
    percent = describe(name).percent
    shown = 100 * value if percent else value
    digits = 1 if percent or abs(shown) >= 10 else 3
    text = f"{shown:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return minus(text) + (" %" if percent and not sign else "")


def quality_interval(name: str, interval: Interval | None, sign: bool = False) -> str:
    """Both ends without unit: 88.2–90.9; signed ends are set apart: −1.0 to +0.2."""
    if interval is None:
        return ""
    low, high = (quality(name, end, sign).removesuffix(" %") for end in interval)
    return f"{low} to {high}" if sign else f"{low}–{high}"


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction as a percentage: 98.5 %."""
    return MISSING if fraction is None else f"{100 * fraction:.{digits}f} %"


def percent_interval(interval: Interval | None, digits: int = 1) -> str:
    """Both ends as percentages without unit: 97.4–99.6."""
    return "" if interval is None else f"{100 * interval[0]:.{digits}f}–{100 * interval[1]:.{digits}f}"


def speedup(ratio: float | None) -> str:
    """How many times as fast: 4.8×, from a ratio of times.

    >>> speedup(0.21), speedup(0.0125), speedup(1.5)
    ('4.8×', '80×', '0.67×')
    """
    return MISSING if not ratio else f"{times(1 / ratio)}×"


def speedup_interval(interval: Interval | None) -> str:
    """Both ends of the speed-up: 4.7–4.9."""
    return "" if interval is None or not interval[0] else f"{times(1 / interval[1])}–{times(1 / interval[0])}"


def times(value: float) -> str:
    """A factor with two to three significant digits."""
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}" if value >= 2 else f"{value:.2f}"


def milliseconds(value: float | None) -> str:
    """Time with three significant digits: 0.812 ms, 95.3 ms, 1,240 ms."""
    return MISSING if value is None else f"{three_digits(value)} ms"


def three_digits(value: float) -> str:
    """A positive number with about three significant digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def scaled(value: float | None, unit: str = "") -> str:
    """A count with a decimal prefix: 22.7 M, 1.24 GFLOP, 90.9 MB.

    >>> scaled(22_713_216), scaled(90_868_376, "B"), scaled(512)
    ('22.7 M', '90.9 MB', '512')
    """
    if value is None:
        return MISSING
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{three_digits(value / size)} {prefix}{unit}"
    return f"{value:,.0f}{' ' + unit if unit else ''}"


def rate(value: float | None) -> str:
    """Items or tokens per second."""
    return MISSING if value is None else three_digits(value)


def shape(batch: int, length: int | str) -> str:
    """Batch and length: 32 × real text, 1 × 128."""
    return f"{batch} × real data" if length == "data" else f"{batch} × {length}"


def minus(text: str) -> str:
    """A proper minus sign in place of the hyphen."""
    return text.replace("-", "−")
