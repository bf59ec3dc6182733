"""What the server that forks the jobs imports beforehand."""

import effitrans.cli
import effitrans.distillation
import effitrans.evaluation.harness
import effitrans.pruning.search.search
import effitrans.recipes.runner
import effitrans.reporting  # noqa: F401
import tests.kills.jobs  # noqa: F401
