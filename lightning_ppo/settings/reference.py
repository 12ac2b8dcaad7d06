"""Every setting with its type, default and meaning, read from the dataclasses and the strings under their fields."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from lightning_ppo.settings import sections as config
from lightning_ppo.settings.loading import to_container


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        key: Dotted name, as on the command line.
        type: Its type as written in the source.
        default: Its default as plain data.
        meaning: Its docstring in the source.
    """

    key: str
    type: str
    default: Any
    meaning: str


@dataclass(frozen=True)
class Section:
    """Settings that belong together.

    Attributes:
        key: Dotted name, empty for the top level.
        meaning: Its docstring in the source.
        settings: Its settings.
    """

    key: str
    meaning: str
    settings: tuple[Setting, ...]


def sections() -> list[Section]:
    """Return all sections in the order of the source, the top level first."""
    return list(_sections(config.Config, ""))


def settings() -> list[Setting]:
    """Return all settings in the order of the source."""
    return [setting for section in sections() for setting in section.settings]


def _sections(cls: type, key: str) -> Iterator[Section]:
    texts = _field_texts(cls)
    prefix = f"{key}." if key else ""
    values, own, below = cls(), [], []
    for field in fields(cls):
        value = getattr(values, field.name)
        if is_dataclass(value):
            below.append((type(value), f"{prefix}{field.name}"))
        else:
            annotation, meaning = texts[field.name]
            own.append(Setting(f"{prefix}{field.name}", annotation, to_container(value), meaning))
    yield Section(key, inspect.getdoc(cls) or "", tuple(own))
    for child, name in below:
        yield from _sections(child, name)


def _field_texts(cls: type) -> dict[str, tuple[str, str]]:
    """Return annotation and docstring of each field; the string that follows a field is its docstring."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts: dict[str, tuple[str, str]] = {}
    for statement, following in zip(body.body, [*body.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            match following:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    pass
                case _:
                    text = ""
            texts[statement.target.id] = (ast.unparse(statement.annotation), " ".join(text.split()))
    return texts


def to_markdown() -> str:
    """Return all sections as Markdown, one heading and one table each."""
    return "\n".join(_section_markdown(section) for section in sections())


def _section_markdown(section: Section) -> str:
    meaning = section.meaning.split("\n\n")[0].replace("\n", " ")
    lines = [f"## `{section.key}`" if section.key else "## Top level", "", meaning, ""]
    if section.settings:
        lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{s.key}` | `{s.type}` | `{yaml_text(s.default)}` | {_text(s.meaning)} |".replace(
                " | None`", " \\| None`"
            )
            for s in section.settings
        ]
    return "\n".join([*lines, ""])


def _text(meaning: str) -> str:
    """Return text in which Markdown sees no HTML."""
    return meaning.replace("<", "\\<")


def yaml_text(value: Any) -> str:
    """Return plain data as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {yaml_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(yaml_text, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
