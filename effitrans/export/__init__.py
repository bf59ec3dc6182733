"""Export: models as files for other engines."""

from effitrans.export.graph import write_graph

__all__ = ["write_graph"]
