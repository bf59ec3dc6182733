"""The processes of a `torchrun` job: which one writes, and how they wait for each other."""

import os


def is_main_process() -> bool:
    """Whether this process is the one of a `torchrun` job that writes results; true outside of one."""
    return os.environ.get("RANK", "0") == "0"


def process_place() -> tuple[int, int]:
    """Rank of this process and number of processes of a `torchrun` job, which it joins; (0, 1) outside of one."""
    if "RANK" not in os.environ:
        return 0, 1
    from accelerate import PartialState

    state = PartialState()
    return state.process_index, state.num_processes


def wait_for_everyone() -> None:
    """Return when every process of a `torchrun` job has come here; at once outside of one."""
    if "RANK" in os.environ:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
