"""What recipes ask of their fields."""

from __future__ import annotations


def require(right: bool, name: str, rule: str, value: object) -> None:
    """ValueError unless a field's value is right."""
    if not right:
        raise ValueError(f"recipe: {name} {rule}, got {value}")


def require_at_least(recipe: object, least: float, *names: str) -> None:
    """ValueError unless these fields are so large."""
    for name in names:
        value = getattr(recipe, name)
        require(value >= least, name, f"must be at least {least:g}", value)


def require_above_zero(recipe: object, *names: str) -> None:
    """ValueError unless these fields are positive."""
    for name in names:
        value = getattr(recipe, name)
        require(value > 0, name, "must be above 0", value)
