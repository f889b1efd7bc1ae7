"""`python -m tests.torture`: kill the program and break its disk, many times, and count what survives."""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from esp import files

from . import cases, programs
from .cases import Bench, Case, Outcome, Undisturbed
from .commands import Homes


def main() -> int:
    """Run the cases that are asked for; 1 when one of them did not survive."""
    asked = _arguments()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="espctl-torture-") as folder, ExitStack() as stack:
        library = programs.build(Path(folder)) if programs.compiler() else None
        crew = _Crew(Path(folder), library, asked.jobs, stack)
        chosen = _chosen(asked, crew.bench())
        outcomes = crew.run(chosen, lambda done: _tell(done, asked.verbose))
    found = {"seed": asked.seed, **summary(outcomes), "seconds": round(time.monotonic() - begun, 1), **facts()}
    _show(found, outcomes, library is not None)
    if asked.output:
        _write(asked.output, found)
    return int(any(outcome.wrong for outcome in outcomes))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.torture", description=main.__doc__)
    parser.add_argument("--kills", type=int, default=500, help="signals at random moments")
    parser.add_argument("--writes", type=int, default=200, help="failed writes; 0 for none, -1 for each one in turn")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    parser.add_argument("--jobs", "-j", type=int, default=1, help="cases at the same time")
    parser.add_argument("--only", action="append", metavar="COMMAND", help="the cases of a command alone")
    parser.add_argument("--replay", action="append", metavar="CASE", help="a case as it was printed; may be repeated")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the figures as JSON; a folder for its usual name"
    )
    parser.add_argument("--verbose", "-v", action="store_true", help="a line for every case")
    return parser.parse_args()


def _chosen(asked: argparse.Namespace, bench: Bench) -> list[Case]:
    if asked.replay:
        return [Case.parse(text) for text in asked.replay]
    counted = programs.compiler() is not None
    found = list(cases.kills(asked.kills, asked.seed, bench, counted))
    if counted and asked.writes:
        found += cases.writes(max(0, asked.writes), asked.seed, bench)
    return [case for case in found if not asked.only or case.command in asked.only]


class _Crew:
    """Workers, each with a server and a bench of its own; the prepared projects are the same."""

    def __init__(self, folder: Path, library: Path | None, jobs: int, stack: ExitStack) -> None:
        known: dict[str, Undisturbed] = {}
        servers = [stack.enter_context(programs.server(library)) for _ in range(jobs)]
        homes = Homes(folder / "prepared", servers[0])
        self._benches = [Bench(folder / f"worker-{i}", one, homes, known) for i, one in enumerate(servers)]
        self._own = threading.local()
        self._lock = threading.Lock()

    def bench(self) -> Bench:
        """A bench for what comes before the cases."""
        return self._benches[0]

    def run(self, chosen: Sequence[Case], tell: Callable[[Outcome], None]) -> list[Outcome]:
        """Try all cases, in any order."""
        for case in chosen:  # so that no two workers find it out at the same time
            self.bench().undisturbed(case.command)
        free = list(self._benches)
        with ThreadPoolExecutor(len(free), initializer=lambda: setattr(self._own, "bench", free.pop())) as pool:
            return list(pool.map(lambda case: self._try(case, tell), chosen))

    def _try(self, case: Case, tell: Callable[[Outcome], None]) -> Outcome:
        bench: Bench = self._own.bench
        done = bench.run(case)
        with self._lock:
            tell(done)
        return done


def _tell(outcome: Outcome, verbose: bool) -> None:
    if outcome.wrong:
        print(f"LOST {outcome.case}: hit {outcome.hit}", flush=True)
        for problem in outcome.wrong:
            print(f"  - {problem}", flush=True)
    elif verbose:
        print(f"ok {outcome.case}: hit {outcome.hit}, {outcome.seconds:.1f} s", flush=True)


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Survived and all: of signals and of failed writes, and of each command, signal and error among them."""
    killed = [outcome for outcome in outcomes if outcome.case.killed]
    failed = [outcome for outcome in outcomes if not outcome.case.killed]
    return {
        "kills": {**_count(killed), "by_command": _by(killed, "command"), "by_signal": _by(killed, "what")},
        "writes": {**_count(failed), "by_command": _by(failed, "command"), "by_errno": _by(failed, "what")},
        "lost": [str(outcome.case) for outcome in outcomes if outcome.wrong],
    }


def _count(outcomes: Sequence[Outcome]) -> dict[str, int]:
    return {"survived": sum(not outcome.wrong for outcome in outcomes), "all": len(outcomes)}


def _by(outcomes: Sequence[Outcome], name: str) -> dict[str, dict[str, int]]:
    counts = Counter(getattr(outcome.case, name) for outcome in outcomes)
    return {one: _count([o for o in outcomes if getattr(o.case, name) == one]) for one in sorted(counts)}


def facts() -> dict[str, Any]:
    """When, where and with what."""
    import sqlite3

    import torch

    git = ["git", "-C", str(programs.ROOT)]
    commit, changed = (
        subprocess.run([*git, *words], capture_output=True, text=True, check=False).stdout.strip()
        for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit or None,
        "changed": bool(changed),
        "device": "cpu",
        "machine": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sqlite": sqlite3.sqlite_version,
    }


def _show(found: dict[str, Any], outcomes: Sequence[Outcome], counted: bool) -> None:
    for name in ("kills", "writes"):
        part = found[name]
        print(f"{name}: {part['survived']} of {part['all']} survived")
        for command, one in part["by_command"].items():
            print(f"  {command}: {one['survived']} of {one['all']}")
    if not counted:
        print("no C compiler was found: no write was failed, and signals came at times alone")
    print(f"seed {found['seed']}, {found['seconds']:.0f} seconds")
    for case in found["lost"]:
        print(f"repeat it: {Path(sys.executable).name} -m tests.torture --replay '{case}'")


def _write(output: Path, found: dict[str, Any]) -> None:
    if output.suffix != ".json":
        output = output / f"{found['date'][:10]}-{found['device']}-{(found['commit'] or 'unknown')[:7]}-torture.json"
    files.write_json(output, found)
    print(output)


if __name__ == "__main__":
    sys.exit(main())
