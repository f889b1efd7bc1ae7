"""Filter expressions: `method=esp and (ipc>=10 or tag=keep) options.beta<1e-4`, parsed by hand.

```
either  :  both { "or" both }
both    :  one { ["and"] one }
one     :  "not" one  |  "(" either ")"  |  FIELD SIGN VALUE { "," VALUE }
SIGN    :  =  !=  <  <=  >  >=  ~
```
A value ends at a space, a comma or a bracket, unless it stands in quotes. `~` means "contains". No SQL in here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from espctl.errors import ExpressionError

SIGNS = ("=", "!=", "<", "<=", ">", ">=", "~")
DEPTH = 50  # brackets inside each other

_SPACE = re.compile(r"\s*")
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
_SIGN = re.compile(r"!=|<=|>=|=|<|>|~")
_VALUE = re.compile(r"""(?:"[^"]*"|'[^']*'|[^\s,()"'])+""")
_JOINING = re.compile(r"(?:and|or|not)(?![A-Za-z0-9_.\-=!<>~])")
_FORM = "write COLUMN=VALUE, or one of != < <= > >= ~ between the two"


@dataclass(frozen=True)
class Comparison:
    """A field, how it is compared, and the texts of which one must hold; `start` and `value_start` are places."""

    field: str
    sign: str
    values: tuple[str, ...]
    start: int
    value_start: int


@dataclass(frozen=True)
class Joined:
    """Conditions of which all must hold (`and`), one must (`or`), or the only one must not (`not`)."""

    how: str
    parts: tuple[Expression, ...]


Expression = Comparison | Joined


def parse(text: str) -> Expression | None:
    """The conditions that a text states; None when it states none.

    Raises:
        ExpressionError: it cannot be understood; the error shows where.
    """
    reader = _Reader(text)
    if reader.ended():
        return None
    found = reader.either(0)
    if not reader.ended():
        raise reader.error(
            f"{text[reader.place]!r} is not expected here", "put values with spaces or brackets in quotes"
        )
    return found


def comparisons(expression: Expression | None) -> list[Comparison]:
    """Every comparison in an expression."""
    if expression is None or isinstance(expression, Comparison):
        return [expression] if expression else []
    return [found for part in expression.parts for found in comparisons(part)]


class _Reader:
    """A text and how far it was read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0
        self._skip()

    def ended(self) -> bool:
        return self.place == len(self.text)

    def error(self, message: str, hint: str, place: int | None = None) -> ExpressionError:
        return ExpressionError(message, hint, self.text, self.place if place is None else place)

    def either(self, depth: int) -> Expression:
        parts = [self._both(depth)]
        while self._word("or"):
            parts.append(self._both(depth))
        return parts[0] if len(parts) == 1 else Joined("or", tuple(parts))

    def _both(self, depth: int) -> Expression:
        parts = [self._one(depth)]
        while not (self.ended() or self.text[self.place] == ")" or self._next("or")):
            self._word("and")
            parts.append(self._one(depth))
        return parts[0] if len(parts) == 1 else Joined("and", tuple(parts))

    def _one(self, depth: int) -> Expression:
        if depth > DEPTH:
            raise self.error("the filter is too deep", f"use at most {DEPTH} brackets inside each other")
        if self._word("not"):
            return Joined("not", (self._one(depth + 1),))
        if self._letter("("):
            found = self.either(depth + 1)
            if not self._letter(")"):
                raise self.error("a closing bracket is missing", "write ) where the brackets end")
            return found
        return self._comparison()

    def _comparison(self) -> Comparison:
        start = self.place
        field = _FIELD.match(self.text, self.place)
        if field is None:
            message = (
                "the filter ends too early" if self.ended() else f"{self.text[self.place]!r} cannot begin a filter"
            )
            raise self.error(message, _FORM)
        self._to(field.end())
        sign = _SIGN.match(self.text, self.place)
        if sign is None:
            raise self.error(f"{field.group()!r} is no filter", _FORM, start if self.ended() else None)
        self.place = sign.end()
        if _SIGN.match(self.text, self.place):
            raise self.error(f"there is no comparison {sign.group() + self.text[self.place]!r}", _FORM, sign.start())
        return self._values(field.group(), sign.group(), start)

    def _values(self, field: str, sign: str, start: int) -> Comparison:
        spaced = _SPACE.match(self.text, self.place)
        after = spaced.end() if spaced else self.place
        if after < len(self.text) and self.text[after] not in "()" and not _JOINING.match(self.text, after):
            self.place = after if not self._looks_like_a_filter(after) or after == self.place else self.place
        begun, values = self.place, [self._value()]
        while self.place < len(self.text) and self.text[self.place] == ",":
            self.place += 1
            values.append(self._value())
        self._skip()
        if len(values) > 1 and sign not in ("=", "!="):
            raise self.error(f"{sign} compares with one value", "join several with =, as in method=esp,mtt", begun)
        return Comparison(field, sign, tuple(values), start, begun)

    def _looks_like_a_filter(self, place: int) -> bool:
        """Whether `= method=esp` follows: then the value before it was left empty, which means "not set"."""
        field = _FIELD.match(self.text, place)
        return bool(field and _SIGN.match(self.text, field.end()))

    def _value(self) -> str:
        found = _VALUE.match(self.text, self.place)
        if found is None:
            if self.place < len(self.text) and self.text[self.place] in "\"'":
                raise self.error("a closing quote is missing", "close the quotes that are opened here")
            return ""
        if found.end() < len(self.text) and self.text[found.end()] in "\"'":
            raise self.error("a closing quote is missing", "close the quotes that are opened here", found.end())
        self.place = found.end()
        return re.sub(r""""([^"]*)"|'([^']*)'""", lambda quoted: quoted[1] or quoted[2] or "", found.group())

    def _next(self, word: str) -> bool:
        found = _JOINING.match(self.text, self.place)
        return found is not None and found.group() == word

    def _word(self, word: str) -> bool:
        if not self._next(word):
            return False
        self._to(self.place + len(word))
        return True

    def _letter(self, letter: str) -> bool:
        if self.ended() or self.text[self.place] != letter:
            return False
        self._to(self.place + 1)
        return True

    def _to(self, place: int) -> None:
        self.place = place
        self._skip()

    def _skip(self) -> None:
        found = _SPACE.match(self.text, self.place)
        self.place = found.end() if found else self.place
