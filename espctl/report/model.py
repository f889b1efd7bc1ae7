"""What a table is made of: rows, each a number with all that stands behind it, and grids of text to show them."""

from __future__ import annotations

from dataclasses import dataclass

from espctl.report.published import BestKnown


@dataclass(frozen=True)
class Evaluated:
    """One trained network behind a number.

    Attributes:
        accuracy: a fraction.
        file: of the evaluation, from the project's home; None unless a trace was asked, or when the file is gone.
    """

    run: str
    seed: int
    accuracy: float
    file: str | None = None


@dataclass(frozen=True)
class Cost:
    """What a number cost; None where it was not recorded.

    Attributes:
        seconds: of condensing, mean over runs.
        expert_seconds: of training the experts that a run used, mean over runs; 0 without experts.
        evaluate_seconds: of training and testing one network, mean.
        peak_memory_bytes: the highest of the runs.
        device: where the runs were condensed.
    """

    seconds: float | None
    expert_seconds: float | None
    evaluate_seconds: float | None
    peak_memory_bytes: int | None
    device: str


@dataclass(frozen=True)
class Measures:
    """Measures beside accuracy, as fractions; definitions in `esp.measures`. None where a number is missing.

    Attributes:
        real: accuracy on all real images, from experts, and where it was taken from.
        needed: commands that make what is missing.
    """

    hlr: float | None
    ior: float | None
    lrs: float | None
    ars: float | None
    real: float | None
    real_from: str
    needed: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One number of a table: runs that differ in their seed alone, under one protocol and network; in percent.

    Attributes:
        dataset, method, options: what was done; options that are not the method's own are named.
        stored: parametrisation.
        ipc: images per class of the budget.
        preset: of the runs' options.
        network, protocol: how it was scored.
        mean, sd, n: of the accuracy after the last epoch over all networks of all runs; None and 0 where a row only
            repeats what was published.
        best: mean of the best checks, chosen on the test set.
        published, published_sd, difference: the paper's number and ours minus it, or None where it has none.
        comparable: whether network, protocol and options are the published ones, as far as those are known.
        reasons: why it is not.
        certain: whether the published number's protocol is known, or inferred.
        runs: where the number comes from; `evaluations`: the trained networks.
    """

    dataset: str
    method: str
    options: str
    stored: str
    ipc: int
    preset: str
    network: str
    protocol: str
    mean: float | None
    sd: float | None
    n: int
    best: float | None
    published: float | None
    published_sd: float | None
    difference: float | None
    comparable: bool
    reasons: tuple[str, ...]
    certain: bool
    runs: tuple[str, ...]
    evaluations: tuple[Evaluated, ...]
    best_known: tuple[BestKnown, ...] = ()
    cost: Cost | None = None
    measures: Measures | None = None


@dataclass(frozen=True)
class Grid:
    """Text in rows and columns under a title, with a caption below.

    Attributes:
        numeric: for each column, whether it holds numbers.
        anchors: for each row, the number of the `Row` that it shows, counted from 1; 0 for none.
    """

    title: str
    columns: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    caption: str
    anchors: tuple[int, ...] = ()
