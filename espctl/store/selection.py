"""What a filter expression may name, as SQL conditions on runs: columns, tags, options of the method, and the score.

```
ipc, method, state, ...   a column of the run; a comparison with one is what an index can answer
tag                       one of its tags
options.NAME              an option of the method or of the parametrisation, from the request
accuracy                  mean over its networks in percent; the highest, when it was scored in several ways
```
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, Double, String, and_, cast, false, func, not_, or_, select, text, type_coerce
from sqlalchemy.orm import InstrumentedAttribute

from esp.errors import EspError, InputError, UnknownNameError
from espctl.errors import ExpressionError
from espctl.store import expressions
from espctl.store.expressions import Comparison, Expression, Joined
from espctl.store.filters import OPERATORS, converted
from espctl.store.filters import column as column_of
from espctl.store.models import Evaluation, Run, Tag
from espctl.store.records import RunRecord

COLUMNS: tuple[str, ...] = tuple(RunRecord.__slots__)
OPTION = "options."
FIELDS = (*COLUMNS, "tag", "accuracy")
_UNSET = ("", "none")
_PATHS = ("$.request.method_options", "$.request.parametrisation_options")


def condition(typed: str) -> ColumnElement[bool] | None:
    """The condition on runs that a filter expression states; None when it states none.

    Raises:
        ExpressionError: it cannot be understood, names something unknown, or compares with what cannot be; and where.
    """
    found = expressions.parse(typed)
    return None if found is None else _compiled(found, typed)


def option_names(typed: str) -> list[str]:
    """The options that an expression names."""
    named = [found.field for found in expressions.comparisons(expressions.parse(typed))]
    return [name.removeprefix(OPTION) for name in named if name.startswith(OPTION)]


def order(sort: str) -> list[Any]:
    """Order by a column, an option or the score; descending with `-` before it, ties by id in the same direction.

    Raises:
        UnknownNameError: there is no such column.
    """
    name = sort.removeprefix("-")
    if name == "accuracy":
        keys: list[Any] = [_accuracy()]
    elif name.startswith(OPTION):
        keys = [func.coalesce(*(func.json_extract(Run.request, path) for path in _paths(name)))]
    else:
        keys = [column_of(Run, COLUMNS, name) if name in COLUMNS else _unknown(name, (*COLUMNS, "accuracy"))]
    keys += [] if name == "id" else [Run.id]
    return [key.desc() if sort.startswith("-") else key.asc() for key in keys]


def known_options() -> Any:
    """The statement for every name of an option in any run. It reads all requests, so ask it only about a mistake."""
    return text(" UNION ".join(f"SELECT o.key FROM runs, json_each(runs.request, '{path}') AS o" for path in _PATHS))  # noqa: S608


def _compiled(found: Expression, typed: str) -> ColumnElement[bool]:
    if isinstance(found, Joined):
        parts = [_compiled(part, typed) for part in found.parts]
        if found.how == "not":
            return not_(func.coalesce(parts[0], false()))
        return and_(*parts) if found.how == "and" else or_(*parts)
    try:
        return _comparison(found)
    except UnknownNameError as error:
        raise ExpressionError(error.message, error.hint, typed, found.start) from error
    except EspError as error:
        raise ExpressionError(error.message, error.hint, typed, found.value_start) from error


def _comparison(found: Comparison) -> ColumnElement[bool]:
    if found.field == "tag":
        return _tagged(found)
    if found.field.startswith(OPTION):
        return _option(found)
    if found.field == "accuracy":
        return _on_values(found, _accuracy(), [_number(found, value) for value in found.values])
    attribute = column_of(Run, COLUMNS, found.field) if found.field in COLUMNS else _unknown(found.field, FIELDS)
    if found.sign == "~":
        return cast(attribute, String).icontains(found.values[0], autoescape=True)
    return _on_values(found, attribute, [converted(attribute, value) if value else None for value in found.values])


def _on_values(found: Comparison, left: Any, values: list[Any]) -> ColumnElement[bool]:
    """A comparison with one value, or an equality with one of several; None is "not set"."""
    given = [value for value in values if value is not None]
    if found.sign not in ("=", "!="):
        if not given or found.sign == "~":
            raise InputError(f"{found.field} {found.sign} needs a value", "write a number after it")
        compared: ColumnElement[bool] = OPERATORS[found.sign](left, given[0])
        return compared
    among: Any = left == given[0] if len(given) == 1 else left.in_(given) if given else false()
    unset = left.is_(None)
    if found.sign == "=":
        return or_(among, unset) if None in values and given else unset if None in values else among
    return and_(not_(among), left.is_not(None)) if None in values else or_(not_(among), unset)


def _tagged(found: Comparison) -> ColumnElement[bool]:
    if found.sign not in ("=", "!=", "~"):
        raise InputError(f"a tag cannot be compared with {found.sign}", "write tag=WORD, tag!=WORD or tag~PART")
    given = [value for value in found.values if value]
    chosen = Tag.tag.icontains(given[0] if given else "", autoescape=True) if found.sign == "~" else Tag.tag.in_(given)
    some: ColumnElement[bool] = Run.id.in_(select(Tag.run_id).where(chosen)) if given else false()
    if "" in found.values and found.sign != "~":
        some = or_(some, Run.id.not_in(select(Tag.run_id)))
    return not_(some) if found.sign == "!=" else some


def _option(found: Comparison) -> ColumnElement[bool]:
    either: ColumnElement[bool] = or_(*(and_(*_one_option(found, path)) for path in _paths(found.field)))
    if found.sign in ("=", "!=") and any(value.lower() in _UNSET for value in found.values):
        kinds = [func.json_type(Run.request, path) for path in _paths(found.field)]
        either = or_(either, and_(*(or_(kind == "null", kind.is_(None)) for kind in kinds)))
    return not_(func.coalesce(either, false())) if found.sign == "!=" else either


def _one_option(found: Comparison, path: str) -> Iterator[Any]:
    """Conditions on one place of the request. Numbers are compared with numbers alone: SQL puts all text above them."""
    kind, value = func.json_type(Run.request, path), func.json_extract(Run.request, path)
    if found.sign == "~":
        yield type_coerce(value, String).icontains(found.values[0], autoescape=True)
    elif found.sign in ("=", "!="):
        yield or_(*(_equal(kind, value, given) for given in found.values))
    else:
        yield kind.in_(("integer", "real"))
        yield OPERATORS[found.sign](type_coerce(value, Double), _number(found, found.values[0]))


def _equal(kind: Any, value: Any, given: str) -> ColumnElement[bool]:
    same: list[ColumnElement[bool]] = [and_(kind == "text", type_coerce(value, String) == given)]
    if given.lower() in ("true", "yes", "false", "no"):
        same.append(kind == ("true" if given.lower() in ("true", "yes") else "false"))
    else:
        with contextlib.suppress(ValueError):
            same.append(and_(kind.in_(("integer", "real")), type_coerce(value, Double) == float(given)))
    return or_(*same)


def _number(found: Comparison, given: str) -> float | None:
    if not given and found.sign in ("=", "!="):
        return None
    try:
        return float(given)
    except ValueError as error:
        raise InputError(f"{found.field} cannot be compared with {given!r}", "give a number") from error


def _paths(name: str) -> tuple[str, ...]:
    return tuple(f'{path}."{name.removeprefix(OPTION)}"' for path in _PATHS)


def _accuracy() -> Any:
    mean = (func.avg(Evaluation.accuracy) * 100).label("mean")
    scores = select(mean).where(Evaluation.run_id == Run.id).group_by(Evaluation.protocol_hash, Evaluation.network)
    return scores.order_by(mean.desc()).limit(1).correlate(Run).scalar_subquery()


def _unknown(name: str, known: tuple[str, ...]) -> InstrumentedAttribute[Any]:
    raise UnknownNameError("column", name, (*known, "options.NAME"))
