"""Using a synthetic set: as a data set of PyTorch, and to train a network that can be used.

from esp import SyntheticDataset, train_network
loader = torch.utils.data.DataLoader(SyntheticDataset("runs/RUN"), batch_size=64, shuffle=True)
network = train_network("runs/RUN")     # network.predict(images), images uint8 [n, c, h, w]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from esp.condensed import Condensed, load
from esp.data.dataset import Dataset
from esp.errors import ArtifactError, MismatchError
from esp.evaluation import Evaluator, Protocol
from esp.evaluation import protocol as find_protocol
from esp.networks.flat import Network, build
from esp.spaces import NORMALISED

FILE = "synthetic.safetensors"
"""What the synthetic set is called in the folder of a run."""


class SyntheticDataset(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """A synthetic set as pairs (image, label), decoded once and held in memory.

    An image is float32 [c, h, w], normalised as networks see it, or uint8 [c, h, w] with `pixels`. A label is a class,
    int64 [], or where label rows were learned with the images a row, float32 [classes], that sums to about 1.

    Args:
        path: a synthetic set, or the folder of the run that made it.
        pixels: give uint8 pixels, rounded and clamped, in place of what networks see.
        data: the real data set in the set's pixel space; only needed for pixels of a whitened set.

    Attributes:
        images: all images [n, c, h, w].
        labels: all labels, int64 [n] or float32 [n, classes].
        classes: names of the classes.
        mean, std: per channel, of pixels in [0, 1]: a normalised image is (x - mean) / std.
        space: pixel space of normalised images, `normalised` unless the set was made in a whitened one.
        synthetic: the set as it is stored.

    Raises:
        ArtifactError: the file is missing, damaged, or not a synthetic set.
        MismatchError: `data` is needed and not given, or is another data set.
    """

    def __init__(self, path: Path | str, pixels: bool = False, data: Dataset | None = None) -> None:
        self.synthetic = _load(path)
        self.images = self.synthetic.pixels(data) if pixels else self.synthetic.images().detach()
        self.labels = self.synthetic.targets()
        self.classes = tuple(str(name) for name in self.synthetic.meta["classes"])
        self.mean = tuple(float(value) for value in self.synthetic.meta["mean"])
        self.std = tuple(float(value) for value in self.synthetic.meta["std"])
        self.space = self.synthetic.space

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image and label number `index`."""
        return self.images[index], self.labels[index]


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with its weights, for raw images.

    Attributes:
        network: the architecture.
        theta: weights [p].
        data: what normalises images: the real data set, or the synthetic one in its place.
        accuracy: fraction of the test images of the real data set that it classifies correctly; None without one.
        chunk: images per pass.
    """

    network: Network
    theta: Tensor
    data: Dataset
    accuracy: float | None
    chunk: int = 512

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each class."""
        return self.data.classes

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [n, classes], on the CPU, of images [n, c, h, w]: uint8 of 0 to 255, or floats of 0 to 1."""
        with torch.no_grad():
            parts = [
                self.network(self.theta, self.data.normalise(part.to(self.theta.device)))[1].cpu()
                for part in torch.split(images, self.chunk)
            ]
        return torch.cat(parts) if parts else torch.empty(0, len(self.classes))

    def predict(self, images: Tensor) -> Tensor:
        """The class int64 [n] of images [n, c, h, w], given as to a call."""
        return self(images).argmax(1)


def train_network(
    source: SyntheticDataset | Condensed | Path | str,
    network: str = "convnet3",
    protocol: str | Protocol = "dsa",
    seed: int = 0,
    data: Dataset | None = None,
    device: str | torch.device = "cpu",
    chunk: int = 512,
    compile: bool = False,  # noqa: A002
) -> TrainedNetwork:
    """Train a fresh network on a synthetic set, exactly as it is scored with this seed.

    Args:
        source: the set, its file, or the folder of its run.
        network: spec of the architecture.
        protocol: how to train, by name (`dsa`, `dsa@300`, ...) or by value.
        seed: of initial weights, order and augmentation.
        data: the real data set, in the set's pixel space; its test images then give the accuracy. Needed where the set
            is in a whitened space, and by protocols that look at real images.
        device: where to compute.
        chunk: images per pass when predicting.
        compile: whether to fuse the training step with `torch.compile`.

    Raises:
        MismatchError: `data` is needed and not given, or is not what the set was condensed from.
        InputError: the protocol chooses among epochs, or the network does not fit the images.
    """
    synthetic = source if isinstance(source, Condensed) else _stored(source)
    chosen = find_protocol(protocol) if isinstance(protocol, str) else protocol
    if data is not None:
        synthetic.require(data)
    elif synthetic.space != NORMALISED or chosen.lr_of == "stable":
        raise MismatchError(
            f"a set in pixel space {synthetic.space!r} by the protocol {chosen.name} needs its real data set",
            "give data=esp.data.store.load(...), in the same space",
        )
    known = data or _itself(synthetic)
    images = synthetic.images().detach()
    made = build(network, known.shape, known.num_classes)
    evaluator = Evaluator(
        made, chosen, known, images, synthetic.targets(), torch.device(device), chunk, compile, synthetic.rate
    )
    trained, theta = evaluator.train(seed)
    found = TrainedNetwork(trained, theta, known, None, chunk)
    if data is None:
        return found
    right = int((found.predict(data.test_images) == data.test_labels).sum())
    return TrainedNetwork(trained, theta, known, right / len(data.test_labels), chunk)


def _stored(source: SyntheticDataset | Path | str) -> Condensed:
    return source.synthetic if isinstance(source, SyntheticDataset) else _load(source)


def _load(path: Path | str) -> Condensed:
    path = Path(path)
    return load(path / FILE if path.is_dir() else path)


def _itself(synthetic: Condensed) -> Dataset:
    """The synthetic set in the place of the real one, without test images: it says how images are normalised."""
    meta, pixels = synthetic.meta, synthetic.pixels()
    if "flips" not in meta:
        raise ArtifactError(
            "the synthetic set does not say whether mirrored images keep their label", "give its real data set"
        )
    labels = synthetic.labels()
    return Dataset(
        meta["dataset"], pixels, labels, pixels[:0], labels[:0], tuple(meta["classes"]), tuple(meta["mean"]),
        tuple(meta["std"]), "computed", meta["flips"], meta["fingerprint"],
    )  # fmt: skip
