"""Values from YAML that people write: files of specs, and what follows the sign of ``--set key=value``.

In: text. Out: plain values. PyYAML reads version 1.1, in which ``2:8`` is 128, ``1e-3`` is text and ``on`` a switch; numbers
and switches are read here as version 1.2 has them, in which they are text, a number and text.
"""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from genworker.errors import UsageError

_MAX_YAML_CHARACTERS = 2**16


class _Loader(yaml.SafeLoader):
    """Plain values alone, with the numbers and switches of YAML 1.2; underscores may part digits, as in Python."""


_KINDS = ("bool", "int", "float")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag.rpartition(":")[2] not in _KINDS]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern, _firsts in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^({_pattern})$"), list(_firsts))


def read_mapping(path: Path, what: str = "spec") -> dict[str, Any]:
    """The keys and values of a YAML file, ``what`` it is for messages. Raises UsageError when it is no mapping in YAML."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_YAML_CHARACTERS + 1)
    except (UnicodeDecodeError, OSError) as err:
        raise UsageError(f"{what} {path}: cannot be read as YAML: {err}") from err
    values = read_value(text, f"{what} {path}: the file")
    if not isinstance(values, dict):
        raise UsageError(
            f"{what} {path}: holds a {type(values).__name__} at the top; it has to be a mapping of keys to values"
        )
    return values


def read_value(text: str, where: str) -> Any:
    """The value of YAML text; ``where`` names it in messages.

    Raises:
        UsageError: it is not YAML, too long, has a key twice, or holds a value that its aliases (``*name``) blow up.
    """
    too_long = UsageError(f"{where} is longer than {_MAX_YAML_CHARACTERS} characters, its aliases written out")
    if len(text) > _MAX_YAML_CHARACTERS:
        raise too_long
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None and _num_characters(node, {}) > _MAX_YAML_CHARACTERS:
            raise too_long
        if node is not None and (twice := _key_twice(node)) is not None:
            raise UsageError(f"{where} has {twice}; keep one of the two")
        return None if node is None else loader.construct_document(node)
    # What does not fit its tag, such as a date in month 13 or a `!!int` of no digits, is answered with many types.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as err:
        raise UsageError(f"{where} is not YAML: {err}") from err


def _key_twice(root: yaml.Node) -> str | None:
    """A key that one mapping has twice, of which YAML's reader would keep the last without a word."""
    seen, waiting = {id(root)}, [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.ScalarNode):
            continue
        keys: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value) if isinstance(node, yaml.MappingNode) else ():
            name, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and name in keys:
                return f"the key {key.value!r} twice, in lines {keys[name]} and {line}"
            keys[name] = line
        parts = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        for part in parts:
            if id(part) not in seen:
                seen.add(id(part))
                waiting.append(part)
    return None


def _num_characters(node: yaml.Node, known: dict[int, int]) -> int:
    """How long a value is once its aliases are written out; more than any limit for one that contains itself."""
    if id(node) not in known:
        known[id(node)] = _MAX_YAML_CHARACTERS + 1
        parts = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(1 if isinstance(part, str) else _num_characters(part, known) for part in parts)
    return known[id(node)]
