"""What is wrong with a setting or a YAML file, in the words of a person instead of OmegaConf's and PyYAML's."""

import json
import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf.errors import (
    GrammarParseError,
    InterpolationKeyError,
    OmegaConfBaseException,
)
from yaml import MarkedYAMLError

from lightning_ppo.support.errors import one_line

_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
_PLURALS = {int: "integers", float: "numbers", str: "texts"}
_REFERENCE = "${...} refers to another setting, such as ${rollout.num_steps}; for the text itself write \\${"
TAB = "\t"
_TAB = "a tab; YAML is indented with spaces"
_CAUSES = (
    ("found duplicate key", "`{name}` stands there twice; keep one"),
    ("found duplicate anchor", "the anchor `{name}` stands there twice; keep one"),
    (
        "mapping values are not allowed",
        "a colon where no setting can begin; mend the indentation, or put text in quotes",
    ),
    ("expected <block end>", "the indentation is not that of the lines above"),
    ("did not find expected key", "the indentation is not that of the lines above"),
    ("could not find expected ':'", "expected `name: value`"),
    ("expected ',' or", "a comma is missing, or a { or [ is not closed"),
    ("expected the node content", "a comma is missing, or a { or [ is not closed"),
    ("while scanning a quoted scalar", "a quote is not closed"),
    ("found undefined alias", "`*` begins a reference to an anchor that is not there; put text in quotes"),
    ("that cannot start any token", "a character that no value begins with; put text in quotes"),
    ("could not determine a constructor", "`!` begins a type that is not known; put text in quotes"),
)


def yaml_mistake(error: Exception, file: str = "") -> str:
    """Return what is wrong with YAML text.

    Args:
        error: What reading it raised.
        file: Where the text is from; it stands before the cause, with the line where that is known.
    """
    mark = getattr(error, "problem_mark", None)
    if not file or mark is None:
        return f"{file}: {_cause(error)}" if file else _cause(error)
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    text = lines[mark.line] if mark.line < len(lines) else ""
    indent = text[: len(text) - len(text.lstrip())]
    return f"{file}, line {mark.line + 1}: {_TAB if TAB in indent else _cause(error)}"


def _cause(error: Exception) -> str:
    if isinstance(error, GrammarParseError):
        return _REFERENCE
    if isinstance(error, UnicodeError):
        return "it is not UTF-8 text"
    if isinstance(error, OSError):
        return one_line(error.strerror or error)
    if not isinstance(error, MarkedYAMLError):
        return one_line(error)
    said = one_line(f"{error.context or ''} {error.problem or ''}")
    name = said.rpartition(" ")[2].strip("'\"")
    return next((cause for words, cause in _CAUSES if words in said), said).replace("{name}", name)


def setting_mistake(error: OmegaConfBaseException, section: type, given: Any) -> str:
    """Return `KEY: what is wrong` for what merging or reading settings raised.

    Args:
        error: What was raised.
        section: The dataclass that the settings are of.
        given: The settings as plain data.
    """
    key = str(error.full_key or "")
    found = _as_yaml(value_at(given, key))
    if isinstance(error, InterpolationKeyError):
        return f"{key}: {found} refers to a setting that does not exist"
    if isinstance(error, GrammarParseError):
        return f"{key}: {_REFERENCE}"
    return f"{key}: expected {expected(section, key)}, got {found}"


def _as_yaml(value: Any) -> str:
    """Return null, true and false as YAML has them, and anything else as Python does."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _names(key: str) -> list[str]:
    return [name for name in key.replace("[", ".").replace("]", "").split(".") if name]


def value_at(tree: Any, key: str) -> Any:
    """Return the value under a dotted name, such as `policy.hidden_sizes[1]`; the nearest above where there is none."""
    for name in _names(key):
        if isinstance(tree, Mapping) and name in tree:
            tree = tree[name]
        elif isinstance(tree, list) and name.isdigit() and int(name) < len(tree):
            tree = tree[int(name)]
        else:
            break
    return tree


def declared(section: type, key: str) -> Any:
    """Return the type that a setting is declared with, `Any` below free mappings."""
    hint: Any = section
    for name in _names(key):
        if is_dataclass(hint) and isinstance(hint, type):
            hint = get_type_hints(hint).get(name, Any)
        else:
            inner = [argument for argument in _alternatives(hint) if get_origin(argument) is list]
            hint = get_args(inner[0])[0] if inner else Any
    return hint


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def expected(section: type, key: str) -> str:
    """Return what kind of value a setting takes, such as `an integer or null`."""
    words = []
    for hint in _alternatives(declared(section, key)):
        origin, arguments = get_origin(hint), get_args(hint)
        if hint is type(None):
            words.append("null")
        elif origin is list:
            words.append(f"a list of {_PLURALS[arguments[0]]}" if arguments[0] in _PLURALS else "a list")
        elif origin is dict or is_dataclass(hint):
            words.append("a mapping of settings")
        else:
            words.append(_NAMES.get(hint, "plain data"))
    return " or ".join(words)


def whole_numbers(section: type, tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the numbers such as 1e6 that stand where an integer is declared, as integers by dotted name."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        hint = declared(section, f"{prefix}{name}")
        if isinstance(value, Mapping) and is_dataclass(hint):
            found |= whole_numbers(section, value, f"{prefix}{name}.")
        elif int in _alternatives(hint) and _is_whole(value):
            found[f"{prefix}{name}"] = int(value)
        elif any(get_args(kind) == (int,) for kind in _alternatives(hint)) and isinstance(value, list):
            found[f"{prefix}{name}"] = [int(item) if _is_whole(item) else item for item in value]
    return found


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()
