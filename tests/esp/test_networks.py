from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from esp.errors import InputError, UnknownNameError
from esp.networks import NETWORKS
from esp.networks.convnet import convnet
from esp.networks.flat import build, canonical_spec
from esp.networks.norms import Norm
from esp.rng import Key
from esp.training import Recipe, Trainer

CIFAR, TINY = (3, 32, 32), (3, 64, 64)
SMALL = (
    *("convnet3,width=4", "convnet4,width=4,norm=group", "convnet,depth=2,width=4,norm=batch"),
    *("resnet10,width=4", "resnet10idc,width=4", "resnet18,width=4,norm=group"),
    *("densenet121,growth=2", "densenetidc,growth=2", "efficientnetv2s,resize=64", "kipnet,width=4"),
)
"""Every network, at a size that takes a moment where it has one."""


def noise(*shape: int) -> torch.Tensor:
    """The same in any order of the tests."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("spec", "shape", "classes", "parameters", "features"),
    [
        ("convnet3", CIFAR, 10, 320_010, 2048),
        ("convnet3", CIFAR, 100, 504_420, 2048),
        ("convnet4", TINY, 200, 857_160, 2048),
        ("convnet3", TINY, 200, 1_938_120, 8192),
        ("convnet3", (1, 28, 28), 10, 317_706, 2048),  # padded to 32x32
        ("convnet,depth=1,width=2,norm=none", (1, 4, 4), 2, 2 * 9 + 2 + 8 * 2 + 2, 8),
        ("convnet3,norm=batch", CIFAR, 10, 320_010, 2048),
        ("convnet3,norm=group", CIFAR, 10, 320_010, 2048),
        ("resnet10", CIFAR, 10, 4_903_242, 512),
        ("resnet10", CIFAR, 100, 4_903_242 + 90 * 513, 512),
        ("resnet10,norm=instance", CIFAR, 10, 4_903_242, 512),
        ("resnet10idc", CIFAR, 10, 1_228_970, 256),
        ("resnet18", CIFAR, 10, 11_173_962, 512),
        ("densenet121", CIFAR, 10, 6_956_298, 1024),
        ("densenetidc", CIFAR, 10, 1_000_618, 384),
        ("efficientnetv2s", CIFAR, 10, 20_190_298, 1280),
        ("efficientnetv2s,resize=64", CIFAR, 10, 20_190_298, 1280),
    ],
)
def test_parameters_and_features_are_those_of_the_field(
    spec: str, shape: tuple[int, int, int], classes: int, parameters: int, features: int
) -> None:
    network = build(spec, shape, classes)
    assert network.parameters == len(network.init(Key(0))) == parameters
    assert network.features == features


def test_operations_of_a_forward_pass_are_counted() -> None:
    convolutions = 9 * 128 * (3 * 32**2 + 128 * 16**2 + 128 * 8**2)
    assert build("convnet3", CIFAR, 10).flops == 2 * (convolutions + 2048 * 10)


def test_a_spec_has_one_canonical_form() -> None:
    assert canonical_spec("convnet3,width=128") == canonical_spec("convnet3") == "convnet3"
    assert canonical_spec("convnet,width=8,depth=2") == canonical_spec("convnet,depth=2,width=08")
    assert canonical_spec("convnet,width=8,depth=2,norm=instance") == "convnet,depth=2,width=8"
    assert build("convnet3,width=4,norm=none", CIFAR, 2).spec == "convnet3,norm=none,width=4"


def test_a_network_of_ones_own_is_named_by_its_path() -> None:
    own = build("esp.networks.convnet:convnet,depth=2,width=4", (1, 8, 8), 3)
    assert own.spec == "esp.networks.convnet:convnet,depth=2,width=4"
    assert torch.equal(own.init(Key(1)), build("convnet,depth=2,width=4", (1, 8, 8), 3).init(Key(1)))


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("resnet18x", UnknownNameError, "unknown network"),
        ("convnet3,depth=2", UnknownNameError, "unknown option of network convnet3 'depth'"),
        ("convnet3,width=0", InputError, "width of at least 1"),
        ("convnet,depth=0", InputError, "depth"),
        ("convnet3,norm=layer", InputError, "norm=layer"),
        ("convnet3,width=100,norm=group", InputError, "100 channels do not divide"),
    ],
)
def test_a_network_that_cannot_be_is_refused(spec: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(spec, CIFAR, 10)


@pytest.mark.parametrize(("spec", "channels"), [(spec, 1 + place % 4) for place, spec in enumerate(SMALL)])
def test_every_network_learns_from_images_of_any_channels(spec: str, channels: int) -> None:
    network = build(spec, (channels, 16, 20), 3)
    trainer = Trainer(network, Recipe(1, 2, 0.01, 0.9, 5e-4), True, torch.device("cpu"))
    images = noise(4, channels, 16, 20)
    start = trainer.start(Key(0))
    (end,) = trainer.epochs(start, images, torch.tensor([0, 1, 2, 0]), lambda x: x, Key(1))
    assert end.theta.isfinite().all()
    assert all((part != 0).any() for part in network.tensors(end.velocity).values())
    features, logits = network.freeze(end.statistics)(end.theta, images)
    assert (features.shape, logits.shape) == ((4, network.features), (4, 3))
    assert network.flops > 0


def test_channels_change_the_first_kernel_alone() -> None:
    for spec, channels, kernel in (("resnet10", 1, 9 * 64), ("densenet121", 2, 9 * 64), ("efficientnetv2s", 4, 9 * 24)):
        three, other = build(spec, CIFAR, 10), build(spec, (channels, 32, 32), 10)
        assert other.parameters - three.parameters == (channels - 3) * kernel


def test_the_small_networks_are_all_there_are() -> None:
    assert {spec.split(",")[0] for spec in SMALL} == NETWORKS.keys()


def test_a_resnet_is_the_usual_one() -> None:
    network = build("resnet18", CIFAR, 10)
    # the sum over 3x3 and 1x1 convolutions of 2 k k in out h w, of the published architecture
    stages = [(64, 64, 32, 4, 0), (64, 128, 16, 4, 1), (128, 256, 8, 4, 1), (256, 512, 4, 4, 1)]
    total = 9 * 3 * 64 * 32**2 + 512 * 10
    for inputs, outputs, side, count, projections in stages:
        total += 9 * inputs * outputs * side**2 + (count - 1) * 9 * outputs**2 * side**2
        total += projections * inputs * outputs * side**2
    assert network.flops == 2 * total


def test_resizing_is_what_the_network_does_first() -> None:
    large, wide = build("efficientnetv2s,resize=48", (3, 16, 16), 2), build("efficientnetv2s", (3, 48, 48), 2)
    theta, images = large.init(Key(0)), noise(2, 3, 16, 16)
    resized = F.interpolate(images, size=(48, 48), mode="bilinear", align_corners=False)
    statistics = wide.measure(theta, resized)
    torch.testing.assert_close(large.freeze(statistics)(theta, images), wide.freeze(statistics)(theta, resized))


@pytest.mark.parametrize("spec", [spec for spec in SMALL if not spec.startswith("kipnet")])
def test_levels_end_with_the_features(spec: str) -> None:
    network = build(spec, (3, 16, 16), 3)
    theta, images = network.init(Key(0)), noise(3, 3, 16, 16)
    network = network.freeze(network.measure(theta, images))
    levels = network.levels(theta, images)
    assert network.has_levels
    assert len(levels) >= 4 or spec.startswith("convnet,")
    assert all(level.shape[0] == 3 and level.ndim == 2 for level in levels)
    torch.testing.assert_close(levels[-1], network(theta, images)[0])


@pytest.mark.parametrize(
    ("spec", "shape", "match"),
    [
        ("densenet121", (3, 7, 32), "7x32 are too small for a DenseNet"),
        ("densenetidc,norm=instance", (3, 32, 15), "32x15 are too small for a DenseNet with norm=instance"),
        ("resnet10,norm=instance", (3, 8, 8), "shrink to one pixel"),
        ("resnet10,width=0", CIFAR, "width of at least 1"),
        ("densenet121,growth=0", CIFAR, "growth of at least 1"),
        ("efficientnetv2s,resize=31", CIFAR, "resize=31"),
        ("resnet18,norm=layer", CIFAR, "norm=layer is no normalisation"),
    ],
)
def test_what_a_network_cannot_see_or_be_is_said_in_a_sentence(
    spec: str, shape: tuple[int, int, int], match: str
) -> None:
    with pytest.raises(InputError, match=match) as caught:
        build(spec, shape, 10)
    assert caught.value.hint


@pytest.mark.parametrize("shape", [(3, 7, 32), (3, 32, 7), (1, 1, 1)])
def test_images_too_small_for_the_poolings_are_refused_at_once(shape: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="are too small for 3 poolings"):
        build("convnet3", shape, 10)


def test_the_hint_for_small_images_names_a_depth_that_works() -> None:
    with pytest.raises(InputError) as caught:
        build("convnet,depth=5", (3, 17, 20), 10)
    assert caught.value.hint == "use a depth of at most 4"
    assert build("convnet,depth=4,width=2", (3, 17, 20), 10).features == 2
    assert build("convnet3,width=2", (3, 8, 8), 10).features == 2


def test_initial_weights_are_the_modules_own_and_leave_the_global_generator_alone() -> None:
    network, key = build("convnet3,width=4", (3, 8, 8), 3), Key(5).fold("init")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    theta = network.init(key)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(theta, network.init(key))
    assert not torch.equal(theta, network.init(key.fold("other")))
    torch.manual_seed(key.integer())
    module = convnet((3, 8, 8), 3, 3, 4)
    assert torch.equal(theta, torch.cat([p.detach().flatten() for p in module.parameters()]))


def test_a_vector_of_weights_is_the_module_that_holds_them() -> None:
    network, key = build("convnet,depth=2,width=6,norm=instance", (2, 9, 12), 4), Key(2)
    theta, images = network.init(key), torch.randn(5, 2, 9, 12)
    module = convnet((2, 9, 12), 4, 2, 6)
    module.load_state_dict(network.tensors(theta))
    features, logits = network(theta, images)
    expected_features, expected = module(images)
    assert torch.equal(logits, expected)
    assert torch.equal(features, expected_features)
    assert features.shape == (5, network.features)
    assert logits.shape == (5, 4)


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_norm_has_mean_zero_and_deviation_one_in_every_group(groups: int) -> None:
    norm = Norm(6, groups).double()
    x = 5 + 3 * torch.randn(4, 6, 5, 7, dtype=torch.float64)
    cells = norm(x).detach().reshape(4, groups, -1)
    assert cells.mean(2).abs().max() < 1e-12
    assert (cells.var(2, correction=0) - 1).abs().max() < 1e-4  # 1e-5 is added to the variance


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_the_fused_and_the_compiled_form_of_norm_agree(groups: int) -> None:
    norm = Norm(6, groups).double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    compiled = torch.compile(norm, backend="eager")  # traces the compiler's branch, and runs it as it is written
    x = torch.randn(4, 6, 5, 7, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 6, 5, 7, dtype=torch.float64)
    wanted = [x, norm.weight, norm.bias]
    torch.testing.assert_close(compiled(x), norm(x), rtol=1e-12, atol=1e-12)
    slopes = torch.autograd.grad((compiled(x) * weights).sum(), wanted)
    for found, expected in zip(slopes, torch.autograd.grad((norm(x) * weights).sum(), wanted), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
