"""Tables of names that resolve to `"module:attribute"` without importing what they name.

`METHODS`, `NETWORKS`, `DATASETS` and `PROTOCOLS` are such tables, so that a program can list and check names before it
pays for importing torch. An entry of one's own needs no registration: `package.module:attribute` is a name.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from esp.errors import InputError, UnknownNameError

own_packages: set[str] = set()
"""Top-level packages of the user's own entries that were asked for: what fails in them is no defect of this program."""


def check(table: Mapping[str, str], kind: str, name: str) -> None:
    """Raise `UnknownNameError` unless `name` is in `table` or has the form `package.module:attribute`."""
    if name not in table and ":" not in name:
        raise UnknownNameError(kind, name, table)


def resolve(table: Mapping[str, str], kind: str, name: str) -> Any:
    """The object behind `name`: an entry of `table`, or a user's own `package.module:attribute`.

    Raises:
        UnknownNameError: `name` is not in the table.
        InputError: the module cannot be imported or has no such attribute.
    """
    check(table, kind, name)
    target = table.get(name, name)
    module, _, attribute = target.partition(":")
    if name not in table:
        own_packages.add(module.partition(".")[0])
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError, TypeError, ValueError) as error:
        raise InputError(
            f"{kind} {name!r} cannot be loaded: {error}", "check the module path and the attribute name"
        ) from error


def parse_spec(table: Mapping[str, str], kind: str, spec: str, given: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Split `name,option=value,...` into the name and its typed options; options equal to their default are dropped.

    Args:
        table, kind: as in `resolve`.
        spec: for example `convnet3,width=64`; a tuple of numbers is written `8-6`.
        given: parameters of the factory that are not options.

    Raises:
        UnknownNameError: the name or an option does not exist.
        InputError: an option without a value, or of the wrong type.
    """
    name, *items = spec.split(",")
    factory = resolve(table, kind, name)
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError) as error:  # its own message may quote the object, whatever that holds
        raise InputError(f"{kind} {name!r} is nothing that can be called", f"name a factory of a {kind}") from error
    known = {k: p.default for k, p in signature.parameters.items() if k not in given}
    options: dict[str, Any] = {}
    for item in items:
        key, _, text = item.partition("=")
        if key not in known:
            raise UnknownNameError(f"option of {kind} {name}", key, known)
        options[key] = _typed(text, known[key], f"{key}={text} of {kind} {name}")
    return name, {key: value for key, value in options.items() if value != known[key]}


def _typed(text: str, default: Any, what: str) -> Any:
    """`text` as a value of the type of `default`."""
    try:
        return tuple(int(part) for part in text.split("-")) if isinstance(default, tuple) else type(default)(text)
    except ValueError as error:
        raise InputError(
            f"{what} is not a valid {type(default).__name__}", f"write it like the default, {default}"
        ) from error
