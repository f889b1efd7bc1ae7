"""`python -m fuzz [NAME ...] [--seconds N] [--output FOLDER]`: each target in a process of its own.

It exits with 1 when one finds something; the figures go into `DATE-cpu-COMMIT-fuzz.json` in the folder.
"""

from __future__ import annotations

import argparse
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def main() -> int:
    """Fuzz the named targets, or all."""
    parser = argparse.ArgumentParser(prog="python -m fuzz")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of fuzz.targets.TARGETS; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each")
    parser.add_argument("--jobs", type=int, default=1, help="targets at the same time")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write the figures there as JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        fuzz(given.one, given.seconds)
    from fuzz.targets import PLACE, TARGETS

    shutil.rmtree(PLACE)
    unknown = set(given.names) - set(TARGETS)
    if unknown:
        parser.error(f"unknown target {min(unknown)!r}")
    counts: dict[str, dict[str, int]] = {}
    names = given.names or list(TARGETS)
    with ThreadPoolExecutor(given.jobs) as pool:
        clean = pool.map(lambda name: _clean(name, given.seconds, counts), names)
        found = [name for name, sound in zip(names, clean, strict=True) if not sound]
    print(f"{len(names)} targets, findings in: {', '.join(found) or 'none'}")
    if given.output:
        _write(given.output, {"targets": dict(sorted(counts.items())), "findings": found})
    return 1 if found else 0


def _write(folder: Path, figures: dict[str, Any]) -> None:
    """The figures with when, where and of what they are."""
    from esp import files  # not above: a target must see what it imports instrumented

    git = ["git", "-C", str(Path(__file__).parents[1])]
    done = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    commit, date = done.stdout.strip(), datetime.now(UTC).isoformat(timespec="seconds")
    facts = {"date": date, "commit": commit or None, "device": "cpu", "machine": platform.platform()}
    files.write_json(folder / f"{date[:10]}-cpu-{commit[:7] or 'unknown'}-fuzz.json", {**figures, **facts})


def _clean(name: str, seconds: int, counts: dict[str, dict[str, int]]) -> bool:
    command = [sys.executable, "-m", "fuzz", "--one", name, "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds + 300)
    last = [line for line in done.stderr.splitlines() if line.startswith(("Done ", "#"))][-1:]
    ran = re.search(r"Done (\d+) runs in (\d+)", "".join(last)) or re.match(r"#(\d+)()", "".join(last))
    counts[name] = {"executions": int(ran[1]) if ran else 0, "seconds": int(ran[2] or seconds) if ran else seconds}
    print(f"{name:14} {'nothing found' if done.returncode == 0 else 'FOUND'}  {''.join(last)}", flush=True)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:], sep="\n", flush=True)
    return done.returncode == 0


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target in this process, which then ends.

    Raises:
        SystemExit: always; not 0 when something was found, which is printed.
    """
    import atheris

    with atheris.instrument_imports(include=["esp", "espctl", "tomllib", "fuzz"]):
        from fuzz import targets
    targets.PLACE.mkdir(exist_ok=True)
    corpus = Path(tempfile.mkdtemp(prefix="espctl-corpus-"))
    for seed in targets.seeds(name):
        (corpus / targets.digest(seed)).write_bytes(seed)
    target = targets.TARGETS[name]
    limits = [f"-max_total_time={seconds}", "-max_len=4096", "-timeout=10", "-rss_limit_mb=4096"]
    atheris.Setup(
        ["fuzz", *limits, f"-artifact_prefix={corpus}/", str(corpus)], lambda data: targets.check(target, data)
    )
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
