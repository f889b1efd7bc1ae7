"""`espctl runs rm`, `restore` and `gc`: making room, and taking it back."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from espctl.cli import options

SHOWN = 20  # items that are named before a deletion; there may be thousands


def rm(
    runs: options.RunsArgument,
    force: Annotated[bool, typer.Option("--force", help="Also runs that others need.")] = False,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Remove runs: they go into the trash, from which `runs restore` brings them back until `runs gc` empties it."""
    from espctl import render
    from espctl.services import removal
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json))
    gone = removal.remove(project, runs, force)
    if project.settings.output.json:
        render.emit_json(gone)
        return
    for one in gone:
        render.line(f"removed {one.run}" + ("" if one.trash else ", whose folder was gone"))
    if held := sum(one.bytes for one in gone):
        render.note(f"{_size(held)} are in the trash: espctl runs gc frees them, espctl runs restore brings them back")


def restore(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="Removed runs; none to list them.")
    ] = None,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Bring removed runs back; without any, list what is in the trash."""
    from espctl import render
    from espctl.services import removal
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json))
    if runs:
        back = [removal.restore(project, name) for name in runs]
        if project.settings.output.json:
            render.emit_json(back)
            return
        for run in back:
            render.line(f"restored {run.id}")
        return
    found = removal.trash(project)
    if project.settings.output.json:
        render.emit_json(found)
    elif found:
        render.table(("run", "removed", "size"), [(one.run, one.removed, _size(one.bytes)) for one in found])
    else:
        render.note("the trash is empty")


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would go, and remove nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Free space: empty the trash, remove what killed processes left, and checkpoints of finished runs."""
    from espctl import render
    from espctl.errors import UsageError
    from espctl.services import gc as service
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json))
    found = service.find(project)
    plain = project.settings.output.json
    if plain and not (dry_run or yes):
        raise UsageError("--json does not ask whether to remove these", "give --yes, or --dry-run to look at them")
    if not plain:
        _show(service.KINDS, found)
    if found.items and not dry_run:
        if not yes:
            typer.confirm(f"remove these {len(found.items)} for good?", abort=True)
        found = service.remove(found.items)
        if not plain:
            render.line(f"{_size(found.freed)} freed")
    if plain:
        render.emit_json({"items": found.items, "freed": found.freed, "removed": found.removed})


def _show(kinds: dict[str, str], found: Any) -> None:
    from espctl import render

    if not found.items:
        render.line("there is nothing to free")
        return
    rows = [(kinds[item.kind], render.path(item.path), _size(item.bytes)) for item in found.items[:SHOWN]]
    render.table(("what", "where", "size"), rows)
    if len(found.items) > SHOWN:
        render.line(f"… and {len(found.items) - SHOWN} more")
    for kind, (count, held) in found.by_kind.items():
        render.line(f"{kinds[kind]}: {count}, {_size(held)}")
    render.line(f"{_size(found.freed)} in all")


def _size(count: int) -> str:
    """Bytes as people read them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
