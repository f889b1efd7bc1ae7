"""The report as one self-contained HTML page: no request leaves it, and every text in it is escaped.

The style and the script lie beside this module; the page names their hashes in its policy, so nothing else can run.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from espctl.render import clean
from espctl.report import svg
from espctl.report.formats import numeric
from espctl.report.layout import mark
from espctl.report.model import Grid, Row

_VALUE = re.compile(r"[+-]?\d+(\.\d+)?")
_FROM_ELSEWHERE = ("published", "best known")  # columns whose numbers no run made
_LONG = 26


@dataclass(frozen=True)
class Facts:
    """What is known of a run: its id, and pairs of a heading and a text."""

    id: str
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Section:
    """A table with the rows that it shows.

    Attributes:
        rows: empty where nothing was measured, or where the rows are those of the chapter's first section.
        first: whether they are.
    """

    grid: Grid
    rows: tuple[Row, ...] = ()
    first: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG of a run's synthetic images: width and height in its own pixels."""

    run: str
    title: str
    caption: str
    png: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Chapter:
    """Everything about one data set."""

    dataset: str
    sections: tuple[Section, ...]
    pictures: tuple[Picture, ...]
    charts: tuple[svg.Chart, ...]


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        about: what it says of itself.
        chapters: one for each data set.
        sources: where published numbers stand.
        charts: what belongs to no data set.
    """

    about: str
    chapters: tuple[Chapter, ...]
    runs: tuple[Facts, ...]
    sources: tuple[str, ...]
    charts: tuple[svg.Chart, ...] = ()


def build(page: Page) -> str:
    """The page as HTML text."""
    style, script = _colours() + _asset("page.css"), _asset("page.js")
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    runs = {facts.id: f"run-{number}" for number, facts in enumerate(page.runs, start=1)}
    chapters = "".join(_chapter(number, chapter, runs) for number, chapter in enumerate(page.chapters, start=1))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>espctl report</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<header><h1>Dataset condensation: results</h1><p class="soft">{_text(page.about)}</p>{_contents(page)}'
        f"</header>\n<main>{chapters}{_charts(page.charts)}{_runs(page.runs)}{_sources(page.sources)}</main>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _colours() -> str:
    return f":root {{ {' '.join(f'--c{number}: {colour};' for number, colour in enumerate(svg.COLOURS))} }}\n"


def _contents(page: Page) -> str:
    links = [(f"d{number}", chapter.dataset) for number, chapter in enumerate(page.chapters, start=1)]
    links += [("update", "Cost of an update")] if page.charts else []
    links += [("runs", "Runs"), ("sources", "Sources")]
    items = "".join(f'<li><a href="#{anchor}">{_text(name)}</a></li>' for anchor, name in links)
    return f'<nav aria-label="Contents"><ul>{items}</ul></nav>'


def _chapter(number: int, chapter: Chapter, runs: Mapping[str, str]) -> str:
    tables, traces = [], []
    for place, section in enumerate(chapter.sections, start=1):
        prefix = f"d{number}t{1 if section.first else place}r"
        tables.append(_table(section.grid, prefix))
        behind = [(number, row) for number, row in enumerate(section.rows, start=1) if row.runs]
        traces += [_trace(f"{prefix}{number}", row, runs, section.grid.title) for number, row in behind]
    parts = [f'<section id="d{number}"><h2>{_text(chapter.dataset)}</h2>', *tables]
    if chapter.pictures:
        shown = "".join(_picture(picture, runs) for picture in chapter.pictures)
        parts.append(f'<h3>Synthetic images</h3><div class="pictures">{shown}</div>')
    if chapter.charts:
        shown = "".join(_chart(chart) for chart in chapter.charts)
        parts.append(f'<h3>Curves</h3><div class="curves">{shown}</div>')
    if traces:
        parts += ["<h3>Where the numbers come from</h3>", *traces]
    return "".join([*parts, "</section>\n"])


def _table(grid: Grid, prefix: str) -> str:
    right = [numeric([row[i] for row in grid.cells]) for i in range(len(grid.columns))]
    heads = "".join(
        f'<th scope="col"{_class(right[i])}><button type="button">{_text(name)}</button></th>'
        for i, name in enumerate(grid.columns)
    )
    anchors = grid.anchors or (0,) * len(grid.cells)
    lines = "".join(
        "<tr>" + "".join(_cell(grid.columns[i], cell, right[i], prefix, anchor) for i, cell in enumerate(row)) + "</tr>"
        for row, anchor in zip(grid.cells, anchors, strict=True)
    )
    return (
        f'<h3>{_text(grid.title)}</h3><div class="scroll" tabindex="0" role="region" aria-label="{_text(grid.title)}">'
        f'<table class="sortable"><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
        f'<p class="caption">{_text(grid.caption)}</p>'
    )


def _cell(column: str, text: str, right: bool, prefix: str, anchor: int) -> str:
    found = _VALUE.match(text)
    kind = "number" if right else "long" if len(text) > _LONG else ""
    head = f"<td{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}"
    if not found or not (right or column in _FROM_ELSEWHERE):
        return f"{head}>{_text(text)}</td>"
    target = "sources" if column in _FROM_ELSEWHERE or not anchor else f"{prefix}{anchor}"
    return f'{head} data-value="{found[0]}"><a href="#{target}">{_text(text)}</a></td>'


def _trace(anchor: str, row: Row, runs: Mapping[str, str], title: str) -> str:
    what = ", ".join(filter(None, [row.method, row.stored, f"{row.ipc or 'all'} per class", row.network, row.protocol]))
    parts = [f'<section class="trace" id="{anchor}"><h4>{_text(title)}: {_text(what)}</h4>']
    if row.published is not None:
        parts.append(f"<p>{_text(_published(row))}</p>")
    if row.options:
        parts.append(f"<p>Options: <code>{_text(row.options)}</code></p>")
    items = "".join(
        f'<li><a href="#{runs[one.run]}">{_text(one.run)}</a>, seed {one.seed}: {100 * one.accuracy:.2f}'
        f"{f', <code>{_text(one.file)}</code>' if one.file else ''}</li>"
        for one in row.evaluations
    )
    return "".join([*parts, f"<ul>{items}</ul></section>"])


def _published(row: Row) -> str:
    value = f"Published: {row.published}" + ("" if row.published_sd is None else f" ± {row.published_sd}")
    if row.difference is None:
        return f"{value}."
    sign = mark(row).strip()
    why = f" Not comparable: another {', '.join(row.reasons)}." if row.reasons else ""
    why += " Its protocol is not stated." if sign == "?" else ""
    return f"{value}, difference {row.difference:+.1f}.{why}"


def _picture(picture: Picture, runs: Mapping[str, str]) -> str:
    data = base64.b64encode(picture.png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{picture.width}" height="{picture.height}" '
        f'loading="lazy" alt="{_text(picture.title)}"><figcaption><a href="#{runs[picture.run]}">{_text(picture.title)}'
        f"</a>. {_text(picture.caption)}</figcaption></figure>"
    )


def _charts(charts: Sequence[svg.Chart]) -> str:
    if not charts:
        return ""
    shown = "".join(map(_chart, charts))
    return f'<section id="update"><h2>Cost of an update</h2><div class="curves">{shown}</div></section>\n'


def _chart(chart: svg.Chart) -> str:
    caption = f"<figcaption>{svg.key(chart)}<p>{_text(chart.caption)}</p></figcaption>"
    return f"<figure><h4>{_text(chart.title)}</h4>{svg.draw(chart)}{caption}</figure>"


def _runs(runs: Sequence[Facts]) -> str:
    parts = [
        f'<section class="trace" id="run-{number}"><h4>{_text(facts.id)}</h4><ul>'
        + "".join(f"<li>{_text(name)}: {_text(value)}</li>" for name, value in facts.pairs)
        + "</ul></section>"
        for number, facts in enumerate(runs, start=1)
    ]
    return f'<section id="runs"><h2>Runs</h2>{"".join(parts)}</section>\n'


def _sources(sources: Sequence[str]) -> str:
    items = "".join(f"<li>{_text(source)}</li>" for source in sources)
    return f'<section id="sources"><h2>Sources of published numbers</h2><ul>{items}</ul></section>\n'


def _text(text: str) -> str:
    return escape(clean(text))


def _class(right: bool) -> str:
    return ' class="number"' if right else ""


def _asset(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
