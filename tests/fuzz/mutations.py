"""Small damages to values, texts and files, drawn with a seed."""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, False, "", " ", [], {}, [[]], [None], {"a": 1}, {"": None}, ["a", "a"], [1, "b"]),
    *(0, -1, 1, 2, 3, 7, 0.5, -0.5, 1e-30, 1e30, 1e308, 10**9, 10**12, 2**32, 2**63, -(2**63), 10**30),
    *("yes", "no", "0", "-1", "1.5", "1e9", "nan", "inf", "none", "null", "0-3", "3-1", "0,0", "best:0", "layers=99"),
    *(
        "layers=",
        "base",
        "base:hidden_size=0",
        "minilm2",
        "int8-dynamic",
        "nf4",
        "local",
        "linear",
        "taylor",
        "response",
    ),
    *(
        "/dev/null",
        "/dev/zero",
        "/proc/self/mem",
        "/proc",
        ".",
        "..",
        "~",
        "~nobody/x",
        "missing/folder",
        "a\nb",
        "a|b<c>`d`",
        "ü" * 40,
    ),
    *("x" * 5000, "train", "test", "accuracy", "f1", "label", "sentence", "[MASK]", "$(id)", "{{x}}", "%s", "\x7f"),
)
"""Values that somebody writes by mistake, or a program in a bad moment."""

Path_ = tuple[Any, ...]


def places(value: Any, path: Path_ = ()) -> list[Path_]:
    """The way to every value within nested mappings and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in inner for found in [(*path, key), *places(item, (*path, key))]]


def damaged(value: Any, draw: random.Random) -> Any:
    """A copy of nested mappings and lists in which one to three values are others, missing, doubled or renamed."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if not (found := places(value)):
            return value
        *way, last = draw.choice(found)
        holder = value
        for key in way:
            holder = holder[key]
        draw.choice(_TREE)(holder, last, draw)
    return value


def _replace(holder: Any, key: Any, draw: random.Random) -> None:
    holder[key] = draw.choice(ODD)


def _remove(holder: Any, key: Any, draw: random.Random) -> None:
    del holder[key]


def _double(holder: Any, key: Any, draw: random.Random) -> None:
    if isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        holder[f"{key}{draw.choice('s_2')}"] = copy.deepcopy(holder[key])


def _rename(holder: Any, key: Any, draw: random.Random) -> None:
    if isinstance(holder, dict):
        name = str(key)
        holder[name[:-1] or "x"] = holder.pop(key)


def _wrap(holder: Any, key: Any, draw: random.Random) -> None:
    holder[key] = draw.choice(([holder[key]], {"value": holder[key]}, str(holder[key])))


_TREE: tuple[Callable[[Any, Any, random.Random], None], ...] = (
    _replace,
    _replace,
    _replace,
    _remove,
    _double,
    _rename,
    _wrap,
)


def damaged_text(text: str, draw: random.Random) -> str:
    """A text with a part cut out, doubled or replaced by what its format does not allow."""
    start = draw.randrange(max(1, len(text)))
    end = min(len(text), start + draw.choice((1, 1, 5, 40)))
    part = draw.choice(
        (
            "",
            text[start:end] * 2,
            "\t",
            "\x00",
            "{",
            "]",
            ": ",
            "\n- ",
            "!!python/name:os.system ",
            "&a ",
            "*a",
            "\ud7ff",
        )
    )
    return text[:start] + part + text[end:]


def damage_file(path: Path, draw: random.Random) -> None:
    """Remove, cut, empty, flip, fill up, or replace a file by a folder, a link to itself or a pickle."""
    content = path.read_bytes()
    kind = draw.choice(("remove", "cut", "empty", "flip", "flip", "head", "grow", "folder", "loop", "pickle", "text"))
    path.unlink()
    if kind == "cut":
        path.write_bytes(content[: draw.randrange(len(content) or 1)])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind in ("flip", "head"):
        changed = bytearray(content or b"x")
        for _ in range(draw.choice((1, 4, 64))):
            changed[draw.randrange(min(len(changed), 16) if kind == "head" else len(changed))] = draw.randrange(256)
        path.write_bytes(bytes(changed))
    elif kind == "grow":
        path.write_bytes(content + draw.randbytes(draw.choice((1, 1000))))
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "pickle":
        path.write_bytes(b"\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.")
    elif kind == "text":
        path.write_text("<html>404 not found</html>")
