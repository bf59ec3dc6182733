"""Records made by hand, so that tests say exactly what is in them."""

from effitrans.evaluation.record import (
    Costs,
    Delta,
    Fidelity,
    Latency,
    LayerStructure,
    Provenance,
    Quality,
    Record,
    StepPlace,
    Structure,
    TaskReference,
    Throughput,
    Timing,
)


def make_record(
    model="student",
    *,
    accuracy=0.9,
    speed=1.0,
    bytes_on_disk=90_000_000,
    parameters=22_000_000,
    layers=6,
    heads=12,
    ffn=1536,
    bits=32.0,
    baseline=None,
    step=None,
    notes=(),
    **changes,
):
    """A plausible record; `speed` is the time relative to the baseline's."""
    n = 1821
    half = 1.96 * (accuracy * (1 - accuracy) / n) ** 0.5
    rows, rates = [], []
    for batch, length, base_ms in ((1, "data", 8.0), (32, "data", 95.0), (1, 128, 22.0), (32, 128, 553.0)):
        own = base_ms * speed
        others = {}
        if baseline is not None:
            interval = (speed * 0.98, speed * 1.02)
            others["baseline"] = Timing(
                p50_ms=base_ms, p90_ms=base_ms * 1.1, p99_ms=base_ms * 1.2, cv=0.02, ratio=speed, ratio_ci95=interval
            )
        rows.append(
            Latency(
                batch=batch,
                length=length,
                p50_ms=own,
                p90_ms=own * 1.1,
                p99_ms=own * 1.3,
                cv=0.02,
                runs=20,
                ratio_to_baseline=speed if others else None,
                ratio_ci95=(speed * 0.98, speed * 1.02) if others else None,
                mean_length=24.5 if length == "data" else 128.0,
                others=others,
                samples_ms=((own,),) * 20,
            )
        )
        rates.append(
            Throughput(batch=batch, length=length, items_per_s=1000 * batch / own, tokens_per_s=20_000 * batch / own)
        )
    fidelity = None
    if baseline is not None:
        name, reference = baseline
        delta = accuracy - reference
        fidelity = Fidelity(
            baseline=name,
            agreement=0.95,
            baseline_parameters=22_000_000,
            baseline_bytes_on_disk=90_000_000,
            kl=0.04,
            delta={
                "accuracy": Delta(
                    value=delta,
                    ci95=(delta - 0.01, delta + 0.01),
                    retained=accuracy / reference,
                    retained_ci95=(accuracy / reference - 0.01, accuracy / reference + 0.01),
                    p_value=0.03,
                )
            },
        )
    values = {
        "model": model,
        "task": TaskReference(
            name="sst2", version=1, split="test", fingerprint="ab12" * 16, kind="sequence-classification"
        ),
        "quality": {"accuracy": Quality(value=accuracy, ci95=(accuracy - half, accuracy + half), n=n)},
        "fidelity": fidelity,
        "cost": Costs(
            parameters=parameters,
            nonzero_parameters=parameters,
            bytes_on_disk=bytes_on_disk,
            bits_per_weight=8 * bytes_on_disk / parameters,
            flops=1_200_000_000,
            peak_memory_bytes=600_000_000,
            model_memory_bytes=150_000_000,
            latency=tuple(rows),
            throughput=tuple(rates),
            load_s=0.2,
        ),
        "provenance": Provenance(
            effitrans="0.1.0",
            torch="2.13.0",
            transformers="5.23.0",
            python="3.11.7",
            device="Some CPU (AVX512)",
            threads=2,
            dtype="float32",
            seed=0,
            recipe_sha256="cd" * 32,
            git_commit="0123456789abcdef",
            dirty=False,
            created="2026-01-02T03:04:05+00:00",
        ),
        "notes": tuple(notes),
        "step": step,
        "structure": Structure(
            architecture="BertForSequenceClassification",
            hidden_size=384,
            vocab_size=30522,
            embedding_parameters=11_720_448,
            embedding_bits=bits,
            layers=tuple(
                LayerStructure(
                    name=f"bert.encoder.layer.{i}",
                    heads=heads,
                    kv_heads=heads,
                    head_dim=32,
                    ffn=ffn,
                    bits=bits,
                    operator="full",
                )
                for i in range(layers)
            ),
        ),
    }
    return Record(**(values | changes))


def make_run():
    """Teacher, distilled, pruned and quantized: the records of a recipe."""
    teacher = ("train", 0.896)
    return [
        make_record("train", accuracy=0.896, step=StepPlace(index=0, name="train", verb="train")),
        make_record(
            "distill",
            accuracy=0.888,
            speed=0.52,
            layers=3,
            bytes_on_disk=69_000_000,
            parameters=17_300_000,
            baseline=teacher,
            step=StepPlace(index=1, name="distill", verb="distill"),
        ),
        make_record(
            "prune",
            accuracy=0.884,
            speed=0.40,
            layers=3,
            heads=8,
            ffn=1024,
            bytes_on_disk=58_000_000,
            parameters=14_600_000,
            baseline=teacher,
            step=StepPlace(index=2, name="prune", verb="prune"),
        ),
        make_record(
            "quantize",
            accuracy=0.883,
            speed=0.21,
            layers=3,
            heads=8,
            ffn=1024,
            bits=8.0,
            bytes_on_disk=15_000_000,
            parameters=14_600_000,
            baseline=teacher,
            step=StepPlace(index=3, name="quantize", verb="quantize"),
            notes=("latency at 1 x data: noisy, coefficient of variation 9%",),
        ),
    ]
