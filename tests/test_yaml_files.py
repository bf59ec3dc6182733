"""What YAML may hold, and that nothing a file holds does more than end in a message."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effitrans.errors import UsageError
from effitrans.recipes import load_recipe
from effitrans.tasks import load_task
from effitrans.yaml_files import CHARACTERS, dump_yaml, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[yes, no, on, off, y, n]", ["yes", "no", "on", "off", "y", "n"]),
        ("[true, False, NULL, ~]", [True, False, None, None]),
        ("[1e-3, 1., .5, -2E+3]", [0.001, 1.0, 0.5, -2000.0]),
        ("[010, 0o17, 0x1f, -3]", [10, 15, 31, -3]),
        ("[12:30, 2024-01-01, 1_000]", ["12:30", "2024-01-01", "1_000"]),
        ("{a: &x {b: 1}, c: {<<: *x, d: 2}, e: *x}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}, "e": {"b": 1}}),
        ("", None),
    ],
)
def test_values(text, expected):
    assert parse_yaml(text, "text") == expected


def _bomb() -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    return "\n".join(lines)


BAD = {
    "twice": ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands twice"),
    "twice-nested": ("a: [{b: 1, b: 2}]", "the key 'b' stands twice"),
    "infinite": ("a: .inf", ".inf is no finite number"),
    "nan": ("a: .NaN", ".NaN is no finite number"),
    "overflow": ("a: 1e999", "1e999 is no finite number"),
    "digits": ("a: " + "9" * 5000, "digits"),
    "python-tag": ("a: !!python/object/apply:os.system [true]", "the tag python/object/apply:os.system is not read"),
    "set": ("!!set {a, b}", "the tag set is not read"),
    "local-tag": ("!env HOME", "the tag !env is not read"),
    "wrong-tag": ("!!int x", "invalid literal"),
    "bomb": (_bomb(), "repeated aliases counted"),
    "cycle": ("&a [*a]", "at most 50 levels"),
    "lists": ("[" * 100_000, "at most 50 levels"),
    "blocks": ("- " * 100_000, "at most 50 levels"),
    "levels": ("[" * 60 + "]" * 60, "at most 50 levels"),
    "list-key": ("{[1]: 2}", "a key is a text or a number"),
    "nul": ("a: \x00", "#x0000"),
    "unclosed": ("[1, 2", "expected ',' or ']'"),
    "documents": ("- 1\n--- 2", "another document"),
    "alias": ("a: *b", "undefined alias"),
    "long": ("a" * (CHARACTERS + 1), "at most 1,000,000"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_what_is_refused_takes_no_time(text, message):
    start = time.process_time()
    with pytest.raises(UsageError) as raised:
        parse_yaml(text, "recipe my.yaml")
    assert message in str(raised.value)
    assert str(raised.value).startswith("recipe my.yaml ")
    assert time.process_time() - start < 5


@pytest.mark.parametrize("load", [load_recipe, load_task])
@pytest.mark.parametrize("name", ["twice", "bomb", "python-tag", "blocks"])
def test_recipes_and_tasks_are_read_so(load, name, tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text(BAD[name][0])
    with pytest.raises(UsageError, match="is not valid YAML"):
        load(path)
    path.write_bytes(b"name: \xff")
    with pytest.raises(UsageError, match="not UTF-8"):
        load(path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "file.yaml").write_text("name: x", encoding="utf-8-sig")
    assert read_yaml(tmp_path / "file.yaml", "file", "name") == {"name": "x"}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN | st.sampled_from(["1e-3", "no", "0o17", "12:30", "~", "<<", "2024-01-01", ".inf", "0x1"]))
def test_what_is_written_is_read_back(value):
    assert parse_yaml(dump_yaml(value), "text") == value


def test_only_plain_values_are_written():
    with pytest.raises(UsageError, match=r"expected texts, numbers, lists and mappings, received <object"):
        dump_yaml({"a": object()})
