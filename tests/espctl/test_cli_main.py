import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy.exc
import typer
from typer.testing import CliRunner

from esp.errors import EspError
from espctl import __version__, cli
from espctl.cli import options
from espctl.errors import Interrupted, RunError, UsageError, exit_code, translate

HEAVY = ("torch", "sqlalchemy", "alembic", "pydantic", "rich", "numpy", "safetensors", "espctl.settings")
FAILURES = """
import errno, os
from esp.errors import EspError
from espctl.errors import RunError, UsageError

def known() -> None:
    raise RunError("the run 'x\\x1b[31m' is unknown", "known: a")

def usage() -> None:
    raise UsageError("no")

def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a")

def bug() -> None:
    raise ValueError("first\\nsecond")

def stopped() -> None:
    raise KeyboardInterrupt

def code() -> None:
    import typer
    raise typer.Exit(3)
"""


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("ESPCTL_", "_ESPCTL_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The commands of FAILURES."""
    (tmp_path / "failures_of_a_test.py").write_text(FAILURES)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("known", "usage", "full", "bug", "stopped", "code"):
        monkeypatch.setitem(cli.COMMANDS, name, (f"failures_of_a_test:{name}", f"Fail: {name}."))
    yield
    sys.modules.pop("failures_of_a_test", None)


def espctl(*arguments: str, code: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own."""
    command = [sys.executable, *(["-c", code] if code else ["-m", "espctl"]), *arguments]
    found = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environ}
    return subprocess.run(command, capture_output=True, text=True, env=found, timeout=60, check=False)


def test_help_lists_every_command_and_imports_none() -> None:
    modules = f"sorted(set(sys.modules) & {{*{HEAVY!r}, *(t.partition(':')[0] for t, _ in cli.COMMANDS.values())}})"
    code = f"import sys; from espctl import cli; cli.run(['--help']); print({modules})"
    done = espctl(code=code)
    *lines, imported = done.stdout.splitlines()
    assert imported == "[]"
    listed = [line.split()[0] for line in lines[lines.index("Commands:") + 1 :]]
    assert listed == list(cli.COMMANDS)
    assert all(any(text in line for line in lines) for _, text in cli.COMMANDS.values())


def test_the_help_of_a_command_imports_no_more_than_its_module() -> None:
    code = (
        f"import sys; from espctl.cli import run; run(['config', 'show', '-h']); print(set(sys.modules) & {set(HEAVY)})"
    )
    assert espctl(code=code).stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_help_fits_the_screen(columns: int) -> None:
    lines = espctl("--help", COLUMNS=str(columns)).stdout.splitlines()
    assert 30 <= max(map(len, lines)) <= columns


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([name, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Usage: espctl {name} ")
    assert err == ""


def test_no_arguments_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 0
    assert capsys.readouterr().out.startswith("Usage: espctl ")
    assert cli.run(["config"]) == 0
    assert capsys.readouterr().out.startswith("Usage: espctl config ")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"espctl {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["confg"], "unknown command 'confg'", "did you mean 'config'?"),
        (["config", "shwo"], "unknown command 'shwo'", "did you mean 'show'?"),
        (["zzz"], "unknown command 'zzz'", "known: data, experts,"),
        (["con\x1b[31m"], "unknown command 'con\\x1b[31m'", "known: "),
        (["--verson"], "no such option: --verson", "did you mean '--version'?"),
        (["config", "show", "--orign"], "no such option: --orign", "did you mean '--origin'?"),
        (["config", "show", "--home"], "option '--home' requires an argument", "with --help shows"),
        (["config", "show", "a", "b"], "got unexpected extra argument(s) (a b)", "see: espctl config show --help"),
    ],
)
def test_a_command_line_that_is_not_understood(
    arguments: list[str], error: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == 2
    out, err = capsys.readouterr()
    first, second = err.splitlines()
    assert out == ""
    assert first == f"error: {error}"
    assert second.startswith("hint: ")
    assert hint in second


@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize(
    ("name", "code", "lines"),
    [
        ("known", 1, ["error: the run 'x\\x1b[31m' is unknown", "hint: known: a"]),
        ("usage", 2, ["error: no"]),
        ("full", 1, ["error: runs/a: the disk is full", "hint: free some disk space or choose"]),
        ("bug", 1, ["error: unexpected ValueError: first", "hint: this is a defect of espctl"]),
        ("stopped", 130, ["error: interrupted", "hint: run the same command again"]),
        ("code", 3, []),
    ],
)
def test_a_failure_is_a_sentence_and_a_remedy(
    name: str, code: int, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([name]) == code
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == len(lines)
    assert all(line.startswith(start) for line, start in zip(shown, lines, strict=True))


@pytest.mark.usefixtures("failing")
def test_a_traceback_only_on_request(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for value, wanted in (("0", False), ("1", True)):
        monkeypatch.setenv("ESPCTL_DEBUG", value)
        assert cli.run(["bug"]) == 1
        err = capsys.readouterr().err
        assert ("Traceback" in err) == wanted
        assert err.splitlines()[-2] == "error: unexpected ValueError: first"


def test_a_signal_ends_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "sleeping.py").write_text(
        "import time\ndef sleep() -> None:\n    print('on', flush=True)\n    time.sleep(30)"
    )
    # A shell starts its background jobs with Ctrl-C ignored, and the tests may run in one.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heard}; from espctl import cli; cli.COMMANDS['sleep'] = ('sleeping:sleep', ''); cli.main(['sleep'])"
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{tmp_path}"},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=40)
    assert process.returncode == 130
    assert err.splitlines()[0] == "error: interrupted"


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m espctl config show --json | true"
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}, check=False
    )
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("flag", ["--json", "--no-json"])
def test_an_output_that_cannot_be_written_is_an_error(flag: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "espctl", "config", "show", flag],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "error: the disk is full"
    assert len(done.stderr.splitlines()) == 2


def test_a_terminal_without_unicode_still_gets_its_table() -> None:
    done = espctl("config", "show", "--origin", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0
    assert "compute.checkpoint_every" in done.stdout


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (OSError(errno.EROFS, "x", "f"), "f: the file system is read-only", "--home"),
        (PermissionError(errno.EACCES, "Permission denied", "f"), "f: permission denied", "owner"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "f"), "f: no such file or directory", "path"),
        (OSError("odd"), "odd", "path"),
        (ModuleNotFoundError("No module named 'sklearn.x'", name="sklearn.x"), "'sklearn' is not installed", "pip"),
        (ModuleNotFoundError("No module named 'esp.x'", name="esp.x"), "a part of espctl is missing", "again"),
        (MemoryError(), "out of memory", "compute.chunk"),
        (RuntimeError("x: can't allocate memory: you tried"), "out of memory", "compute.chunk"),
        (sqlite3.DatabaseError("file is not a database"), "not an SQLite database", "espctl db rebuild"),
        (sqlalchemy.exc.OperationalError("q", {}, Exception("database is locked")), "locked by another", "wait"),
        (sqlalchemy.exc.OperationalError("q", {}, Exception("no such table: runs")), "lacks a table", "db rebuild"),
        (sqlalchemy.exc.ArgumentError("a\nb"), "the database failed: a", "espctl db check"),
        (RecursionError("deep"), "unexpected RecursionError: deep", "ESPCTL_DEBUG=1"),
        (ValueError(), "unexpected ValueError: no message", "ESPCTL_DEBUG=1"),
    ],
)
def test_foreign_failures_in_our_words(error: BaseException, message: str, hint: str) -> None:
    found = translate(error)
    assert message in found.message
    assert hint in found.hint
    assert exit_code(found) == 1


def test_our_failures_stay_as_they_are() -> None:
    for error, code in ((EspError("a"), 1), (RunError("a"), 1), (UsageError("a"), 2), (Interrupted(), 130)):
        assert translate(error) is error
        assert exit_code(error) == code
    assert exit_code(translate(KeyboardInterrupt())) == 130


def test_config_show(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("ESPCTL_EXPERTS_LR", "0.5")
    (tmp_path / "espctl.toml").write_text("[compute]\nthreads = 3\n[output]\nquiet = true\n")
    assert cli.run(["config", "show", "--origin", "--home", "other"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["compute.threads"] == ["3", "espctl.toml"]
    assert rows["experts.lr"] == ["0.5", "ESPCTL_EXPERTS_LR"]
    assert rows["output.quiet"] == ["true", "espctl.toml"]
    assert rows["home"][-1] == "flag"
    assert cli.run(["config", "show"]) == 0
    assert "compute.threads           3" in capsys.readouterr().out


def test_config_show_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "espctl.toml").write_text("[output]\njson = true\n")
    assert cli.run(["config", "show"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["home"] == str(tmp_path)
    assert shown["output.json"] is True
    assert cli.run(["config", "show", "--origin", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output.json"] == {"value": True, "origin": "flag"}
    assert cli.run(["config", "show", "--no-json"]) == 0
    assert "{" not in capsys.readouterr().out


def test_config_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["config", "path"]) == 1
    assert "there is no espctl.toml in" in capsys.readouterr().err
    (tmp_path / "espctl.toml").write_text("")
    assert cli.run(["config", "path"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'espctl.toml'}\n"


def complete_bash(*words: str) -> list[str]:
    """What bash would offer for the last of `words`."""
    environ = {
        "_ESPCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("espctl", *words)),
        "COMP_CWORD": str(len(words)),
    }
    done = espctl(**environ)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["con"], ["condense", "config"]),
        (["config", "sh"], ["show"]),
        (["config", "show", "--or"], ["--origin"]),
        (["data", "fetch", "dig"], ["digits"]),
        (["condense", "--dataset", "dig"], ["digits"]),
    ],
)
def test_bash_completes(words: list[str], offered: list[str]) -> None:
    assert complete_bash(*words) == offered


def test_zsh_completes_with_help() -> None:
    done = espctl(_ESPCTL_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="espctl conf")
    assert '"config":"Show the settings in force' in done.stdout


def test_completing_a_command_imports_no_module_of_one() -> None:
    loaded = "print([name for name in sys.modules if name.startswith('espctl.cli.')])"
    code = f"import sys, atexit; from espctl import cli; atexit.register(lambda: {loaded}); cli.main([])"
    done = espctl(code=code, _ESPCTL_COMPLETE="complete_bash", COMP_WORDS="espctl ", COMP_CWORD="1")
    assert done.stdout.splitlines() == [*cli.COMMANDS, "[]"]


def completions(words: str, command: Any) -> list[str]:
    """What bash would offer for the last word to a program of one command."""
    app = typer.Typer()
    app.command()(command)
    environ = {"_PROG_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    return CliRunner().invoke(app, [], prog_name="prog", env=environ).stdout.split()


def takes_all(
    run: options.RunArgument,
    dataset: options.DatasetOption = "digits",
    method: options.Method = None,
    network: options.Network = None,
    protocol: options.Protocol = None,
    home: options.Home = None,
) -> None:
    raise AssertionError("completion must not run the command")


def test_runs_are_completed_from_their_folders(tmp_path: Path) -> None:
    for age, name in enumerate(("esp-digits-1-aa", "esp-digits-10-bb", "dm-digits-1-cc")):
        folder = tmp_path / "elsewhere" / "runs" / name
        folder.mkdir(parents=True)
        (folder / "request.json").write_text("{}")
        os.utime(folder, (1000 + age, 1000 + age))
    (tmp_path / "elsewhere" / "runs" / "esp-no-run").mkdir()
    assert completions("prog --home elsewhere esp", takes_all) == ["esp-digits-10-bb", "esp-digits-1-aa"]
    assert completions("prog esp", takes_all) == []
    (tmp_path / "espctl.toml").write_text("broken = [")
    assert completions("prog esp", takes_all) == []


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("--dataset cifar10", ["cifar10", "cifar100"]),
        ("--dataset fold", ["folder:"]),
        ("--method es", ["esp"]),
        ("--network convnet3", ["convnet3"]),
        ("--protocol ds", ["dsa"]),
    ],
)
def test_names_of_the_tables_are_completed(words: str, offered: list[str]) -> None:
    assert completions(f"prog {words}", takes_all)[: len(offered)] == offered
