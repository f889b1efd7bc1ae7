"""What programs read: the keys of every command's --json, in one table that a change must touch."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from espctl import cli

GOLDEN = Path(__file__).parents[1] / "golden" / "json_keys.json"
SHORT = "--protocol dsa --epochs 2 --seeds 1"
COMMANDS = [
    "config show", "data check digits", "data fetch digits", "data info digits", "data ls",
    "data show digits -o @grid.png", "db check", "db current", "db upgrade", "db backup @copy.db", "db rebuild",
    "doctor --fast",
    "experts build -d digits", "experts build -d digits --dry-run", "experts ls", "experts show STORE/0",
    "experts verify", "methods ls", "methods show esp", "networks ls", "networks show convnet3", "protocols ls",
    "protocols show dsa", "condense -d digits --ipc 1 -m random",
    "condense -d digits --ipc 1 -m dm --set steps=2 --dry-run",
    "condense -d digits --ipc 1 -m dm --set steps=2", f"evaluate LAST {SHORT}",
    "condense -d digits --ipc 1 -m dm --set steps=3", f"evaluate LAST {SHORT}",
    "runs rename esp-digits-1 first", f"evaluate first {SHORT}", f"evaluate first {SHORT} --network resnet10,width=4",
    "export first --to npz -o @set.npz",
    "compress first --bits 4", "rerun first --check",
    "reproduce table1 -d digits --ipc 1 --method random --network convnet3,width=4 --dry-run",
    "tune -d digits --ipc 1 -m dm --trials 4 --set steps=2 --epochs 10 --threads 1 --pruner none", "tune ls",
    "tune show dm-digits-1", "tune best dm-digits-1", "tune importance dm-digits-1",
    "tune plot dm-digits-1 -o @plots", "runs ls", "runs ls --group seed", "runs show first",
    "runs diff first random-digits-1", "runs tag first keep", "runs note first text", "runs watch --once",
    "runs gc --dry-run", "runs sync", "runs export first -o @bundle", "runs import @bundle",
    "runs rm random-digits-1 --force", "runs restore random-digits-1", "verify first", "verify --all",
    "query 'select id, ipc from runs'", "report table1", "report table2", "report table4", "report figure3 -d digits",
    "report figure4 -d digits", "report figure5 -d digits", "report figure6 -d digits",
    "report figure7 --bench @bench.json", "report figure8 -m dm", "report html -o @page.html",
]  # fmt: skip
"""In the order in which they are run. STORE is the one of the experts, LAST the newest run, @NAME a path."""
SAME = {"report table3": "report table2"}
"""Commands whose keys are another's, and which would take minutes to show any."""

POINTS = [{"method": "esp", "inner_steps": 1, "ipc": 1, "seconds": 0.5, "peak_memory_bytes": 10**6, "fits": True}]


@pytest.fixture(scope="module")
def shapes(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Command -> the keys of what it prints."""
    folder = tmp_path_factory.mktemp("keys")
    project = finished.copy(folder / "project")
    (folder / "bench.json").write_text(json.dumps({"figure7": POINTS}))
    return {command: shape(read(project, command, folder)) for command in COMMANDS}


def read(project: Any, command: str, folder: Path) -> Any:
    """What a command prints with --json."""
    store = next((project.home / "experts").iterdir()).name
    last = max((project.home / "runs").glob("*/request.json"), key=lambda path: path.stat().st_mtime_ns).parent.name
    words = shlex.split(command.replace("STORE", store).replace("LAST", last).replace("@", f"{folder}/"))
    return json.loads(project(*words, "--json").out)


def shape(value: Any) -> Any:
    """Names of an object's keys, with what stands below them; a list by its first item, a value not at all."""
    if isinstance(value, list):
        return shape(value[0]) if value else None
    if not isinstance(value, dict):
        return None
    below = {name: shape(inner) for name, inner in value.items() if name.isidentifier()}
    return " ".join(f"{name}({inner})" if inner else name for name, inner in sorted(below.items()))


@pytest.mark.parametrize("command", COMMANDS)
def test_keys(shapes: dict[str, Any], command: str) -> None:
    assert shapes[command] == json.loads(GOLDEN.read_text(encoding="utf-8"))[command]


def test_every_command_is_in_the_table() -> None:
    missing = []
    for name in cli.COMMANDS:
        command = cli.load_command(name)
        for child, below in getattr(command, "commands", {"": command}).items():
            full = f"{name} {child}".strip()
            has = any("--json" in option.opts for option in below.params)
            start = f"{SAME.get(full, full)} "
            if has and not any(f"{line} ".startswith(start) for line in COMMANDS):
                missing.append(full)
    assert not missing
