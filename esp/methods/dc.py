"""Gradient matching: DC (Zhao, Mopuri and Bilen, ICLR 2021) and DSA (Zhao and Bilen, ICML 2021); methods.md 6 and 7."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from esp import augment
from esp.core import Metrics, State, Task, synthetic_parameters
from esp.errors import InputError
from esp.methods._matching import Rates, View, mean_gradient
from esp.methods._options import require_options
from esp.networks.flat import Network
from esp.parametrisation import decode_all
from esp.presets import loops
from esp.rng import Key
from esp.training import Recipe, Snapshot

Distance = Literal["rows", "cos", "mse"]


@dataclass(frozen=True)
class DC:
    """Match, class by class, the parameter gradients of real and synthetic images, while a network learns the latter.

    A network is drawn, then `outer` times: one synthetic update from all classes jointly, and `inner` epochs of
    training on the synthetic set, none after the last update; then the next network. On pixels the optimiser is SGD
    with momentum, as published, and its velocity outlives the networks; on latent codes it is Adam with linear decay.
    Batch normalisation is frozen for each update by real images, as published (`Task.frozen`).

    Attributes:
        steps: synthetic updates. The papers draw 1000 networks: 1000 updates at one image per class, where one
            network has one, but 10,000 at ten and 50,000 at fifty.
        outer, inner: the loops; 0 for the papers' (`loops`).
        distance: of gradients: `rows`, the paper's sum of 1 - cosine over the rows of every weight; `cos`, one such
            term for all weights and biases together; or `mse`, their squared distance. The latter two are the released
            code's alternatives, and want other learning rates.
        real_batch: real images per class and update.
        lr_network, batch: of the network's plain SGD on the synthetic set.
        lr_pixels, momentum: of SGD on pixels.
        lr_codes, lr_decoders: Adam's learning rates at the start.
        augmentation: DSA strategy, or `none`. An update applies the same to real and synthetic images of a class;
            the network's training applies it with parameters for each image.
        start: `noise`, `real`, or `auto`: real where the parametrisation stores images.
    """

    steps: int = 1_000
    outer: int = 0
    inner: int = 0
    distance: Distance = "rows"
    real_batch: int = 256
    lr_network: float = 0.01
    batch: int = 256
    lr_pixels: float = 0.1
    momentum: float = 0.5
    lr_codes: float = 0.1
    lr_decoders: float = 0.01
    augmentation: str = "none"
    start: Literal["auto", "real", "noise"] = "noise"
    default_parametrisation: ClassVar[str] = "pixels"
    needs_experts: ClassVar[bool] = False

    def _rates(self, task: Task) -> Rates:
        optimiser = "sgd" if task.parametrisation.stores_images else "adam"
        return Rates(optimiser, self.lr_pixels, self.lr_codes, self.lr_decoders, self.momentum)

    def _loops(self, task: Task) -> tuple[int, int]:
        outer, inner = loops(task.parametrisation.frame.ipc)
        return self.outer or outer, self.inner or inner

    def _recipe(self, task: Task) -> Recipe:
        return Recipe(self._loops(task)[1], self.batch, self.lr_network, augmentation=self.augmentation)

    def check(self, task: Task) -> None:
        """Refuse options that make no sense."""
        task.operations(self.augmentation)
        require_options(self, task, start=("auto", "real", "noise"), distance=get_args(Distance))
        if self.real_batch < 1 or self.outer < 0 or self.inner < 0:
            raise InputError(
                f"{type(self).__name__} needs a real_batch of at least 1, and outer and inner loops that are not "
                "negative",
                "correct the --set options",
            )
        self._recipe(task)

    def init(self, task: Task, key: Key) -> State:
        """The synthetic set and its optimiser; the network comes with the first step."""
        default = "real" if task.parametrisation.stores_images else "noise"
        state = task.start(default if self.start == "auto" else self.start, key)
        return {**state, **self._rates(task).start(synthetic_parameters(state))}

    def step(self, task: Task, state: State, key: Key) -> tuple[State, Metrics]:
        """One synthetic update and, unless it was the last with its network, the network's training on the result."""
        done, (outer, _) = int(state["step"]), self._loops(task)
        here, parameters = key.fold("step", done), synthetic_parameters(state)
        theta = state["network"] if done % outer else task.network.init(key.fold("network", done // outer))
        theta = theta.to(next(iter(parameters.values())))
        task = task.frozen(theta, here.fold("statistics"))
        operations = task.operations(self.augmentation)
        draw = augment.draw_single(operations, task.data.num_classes, here.fold("augment").generator())
        view = View(task, parameters, draw, by_class=True)
        match = GradientMatch(view, theta, self.real_batch, here.fold("real"), self.distance)
        slopes, rates = match.view.pull(match), self._rates(task)
        state = rates.update(state, slopes, 1.0 if rates.optimiser == "sgd" else 1 - done / self.steps)
        if (done + 1) % outer:
            theta = self._train(task, theta, state, here.fold("train"))
        return {**state, "network": theta}, {"distance": match.total}

    def _train(self, task: Task, theta: Tensor, state: State, key: Key) -> Tensor:
        """The network's weights [p] after the inner epochs of plain SGD on the synthetic set."""
        images = decode_all(task.parametrisation, synthetic_parameters(state))
        labels = task.labels.to(images.device)
        start = Snapshot(0, theta, torch.zeros_like(theta), None)
        epochs = task.trainer(self._recipe(task)).epochs(start, images, labels, lambda batch: batch, key)
        return list(epochs)[-1].theta


@dataclass(frozen=True)
class DSA(DC):
    """DC on augmented images: siamese in the matching, with parameters for each image in the network's training."""

    augmentation: str = augment.STRATEGY
    start: Literal["auto", "real", "noise"] = "auto"


@dataclass
class GradientMatch:
    """d/d images of the sum over classes of `distance`, for chunks of one class at a time, classes in order.

    What belongs to a class is made when its first chunk comes and dropped with the next class, so that memory does not
    grow with the number of classes.

    Attributes:
        view: the synthetic set, by class.
        theta: weights [p] of the network that looks.
        count: real images of each class.
        key: names the choice of real images.
        kind: of distance.
        total: the sum [] over the classes so far.
    """

    view: View
    theta: Tensor
    count: int
    key: Key
    kind: Distance = "rows"

    def __post_init__(self) -> None:
        self.total = self.theta.new_zeros(())
        self._label = -1

    def __call__(self, images: Tensor, rows: slice) -> Tensor:
        """Like images [n, c, h, w], all of one class; `rows` are their places in the whole set."""
        task, label = self.view.task, int(self.view.task.labels[rows.start])
        if label != self._label:
            self._label, (value, self._direction) = label, self._match(label)
            self.total = self.total + value
        nothing = images.new_zeros(len(images), task.network.features)
        return task.derivatives().mixed_pullback(self.theta, self._direction, images, self.view.targets(rows), nothing)

    def _match(self, label: int) -> tuple[Tensor, Tensor]:
        """Distance [] of a class, and its derivative [p] in the gradient of the loss of one synthetic image."""
        task, view = self.view.task, self.view
        images, _ = task.real([label], self.count, self.key)
        parts = torch.split(images, task.chunk)
        hot = torch.nn.functional.one_hot(torch.tensor(label), task.network.classes).to(images)
        group = torch.full((len(images),), label)
        real = ((augment.apply(view.draw, x, group[: len(x)]), hot.expand(len(x), -1)) for x in parts)
        wanted = mean_gradient(task, self.theta, real)
        chunks = ((view.images(*chunk), view.targets(chunk[1])) for chunk in view.chunks(label))
        value, slope = distance(task.network, mean_gradient(task, self.theta, chunks), wanted, self.kind)
        return value, slope / (task.parametrisation.units * task.parametrisation.multiplicity)


def distance(network: Network, gradient: Tensor, wanted: Tensor, kind: Distance = "rows") -> tuple[Tensor, Tensor]:
    """How far g is from w, and the derivative of that in g.

    `rows` is the sum over the rows r of all weights of 1 - <g_r, w_r> / (|g_r| |w_r| + 1e-6). A row is what leads to
    one output: [out, in, k, k] and [out, in] have `out` rows. Biases, scales and shifts count for nothing. `cos` takes
    the whole vectors for one row, `mse` is |g - w|^2; biases count in both.

    Args:
        network: says which parts of a flat vector are which weights.
        gradient: g [p].
        wanted: w [p].
        kind: of distance.

    Returns:
        The distance [], and its derivative [p].
    """
    leaf, wanted = gradient.detach().requires_grad_(), wanted.detach()
    with torch.enable_grad():
        if kind == "mse":
            value = (leaf - wanted).square().sum()
        elif kind == "cos":
            value = _one_less_cosine(leaf[None], wanted[None])
        else:
            pairs = zip(network.tensors(leaf).values(), network.tensors(wanted).values(), strict=True)
            weights = [(one.flatten(1), two.flatten(1)) for one, two in pairs if one.ndim > 1]
            value = sum((_one_less_cosine(*pair) for pair in weights), start=leaf.new_zeros(()))
        (slope,) = torch.autograd.grad(value, leaf)
    return value.detach(), slope


def _one_less_cosine(one: Tensor, two: Tensor) -> Tensor:
    """Sum [] over the rows of 1 - cosine of rows of [n, d]."""
    gaps: Tensor = 1 - (one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1) + 1e-6)
    return gaps.sum()
