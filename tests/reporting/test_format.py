"""Numbers as people read them."""

import pytest

from effitrans.reporting import format


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format.quality("accuracy", 0.8956), "89.6 %"),
        (format.quality("accuracy", -0.004, sign=True), "−0.4"),
        (format.quality("accuracy", -0.0001, sign=True), "0.0"),
        (format.quality("pearson", 0.87654), "0.877"),
        (format.quality("bleu", 31.26), "31.3"),
        (format.quality("accuracy", None), "–"),
        (format.quality_interval("accuracy", (0.882, 0.909)), "88.2–90.9"),
        (format.quality_interval("accuracy", (-0.01, 0.002), sign=True), "−1.0 to +0.2"),
        (format.quality_interval("accuracy", None), ""),
        (format.speedup(0.21), "4.8×"),
        (format.speedup(None), "–"),
        (format.speedup_interval((0.2, 0.25)), "4.0–5.0"),
        (format.milliseconds(0.8123), "0.812 ms"),
        (format.milliseconds(1240.4), "1,240 ms"),
        (format.scaled(90_868_376, "B"), "90.9 MB"),
        (format.scaled(1.24e9), "1.24 G"),
        (format.scaled(512, "B"), "512 B"),
        (format.scaled(None), "–"),
        (format.percent(0.9853), "98.5 %"),
        (format.shape(32, "data"), "32 × real data"),
    ],
)
def test_text(text, expected):
    assert text == expected
