"""The command `espctl`: which commands there are, and the boundary where every failure becomes one sentence.

`--help` is printed from the table below; the module of a command is imported when that command is invoked.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from esp.errors import EspError, closest_hint
from espctl import __version__, render
from espctl.errors import ExpressionError, Interrupted, UsageError, exit_code, translate
from espctl.jobs import signals

# name -> "module:attribute" (a Typer application is a group, a function is a command), and one line of help
COMMANDS = {
    "data": ("espctl.cli.data:app", "List, fetch, convert and look at data sets."),
    "experts": ("espctl.cli.experts:app", "Train networks on real data and keep their trajectories."),
    "condense": ("espctl.cli.condense:condense", "Condense a data set into a few images per class."),
    "tune": ("espctl.cli.tune:app", "Search for good options of a method."),
    "evaluate": ("espctl.cli.evaluate:evaluate", "Score a synthetic set by training fresh networks on it."),
    "export": ("espctl.cli.export:export", "Write a synthetic set as files that other programs read."),
    "rerun": ("espctl.cli.rerun:rerun", "Repeat a run, and compare what comes out."),
    "reproduce": ("espctl.cli.reproduce:reproduce", "Make a table of the paper within a budget of time."),
    "compress": ("espctl.cli.compress:compress", "Store a run's numbers with 8, 4 or 2 bits."),
    "protocols": ("espctl.cli.protocols:app", "List the evaluation protocols and what they consist of."),
    "methods": ("espctl.cli.methods:app", "List the methods and their options."),
    "networks": ("espctl.cli.networks:app", "List the networks and their sizes."),
    "runs": ("espctl.cli.runs:app", "List, compare, label, watch, remove, export and import runs."),
    "report": ("espctl.cli.report:app", "Print results beside the published ones."),
    "query": ("espctl.cli.query:query", "Ask the database in SQL, read-only."),
    "verify": ("espctl.cli.verify:verify", "Compare runs, experts and data sets with their checksums."),
    "db": ("espctl.cli.db:app", "Create, upgrade, copy and check the database."),
    "doctor": ("espctl.cli.doctor:doctor", "Look for what is missing or broken, with a remedy for each."),
    "config": ("espctl.cli.config:app", "Show the settings in force and where they come from."),
}

_LONGEST = 1000  # letters of a sentence


class Group(TyperGroup):
    """A group that prints its help when no command is given, and names the closest command to an unknown one."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)
        for option in params:
            if getattr(option, "is_bool_flag", False) and option.default is None:
                option.default = False  # Typer imports pydantic to check None, and takes False as it is
        return params

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing and not self.invoke_without_command:
            args = ["--help"]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        if args[0] not in self.commands and not ctx.resilient_parsing:
            raise UsageError(f"unknown command {args[0]!r}", closest_hint(args[0], self.commands))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:  # Typer would turn it into a silent exit
            raise Interrupted from error


class _Root(Group):
    """The top group: help and completion see the table, invoking a command imports it."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, (_, text) in COMMANDS.items():
            self.add_command(TyperCommand(name, short_help=text, rich_markup_mode=None))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name in COMMANDS else command, rest


def load_command(name: str) -> Any:
    """Import a command. It is put below an application of its own, so that all share one look whatever they set."""
    target, text = COMMANDS[name]
    module, _, attribute = target.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    holder = typer.Typer(add_completion=False, rich_markup_mode=None)
    if isinstance(found, typer.Typer):
        holder.add_typer(found, name=name, cls=Group, help=text)
    else:
        holder.command(name)(found)
    return typer.main.get_group(holder).commands[name]


app = typer.Typer(
    cls=_Root,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # Typer's boxes cost more time than all the rest of --help
    pretty_exceptions_enable=False,
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"espctl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Condense a data set into a few synthetic images per class, score them, and compare with what was published.

    A first run: espctl condense --dataset digits --ipc 1
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 not understood, 130 interrupted.

    A `package.module:attribute` of one's own is looked for in the working folder too, as `python -m espctl` does.
    """
    if "" not in sys.path:
        sys.path.append("")  # last: it must hide no installed module
    code = run(sys.argv[1:] if arguments is None else arguments)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the command is done: Ctrl-C ends without a traceback
    if code == exit_code(Interrupted()):
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)  # everything is saved; what libraries would still wait for, such as compilers, takes seconds
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run a command line, print any failure as a sentence and its remedy, and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to fail
    try:
        width = max(24, min(100, typer.get_terminal_size().columns) - 2)  # Typer's own help is never below 50
        command = typer.main.get_command(app)
        with signals.stoppable():
            result = command.main(list(arguments), prog_name="espctl", standalone_mode=False, terminal_width=width)
        if result == 130:  # Typer's, where it heard of an interrupt first: before a command was begun
            raise Interrupted
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BrokenPipeError:  # `espctl runs list | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except typer.Abort:
        return _fail(Interrupted("nothing was changed"))
    except typer.TyperException as error:
        return _fail(_usage(error))
    except (Exception, KeyboardInterrupt) as error:
        return _fail(translate(error), error)


def _usage(error: typer.TyperException) -> EspError:
    """Typer's own complaints in our form."""
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    hint = f"see: {context.command_path} --help" if context else "the same command with --help shows how it is used"
    if near := getattr(error, "possibilities", None):
        message, hint = error.message, f"did you mean {near[0]!r}?"
    return UsageError(message[:1].lower() + message[1:], hint)


def _short(text: str) -> str:
    """A sentence that quotes a megabyte of somebody's file says so with its beginning and its end."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 4 :]}"


def _fail(error: EspError, cause: BaseException | None = None) -> int:
    if cause is not None and os.environ.get("ESPCTL_DEBUG", "") not in ("", "0"):
        traceback.print_exception(cause)
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    with contextlib.suppress(OSError):  # nobody reads standard error any more
        for name, text, code in (("error", error.message, 31), ("hint", error.hint, 36)):
            if text:
                start = f"\x1b[1;{code}m{name}:\x1b[0m" if colour else f"{name}:"
                print(start, render.clean(_short(text)), file=sys.stderr, flush=True)
            if name == "error" and isinstance(error, ExpressionError):
                render.pointer(error.text, error.place)
    return exit_code(error)
