"""Starting a study, and going on with it: every setting of it resolved and checked, then handed to its workers."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from esp.errors import InputError
from esp.parametrisation import Frame
from esp.parametrisation import build as build_parametrisation
from espctl import settings as configuration
from espctl.errors import PausedError, RunError, UsageError, cause_of, may_pass, translate
from espctl.jobs import crew, pool, signals
from espctl.services import condense
from espctl.services.project import Project, dataset_name, slug
from espctl.services.protocols import find as find_protocol
from espctl.services.tuning import studies, trial
from espctl.services.tuning.plan import Plan, differences
from espctl.services.tuning.space import Space, searched
from espctl.services.tuning.study import Study, exists


@dataclass(frozen=True)
class Asked:
    """What a command says about a study; None where it says nothing: then the study's own setting counts, or else ours.

    Attributes:
        study: its name; by default made of method, data set and images per class.
        options: text values of the method's options, the same for every trial.
        space: texts as `space.parse` takes them.
        timeout: seconds.
        others: as in `study.Plan`, and `trials` and `jobs` as in `settings.Tune`.
    """

    study: str | None = None
    dataset: str | None = None
    ipc: int | None = None
    method: str | None = None
    preset: str | None = None
    network: str | None = None
    parametrisation: str | None = None
    seed: int | None = None
    experts: str | None = None
    expert_count: int | None = None
    options: Mapping[str, str] | None = None
    space: Sequence[str] | None = None
    held_out: float | None = None
    protocol: str | None = None
    epochs: int | None = None
    seeds: int | None = None
    pruner: str | None = None
    trials: int | None = None
    jobs: int | None = None
    timeout: float | None = None


@dataclass(frozen=True)
class Prepared:
    """A study that is ready to be worked on, and what should be said before."""

    study: Study
    work: trial.Work
    jobs: int
    notes: tuple[str, ...]


class _Resolved(NamedTuple):
    """A plan, the trial to begin with, and what is to be said about them."""

    plan: Plan
    first: dict[str, float | int | str]
    notes: tuple[str, ...]


def prepare(project: Project, asked: Asked) -> Prepared:
    """Check what is asked as a whole, and make the study unless it is there.

    Raises:
        RunError: a study of this name was started with other settings.
        EspError: whatever is wrong with the request; nothing was made then.
    """
    chosen, folder = project.settings.tune, _folder(project, asked)
    there = Study(folder).plan if exists(folder) else None
    if there is None and (asked.dataset is None or asked.ipc is None):
        _require_known(project, asked)
        raise UsageError("tune needs a data set and a number of images per class", "give --dataset NAME --ipc N")
    resolved = _resolve(project, asked, there, folder.name)
    study = Study.create(folder, resolved.plan, resolved.first) if there is None else Study(folder)
    if found := differences(study.plan, resolved.plan):
        raise RunError(
            f"the study {study.name} has other settings: {'; '.join(found)}",
            f"go on with its own: espctl tune --study {study.name}; or give this one another name with --study",
        )
    jobs = asked.jobs or chosen.jobs
    deadline = time.time() + asked.timeout if asked.timeout else float("inf")
    settings = _settings(project, study.plan, jobs)
    work = trial.Work(settings, folder, asked.trials or chosen.trials, deadline)
    return Prepared(study, work, jobs, () if there else resolved.notes)


def run(project: Project, prepared: Prepared, on_event: pool.Report) -> studies.View:
    """Work on a study until it has its trials, or time is up.

    Args:
        on_event: called with the events of `espctl.services.tuning.trial` and of `espctl.jobs.crew`.

    Raises:
        Interrupted: every trial under way was saved; the hint is the line that goes on.
        EspError: the first trial or several in a row failed, or something that no trial is to blame for.
    """
    study, work = prepared.study, prepared.work
    studies.refresh(project, study)

    def hear(event: pool.Event) -> None:
        studies.record(project, study, event)
        on_event(event)

    line = f"go on with: espctl tune --study {study.name} --trials {work.goal} --jobs {prepared.jobs}"
    with signals.stoppable(line), _refreshed(project, study):
        try:
            crew.run(trial.attend, work, prepared.jobs, hear)
        except Exception as error:
            if may_pass(found := translate(error)):
                raise PausedError(found.message, f"{cause_of(found.hint)}, then {line}") from error
            raise
    return studies.view(project, study)


def _folder(project: Project, asked: Asked) -> Path:
    name = asked.study
    if name is None:
        parts = (asked.method or project.settings.condense.method, asked.dataset or "", asked.ipc or "")
        name = slug("-".join(map(str, parts)))
    if not name or slug(name) != name:
        raise InputError(f"{name!r} cannot be the name of a study", "use letters, digits, dots and dashes, 40 at most")
    return project.paths.studies / name


def _require_known(project: Project, asked: Asked) -> None:
    """A study that is named and nothing else said must be there."""
    if asked.study is not None and asked.dataset is None and asked.ipc is None:
        studies.open_study(project, asked.study)


def _resolve(project: Project, asked: Asked, there: Plan | None, name: str) -> _Resolved:
    """Every setting of a study: as asked, else as it was started with, else as in the settings."""
    defaults = _defaults(project.settings) if there is None else asdict(there)
    told = {key: value for key, value in asdict(asked).items() if key in defaults and value is not None}
    if "dataset" in told:
        told["dataset"] = dataset_name(told["dataset"])
    told.pop("space", None)  # which needs the method's options first
    told |= _protocol(told)
    values = {**defaults, **told}
    _check(values)
    values["protocol_hash"] = find_protocol(project, values["protocol"]).hash
    project = Project(_with(project.settings, values["method"], values["network"], values["seed"]))
    request = condense.Request(
        dataset=values["dataset"],
        ipc=values["ipc"],
        options=values["options"],
        parametrisation=values["parametrisation"],
        experts=values["experts"],
        expert_count=values["expert_count"],
        preset=values["preset"],
        trial={"study": name, "trial": 0, "held_out": values["held_out"]},
    )
    found = condense.prepare(project, request).described["request"]
    values |= {key: found[key] for key in ("dataset", "fingerprint", "network")}
    if there is not None and asked.space is None and asked.options is None:
        return _Resolved(Plan(**values), {}, ())
    return _with_space(project.settings, values, found, asked)


def _with_space(
    settings: configuration.Settings, values: dict[str, Any], found: dict[str, Any], asked: Asked
) -> _Resolved:
    method = condense.method_options(values["method"], {}, found["method_options"])
    frame = Frame(1, values["ipc"], (1, 32, 32))
    stored = build_parametrisation(found["parametrisation"], frame, found["parametrisation_options"])
    space = searched(values["method"], method, stored.stores_images, list(values["options"]), asked.space or ())
    total = int(found["method_options"].get("steps", 0))
    own = "steps" in values["options"] or "steps" in space or total <= settings.tune.steps
    cut = 0 if own else settings.tune.steps
    notes = [f"condensations are cut to {cut} of {total:,} steps; --set steps=N says otherwise"] if cut else []
    first, outside = _first(space, found["method_options"])
    notes += [f"the default of {option} is outside its space" for option in outside]
    plan = Plan(**{**values, "steps": cut, "space": {option: space[option].describe() for option in space}})
    return _Resolved(plan, first, tuple(notes))


def _first(space: Space, defaults: Mapping[str, Any]) -> tuple[dict[str, float | int | str], list[str]]:
    """The point of a space that is nearest to the defaults, and the options where it is another."""
    nearest = {option: dimension.nearest(defaults[option]) for option, dimension in space.items()}
    outside = [
        option
        for option, value in nearest.items()
        if value is None or value not in (defaults[option], str(defaults[option]))
    ]
    return {option: value for option, value in nearest.items() if value is not None}, outside


def _defaults(settings: configuration.Settings) -> dict[str, Any]:
    chosen, tuned = settings.condense, settings.tune
    return {
        "dataset": "",
        "fingerprint": "",
        "ipc": 0,
        "method": chosen.method,
        "preset": "paper",
        "network": chosen.network,
        "parametrisation": "",
        "seed": chosen.seed,
        "experts": "",
        "expert_count": 0,
        "options": {},
        "steps": 0,
        "held_out": tuned.held_out,
        "protocol": tuned.protocol,
        "protocol_hash": "",
        "epochs": tuned.epochs,
        "seeds": tuned.seeds,
        "pruner": tuned.pruner,
        "space": {},
    }


def _protocol(told: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol that was named, without its cut, which is a number of epochs; a file wherever this command runs."""
    name = str(told.get("protocol", ""))
    if name.endswith(".toml"):
        return {"protocol": str(Path(name).expanduser().absolute())}
    if (cut := re.search(r"@(\d+)", name)) is None:
        return {}
    return {"protocol": name.replace(cut.group(), "", 1), "epochs": told.get("epochs", int(cut.group(1)))}


def _check(values: Mapping[str, Any]) -> None:
    if not 0 < values["held_out"] < 1:
        raise InputError(
            f"a study scores its trials on held-out training images, and held-out {values['held_out']:g} leaves none",
            "give a fraction between 0 and 1, for example --held-out 0.1",
        )
    if values["pruner"] not in ("median", "hyperband", "none"):
        raise InputError(f"unknown pruner {values['pruner']!r}", "choose median, hyperband or none")


def _with(settings: configuration.Settings, method: str, network: str, seed: int) -> configuration.Settings:
    return replace(settings, condense=replace(settings.condense, method=method, network=network, seed=seed))


def _settings(project: Project, plan: Plan, jobs: int) -> configuration.Settings:
    """The settings of the workers: those that share the machine have one thread each, unless told otherwise."""
    settings = _with(project.settings, plan.method, plan.network, plan.seed)
    compute = settings.compute
    threads = 1 if jobs > 1 and compute.threads == 0 else compute.threads
    return replace(settings, compute=replace(compute, threads=threads))


@contextmanager
def _refreshed(project: Project, study: Study) -> Iterator[None]:
    try:
        yield
    finally:
        studies.refresh(project, study)
