"""Both ways to feed, on 1, 2 and 8 devices: the same batches."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from configs import digits
from gini_jax.data import load_dataset
from gini_jax.data.loader import DeviceFeed, HostBatches, StreamFeed, choose_feed
from gini_jax.data.sampling import epoch_order
from gini_jax.devices import AXIS, replicate
from gini_jax.losses.objective import ObjectiveState
from gini_jax.training.experiment import build_experiment
from gini_jax.training.state import TrainState
from gini_jax.training.step import augmented_batch, create_step

FEED = {"device": DeviceFeed, "stream": StreamFeed}


def feed_config(**changes):
    config = digits.get_config()
    config.update(batch_size=64, num_epochs=2, steps_per_call=4)
    config.loss.start_epoch = 1
    config.model.width = 4
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(digits.get_config().dataset)


def batches_of(config, dataset, feed_name, num_devices, monkeypatch):
    """Images and label rows of a run's first steps, in place of training on them."""

    def only_look(state, batch, *, experiment):
        batch = augmented_batch(state, batch, experiment, AXIS)
        seen = jax.lax.all_gather((batch.images, batch.labels), AXIS, tiled=True)
        return state.replace(step=state.step + 1), seen

    monkeypatch.setattr("gini_jax.training.step.train_step", only_look)
    devices = jax.devices()[:num_devices]
    experiment = build_experiment(config, dataset, devices)
    key = jax.random.key_data(jax.random.key(0))
    state = replicate(
        TrainState(np.int32(0), None, None, None, key, ObjectiveState({}, None)), devices
    )
    feed = FEED[feed_name](dataset.splits["train"], config, devices)
    step, seen = create_step(experiment, devices, 4, feed_name), []
    for start in (0, 4):
        state, more = step(state, *feed.arguments(start, 4))
        seen.append(jax.device_get(more))
    return [np.concatenate(arrays) for arrays in zip(*seen, strict=True)]


@pytest.mark.parametrize(
    "ways",
    [
        (("stream", 1), ("stream", 8)),
        pytest.param((("device", 2), ("stream", 2), ("device", 8)), marks=pytest.mark.slow),
    ],
    ids=["few", "more"],
)
def test_batches_are_the_same_both_ways_and_on_1_2_and_8_devices(ways, dataset, monkeypatch):
    """With what moves pixels from image to image, but computes nothing with them."""
    config = feed_config(**{"augment.flip": True, "augment.erasing": 0.5, "augment.cutmix": 1.0})
    images, labels = batches_of(config, dataset, "device", 1, monkeypatch)
    assert images.shape == (8, 64, 8, 8, 3)
    for feed, devices in ways:
        other_images, other_labels = batches_of(config, dataset, feed, devices, monkeypatch)
        np.testing.assert_array_equal(other_images, images)
        np.testing.assert_allclose(other_labels, labels, rtol=0, atol=1e-6)


def test_the_mean_of_a_batch_is_that_of_its_images_by_hand(dataset, monkeypatch):
    """Found again in scikit-learn's own table by their pixels; labels too, none of them noisy."""
    config = feed_config(**{"augment.crop_padding": 0})
    images, labels = batches_of(config, dataset, "stream", 2, monkeypatch)
    table = load_digits()
    places = {image.astype(np.uint8).tobytes(): i for i, image in enumerate(table.images)}
    train = dataset.splits["train"]
    of_batch = train.images[epoch_order(config, 0, train.labels)[5]]
    grey = np.round(of_batch[..., 0] * (16 / 255)).astype(np.uint8)
    index = [places[image.tobytes()] for image in grey]
    by_hand = np.round(table.images[index] * (255 / 16)).astype(np.float64).mean() / 255
    np.testing.assert_allclose(images[5].mean(dtype=np.float64), by_hand, rtol=1e-6)
    assert labels[5].argmax(axis=1).tolist() == table.target[index].tolist()
    assert (labels[5].max(axis=1) == 1).all()


def test_a_stream_begins_anywhere_as_if_it_had_come_there(dataset):
    """At step 10 of 18, within a call of four; on through the end of the epoch."""
    config, train = feed_config(), dataset.splits["train"]
    devices = jax.devices()[:2]
    whole = HostBatches(train, feed_config(**{"steps_per_call": 1}), 2, 0)
    assert len(whole) == 36
    feed = StreamFeed(train, config, devices)
    step = 10
    for count in (4, 4, 4, 4):
        (batches,) = feed.arguments(step, count)
        for i in range(count):
            expected = whole[step + i]
            np.testing.assert_array_equal(batches.images[:, i], expected.images[:, 0])
            np.testing.assert_array_equal(batches.labels[:, i], expected.labels[:, 0])
        step += count


def test_each_process_reads_its_own_part_of_a_batch(dataset, monkeypatch):
    config, train = feed_config(), dataset.splits["train"]
    whole = HostBatches(train, config, 2, 0)[1]
    monkeypatch.setattr("jax.process_count", lambda: 2)
    for process in range(2):
        monkeypatch.setattr("jax.process_index", lambda process=process: process)
        part = HostBatches(train, config, 2, 0)[1]
        np.testing.assert_array_equal(part.images, whole.images[process : process + 1])


def test_auto_streams_what_does_not_fit_twice_into_free_memory(dataset, monkeypatch):
    train, devices = dataset.splits["train"], jax.devices()[:2]
    size = np.prod(train.images.shape)

    class Memory:
        available = 2 * size * len(jax.devices())

    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory)
    assert choose_feed("auto", train, devices) == "device"
    Memory.available -= len(jax.devices())
    assert choose_feed("auto", train, devices) == "stream"
    assert choose_feed("device", train, devices) == "device"
