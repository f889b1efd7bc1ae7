"""Starting, resuming and recording condensation runs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from esp import files, presets
from esp.core import Method, Task
from esp.data.dataset import OFFICIAL
from esp.data.store import load as load_data
from esp.data.zca import in_space, require_space
from esp.errors import InputError, OutOfMemoryError, UnknownNameError
from esp.methods import METHODS
from esp.networks.flat import build as build_network
from esp.parametrisation import Frame, options_of, parse_parametrisation
from esp.parametrisation import build as build_parametrisation
from esp.registry import resolve
from esp.spaces import NORMALISED
from esp.trajectory import Experts
from espctl.errors import PausedError, RunError, StoreError, cause_of, may_pass, translate
from espctl.jobs import locks, logs, signals, worker
from espctl.jobs.compute import resolve as resolve_compute
from espctl.services import experts as expert_service
from espctl.services import provenance
from espctl.services.experts import relative
from espctl.services.project import Project, find_run, slug
from espctl.store import runs as store_runs
from espctl.store.records import RunRecord


@dataclass(frozen=True)
class Request:
    """What a user asks for; everything not given is resolved by `prepare`.

    Attributes:
        dataset: name of the data set.
        ipc: images per class of the budget.
        options: text values of the method's options.
        parametrisation: spec such as `latent,decoders=4`; empty for the method's own.
        preset: `paper` or `quick`: what the options are changes of.
        experts: store of experts; empty for the one that fits.
        expert_count: how many of them; 0 for all.
        trial: for a trial of a study: its `study`, `trial` and `held_out`, the fraction of the training images that is
            kept away from it.
        space: pixel space, one of `esp.spaces.SPACES`; empty for the preset's own.
        from_study: the study and trial that the options come from, as `NAME 12`; a remark in the provenance.
    """

    dataset: str
    ipc: int
    options: Mapping[str, str]
    parametrisation: str = ""
    experts: str = ""
    expert_count: int = 0
    preset: str = "paper"
    trial: Mapping[str, Any] = field(default_factory=dict)
    from_study: str = ""
    space: str = ""


@dataclass(frozen=True)
class Prepared:
    """A checked request, ready to be started: the id that it will have, its key, and the content of `request.json`."""

    run: str
    key: str
    described: dict[str, Any]
    patch: str
    steps: int


def method_options(name: str, given: Mapping[str, str], preset: Mapping[str, Any] | None = None) -> Method:
    """The method `name` with the options of a preset, and text options on top turned into the types of its fields.

    Raises:
        UnknownNameError: the method or an option does not exist.
        InputError: a value of the wrong type.
    """
    kind = resolve(METHODS, "method", name)
    if not is_dataclass(kind):
        raise InputError(f"method {name!r} is not a dataclass", "name a class that is an esp.core.Method")
    known = [field.name for field in fields(kind)]
    for option in given:
        if option not in known:
            raise UnknownNameError(f"option of method {name}", option, known)
        if given[option].strip().lower().lstrip("+-") in ("nan", "inf", "infinity"):
            raise InputError(f"{option}={given[option]} of method {name} is not finite", f"correct --set {option}=...")
    try:
        method: Method = TypeAdapter(kind).validate_python({**(preset or {}), **given})
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{option}={first['input']} of method {name}: {first['msg'][:1].lower()}{first['msg'][1:]}",
            f"correct --set {option}=...",
        ) from error
    if "steps" in known and method.steps < 1:
        raise InputError(f"steps={method.steps} of method {name} would do nothing", "give --set steps=1 or more")
    return method


def prepare(project: Project, request: Request) -> Prepared:
    """Check a request as a whole, before any work: names, options, budget, experts.

    Raises:
        EspError: whatever is wrong with it.
    """
    chosen = project.settings.condense
    if request.space:
        require_space(request.space)
    method_options(chosen.method, request.options)  # what is misspelt is said before a data set is read
    data = load_data(request.dataset, project.paths.data, project.paths.raw)
    network = build_network(chosen.network, data.shape, data.num_classes)
    base = presets.preset(chosen.method, request.preset, data.name, request.ipc, network.spec, request.space)
    data = in_space(data, request.space or base.space, project.paths.data)
    data = data.held_out(request.trial["held_out"]) if request.trial else data
    method = method_options(chosen.method, request.options, base.options)
    spec = request.parametrisation or method.default_parametrisation
    name, options = parse_parametrisation(spec)
    parametrisation = build_parametrisation(name, Frame(data.num_classes, request.ipc, data.shape), options)
    found = []
    if method.needs_experts:
        found = expert_service.for_run(project, data, network, request.experts or None, request.expert_count or None)
    task = Task(data, network, parametrisation, Experts(tuple(found)) if found else None)
    method.check(task)
    described = {
        "method": chosen.method,
        "method_options": asdict(method),  # type: ignore[call-overload]
        "parametrisation": name,
        "parametrisation_options": options_of(parametrisation),
        "dataset": data.name,
        "fingerprint": data.fingerprint,
        "ipc": request.ipc,
        "network": network.spec,
        "seed": chosen.seed,
        "experts": [{"path": relative(project, t.path), "sha256": t.digest} for t in found],
    }
    if data.space != NORMALISED:  # left out where it is, so that older requests keep their keys
        described["space"] = data.space
    own = name == method.default_parametrisation and not options
    described |= _labels(method, chosen.method, base, task, own)
    splits = {str(trajectory.meta.get("split", OFFICIAL)) for trajectory in found} - {data.split}
    if splits:  # experts that were trained on more of the training images than the run sees, or on fewer
        described |= {"experts_split": ", ".join(sorted(splits)), "preset": "custom"}
    if request.trial:
        described |= {**request.trial, "preset": "trial"}
    prepared = _describe(project, described, task, method)
    if request.from_study:
        prepared.described["provenance"]["from_study"] = request.from_study
    return prepared


LABELS = ("preset", "preset_base", "preset_origin", "changed_options")
"""Entries of a request that say how it was asked for; they are no part of its key, which is of resolved values."""


def _labels(method: Method, name: str, base: presets.Preset, task: Task, own_storage: bool) -> dict[str, Any]:
    """`LABELS`: the preset's name, or `custom` for a changed one. Values that are the paper's are called so."""
    cell = (task.data.name, task.parametrisation.frame.ipc, task.network.spec)
    space = presets.preset(name, "paper", *cell).space  # the cell's own, whatever was asked for
    paper = presets.preset(name, "paper", *cell, task.data.space)
    if method == method_options(name, {}, paper.options):
        base = paper
    there = method_options(name, {}, base.options)
    changed = {f.name: v for f in fields(method) if (v := getattr(method, f.name)) != getattr(there, f.name)}  # type: ignore[arg-type]
    label = base.name if own_storage and not changed and task.data.space == space else "custom"
    return {"preset": label, "preset_base": base.name, "preset_origin": base.origin, "changed_options": changed}


def _describe(project: Project, request: dict[str, Any], task: Task, method: Method) -> Prepared:
    key = files.sha256(files.canonical({name: value for name, value in request.items() if name not in LABELS}))
    run = f"{slug(request['method'])}-{slug(request['dataset'])}-{request['ipc']}-{key[:8]}"
    compute = resolve_compute(project.settings.compute, flops(task, method))
    source = provenance.collect()
    body = {
        "id": run,
        "key": key,
        "created": datetime.now(UTC).isoformat(),
        "kind": "condense",
        "request": request,
        "compute": compute.describe(),
        "provenance": {**source.facts, "device": compute.device},
    }
    return Prepared(run, key, body, source.patch, method.steps)


def flops(task: Task, method: Method) -> float:
    """About what a run computes: nine forward passes of the synthetic set and one of the real batch in each step."""
    made = task.parametrisation
    images = made.frame.classes * made.units * made.multiplicity
    real = getattr(method, "real_batch", 0) * task.data.num_classes
    return float(task.network.flops) * (9 * images + real) * method.steps


def existing(project: Project, prepared: Prepared) -> RunRecord | None:
    """The newest run of a request that is still there, if any; a finished one rather than one that is not."""
    known = store_runs.runs_with_key(project.store, prepared.key)
    if not known and (project.folder_of(prepared.run) / "request.json").is_file():
        known = [find_run(project, prepared.run)]
    found = [run for run in known if (project.folder_of(run.id) / "request.json").is_file()]
    return next((run for run in found if run.state == "finished"), found[0] if found else None)


def at_rest(project: Project, run: str) -> RunRecord | None:
    """A run as it is while nobody works on it; None when a process does, or has entered it and not begun."""
    with locks.glance(project.folder_of(run)) as free:
        record = find_run(project, run) if free else None
    return None if record is None or record.state == "queued" else record


def start(
    project: Project, prepared: Prepared, on_progress: worker.Progress, again: bool = True,
    on_wait: locks.OnWait = locks.silent,
) -> RunRecord:  # fmt: skip
    """Enter a new run and carry it out in this process.

    Args:
        again: also when there is a run of this request. Without it that one is waited for, finished if it has to be,
            and returned: of processes that ask for the same run at the same moment one makes it.
        on_wait: called with its name when it is waited for.

    Raises:
        Interrupted: the run can be resumed.
        EspError: the run failed, and says why.
    """
    logs.require(project.settings.logging)
    if not again:
        existing(project, prepared)  # enters one whose process died before it was entered
    record, begun = store_runs.begin_run(
        project.store, project.paths.runs, prepared.run, prepared.key,
        lambda folder: _write_request(folder, prepared), again,
    )  # fmt: skip
    wait = locks.GLANCE if again and begun else None
    return carry_out(project, record.id, on_progress, wait, on_wait)


def trial_folder(project: Project, prepared: Prepared) -> Path:
    """The run folder of a trial, made unless an earlier attempt has made it. The database is left alone."""
    for number in range(1, 1_000):
        folder = project.folder_of(prepared.run if number == 1 else f"{prepared.run}-{number}")
        if not (folder / "request.json").is_file():
            _write_request(folder, prepared)
            return folder
        if files.read_json(folder / "request.json")["key"] == prepared.key:
            return folder
    raise RunError(f"there are too many runs named like {prepared.run}", "remove some of them")


def _write_request(folder: Path, prepared: Prepared) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lock").touch()  # there before the run is: who finds no lock cannot keep others from beginning
    if prepared.patch:
        files.write_text(folder / "patch.diff", prepared.patch)
    described = {**prepared.described, "id": folder.name}
    files.write_json(folder / "request.json", described)
    return described


def resume(project: Project, name: str, on_progress: worker.Progress) -> RunRecord:
    """Go on with an unfinished run, on the device and with the threads that it was started with.

    Raises:
        RunError: there is no such run, or it is finished.
    """
    record = find_run(project, name)
    if record.state == "finished":
        raise RunError(f"the run {record.id} is finished", f"look at it with: espctl runs show {record.id}")
    return carry_out(project, record.id, on_progress)


def steps_of(project: Project, name: str) -> tuple[str, int]:
    """Id and number of steps of a run."""
    record = find_run(project, name)
    request = files.read_json(project.folder_of(record.id) / "request.json")["request"]
    return record.id, int(request["method_options"].get("steps", 0))


def carry_out(
    project: Project, run: str, on_progress: worker.Progress, wait: float | None = locks.GLANCE,
    on_wait: locks.OnWait = locks.silent,
) -> RunRecord:  # fmt: skip
    """Do a run that was entered, in this process, and record how it ended; `wait` as in `worker.locked`.

    Raises:
        RunError: another process is working on it.
        Interrupted: by Ctrl-C or SIGTERM; the hint says how to go on.
        EspError: the run failed, and says why.
    """
    folder = project.folder_of(run)
    with signals.stoppable(_line(run)), worker.locked(folder, wait, on_wait):
        try:
            if not _finished(folder):
                with signals.saving(lambda: _leave(project, run)):
                    _work(project, run, on_progress)
            return store_runs.record_outcome(project.store, folder)
        except KeyboardInterrupt:
            _leave(project, run)
            raise


def _leave(project: Project, run: str) -> None:
    store_runs.set_state(project.store, run, "interrupted")


def _work(project: Project, run: str, on_progress: worker.Progress) -> None:
    store_runs.set_state(project.store, run, "running", started=datetime.now(UTC))
    settings, paths, folder = project.settings, project.paths, project.folder_of(run)
    every, asked = settings.compute.checkpoint_every, files.read_json(folder / "request.json")["request"]
    try:
        with signals.stoppable(), logs.following(settings.logging, paths.logs, run, asked, on_progress) as follow:
            worker.work(folder, paths.data, project.home, every, follow)
    except Exception as error:
        found = translate(error)
        paused = may_pass(found)
        with contextlib.suppress(StoreError):  # the disk may be full for the database too, which then says it runs
            store_runs.set_state(project.store, run, "interrupted" if paused else "failed", error=found.message)
        if paused:
            raise PausedError(found.message, _go_on(found.hint, run)) from error
        if isinstance(found, OutOfMemoryError):
            raise OutOfMemoryError(found.message, _go_on(found.hint, run)) from error
        raise


def _go_on(remedy: str, run: str) -> str:
    """A hint that says what to do before a run can be resumed."""
    return f"{cause_of(remedy)}, then {_line(run)}"


def _line(run: str) -> str:
    return f"go on with: espctl condense --resume {run}"


def _finished(folder: Path) -> bool:
    path = folder / "outcome.json"
    return path.exists() and files.read_json(path)["state"] == "finished"
