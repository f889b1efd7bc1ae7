"""An open project: its settings, its database, and its data."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from esp.data import check_name
from espctl import settings as configuration
from espctl.errors import RunError
from espctl.store import runs as store_runs
from espctl.store.engine import Store, open_store
from espctl.store.records import RunRecord


@dataclass(frozen=True)
class Project:
    """Settings with everything `auto` still open, and the store that belongs to them."""

    settings: configuration.Settings

    @classmethod
    def open(cls, flags: Mapping[str, Any]) -> Project:
        """Resolve the settings with a command's flags on top. From here on memory is collected again."""
        if not gc.isenabled():  # `espctl.__main__` switched it off
            gc.freeze()  # modules stay as long as the process does, and need not be looked through
            gc.enable()
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
        """The database, opened when first used; made when missing, with the runs whose folders are there."""
        store = open_store(self.paths.database, self.home)
        if store.created:
            store_runs.sync(store, self.paths.runs)
        return store

    def folder_of(self, run: str) -> Path:
        """A run's folder."""
        return self.paths.runs / run


def dataset_name(name: str) -> str:
    """The name under which results of a data set are stored.

    Raises:
        UnknownNameError, InputError: it is no name of a data set.
    """
    check_name(name)
    if ":" not in name:
        return name
    from esp.data.store import canonical_name  # imports torch, which listings do without

    return canonical_name(name)


def find_run(project: Project, name: str) -> RunRecord:
    """The run called `name`, or the only one that begins so; also one whose process died before it was entered.

    Raises:
        RunError: there is none, or several.
    """
    try:
        return store_runs.find_run(project.store, name)
    except RunError:
        if not (name and (project.folder_of(slug(name)) / "request.json").is_file()):
            raise
    store_runs.sync(project.store, project.paths.runs)
    return store_runs.find_run(project.store, name)


def slug(text: str) -> str:
    """`text` with everything but letters, digits, dots and dashes turned into dashes: safe as a part of a file name."""
    return "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in text).strip("-.")[-40:]
