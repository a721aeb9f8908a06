"""Plans for TPU slices that are not there, checked against counts by hand."""

import json
import sys

import jax
import pytest

from configs import digits
from gini_jax.data.source import Dataset, Split
from gini_jax.errors import InputError
from gini_jax.modes import plan

K, C, WIDTH = 10, 64, 8  # classes, features of stage 4, channels of stage 1
SIDES = (16, 8, 4, 2)  # of the stages
EXAMPLES = 16384


@pytest.fixture
def images_of_16(monkeypatch):
    """The digits' config on 16x16 images, of which only the shapes are there."""

    def shapes(config):
        del config
        return Dataset(
            {
                name: Split(
                    jax.ShapeDtypeStruct((EXAMPLES, 16, 16, 3), "uint8"),
                    jax.ShapeDtypeStruct((EXAMPLES,), "int32"),
                )
                for name in ("train", "val", "test")
            },
            tuple("0123456789"),
            SIDES[0],
        )

    monkeypatch.setattr("gini_jax.modes.plan.dataset_shapes", shapes)


def plan_config(objective, batch_size):
    config = digits.get_config(objective)
    config.model.width, config.batch_size, config.eval_batch_size = WIDTH, batch_size, 16
    return config


def needs_libtpu():
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install -e '.[tpu]'")


def convolutions():
    """(kernel, channels in, channels out, sides in and out) of every convolution."""
    layers, inside = [(3, 3, WIDTH, SIDES[0], SIDES[0])], WIDTH
    for stage, side in enumerate(SIDES):
        out, before = WIDTH * 2**stage, SIDES[max(stage - 1, 0)]
        layers += [(3, inside, out, before, side), (3, out, out, side, side)]
        if stage:
            layers.append((1, inside, out, before, side))
        inside = out
    return layers


def products(kernel, inside, outside, side_in, side_out):
    """Multiplications of a convolution per image; those with the padding's zeros are left out."""
    stride, pad = side_in // side_out, kernel // 2
    places = [i * stride + tap - pad for i in range(side_out) for tap in range(kernel)]
    valid = sum(0 <= place < side_in for place in places)
    return valid**2 * inside * outside


@pytest.mark.slow
def test_the_figures_equal_counts_by_hand(images_of_16, tmp_path):
    needs_libtpu()
    result = plan.main(plan_config("gini_kl", 256), tmp_path, topology="v5e:2x4")
    assert json.loads((tmp_path / "plan.json").read_text()) == result
    assert result["fits"]
    assert (result["num_devices"], result["num_hosts"], result["batch_per_device"]) == (8, 2, 32)
    kernels = sum(k * k * a * b for k, a, b, _, _ in convolutions())
    normed = sum(b for _, _, b, _, _ in convolutions())
    parameters = kernels + 2 * normed + (C + 1) * K
    # Gradients; both passes of batch norm; the terms; cross-entropy and accuracy; three norms.
    floats = parameters + 2 * 2 * normed + (C * K + K) + 2 + 3
    assert 0.99 < result["all_reduce_bytes"] / (4 * floats) <= 1  # some sums are the same
    assert result["terms_all_reduce_bytes"] == 4 * (C * K + K)
    # Forward, gradient by the weights and by the inputs, the images' excepted; and the crops'
    # two products with selection matrices.
    by_hand = [2 * 32 * products(*layer) for layer in convolutions()]
    crops = 2 * 32 * 2 * SIDES[0] ** 3 * 3
    assert abs(result["flops"] / (3 * sum(by_hand) - by_hand[0] + crops) - 1) < 0.1
    # Parameters and momentum, the data set; memory is filled up to whole tiles.
    least = 2 * 4 * parameters + EXAMPLES * SIDES[0] ** 2 * 3
    assert least < result["argument_bytes"] < 1.3 * least
    parts = result["estimated_cycles"]
    assert {"stem", "stage1", "stage4", "head", "batch norm", "terms", "optimizer"} <= set(parts)
    assert all(parts[f"stage{i}"][way] > 0 for i in range(1, 5) for way in ("forward", "backward"))


@pytest.mark.slow
def test_the_terms_cost_one_all_reduce(images_of_16, tmp_path):
    """And nothing that grows with the batch or the slice: the plan without them is of others."""
    needs_libtpu()
    result = plan.main(plan_config("gini_kl", 256), tmp_path, topology="v5e:2x4")
    ce = plan.main(plan_config("ce", 128), tmp_path, topology="v5e:4x4")  # 8 images a chip for 32
    assert (ce["num_devices"], ce["num_hosts"], ce["batch_per_device"]) == (16, 4, 8)
    assert result["all_reduces"] - ce["all_reduces"] == 1
    three_norms = 4 * 3  # whose ratios are the terms' shares of the gradient
    more = result["all_reduce_bytes"] - ce["all_reduce_bytes"]
    assert more == 4 * (C * K + K) + three_norms
    assert ce["terms_all_reduce_bytes"] == 0


def test_a_batch_that_is_far_too_large_is_refused_with_the_one_that_fits(monkeypatch, tmp_path):
    """The sizes are the compiler's own; which ones fit is told here, to spare compilations."""
    needs_libtpu()
    config = plan_config("gini_kl", 512)
    images = jax.ShapeDtypeStruct((512, 1024, 1024, 3), "uint8")
    split = Split(images, jax.ShapeDtypeStruct((512,), "int32"))
    large = Dataset({"train": split}, tuple("0123456789"), 1024)
    devices = plan.topology_devices("v5e:2x4")
    compiled, reason = plan.compile_step(config, large, devices)
    assert compiled is None
    assert "exceeds available HBM (15.75G)" in reason

    def fits_up_to_24(config, shapes, devices):
        fits = config.batch_size // len(devices) <= 24
        return ("compiled", "") if fits else (None, "too large")

    monkeypatch.setattr("gini_jax.modes.plan.compile_step", fits_up_to_24)
    with pytest.raises(InputError, match=r"64 per device, does not fit.*\n.*fits is 24 per device"):
        plan.main(config, tmp_path, topology="v5e:2x4")
    result = json.loads((tmp_path / "plan.json").read_text())
    assert not result["fits"]
    assert result["largest_batch_per_device"] == 24


@pytest.mark.slow
def test_this_machines_devices_are_planned_for_without_a_topology(tmp_path, capsys):
    result = plan.main(plan_config("gini_kl", 64), tmp_path)
    assert (result["num_devices"], result["num_hosts"]) == (8, 1)
    assert result["estimated_cycles"] == {}
    assert result["terms_all_reduce_bytes"] == 4 * (C * K + K)
    assert "fits" in capsys.readouterr().out


@pytest.mark.parametrize("topology", ["v5e:3x5", "v5e", "foo:2x2", "v5e:axb"])
def test_an_unknown_topology_is_refused_with_known_ones(topology):
    needs_libtpu()
    with pytest.raises(InputError, match=f"unknown topology '{topology}'.*v5e:2x4"):
        plan.topology_devices(topology)


def test_without_the_compiler_the_error_tells_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[tpu\]'"):
        plan.topology_devices("v5e:2x4")


def test_a_batch_that_does_not_divide_by_the_chips_is_refused(tmp_path):
    needs_libtpu()
    with pytest.raises(InputError, match="batch_size=60 is not divisible by 8 devices"):
        plan.main(plan_config("gini_kl", 60), tmp_path, topology="v5e:2x4")


@pytest.mark.slow
def test_batches_are_compared_in_one_table(tmp_path, capsys):
    config = plan_config("gini_kl", 64)
    result = plan.main(config, tmp_path, batches="2,8")
    assert [row["batch_per_device"] for row in result["batches"]] == [2, 8]
    assert result["batches"][1]["flops"] > 2 * result["batches"][0]["flops"]
    assert json.loads((tmp_path / "plan.json").read_text()) == result
    assert "per device" in capsys.readouterr().out
    with pytest.raises(InputError, match="such as 64,128,256"):
        plan.main(config, tmp_path, batches="2,many")
    capsys.readouterr()
    with pytest.raises(InputError, match="--batches=2,0: give batch sizes per device"):
        plan.main(config, tmp_path, batches="2,0")
    assert "compiling" not in capsys.readouterr().out  # not even the batch that could be compiled
    rows = [
        {"batch_per_device": n, "fits": n < 100, "reason": "too large", "temporary_bytes": 2**20}
        for n in (10, 20, 100)
    ]
    for row, cycles in zip(rows, (5000, 8000, 0), strict=True):
        row["estimated_cycles"] = {"stage1": {"forward": cycles, "backward": cycles}}
    text = plan.batches_table(rows)
    assert "fewest estimated cycles per image: 20 per device" in text
    assert "100  does not fit: too large" in text


@pytest.mark.slow
def test_a_batch_above_the_training_set_can_be_planned(images_of_16, tmp_path):
    """A plan needs no images; on this machine's own devices."""
    config = plan_config("ce", 2 * EXAMPLES)
    assert plan.main(config, tmp_path)["fits"]
