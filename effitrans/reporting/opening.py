"""What page, Markdown, terminal and index open with: of single models, or of a study over its seeds."""

from effitrans.evaluation.comparison import Comparison
from effitrans.reporting import seeds, view


def headline(comparison: Comparison) -> view.Table:
    """One row a model, or a variant of a study."""
    return seeds.table(comparison) if seeds.place_of(comparison) else view.headline(comparison)


def lede(comparison: Comparison) -> str:
    """One sentence that says what came out."""
    return seeds.lede(comparison) if seeds.place_of(comparison) else view.lede(comparison)
