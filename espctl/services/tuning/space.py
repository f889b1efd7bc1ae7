"""What a study searches: the options of a method, each with a range or a list of choices."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from esp.core import Method
from esp.errors import InputError, UnknownNameError
from espctl.errors import ExpressionError
from espctl.services.condense import method_options

EXAMPLES = 'write for example --space "segment=int(2,20)", "beta=float(1e-7,1e-3,log)" or "start=choice(noise,real)"'
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_LARGEST = 2**53  # beyond it floats leave whole numbers out
_WORD = re.compile(r"[A-Za-z_]\w*")
_VALUE = re.compile(r"[^,()]+")


@dataclass(frozen=True)
class Dimension:
    """One option that is searched.

    Attributes:
        kind: `int` and `float` lie from `low` to `high`, both included; `choice` is one of `choices`.
        low, high: for ranges.
        log: whether the logarithm is searched evenly.
        choices: texts as `--set` takes them.
    """

    kind: Literal["int", "float", "choice"]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.kind == "choice":
            return f"choice({','.join(self.choices)})"
        ends = [f"{int(end)}" if self.kind == "int" else f"{end:g}" for end in (self.low, self.high)]
        return f"{self.kind}({','.join([*ends, *(['log'] if self.log else [])])})"

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        if self.kind == "choice":
            return {"kind": self.kind, "choices": list(self.choices)}
        return {"kind": self.kind, "low": self.low, "high": self.high, "log": self.log}

    def nearest(self, value: object) -> float | int | str | None:
        """The point of a dimension that is nearest to a value; None where no choice is it."""
        if self.kind == "choice":
            text = str(value)
            return next((choice for choice in self.choices if choice in (text, text.lower())), None)
        number = min(max(float(str(value)), self.low), self.high)
        return round(number) if self.kind == "int" else number


Space = dict[str, Dimension]


def from_json(described: Mapping[str, Mapping[str, Any]]) -> Space:
    """The inverse of `Dimension.describe` for a whole space."""
    return {
        name: Dimension(**{**entry, **({"choices": tuple(entry["choices"])} if "choices" in entry else {})})
        for name, entry in described.items()
    }


def parse(text: str) -> tuple[str, Dimension]:
    """`NAME=int(LOW,HIGH)`, `NAME=float(LOW,HIGH,log)` or `NAME=choice(A,B)`.

    Raises:
        ExpressionError: it is not of this form; it points at the place.
    """
    reader = _Reader(text)
    name = reader.take(_WORD, "the name of an option")
    reader.mark("=")
    at = reader.at
    kind = reader.take(_WORD, "int, float or choice")
    if kind not in ("int", "float", "choice"):
        raise reader.wrong("int, float or choice", at)
    reader.mark("(")
    dimension = reader.choices() if kind == "choice" else reader.range("int" if kind == "int" else "float")
    reader.end()
    return name, dimension


class _Reader:
    """Reads a space from left to right and knows where it is."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def wrong(self, expected: str, at: int | None = None) -> ExpressionError:
        at = self.at if at is None else at
        found = repr(self.text[at:]) if at < len(self.text) else "the end"
        message = f"the space is malformed at character {at + 1}: {expected} is expected, not {found}"
        return ExpressionError(message, EXAMPLES, self.text, at)

    def take(self, pattern: re.Pattern[str], expected: str) -> str:
        self._skip()
        match = pattern.match(self.text, self.at)
        if match is None:
            raise self.wrong(expected)
        self.at = match.end()
        return match.group().strip()

    def mark(self, letter: str) -> None:
        self._skip()
        if not self.text.startswith(letter, self.at):
            raise self.wrong(repr(letter))
        self.at += 1

    def accept(self, letter: str) -> bool:
        self._skip()
        found = self.text.startswith(letter, self.at)
        self.at += found
        return found

    def range(self, kind: Literal["int", "float"]) -> Dimension:
        low = self._number(kind)
        self.mark(",")
        self._skip()
        at = self.at
        high, log = self._number(kind), False
        if self.accept(","):
            self._skip()
            place = self.at
            if self.take(_WORD, "log") != "log":
                raise self.wrong("log", place)
            log = True
        self.mark(")")
        if high <= low:
            raise self.wrong(f"a number above {low:g}", at)
        if log and low <= 0:
            raise self.wrong("a number above 0, which a logarithm needs,", self.text.index("(") + 1)
        return Dimension(kind, low, high, log)

    def choices(self) -> Dimension:
        found = [self.take(_VALUE, "a value")]
        while self.accept(","):
            at = self.at
            found.append(self.take(_VALUE, "a value"))
            if found[-1] in found[:-1]:
                raise self.wrong("another value", at)
        self.mark(")")
        return Dimension("choice", choices=tuple(found))

    def end(self) -> None:
        self._skip()
        if self.at < len(self.text):
            raise self.wrong("nothing more")

    def _number(self, kind: str) -> float:
        self._skip()
        at = self.at
        what = "a whole number" if kind == "int" else "a number"
        number = float(self.take(_NUMBER, what))
        if not math.isfinite(number) or (kind == "int" and (number != int(number) or abs(number) > _LARGEST)):
            raise self.wrong(what, at)
        return number

    def _skip(self) -> None:
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1


def searched(name: str, method: Method, stores_images: bool, fixed: Sequence[str], given: Sequence[str]) -> Space:
    """The space of a study: what is given, and beta and the learning rates that the synthetic set has, on log scales.

    Args:
        name, method: the method, with the values that it has where nothing is searched.
        stores_images: whether the parametrisation stores pixels, and so has a learning rate of pixels, or codes.
        fixed: options that have a value and are not searched.
        given: texts as `parse` takes them.

    Raises:
        UnknownNameError: the method has no such option.
        ExpressionError: a text is malformed.
        InputError: a value is of the wrong type, or nothing is left to search.
    """
    space: Space = {}
    for option, dimension in map(parse, given):
        if option in space or option in fixed:
            other = "--set" if option in fixed else "another --space"
            raise InputError(f"{option} has a --space and {other}", "give one of the two")
        _check(name, method, option, dimension)
        space[option] = dimension
    idle = ("lr_codes", "lr_decoders") if stores_images else ("lr_pixels",)
    for field in fields(method):  # type: ignore[arg-type]
        value = getattr(method, field.name)
        tuned = field.name == "beta" or field.name.startswith("lr_")
        if not tuned or field.name in (*idle, *fixed, *space) or not isinstance(value, float) or value <= 0:
            continue
        factor = 100 if field.name == "beta" else 10
        space[field.name] = Dimension("float", value / factor, value * factor, log=True)
    if not space:
        raise InputError(f"method {name} has nothing to tune", EXAMPLES)
    return dict(sorted(space.items()))


def _check(name: str, method: Method, option: str, dimension: Dimension) -> None:
    """Refuse an option that does not exist, and values that it cannot have."""
    known = [field.name for field in fields(method)]  # type: ignore[arg-type]
    if option not in known:
        raise UnknownNameError(f"option of method {name}", option, known)
    if dimension.kind == "choice":
        values: list[Any] = list(dimension.choices)
    elif dimension.kind == "int":
        values = [int(dimension.low), int(dimension.high)]
    else:
        values = [dimension.low, dimension.high, math.nextafter(dimension.low, math.inf)]
        if isinstance(getattr(method, option), int):
            raise InputError(f"{option} of method {name} is a whole number", f'write --space "{option}=int(...)"')
    for value in values:
        method_options(name, {option: text_of(value)})


def text_of(value: float | int | str) -> str:
    """A value as `--set` takes it; a number comes back to the bit."""
    return value if isinstance(value, str) else repr(value)
