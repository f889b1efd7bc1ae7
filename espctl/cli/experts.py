"""`espctl experts`: networks trained on real data, with a snapshot after every epoch."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from esp.spaces import NORMALISED
from espctl.cli import options, outcome

app = typer.Typer()

StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="A folder below the experts folder.")]


Count = Annotated[int | None, typer.Option("--count", "-c", min=1, help="How many experts there shall be.")]
Epochs = Annotated[int | None, typer.Option("--epochs", "-e", min=1, help="Epochs of each.")]
Batch = Annotated[int | None, typer.Option(min=1, help="Images per step.")]
Rate = Annotated[float | None, typer.Option(help="Learning rate of plain SGD.")]
Type = Annotated[str | None, typer.Option(metavar="NAME", help="Stored as float32 or bfloat16.")]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Experts trained at the same time.")]
Seed = Annotated[int, typer.Option("--seed", "-s", min=0, help="Of all experts of the store.")]
HeldOut = Annotated[
    float | None, typer.Option("--held-out", help="Leave out this fraction of the training images, for tune.")
]


@app.command()
def build(
    dataset: options.DatasetOption,
    count: Count = None,
    epochs: Epochs = None,
    network: options.Network = None,
    batch: Batch = None,
    lr: Rate = None,
    dtype: Type = None,
    jobs: Jobs = None,
    stack: options.Stack = None,
    seed: Seed = 0,
    held_out: HeldOut = None,
    space: options.Space = None,
    dry_run: options.DryRun = False,
    device: options.Device = None,
    threads: options.Threads = None,
    compile: options.Compile = None,
    home: options.Home = None,
    json: options.Json = None,
    quiet: options.Quiet = None,
) -> None:
    """Train experts; those that are there already stay, an interrupted build goes on where it was."""
    from espctl import render
    from espctl.services import experts
    from espctl.services.project import Project

    flags = {
        "experts.count": count,
        "experts.epochs": epochs,
        "experts.network": network,
        "experts.batch": batch,
        "experts.lr": lr,
        "experts.dtype": dtype,
        "experts.jobs": jobs,
        "compute.stack": stack,
        **options.compute_flags(device, threads, compile),
        **options.output_flags(home, json, quiet),
    }
    project = Project.open(flags)
    request = experts.BuildRequest(dataset, seed, held_out=held_out or 0.0, space=space or NORMALISED)
    if dry_run:
        from espctl.cli import dry_run as estimate

        estimate.experts(project, request)
        return
    plan, items = experts.prepare(project, request)
    if items:
        there = f"{len(plan.finished)} there, " if plan.finished else ""
        said = f"{plan.store}: {there}{len(items)} to train, {plan.bytes / 1e6:.1f} MB"
        render.note(said, project.settings.output.quiet)
    made = _train(project, items)
    everything = [e for e in experts.listing(project) if e.path.parent == plan.folder]
    if project.settings.output.json:
        render.emit_json({"store": plan.store, "trained": len(made), "experts": everything})
    else:
        _table(everything)


def _train(project: Any, items: Any) -> list[Any]:
    """Train the experts that are missing, with a bar."""
    from espctl import render
    from espctl.services import experts

    output, total, made = project.settings.output, project.settings.experts.epochs, []
    with render.Progress(len(items) * total, "experts", output.quiet) as progress:
        epochs_done: dict[int, int] = {}

        def on_event(event: dict[str, Any]) -> None:
            epochs_done[event["number"]] = event["epoch"]
            progress.update(
                sum(epochs_done.values()), expert=event["number"], loss=event["loss"], accuracy=event["accuracy"]
            )

        for expert in experts.build(project, items, on_event, outcome.waiting(output.quiet)):
            made.append(expert)
    return made


@app.command("ls")
def ls(
    dataset: Annotated[str | None, typer.Option("--dataset", "-d", autocompletion=options.complete_dataset)] = None,
    network: options.Network = None,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """List the experts, of all data sets and networks or of one."""
    from espctl import render
    from espctl.services import experts
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json))
    found = experts.listing(project, dataset, network)
    if project.settings.output.json:
        render.emit_json(found)
    elif found:
        _table(found)
    else:
        such = " such" if dataset or network else ""
        render.note(f"there are no{such} experts yet: espctl experts build --dataset {dataset or 'NAME'}")


def _table(found: list[Any]) -> None:
    """A table for each store: what its experts have in common is its title, so that it fits a narrow screen."""
    from espctl import render

    columns = ("expert", "epochs", "accuracy", "size", "healthy")
    for index, store in enumerate(dict.fromkeys(e.path.parent.name for e in found)):
        members = [e for e in found if e.path.parent.name == store]
        first = members[0]
        rows = [
            (e.number, e.epochs, f"{e.accuracy:.1%}", f"{e.bytes / 1e6:.1f} MB", "yes" if e.healthy else "NO")
            for e in members
        ]
        if index:
            render.line("")
        render.table(columns, rows, f"{store}: {first.network} on {first.dataset}{_part(first)}, {_stored(first)}")


def _stored(expert: Any) -> str:
    """Type of the numbers, and the pixel space of the images where it is not the plain one."""
    return expert.dtype if expert.space == NORMALISED else f"{expert.dtype}, space {expert.space}"


def _part(expert: Any) -> str:
    """What was held out of the training set, if anything."""
    return "" if expert.split == "official" else f" ({expert.split})"


@app.command()
def show(
    expert: Annotated[str, typer.Argument(metavar="EXPERT", help="STORE/NUMBER, or NUMBER when there is one store.")],
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Draw an expert's accuracy curve and say whether it is healthy."""
    from espctl import curves, render
    from espctl.services import experts
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json))
    found, curve = experts.curve(project, expert)
    if project.settings.output.json:
        render.emit_json({"expert": found, "curve": curve})
        return
    render.record(
        {
            "expert": found.name,
            "data set": f"{found.dataset}{_part(found)}",
            "pixel space": found.space,
            "network": f"{found.network}, {found.parameters:,} parameters",
            "epochs": found.epochs,
            ("held-out accuracy" if _part(found) else "test accuracy"): f"{found.accuracy:.2%}",
            "training loss": found.loss,
            "file": f"{render.path(found.path)}, {found.bytes / 1e6:.1f} MB, {found.dtype}",
            "healthy": "yes" if found.healthy else "no",
        }
    )
    for complaint in found.complaints:
        render.line(f"- {complaint}")
    render.line("")
    for text in curves.chart([(point["epoch"], point["accuracy"]) for point in curve]):
        render.line(text)


@app.command()
def verify(
    stores: Annotated[list[str] | None, typer.Argument(metavar="[STORE]...", help="Stores; all by default.")] = None,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Check every byte of every expert against its checksums; exit 1 when one is damaged."""
    from espctl import render
    from espctl.services import experts
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json))
    results = experts.verify(project, stores or ())
    damaged = [(name, reason) for name, reason in results if reason]
    if project.settings.output.json:
        render.emit_json([{"expert": name, "problem": reason} for name, reason in results])
    else:
        for name, reason in damaged:
            render.line(f"{name}: {reason}")
        render.line(f"{render.count(len(results), 'expert')}, {len(damaged)} damaged")
    if damaged:
        raise typer.Exit(1)


@app.command()
def rm(
    store: StoreArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    home: options.Home = None,
) -> None:
    """Delete a store of experts."""
    from espctl import render
    from espctl.services import experts
    from espctl.services.project import Project

    project = Project.open({"home": home})
    if not yes:
        typer.confirm(f"delete all experts of {store}?", abort=True)
    freed = experts.remove(project, store)
    render.line(f"removed {store}, {freed / 1e6:.1f} MB freed")
