"""What the measurements on a GPU consist of, in their order, and what a CPU can carry of them: see `bench.gpu`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Options = dict[str, Any]

L1_MEAN: Options = {"proj_norm": "l1", "dm_reduction": "mean"}
L1_SUM: Options = {"proj_norm": "l1", "dm_reduction": "sum"}
RELATIVE: Options = {"proj_norm": "relative", "dm_reduction": "sum"}
NORMS: dict[str, Options] = {
    "no L_proj, L_DM averaged": {**L1_MEAN, "beta": 0.0},
    **{f"L1, beta {beta:g}, L_DM averaged": {**L1_MEAN, "beta": beta} for beta in (1e-6, 1e-5, 1e-4)},
    "no L_proj, L_DM summed": {**L1_SUM, "beta": 0.0},
    "L1, beta 0.001, L_DM summed": {**L1_SUM, "beta": 1e-3},
    **{f"relative, beta {beta:g}, L_DM summed": {**RELATIVE, "beta": float(beta)} for beta in (3, 30, 100, 300)},
}
"""Ways to weigh the residual; the first and the fifth have none of it."""


@dataclass(frozen=True)
class Variant:
    """One choice of what ESP leaves open: options, and how many experts; 0 for all."""

    what: str
    name: str
    options: Options
    experts: int = 0


@dataclass(frozen=True)
class Plan:
    """How large everything is.

    Attributes:
        name: what results call it.
        device, dataset, network: what is condensed, where, through which network.
        bench: parts of the bench; none for all.
        bench_share, expert_seconds: of the budget, and at most; experts of the ablation get half of these seconds.
        first, most: experts of the first wave, and in all; every wave doubles them.
        epochs: of an expert.
        methods, protocols, seeds, budgets: cells of the accuracy table, and networks of each score.
        options: of the methods, where they are not the presets'; `short` is added when the budget is below an hour.
        scoring: options of `espctl evaluate`.
        variant_steps, variant_epochs, variant_seeds, variant_networks: of the ablation.
        lengths, counts: segment lengths and numbers of experts that it compares.
    """

    name: str
    device: str
    dataset: str
    network: str
    bench: tuple[str, ...]
    bench_share: float
    expert_seconds: float
    first: int
    most: int
    epochs: int
    methods: tuple[str, ...]
    protocols: tuple[str, ...]
    seeds: int
    budgets: tuple[int, ...]
    options: dict[str, Options]
    short: dict[str, Options]
    scoring: tuple[str, ...]
    variant_steps: int
    variant_epochs: int
    variant_seeds: int
    variant_networks: int
    lengths: tuple[int, ...]
    counts: tuple[int, ...]

    def start_max(self, segment: int) -> int:
        """Latest epoch that a segment begins at."""
        return min(20, self.epochs - segment)

    def norms(self) -> list[Variant]:
        """The ablation of the norm of L_Proj with its weight."""
        options = {"segment": min(10, self.epochs // 2)}
        return [Variant("norm", name, {**options, **NORMS[name]}) for name in NORMS]

    def around(self, best: Options) -> list[Variant]:
        """The ablation of segment length and number of experts, with the norm and weight that are best."""
        segments = [Variant("segment", f"segment {n}", {**best, "segment": n}) for n in self.lengths]
        return segments + [Variant("experts", f"{n or 'all'} experts", best, n) for n in self.counts]


PLANS = {
    "cuda": Plan(
        name="cuda", device="cuda", dataset="cifar10", network="convnet3", bench=(), bench_share=0.3,
        expert_seconds=600, first=4, most=100, epochs=30, methods=("random", "dm", "kfs", "esp"),
        protocols=("idc", "dsa"), seeds=5, budgets=(1, 10, 50), options={},
        short={"dm": {"steps": 3000}, "kfs": {"steps": 3500}, "esp": {"steps": 3000}}, scoring=(),
        variant_steps=1000, variant_epochs=300, variant_seeds=3, variant_networks=2, lengths=(2, 5, 20),
        counts=(1, 4, 16),
    ),
    "cpu": Plan(
        name="cpu", device="cpu", dataset="cifar10", network="convnet3,width=16", bench=(), bench_share=0.3,
        expert_seconds=600, first=1, most=2, epochs=10, methods=("random", "dm", "kfs", "esp"), protocols=("dsa",),
        seeds=3, budgets=(1,), options={name: {"real_batch": 64} for name in ("dm", "kfs", "esp")},
        short={"dm": {"steps": 800}, "kfs": {"steps": 300}, "esp": {"steps": 200}}, scoring=("--epochs", "280"),
        variant_steps=200, variant_epochs=100, variant_seeds=3, variant_networks=1, lengths=(), counts=(),
    ),
    "rehearsal": Plan(
        name="rehearsal", device="cpu", dataset="digits", network="convnet3,width=8",
        bench=("unrolled", "segments"), bench_share=0.5, expert_seconds=6, first=1, most=4, epochs=4,
        methods=("random", "esp"), protocols=("dsa",), seeds=2, budgets=(1, 2),
        options={"esp": {"steps": 4, "real_batch": 8}}, short={}, scoring=("--epochs", "3"),
        variant_steps=3, variant_epochs=2, variant_seeds=1, variant_networks=1, lengths=(1,), counts=(1,),
    ),
}  # fmt: skip
