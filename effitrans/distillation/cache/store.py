"""Files of a cache: shards of tensors, each with a checksum that is written last.

FOLDER/00000.safetensors   the rows of some examples, read through a memory map
FOLDER/00000.json          `{"sha256", "size"}` of that file; without it, or if it does not agree, the shard is redone
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from effitrans.files import write_text

logger = logging.getLogger(__name__)

VARIABLE = "EFFITRANS_CACHE"
"""Environment variable that names the folder of caches."""


def default_folder() -> Path:
    """Where caches go: `$EFFITRANS_CACHE`, else `~/.cache/effitrans`, there `teachers`."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "effitrans") / "teachers"


class Store:
    """Tensors by shard and name.

    Args:
        folder: where the files are; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[int, dict[str, Tensor]] = {}

    def is_complete(self, shard: int) -> bool:
        """Whether the shard is there, whole; a damaged one is logged. Reads the file once."""
        data, seal = self._files(shard)
        if not data.is_file() or not seal.is_file():
            return False
        try:
            expected = json.loads(seal.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            expected = None
        if expected == {"sha256": _sha256(data), "size": data.stat().st_size}:
            return True
        logger.warning("teacher cache: %s is damaged and is made again", data)
        return False

    def write(self, shard: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a shard in place of what there is."""
        data, seal = self._files(shard)
        self.folder.mkdir(parents=True, exist_ok=True)
        seal.unlink(missing_ok=True)
        temporary = data.with_name(f".{data.name}.{os.getpid()}")
        try:
            save_file(dict(tensors), temporary)
            values = {"sha256": _sha256(temporary), "size": temporary.stat().st_size}
            os.replace(temporary, data)
        finally:
            temporary.unlink(missing_ok=True)
        write_text(seal, json.dumps(values))
        self._open.pop(shard, None)

    def read(self, shard: int) -> dict[str, Tensor]:
        """The tensors of a complete shard, mapped into memory and not read until they are used."""
        if shard not in self._open:
            with safe_open(self._files(shard)[0], framework="pt") as opened:
                self._open[shard] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return self._open[shard]

    def _files(self, shard: int) -> tuple[Path, Path]:
        return self.folder / f"{shard:05d}.safetensors", self.folder / f"{shard:05d}.json"


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
