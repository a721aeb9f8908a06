"""The terms' own settings: default, meaning and bounds, as each term declares them."""

import inspect

import pytest

from gini_jax import losses
from gini_jax.checks import check_config, notes_on, unread
from gini_jax.components import OPTIONS, option_rows
from gini_jax.config import default_config, set_component
from gini_jax.config_files import changed
from gini_jax.errors import InputError
from gini_jax.settings import in_bounds


@pytest.mark.parametrize("path", list(option_rows()))
def test_a_row_is_what_the_loss_declares(path):
    term, name = path.removeprefix(OPTIONS).split(".")
    loss, row = getattr(losses, f"{term}_loss"), option_rows()[path]
    assert row.default == inspect.signature(loss).parameters[name].default
    assert row.meaning in " ".join(loss.__doc__.split())
    assert row.choices or in_bounds(row.default, row.bounds or "(-inf, inf)")


@pytest.mark.parametrize(
    ("setting", "value", "text"),
    [
        ("supcon.temperature", 0.0, r"must lie in \(0, inf\)"),
        ("multi_similarity.beta", -1.0, r"must lie in \(0, inf\)"),
        ("triplet.margin", -0.1, r"must lie in \[0, inf\)"),
        ("triplet.triplets", "hardest", "unknown loss.options.triplet.triplets 'hardest'"),
        ("tests.own_parts:Pull.strength", 2.0, "has a dot"),
    ],
)
def test_a_value_outside_is_refused_before_anything_is_loaded(setting, value, text):
    term = setting.rpartition(".")[0]
    with pytest.raises(InputError, match=text):
        given = {f"loss.terms.{term}": 0.5, f"{OPTIONS}{setting}": value}
        check_config(changed(default_config("ce"), given), 1)


def test_a_class_of_ones_own_declares_settings_like_a_loss(monkeypatch):
    monkeypatch.syspath_prepend("tests")
    given = {"loss.terms.own_parts:Pull": 0.5, f"{OPTIONS}own_parts:Pull.strength": 0.25}
    config = changed(default_config("ce"), given)
    check_config(config, 1)
    config.loss.options["own_parts:Pull"].strength = 1.5
    with pytest.raises(InputError, match=r"strength=1.5 must lie in \[0, 1\]"):
        check_config(config, 1)


def test_a_schedule_of_ones_own_is_told_nothing_of_anothers_settings():
    config = default_config("ce")
    set_component(config, "schedule", "tests.own_parts:WarmRestarts", waves=3)
    assert not [note for note in notes_on(config) if "schedule" in note]


def test_a_setting_is_unread_where_its_row_says_so():
    config = default_config("gini")
    assert {"loss.kl_target", "dataset.label_noise_kind", "dataset.data_dir"} <= unread(config)
    config.dataset.label_noise, config.loss.terms.kl = 0.2, 0.5
    assert not {"loss.kl_target", "dataset.label_noise_kind"} & unread(config)
    assert {"loss.start_epoch", "loss.running_decay"} <= unread(default_config("ce"))
