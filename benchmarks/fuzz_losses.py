"""Random inputs of the losses: value and gradient are finite, or the loss refuses its input.

See benchmarks/fuzz.py.
"""

import traceback
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from benchmarks.fuzz_options import options
from gini_jax import losses

DRAWS = 10  # of values for each combination of loss, shape, type and kind of labels


def loss_of(name: str, channels: int, classes: int):
    """A loss as a function of features `[N, ..., C]`, labels and mask."""
    rng = np.random.default_rng(0)
    proxies = jnp.asarray(rng.normal(size=(classes, channels)), jnp.float32)
    comparator = losses.Comparator.create(jax.random.key(0), channels=channels, hidden=4)
    projection = losses.Projection.create(jax.random.key(1), channels, size=channels)
    prior = jnp.full(classes, 1 / classes)

    def added(x, y, **more):
        return losses.discriminability_loss(x, y, **more)[0]

    def of_pairs(loss):
        return lambda x, y, num_classes, **more: loss(x, y, **more)

    def of_logits(loss):
        return lambda x, y, num_classes, where=None: loss(x, y, where=where)

    known = {
        "gini": losses.gini_loss,
        "kl": losses.kl_loss,
        "kl present": partial(losses.kl_loss, target="present"),
        "kl prior": partial(losses.kl_loss, target=prior),
        "entropy": losses.entropy_loss,
        "renyi": losses.renyi_loss,
        "mutual information": losses.mutual_information_loss,
        "discriminability": added,
        "center": losses.center_loss,
        "fisher": losses.fisher_loss,
        "island": losses.island_loss,
        "supcon": of_pairs(losses.supcon_loss),
        "triplet hard": of_pairs(losses.triplet_loss),
        "triplet all": of_pairs(partial(losses.triplet_loss, triplets="all")),
        "multi-similarity": of_pairs(losses.multi_similarity_loss),
        "nt-xent": lambda x, y, num_classes, **more: losses.nt_xent_loss(x, x[..., ::-1], **more),
        "simclr": of_pairs(lambda x, y, **more: losses.simclr_loss(x, y, projection, **more)),
        "proxy anchor": of_pairs(lambda x, y, **m: losses.proxy_anchor_loss(x, y, proxies, **m)),
        "relation": lambda x, y, **more: losses.relation_loss(x, y, comparator, **more),
        "relation triplet": of_pairs(
            lambda x, y, **more: losses.relation_triplet_loss(x, y, comparator, **more)
        ),
        "cosface": of_logits(losses.cosface_loss),
        "arcface": of_logits(losses.arcface_loss),
        "hierarchy": of_logits(partial(losses.hierarchy_loss, superclasses=[0] * classes)),
    }
    return known if name == "" else known[name]


COSINES = ("arcface", "cosface")
LOGITS = (*COSINES, "hierarchy")
# Half a squared distance of 1e30 is above the largest float32; their docstrings say so.
SQUARES = ("center", "triplet hard", "triplet all")
LOSS_CASES = st.fixed_dictionaries(
    {
        "name": st.sampled_from(sorted(loss_of("", 1, 1))),
        "examples": st.sampled_from([0, 1, 2, 6]),
        "channels": st.sampled_from([1, 4]),
        "classes": st.sampled_from([1, 3]),
        "space": st.sampled_from([(), (2, 2)]),
        "dtype": st.sampled_from(["float16", "bfloat16", "float32", "float64"]),
        "labels": st.sampled_from(["integers", "rows", "shares"]),
        "masked": st.booleans(),
        "seed": st.integers(0, 2**32 - 1),
    }
)


def features_of(rng: np.random.Generator, case: dict) -> np.ndarray:
    """Finite features of any magnitude; some channels dead, some examples equal."""
    shape = (case["examples"], *case["space"], case["channels"])
    if case["name"] in LOGITS:
        shape = (case["examples"], case["classes"])
    if case["name"] in COSINES:
        return np.clip(rng.normal(size=shape), -1, 1)
    largest = 4 if case["dtype"] == "float16" else 18 if case["name"] in SQUARES else 30
    values = rng.normal(size=shape) * 10.0 ** rng.uniform(-largest, largest)
    values = np.abs(values) if rng.random() < 0.5 else values
    values = values * (rng.random(shape[-1]) < 0.8)
    if rng.random() < 0.2 and len(values):
        values[:] = values[:1]
    return values


def labels_of(rng: np.random.Generator, case: dict) -> np.ndarray:
    """Labels of any kind; classes may be absent."""
    integers = rng.integers(0, case["classes"], case["examples"])
    if case["labels"] == "integers":
        return integers
    rows = np.eye(case["classes"])[integers]
    if case["labels"] == "shares":
        rows = rng.dirichlet(np.ones(case["classes"]), case["examples"]).reshape(rows.shape)
    return rows


def try_loss(case: dict) -> list[str]:
    """What becomes of some draws of a case: `finite`, or `error`.

    Raises:
        AssertionError: a value or a gradient is not finite, or an error is not the losses' own.
    """
    loss = loss_of(case["name"], case["channels"], case["classes"])
    rng = np.random.default_rng(case["seed"])
    known = case["classes"] if case["labels"] == "integers" else None
    step = jax.jit(jax.value_and_grad(partial(loss, num_classes=known)))
    outcomes = []
    for _ in range(DRAWS):
        features, labels = features_of(rng, case), labels_of(rng, case)
        where = None
        if case["masked"]:  # what is masked out may be anything
            where = rng.random(case["examples"]) < 0.6
            features[~where] = rng.choice([np.nan, np.inf, -np.inf])
        labels = jnp.asarray(labels, "int32" if case["labels"] == "integers" else "float32")
        more = {} if where is None else {"where": jnp.asarray(where)}
        try:
            value, gradient = step(jnp.asarray(features, case["dtype"]), labels, **more)
        except (TypeError, ValueError) as error:
            raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
            assert "gini_jax/losses" in raised_in and str(error), traceback.format_exc()
            return ["error"] * DRAWS  # shapes and types decide it, not values
        assert np.isfinite(value), f"the value is {value}"
        if case["dtype"] != "float16":  # whose largest number is 65,504
            assert np.isfinite(np.asarray(gradient, np.float64)).all(), "a gradient is not finite"
        outcomes.append("finite")
    return outcomes


def fuzz_losses(inputs: int, seed: int = 0) -> Counter[str]:
    """Tries losses; how often each outcome was seen."""
    counts: Counter[str] = Counter()
    bar = tqdm(total=inputs, unit=" inputs", disable=None)

    @options(-(-inputs // DRAWS), seed)
    @given(LOSS_CASES)
    def each(case):
        counts.update(try_loss(case))
        bar.update(DRAWS)

    with bar, jax.enable_x64(True):
        each()
    return counts
