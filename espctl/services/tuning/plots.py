"""Optuna's plots of a study, as PNG files and as one HTML page that needs no network."""

from __future__ import annotations

import html
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import optuna
import optuna.visualization as interactive
import optuna.visualization.matplotlib as still
import plotly.io
from optuna.trial import TrialState

from esp import files
from espctl.errors import RunError
from espctl.services.project import Project
from espctl.services.tuning import studies

KINDS: dict[str, tuple[str, int]] = {
    "history": ("plot_optimization_history", 1),
    "importance": ("plot_param_importances", 3),
    "parallel": ("plot_parallel_coordinate", 2),
    "slice": ("plot_slice", 1),
    "intermediate": ("plot_intermediate_values", 1),
}
"""Name -> Optuna's function, and how many different scores it needs."""

LEGEND = 12
"""Entries of a legend that fit beside a plot."""


def draw(project: Project, name: str, folder: Path | None) -> list[Path]:
    """Draw every plot that the study has enough trials for; `plots` in the study's own folder by default.

    Returns:
        The PNG files, and last the page with all plots.

    Raises:
        RunError: no trial has finished.
    """
    study = studies.open_study(project, name)
    folder = folder or study.folder / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    with study.shared() as shared:  # which keeps Optuna quiet as well
        found = _copy(shared)
    trials = found.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not trials:
        raise RunError(f"no trial of the study {name} has finished", f"go on with: espctl tune --study {name}")
    scores = len({trial.value for trial in trials})
    kinds = [kind for kind, (_, need) in KINDS.items() if scores >= need]
    if not any(trial.intermediate_values for trial in found.get_trials(deepcopy=False)):
        kinds.remove("intermediate")
    mpl.use("Agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the plots on matplotlib are called experimental
        paths = [_png(getattr(still, KINDS[k][0]), found, _named(k), folder / f"{k}.png") for k in kinds]
        figures = [getattr(interactive, KINDS[k][0])(found, **_named(k)) for k in kinds]
    page = folder / "plots.html"
    files.write_text(page, _page(name, figures))
    return [*paths, page]


def _named(kind: str) -> dict[str, str]:
    """What the axis of the scores is called, where it is not the plot's own affair."""
    return {} if kind in ("intermediate", "importance") else {"target_name": "accuracy on held-out images"}


def _copy(study: optuna.Study) -> optuna.Study:
    """The trials in memory, so that nobody waits for the drawing."""
    copy = optuna.create_study(study_name=study.study_name, direction="maximize")
    copy.add_trials([t for t in study.get_trials() if t.state != TrialState.WAITING])
    return copy


def _png(draw: Callable[..., Any], study: optuna.Study, named: dict[str, str], path: Path) -> Path:
    from matplotlib import pyplot

    before = mpl.rcParams.copy()
    axes = draw(study, **named)
    first = axes.flat[0] if hasattr(axes, "flat") else axes
    legend = first.get_legend()
    if legend is not None and len(legend.get_texts()) > LEGEND:
        legend.remove()  # it would be larger than the plot
    with files.aside(path) as temporary:
        first.figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")
    pyplot.close("all")
    mpl.rcParams.update(before)  # Optuna's plots change the style of everything that is drawn afterwards
    return path


def _page(name: str, figures: list[Any]) -> str:
    """One page; Plotly's script is in it once."""
    parts = [
        plotly.io.to_html(figure, full_html=False, include_plotlyjs=index == 0) for index, figure in enumerate(figures)
    ]
    title = html.escape(name)
    head = f'<!doctype html><html><head><meta charset="utf-8"><title>{title}</title></head>'
    return f"{head}<body><h1>{title}</h1>{''.join(parts)}</body></html>\n"
