"""Training on arrays, with callbacks of one's own, from several threads."""

import json
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

import gini_jax
from gini_jax import devices
from gini_jax.data import load_dataset
from gini_jax.data.arrays import in_memory
from gini_jax.errors import InputError
from tests.conftest import ROOT

DIGITS = load_digits()
IMAGES = (DIGITS.images * 15).astype(np.uint8)[:300]
LABELS = DIGITS.target[:300]
NAMES = np.array(["zero", "one", *map(str, range(2, 10))])[LABELS]
ONE = {"devices": jax.devices()[:1]}


def config(**changes):
    settings = {"num_epochs": 2, "batch_size": 32, "loss.start_epoch": 1, "dataset.val_size": 30}
    settings |= {"schedule.name": "constant"}
    return gini_jax.get_config(f"{ROOT}/tests/helpers/dense.py:ce", **settings | changes)


def test_arrays_are_divided_as_a_folder_is(tmp_path):
    found = gini_jax.train(config(), tmp_path / "run", data=(IMAGES, NAMES), **ONE)
    assert found.trained.class_names == tuple(sorted(set(NAMES)))
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["dataset"]["name"].startswith("arrays:")
    with in_memory((IMAGES, NAMES)) as name:
        own = config(**{"dataset.name": name}).dataset
        splits = load_dataset(own).splits
        assert {k: len(v.labels) for k, v in splits.items()} == {
            "train": 210,
            "test": 60,
            "val": 30,
        }
        counts = np.bincount(splits["test"].labels, minlength=10)
        assert counts.min() >= 5  # each class in proportion
        seen = splits["test"].images[..., 0].reshape(60, -1).tolist()
        rows = [IMAGES.reshape(300, -1).tolist().index(image) for image in seen]
        names = np.array(found.trained.class_names)[splits["test"].labels]
        np.testing.assert_array_equal(NAMES[rows], names)
    again = gini_jax.load(tmp_path / "run")  # needs no data
    assert len(again.predict(IMAGES[:3, :, :, None].repeat(3, 3)).probabilities) == 3
    with pytest.raises(InputError, match="these arrays are not in memory"):
        load_dataset(own)


def test_splits_of_ones_own_and_names_of_classes(tmp_path):
    data = {
        "train": (IMAGES[:200, :, :, None], LABELS[:200]),
        "val": (IMAGES[200:240], LABELS[200:240]),
        "test": (IMAGES[240:].repeat(3).reshape(60, 8, 8, 3), LABELS[240:]),
        "class_names": list("abcdefghij"),
    }
    found = gini_jax.train(config(**{"dataset.val_size": 0}), tmp_path / "run", data=data, **ONE)
    assert found.trained.class_names == tuple("abcdefghij")
    with pytest.raises(InputError, match=r"dataset\.val_size=30"):
        gini_jax.train(config(), tmp_path / "other", data=data, **ONE)


def test_names_of_classes_give_the_order_of_labels_that_are_names(tmp_path):
    images, labels = IMAGES[:60], np.array(["c", "b", "a"] * 20).astype("S1")
    data = {"train": (images, labels), "class_names": ["c", "b", "a"]}
    with in_memory(data) as name:
        small = config(num_epochs=1, **{"dataset.val_size": 6, "dataset.num_classes": 0})
        small.dataset.name = name
        dataset = load_dataset(small.dataset)
    assert dataset.class_names == ("c", "b", "a")
    assert set(dataset.splits["train"].labels.tolist()) == {0, 1, 2}
    first = np.asarray(dataset.splits["train"].images[0])
    (place,) = (i for i, x in enumerate(images) if (first[..., 0] == x).all())
    assert dataset.splits["train"].labels[0] == "cba".index(labels[place].decode())


def test_a_run_is_not_resumed_with_other_arrays(tmp_path):
    gini_jax.train(config(num_epochs=1), tmp_path / "run", data=(IMAGES, LABELS), **ONE)
    longer = gini_jax.train(config(), tmp_path / "run", data=(IMAGES, LABELS), **ONE)
    assert longer.numbers["epochs"] == 2
    with pytest.raises(InputError, match=r"dataset\.name: 'arrays:"):
        gini_jax.train(config(num_epochs=3), tmp_path / "run", data=(255 - IMAGES, LABELS), **ONE)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ((IMAGES / 255, LABELS), r"type float64; .* \(images \* 255\).round\(\).astype\('uint8'\)"),
        ((IMAGES.astype(float), LABELS), r"0 to 255: images.astype\('uint8'\)"),
        ((IMAGES[..., None].repeat(4, 3), LABELS), r"shape \(300, 8, 8, 4\)"),
        ((IMAGES, LABELS[:-1]), r"labels of shape \(299,\)"),
        ((IMAGES, np.eye(10)[LABELS]), r"such as labels.argmax\(axis=1\)"),
        ((IMAGES, LABELS * 1.0), r"such as labels.astype\(int\)"),
        ((IMAGES, LABELS * 0), "two or more"),
        (IMAGES, "data\\['train'\\] is a ndarray"),
        ({"test": (IMAGES, LABELS)}, "no entry 'train'"),
        ({"train": (IMAGES, LABELS), "dev": (IMAGES, LABELS)}, "an entry 'dev'"),
        ({"train": (IMAGES, LABELS), "test": (IMAGES, LABELS + 5)}, "the label 10"),
        ({"train": (IMAGES, LABELS), "test": (IMAGES, NAMES)}, "the label 'zero'"),
        ({"train": (IMAGES, LABELS), "class_names": ["a", "b"]}, "the label 2"),
        ({"train": (IMAGES, LABELS), "class_names": 3}, r"data\['class_names'\] is 3; give a list"),
        (([IMAGES[0], IMAGES[0, :4]], [0, 1]), "must have one size, or lie in a folder"),
        ((IMAGES[:2], np.array(["a", None])), "the label None; labels must be integers or strings"),
        ({"train": (IMAGES, LABELS), "test": (IMAGES[:0], LABELS[:0])}, "is empty"),
    ],
)
def test_what_are_no_images_and_labels_is_refused(data, said, tmp_path):
    with pytest.raises(InputError, match=said):
        gini_jax.train(config(), tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()


class Seen(gini_jax.Callback):
    """What a run calls; it ends the run after some epochs."""

    def __init__(self, most=9):
        self.steps, self.epochs, self.closed, self.most = [], [], 0, most

    def on_step(self, run, metrics):
        self.steps.append(metrics["loss"])

    def after_epoch(self, run):
        self.epochs.append(run.line["val_accuracy"])
        if len(self.epochs) == self.most:
            raise KeyError("pruned")

    def close(self):
        self.closed += 1


def test_callbacks_see_steps_and_epochs_and_may_end_the_run(tmp_path):
    data, seen = (IMAGES, LABELS), Seen(most=1)
    with pytest.raises(KeyError, match="pruned"):
        gini_jax.train(config(), tmp_path / "run", data=data, callbacks=[seen], **ONE)
    assert len(seen.steps) == 6 and seen.closed == 1
    rest = Seen()
    found = gini_jax.train(config(), tmp_path / "run", data=data, callbacks=[rest], **ONE)
    assert [*seen.epochs, *rest.epochs] == found.curves["val_accuracy"].tolist()
    assert len(rest.steps) == 6 and rest.closed == 1
    with pytest.raises(InputError, match=r"derived from gini_jax\.Callback"):
        gini_jax.train(config(), tmp_path / "other", data=data, callbacks=[print])
    with pytest.raises(InputError, match=r"is one callback; give a list"):
        gini_jax.train(config(), tmp_path / "other", data=data, callbacks=rest)
    again = Seen()
    gini_jax.train(config(), tmp_path / "other", data=data, callbacks=iter([again]), **ONE)
    assert len(again.epochs) == 2


@pytest.mark.slow
def test_the_codes_of_the_page_train_on_arrays_and_prune(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna", reason="the page's example needs it, not installed")
    page = (ROOT / "docs" / "training.md").read_text()
    _, of_arrays, live, pruning = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[:4]
    monkeypatch.chdir(tmp_path)
    there = {"gini_jax": gini_jax, "images": IMAGES, "labels": LABELS}
    few = '"digits:gini_kl", num_epochs=1, **{"loss.start_epoch": 1, "batch_size": 8, '
    of_arrays = of_arrays.replace('"digits:gini_kl", **{', few)
    of_arrays = of_arrays.replace("100", "8").replace("50", "8")
    exec(of_arrays, there)
    assert there["config"].dataset.test_size == 8
    assert 0 <= there["result"].numbers["test_accuracy"] <= 1
    pruning = pruning.replace("n_trials=20", "n_trials=3").replace("num_epochs=8", "num_epochs=5")
    small = '**{"dataset.train_size": 80, "report": False, '
    pruning = pruning.replace("**{", small)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    exec(pruning, there)
    drawn = []
    handle = SimpleNamespace(update=drawn.append)  # as a notebook's
    monkeypatch.setattr("IPython.display.display", lambda display_id: handle)
    exec(live.replace('"digits:gini_kl"', '"digits:ce", num_epochs=2, ' + small + "}"), there)
    assert [len(figure.axes[0].lines[0].get_xdata()) for figure in drawn] == [1, 2]
    states = {trial.state.name for trial in there["study"].trials}
    assert states <= {"COMPLETE", "PRUNED"}
    runs = [trial for trial in there["study"].trials if trial.state.name == "COMPLETE"]
    assert there["study"].best_value == max(trial.value for trial in runs)
    assert all(1 in trial.intermediate_values for trial in there["study"].trials)


@pytest.mark.slow
def test_two_threads_train_at_once_and_leave_everything_as_it_was(tmp_path):
    """On all devices, whose programs would block each other out of turn."""
    names = ("jax_compilation_cache_dir", "jax_cpu_enable_async_dispatch")

    def around():
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        flags = [os.environ.get(name) for name in ("XLA_FLAGS", "NPROC")]
        return handlers, flags, [jax.config.values[name] for name in names]

    gini_jax.train(config(), tmp_path / "before", data=(IMAGES, LABELS))  # imports, and warms up
    before, files = around(), len(os.listdir("/proc/self/fd"))
    runs = {}

    def one(seed):
        data = (IMAGES, LABELS if seed % 2 else NAMES)
        runs[seed] = gini_jax.train(config(seed=seed), tmp_path / str(seed), data=data)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(2)))
    assert around() == before
    assert len(os.listdir("/proc/self/fd")) <= files + 2
    alone = gini_jax.train(config(seed=1), tmp_path / "alone", data=(IMAGES, LABELS))
    assert alone.curves["train_loss"].tolist() == runs[1].curves["train_loss"].tolist()


@pytest.mark.slow
def test_the_programs_of_many_runs_do_not_pile_up():
    """jax keeps what pmap has compiled; a process has room for those of some hundred runs."""
    client, before = jax.devices()[0].client, 0
    for i in range(3 * devices.MOST_MAPPED):
        step = devices.map_over_devices(
            lambda x, i=i: (x * i).sum(), jax.devices()[:1], in_axes=(0,), donate=False
        )
        step(np.ones((1, 3), np.float32))
        if i == devices.MOST_MAPPED:
            before = len(client.live_executables())
    assert len(client.live_executables()) <= before + devices.MOST_MAPPED
