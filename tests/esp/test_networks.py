from __future__ import annotations

import pytest
import torch

from esp.errors import InputError, UnknownNameError
from esp.networks.convnet import Norm, convnet
from esp.networks.flat import build, canonical_spec
from esp.rng import Key

CIFAR, TINY = (3, 32, 32), (3, 64, 64)


@pytest.mark.parametrize(
    ("spec", "shape", "classes", "parameters", "features"),
    [
        ("convnet3", CIFAR, 10, 320_010, 2048),
        ("convnet3", CIFAR, 100, 504_420, 2048),
        ("convnet4", TINY, 200, 857_160, 2048),
        ("convnet3", TINY, 200, 1_938_120, 8192),
        ("convnet3", (1, 28, 28), 10, 317_706, 2048),  # padded to 32x32
        ("convnet,depth=1,width=2,norm=none", (1, 4, 4), 2, 2 * 9 + 2 + 8 * 2 + 2, 8),
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
        ("convnet3,norm=batch", InputError, "norm=batch"),
        ("convnet3,width=100,norm=group", InputError, "width=100"),
    ],
)
def test_a_network_that_cannot_be_is_refused(spec: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(spec, CIFAR, 10)


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
