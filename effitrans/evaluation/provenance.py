"""Where a figure comes from: versions, machine, threads, seed, code."""

import datetime
import platform
import subprocess
from functools import lru_cache
from pathlib import Path

import torch
import transformers

from effitrans import __version__
from effitrans.evaluation.record import Provenance

PACKAGE = Path(__file__).resolve().parents[1]


def provenance(*, device: torch.device, threads: int, dtype: torch.dtype, seed: int) -> Provenance:
    """What is needed to understand, and to repeat, an evaluation that runs now."""
    commit, dirty = git_state(PACKAGE)
    return Provenance(
        effitrans=__version__,
        torch=torch.__version__,
        transformers=transformers.__version__,
        python=platform.python_version(),
        device=device_name(device),
        threads=threads,
        dtype=str(dtype).removeprefix("torch."),
        seed=seed,
        recipe_sha256=None,
        git_commit=commit,
        dirty=dirty,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def device_name(device: torch.device) -> str:
    """Name of the processor or accelerator.

    CPUs are told apart by their instruction set too, which decides the speed of integer products.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    return f"{_cpu_model()} ({torch.backends.cpu.get_cpu_capability()})"


@lru_cache(maxsize=1)
def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Commit of the checkout that a package runs from, and whether its files differ from it.

    (None, None) where the package is installed without git, even inside somebody else's repository.
    """
    try:
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        return _git(folder, "rev-parse", "HEAD").strip(), bool(_git(folder, "status", "--porcelain", "--", ".").strip())
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
    ).stdout
