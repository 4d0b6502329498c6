"""What fields a recipe has: name, type, default, and the documentation that stands under each."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

WIDTH = 110


class Field(NamedTuple):
    name: str
    """as it is given on the command line, with dots"""
    kind: str
    default: str
    text: str


def fields_of(recipe: Any, prefix: str = "") -> Iterator[Field]:
    """All fields of a dataclass and of those in it; the defaults are this recipe's values."""
    kinds = typing.get_type_hints(type(recipe))
    texts = documentation(type(recipe))
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from fields_of(value, f"{prefix}{field.name}.")
        else:
            yield Field(prefix + field.name, _kind(kinds[field.name]), _shown(value), texts.get(field.name, ""))


def listing(recipe: Any) -> str:
    """The same as text, a paragraph a field."""
    lines = []
    for name, kind, default, text in fields_of(recipe):
        lines.append(f"{name}={default}  ({kind})")
        lines += textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def documentation(kind: type) -> dict[str, str]:
    """Field -> the string under it, of a class and its parents; the youngest one that says something counts."""
    found: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        if dataclasses.is_dataclass(parent):
            found |= _own_documentation(parent)
    return found


def _own_documentation(kind: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            value = following.value if isinstance(following, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[statement.target.id] = " ".join(value.value.split())
    return found


def _kind(kind: Any) -> str:
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if part is type(None) else _kind(part) for part in inner)
    if origin is tuple:
        each = [part for part in inner if part is not Ellipsis]
        return f"{_kind(each[0])}s with commas between" if Ellipsis in inner else f"{len(each)} {_kind(each[0])}s"
    return names[kind]


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
