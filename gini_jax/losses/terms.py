"""Terms added to cross-entropy in training: what a term is, and the table.

A new term is one new file and one line in `TERMS`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from gini_jax.losses.center import center_loss
from gini_jax.losses.class_sums import local_sums
from gini_jax.losses.discriminability import Target, entropy_loss, gini_loss, kl_loss
from gini_jax.losses.fisher import fisher_loss
from gini_jax.losses.hierarchy import hierarchy_loss
from gini_jax.losses.information import mutual_information_loss
from gini_jax.losses.island import island_loss
from gini_jax.losses.margins import arcface_loss, cosface_loss
from gini_jax.losses.moments import local_moments
from gini_jax.losses.multi_similarity import multi_similarity_loss
from gini_jax.losses.proxy_anchor import proxy_anchor_loss
from gini_jax.losses.relation import Comparator, relation_loss, relation_triplet_loss
from gini_jax.losses.renyi import renyi_loss
from gini_jax.losses.rules import AxisName
from gini_jax.losses.simclr import Projection, simclr_loss
from gini_jax.losses.supcon import supcon_loss
from gini_jax.losses.triplet import triplet_loss


class Outputs(NamedTuple):
    """What a network gave for a batch, or for this device's part of it.

    Attributes:
        features: by layer, `[n, ..., C]`: the layers of `config.loss.layers`.
        logits: `[n, K]`.
        labels: `[n, K]` rows, which mixup and label smoothing may have made soft.
        where: `[n]` mask or example weights; None: all count alike.
        axis_name: the mapped axis that the batch is divided over, if there is one.
        params: what the term learns together with the network; see `Term.params`.
    """

    features: Mapping[str, Any]
    logits: Any
    labels: Any
    where: Any = None
    axis_name: AxisName | None = None
    params: Any = None


class About(NamedTuple):
    """What a term may want to know of the run.

    Attributes:
        kl_target: what the term `kl` compares with; see `kl_loss`.
        scale: what a cosine head multiplies the cosines by.
        superclasses: the superclass of each of the `K` classes; empty if there are none.
    """

    kl_target: Target = None
    scale: float = 1.0
    superclasses: tuple[int, ...] = ()


class Term(Protocol):
    """A term of the loss.

    The value is that of the global batch: where `outputs.axis_name` is set, the term gathers what
    it needs from the other devices (`lax.psum`, `lax.all_gather`). A term that learns parameters
    also has `params(key, outputs)`, which gives their initial values, and finds them in
    `outputs.params`.
    """

    def init(self, outputs: Outputs) -> Any:
        """The state before the first step, such as class centres; `()` for none.

        Args:
            outputs: shapes and types of a batch's outputs (`jax.ShapeDtypeStruct`).
        """

    def __call__(self, outputs: Outputs, state: Any) -> tuple[jax.Array, Any]:
        """The term's unweighted value, scalar, and its next state."""


@runtime_checkable
class SumTerm(Protocol):
    """A term that is a function of sums over the examples.

    It is exact under `config.grad_accumulation`, costs one all-reduce together with all others of
    its kind, and can take sums that are blended with their history.
    """

    def sums(self, outputs: Outputs) -> dict[str, Any]:
        """By name, sums over this device's examples; terms that name the same sums share them."""

    def of_sums(self, sums: Mapping[str, Any]) -> jax.Array:
        """The unweighted value, scalar, from the sums of the global batch."""


def mean_over(
    values: Mapping[str, jax.Array], weights: Mapping[str, float | jax.Array] | None = None
) -> jax.Array:
    """The mean over the layers of a term's values, each times the layer's weight.

    Args:
        values: by layer.
        weights: by layer; where some are given, the others are 0. Without any, all are 1.

    Examples:
        >>> float(mean_over({"stage3": jnp.ones(()), "stage4": jnp.ones(())}, {"stage4": 0.5}))
        0.25
    """
    if weights:
        values = {
            layer: jnp.asarray(weights.get(layer, 0.0), value.dtype) * value
            for layer, value in values.items()
        }
    return jnp.stack(list(values.values())).mean()


def _scalar(value: Any) -> jax.Array:
    """A loss's value, which must be one number."""
    if not hasattr(value, "shape") or value.shape != ():
        shown = f"shape {list(value.shape)}" if hasattr(value, "shape") else type(value).__name__
        raise TypeError(f"a loss returned {shown}; it must return a scalar array, such as a mean")
    return value


# From features, labels and `where` to this device's own sums, by the name that terms share them by.
SUMS: dict[str, Callable[..., Any]] = {
    "class_sums": local_sums,
    "signed_class_sums": partial(local_sums, signed=True),
    "feature_moments": local_moments,
}


class ClassSumTerm(NamedTuple):
    """A term that is a loss of the class sums of each layer, averaged over the layers.

    Attributes:
        loss: from sums, such as `ClassSums`, to a scalar.
        kind: which sums, one of `SUMS`.
        layers: a weight for each layer; empty: 1.
    """

    loss: Callable[[Any], jax.Array]
    kind: str = "class_sums"
    layers: Mapping[str, float] = {}

    def sums(self, outputs: Outputs) -> dict[str, Any]:
        """The sums by layer, under the name of their kind."""
        of_layer = partial(SUMS[self.kind], labels=outputs.labels, where=outputs.where)
        return {self.kind: {layer: of_layer(x) for layer, x in outputs.features.items()}}

    def by_layer(self, sums: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The loss of each layer's sums."""
        return {layer: _scalar(self.loss(own)) for layer, own in sums[self.kind].items()}

    def of_sums(self, sums: Mapping[str, Any]) -> jax.Array:
        """The mean over the layers."""
        return mean_over(self.by_layer(sums), self.layers)


class FeatureTerm(NamedTuple):
    """A term that is a loss of features and labels, averaged over the layers.

    Attributes:
        loss: from features, labels, the parameters if there are any, `where` and `axis_name` to a
            scalar.
        create: from a key, the number of features and that of classes to the parameters that the
            loss learns for a layer; None: it learns none.
        layers: a weight for each layer; empty: 1.
    """

    loss: Callable[..., jax.Array]
    create: Callable[[jax.Array, int, int], Any] | None = None
    layers: Mapping[str, float] = {}

    def params(self, key: jax.Array, outputs: Outputs) -> dict[str, Any]:
        """The initial parameters, by layer."""
        if self.create is None:
            return {}
        sizes = {layer: x.shape[-1] for layer, x in outputs.features.items()}
        keys = jax.random.split(key, len(sizes))
        num_classes = outputs.logits.shape[-1]
        return {
            layer: self.create(own, sizes[layer], num_classes)
            for own, layer in zip(keys, sorted(sizes), strict=True)
        }

    def init(self, outputs: Outputs) -> tuple[()]:
        """No state."""
        return ()

    def __call__(self, outputs: Outputs, state: Any) -> tuple[jax.Array, Any]:
        """The mean over the layers."""
        options = {"where": outputs.where, "axis_name": outputs.axis_name}
        by_layer = {}
        for layer, features in outputs.features.items():
            learned = () if self.create is None else (outputs.params[layer],)
            by_layer[layer] = _scalar(self.loss(features, outputs.labels, *learned, **options))
        return mean_over(by_layer, self.layers), state


class LogitTerm(NamedTuple):
    """A term that is a loss of logits and labels.

    Attributes:
        loss: from logits, labels, `where` and `axis_name` to a scalar.
    """

    loss: Callable[..., jax.Array]

    def init(self, outputs: Outputs) -> tuple[()]:
        """No state."""
        return ()

    def __call__(self, outputs: Outputs, state: Any) -> tuple[jax.Array, Any]:
        """The loss of the logits."""
        options = {"where": outputs.where, "axis_name": outputs.axis_name}
        return _scalar(self.loss(outputs.logits, outputs.labels, **options)), state


class Entry(NamedTuple):
    """A row of the table of terms.

    Attributes:
        create: from what the run is like, and the term's own settings, to the term.
        part: what declares the term's own settings; see `components.rows_of`.
        given: those of its arguments that are no settings: training gives them.
        needs: what training must provide: a `cosine` or a `probe` head, `superclasses`, or two
            `views` of each image.
    """

    create: Callable[..., Term | SumTerm]
    part: Callable[..., Any] | None = None
    given: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


def of_class_sums(loss: Callable[[Any], jax.Array], kind: str = "class_sums") -> Entry:
    """A term in the table that is a loss of class sums, or of other sums; see `ClassSumTerm`."""
    return Entry(lambda about: ClassSumTerm(loss, kind))


def of_features(
    loss: Callable[..., jax.Array],
    create: Callable[[jax.Array, int, int], Any] | None = None,
    needs: tuple[str, ...] = (),
) -> Entry:
    """A term in the table that is a loss of features and labels; see `FeatureTerm`."""

    def term(about: About, **settings: Any) -> FeatureTerm:
        return FeatureTerm(partial(loss, **settings), create)

    return Entry(term, loss, given=("axis",), needs=needs)


def of_margin(loss: Callable[..., jax.Array]) -> Entry:
    """A term in the table: what a margin adds to the cross-entropy of a cosine head.

    So cross-entropy and the term of weight 1 are the loss with the margin.
    """

    def term(about: About, **settings: Any) -> LogitTerm:
        def added(logits: jax.Array, labels: jax.Array, **options: Any) -> jax.Array:
            cosines, scaled = logits / about.scale, partial(loss, scale=about.scale, **options)
            return scaled(cosines, labels, **settings) - scaled(cosines, labels, margin=0.0)

        return LogitTerm(added)

    return Entry(term, loss, given=("scale", "axis"), needs=("cosine",))


def _comparator(key: jax.Array, channels: int, num_classes: int) -> Comparator:
    return Comparator.create(key, channels)


def _proxies(key: jax.Array, channels: int, num_classes: int) -> jax.Array:
    return jax.nn.initializers.he_normal()(key, (num_classes, channels))


def _projection(key: jax.Array, channels: int, num_classes: int) -> Projection:
    return Projection.create(key, channels)


# A row may also be `module:Name`, imported when it is first used.
TERMS: dict[str, Entry | str] = {
    "gini": of_class_sums(gini_loss),
    "kl": Entry(lambda about: ClassSumTerm(partial(kl_loss, target=about.kl_target))),
    "entropy": of_class_sums(entropy_loss, "signed_class_sums"),
    "renyi": of_class_sums(renyi_loss),
    "mutual_information": of_class_sums(mutual_information_loss),
    "center": of_class_sums(center_loss, "feature_moments"),
    "fisher": of_class_sums(fisher_loss, "feature_moments"),
    "island": of_class_sums(island_loss, "feature_moments"),
    "supcon": of_features(supcon_loss),
    "triplet": of_features(triplet_loss),
    "multi_similarity": of_features(multi_similarity_loss),
    "proxy_anchor": of_features(proxy_anchor_loss, _proxies),
    "relation": of_features(relation_loss, _comparator),
    "relation_triplet": of_features(relation_triplet_loss, _comparator),
    "simclr": of_features(simclr_loss, _projection, needs=("probe", "views")),
    "cosface": of_margin(cosface_loss),
    "arcface": of_margin(arcface_loss),
    "hierarchy": Entry(
        lambda about: LogitTerm(
            partial(hierarchy_loss, superclasses=about.superclasses, fine_weight=0.0)
        ),
        needs=("superclasses",),
    ),
}

# Objectives by name, as they follow the colon in --config=FILE:OBJECTIVE.
PRESETS: dict[str, dict[str, float]] = {
    "ce": {},
    "gini": {"gini": 0.5},
    "kl": {"kl": 0.5},
    "gini_kl": {"gini": 0.5, "kl": 0.5},
    "entropy_kl": {"entropy": 0.5, "kl": 0.5},
    "renyi": {"renyi": 0.1},
    "renyi_kl": {"renyi": 0.1, "kl": 0.5},
    "mutual_information": {"mutual_information": 0.1},
    "center": {"center": 0.01},
    "fisher": {"fisher": 0.1},
    "island": {"center": 0.01, "island": 0.1},
    "supcon": {"supcon": 0.5},
    "triplet": {"triplet": 0.5},
    "multi_similarity": {"multi_similarity": 0.5},
    "proxy_anchor": {"proxy_anchor": 0.1},
    "relation": {"relation": 1.0},
    "relation_triplet": {"relation_triplet": 0.5},
    "cosface": {"cosface": 1.0},
    "arcface": {"arcface": 1.0},
    "remarnet": {"cosface": 1.0, "relation": 1.0},
    "hierarchy": {"hierarchy": 1.0},
    "simclr": {"simclr": 1.0},
}


def entry_of(name: str) -> Entry:
    """The row of a term: of `TERMS`, or of `module:Name`, a term of one's own.

    That is an `Entry`; a class like `Term` or `SumTerm`; or a loss of features and labels, as
    `of_features` takes it.

    Raises:
        InputError: there is no such term.

    Examples:
        >>> entry_of("gini_jax.losses.supcon:supcon_loss").part.__name__
        'supcon_loss'
    """
    row = TERMS.get(name, name)
    if isinstance(row, Entry):
        return row
    from gini_jax.parts import find  # here alone: who imports the losses needs only jax

    what = "a loss, a class like Term, or an Entry"
    found = find(
        "term in loss.terms", row, TERMS, lambda x: isinstance(x, Entry) or callable(x), what
    )
    if isinstance(found, Entry):
        return found
    if not isinstance(found, type):
        return of_features(found)
    return Entry(lambda about, **settings: found(**settings), found)


def needs_of(terms: Mapping[str, Any]) -> set[str]:
    """What the terms of a composition need; see `Entry`.

    Examples:
        >>> needs_of({"cosface": 1.0, "gini": 0.5, "simclr": 0.0})
        {'cosine'}
    """
    return {need for name, weight in terms.items() if weight for need in entry_of(name).needs}


def objective_name(terms: Mapping[str, Any]) -> str:
    """The name of a composition: that of the preset with these terms, or their names joined.

    Examples:
        >>> objective_name({"kl": 1.0, "gini": 0.1}), objective_name({}), objective_name({"kl": 0})
        ('gini_kl', 'ce', 'ce')
    """
    active = {name for name, weight in terms.items() if weight}
    for preset, weights in PRESETS.items():
        if set(weights) == active:
            return preset
    ordered = [name for name in TERMS if name in active] + sorted(active - set(TERMS))
    return "_".join(name.rpartition(":")[2] for name in ordered)
