"""Tables and figures from run folders with known scores: what stands beside what, and where it comes from."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from espctl.report import formats

OPTIONS: dict[str, dict[str, Any]] = {
    "esp": {"steps": 10000, "beta": 1e-5, "dm": 1.0, "segment": 10},
    "dm": {"steps": 20000},
}
RESNET, DENSENET, EFFICIENT = "resnet10", "densenet121", "efficientnetv2s"


def write(path: Path, body: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body))


def add(
    home: Path,
    run: str,
    scores: Mapping[tuple[str, str], Sequence[float]],
    changed: Mapping[str, Any] | None = None,
    **more: Any,
) -> None:
    """A finished run called `METHOD-anything` on CIFAR-10, with accuracies by (protocol, network)."""
    folder, method = home / "runs" / run, run.partition("-")[0]
    request: dict[str, Any] = {
        "method": method,
        "method_options": {**OPTIONS.get(method, {}), **(changed or {})},
        "changed_options": dict(changed or {}),
        "parametrisation": "latent" if method == "esp" else "pixels",
        "dataset": "cifar10", "fingerprint": "f" * 64, "ipc": 1, "network": "convnet3", "seed": 0, "experts": [],
        "preset": "paper", **more,
    }  # fmt: skip
    body = {"id": run, "key": run, "kind": "condense", "created": "2026-01-01T00:00:00+00:00", "request": request}
    write(folder / "request.json", body)
    outcome = {"state": "finished", "seconds": 60.0, "peak_memory_bytes": 10**9, "device": "cpu", "artifacts": []}
    write(folder / "outcome.json", outcome)
    for (protocol, network), accuracies in scores.items():
        for seed, accuracy in enumerate(accuracies):
            epochs = int(protocol.partition("@")[2] or 1000)
            score = {"protocol": protocol, "protocol_hash": f"hash of {protocol}", "network": network, "seed": seed}
            score |= {"accuracy": accuracy, "best_accuracy": accuracy, "epochs": epochs, "seconds": 2.0}
            score |= {"created": "2026-01-01T00:00:00+00:00", "curve": [[1, accuracy / 2], [2, accuracy]]}
            write(folder / "evaluations" / f"{protocol}.{network}.s{seed}.json", score)


@pytest.fixture
def ledger(finished: Any, tmp_path: Path) -> Any:
    """A project with the scores of four methods; its kind is that of `finished`."""
    project = type(finished)(tmp_path)
    idc, dsa, dc = (("idc", "convnet3"), ("dsa", "convnet3"), ("dc", "convnet3"))
    add(tmp_path, "random-a", {idc: [0.20, 0.22], dsa: [0.14, 0.16], dc: [0.14, 0.16], ("dc@1000", "convnet3"): [0.1]})
    add(tmp_path, "dm-a", {dsa: [0.25, 0.27], ("dsa@300", "convnet3"): [0.24]})
    for seed in (0, 1):
        scores = {idc: [0.60, 0.64], ("idc", RESNET): [0.5], ("idc", EFFICIENT): [0.35], dsa: [0.6]}
        add(tmp_path, f"esp-{seed}", {**scores, ("dc@1000", "convnet3"): [0.5]}, seed=seed)
    add(tmp_path, "esp-quick", {idc: [0.4]}, preset="quick", method_options={"steps": 2000})
    add(tmp_path, "esp-beta", {idc: [0.47, 0.49]}, {"beta": 0}, preset="custom")
    add(tmp_path, "esp-dm", {idc: [0.41]}, {"dm": 0.0}, preset="custom")
    add(tmp_path, "esp-trial", {idc: [0.99]}, {"segment": 3}, preset="trial")
    return project


def table(project: Any, words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = project(f"report {words}", "--json").json
    return found


def test_a_row_says_with_what_it_may_be_compared(ledger: Any) -> None:
    rows = {(r["method"], r["protocol"], r["options"], r["preset"]): r for r in table(ledger, "table1 -n convnet3")}
    full = rows["esp", "idc", "", "paper"]
    assert (full["n"], full["runs"], full["comparable"], full["certain"]) == (4, ["esp-0", "esp-1"], True, False)
    assert full["mean"] == pytest.approx(62)
    assert full["sd"] == pytest.approx(2)
    assert (full["published"], full["difference"]) == (63.0, pytest.approx(-1.0))
    assert rows["random", "dc", "", "paper"]["comparable"]
    assert rows["random", "idc", "", "paper"]["reasons"] == ["protocol"]
    assert rows["dm", "dsa", "", "paper"]["certain"]
    assert rows["dm", "dsa@300", "", "paper"]["reasons"] == ["protocol length"]
    assert rows["esp", "idc", "", "quick"]["reasons"] == ["preset"]
    assert all("esp-trial" not in row["runs"] for row in rows.values())
    assert [row["runs"] for row in table(ledger, "table1 --preset trial")] == [["esp-trial"]]


def test_marks_and_mixed_presets_are_on_the_screen(ledger: Any) -> None:
    text = ledger("report table1 -d cifar10 -f md").out
    assert "| -1.0 ? |" in text
    assert "Mixed presets" in text
    assert "| quick |" in text
    pure = ledger("report table1 -d cifar10 -f md --preset paper -p idc -m esp").out
    assert "Mixed presets" not in pure
    assert "not comparable" not in pure


def test_equal_options_asked_for_in_two_ways_meet_in_a_marked_row(ledger: Any) -> None:
    add(ledger.home, "esp-2", {("idc", "convnet3"): [0.62]}, seed=2, preset="custom")
    ledger("db upgrade")
    [row] = [r for r in table(ledger, "table1 -n convnet3 -p idc -m esp --ipc 1") if "esp-0" in r["runs"]]
    assert row["runs"] == ["esp-0", "esp-1", "esp-2"]
    assert row["preset"] == "custom + paper"


def test_other_networks_stand_beside_their_own_published_values(ledger: Any) -> None:
    rows = table(ledger, "table2")
    assert [(r["method"], r["network"], r["protocol"], r["published"]) for r in rows] == [
        ("esp", "convnet3", "dc@1000", 63.0),
        ("esp", "convnet3", "dsa", 63.0),
        ("esp", "convnet3", "idc", 63.0),
        ("esp", RESNET, "idc", 50.4),
    ], "dm was scored on no other network"
    add(ledger.home, "dm-cross", {("idc", "resnet10idc"): [0.3]}, seed=7)
    ledger("db upgrade")
    [narrow] = [row for row in table(ledger, "table2 -m dm") if row["network"] == "resnet10idc"]
    assert (narrow["published"], narrow["reasons"]) == (13.7, ["scoring network"])
    [row] = table(ledger, "table3")
    assert (row["network"], row["published"], row["mean"]) == (EFFICIENT, 35.3, pytest.approx(35))


def test_the_ablation_knows_its_variants(ledger: Any) -> None:
    rows = {r["method"]: r for r in table(ledger, "table4 --preset custom")}
    assert {name: (r["published"], r["comparable"]) for name, r in rows.items()} == {
        "esp:dm": (48.0, True),
        "esp:proj": (41.3, True),
    }
    both = table(ledger, "table4 --preset paper -p idc -n convnet3")
    assert [(r["method"], r["published"]) for r in both] == [("esp:proj+dm", 62.6)]


def test_published_values_can_be_listed_without_a_run(ledger: Any) -> None:
    rows = table(ledger, "table1 -d svhn --published")
    assert len(rows) == 31
    assert all(row["n"] == 0 and row["runs"] == [] and row["mean"] is None for row in rows)
    assert rows[-1]["method"] == "full"
    mixed = table(ledger, "table1 -d cifar10 --ipc 1 --published")
    assert {r["method"] for r in mixed if r["n"] == 0} == {"herding", "dc", "dsa", "cafe", "mtt", "idc", "kfs", "kip"}


def test_every_number_leads_to_its_files(ledger: Any) -> None:
    for row in table(ledger, "table1 -d cifar10 --trace"):
        assert len(row["evaluations"]) == row["n"]
        scores = [json.loads((ledger.home / one["file"]).read_text()) for one in row["evaluations"]]
        assert 100 * sum(score["accuracy"] for score in scores) / len(scores) == pytest.approx(row["mean"])
        assert {score["protocol"] for score in scores} == {row["protocol"]}
    text = ledger("report table1 -m dm -p dsa --trace").out
    assert "[1]" in text
    assert "runs/dm-a/evaluations/dsa.convnet3.s1.json" in text


def test_a_row_for_each_run(ledger: Any) -> None:
    rows = table(ledger, "table1 -n convnet3 -p idc --preset paper -m esp --all-runs")
    assert [(row["runs"], row["n"]) for row in rows] == [(["esp-0"], 2), (["esp-1"], 2)]


def test_measures_and_what_is_missing_for_them(ledger: Any) -> None:
    rows = {
        (r["method"], r["protocol"]): r["measures"]
        for r in table(ledger, "table1 -n convnet3 --preset paper --measures")
    }
    found = rows["esp", "idc"]
    assert found["ior"] == pytest.approx(0.62 - 0.21)
    assert found["hlr"] is None
    assert "espctl experts build --dataset cifar10 --network convnet3" in found["needed"]
    gain = 0.5 * (0.62 - 0.21) + 0.5 * (0.5 - 0.1)
    e = 2.718281828
    assert found["ars"] == pytest.approx((e**gain - 1 / e) / (e - 1 / e))
    assert rows["dm", "dsa@300"]["ior"] is None
    assert "espctl evaluate RUN --protocol dsa@300 --network convnet3" in ledger("report table1 --measures").out


def test_cost_and_best_known_are_columns_of_csv(ledger: Any) -> None:
    text = ledger("report table1 -d cifar10 --cost --best-known -f csv").out
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {row["best_known"] for row in rows} == {"68.5"}
    assert {row["seconds"] for row in rows} == {"60.0"}
    assert {float(row["evaluate_seconds"]) for row in rows} == {2.0}
    screen = ledger("report table1 -d cifar10 --cost --best-known").out
    for part in ("Best known", "ECCV 2024", "equal bytes", "peak MB", "1000"):
        assert part in screen


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("table2 -d svhn", "no set has been scored on another network on svhn", "--network resnet10"),
        ("table3 -d svhn", "nothing has been scored on EfficientNetV2-S of svhn", "--network efficientnetv2s"),
        ("table4 -d svhn", "no set of ESP has been scored on svhn", "--set beta=0"),
        ("table1 -m espp", "unknown method 'espp'", "did you mean 'esp'?"),
        ("table1 --preset none", "nothing has been scored with preset none", "espctl evaluate RUN"),
    ],
)
def test_what_is_not_there_is_said(ledger: Any, words: str, message: str, hint: str) -> None:
    done = ledger(f"report {words}", code=1)
    assert done.err.startswith(f"error: {message}")
    assert hint in done.err


def test_latex_compiles(ledger: Any, tmp_path: Path) -> None:
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("pdflatex is not installed")
    flags = "--trace --cost --measures --best-known --published"
    tables = [ledger(f"report table{n} -f latex {flags}").out for n in (1, 2, 3, 4)]
    awkward = formats.latex(["50% & $x_1", "\\end"], [["[1] *", "日本 < -- {é}"], ["*", '~^#|\n"']], "a -- b —")
    body = "\n".join([*tables, awkward])
    path = tmp_path / "tables.tex"
    path.write_text(
        rf"\documentclass{{article}}\usepackage{{booktabs,graphicx}}\begin{{document}}{body}\end{{document}}"
    )
    command = [program, "-interaction=nonstopmode", "-halt-on-error", path.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout[-1500:]
    assert (tmp_path / "tables.pdf").stat().st_size > 1000


def test_figure8_joins_what_differs_in_one_option_alone(ledger: Any, tmp_path: Path) -> None:
    add(ledger.home, "esp-five", {("idc", "convnet3"): [0.55, 0.57]}, {"segment": 5}, preset="custom")
    add(ledger.home, "esp-two", {("idc", "convnet3"): [0.52]}, {"segment": 2, "steps": 7}, preset="custom")
    path = tmp_path / "curve.png"
    done = ledger("report figure8 --option segment -d cifar10 -o", str(path), "--json")
    found = [(point["value"], round(point["mean"], 6), point["n"], point["runs"]) for point in done.json]
    assert found == [(5.0, 56.0, 2, ["esp-five"]), (10.0, 62.0, 4, ["esp-0", "esp-1"])], "esp-two differs in two"
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    assert "segment" in ledger("report figure8 --option segment").out
    rows = list(csv.DictReader(io.StringIO(ledger("report figure8 --option beta -f csv").out)))
    assert [(row["value"], row["runs"]) for row in rows] == [("0.0", "esp-beta"), ("1e-05", "esp-0 esp-1")]
    assert "differ in the option steps alone" in ledger("report figure8 --option steps -m dm", code=1).err


def test_figure7_reads_a_bench(ledger: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = {"method": "mtt", "inner_steps": 10, "ipc": 1, "seconds": 2.0, "peak_memory_bytes": 10**9}
    more = {"method": "mtt", "inner_steps": 50, "ipc": 1, "fits": False, "estimated": 5e9}
    bench = tmp_path / "bench.json"
    write(bench, {"device": "a machine", "figure7": [more, point]})
    path = tmp_path / "curve.png"
    found = ledger("report figure7 --bench", str(bench), "-o", str(path), "--json").json
    assert [(p["inner_steps"], p["seconds"], p["peak_memory_bytes"]) for p in found] == [
        (10, 2.0, 1e9),
        (50, None, 5e9),
    ]
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "a machine" in ledger("report figure7 --bench", str(bench)).out
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    for name, body in (("1-bench.json", {"device": "that one", "figure7": [point]}), ("2-bench.json", {"figure7": []})):
        write(tmp_path / "results" / name, body)
    (tmp_path / "results" / "3-bench.json").write_bytes(b"\xff is no text")
    assert "that one" in ledger("report figure7").out, "the newest that has points"
    write(tmp_path / "results" / "0-bench.json", {"at": "2026-01-02T03:04", "device": "the later", "figure7": [point]})
    assert "the later" in ledger("report figure7").out, "it says itself when it was made"
    bodies: list[Any] = [[], {"rows": []}, [{"method": "mtt"}], 3, {"figure7": 3}]
    for body in bodies:
        write(bench, body)
        assert "Figure 7" in ledger("report figure7 --bench", str(bench), code=1).err


def test_figures_of_images_take_the_best_run(ledger: Any) -> None:
    [drawn] = ledger("report figure4", "--json").json
    assert (drawn["ipc"], drawn["protocol"], drawn["network"]) == (1, "idc", "convnet3")
    assert drawn["accuracy"] == pytest.approx(62)
    assert "there is no finished run of esp on svhn" in ledger("report figure3", code=1).err
    assert "curve.jpg is not a PNG file" in ledger("report figure8 --option beta -o curve.jpg", code=1).err


def test_without_matplotlib_a_figure_says_what_to_install(ledger: Any, tmp_path: Path) -> None:
    home = str(ledger.home)
    code = f"""
import sys
sys.modules["matplotlib"] = sys.modules["matplotlib.figure"] = None
from espctl.cli import run
raise SystemExit(run(["report", "figure8", "--option", "beta", "-o", {str(tmp_path / "x.png")!r}, "--home", {home!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: drawing a figure needs matplotlib\nhint: pip install 'esp-condense[plots]'\n"
