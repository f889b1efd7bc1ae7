"""The HTML page: it stands alone, every link leads somewhere, strange names do no harm, and a browser shows it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

EVIL = "<script>document.title='taken'</script>\"' onload=x"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BENCH = [
    {"method": "esp", "inner_steps": 1, "ipc": 1, "seconds": 0.1, "peak_memory_bytes": 90},
    {"method": "esp", "inner_steps": 10, "ipc": 1, "seconds": 0.1, "peak_memory_bytes": 91},
    {"method": "mtt", "inner_steps": 1, "ipc": 1, "seconds": 0.1, "peak_memory_bytes": 95},
    {"method": "mtt", "inner_steps": 10, "ipc": 1, "fits": False, "estimated": 900.0},
]
# What a person would do, done by a page around the report, which writes what it found into itself.
PERSON = """<!doctype html><meta charset="utf-8"><iframe src="report.html" width="390" height="800"></iframe>
<pre id="found"></pre><script>
window.onload = () => {
  const view = document.querySelector("iframe").contentWindow, page = view.document;
  const table = page.querySelector("table.sortable");
  const heads = [...table.tHead.rows[0].cells], column = heads.findIndex((h) => h.textContent === "accuracy");
  [9, 100, 20].forEach((value, place) => {  // as text they would stand in another order
    const cell = table.tBodies[0].rows[place].cells[column];
    cell.dataset.value = cell.querySelector("a").textContent = value;
  });
  const values = () => [...table.tBodies[0].rows].map((row) => parseFloat(row.cells[column].textContent));
  const found = {
    inner: view.innerWidth, page: page.documentElement.scrollWidth,
    box: table.parentElement.scrollWidth > table.parentElement.clientWidth, before: values(),
    focus: heads.every((h) => h.querySelector("button").tabIndex === 0),
  };
  heads[column].querySelector("button").click();
  Object.assign(found, { up: values(), sort: heads[column].getAttribute("aria-sort") });
  heads[column].querySelector("button").click();
  Object.assign(found, { down: values(), sortedDown: heads[column].getAttribute("aria-sort") });
  const link = table.tBodies[0].rows[0].cells[column].querySelector("a");
  const first = table.tBodies[0].rows[0].cells[0].textContent;
  link.click();
  setTimeout(() => {
    const target = page.querySelector(":target");
    Object.assign(found, { first, target: target && target.textContent, title: page.title });
    found.images = [...page.images].map((image) => image.complete && image.naturalWidth > 0);
    found.scripts = page.scripts.length;
    document.getElementById("found").textContent = JSON.stringify(found);
  }, 300);
};
</script>"""


class Reader(HTMLParser):
    """Ids, links, and whatever would load something."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.tags: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            assert not name.startswith("on"), f"a handler on {tag}"
            if name == "id":
                self.ids.append(value or "")
            elif name == "href":
                self.links.append(value or "")
            elif name in ("src", "srcset", "data", "action"):
                self.loaded.append(value or "")


@pytest.fixture(scope="module")
def page(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a project with two methods and a run of an awkward name, note and tag."""
    project = finished.copy(tmp_path_factory.mktemp("page") / "project")
    [esp] = project.runs("esp")
    project(f"evaluate {esp.name} --epochs 2")
    project("runs note", esp.name, EVIL)
    project("runs tag", esp.name, "evil<b>")
    bench = project.home / "bench.json"
    bench.write_text(json.dumps({"device": EVIL, "figure7": BENCH}))
    path: Path = project.home / "report.html"
    assert "report.html" in project("report html -o", str(path), "--bench", str(bench)).out
    return path


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def test_the_page_stands_alone(page: Path) -> None:
    text, found = page.read_text(encoding="utf-8"), read(page)
    assert all(source.startswith("data:image/png;base64,") for source in found.loaded)
    assert found.loaded, "there are no pictures"
    assert found.tags["link"] == found.tags["iframe"] == found.tags["base"] == 0
    assert not re.search(r"url\(|@import|https?://", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert "default-src 'none'" in policy[1]


def test_every_link_leads_to_one_place(page: Path) -> None:
    found = read(page)
    assert max(Counter(found.ids).values()) == 1
    assert {link.removeprefix("#") for link in found.links} <= set(found.ids)
    assert all(link.startswith("#") for link in found.links)
    measured = [link for link in found.links if re.fullmatch(r"#d\d+t\d+r\d+", link)]
    assert len(measured) > 10


def test_names_are_text(page: Path) -> None:
    text, found = page.read_text(encoding="utf-8"), read(page)
    assert found.tags["script"] == 1
    assert found.tags["b"] == 0
    assert "&lt;script&gt;document.title=" in text
    assert "evil&lt;b&gt;" in text


def test_it_has_tables_pictures_curves_and_cost(page: Path) -> None:
    text, found = page.read_text(encoding="utf-8"), read(page)
    for part in ("Table 1: accuracy", "Measures beside accuracy", "Cost", "Synthetic images", "Curves", "Runs"):
        assert f">{part}" in text
    assert found.tags["svg"] >= 4
    assert found.tags["polyline"] >= 4
    assert "ESP, 1 per class" in text
    assert "MTT, 1 per class, estimated" in text
    assert "/evaluations/dsa-2" in text
    assert str(page.parent) not in text, "a place on this machine"


def test_a_browser_sorts_links_and_fits_a_phone(page: Path, tmp_path: Path) -> None:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"there is none of {', '.join(BROWSERS)}")
    shutil.copy(page, tmp_path / "report.html")
    (tmp_path / "person.html").write_text(PERSON)
    flags = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    flags += "--disable-component-update --disable-sync --allow-file-access-from-files --virtual-time-budget=4000"
    command = [program, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [*command, (tmp_path / "person.html").as_uri()], capture_output=True, text=True, check=False, timeout=90
    )
    text = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert text is not None, done.stderr[-1000:]
    found = json.loads(text[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert found["inner"] == 390
    assert found["page"] <= 390, "the page scrolls sideways"
    assert found["box"], "the table does not scroll in its box"
    assert found["focus"]
    assert (found["before"], found["up"], found["down"]) == ([9, 100, 20], [9, 20, 100], [100, 20, 9])
    assert (found["sort"], found["sortedDown"]) == ("ascending", "descending")
    assert found["first"] in found["target"]
    assert "evaluations/" in found["target"]
    assert found["title"] == "espctl report"
    assert all(found["images"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("report html -o page.txt", "is not an HTML file"),
        ("report html -o page.html --bench missing.json", "missing.json does not exist"),
        ("report html -o page.html -d svhn", "nothing has been scored on svhn"),
    ],
)
def test_what_cannot_become_a_page_is_said(page: Path, finished: Any, words: str, message: str) -> None:
    project = type(finished)(page.parent)
    assert message in project(words, code=1).err
