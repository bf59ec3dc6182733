"""Find the records that a report is to be drawn from."""

from collections.abc import Sequence
from pathlib import Path

from effitrans.errors import UsageError
from effitrans.evaluation.record import Record


def gather(sources: Sequence[Record | str | Path]) -> list[Record]:
    """Records from run folders, folders of records, single files, or records that are at hand.

    Records of a recipe come in the order of its steps, others in the order given (files by name).

    Raises:
        UsageError: a source that does not exist, holds no records, or holds one that cannot be read.
    """
    records: list[Record] = []
    for source in sources:
        records.extend([source] if isinstance(source, Record) else _read(Path(source)))
    if not records:
        raise UsageError("nothing to report: give a run folder, a folder of records, or record files")
    if all(record.step is not None for record in records):
        records.sort(key=lambda record: record.step.index if record.step else 0)
    return records


def _read(path: Path) -> list[Record]:
    if path.is_file():
        return [Record.load(path)]
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder or record file")
    for files in (sorted((path / "records").glob("*.json")), sorted(path.glob("record.json"))):
        if files:
            return [Record.load(file) for file in files]
    files = sorted(file for file in path.glob("*.json") if '"schema"' in file.read_text(encoding="utf-8")[:200])
    if not files:
        raise UsageError(f"{path} holds no records: expected {path}/records/*.json as `effitrans run` leaves them")
    return [Record.load(file) for file in files]
