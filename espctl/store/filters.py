"""Which rows, in which order: names and values that a user typed, checked and turned into SQL conditions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, false, or_
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute

from esp.errors import InputError, UnknownNameError

Filters = Mapping[str, object]
"""Column -> the value it must have, or a list of values of which it must have one; None is "not set"."""

Where = Iterable[tuple[str, str, object]]
"""(column, one of `OPERATORS`, value); all must hold."""

LAST = "\U0010ffff"
"""The last letter: every text that begins with `x` lies from `x` to `x + LAST`, a range that an index can find."""

OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_NEEDS = {int: "a whole number", float: "a number", datetime: "a time such as 2026-01-31"}


def conditions(model: type[DeclarativeBase], names: Sequence[str], filters: Filters, where: Where) -> list[Any]:
    """One condition per entry of `filters` and `where`, on columns of `model` that are in `names`.

    Raises:
        UnknownNameError: a column or an operator that does not exist; the hint names the closest.
        InputError: a value that the column cannot have.
    """
    found = [_one_of(column(model, names, name), value) for name, value in filters.items()]
    for name, sign, value in where:
        if sign not in OPERATORS:
            raise UnknownNameError("comparison", sign, OPERATORS)
        attribute = column(model, names, name)
        found.append(OPERATORS[sign](attribute, converted(attribute, value)))
    return found


def order(model: type[DeclarativeBase], names: Sequence[str], sort: str) -> list[Any]:
    """Order by a column, descending when `-` stands before its name; ties by the primary key in the same direction."""
    attribute = column(model, names, sort.removeprefix("-"))
    keys = [attribute, *(key for key in model.__mapper__.primary_key if key.key != attribute.key)]
    return [key.desc() if sort.startswith("-") else key.asc() for key in keys]


def column(model: type[DeclarativeBase], names: Sequence[str], name: str) -> InstrumentedAttribute[Any]:
    """The column `name`, which must be one of `names`."""
    if name not in names:
        raise UnknownNameError("column", name, names)
    attribute: InstrumentedAttribute[Any] = getattr(model, name)
    return attribute


def converted(attribute: InstrumentedAttribute[Any], value: object) -> object:
    """`value` as the column's type: text from a command line becomes a number or a time."""
    kind = attribute.type.python_type
    if value is None or type(value) is kind:
        return value
    try:
        if kind is datetime:
            moment = datetime.fromisoformat(str(value))
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        if kind is int and not isinstance(value, str):
            raise ValueError
        made = kind(value)
        if kind is int and not -(2**63) <= made < 2**63:  # what SQLite can hold
            raise ValueError
        return made
    except (TypeError, ValueError) as error:
        raise InputError(f"{attribute.key} cannot be {value!r}", f"give {_NEEDS.get(kind, 'text')}") from error


def _one_of(attribute: InstrumentedAttribute[Any], value: object) -> ColumnElement[bool]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        return attribute == converted(attribute, value)
    values = [converted(attribute, item) for item in value]
    given = [item for item in values if item is not None]
    choices = [attribute.in_(given)] if given else []
    return or_(false(), *choices, *([attribute.is_(None)] if None in values else []))
