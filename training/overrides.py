"""`field=value` on the command line: a recipe with some of its fields changed.

A field of a field is named with a dot: `stage1.steps=100`, `stage2.weights.gamma=0.5`.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar, Union

Recipe = TypeVar("Recipe")
_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def with_overrides(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """The recipe with `a.b=value` applied; all at once, so that fields which must agree can be changed together.

    Raises:
        ValueError: no such field, a value of another type, or one that the recipe refuses.
    """
    changes: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        path = name.strip().split(".")
        if not separator or not all(path):
            raise ValueError(f"{assignment!r} is no field=value, such as stage1.steps=100")
        node = changes
        for part in path[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ValueError(f"{name.strip()}: {part} is given a value of its own already")
        if path[-1] in node:
            raise ValueError(f"{name.strip()} is given twice")
        node[path[-1]] = text.strip()
    return _changed(recipe, changes, "")


def _changed(recipe: Any, changes: dict[str, Any], prefix: str) -> Any:
    types_of = typing.get_type_hints(type(recipe))
    names = [field.name for field in dataclasses.fields(recipe)]
    values: dict[str, Any] = {}
    for name, change in changes.items():
        full = prefix + name
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else f"; there are {', '.join(names)}"
            raise ValueError(f"the recipe has no field {full!r}{hint}")
        value = getattr(recipe, name)
        if dataclasses.is_dataclass(value):
            if not isinstance(change, dict):
                fields = ", ".join(f"{full}.{field.name}" for field in dataclasses.fields(value))
                raise ValueError(f"{full} is a group of fields: set one of {fields}")
            values[name] = _changed(value, change, f"{full}.")
        elif isinstance(change, dict):
            raise ValueError(f"{full} has no field {next(iter(change))!r}: it is a value itself, {value!r}")
        else:
            try:
                values[name] = _parsed(change, types_of[name])
            except ValueError as error:
                raise ValueError(f"{full}={change}: {error}") from None
    try:
        return dataclasses.replace(recipe, **values)
    except ValueError as error:
        raise ValueError(f"{prefix[:-1]}: {error}" if prefix else str(error)) from None


def _parsed(text: str, kind: Any) -> Any:
    """`text` as a value of a field's type."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        if type(None) in inner and text.lower() in ("none", "null"):
            return None
        return _parsed(text, next(option for option in inner if option is not type(None)))
    if origin is tuple:
        parts = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
        if Ellipsis not in inner and len(parts) != len(inner):
            raise ValueError(f"it takes {len(inner)} values with commas between")
        each = [inner[0]] * len(parts) if Ellipsis in inner else inner
        return tuple(_parsed(part, own) for part, own in zip(parts, each, strict=True))
    if kind is bool:
        if text.lower() not in _TRUTHS:
            raise ValueError("it takes true or false")
        return _TRUTHS[text.lower()]
    if kind is str:
        return text
    assert kind in (int, float), kind
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"it takes a {'whole number' if kind is int else 'number'}") from None
