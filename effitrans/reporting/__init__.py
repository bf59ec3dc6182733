"""Reports: the HTML page and its twins, the model card, the scorecard. Drawn from records and from nothing else."""

from effitrans.reporting.card import model_card, write_card
from effitrans.reporting.index import write_index
from effitrans.reporting.report import report
from effitrans.reporting.scorecard import scorecard

__all__ = ["model_card", "report", "scorecard", "write_card", "write_index"]
