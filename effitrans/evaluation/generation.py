"""How fast a model generates: the first token, and every token after it.

A generator's latency has two parts that scale differently: the prompt is read once (prefill), then each token costs a
step (decode). Both come from `generate` with greedy decoding, as users call it: the time of one new token, and the
time of N new tokens less that, shared by the other N - 1. Models take turns as in every other timing.
Shapes: R rounds, K prompts a round.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from effitrans.evaluation import shapes
from effitrans.evaluation.config import Cost
from effitrans.evaluation.latency import BASELINE, MODEL, EvaluatedModel, out_of_memory, synchronizer
from effitrans.evaluation.record import Generation, Length
from effitrans.evaluation.statistics import ratio_interval
from effitrans.evaluation.timing import NOISY, Runner, interleave, variation


def measure_generation(
    subject: EvaluatedModel, baseline: EvaluatedModel | None, examples: shapes.Batches, cost: Cost
) -> Iterator[Generation | str]:
    """A row for each batch size and context as soon as it is there, and notes on what could not be timed.

    Compiled models are not compared here: `generate` runs eager.
    """
    subjects = {MODEL: subject} | ({BASELINE: baseline} if baseline is not None else {})
    for batch in cost.batches:
        for context in cost.contexts:
            where = f"generation at {batch} x {context}"
            prompts = _prompts(subjects, examples, cost, batch, context)
            if isinstance(prompts, str):
                yield f"{where}: not measured, {prompts}"
                continue
            try:
                row = _measure(subjects, prompts, cost, batch, context)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                yield f"{where}: not measured, out of memory"
                continue
            yield row
            if row.cv > NOISY:
                yield f"{where}: noisy, coefficient of variation {row.cv:.0%}"


def _prompts(
    subjects: Mapping[str, EvaluatedModel], examples: shapes.Batches, cost: Cost, batch: int, context: Length
) -> dict[str, list[dict[str, torch.Tensor]]] | str:
    """The prompts of each model, or why there are none."""
    found = {}
    for name, subject in subjects.items():
        model = subject.model
        if not model.can_generate():
            return f"{type(model).__name__} cannot generate"
        batches = examples.batches(model, subject.processor, batch, cost.batches_a_round(batch))
        source = batches or examples.batches(model, subject.processor, 1, cost.batches_a_round(1))
        kept = [{k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask")} for inputs in source]
        room = _room(model, cost.new_tokens)
        if context != "data":
            if room is not None and context > room:
                return f"{subject.name} takes at most {room} tokens before {cost.new_tokens} new ones"
            kept = [shapes.fixed_batch(kept, batch, context)]
        elif not batches:
            return f"the split holds fewer than {batch} examples"
        found[name] = [{k: v[:, :room] for k, v in inputs.items()} for inputs in kept]
    return found


def _room(model: PreTrainedModel, new_tokens: int) -> int | None:
    """Longest prompt that leaves positions for the new tokens; an encoder's prompt does not share them."""
    limit = shapes.most_positions(model)
    return limit - (0 if model.config.is_encoder_decoder else new_tokens) if limit else None


def _measure(
    subjects: Mapping[str, EvaluatedModel],
    prompts: Mapping[str, list[dict[str, torch.Tensor]]],
    cost: Cost,
    batch: int,
    context: Length,
) -> Generation:
    lengths = (1, cost.new_tokens)
    runners = {
        (name, tokens): Runner(_generator(subject.model, tokens), prompts[name][: cost.prompts_a_round])
        for name, subject in subjects.items()
        for tokens in lengths
    }
    samples = interleave(runners, cost.effort, synchronize=synchronizer(next(iter(subjects.values())).device))
    first = {name: samples[name, 1] for name in subjects}
    each = {name: (samples[name, cost.new_tokens] - samples[name, 1]) / (cost.new_tokens - 1) for name in subjects}
    ratios: dict[str, Any] = {}
    if BASELINE in subjects:
        for field, seconds in (("first_token", first), ("per_token", each)):
            ratio, interval = ratio_interval(seconds[MODEL].sum(1), seconds[BASELINE].sum(1))
            ratios |= {f"{field}_ratio": ratio, f"{field}_ratio_ci95": interval}
    return Generation(
        batch=batch,
        context=context,
        new_tokens=cost.new_tokens,
        first_token_ms=1000 * float(np.median(first[MODEL])),
        per_token_ms=1000 * float(np.median(each[MODEL])),
        tokens_per_s=batch / float(np.median(each[MODEL])),
        cv=variation(samples[MODEL, cost.new_tokens]),
        **ratios,
    )


def _generator(model: PreTrainedModel, tokens: int) -> Callable[[dict[str, torch.Tensor]], Any]:
    """Greedy decoding of exactly this many tokens."""
    pad = model.config.pad_token_id if model.config.pad_token_id is not None else 0
    generate: Any = model.generate

    def run(inputs: dict[str, torch.Tensor]) -> Any:
        return generate(
            **inputs,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=pad,
        )

    return run
