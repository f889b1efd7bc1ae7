"""Every setting, its default, and where its value comes from.

A value is taken from the first of: a flag of the command, the environment (`ESPCTL_COMPUTE_DEVICE=cpu` sets
`compute.device`), the nearest `espctl.toml` from the working folder upward, the default. `home` is the folder of that
file, or the working folder when there is none; an explicit home that holds an `espctl.toml` brings its own file.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from esp.errors import closest_hint
from espctl.errors import SettingsError

FILE_NAME = "espctl.toml"
PREFIX = "ESPCTL_"
NOT_SETTINGS = frozenset({"ESPCTL_DEBUG"})  # read by the error boundary, before any setting
_OWN = "protocols"

_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)
_Count = Annotated[int, Field(ge=1, le=10**9)]
_Name = Annotated[str, Field(min_length=1)]
_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "text"}


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", name):
        raise ValueError("should be auto, cpu, cuda, or cuda:N")
    return name


@dataclass(frozen=True, config=_CONFIG)
class Paths:
    """Where things lie; relative to `home` in a file, absolute once loaded."""

    data: Path = Path("data")
    raw: Path = Path("data/raw")
    experts: Path = Path("experts")
    runs: Path = Path("runs")
    studies: Path = Path("studies")
    database: Path = Path("espctl.db")
    logs: Path = Path("logs")


@dataclass(frozen=True, config=_CONFIG)
class Compute:
    """The device and how work is cut up for it.

    `chunk` in images, `stack` in networks, 0 for what suits the device; `checkpoint_every` in seconds.
    """

    device: Annotated[str, AfterValidator(_device)] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0
    compile: Literal["auto", "on", "off"] = "auto"
    chunk: Annotated[int, Field(ge=0)] = 0
    stack: Annotated[int, Field(ge=0, le=100_000)] = 0
    checkpoint_every: Annotated[float, Field(gt=0)] = 60.0


@dataclass(frozen=True, config=_CONFIG)
class Experts:
    """How experts are trained unless the command says otherwise."""

    count: Annotated[int, Field(ge=1, le=100_000)] = 10
    epochs: _Count = 50
    network: _Name = "convnet3"
    batch: _Count = 256
    lr: Annotated[float, Field(gt=0)] = 0.01
    dtype: Literal["float32", "bfloat16"] = "float32"
    jobs: _Count = 1


@dataclass(frozen=True, config=_CONFIG)
class Condense:
    """What a condensation run uses unless the command says otherwise."""

    network: _Name = "convnet3"
    method: _Name = "esp"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # what the database can hold


@dataclass(frozen=True, config=_CONFIG)
class Evaluate:
    """How a synthetic set is scored unless the command says otherwise."""

    protocol: _Name = "dsa"
    seeds: _Count = 5
    network: _Name = "convnet3"


@dataclass(frozen=True, config=_CONFIG)
class Tune:
    """What a study does unless the command says otherwise; `steps` cuts its condensations, `epochs` its protocol."""

    trials: _Count = 50
    jobs: _Count = 1
    steps: _Count = 10
    protocol: _Name = "dsa"
    epochs: _Count = 30
    seeds: _Count = 1
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    pruner: Literal["median", "hyperband", "none"] = "median"


@dataclass(frozen=True, config=_CONFIG)
class Logging:
    """Where metrics go while a run goes on, beside its own folder; `project` names them there."""

    to: Literal["none", "tensorboard", "mlflow", "wandb"] = "none"
    project: _Name = "espctl"


@dataclass(frozen=True, config=_CONFIG)
class Output:
    """How much is printed, and as what."""

    quiet: bool = False
    json: bool = False


@dataclass(frozen=True, config=_CONFIG)
class Settings:
    """All settings. Once loaded, `home` and every path are absolute.

    `protocols` are the tables of a file below [protocols.NAME]: evaluation protocols of one's own, which are data and
    no settings: `keys` leaves them out, and they are checked when they are used.
    """

    home: Path = Path()
    protocols: dict[str, dict[str, Any]] = Field(default_factory=dict)
    paths: Paths = Paths()
    compute: Compute = Compute()
    experts: Experts = Experts()
    condense: Condense = Condense()
    evaluate: Evaluate = Evaluate()
    tune: Tune = Tune()
    logging: Logging = Logging()
    output: Output = Output()


@dataclasses.dataclass(frozen=True)
class Resolved:
    """Settings, and for each dotted key its origin: `flag`, a variable, the path of a file, or `default`."""

    settings: Settings
    origins: dict[str, str]
    file: Path | None


def keys(settings: Settings | None = None) -> dict[str, Any]:
    """Dotted key -> value of `settings`, or of the defaults, in the order of their definition."""
    return dict(_flatten(settings or Settings()))


def variable(key: str) -> str:
    """The environment variable that sets a dotted key."""
    return PREFIX + key.replace(".", "_").upper()


def load(
    flags: Mapping[str, Any] | None = None, start: Path | None = None, environ: Mapping[str, str] = os.environ
) -> Resolved:
    """Resolve every setting.

    Args:
        flags: dotted key -> value of a command's flags; a value of None means that the flag was not given.
        start: the working folder, by default the process's.
        environ: the environment.

    Raises:
        SettingsError: a key or an `ESPCTL_` variable that does not exist, a value that cannot be used, or a file that
            is not TOML.
    """
    folder = (start or Path.cwd()).absolute()
    given = {**_from_environment(environ), **_from_flags(flags or {})}
    file = _find_file(given["home"][0] if "home" in given else None, folder)
    values = {**(_from_file(file) if file else {}), **given}
    origins = {key: values[key][1] if key in values else "default" for key in keys()}
    settings = _validate({key: value for key, (value, _) in values.items()}, origins)
    return Resolved(_anchor(settings, origins["home"], file, folder), origins, file)


def _find_file(home: Any, folder: Path) -> Path | None:
    """The `espctl.toml` of an explicit home, else the nearest one from `folder` upward."""
    if home is not None and (own := folder / Path(home).expanduser() / FILE_NAME).is_file():
        return own
    return next((path for up in (folder, *folder.parents) if (path := up / FILE_NAME).is_file()), None)


def _from_flags(flags: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    known = keys()
    for key in flags:
        if key not in known:
            raise SettingsError(f"unknown setting {key!r}", closest_hint(key, known))
    return {key: (value, "flag") for key, value in flags.items() if value is not None}


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    known = {variable(key): key for key in keys()}
    found = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in NOT_SETTINGS or not environ[name]:
            continue
        if name not in known:
            raise SettingsError(f"unknown environment variable {name!r}", closest_hint(name, known))
        found[known[name]] = (environ[name], name)
    return found


def _from_file(path: Path) -> dict[str, tuple[Any, str]]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, a number of a thousand digits
        raise SettingsError(f"{path} is not valid TOML: {error}", "correct that place of the file") from error
    defaults = keys()
    found: dict[str, tuple[Any, str]] = {}
    if protocols := table.pop(_OWN, None):
        found[_OWN] = (_tables(protocols, path), str(path))
    for key, value in _flatten_table(table, path):
        if key not in defaults:
            raise SettingsError(f"unknown setting {key!r} in {path}", closest_hint(key, defaults))
        _check_type(key, value, type(defaults[key]), path)
        found[key] = (value, str(path))
    return found


def _tables(protocols: Any, path: Path) -> dict[str, dict[str, Any]]:
    if not isinstance(protocols, dict) or not all(isinstance(table, dict) for table in protocols.values()):
        raise SettingsError(f"{_OWN!r} in {path} must hold tables", f"write [{_OWN}.NAME] and its keys below it")
    return protocols


def _flatten_table(table: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Any]]:
    sections = {field.name for field in dataclasses.fields(Settings)} - {"home"}
    for name, value in table.items():
        if isinstance(value, dict) and name != "home":
            yield from ((f"{name}.{inner}", inner_value) for inner, inner_value in value.items())
            if name not in sections:  # an empty table of an unknown name has no key to complain about
                raise SettingsError(f"unknown section {name!r} in {path}", closest_hint(name, sections))
        elif name in sections:
            raise SettingsError(f"{name!r} in {path} must be a section", f"write [{name}] and its settings below it")
        else:
            yield name, value


def _check_type(key: str, value: Any, expected: type, path: Path) -> None:
    """TOML has types, so `threads = "4"` and `threads = true` are mistakes and not another spelling of a number."""
    kind = Path if issubclass(expected, Path) else expected
    fits = {bool: (bool,), int: (int,), float: (int, float), str: (str,), Path: (str,)}[kind]
    if not isinstance(value, fits) or (isinstance(value, bool) and kind is not bool):
        raise SettingsError(
            f"{key!r} in {path} must be {_TYPE_NAMES[kind]}, not {value!r}", "correct that line of the file"
        )


def _validate(values: Mapping[str, Any], origins: Mapping[str, str]) -> Settings:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    try:
        return TypeAdapter(Settings).validate_python(nested)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        origin = origins.get(key, "flag")
        remedy = "correct the file" if Path(origin).is_absolute() else "give it another value, or none for the default"
        raise SettingsError(f"{key!r} from {origin} cannot be {first['input']!r}: it {reason}", remedy) from error


def _anchor(settings: Settings, origin: str, file: Path | None, folder: Path) -> Settings:
    """Make `home` and the paths absolute. A home in a file is relative to the file, else to the working folder."""
    base = file.parent if file and origin in ("default", str(file)) else folder
    home = Path(os.path.normpath(base / settings.home.expanduser()))
    paths = {name: home / path.expanduser() for name, path in vars(settings.paths).items() if isinstance(path, Path)}
    return dataclasses.replace(settings, home=home, paths=Paths(**paths))


def _flatten(settings: Settings) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name == _OWN:
            continue
        if dataclasses.is_dataclass(value):
            yield from (
                (f"{field.name}.{inner.name}", getattr(value, inner.name)) for inner in dataclasses.fields(value)
            )
        else:
            yield field.name, value
