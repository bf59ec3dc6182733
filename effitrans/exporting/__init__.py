"""Export: models as files for other engines, compared there with PyTorch."""

from effitrans.exporting.export import FORMATS, Exported, export
from effitrans.exporting.graph import write_graph
from effitrans.exporting.parity import Parity

__all__ = ["FORMATS", "Exported", "Parity", "export", "write_graph"]
