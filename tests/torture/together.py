"""`python -m tests.torture.together`: several processes give random commands to one project, and nothing is lost.

Each keeps account of what it did. Afterwards the accounts, the folders and the database must agree, and so must a
database that is made anew from the folders. Then all ask for the same thing at the same moment, and it is made once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from esp import files
from espctl.services.project import Project
from espctl.services.reproduction import plan as plans
from espctl.services.reproduction import reproduce  # noqa: F401 (imported before the processes are made)
from espctl.services.reproduction.plan import Asked, ExpertWork, Plan, Scoring, Work

from . import invariants
from .__main__ import facts
from .commands import SETTINGS
from .writers import Account, Writer, give, watch_renames

NETWORK = "convnet3,width=4"
LIMIT = 3000
"""Seconds after which the writers are said to wait for each other."""
ONCE = {
    "run": "condense -d digits --ipc 1 -m dm --set steps=3 --set real_batch=8 --seed 5 --json",
    "experts": "experts build -d digits --count 2 --epochs 2 --json",
    "evaluate": "evaluate {run} --seeds 2 --epochs 2 --json",
    "reproduce": "reproduce table1 --dataset digits --ipc 1 --method dm --budget 60s --seeds 2 --jobs 1 --threads 1 "
    f"--device cpu --network {NETWORK} --json",
}
"""What all ask for at the same moment."""
MADE = ("synthetic.safetensors", "outcome.json", "request.json")

_fork = multiprocessing.get_context("fork")


def main() -> int:
    """Let writers work on one project and prove that nothing was lost; 1 when something was."""
    parser = argparse.ArgumentParser("python -m tests.torture.together", description=main.__doc__)
    parser.add_argument("--writers", type=int, default=8, help="processes")
    parser.add_argument("--operations", type=int, default=2000, help="of all writers together")
    parser.add_argument("--seed", type=int, help="of all that is random; by default another each time")
    parser.add_argument("--once", action="append", choices=list(ONCE), help="only these at the same moment")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write the figures as JSON")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the project, for a look at it")
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if asked.seed is None else asked.seed
    print(f"seed {seed}", flush=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="espctl-together-") as scratch:
        folder = asked.keep or Path(scratch)
        found = together(folder / "home", asked.writers, asked.operations, seed)
        once = {name: at_once(folder / "home", name, asked.writers) for name in asked.once or ONCE}
    found |= {"once": {name: not wrong for name, wrong in once.items()}, "seconds": round(time.monotonic() - begun, 1)}
    found["wrong"] += [problem for wrong in once.values() for problem in wrong]
    _show(found)
    if asked.output:
        figures = facts()
        name = f"{figures['date'][:10]}-{figures['device']}-{(figures['commit'] or 'unknown')[:7]}-together.json"
        files.write_json(asked.output / name, {"seed": seed, **found, **figures})
    return int(bool(found["wrong"]))


def together(home: Path, writers: int, operations: int, seed: int) -> dict[str, Any]:
    """Let writers work on a new project; the figures, and under `wrong` what was lost or went wrong."""
    [prepared] = _in_processes([lambda: _prepare(home)])
    each = [operations // writers + (number < operations % writers) for number in range(writers)]
    begun = time.monotonic()
    accounts = _in_processes([_writing(home, number, seed, count) for number, count in enumerate(each)])
    seconds = time.monotonic() - begun
    [proof] = _in_processes([lambda: prove(home, accounts)])
    done = Counter(entry["op"] for account in accounts for entry in account.entries)
    return {
        "writers": writers,
        "operations": sum(account.operations for account in accounts),
        "refused": sum(account.refused for account in accounts),
        "done": dict(sorted(done.items())),
        "slowest_seconds": round(max(account.slowest for account in accounts), 2),
        "writing_seconds": round(seconds, 1),
        "wrong": [*prepared, *(problem for account in accounts for problem in account.wrong), *proof],
    }


def _prepare(home: Path) -> list[str]:
    """A project with a bundle of a run that it does not have."""
    home.mkdir(parents=True)
    (home / "espctl.toml").write_text(SETTINGS.replace("epochs = 3", "epochs = 1"))
    commands = ["condense -d digits --ipc 1 -m dm --set steps=1 --set real_batch=8"]
    commands += [f"runs export --all -o {home}/bundles/first.tar", "runs rm dm", "runs gc --yes"]
    return [f"{done.words}: {done.err}" for words in commands if (done := give(home, words)).code]


def _writing(home: Path, number: int, seed: int, count: int) -> Callable[[], Account]:
    return lambda: Writer(home, number, seed).work(count)


def _in_processes(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each of the functions returns, all at the same time, each in a process of its own."""
    pipes = [_fork.Pipe(duplex=False) for _ in works]
    children = [_fork.Process(target=_child, args=(work, end)) for work, (_, end) in zip(works, pipes, strict=True)]
    for child in children:
        child.start()
    deadline = threading.Timer(LIMIT, _kill, [children])
    deadline.start()
    for _, end in pipes:
        end.close()
    try:
        return [_heard(pipe) for pipe, _ in pipes]
    finally:
        deadline.cancel()
        for child in children:
            child.join()


def _kill(children: Sequence[Any]) -> None:
    for child in children:
        child.kill()


def _child(work: Callable[[], Any], end: Connection) -> None:
    try:
        end.send(work())
    except BaseException:
        end.send(traceback.format_exc())


def _heard(pipe: Connection) -> Any:
    try:
        found = pipe.recv()
    except EOFError:
        raise SystemExit(f"a process died, or none went on for {LIMIT} seconds") from None
    if isinstance(found, str):
        raise SystemExit(found)
    return found


def prove(home: Path, accounts: Sequence[Account]) -> list[str]:
    """What of the accounts is not found in folders and database; or what these two do not agree in."""
    database = home / "espctl.db"
    wrong = [*invariants.broken(home), *_agree(home, database), *_kept(home, accounts)]
    wrong += [
        f"{words}: {done.out}{done.err}" for words in ("db check", "verify --all") if (done := give(home, words)).code
    ]
    before = invariants.rows(database)
    with database.open("rb+") as file:
        file.write(bytes(4096))  # the first page: nothing of it can be read any more
    give(home, "db rebuild")
    after = invariants.rows(database)
    for table in sorted({*before, *after} - {"table datasets"}):
        if before.get(table) != after.get(table):
            wrong.append(f"made anew, {table} differs: {_first(before.get(table, ''), after.get(table, ''))}")
    return wrong + [f"made anew: {problem}" for problem in _agree(home, database)]


def _first(before: str, after: str) -> str:
    one, two = set(before.splitlines()), set(after.splitlines())
    return f"lost {sorted(one - two)[:1]}, new {sorted(two - one)[:1]}"


def _agree(home: Path, database: Path) -> Iterator[str]:
    """Folders and rows: the same runs, states and labels."""
    with closing(invariants.opened(database)) as raw:
        rows = {row["id"]: row for row in raw.execute("SELECT * FROM runs")}
        tags = {
            run: sorted(row[0] for row in raw.execute("SELECT tag FROM tags WHERE run_id = ?", (run,))) for run in rows
        }
    folders = {path.parent.name: path.parent for path in (home / "runs").glob("*/request.json")}
    yield from (f"{run} is in the {'rows' if run in rows else 'folders'} alone" for run in rows.keys() ^ folders.keys())
    for run in rows.keys() & folders.keys():
        row, labels = rows[run], _labels(folders[run])
        if (row["name"], row["note"], tags[run]) != (labels["name"], labels["note"], labels["tags"]):
            yield f"the labels of {run} are {labels}, its rows say {row['name']}, {row['note']}, {tags[run]}"
        if (row["state"] == "finished") != (folders[run] / "outcome.json").exists():
            yield f"{run} is {row['state']}"
    names = Counter(row["name"] for row in rows.values() if row["name"])
    yield from (f"{count} runs are called {name}" for name, count in names.items() if count > 1 and name not in _SHARED)


_SHARED = ("best", "favourite")
"""Names that a run may bring back from the trash although another has them by now."""


def _labels(folder: Path) -> dict[str, Any]:
    path = folder / "labels.json"
    return {"name": None, "note": None, "tags": []} | (files.read_json(path) if path.exists() else {})


def _kept(home: Path, accounts: Sequence[Account]) -> Iterator[str]:
    """Everything that was done, in what there is now: in its place, or in the trash."""
    entries = [entry for account in accounts for entry in account.entries]
    places: dict[str, list[Path]] = {}
    for path in [*(home / "runs").glob("*/request.json"), *(home / "runs/.trash").glob("*/request.json")]:
        places.setdefault(path.parent.name.partition("@")[0], []).append(path.parent)
    imported = {run for entry in entries if entry["op"] == "import" for run in entry["added"]}
    if sum(len(entry["added"]) for entry in entries if entry["op"] == "import") != len(imported):
        yield "a run was imported twice"
    for run in sorted({entry["run"] for entry in entries if "run" in entry} | places.keys()):
        here = [entry for entry in entries if entry.get("run") == run]
        yield from _counted(run, here, places.get(run, []), run in imported)
        if not any(entry["op"] == "gone" for entry in here):
            yield from _labelled(run, here, [_labels(folder) for folder in places.get(run, [])])
            scored = [folder for folder in places.get(run, []) if list(folder.glob("evaluations/*.json"))]
            if any(entry["op"] == "score" for entry in here) != bool(scored):
                yield f"a score of {run} is lost, or nobody's"


def _counted(run: str, entries: Sequence[dict[str, Any]], places: Sequence[Path], imported: bool) -> Iterator[str]:
    """As many as were made and not deleted are there; as many as were removed and not restored are in the trash."""
    count = Counter(entry["op"] for entry in entries)
    made = len({entry["created"] for entry in entries if entry["op"] == "made"}) + imported
    trashed = sum(folder.parent.name == ".trash" for folder in places)
    if made != len(places) + count["gone"]:
        yield f"{run} was made {made} times and deleted {count['gone']} times; there are {len(places)}"
    if count["rm"] - count["restore"] != trashed + count["gone"]:
        yield f"{run} was removed {count['rm']}, restored {count['restore']} times; {trashed} are in the trash"
    if len(places) - trashed > 1:
        yield f"{run} is there {len(places) - trashed} times"


def _labelled(run: str, entries: Sequence[dict[str, Any]], labels: Sequence[dict[str, Any]]) -> Iterator[str]:
    """All tags are there and no others; note and name are the last of somebody's."""
    given, taken = ({entry["tag"] for entry in entries if entry["op"] == op} for op in ("tag", "untag"))
    found = Counter(tag for one in labels for tag in one["tags"])
    # Where a removed run and a later one share the id, a tag of the first may have been taken off the second.
    wrong = (found.keys() - given) | (found.keys() & taken if len(labels) == 1 else set())
    if lost := given - taken - found.keys():
        yield f"tags of {run} are lost: {sorted(lost)}"
    if wrong or any(count > 1 for count in found.values()):
        yield f"tags of {run}: {sorted(wrong)} are beyond, of {dict(found)}"
    for kind in ("note", "name"):
        given = {entry[kind] for entry in entries if entry["op"] == kind}
        kept = {one[kind] for one in labels if one[kind]}
        if bool(given) != bool(kept) or not kept <= given:
            yield f"{kind} of {run}: {sorted(kept)}, of {sorted(given)[:5]}"


def at_once(home: Path, name: str, writers: int) -> list[str]:
    """Let all ask for the same thing at the same moment; what was made not once, or refused."""
    if name == "reproduce":
        _keep_plan(home)
    [run] = sorted(path.name for path in (home / "runs").glob("dm-*"))[:1] or [""]
    words = ONCE[name].format(run=run)
    barrier = _fork.Barrier(writers)
    found = _in_processes([lambda: _asking(home, words, barrier) for _ in range(writers)])
    counts: Counter[str] = Counter()
    for _, made in found:
        counts.update(made)
    wrong = [f"{words}: {done.code}: {done.err}" for done, _ in found if done.code]
    made = {
        path: n for path, n in counts.items() if Path(path).name in MADE or "/evaluations/" in path or "expert-" in path
    }
    wrong += [f"{name}: {path} was made {n} times" for path, n in made.items() if n > 1]
    return wrong + ([] if made else [f"{name}: nothing was made"])


def _asking(home: Path, words: str, barrier: Any) -> tuple[Any, dict[str, int]]:
    counts: dict[str, int] = {}
    watch_renames(counts)
    barrier.wait()
    return give(home, words), counts


def _keep_plan(home: Path) -> None:
    """A plan of a second, by which the command goes."""
    asked = Asked("table1", "digits", 1, ("dm",), 60.0, seeds=2, network=NETWORK)
    asked = replace(asked, device="cpu", threads=1)
    scorings = (Scoring("convnet3", NETWORK, "dsa@2", 2, 1.0),)
    works = tuple(
        Work(
            "digits",
            1,
            method,
            method,
            "quick",
            options,
            len(options),
            NETWORK,
            "normalised",
            None,
            0,
            1.0,
            scorings,
            "",
        )
        for method, options in (("random", {}), ("dm", {"steps": "4", "real_batch": "8"}))
    )
    experts: tuple[ExpertWork, ...] = ()
    plans.keep(Project.open({"home": home}), Plan(asked, "cut", experts, works))


def _show(found: dict[str, Any]) -> None:
    counts = ", ".join(f"{count} {op}" for op, count in found["done"].items())
    print(f"{found['writers']} writers, {found['operations']} operations in {found['writing_seconds']:.0f} s: {counts}")
    print(f"{found['refused']} were refused, because another was there first; slowest {found['slowest_seconds']:.1f} s")
    print("made once: " + json.dumps(found["once"]))
    for problem in found["wrong"]:
        print(f"- {problem[:2000]}")
    print(f"{len(found['wrong'])} problems, {found['seconds']:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
