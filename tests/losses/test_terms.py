"""The terms' own settings: default, meaning and bounds, as each term declares them."""

import inspect

import pytest

from gini_jax import losses
from gini_jax.config.change import changed, default_config, set_component
from gini_jax.config.registry import in_bounds
from gini_jax.errors import InputError
from gini_jax.losses.terms import TERMS
from gini_jax.training.checks import check_config, inactive, notes_on

DECLARED = sorted(
    (term, name)
    for term in TERMS
    for name in TERMS.settings(term).keys() - TERMS[term].more.keys()
    if name != "weight" and (term, name) != ("kl", "target")  # which training adds to
)


@pytest.mark.parametrize(("term", "name"), DECLARED)
def test_a_row_is_what_the_loss_declares(term, name):
    loss, row = getattr(losses, f"{term}_loss"), TERMS.settings(term)[name]
    default = inspect.signature(loss).parameters[name].default
    assert row.default == (0 if default is None else default)
    assert row.meaning in " ".join(loss.__doc__.split())
    assert row.choices or in_bounds(row.default, row.bounds or "(-inf, inf)")


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("supcon.temperature", 0.0, r"must lie in \(0, inf\)"),
        ("multi_similarity.beta", -1.0, r"must lie in \(0, inf\)"),
        ("triplet.margin", -0.1, r"must lie in \[0, inf\)"),
        ("triplet.triplets", "hardest", "unknown loss.terms.triplet.triplets 'hardest'"),
        ("kl.target", "uniform", "unknown loss.terms.kl.target 'uniform'"),
        ("kl.weight", -0.5, r"must lie in \[0, inf\)"),
    ],
)
def test_a_value_outside_is_refused_before_anything_is_loaded(path, value, text):
    term = path.rpartition(".")[0]
    with pytest.raises(InputError, match=text):
        given = {f"loss.terms.{term}": 0.5, f"loss.terms.{path}": value}
        check_config(changed(default_config("ce"), given), 1)


def test_the_weight_of_an_impurity_may_be_negative():
    config = changed(default_config("ce"), {"loss.terms.gini": -0.5})
    check_config(config, 1)
    assert config.objective == "anti_gini" and config.loss.terms.gini.weight == -0.5


def test_a_plugin_declares_settings_like_a_loss_of_the_package():
    given = {"loss.terms.pull.name": "tests.helpers.plugins:Pull", "loss.terms.pull.weight": 0.5}
    config = changed(default_config("ce"), given | {"loss.terms.pull.strength": 0.25})
    check_config(config, 1)
    assert config.objective == "pull"
    config.loss.terms.pull.strength = 1.5
    with pytest.raises(InputError, match=r"loss.terms.pull.strength=1.5 must lie in \[0, 1\]"):
        check_config(config, 1)


def test_a_plugin_whose_module_has_dots_needs_a_key_and_the_error_is_the_command():
    with pytest.raises(InputError) as error:
        changed(default_config("ce"), {"loss.terms.tests.helpers.plugins:Pull": 0.3})
    words = [word.removeprefix("--config.") for word in str(error.value).split() if "--" in word]
    given = dict(word.split("=") for word in words)
    assert given == {
        "loss.terms.Pull.name": "tests.helpers.plugins:Pull",
        "loss.terms.Pull.weight": "0.3",
    }
    with pytest.raises(InputError, match=r"--config.augment.darken.strength=0.5"):
        changed(default_config("ce"), {"augment.tests.helpers.plugins:darken": 0.5})


def test_a_term_may_be_there_twice():
    given = {"loss.terms.far.name": "supcon", "loss.terms.far.weight": 0.1}
    given |= {"loss.terms.far.temperature": 1.0}
    config = changed(default_config("supcon"), given)
    check_config(config, 1)
    assert config.objective == "supcon_far"
    assert config.loss.terms.supcon.temperature == 0.1 and config.loss.terms.far.temperature == 1.0


def test_a_number_in_a_config_file_is_a_weight():
    config = default_config("ce")
    with config.unlocked():
        config.loss.terms.kl = 0.25
    config.objective = "kl"
    check_config(config, 1)
    assert config.loss.terms.kl.to_dict() == {"weight": 0.25, "target": "batch"}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("loss.options.supcon.temperature", "it is now loss.terms.supcon.temperature"),
        ("loss.kl_target", "it is now loss.terms.kl.target"),
        ("loss.terms.supcon.temprature", "did you mean 'loss.terms.supcon.temperature'"),
        ("loss.terms.supcon.temperature", "the objective has no term supcon"),
    ],
)
def test_what_is_no_setting_says_what_is(path, text):
    with pytest.raises(InputError, match=text):
        changed(default_config("gini"), {path: 0.2})


def test_a_schedule_of_ones_own_is_told_nothing_of_anothers_settings():
    config = default_config("ce")
    set_component(config, "schedule", "tests.helpers.plugins:WarmRestarts", waves=3)
    assert not [note for note in notes_on(config) if "schedule" in note]


def test_a_setting_is_inactive_where_its_row_says_so():
    config = default_config("gini")
    assert {"dataset.label_noise_kind", "dataset.data_dir"} <= inactive(config)
    config.dataset.label_noise = 0.2
    assert "dataset.label_noise_kind" not in inactive(config)
    assert {"loss.start_epoch", "loss.running_decay"} <= inactive(default_config("ce"))
