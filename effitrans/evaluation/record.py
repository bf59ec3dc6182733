"""The record: everything one evaluation measured, as one JSON object (schema version 1).

A figure that was not measured is null, never a guess. Reports and model cards are drawn from records alone.
Units are in the names: `_ms` milliseconds, `_s` seconds, `_bytes` bytes; probabilities and ratios are fractions.
"""

import json
from pathlib import Path
from typing import Any, Literal, Self

import pydantic

from effitrans.errors import UsageError
from effitrans.files import write_text

SCHEMA = 1

Interval = tuple[float, float]
"""Lower and upper end of a 95 % confidence interval."""

Length = int | Literal["data"]
"""Tokens an example, or "data": real examples of the task, each batch padded to its own longest."""

Mode = Literal["eager", "compiled"]
"""How a model runs: as it is, or compiled by `effitrans.optimize`."""


class Fields(pydantic.BaseModel):
    """Base of the record's parts: unknown keys are refused, fields are documented beneath."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, ser_json_inf_nan="null"
    )


class TaskReference(Fields):
    """Which data the figures belong to."""

    name: str
    version: int = 1
    split: str
    fingerprint: str
    """SHA-256 of the content of the split as it was scored."""
    kind: str | None = None
    """Task kind, such as "sequence-classification"."""
    dataset: str | None = None
    """Hub data set that the split was read from; null for local and generated data."""


class Quality(Fields):
    """One metric over the split."""

    value: float
    ci95: Interval | None
    """95 % interval: Wilson for proportions, else bootstrap over examples. Null where none is defined."""
    n: int
    """Number of examples."""


class Delta(Fields):
    """One metric of the model minus that of the baseline, on the same examples."""

    value: float
    ci95: Interval | None
    """95 % interval of the difference: Tango's score interval where each example is right or wrong, else by paired
    bootstrap."""
    retained: float | None = None
    """Fraction of the baseline's quality that is kept (for errors such as perplexity: baseline / model)."""
    retained_ci95: Interval | None = None
    """95 % interval: Nam and Blackwelder's score interval where each example is right or wrong, else by paired
    bootstrap."""
    p_value: float | None = None
    """McNemar's test, for metrics that are right or wrong on each example; below 0.05 where the intervals leave out
    difference 0 and ratio 1, and only there."""


class Flips(Fields):
    """Examples (row numbers in the split) on which model and baseline differ."""

    gained: tuple[int, ...] = ()
    """Wrong in the baseline, right in the model."""
    lost: tuple[int, ...] = ()
    """Right in the baseline, wrong in the model."""


class Change(Fields):
    """One example on which model and baseline differ, in full."""

    row: int
    """Row number in the split."""
    inputs: tuple[str | None, ...]
    """The texts, shortened; null for an image."""
    reference: str
    baseline: str
    """What the baseline predicted."""
    model: str
    """What the model predicted."""


class Fidelity(Fields):
    """How close the model is to the baseline, example by example."""

    baseline: str
    agreement: float | None
    """Fraction of examples with the same prediction."""
    kl: float | None
    """Mean KL(baseline || model) of the predicted class distributions, in nats."""
    delta: dict[str, Delta]
    flips: Flips | None = None
    changes: tuple[Change, ...] = ()
    """Some of the flips with their text: the first ten that were lost and the first ten that were gained."""
    cka: tuple[tuple[float, ...], ...] | None = None
    """Centred kernel alignment of hidden states: a row a layer of the model, an entry a layer of the baseline; the
    first of each is the embeddings."""
    baseline_parameters: int | None = None
    baseline_bytes_on_disk: int | None = None
    """Null where the baseline is only in memory."""


class Confusion(Fields):
    """How often each class was taken for which."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """A row a true class, an entry a predicted class."""


class Curve(Fields):
    """A curve as points."""

    x: tuple[float, ...]
    y: tuple[float, ...]


class Timing(Fields):
    """Latency of a model that was timed beside the one the record is about."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    cv: float
    ratio: float
    """Time of the record's model / time of this one; below 1 the record's model is faster."""
    ratio_ci95: Interval
    samples_ms: tuple[tuple[float, ...], ...] = ()


class Latency(Fields):
    """Latency of a forward pass at one shape.

    `ratio_to_baseline` is time / time of the baseline, paired by round: 0.25 is four times as fast.
    """

    batch: int
    """Examples in a batch."""
    length: Length
    """Tokens an example, or "data": real examples of the task, each batch padded to its own longest."""
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    cv: float | None
    """Coefficient of variation of the rounds (standard deviation / mean); above 0.05 the machine was noisy."""
    runs: int
    """Timed forward passes: rounds x batches per round."""
    ratio_to_baseline: float | None = None
    ratio_ci95: Interval | None = None
    mean_length: float | None = None
    """Mean padded length of the batches."""
    compiled: bool = False
    """Timed under `effitrans.optimize`."""
    others: dict[str, Timing] = {}
    """What was timed in turn with it: "baseline"; "model, eager" and "baseline, eager" beside compiled ones, and
    "baseline, compiled" where `Cost.optimize_baseline` asked for it."""
    samples_ms: tuple[tuple[float, ...], ...] = ()
    """Raw samples: one row a round, one entry a batch."""
    error: str | None = None
    """Why there is no figure at this shape, such as "out of memory"."""


class Throughput(Fields):
    """Rate at one shape, from the same samples as the latency."""

    batch: int
    length: Length
    items_per_s: float
    tokens_per_s: float | None
    """Tokens that are not padding, a second. Null for images."""


class Generation(Fields):
    """Greedy decoding after prompts of one shape: reading the prompt (prefill) apart from every later token (decode).

    Ratios are time / time of the baseline, paired by round: 0.25 is four times as fast.
    """

    batch: int
    context: Length
    """Tokens of the prompt, or "data": real ones."""
    new_tokens: int
    first_token_ms: float
    """Median time to the first token."""
    per_token_ms: float
    """Median time of each token after the first."""
    tokens_per_s: float
    """New tokens per second after the first, of the whole batch."""
    cv: float
    """Coefficient of variation of the rounds."""
    first_token_ratio: float | None = None
    first_token_ratio_ci95: Interval | None = None
    per_token_ratio: float | None = None
    per_token_ratio_ci95: Interval | None = None


class Costs(Fields):
    """What the model costs to keep and to run."""

    parameters: int | None = None
    """Weights, integer ones included; scales and other bookkeeping excluded; tied weights once."""
    nonzero_parameters: int | None = None
    bytes_on_disk: int | None = None
    """Size of the weight files. Null for a model that is only in memory."""
    bits_per_weight: float | None = None
    """Bits stored for each weight, scales included."""
    flops: int | None = None
    """Floating-point (and integer) operations of a forward pass over one example, mean over the data batches."""
    peak_memory_bytes: int | None = None
    """Peak resident memory of a fresh process that loads and runs the model (accelerator: its allocator's peak)."""
    model_memory_bytes: int | None = None
    """The part of that peak that came after importing the libraries."""
    latency: tuple[Latency, ...] | None = None
    throughput: tuple[Throughput, ...] | None = None
    generation: tuple[Generation, ...] | None = None
    """Null for models that do not generate."""
    load_s: float | None = None
    """Time of `from_pretrained` in a fresh process."""
    process: Literal["fresh", "calling"] | None = None
    """Where it was timed: in a process started for it, or in the one that called `evaluate`. Null if it was not."""
    model_mode: Mode | None = None
    """How the model ran when it was timed. Null if it was not."""
    baseline_mode: Mode | None = None
    """How the baseline ran that `ratio_to_baseline` is about."""
    energy_j: float | None = None
    """Joules an example at `energy_shape`, read from the counters of the processor that the model ran on."""
    energy_shape: tuple[int, Length] | None = None
    """Batch size and length at which the energy was measured."""


class Provenance(Fields):
    """Where the figures come from."""

    effitrans: str
    torch: str
    transformers: str
    python: str
    device: str
    threads: int
    dtype: str
    seed: int
    recipe_sha256: str | None
    git_commit: str | None
    dirty: bool | None
    created: str
    """UTC, ISO 8601."""


class LayerStructure(Fields):
    """The shape of one layer."""

    name: str
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    ffn: int | None = None
    """Width of the feed-forward network."""
    bits: float | None = None
    """Bits per weight of the layer's products (32 float32, 8 int8)."""
    operator: str | None = None
    """Attention operator."""


class Structure(Fields):
    """What the model is made of."""

    architecture: str
    hidden_size: int | None = None
    vocab_size: int | None = None
    embedding_parameters: int | None = None
    embedding_bits: float | None = None
    layers: tuple[LayerStructure, ...] = ()


class StepPlace(Fields):
    """Place of the model in a recipe."""

    index: int
    name: str
    verb: str


class StudyPlace(Fields):
    """Place of the model in a study, which repeats every variant with several seeds."""

    name: str
    variant: str
    baseline: str | None
    """The variant that the others are compared with."""
    seed: int


class Record(Fields):
    """One model, scored on one split of one task. Load with `Record.load(path)`, keep with `record.save(path)`."""

    schema_: Literal[1] = pydantic.Field(default=1, alias="schema")
    model: str
    task: TaskReference
    quality: dict[str, Quality]
    confusion: Confusion | None = None
    right: str | None = None
    """Which examples were predicted right, a bit each, from the first on, as hexadecimal digits (`numpy.packbits`)."""
    roc: Curve | None = None
    """False positive rate (x) and true positive rate (y) of a binary classifier."""
    fidelity: Fidelity | None = None
    cost: Costs | None = None
    provenance: Provenance
    notes: tuple[str, ...] = ()
    """What a reader must know: simulated passes, shapes left out, noisy rows, operators not counted."""
    step: StepPlace | None = None
    study: StudyPlace | None = None
    structure: Structure | None = None
    history: tuple[dict[str, Any], ...] = ()
    """Passes that made the model: verb, config, summary, version."""

    model_config = pydantic.ConfigDict(populate_by_name=True, serialize_by_alias=True)

    @classmethod
    def parse(cls, values: Any, where: str = "record") -> Self:
        """Check plain values (parsed JSON) and build the record.

        Raises:
            UsageError: another schema version, or values that do not fit, naming the field.
        """
        if not isinstance(values, dict) or "schema" not in values:
            raise UsageError(f'{where}: not a record: expected a JSON object with "schema": {SCHEMA}')
        if values["schema"] != SCHEMA:
            raise UsageError(
                f"{where}: record of schema {values['schema']!r}; this version of effitrans reads schema {SCHEMA}. "
                "Read it with the version that wrote it, or evaluate the model again."
            )
        try:
            return cls.model_validate(values)
        except pydantic.ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
            raise UsageError(f"{where}: {problems}") from None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a record.

        Raises:
            UsageError: no such file, no JSON, another schema, or fields that do not fit.
        """
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"record {path}: no such file")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"record {path}: not valid JSON ({error})") from None
        return cls.parse(values, where=f"record {path}")

    def to_json(self, samples: bool = True) -> str:
        """The record as indented JSON; `samples=False` leaves the raw timing samples out."""
        exclude = (
            None
            if samples
            else {"cost": {"latency": {"__all__": {"samples_ms": True, "others": {"__all__": {"samples_ms"}}}}}}
        )
        return _indented(self.model_dump(mode="json", by_alias=True, exclude=exclude))

    def save(self, path: str | Path) -> None:
        """Write the record as JSON, whole or not at all."""
        write_text(path, self.to_json() + "\n")


def _indented(value: Any, indent: int = 0) -> str:
    """JSON with one line for each field, and one for each list of numbers (raw samples stay compact)."""
    pad = " " * (indent + 2)
    if isinstance(value, dict) and value:
        body = ",\n".join(f"{pad}{json.dumps(k)}: {_indented(v, indent + 2)}" for k, v in value.items())
        return "{\n" + body + "\n" + " " * indent + "}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        body = ",\n".join(pad + _indented(item, indent + 2) for item in value)
        return "[\n" + body + "\n" + " " * indent + "]"
    return json.dumps(value, ensure_ascii=False)
