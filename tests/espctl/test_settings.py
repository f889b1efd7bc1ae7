import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espctl import settings
from espctl.errors import SettingsError

EXAMPLE = Path(__file__).parents[2] / "espctl.toml"
DEFAULTS = settings.keys()
# for each kind of setting, three values other than the default that differ from each other
OTHER: dict[str, tuple[Any, Any, Any]] = {
    "tune.held_out": (0.2, 0.3, 0.4),
    "tune.pruner": ("none", "hyperband", "median"),
    "logging.to": ("tensorboard", "mlflow", "wandb"),
    "home": ("a", "b", "c"),
    "compute.device": ("cpu", "cuda", "cuda:1"),
    "compute.compile": ("on", "off", "on"),
    "experts.dtype": ("bfloat16", "bfloat16", "bfloat16"),
}


def others(key: str) -> tuple[Any, Any, Any]:
    kind = type(DEFAULTS[key])
    by_kind = {bool: (True, True, True), int: (3, 4, 7), float: (0.5, 0.25, 2.0), str: ("x", "y", "z")}
    return OTHER.get(key) or by_kind.get(kind, ("p", "q", "r"))


def toml(key: str, value: object) -> str:
    section, _, name = key.rpartition(".")
    literal = {bool: str(value).lower(), str: f'"{value}"'}.get(type(value), str(value))
    return (f"[{section}]\n" if section else "") + f"{name} = {literal}\n"


def value_of(resolved: settings.Resolved, key: str) -> Any:
    value = settings.keys(resolved.settings)[key]
    return value.name if isinstance(value, Path) else value


def test_the_example_lists_every_setting_with_its_default() -> None:
    uncommented = re.sub(r"^#(?=\w+ = )", "", EXAMPLE.read_text(), flags=re.MULTILINE)
    listed = {
        (f"{name}.{inner}" if isinstance(value, dict) else name): found
        for name, value in tomllib.loads(uncommented).items()
        for inner, found in (value.items() if isinstance(value, dict) else [("", value)])
    }
    expected = {key: str(value) if isinstance(value, Path) else value for key, value in DEFAULTS.items()}
    assert listed == expected
    assert {key: type(value) for key, value in listed.items()} == {k: type(v) for k, v in expected.items()}


def test_the_example_as_it_is_changes_nothing(tmp_path: Path) -> None:
    bare = settings.load(start=tmp_path, environ={})
    (tmp_path / "espctl.toml").write_text(EXAMPLE.read_text())
    resolved = settings.load(start=tmp_path, environ={})
    assert resolved.settings == bare.settings
    assert set(resolved.origins.values()) == {"default"}
    assert (bare.file, resolved.file) == (None, tmp_path / "espctl.toml")


@pytest.mark.parametrize("key", DEFAULTS)
def test_flag_before_environment_before_file_before_default(key: str, tmp_path: Path) -> None:
    in_file, in_environment, in_flag = others(key)
    variable = settings.variable(key)
    environ: dict[str, str] = {}
    flags: dict[str, Any] = {key: None}

    def load() -> tuple[Any, str]:
        resolved = settings.load(flags, tmp_path, environ)
        return value_of(resolved, key), resolved.origins[key]

    assert load()[1] == "default"
    (tmp_path / "espctl.toml").write_text(toml(key, in_file))
    assert load() == (in_file, str(tmp_path / "espctl.toml"))
    environ[variable] = ""
    assert load()[0] == in_file
    environ[variable] = str(in_environment)
    assert load() == (in_environment, variable)
    flags[key] = in_flag
    assert load() == (in_flag, "flag")


def test_the_nearest_file_upward_counts_and_sets_home(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (tmp_path / "espctl.toml").write_text("[compute]\nthreads = 1\n")
    (tmp_path / "a" / "espctl.toml").write_text("[compute]\nchunk = 9\n")
    found = settings.load(start=deep, environ={}).settings
    assert (found.compute.threads, found.compute.chunk) == (0, 9)
    assert found.home == tmp_path / "a"
    assert found.paths.raw == tmp_path / "a" / "data" / "raw"


def test_without_a_file_home_is_the_working_folder(tmp_path: Path) -> None:
    resolved = settings.load(start=tmp_path, environ={})
    assert resolved.settings.home == tmp_path
    assert resolved.settings.paths.database == tmp_path / "espctl.db"


def test_an_explicit_home_brings_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "espctl.toml").write_text("[compute]\nthreads = 1\n")
    flags = {"home": Path("../there")}
    found = settings.load(flags, tmp_path / "here", {}).settings
    assert (found.home, found.compute.threads) == (tmp_path / "there", 1)
    (tmp_path / "there" / "espctl.toml").write_text("[compute]\nthreads = 2\n")
    assert settings.load(flags, tmp_path / "here", {}).settings.compute.threads == 2
    assert settings.load({}, tmp_path / "here", {"ESPCTL_HOME": "../there"}).settings.compute.threads == 2


def test_home_in_a_file_is_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "espctl.toml").write_text('home = "store"\n[paths]\nruns = "/elsewhere/runs"\n')
    found = settings.load(start=tmp_path / "deep", environ={}).settings
    assert found.home == tmp_path / "store"
    assert found.paths.runs == Path("/elsewhere/runs")
    assert found.paths.data == tmp_path / "store" / "data"


def test_a_tilde_is_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    found = settings.load({"home": "~/esp", "paths.raw": "~/raw"}, tmp_path, {}).settings
    assert (found.home, found.paths.raw) == (tmp_path / "user" / "esp", tmp_path / "user" / "raw")


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("[compute]\ndevise = 'cpu'", "unknown setting 'compute.devise' in {file}", "'compute.device'"),
        ("device = 'cpu'", "unknown setting 'device' in {file}", "'compute.device'"),
        ("[computes]", "unknown section 'computes' in {file}", "'compute'"),
        ("compute = 3", "'compute' in {file} must be a section", "[compute]"),
        ("[compute]\nthreads = '4'", "'compute.threads' in {file} must be a whole number, not '4'", "correct"),
        ("[compute]\nthreads = true", "'compute.threads' in {file} must be a whole number, not True", "correct"),
        ("[compute]\nthreads = 4.0", "must be a whole number, not 4.0", "correct"),
        ("[output]\nquiet = 1", "'output.quiet' in {file} must be true or false, not 1", "correct"),
        ("[experts]\nlr = 'fast'", "'experts.lr' in {file} must be a number", "correct"),
        ("[experts.lr]\nx = 1", "'experts.lr' in {file} must be a number", "correct"),
        ("[experts]\nlr = nan", "'experts.lr' from {file} cannot be nan: it should be a finite number", "correct"),
        ("[paths]\nruns = ['a']", "'paths.runs' in {file} must be text", "correct"),
        ("home = {a = 1}", "'home' in {file} must be text", "correct"),
        ("[experts]\nepochs = 0", "'experts.epochs' from {file} cannot be 0: it should be greater", "correct"),
        ("[compute]\ndevice = 'tpu'", "cannot be 'tpu': it should be auto, cpu, cuda, or cuda:N", "correct"),
        ("[compute\ndevice = 'cpu'", "{file} is not valid TOML: ", "correct"),
        ("[compute]\nchunk = \n", "(at line 2, column 9)", "correct"),
        ("x = " + "[" * 5000, "{file} is not valid TOML: ", "correct"),
        ("name = '\udcff'", "{file} is not valid TOML: ", "correct"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_place(content: str, message: str, hint: str, tmp_path: Path) -> None:
    file = tmp_path / "espctl.toml"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(SettingsError) as caught:
        settings.load(start=tmp_path, environ={})
    assert message.format(file=file) in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("environ", "message", "hint"),
    [
        (
            {"ESPCTL_COMPUTE_DEVICES": "cpu"},
            "unknown environment variable 'ESPCTL_COMPUTE_DEVICES'",
            "COMPUTE_DEVICE'?",
        ),
        (
            {"ESPCTL_COMPUTE_THREADS": "many"},
            "'compute.threads' from ESPCTL_COMPUTE_THREADS cannot be 'many'",
            "another",
        ),
        ({"ESPCTL_OUTPUT_QUIET": "perhaps"}, "'output.quiet' from ESPCTL_OUTPUT_QUIET", "another"),
    ],
)
def test_a_mistake_in_the_environment_is_named(
    environ: dict[str, str], message: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.load(start=tmp_path, environ=environ)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_mistake_in_a_flag_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"'evaluate.seeds' from flag cannot be 0"):
        settings.load({"evaluate.seeds": 0}, tmp_path, {})
    with pytest.raises(SettingsError, match=r"unknown setting 'evaluate.seed'") as caught:
        settings.load({"evaluate.seed": None}, tmp_path, {})
    assert "'evaluate.seeds'" in caught.value.hint


def test_other_variables_are_left_alone(tmp_path: Path) -> None:
    environ = {"ESPCTL_DEBUG": "1", "_ESPCTL_COMPLETE": "x", "ESPCTLX": "y", "ESPCTL_OUTPUT_JSON": "1"}
    resolved = settings.load(start=tmp_path, environ=environ)
    assert resolved.settings.output.json is True
    assert [key for key, origin in resolved.origins.items() if origin != "default"] == ["output.json"]


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.Settings().compute.threads = 3  # type: ignore[misc]


@given(st.dictionaries(st.text(max_size=8), st.one_of(st.integers(), st.text(max_size=8), st.booleans(), st.none())))
def test_any_flags_give_settings_or_a_settings_error(flags: dict[str, Any]) -> None:
    try:
        resolved = settings.load({**flags, "compute.threads": flags.get("t")}, Path("/nowhere"), {})
    except SettingsError:
        return
    assert resolved.settings.compute.threads >= 0
