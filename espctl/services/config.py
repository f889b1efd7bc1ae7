"""The settings in force, as records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espctl import settings
from espctl.errors import SettingsError


@dataclass(frozen=True)
class Setting:
    """One setting: its dotted key, its value, and where that came from."""

    key: str
    value: Any
    origin: str


def show(flags: Mapping[str, Any]) -> list[Setting]:
    """Every setting in the order of the example file.

    Raises:
        SettingsError: a setting is unknown or cannot be used.
    """
    resolved = settings.load(flags)
    return [Setting(key, value, resolved.origins[key]) for key, value in settings.keys(resolved.settings).items()]


def file(flags: Mapping[str, Any]) -> Path:
    """The `espctl.toml` that is in force.

    Raises:
        SettingsError: there is none, or it cannot be used.
    """
    found = settings.load(flags).file
    if found is None:
        message = f"there is no {settings.FILE_NAME} in {Path.cwd()} or above, so the defaults hold"
        raise SettingsError(message, "write one there to change them; espctl config show lists all settings")
    return found


def toml(value: object) -> str:
    """A value as it is written in the file, without quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)
