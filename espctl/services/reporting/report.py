"""The paper's tables with our numbers beside the published ones. No torch in here but where a picture is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from esp import presets
from esp.errors import InputError
from esp.methods import METHODS
from esp.protocols import PROTOCOLS
from esp.registry import check
from esp.statistics import mean_and_sd
from espctl.report import published
from espctl.report.model import Evaluated, Row
from espctl.report.published import Published
from espctl.services.project import Project, dataset_name
from espctl.services.reporting import behind
from espctl.services.reporting.groups import VARIANTS, Group, grouped
from espctl.store.records import EvaluationRecord, RunRecord

PUBLISHED_AS = {"cafe": "cafe+dsa"}  # whose defaults are the variant with augmentation
ORDER = ("random", "herding", "kcenter", "dc", "dsa", "dm", "kip", "cafe", "mtt", "idc", "kfs", "esp")
PAPER = ("paper", "default")  # runs with the method's own options; the second is what they were called first
MATCHED_ON = "convnet3"  # the network that every published set was condensed with
NETWORKS = (MATCHED_ON, "resnet10", "densenet121", "efficientnetv2s")
TRIAL = "trial"  # the preset of runs that a study made: on part of the training images, and chosen among
_ABLATED = ("beta", "dm")  # weights of the two losses; one of them is 0 in two of the three rows of Table 4


@dataclass(frozen=True)
class Query:
    """Which rows of which table, and what beside them.

    Attributes:
        table: `1` accuracy, `2` other networks, `3` EfficientNetV2-S, `4` ablation of ESP's losses.
        dataset, protocol, network, ipc, method, preset: only rows of these; runs of the preset `trial` only when named.
        all_runs: a row for each run, not one for all seeds.
        published: rows as well for published numbers that nothing was measured for.
        trace: look up the file of every evaluation.
        cost, measures, best_known: fill these parts of a row.
    """

    table: str = "1"
    dataset: str | None = None
    protocol: str | None = None
    network: str | None = None
    ipc: int | None = None
    method: str | None = None
    preset: str | None = None
    all_runs: bool = False
    published: bool = False
    trace: bool = False
    cost: bool = False
    measures: bool = False
    best_known: bool = False


def rows(project: Project, query: Query) -> list[Row]:
    """The rows of a table: every finished and scored run, grouped over seeds.

    Raises:
        UnknownNameError: there is no such data set, method, protocol or network.
        InputError: nothing has been scored that belongs into the table.
    """
    query = checked(query)
    everything = groups(project, replace(query, ipc=None, method=None, protocol=None) if query.measures else query)
    if query.protocol and all(group.score.protocol != query.protocol for group in everything):
        query = replace(query, protocol=_protocol(project, query.protocol))
        everything = groups(project, query)
    chosen = [group for group in everything if wanted(group, query)]
    if query.table == "2":  # a set that was scored on its own network alone says nothing about others
        crossed = {group.same for group in chosen if group.base != MATCHED_ON}
        chosen = [group for group in chosen if group.same in crossed]
    made = [(_row(project, query, group), group) for group in chosen]
    if query.measures and made:
        from espctl.services.reporting.measures import Beside  # reads experts, which needs torch

        beside = Beside.of(project, everything)
        made = [(replace(row, measures=beside.measures(group)), group) for row, group in made]
    found = [row for row, _ in made]
    if query.published:
        found += _unmeasured(query, found)
    if not found:
        raise _nothing(query)
    if query.best_known:
        found = [replace(row, best_known=published.best_of(row.dataset, row.ipc)) for row in found]
    return sorted(found, key=lambda row: _place(row, query.table))


def groups(project: Project, query: Query) -> list[Group]:
    """The scores of a query's data set, budget, method and protocol, one group for each row that they could make."""
    named = {name: value for name in ("dataset", "ipc", "method") if (value := getattr(query, name))}
    return grouped(project, named, query.protocol, query.all_runs)


def reasons(run: RunRecord, score: EvaluationRecord, known: Published | None, ablated: bool = False) -> tuple[str, ...]:
    """Why a score may not be compared with a published number; empty when it may.

    Args:
        known: the published number; None leaves its protocol aside.
        ablated: whether the run has the method's own options but for the ablation of Table 4.
    """
    name = score.protocol.partition("+")[0].partition("@")[0]
    found = [
        ("preset", run.preset not in PAPER and not ablated),
        ("compressed", run.kind != "condense"),
        ("condensing network", run.network != MATCHED_ON),
        ("scoring network", "," in score.network or score.network in VARIANTS),
        ("protocol length", "@" in score.protocol),
        ("selection", "+" in score.protocol),
        ("protocol", bool(known and known.protocols and name not in known.protocols)),
    ]
    return tuple(reason for reason, holds in found if holds)


def comparable(run: RunRecord, score: EvaluationRecord, known: Published | None = None) -> bool:
    """Whether a score was made as the published one: the method's own options, the full network, its whole protocol."""
    return not reasons(run, score, known)


def variant(request: Mapping[str, Any]) -> str:
    """Which losses an ESP run used, as Table 4 calls it."""
    options = request["method_options"]
    parts = [name for name, weight in (("proj", options.get("beta")), ("dm", options.get("dm", 1.0))) if weight]
    return f"esp:{'+'.join(parts)}"


def checked(query: Query) -> Query:
    """A query with the stored names of its data set and network, its method known."""
    if query.method and ":" not in query.method:
        check(METHODS, "method", query.method)
    network = query.network
    if network:
        from esp.networks.flat import canonical_spec  # imports torch, which the tables do without

        network = canonical_spec(network)
    return replace(query, dataset=dataset_name(query.dataset) if query.dataset else None, network=network)


def _protocol(project: Project, name: str) -> str:
    """The name of a protocol that nothing was scored by under what was typed: misspelt, or a file of one's own."""
    if name.partition("+")[0].partition("@")[0] in PROTOCOLS:
        return name
    from espctl.services import protocols  # imports torch, which the tables do without

    return protocols.find(project, name).name


def wanted(group: Group, query: Query) -> bool:
    """Whether a table has a row for a group."""
    run, score = group.run, group.score
    networks = {p.network for p in published.everything() if p.table == query.table}
    return (
        query.protocol in (None, score.protocol)
        and query.network in (None, score.network)
        and query.ipc in (None, run.ipc)
        and query.method in (None, run.method)
        and (query.preset in group.preset.split(" + ") if query.preset else run.preset != TRIAL)
        and (query.table not in ("2", "3") or group.base in networks)
        and (query.table != "4" or run.method == "esp")
    )


def _row(project: Project, query: Query, group: Group) -> Row:
    run, score, pairs = group.run, group.score, group.pairs
    mean, sd = mean_and_sd([100 * s.accuracy for _, s in pairs])
    best, _ = mean_and_sd([100 * (s.best_accuracy or s.accuracy) for _, s in pairs])
    method, ablated = (variant(group.request), _only_ablated(group)) if query.table == "4" else (run.method, False)
    known = published.find(query.table, run.dataset, run.ipc, PUBLISHED_AS.get(method, method), group.base)
    why = reasons(run, score, known, ablated)
    where = behind.files_of(project, group) if query.trace else {}
    return Row(
        dataset=run.dataset,
        method=method,
        options=_options(group.request),
        stored=run.parametrisation or "",
        ipc=run.ipc,
        preset=group.preset,
        network=score.network,
        protocol=score.protocol,
        mean=mean,
        sd=sd,
        n=len(pairs),
        best=best,
        published=known.mean if known else None,
        published_sd=known.sd if known else None,
        difference=mean - known.mean if known else None,
        comparable=not why,
        reasons=why,
        certain=known.certain if known else True,
        runs=group.runs,
        evaluations=tuple(Evaluated(r.id, s.seed, s.accuracy, where.get((r.id, s.seed))) for r, s in pairs),
        cost=behind.cost_of(project, group) if query.cost else None,
    )


def _only_ablated(group: Group) -> bool:
    """Whether nothing but the weight of a loss was taken away from ESP's own options."""
    changed, base = group.request["changed_options"], group.request.get("preset_base", PAPER[0])
    return base in PAPER and all(name in _ABLATED and value == 0 for name, value in changed.items())


def _options(request: Mapping[str, Any]) -> str:
    """What differs from the paper's preset, as text."""
    return presets.describe(request)


def _unmeasured(query: Query, found: Sequence[Row]) -> list[Row]:
    """Rows for published numbers that no row shows yet."""
    own = {published_as: method for method, published_as in PUBLISHED_AS.items()}
    shown = {(r.dataset, r.ipc, r.method, r.network.partition(",")[0]) for r in found}
    wanted = [
        p
        for p in published.everything()
        if p.table == query.table
        and query.dataset in (None, p.dataset)
        and query.ipc in (None, p.ipc)
        and query.method in (None, own.get(p.method, p.method))
        and query.network in (None, p.network)
        and (p.dataset, p.ipc, own.get(p.method, p.method), p.network) not in shown
    ]
    return [
        Row(
            dataset=p.dataset, method=own.get(p.method, p.method), options="", stored="", ipc=p.ipc, preset="",
            network=p.network, protocol=" or ".join(p.protocols), mean=None, sd=None, n=0, best=None,
            published=p.mean, published_sd=p.sd, difference=None, comparable=True, reasons=(), certain=p.certain,
            runs=(), evaluations=(),
        )
        for p in wanted
    ]  # fmt: skip


def _nothing(query: Query) -> InputError:
    dataset = query.dataset or "digits"
    condense = f"espctl condense --dataset {dataset} --ipc 1"
    where = f" on {query.dataset}" if query.dataset else ""
    network = {"2": " --network resnet10", "3": " --network efficientnetv2s"}.get(query.table, "")
    what = {
        "1": "nothing has been scored",
        "2": "no set has been scored on another network",
        "3": "nothing has been scored on EfficientNetV2-S",
        "4": "no set of ESP has been scored",
    }[query.table]
    if query.table == "4":
        condense += " --set beta=0"
    if query.table == "3":
        where = f" of {query.dataset}" if query.dataset else ""
    return InputError(f"{what}{where}{_narrowed(query)}", f"{condense}, then espctl evaluate RUN{network}")


def _narrowed(query: Query) -> str:
    names = ("method", "ipc", "network", "protocol", "preset")
    chosen = [f"{name} {value}" for name in names if (value := getattr(query, name))]
    return f" with {', '.join(chosen)}" if chosen else ""


def _place(row: Row, table: str) -> tuple[Any, ...]:
    known = ORDER.index(row.method) if row.method in ORDER else len(ORDER)
    what = known, row.method, row.stored, row.options
    name = row.network.partition(",")[0]
    base = VARIANTS.get(name, name)
    where = NETWORKS.index(base) if base in NETWORKS else len(NETWORKS), row.network, row.protocol
    order = (*what, *where) if table == "2" else (*where, *what)  # networks of one set meet in Table 2
    return row.dataset, row.ipc or 10**9, *order, row.runs
