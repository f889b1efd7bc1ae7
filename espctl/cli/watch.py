"""`espctl runs watch`: runs of other processes, live."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from espctl.cli import options

SHORT = 18  # columns of a metric's name and value beside its curve


def watch(
    runs: options.SomeRunsArgument = None,
    once: Annotated[bool, typer.Option("--once", help="Print how far they are and end.")] = False,
    every: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between two looks.")] = 1.0,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Follow runs that other processes carry out: how far they are, and their curves. Ctrl-C ends only the watching."""
    from espctl import live, render
    from espctl.services.project import Project
    from espctl.services.watch import ACTIVE, Watcher

    project = Project.open(options.output_flags(home, json))
    watcher = Watcher(project, runs or ())
    found = watcher.look()
    if project.settings.output.json:
        render.emit_json(found)
        return
    if not found:
        render.note("no run is under way: espctl runs ls lists those that have ended")
        return

    def draw(width: int, height: int) -> tuple[list[str], bool]:
        now = watcher.look()
        lines = [line for status in now for line in _block(status, width)]
        if len(lines) > height:  # one line for each, when they do not all fit with their curves
            lines = [_head(status, width) for status in now]
        if len(lines) > height:
            lines = [*lines[: height - 1], f"… and {len(lines) - height + 1} more"]
        return lines, once or all(status.state not in ACTIVE for status in now)

    live.follow(draw, every)


def _head(status: Any, width: int) -> str:
    from espctl import render

    parts = [status.state]
    if status.steps:
        parts.append(f"{status.step}/{status.steps}")
    if status.left is not None and status.left > 0:
        parts.append(f"{render.duration(status.left)} left")
    elif status.state == "finished" and status.seconds is not None:
        parts.append(f"in {render.duration(status.seconds)}")
    if status.quiet is not None and status.quiet > 60:
        parts.append(f"silent for {render.duration(status.quiet)}")
    said = "  ".join(parts)
    room = max(8, width - len(said) - 2)
    name = render.clean(status.name or status.run)
    return f"{name if len(name) <= room else '…' + name[len(name) - room + 1 :]}  {said}"[:width]


def _block(status: Any, width: int) -> list[str]:
    """A run's head, and a line for each of its metrics."""
    from espctl import curves, render

    lines = [_head(status, width)]
    if status.error:
        lines.append(f"  {render.clean(status.error)}"[:width])
    for name, points in status.curves.items():
        values = [value for _, value in points]
        label = render.clean(name)[:10]
        curve = curves.sparkline(values, max(4, min(60, width - SHORT - 6)))
        lines.append(f"  {label:<10} {curve} {render.text(values[-1])}"[:width])
    return lines
