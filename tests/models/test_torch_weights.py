"""PyTorch weights: our networks equal their originals, in inference and in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from gini_jax.errors import InputError
from gini_jax.models import create_model, from_torch, read_torch_file, torch_weights
from tests.helpers.reference import SMALL, random_variables
from tests.helpers.torch_networks import (
    as_torch,
    random_images,
    relative_error,
    torch_cvt,
    torch_logits,
    torch_resnet,
)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("resnet18", "cifar"),
        ("resnet50", "imagenet"),
        pytest.param("resnet18", "imagenet", marks=pytest.mark.slow),
        pytest.param("resnet50", "cifar", marks=pytest.mark.slow),
    ],
)
def test_resnet_logits_equal_those_of_pytorch(name, stem):
    pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    net = torch_resnet(name, stem)
    settings = {"width": 16, "stem": stem}
    variables = from_torch(name, net.state_dict(), **settings)
    images = random_images(64, 48)
    logits, _ = jax.jit(create_model(name, 10, **settings).apply)(variables, images)
    assert relative_error(logits, torch_logits(net, images)) < 1e-4


@pytest.mark.parametrize(
    ("name", "size", "blocks"),
    [
        pytest.param("cvt13", (96, 64), None, marks=pytest.mark.slow),
        pytest.param("cvt21", (32, 32), None, marks=pytest.mark.slow),
        # Size and depth have no part in each other.
        pytest.param("cvt13", (224, 224), (1, 2, 3), marks=pytest.mark.slow),
    ],
)
def test_cvt_logits_equal_those_of_transformers(name, size, blocks):
    pytest.importorskip("transformers", reason="compares with transformers, not installed")
    pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    net, settings = torch_cvt(name, blocks), {"blocks": blocks} if blocks else {}
    variables = from_torch(name, net.state_dict())
    images = random_images(*size, n=1)
    model = create_model(name, 10, activation="gelu", **settings)
    logits, _ = jax.jit(model.apply)(variables, images)
    assert relative_error(logits, torch_logits(net, images)) < 1e-4


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("resnet18", "imagenet"),
        pytest.param("resnet18", "cifar", marks=pytest.mark.slow),
        pytest.param("cvt13", None, marks=pytest.mark.slow),
        pytest.param("resnet50", "cifar", marks=pytest.mark.slow),
    ],
)
def test_training_equals_that_of_pytorch(name, stem):
    """Running statistics after 3 steps, and all gradients of the third.

    ResNets compute in float64 on both sides: in float32 their gradients are up to 3 % off,
    PyTorch's and ours alike, by the processor. For CvT float32 is enough here.
    """
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    if name == "cvt13":
        pytest.importorskip("transformers", reason="compares with transformers, not installed")
        settings = {"activation": "gelu", "drop_path": 0.0, "blocks": (1, 2, 3)}
        net = torch_cvt(name, settings["blocks"])
    else:
        net, settings = torch_resnet(name, stem, width=8), {"width": 8, "stem": stem}
    variables = from_torch(name, net.state_dict(), **settings)
    net.train().double()
    wide = name != "cvt13"
    model = create_model(name, 10, **settings).clone(dtype="float64" if wide else "float32")

    @jax.jit
    def step(params, stats, images):
        def loss(params):
            (logits, _), updates = model.apply(
                {"params": params, "batch_stats": stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            return jax.nn.log_softmax(logits)[:, 0].mean(), updates["batch_stats"]

        return jax.grad(loss, has_aux=True)(params)

    kind = np.float64 if wide else np.float32
    params, stats = (
        jax.tree.map(lambda x: np.asarray(x, kind), variables[key])
        for key in ("params", "batch_stats")
    )
    for seed in range(3):
        images = np.random.default_rng(seed).normal(size=(8, 32, 32, 3)).astype(np.float32)
        with jax.enable_x64(wide):
            gradients, stats = jax.device_get(step(params, stats, images.astype(kind)))
        net.zero_grad()
        out = net(torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float64))
        getattr(out, "logits", out).log_softmax(dim=1)[:, 0].mean().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.grad)
    expected = from_torch(name, net.state_dict(), **settings)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected["params"]))
    ours = flatten_dict({"params": gradients, "batch_stats": stats}, sep="/")
    for path, theirs in flatten_dict(expected, sep="/").items():
        if path.startswith("batch_stats"):
            np.testing.assert_allclose(ours[path], theirs, rtol=1e-3, atol=1e-5, err_msg=path)
        elif np.abs(theirs).max() > 1e-6 * largest:  # else rounding of a zero, such as key biases
            assert relative_error(ours[path], theirs) < 2e-4, path


@pytest.mark.parametrize("name", [pytest.param("cvt13", marks=pytest.mark.slow), "resnet18"])
def test_another_number_of_classes_leaves_the_head_and_says_so(name, capsys):
    settings = SMALL[name]
    model = create_model(name, 7, **settings)
    variables = random_variables(model)
    weights = as_torch(variables, name)
    ours = from_torch(name, weights, num_classes=5, **settings)
    assert "the weights have 7 classes, and the network 5 classes" in capsys.readouterr().out
    assert ours["params"]["head"]["dense"]["kernel"].shape[1] == 5
    same = from_torch(name, weights, **settings)
    jax.tree.map(np.testing.assert_array_equal, dict(variables), same)


def test_the_naming_of_microsofts_cvt():
    init = create_model("cvt13", 7).init
    shapes = jax.eval_shape(init, jax.random.key(3), jnp.zeros((1, 32, 32, 3)))
    names = set(as_torch(jax.tree.map(lambda x: np.zeros(x.shape), shapes), "cvt13"))
    for name in (
        "stage0.patch_embed.proj.weight",
        "stage0.patch_embed.norm.bias",
        "stage1.blocks.1.attn.conv_proj_k.conv.weight",
        "stage1.blocks.1.attn.conv_proj_k.bn.running_var",
        "stage2.blocks.9.attn.proj_q.bias",
        "stage2.blocks.9.attn.proj.weight",
        "stage2.blocks.0.mlp.fc2.weight",
        "stage2.blocks.0.norm1.weight",
        "stage2.cls_token",
        "norm.weight",
        "head.bias",
    ):
        assert name in names


def test_weights_of_another_network_are_refused_with_the_names():
    init = create_model("resnet18", 7, width=8).init
    shapes = jax.eval_shape(init, jax.random.key(3), jnp.zeros((1, 32, 32, 3)))
    variables = jax.tree.map(lambda x: np.zeros(x.shape), shapes)
    weights = as_torch(variables, "resnet18")
    weights["stranger.weight"] = weights.pop("layer2.0.conv1.weight")
    with pytest.raises(
        InputError, match=r"missing: layer2\.0\.conv1\.weight; unexpected: stranger"
    ):
        from_torch("resnet18", weights, width=8)
    with pytest.raises(InputError, match=r"model\.width=16, but .* width=8; set --config\.model"):
        from_torch("resnet18", as_torch(variables, "resnet18"), width=16)


def test_width_stem_and_blocks_follow_from_the_shapes():
    settings = {"width": 8, "stem": "imagenet", "blocks": (1, 2, 1, 1)}
    variables = random_variables(create_model("resnet18", 7, **settings))
    again = from_torch("resnet18", as_torch(variables, "resnet18"))
    jax.tree.map(np.testing.assert_array_equal, dict(variables), again)


WRAPPINGS = {
    "state_dict": lambda w: {"epoch": 3, "state_dict": w},
    "module.": lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}},
    "model_state_dict": lambda w: {"model_state_dict": w, "optimizer": {"lr": 0.1}},
    "_orig_mod.": lambda w: {f"_orig_mod.module.{k}": v for k, v in w.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrapped_weights_are_unwrapped_and_a_line_says_so(wrapping, capsys):
    variables = random_variables(create_model("resnet18", 7, width=8))
    wrapped = WRAPPINGS[wrapping](as_torch(variables, "resnet18"))
    again = from_torch("resnet18", wrapped)
    assert wrapping in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, dict(variables), again)


def test_a_backbone_without_its_head_starts_the_head_anew(capsys):
    variables = random_variables(create_model("resnet18", 7, width=8))
    weights = as_torch(variables, "resnet18")
    backbone = {k: v for k, v in weights.items() if not k.startswith("fc.")}
    ours = from_torch("resnet18", backbone, num_classes=5)
    assert "the weights have no head, and the network" in capsys.readouterr().out
    assert ours["params"]["head"]["dense"]["kernel"].shape == (64, 5)


@pytest.mark.parametrize("ending", [".bin", ".ckpt", ".pth.tar", ".safetensors"])
def test_a_file_is_read_by_its_contents_and_bfloat16_too(ending, tmp_path):
    torch = pytest.importorskip("torch", reason="writes .pth files, which needs PyTorch")
    path, values = tmp_path / f"weights{ending}", torch.tensor([1.0, 2.5], dtype=torch.bfloat16)
    if ending == ".safetensors":
        from safetensors.torch import save_file

        save_file({"a": values}, path)
    else:
        torch.save({"a": values}, path)
    read = torch_weights._to_numpy(read_torch_file(path)["a"])
    assert read.tolist() == [1.0, 2.5]


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_file_that_was_cut_is_called_damaged(ending, tmp_path):
    torch = pytest.importorskip("torch", reason="writes .pth files, which needs PyTorch")
    path = tmp_path / f"weights{ending}"
    if ending == ".safetensors":
        from safetensors.torch import save_file

        save_file({"a": torch.ones(1000)}, path)
    else:
        torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="is damaged or truncated"):
        read_torch_file(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="empty or truncated"):
        read_torch_file(path)


def test_a_file_that_would_execute_code_is_refused(tmp_path):
    torch = pytest.importorskip("torch", reason="reads .pth files, which needs PyTorch")

    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="was not read"):
        read_torch_file(tmp_path / "evil.pth")
    torch.save({"a": torch.ones(2)}, tmp_path / "good.pth")
    assert read_torch_file(tmp_path / "good.pth")["a"].tolist() == [1, 1]


class _Malicious:
    def __reduce__(self):
        return (print, ("this was executed",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_code_is_called_that_and_nothing_of_it_runs(zipped, tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="reads a .pth file, which needs PyTorch")
    file = tmp_path / "weights.pth"
    torch.save({"a": _Malicious()}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="holds more than weights, such as code"):
        read_torch_file(file)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(InputError, match="damaged or truncated"):
        read_torch_file(file)
    assert "executed" not in capsys.readouterr().out
