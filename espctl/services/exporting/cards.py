"""The README of an exported synthetic set: what it is, what it cost, how it scores, and whose data it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esp.spaces import NORMALISED
from espctl.services.exporting.plain import Plain
from espctl.services.scores import Summary
from espctl.store.records import RunRecord


@dataclass(frozen=True)
class Licence:
    """The licence of a data set: its identifier on the Hugging Face hub, and a sentence about it."""

    identifier: str
    sentence: str


LICENCES = {
    "cifar10": Licence("unknown", "CIFAR-10 (A. Krizhevsky, 2009) was published without a licence."),
    "cifar100": Licence("unknown", "CIFAR-100 (A. Krizhevsky, 2009) was published without a licence."),
    "digits": Licence(
        "cc-by-4.0",
        "Optical Recognition of Handwritten Digits (E. Alpaydin and C. Kaynak, 1998, UCI repository): CC BY 4.0.",
    ),
    "fashion_mnist": Licence("mit", "Fashion-MNIST (H. Xiao, K. Rasul and R. Vollgraf, 2017, Zalando): MIT licence."),
    "mnist": Licence("cc-by-sa-3.0", "MNIST (Y. LeCun, C. Cortes and C. Burges): CC BY-SA 3.0."),
    "svhn": Licence("other", "SVHN (Y. Netzer et al., 2011): for non-commercial use only."),
    "tinyimagenet": Licence(
        "other", "Tiny ImageNet is a part of ImageNet: for non-commercial research and education only."
    ),
}
OWN = Licence("unknown", "The licence of the source data is not known to the program that wrote this card.")


def licence(dataset: str) -> Licence:
    """The licence of a data set by its canonical name."""
    return LICENCES.get(dataset, OWN)


def source(dataset: str) -> str:
    """The name of a data set without the folder of its files, which is nobody else's business."""
    prefix, colon, path = dataset.partition(":")
    return f"{prefix}:{path.rpartition('/')[2]}" if colon and prefix in ("folder", "tensors") else dataset


def card(run: RunRecord, plain: Plain, scores: Sequence[Summary], asked: Mapping[str, Any]) -> str:
    """A data card in Markdown with the header that the Hugging Face hub reads.

    Args:
        run: what made the set.
        plain: the decoded set.
        scores: of the run, of every protocol and network.
        asked: the run's request; of the method's options those are named that differ from their preset.
    """
    parts = [_header(run, plain), *_about(run, plain, asked), *_scores(scores), *_pixels(plain), *_licence(run)]
    return "\n".join(parts) + "\n"


def _header(run: RunRecord, plain: Plain) -> str:
    """YAML; the run's name is written as a JSON string, which YAML reads as the same text."""
    lines = ["---", f"pretty_name: {json.dumps(run.id)}", f"license: {licence(run.dataset).identifier}"]
    lines += ["task_categories:", "  - image-classification", "tags:", "  - dataset-condensation"]
    lines += ["  - dataset-distillation", "size_categories:", f"  - {_size(len(plain.labels))}", "configs:"]
    lines += ["  - config_name: default", "    data_files:", "      - split: train", "        path: train/**"]
    if plain.test_labels is not None:
        lines += ["      - split: test", "        path: test/**"]
    return "\n".join([*lines, "---"])


def _size(count: int) -> str:
    if count < 1_000:
        return "n<1K"
    return "1K<n<10K" if count < 10_000 else "10K<n<100K" if count < 100_000 else "100K<n<1M"


def _about(run: RunRecord, plain: Plain, asked: Mapping[str, Any]) -> list[str]:
    count, (channels, height, width) = len(plain.labels), plain.pixels.shape[1:]
    changed = asked.get("changed_options") or {}
    chosen = ", ".join(
        [f"preset {asked.get('preset_base', 'paper')}", *(f"{name}={value}" for name, value in sorted(changed.items()))]
    )
    stored, budget = run.stored_numbers or 0, run.budget_numbers or 0
    cost = "not recorded" if run.seconds is None else f"{run.seconds:,.0f} s on {run.device}"
    cost += "" if run.peak_memory_bytes is None else f", {run.peak_memory_bytes / 1e6:,.0f} MB at most"
    rows = {
        "Source": f"{source(run.dataset)}, {len(plain.classes)} classes",
        "Method": f"{run.method}; options: {chosen}; seed {run.seed}; matching network {run.network}",
        "Budget": f"{run.ipc} plain images per class = {budget:,} numbers",
        "Stored": f"{run.parametrisation}, {stored:,} numbers, labels apart",
        "Classes": ", ".join(f"{label} {name}" for label, name in enumerate(plain.classes)),
        "Decoded": f"{count} images, {channels} x {height} x {width}",
        "Cost": cost,
        "Made by": f"espctl {run.version}, run {run.id}",
    }
    return [
        f"# {_inline(run.id)}",
        "",
        f"A synthetic data set: {count} images that were condensed from {_inline(source(run.dataset))}, to train "
        "networks that recognise the real images.",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {_inline(value)} |" for name, value in rows.items()),
        "",
    ]


def _scores(scores: Sequence[Summary]) -> list[str]:
    if not scores:
        return ["## Scores", "", "The set was not evaluated.", ""]
    rows = [f"| {_inline(s.protocol)} | {_inline(s.network)} | {_accuracy(s)} | {s.n} |" for s in scores]
    return [
        "## Scores",
        "",
        "Accuracy in percent on the real test images after the last epoch: mean ± standard deviation over n networks "
        "that were trained on the synthetic set by the protocol.",
        "",
        "| protocol | network | accuracy | n |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
    ]


def _accuracy(score: Summary) -> str:
    """In percent; one network alone has no deviation."""
    return f"{100 * score.mean:.1f} ± {100 * score.sd:.1f}" if score.n > 1 else f"{100 * score.mean:.1f}"


def _pixels(plain: Plain) -> list[str]:
    text = (
        f"The scores belong to the unrounded images. Pixels are rounded to 256 values, and {100 * plain.clamped:.2f} % "
        "of them were outside of what a pixel can be and were clamped, so that training on these files can give "
        "another accuracy."
    )
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (plain.mean, plain.std))
    seen = f"Networks see (pixel / 255 - mean) / std, mean {mean}, std {std}."
    if plain.space != NORMALISED:
        seen = f"The scores are of images whitened as in pixel space {plain.space!r}; these pixels undo the whitening."
    return ["## Pixels", "", text, "", seen, ""]


def _licence(run: RunRecord) -> list[str]:
    return [
        "## Licence",
        "",
        f"{licence(run.dataset).sentence} Synthetic images derive from the source data; its terms may extend to them.",
    ]


def _inline(text: str) -> str:
    """Text that cannot leave its line, its cell, or become markup."""
    return "".join(f"\\{c}" if c in "\\|*<>[]#`" else c for c in text if c.isprintable())
