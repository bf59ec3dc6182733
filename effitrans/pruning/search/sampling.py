"""Optuna as the sampler of structures: TPE, or NSGA-II for the whole front of loss and cost.

A trial is one choice a place. TPE (Bergstra et al. 2011) minimises the loss of the trial fitted to the budget, so that
every trial is a structure worth measuring. NSGA-II (Deb et al. 2002) minimises loss and cost together, over trials
that are only narrowed to the budget; the best inside it is taken. Both start from the structures that evolution
starts from.

Trials depend on the seed and on the losses alone. Losses are kept by the search's own storage, so a search that was
killed asks again for the same trials, is answered at once where it had been, and ends as it would have. Beside that
storage lies Optuna's journal of the trials, for its dashboard.
"""

import importlib.util
from pathlib import Path
from typing import Any

from effitrans.errors import UsageError
from effitrans.pruning.search.config import Sampler
from effitrans.pruning.search.evolution import Evolution
from effitrans.pruning.search.space import Structure
from effitrans.versions import check_versions


def require_optuna(sampler: Sampler) -> None:
    """Refuse a sampler of Optuna where that is not installed, or too old.

    Raises:
        UsageError: with the remedy.
    """
    if sampler == "evolution":
        return
    if importlib.util.find_spec("optuna") is None:
        raise UsageError(
            f"sampler {sampler!r} needs optuna, which is not installed: pip install 'effitrans[search]', or use "
            "sampler 'evolution'"
        )
    check_versions("search")


def run(evolution: Evolution, sampler: Sampler, evaluations: int, journal: Path | None = None) -> Structure:
    """The structure of least loss among so many, inside the budget.

    Args:
        evolution: budget, starting structures and measure; it breeds only where `sampler` is "evolution".
        sampler: who proposes structures.
        evaluations: structures that are measured.
        journal: file for Optuna's journal, written anew.
    """
    if sampler == "evolution":
        return evolution.run(evaluations)
    for structure in evolution.first():
        evolution.score(structure)
    study = _study(sampler, evolution.seed, evolution.population, journal)
    for structure in list(evolution.losses):
        study.enqueue_trial({place.name: c for place, c in zip(evolution.space.places, structure, strict=True)})
    attempts = 0
    while len(evolution.losses) < evaluations and attempts < 20 * evaluations:
        attempts += 1
        trial = study.ask()
        proposed = tuple(trial.suggest_int(place.name, 0, len(place.widths) - 1) for place in evolution.space.places)
        if not evolution.space.allowed(proposed):
            proposed = evolution.space.full
        structure = evolution.fitted(proposed) if sampler == "tpe" else evolution.narrowed(proposed)
        loss = evolution.score(structure)
        cost = evolution.table.of(structure)[next(iter(evolution.limits))]
        study.tell(trial, loss if sampler == "tpe" else (loss, cost))
    return evolution.best()


def _study(sampler: Sampler, seed: int, population: int, journal: Path | None) -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = None
    if journal is not None:
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.unlink(missing_ok=True)
        storage = JournalStorage(JournalFileBackend(str(journal)))
    if sampler == "tpe":
        chosen: Any = optuna.samplers.TPESampler(seed=seed)
        return optuna.create_study(sampler=chosen, storage=storage, study_name="search")
    chosen = optuna.samplers.NSGAIISampler(seed=seed, population_size=population)
    return optuna.create_study(
        sampler=chosen, storage=storage, study_name="search", directions=["minimize", "minimize"]
    )
