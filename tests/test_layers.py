"""How layers are written."""

import pytest

from effitrans.errors import UsageError
from effitrans.layers import check_numbers, layer_numbers, matches, parse_layers


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("0-3,5", (0, 1, 2, 3, 5)),
        (" 2 , 0 - 1 ", (2, 0, 1)),
        ("2-2", (2,)),
        (7, (7,)),
        ([5, 0], (5, 0)),
        (["0-1", 3], (0, 1, 3)),
        (range(2), (0, 1)),
        ("decoder.layers.*.self_attn", ("decoder.layers.*.self_attn",)),
        ("0,encoder.layer.[12]", (0, "encoder.layer.[12]")),
    ],
)
def test_what_is_written(given, named):
    assert parse_layers(given) == named


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("3-1", "the span '3-1' runs backwards: write 1-3"),
        ("0-3,2", "names 2 twice"),
        ([1, 1], "names 1 twice"),
        (["a.*", "a.*"], "names 'a.\\*' twice"),
        ("", "received ''"),
        ([], "received an empty list"),
        ("0,,1", "received '0,,1'"),
        ("-1", "received '-1', expected numbers from 0 such as 0-3,5, or module paths"),
        (-1, "received -1"),
        ("1--3", "received '1--3'"),
        ("0;1", "received '0;1'"),
        (1.0, "received 1.0"),
        (True, "received True"),
        (None, "received None"),
        ("0-10000", "numbers up to 9999"),
        ("99999999999999999999", "numbers up to 9999"),
        (10_000, "received 10000"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(UsageError, match=f"^skip: .*{message}"):
        parse_layers(given, "skip")


def test_numbers_alone():
    assert layer_numbers("1,3-4") == (1, 3, 4)
    with pytest.raises(UsageError, match="received 'encoder', expected numbers from 0 such as 0-3,5"):
        layer_numbers("encoder")


def test_numbers_that_no_layer_has():
    check_numbers([0, 2], 3, "the encoder")
    with pytest.raises(UsageError, match="the encoder has no layer 3: it has 3, numbered from 0 to 2"):
        check_numbers([0, 3], 3, "the encoder")


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("layer", "encoder.layer.1", True),
        ("encoder.*", "encoder.layer.1", True),
        ("l*r", "a.layer", True),
        ("lay", "encoder.layer.1", False),
        ("encoder.layer.1", "encoder.layer.10", False),
        ("encoder.layer.1", "encoder.layer.1.attention", True),
    ],
)
def test_patterns_name_modules_and_those_that_hold_them(pattern, path, fits):
    assert matches(pattern, path) is fits
