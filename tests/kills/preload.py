"""What the server that forks the jobs imports beforehand."""

import effitrans.cli
import effitrans.distillation
import effitrans.evaluation
import effitrans.pruning.search.search
import effitrans.reporting  # noqa: F401
import tests.kills.jobs  # noqa: F401
