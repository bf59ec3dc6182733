"""YAML as recipes, studies, tasks and `--set` hold it: plain values, within bounds.

Values are read by the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2, section 10.3), as JSON's users expect:
`true` and `false` alone are booleans, so that a label `no` stays a text; `1e-3` is a number; dates are texts. What a
recipe has no use for is refused: keys that stand twice, numbers that are not finite, tags, and files whose aliases
unfold to more than a person would write.
"""

import math
import re
from pathlib import Path
from typing import Any

import yaml

from effitrans.errors import UsageError

CHARACTERS, DEPTH, VALUES = 1_000_000, 50, 100_000
"""The longest file, the deepest nesting and the most values, those that aliases repeat counted."""

_TOO_DEEP = f"nested too deeply, at most {DEPTH} levels are read"
_PREFIX = "tag:yaml.org,2002:"
_TAGS = {_PREFIX + name for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}


class _Problem(yaml.MarkedYAMLError):
    """What is wrong with a node."""

    def __init__(self, problem: str, node: yaml.Node) -> None:
        super().__init__(problem=problem, problem_mark=node.start_mark)


class _Loader(yaml.SafeLoader):
    """The core schema."""

    yaml_implicit_resolvers = {}  # noqa: RUF012, not those of YAML 1.1

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        self._check_depth(self.flow_level)
        super().fetch_flow_collection_start(token)

    def add_indent(self, column: int) -> bool:
        self._check_depth(len(self.indents))
        return super().add_indent(column)

    def _check_depth(self, depth: int) -> None:
        """Refuse deep nesting while it is read: a tree of it would be beyond Python's recursion."""
        if depth > DEPTH:
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=self.get_mark())

    def construct_int(self, node: yaml.ScalarNode) -> int:
        text = node.value
        return int(text, 10 if text.lstrip("+-").isdigit() else 0)

    def construct_float(self, node: yaml.ScalarNode) -> float:
        value = float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if not math.isfinite(value):
            raise _Problem(f"{node.value} is no finite number", node)
        return value


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would take for something else than a text."""


for _name, _pattern, _first in (
    ("merge", "<<", "<"),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(_PREFIX + _name, re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor(_PREFIX + "int", _Loader.construct_int)
_Loader.add_constructor(_PREFIX + "float", _Loader.construct_float)


def parse_yaml(text: str, where: str) -> Any:
    """The value that a YAML text holds.

    Args:
        text: one document.
        where: what is read ("task file my.yaml"), put in front of the message.

    Raises:
        UsageError: no YAML, a key that stands twice, a tag, a number that is not finite, or more than is read.

    >>> parse_yaml("{labels: [yes, no], learning_rate: 1e-3}", "example")
    {'labels': ['yes', 'no'], 'learning_rate': 0.001}
    """
    if len(text) > CHARACTERS:
        raise UsageError(f"{where} has {len(text):,} characters: at most {CHARACTERS:,} are read")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, 0, [0])
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise UsageError(f"{where} is not valid YAML: {line}{error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: Path, where: str, keys: str) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Args:
        path: the file.
        where: what it is ("task file my.yaml"), for messages.
        keys: what it should hold, for messages.

    Raises:
        UsageError: as `parse_yaml`; a file that is too long, not text, or holds no mapping.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not valid YAML: it is not UTF-8 text ({error.reason})") from None
    values = parse_yaml(text, where)
    if not isinstance(values, dict):
        raise UsageError(f"{where} holds no mapping: expected keys such as {keys}")
    return values


def dump_yaml(value: Any) -> str:
    """YAML that `parse_yaml` reads back to the same plain values, mappings in their order.

    Raises:
        UsageError: something that is no plain value.
    """
    try:
        return yaml.dump(value, Dumper=_Dumper, sort_keys=False)
    except yaml.representer.RepresenterError as error:
        raise UsageError(f"expected texts, numbers, lists and mappings, received {error.args[1]!r}") from None


def _check(node: yaml.Node, depth: int, seen: list[int]) -> None:
    """Refuse what the module's docstring names, in the tree of nodes, before any value is made."""
    seen[0] += 1
    if depth > DEPTH:
        raise _Problem(_TOO_DEEP, node)
    if seen[0] > VALUES:
        raise _Problem(f"at most {VALUES:,} values are read, repeated aliases counted", node)
    if node.tag not in _TAGS:
        raise _Problem(f"the tag {node.tag.removeprefix(_PREFIX)} is not read", node)
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check(item, depth + 1, seen)
    elif isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Problem("a key is a text or a number", key)
            if key.value in keys:
                raise _Problem(f"the key {key.value!r} stands twice", key)
            keys.add(key.value)
            _check(value, depth + 1, seen)
