"""Evaluation protocols: the built-in ones, those of espctl.toml, and those of a file of their own."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esp.errors import InputError
from esp.protocols import FIELDS, NOTES, PROTOCOLS, SOURCES
from esp.recipes import Protocol, derive, protocol, values_of
from espctl.services.project import Project
from espctl.settings import FILE_NAME

Table = Mapping[str, Any]


@dataclass(frozen=True)
class Field:
    """One value of a protocol: what it means, and where it comes from: a protocol, a file, or the name's suffix."""

    key: str
    value: Any
    origin: str
    meaning: str


@dataclass(frozen=True)
class ProtocolInfo:
    """A protocol with every value. `hash` names its content, whatever it is called."""

    name: str
    source: str
    hash: str
    fields: tuple[Field, ...]

    def value(self, key: str) -> Any:
        """The value of a field."""
        return next(field.value for field in self.fields if field.key == key)


def find(project: Project, name: str) -> Protocol:
    """The protocol called `name` (also `NAME@EPOCHS` and `NAME+held-out`), or of the file `name` that ends in .toml.

    Raises:
        UnknownNameError: there is no such protocol, base or key; the hint names the closest.
        InputError: the file cannot be read, or a value cannot be used; the sentence names its key.
    """
    name, own = _resolve(project, name)
    return protocol(name, own)


def listing(project: Project) -> list[ProtocolInfo]:
    """The built-in protocols and those of espctl.toml, by name.

    Raises:
        EspError: one of espctl.toml makes no sense.
    """
    return [describe(project, name) for name in sorted([*PROTOCOLS, *project.settings.protocols])]


def describe(project: Project, name: str) -> ProtocolInfo:
    """Every value of a protocol, named as for `find`.

    Raises:
        EspError: as `find`.
    """
    name, own = _resolve(project, name)
    found, base = protocol(name, own), name.partition("+")[0].partition("@")[0]
    origins = _origins(base, own, dict.fromkeys(project.settings.protocols, FILE_NAME))
    unsuffixed = values_of(protocol(base, own))
    values = values_of(found)
    origins |= {key: name for key, value in values.items() if value != unsuffixed[key]}
    fields = tuple(Field(key, values[key], origins[key], _meaning(key, origins[key])) for key in FIELDS)
    return ProtocolInfo(found.name, SOURCES.get(base, _source(base, own)), found.hash, fields)


def _resolve(project: Project, name: str) -> tuple[str, Mapping[str, Table]]:
    """The name of a protocol, and the tables of all of one's own, that of a file included."""
    own = project.settings.protocols
    if not name.endswith(".toml"):
        return name, own
    path = Path(name).expanduser()
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist", "check the path, or give the name of a protocol") from error
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, a number of a thousand digits
        raise InputError(f"{path} is not valid TOML: {error}", "correct that place of the file") from error
    called = table.pop("name", path.stem)
    if not isinstance(called, str) or called in own:
        raise InputError(
            f"{path} cannot call its protocol {called!r}",
            f"give it a name that {FILE_NAME} does not use" if called in own else 'write such as name = "mine"',
        )
    derive(called, table, own)  # its own mistakes are said before those of a name that is like a built-in one
    return called, {**own, called: table}


def _origins(name: str, own: Mapping[str, Table], places: Mapping[str, str]) -> dict[str, str]:
    """Key -> the protocol, or the place of the table, that gave a protocol its value."""
    values = values_of(protocol(name, own))
    if name not in own:
        return dict.fromkeys(values, name)
    base = own[name]["base"]
    below = _origins(base.partition("+")[0].partition("@")[0], own, places)
    before = values_of(protocol(base, own))
    place = places.get(name, "its file")
    return {key: place if key in own[name] or value != before[key] else below[key] for key, value in values.items()}


def _meaning(key: str, origin: str) -> str:
    """What a field is, and what its value stands for where it is a built-in protocol's."""
    note = NOTES.get(origin, {}).get(key)
    return f"{FIELDS[key]} ({note})" if note else FIELDS[key]


def _source(name: str, own: Mapping[str, Table]) -> str:
    return f"your own, based on {own[name]['base']}" if name in own else f"your own, {name}"
