"""Speed and memory of the attention operators against PyTorch's own attention and other packages, interleaved.

    python benchmarks/attention.py                                  # forward and backward at 8,192 and 16,384
    python benchmarks/attention.py --operators local,linear --lengths 512,8192 --no-backward --causal --peers none
    python benchmarks/attention.py --decode --contexts 512,16384    # time of a token, and bytes of the state
    python benchmarks/attention.py --by-length                      # by_length against the better of its sides

Every side is checked before it is timed: our operators against their dense references, the others against what they
say they compute. A ratio is the time of dense SDPA over the side's, the median over rounds with its 95 % interval;
memory is the growth of the peak in a fresh process. Growth is time and memory at the largest length over those at the
one before. Peers are also compared with our operator of the same kind; `attention_peers` says on what equal terms.
What is not installed, or does not run, is named and left out. Standard output holds the tables; `--output FILE` keeps
records with the raw samples and where they come from.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attention_peers import PEERS, Shape
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from effitrans.attention import (
    AttentionMask,
    AttentionOperator,
    ByLength,
    Linformer,
    OperatorConfig,
    Site,
    operator_config,
)
from effitrans.errors import UsageError
from effitrans.evaluation.provenance import provenance
from effitrans.evaluation.statistics import Interval, ratio_interval
from effitrans.evaluation.timing import Effort, Runner, interleave, pinned_threads

OPERATORS: dict[str, OperatorConfig] = {
    "local": operator_config("local", {"window": 128}),
    "local-global": operator_config("local", {"window": 128, "num_global_tokens": 16}),
    "strided": operator_config("strided"),
    "strided-fixed": operator_config("strided", {"pattern": "fixed"}),
    "block_sparse": operator_config("block_sparse"),
    "linear": operator_config("linear"),
    "linear-hedgehog": operator_config("linear", {"feature_map": "hedgehog"}),
    "linear-taylor16": operator_config("linear", {"feature_map": "taylor", "feature_dim": 16}),
    "linear-gate": operator_config("linear", {"decay_gate": True}),
    "performer": operator_config("performer"),
    "linformer": operator_config("linformer"),
    "nystrom": operator_config("nystrom"),
    "kernel": operator_config("kernel", {"num_landmarks": 128}),
    "hybrid-lolcats": operator_config("hybrid"),
    "hybrid-scatterbrain": operator_config("hybrid", {"variant": "scatterbrain"}),
    "local-129": operator_config("local", {"window": 129}),
}
"""What can be measured, by the name in the table. The last one is for the peers, whose windows are that wide."""

BASELINES = ("sdpa", "sdpa-mask", "flex")
"""Dense SDPA (causal where asked); and with the mask of a window of 128: SDPA, and FlexAttention, compiled."""

Side = Callable[[Tensor, Tensor, Tensor], Tensor]


def make_side(name: str, length: int, options: argparse.Namespace) -> Side:
    """The function (query, key, value) -> output of one side."""
    causal, scale = options.causal, options.dim**-0.5
    if name == "sdpa":
        return partial(scaled_dot_product_attention, is_causal=causal, scale=scale)
    if name == "sdpa-mask":
        return partial(scaled_dot_product_attention, attn_mask=_window(length, causal), scale=scale)
    if name == "flex":
        return _flex(length, causal, scale)
    if name in PEERS:
        return PEERS[name].build(_shape(length, options))
    mask = AttentionMask(options.batch, length, length, causal=causal)
    return partial(operator(name, options), mask=mask, scale=scale)


def _shape(length: int, options: argparse.Namespace) -> Shape:
    return Shape(length, options.heads, options.dim, options.causal)


def _window(length: int, causal: bool) -> Tensor:
    distance = torch.arange(length)[:, None] - torch.arange(length)
    return (distance.abs() < 128) & ((distance >= 0) | (not causal))


def _flex(length: int, causal: bool, scale: float) -> Side:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return ((q - k).abs() < 128) & ((q >= k) | (not causal))

    blocks = create_block_mask(seen, None, None, length, length, device="cpu")
    return partial(torch.compile(flex_attention), block_mask=blocks, scale=scale)  # type: ignore[return-value]


def operator(name: str, options: argparse.Namespace) -> AttentionOperator:
    site = Site(num_heads=options.heads, num_key_value_heads=options.heads, head_dim=options.dim, causal=options.causal)
    config = OPERATORS[name]
    if isinstance(config, Linformer):
        config = config.model_copy(update={"max_length": max(300, *options.lengths)})
    return config.build(site)


def inputs(length: int, options: argparse.Namespace, requires_grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Heads as a projection leaves them: [B, L, H, D] seen as [B, H, L, D]."""
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch, length, options.heads, options.dim)
    query, key, value = (
        torch.randn(shape, generator=generator).transpose(1, 2).requires_grad_(requires_grad) for _ in range(3)
    )
    return query, key, value


def misfit(name: str, length: int, backward: bool, options: argparse.Namespace) -> str | None:
    """Why a side does not run here, None if it does."""
    if name in PEERS:
        return PEERS[name].misfit(_shape(length, options))
    if name == "flex" and backward:
        return "FlexAttention has no backward pass on the CPU"
    if name in OPERATORS:
        try:
            operator(name, options)
        except UsageError as error:
            return str(error).partition(":")[0]
    return None


def check(name: str, options: argparse.Namespace) -> None:
    """Stop if a side of ours is not what it says, on a short input."""
    tensors, scale = inputs(300, options), options.dim**-0.5
    mask, side = AttentionMask(options.batch, 300, 300, causal=options.causal), operator(name, options)
    with torch.no_grad():
        expected = side.reference(*tensors, mask, scale=scale)
        torch.testing.assert_close(side(*tensors, mask, scale=scale), expected, rtol=1e-4, atol=1e-4)


def is_right(name: str, options: argparse.Namespace) -> bool:
    """Whether a side that is not ours computes what it says, on a short input; if not, it is named."""
    side, tensors = make_side(name, 512, options), inputs(512, options)
    with torch.no_grad():
        if name == "flex":
            expected, limit = make_side("sdpa-mask", 512, options)(*tensors), 1e-4
        else:
            expected, limit = PEERS[name].expected(side, *tensors, options.causal), PEERS[name].error
        error = float((side(*tensors) - expected).norm() / expected.norm())
    if not error <= limit:
        print(f"{name} left out: off what it says it computes by {error:.2g}, more than {limit}")
    return error <= limit


def usable(names: Sequence[str], length: int, backward: bool, options: argparse.Namespace) -> list[str]:
    """The sides that run; the others are named, once."""
    fit = []
    for name in names:
        if not (reason := misfit(name, length, backward, options)):
            fit.append(name)
        elif (line := f"{name} left out: {reason}") not in NAMED:
            NAMED.append(line)
            print(line)
    return fit


NAMED: list[str] = []
"""What was printed about sides that are left out."""


def run_once(side: Side, backward: bool, tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    if backward:
        torch.autograd.grad(side(*tensors).sum(), tensors)
    else:
        with torch.no_grad():
            side(*tensors)


def time_length(names: list[str], length: int, backward: bool, options: argparse.Namespace) -> dict[str, np.ndarray]:
    batch = inputs(length, options, requires_grad=backward)
    runners = {name: Runner(partial(run_once, make_side(name, length, options), backward), [batch]) for name in names}
    samples = interleave(runners, Effort(warmup=1, min_repeats=options.repeats, min_seconds=0, max_seconds=300))
    return {name: seconds.sum(1) for name, seconds in samples.items()}


def extra_memory(name: str, length: int, backward: bool, options: argparse.Namespace) -> int:
    """Bytes by which one pass raises the peak of a fresh process that holds the inputs already."""
    arguments = [f"--{key}={getattr(options, key)}" for key in ("batch", "heads", "dim", "threads")]
    arguments += ["--causal"] if options.causal else []
    arguments += ["--no-backward"] if not backward else []
    command = [sys.executable, __file__, f"--peak-of={name}", f"--lengths={length}", *arguments]
    # some packages print while they load
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


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


def compare(names: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time and memory over lengths; prints a table for each pass."""
    records = []
    for backward in [False, True] if options.backward else [False]:
        print(f"\n{'forward and backward' if backward else 'forward'}{', causal' if options.causal else ''}")
        rows, before = [HEADER], {}
        for length in sorted(options.lengths):
            sides = usable(names, length, backward, options)
            samples = time_length(sides, length, backward, options)
            after = {}
            for name in sides:
                memory = extra_memory(name, length, backward, options) if options.memory and name != "flex" else None
                record = describe(name, length, samples, memory, before.get(name))
                record.update(backward=backward, causal=options.causal)
                after[name] = record
                records.append(record)
                rows.append(row(record, last=length == max(options.lengths)))
            before = after
        print(table(rows), flush=True)
    return records


HEADER = ["length", "side", "ms", "x sdpa", "95 % interval", "extra MB", "ms growth", "MB growth", "x ours", "95 %"]


def describe(
    name: str, length: int, samples: dict[str, np.ndarray], memory: int | None, before: dict[str, Any] | None
) -> dict[str, Any]:
    """The record of a side at a length; `before` is that at the length before."""
    seconds = samples[name]
    ratio, interval = ratio_interval(samples["sdpa"], seconds)
    record: dict[str, Any] = {
        "side": name,
        "length": length,
        "median_s": float(np.median(seconds)),
        "ratio_to_sdpa": ratio,
        "interval": interval,
        "extra_bytes": memory,
        "samples_s": seconds.tolist(),
    }
    if before is not None:
        growth = {"from": before["length"], "time": record["median_s"] / before["median_s"], "memory": None}
        if memory is not None and before["extra_bytes"]:
            growth["memory"] = memory / before["extra_bytes"]
        record["growth"] = growth
    if name in PEERS and PEERS[name].ours in samples:
        ours = PEERS[name].ours
        ratio, interval = ratio_interval(seconds, samples[ours])
        record.update(ours=ours, ratio_to_ours=ratio, ratio_to_ours_interval=interval)
    return record


def row(record: dict[str, Any], last: bool) -> list[str]:
    growth = record.get("growth") if last else None
    memory, theirs = record["extra_bytes"], record.get("ratio_to_ours")
    return [
        f"{record['length']:,}",
        record["side"],
        f"{1000 * record['median_s']:.1f}",
        f"{record['ratio_to_sdpa']:.2f}",
        _spread(record["interval"]),
        "-" if memory is None else f"{memory / 2**20:.0f}",
        f"{growth['time']:.2f}" if growth else "",
        f"{growth['memory']:.2f}" if growth and growth["memory"] else "",
        f"{theirs:.2f} {record['ours']}" if theirs else "",
        _spread(record["ratio_to_ours_interval"]) if theirs else "",
    ]


def _spread(interval: Interval | None) -> str:
    return f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "-"


def by_length(options: argparse.Namespace) -> list[dict[str, Any]]:
    """by_length against the better of its two sides, forward, as the crossover is measured."""
    site = Site(num_heads=options.heads, num_key_value_heads=options.heads, head_dim=options.dim, causal=options.causal)
    config = ByLength(long=OPERATORS["local"])
    choice = config.build(site)
    sides = {"by_length": choice, "short": config.short.build(site), "long": config.long.build(site)}
    crossover = choice.config.crossover  # type: ignore[union-attr]
    print(f"\nby_length of full and local (window 128), crossover measured: {crossover:,} keys")
    rows, records = [["length", "short ms", "long ms", "by_length ms", "x better side", "95 %", "within 10 %"]], []
    for length in options.lengths:
        mask, batch = AttentionMask(options.batch, length, length, causal=options.causal), inputs(length, options)
        call = {name: partial(side, mask=mask, scale=options.dim**-0.5) for name, side in sides.items()}
        runners = {name: Runner(partial(run_once, side, False), [batch] * 4) for name, side in call.items()}
        effort = Effort(warmup=2, min_repeats=2 * options.repeats, min_seconds=1 if options.repeats > 2 else 0)
        samples = {name: seconds.sum(1) for name, seconds in interleave(runners, effort).items()}
        median = {name: float(np.median(seconds)) / 4 for name, seconds in samples.items()}
        better = min("short", "long", key=lambda name: median[name])
        ratio, interval = ratio_interval(samples["by_length"], samples[better])
        record = {"length": length, "crossover": crossover, "better": better, "ratio_to_better": ratio}
        record.update(interval=interval, median_s=median, samples_s={n: s.tolist() for n, s in samples.items()})
        records.append(record)
        times = [f"{1000 * median[name]:.2f}" for name in ("short", "long", "by_length")]
        rows.append([f"{length:,}", *times, f"{ratio:.2f}", _spread(interval), "yes" if ratio <= 1.1 else "no"])
    print(table(rows))
    return records


def decode(names: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time of one new token after contexts of several lengths, from the operator's state."""
    options.causal = True
    records, rows = [], [["side", "context", "microseconds a token", "state bytes"]]
    for name in names:
        side = operator(name, options)
        if not side.has_state:
            print(f"{name} left out: it decodes from cached keys and values")
            continue
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
            samples_s, state_bytes = seconds.sum(1).tolist(), sizes[context]
            records.append({"side": name, "context": int(context), "state_bytes": state_bytes, "samples_s": samples_s})
            rows.append([name, context, f"{1e6 * float(np.median(seconds)):.0f}", str(sizes[context])])
    print("\ndecoding")
    print(table(rows))
    return records


def _step(side: AttentionOperator, mask: AttentionMask, state: dict, scale: float, tensors: tuple) -> None:
    with torch.no_grad():
        side(*tensors, mask, scale=scale, state=dict(state))


def main() -> None:
    options = arguments()
    with pinned_threads(options.threads):
        if options.peak_of:
            print(peak(options.peak_of, options.lengths[0], options.backward, options))
            return
        if options.by_length:
            check("local", options)
            records = by_length(options)
        elif options.decode:
            options.causal = True
            names = usable(options.operators, max(options.lengths), False, options)
            for name in names:
                check(name, options)
            records = decode(names, options)
        else:
            names = usable([*options.operators, *options.peers], max(options.lengths), False, options)
            names = [name for name in names if name not in PEERS or is_right(name, options)]
            names += sorted({PEERS[name].ours for name in names if name in PEERS} - set(names))
            for name in names:
                if name in OPERATORS:
                    check(name, options)
            baselines = [name for name in BASELINES if name != "flex" or is_right(name, options)]
            records = compare([*baselines, *names], options)
    if options.output:
        written = provenance(device=torch.device("cpu"), threads=options.threads, dtype=torch.float32, seed=0)
        settings = {name: getattr(options, name) for name in ("batch", "heads", "dim", "threads", "repeats", "causal")}
        operators = {name: OPERATORS[name].model_dump(mode="json") for name in options.operators}
        whole = {"provenance": written.model_dump(mode="json"), "settings": settings, "operators": operators}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({**whole, "records": records}, indent=1))


def arguments() -> argparse.Namespace:
    numbers = partial(str.split, sep=",")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ours = [name for name in OPERATORS if name != "local-129"]
    parser.add_argument("--operators", default=",".join(ours), help=f"of {', '.join(OPERATORS)}")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}; or none")
    parser.add_argument(
        "--lengths", help="sequence lengths; default 8192,16384, with --by-length 64 to 16384, doubling"
    )
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
    parser.add_argument("--by-length", action="store_true", help="measure by_length instead")
    parser.add_argument("--output", type=Path, help="JSON file for the records")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    doubling = ",".join(str(64 * 2**i) for i in range(9))
    options.lengths = options.lengths or (doubling if options.by_length else "8192,16384")
    options.lengths = [int(length) for length in numbers(options.lengths)]
    options.contexts = [int(length) for length in numbers(options.contexts)]
    options.operators = numbers(options.operators)
    options.peers = [] if options.peers == "none" else numbers(options.peers)
    for what, names, known in (("operator", options.operators, OPERATORS), ("peer", options.peers, PEERS)):
        if unknown := [name for name in names if name not in known]:
            parser.error(f"unknown {what} {unknown[0]!r}: choose from {', '.join(known)}")
    return options


if __name__ == "__main__":
    main()
