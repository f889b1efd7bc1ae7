"""`espctl compress`: fewer bytes for a finished run."""

from __future__ import annotations

from typing import Annotated

import typer

from espctl.cli import options


def compress(
    run: options.RunArgument,
    bits: Annotated[int, typer.Option("--bits", "-b", help="Bits of each number: 8, 4 or 2.")] = 8,
    home: options.Home = None,
    json: options.Json = None,
    quiet: options.Quiet = None,
) -> None:
    """Store a run's numbers with 8, 4 or 2 bits, as a run of its own.

    Each channel has a uniform scale; the codes go through an entropy coder. Score the result like any other run.
    """
    from espctl import render
    from espctl.services import compress as service
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json, quiet))
    made = service.compress(project, run, bits)
    output, sizes = project.settings.output, made.sizes
    if output.json:
        render.emit_json(made)
        return
    if made.known:
        render.note(f"{made.run.id} was made before from the same numbers", output.quiet)
    render.record(
        {
            "run": made.run.id,
            "made from": made.source,
            "stored numbers": f"{made.run.stored_numbers:,} of {made.run.budget_numbers:,}",
            "stored bytes": f"{sizes.stored_bytes:,} of {sizes.original_bytes:,}"
            f" ({sizes.original_bytes / sizes.stored_bytes:.1f} times fewer)",
            "  codes": f"{sizes.coded_bytes:,} by {sizes.coder}; {sizes.packed_bytes:,} packed, "
            f"{sizes.entropy_bytes:,} at their entropy",
            "  scales": f"{sizes.scale_bytes:,}",
            "file": f"{made.file_bytes:,} bytes with its description",
            "error": f"{100 * sizes.error:.2f} % of the numbers' root mean square",
            "folder": render.path(project.home / made.run.folder),
        }
    )
    render.note(f"score it: espctl evaluate {made.run.id}", output.quiet)
