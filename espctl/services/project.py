"""An open project: its settings, its database, and its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from espctl import settings as configuration
from espctl.store.engine import Store, open_store


@dataclass(frozen=True)
class Project:
    """Settings with everything `auto` still open, and the store that belongs to them."""

    settings: configuration.Settings

    @classmethod
    def open(cls, flags: Mapping[str, Any]) -> Project:
        """Resolve the settings with a command's flags on top."""
        return cls(configuration.load(flags).settings)

    def with_settings(self, changes: Mapping[str, Any]) -> Project:
        """The same project, and the same open store, with some settings changed: dotted key -> value."""
        changed = self.settings
        for key, value in changes.items():
            section, _, name = key.partition(".")
            changed = replace(changed, **{section: replace(getattr(changed, section), **{name: value})})
        project = Project(changed)
        project.__dict__["store"] = self.store
        return project

    @property
    def paths(self) -> configuration.Paths:
        """Absolute paths."""
        return self.settings.paths

    @property
    def home(self) -> Path:
        """Folder that stored paths are relative to."""
        return self.settings.home

    @cached_property
    def store(self) -> Store:
        """The database, opened when first used; made when missing."""
        return open_store(self.paths.database, self.home)

    def folder_of(self, run: str) -> Path:
        """A run's folder."""
        return self.paths.runs / run


def slug(text: str) -> str:
    """`text` with everything but letters, digits, dots and dashes turned into dashes: safe as a part of a file name."""
    return "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in text).strip("-.")[-40:]
