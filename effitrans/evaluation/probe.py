"""Cold load time and peak memory of a saved model, measured in a fresh process.

`probe(...)` starts `python -m effitrans.evaluation.probe`, which loads the folder, runs one batch and prints JSON.
"""

import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Probe:
    """What the fresh process saw."""

    load_s: float
    """Seconds of `from_pretrained`, libraries already imported."""
    peak_memory_bytes: int
    """Peak resident memory of the whole process; on an accelerator the peak of its allocator."""
    model_memory_bytes: int
    """That peak minus what was resident before the model was loaded."""


def probe(
    folder: Path, auto_class: str, batch: Mapping[str, torch.Tensor], *, threads: int, device: torch.device
) -> Probe | str:
    """Load `folder` in a new process and run `batch` through it; returns what went wrong if that fails."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as temporary:
        inputs = Path(temporary) / "batch.safetensors"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in batch.items()}, inputs)
        command = [sys.executable, "-m", __name__, str(folder), auto_class, str(inputs), str(threads), str(device)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return f"no answer within {TIMEOUT_S:.0f} s"
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        logger.debug("probe of %s failed:\n%s", folder, done.stderr)
        return lines[-1] if lines else f"the process ended with code {done.returncode}"
    return Probe(**json.loads(done.stdout.splitlines()[-1]))


def _measure(folder: str, auto_class: str, inputs: str, threads: str, device_name: str) -> Probe:
    from safetensors.torch import load_file

    from effitrans.checkpoint import load_model

    torch.set_num_threads(int(threads))
    device = torch.device(device_name)
    batch = {name: tensor.to(device) for name, tensor in load_file(inputs).items()}
    before = _peak_bytes(device)
    start = time.perf_counter()
    model = load_model(folder, auto_class).to(device)  # type: ignore[arg-type]
    load_s = time.perf_counter() - start
    with torch.inference_mode():
        model(**batch)
    peak = _peak_bytes(device)
    return Probe(load_s=load_s, peak_memory_bytes=peak, model_memory_bytes=max(0, peak - before))


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would report the peak of the parent process where that is higher.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    import dataclasses

    result = _measure(*sys.argv[1:])
    sys.stdout.write(json.dumps(dataclasses.asdict(result)) + "\n")
