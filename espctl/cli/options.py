"""Options and arguments that several commands share, and what the shell completes for them.

A flag that overrides a setting defaults to None, "not given", and goes into `settings.load(flags={...})`, the one place
that knows which source of a setting comes first.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer


def complete_dataset(incomplete: str) -> list[str]:
    """Names of data sets, and the prefixes of one's own."""
    return _starting(incomplete, [*_table("esp.data", "DATASETS"), "folder:", "tensors:"])


def complete_method(incomplete: str) -> list[str]:
    """Names of condensation methods."""
    return _starting(incomplete, _table("esp.methods", "METHODS"))


def complete_network(incomplete: str) -> list[str]:
    """Names of networks."""
    return _starting(incomplete, _table("esp.networks", "NETWORKS"))


def complete_protocol(incomplete: str) -> list[str]:
    """Names of evaluation protocols, those of espctl.toml included."""
    from espctl import settings
    from espctl.errors import SettingsError

    try:
        own = list(settings.load().settings.protocols)
    except (SettingsError, OSError):  # as above, never an error into the user's command line
        own = []
    return _starting(incomplete, [*_table("esp.protocols", "PROTOCOLS"), *own])


def complete_preset(incomplete: str) -> list[str]:
    """Names of presets."""
    return _starting(incomplete, _table("esp.presets", "PRESETS"))


def complete_space(incomplete: str) -> list[str]:
    """Names of pixel spaces."""
    return _starting(incomplete, _table("esp.spaces", "SPACES"))


def complete_run(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of run folders, newest first; read from the disk, not from the database."""
    return _folders(ctx, incomplete, "runs", "request.json")


def complete_study(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of studies, newest first."""
    return _folders(ctx, incomplete, "studies", "study.json")


def _folders(ctx: typer.Context, incomplete: str, below: str, holding: str) -> list[str]:
    """Folders below a path of the settings that hold a file, newest first."""
    from espctl import settings
    from espctl.errors import SettingsError

    try:
        top = getattr(settings.load(flags={"home": ctx.params.get("home")}).settings.paths, below)
        folders = [path for path in top.iterdir() if (path / holding).is_file()]
        folders.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    except (SettingsError, OSError):  # a completion must never print an error into the user's command line
        return []
    return _starting(incomplete, (path.name for path in folders))


def _table(module: str, name: str) -> list[str]:
    try:
        return sorted(getattr(importlib.import_module(module), name))
    except (ImportError, AttributeError):
        return []


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


DatasetArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        help="A data set's name, folder:PATH, or tensors:FILE.",
        autocompletion=complete_dataset,
        show_default=False,
    ),
]
DatasetOption = Annotated[
    str,
    typer.Option(
        "--dataset",
        "-d",
        metavar="NAME",
        help="A data set's name, folder:PATH, or tensors:FILE.",
        autocompletion=complete_dataset,
        show_default=False,
    ),
]
RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run, or the beginning of its name.", autocompletion=complete_run, show_default=False
    ),
]
RunsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...",
        help="Runs, or the beginnings of their names.",
        autocompletion=complete_run,
        show_default=False,
    ),
]
SomeRunsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN]...",
        help="Runs, or the beginnings of their names.",
        autocompletion=complete_run,
        show_default=False,
    ),
]
Method = Annotated[
    str | None,
    typer.Option("--method", "-m", metavar="NAME", help="How to condense.", autocompletion=complete_method),
]
Network = Annotated[
    str | None,
    typer.Option("--network", "-n", metavar="NAME", help="The network to train.", autocompletion=complete_network),
]
Protocol = Annotated[
    str | None,
    typer.Option(
        "--protocol", "-p", metavar="NAME", help="How to score: a name, or FILE.toml.", autocompletion=complete_protocol
    ),
]
Space = Annotated[
    str | None,
    typer.Option("--space", metavar="NAME", help="Pixel space: normalised, zca, kip.", autocompletion=complete_space),
]
Seed = Annotated[int | None, typer.Option("--seed", "-s", min=0, help="Where all randomness of the run comes from.")]
Device = Annotated[str | None, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, or cuda:N.")]
Threads = Annotated[int | None, typer.Option("--threads", min=0, help="CPU threads; 0 for torch's own choice.")]
Compile = Annotated[str | None, typer.Option("--compile", metavar="WHEN", help="Compile the step: auto, on, or off.")]
Chunk = Annotated[int | None, typer.Option("--chunk", min=1, help="Images in one pass; fewer need less memory.")]
Stack = Annotated[
    int | None, typer.Option("--stack", min=0, help="Networks trained as one program; 0: as fit a GPU, 1 on a CPU.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what it would cost, from a few steps of it.")]
Log = Annotated[
    str | None,
    typer.Option("--log", metavar="PROGRAM", help="Write metrics for tensorboard, mlflow or wandb as well; or none."),
]
Home = Annotated[
    Path | None,
    typer.Option("--home", metavar="FOLDER", help="The folder of data, experts, runs and database."),
]
Json = Annotated[bool | None, typer.Option("--json/--no-json", help="Print JSON in place of tables.")]
Quiet = Annotated[bool | None, typer.Option("--quiet/--no-quiet", "-q", help="No progress and no notes.")]


def compute_flags(device: str | None, threads: int | None, compile: str | None) -> dict[str, Any]:
    """The shared compute options as settings."""
    return {"compute.device": device, "compute.threads": threads, "compute.compile": compile}


def output_flags(home: Path | None, json: bool | None = None, quiet: bool | None = None) -> dict[str, Any]:
    """The shared output options as settings."""
    return {"home": home, "output.json": json, "output.quiet": quiet}


def pairs(items: list[str]) -> dict[str, str]:
    """`KEY=VALUE` items as a mapping.

    Raises:
        UsageError: an item without `=`, or a key given twice.
    """
    from espctl.errors import UsageError

    found: dict[str, str] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {item!r} is not of the form KEY=VALUE", "write for example --set beta=1e-4")
        if key in found:
            raise UsageError(f"--set {key} is given twice", "give it once")
        found[key] = value
    return found
