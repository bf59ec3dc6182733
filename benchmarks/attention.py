"""Speed and memory of the attention operators against PyTorch's own attention, in one interleaved run.

    python benchmarks/attention.py                                  # forward and backward at 2,048 and 8,192
    python benchmarks/attention.py --operators local,linear --lengths 8192,16384 --no-backward --causal
    python benchmarks/attention.py --decode --contexts 512,16384    # time of a token, and bytes of the state

Every side is checked against its dense reference before it is timed. A ratio is the time of dense SDPA over the
side's, the median over rounds with its 95 % interval; memory is the growth of the peak in a fresh process.
Standard output holds the tables; `--output FILE` keeps the raw samples as JSON.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from effitrans.attention import AttentionMask, AttentionOperator, OperatorConfig, Site, operator_config
from effitrans.evaluation.statistics import ratio_interval
from effitrans.evaluation.timing import Effort, Runner, interleave, pinned_threads

OPERATORS: dict[str, OperatorConfig] = {
    "local": operator_config("local", {"window": 128}),
    "local-global": operator_config("local", {"window": 128, "num_global_tokens": 16}),
    "linear": operator_config("linear"),
    "linear-hedgehog": operator_config("linear", {"feature_map": "hedgehog"}),
    "linear-taylor16": operator_config("linear", {"feature_map": "taylor", "feature_dim": 16}),
}
"""What is measured by default, by the name in the table."""

BASELINES = ("sdpa", "sdpa-mask")
"""Dense SDPA (causal where asked), and dense SDPA with the mask of a window of 128."""

Side = Callable[[Tensor, Tensor, Tensor], Tensor]


def make_side(name: str, length: int, options: argparse.Namespace) -> Side:
    """The function (query, key, value) -> output of one side."""
    causal, scale = options.causal, options.dim**-0.5
    if name == "sdpa":
        return partial(scaled_dot_product_attention, is_causal=causal, scale=scale)
    if name == "sdpa-mask":
        distance = torch.arange(length)[:, None] - torch.arange(length)
        window = (distance.abs() < 128) & ((distance >= 0) | (not causal))
        return partial(scaled_dot_product_attention, attn_mask=window, scale=scale)
    mask = AttentionMask(options.batch, length, length, causal=causal)
    return partial(operator(name, options), mask=mask, scale=scale)


def operator(name: str, options: argparse.Namespace) -> AttentionOperator:
    site = Site(num_heads=options.heads, num_key_value_heads=options.heads, head_dim=options.dim, causal=options.causal)
    return OPERATORS[name].build(site)


def inputs(length: int, options: argparse.Namespace, requires_grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Heads as a projection leaves them: [B, L, H, D] seen as [B, H, L, D]."""
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch, length, options.heads, options.dim)
    query, key, value = (
        torch.randn(shape, generator=generator).transpose(1, 2).requires_grad_(requires_grad) for _ in range(3)
    )
    return query, key, value


def check(name: str, options: argparse.Namespace, length: int = 300) -> None:
    """Stop if a side is not what it says."""
    if name in BASELINES:
        return
    tensors = inputs(length, options)
    mask = AttentionMask(options.batch, length, length, causal=options.causal)
    side = operator(name, options)
    with torch.no_grad():
        expected = side.reference(*tensors, mask, scale=options.dim**-0.5)
        torch.testing.assert_close(side(*tensors, mask, scale=options.dim**-0.5), expected, rtol=1e-4, atol=1e-4)


def run_once(side: Side, backward: bool, tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    if backward:
        torch.autograd.grad(side(*tensors).sum(), tensors)
    else:
        with torch.no_grad():
            side(*tensors)


def time_length(names: list[str], length: int, backward: bool, options: argparse.Namespace) -> dict[str, np.ndarray]:
    batch = inputs(length, options, requires_grad=backward)
    runners = {name: Runner(partial(run_once, make_side(name, length, options), backward), [batch]) for name in names}
    return interleave(runners, Effort(warmup=1, min_repeats=options.repeats, min_seconds=0, max_seconds=300))


def extra_memory(name: str, length: int, backward: bool, options: argparse.Namespace) -> int:
    """Bytes by which one pass raises the peak of a fresh process that holds the inputs already."""
    arguments = [f"--{key}={getattr(options, key)}" for key in ("batch", "heads", "dim", "threads")]
    arguments += ["--causal"] if options.causal else []
    arguments += ["--no-backward"] if not backward else []
    command = [sys.executable, __file__, f"--peak-of={name}", f"--lengths={length}", *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak(name: str, length: int, backward: bool, options: argparse.Namespace) -> int:
    run_once(make_side(name, 256, options), backward, inputs(256, options, backward))
    tensors = inputs(length, options, backward)
    side = make_side(name, length, options)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    run_once(side, backward, tensors)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def table(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def compare(names: list[str], options: argparse.Namespace) -> list[dict]:
    """Time and memory over lengths; prints a table for each pass."""
    records = []
    for backward in [False, True] if options.backward else [False]:
        rows = [["length", "side", "ms", "x sdpa", "95 % interval", "extra MB"]]
        for length in options.lengths:
            samples = time_length([*BASELINES, *names], length, backward, options)
            for name, seconds in samples.items():
                ratio, interval = ratio_interval(samples["sdpa"].sum(1), seconds.sum(1))
                memory = extra_memory(name, length, backward, options) if options.memory else None
                records.append(
                    {
                        "side": name,
                        "length": length,
                        "backward": backward,
                        "ratio": ratio,
                        "interval": interval,
                        "extra_bytes": memory,
                        "samples_s": seconds.sum(1).tolist(),
                    }
                )
                spread = f"{interval[0]:.1f} to {interval[1]:.1f}" if interval else "-"
                megabytes = "-" if memory is None else f"{memory / 2**20:.0f}"
                median = f"{1000 * float(np.median(seconds.sum(1))):.1f}"
                rows.append([f"{length:,}", name, median, f"{ratio:.2f}", spread, megabytes])
        print(f"\n{'forward and backward' if backward else 'forward'}{', causal' if options.causal else ''}")
        print(table(rows))
    return records


def decode(names: list[str], options: argparse.Namespace) -> list[dict]:
    """Time of one new token after contexts of several lengths, from the operator's state."""
    options.causal = True
    records, rows = [], [["side", "context", "microseconds a token", "state bytes"]]
    for name in names:
        side = operator(name, options)
        runners, sizes = {}, {}
        for context in options.contexts:
            tensors, state = inputs(context + 1, options), {}
            first, last = (
                tuple(tensor[:, :, span] for tensor in tensors) for span in (slice(context), slice(context, None))
            )
            mask = AttentionMask(options.batch, context, context, causal=True)
            with torch.no_grad():
                side(*first, mask, scale=options.dim**-0.5, state=state)
            sizes[str(context)] = sum(tensor.untyped_storage().nbytes() for tensor in state.values())
            mask = AttentionMask(options.batch, 1, 1, context, context, causal=True)
            step = partial(_step, side, mask, state, options.dim**-0.5)
            runners[str(context)] = Runner(step, [last])
        samples = interleave(runners, Effort(warmup=20, min_repeats=50 * options.repeats, min_seconds=0))
        for context, seconds in samples.items():
            records.append({"side": name, "context": int(context), "samples_s": seconds.sum(1).tolist()})
            rows.append([name, context, f"{1e6 * float(np.median(seconds)):.0f}", str(sizes[context])])
    print("\ndecoding")
    print(table(rows))
    return records


def _step(side: AttentionOperator, mask: AttentionMask, state: dict, scale: float, tensors: tuple) -> None:
    with torch.no_grad():
        side(*tensors, mask, scale=scale, state=dict(state))


def main() -> None:
    numbers = partial(str.split, sep=",")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operators", default=",".join(OPERATORS), help=f"of {', '.join(OPERATORS)}")
    parser.add_argument("--lengths", default="2048,8192", help="sequence lengths")
    parser.add_argument("--contexts", default="512,16384", help="context lengths of --decode")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--dim", type=int, default=64, help="head dimension")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--no-backward", dest="backward", action="store_false")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--decode", action="store_true", help="measure decoding instead")
    parser.add_argument("--output", type=Path, help="JSON file for the raw samples")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.lengths = [int(length) for length in numbers(options.lengths)]
    options.contexts = [int(length) for length in numbers(options.contexts)]
    names = numbers(options.operators)
    if unknown := [name for name in names if name not in OPERATORS]:
        parser.error(f"unknown operator {unknown[0]!r}: choose from {', '.join(OPERATORS)}")
    with pinned_threads(options.threads):
        if options.peak_of:
            print(peak(options.peak_of, options.lengths[0], options.backward, options))
            return
        for name in names:
            check(name, options)
        records = decode(names, options) if options.decode else compare(names, options)
    if options.output:
        options.output.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
