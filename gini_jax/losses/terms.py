"""The terms that may be added to cross-entropy in training, and presets of them.

A new term is one new file and one line in `TABLE`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax

from gini_jax.config.registry import ANY, COUNT, NOT_NEGATIVE, Registry, Setting, settings_of
from gini_jax.losses.center import center_loss
from gini_jax.losses.decorrelation import decorrelation_loss
from gini_jax.losses.discriminability import entropy_loss, gini_loss, kl_loss
from gini_jax.losses.fisher import fisher_loss
from gini_jax.losses.hierarchy import hierarchy_loss
from gini_jax.losses.information import mutual_information_loss
from gini_jax.losses.island import island_loss
from gini_jax.losses.margins import arcface_loss, cosface_loss
from gini_jax.losses.monosemantic import monosemantic_loss
from gini_jax.losses.multi_similarity import multi_similarity_loss
from gini_jax.losses.opl import opl_loss
from gini_jax.losses.proxy_anchor import proxy_anchor_loss
from gini_jax.losses.rate_reduction import rate_reduction_loss
from gini_jax.losses.relation import Comparator, relation_loss, relation_triplet_loss
from gini_jax.losses.renyi import renyi_loss
from gini_jax.losses.simclr import Projection, simclr_loss
from gini_jax.losses.supcon import supcon_loss
from gini_jax.losses.term import (
    ClassSumTerm,
    FeatureTerm,
    LogitTerm,
    QueueTerm,
    SumTerm,
    Term,
    TermContext,
)
from gini_jax.losses.triplet import triplet_loss
from gini_jax.losses.vcreg import vcreg_loss

_SIGNED = (
    "weight of the term; a negative one rewards what a positive one punishes: features that "
    "respond to many classes"
)


class TermSpec(NamedTuple):
    """An entry of the table of terms.

    Attributes:
        create: a function from the run's context, and the term's own settings, to the term.
        declares: the function or class whose arguments are the term's own settings.
        given: those of its arguments that are no settings: training gives them.
        needs: what training must provide: a `cosine` or a `probe` head, `superclasses`, or two
            `views` of each image.
        signed: whether a negative weight makes sense, as for an impurity, which it raises.
        more: settings that `declares` does not declare.
    """

    create: Callable[..., Term | SumTerm]
    declares: Callable[..., Any] | None = None
    given: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    signed: bool = False
    more: Mapping[str, Setting] = {}

    @property
    def settings(self) -> dict[str, Setting]:
        """The weight, and the term's own settings.

        Examples:
            >>> list(TERMS["supcon"].settings), TERMS["gini"].settings["weight"].bounds
            (['weight', 'temperature', 'average', ...], '(-inf, inf)')
        """
        weight = Setting(0.0, "weight of the term", bounds=NOT_NEGATIVE)
        if self.signed:
            weight = Setting(0.0, _SIGNED, bounds=ANY)
        own = settings_of(self.declares) if self.declares else {}
        own = {k: row for k, row in own.items() if k not in self.given}
        return {"weight": weight} | own | dict(self.more)


def of_class_sums(
    loss: Callable[..., jax.Array], kind: str = "class_sums", signed: bool = False
) -> TermSpec:
    """A term in the table that is a loss of class sums, or of other sums; see `ClassSumTerm`.

    Args:
        loss: from sums, and settings by keyword, to a scalar.
        kind: which sums, one of `SUMS`.
        signed: whether its weight may be negative.
    """

    def term(context: TermContext, **settings: Any) -> ClassSumTerm:
        return ClassSumTerm(partial(loss, **settings), kind)

    return TermSpec(term, loss, signed=signed)


_GIVEN = ("against", "positives", "references", "reduction", "embeddings")


def of_features(
    loss: Callable[..., jax.Array],
    create: Callable[[jax.Array, int, int], Any] | None = None,
    needs: tuple[str, ...] = (),
) -> TermSpec:
    """A term in the table that is a loss of features and labels; see `FeatureTerm`."""

    def term(context: TermContext, **settings: Any) -> FeatureTerm:
        if not settings.get("chunk_size", 1):  # 0: all at once
            settings = settings | {"chunk_size": None}
        return FeatureTerm(partial(loss, **settings), create)

    return TermSpec(term, loss, given=_GIVEN, needs=needs)


_QUEUE = {
    "queue": Setting(
        0, "earlier examples that anchors are also compared with; 0: none", bounds=NOT_NEGATIVE
    ),
    "queue_epoch": Setting(1, "first epoch in which the queue counts, from 1", bounds=COUNT),
}


def of_pairs(
    loss: Callable[..., jax.Array],
    create: Callable[[jax.Array, int, int], Any] | None = None,
    needs: tuple[str, ...] = (),
) -> TermSpec:
    """A term in the table that is a loss over pairs, with a queue if the config sets its size."""
    plain = of_features(loss, create, needs)

    def term(
        context: TermContext, *, queue: int = 0, queue_epoch: int = 1, **settings: Any
    ) -> FeatureTerm | QueueTerm:
        without: Any = plain.create(context, **settings)
        if not queue:
            return without  # type: ignore[no-any-return]
        first_step = (queue_epoch - 1) * context.steps_per_epoch
        return QueueTerm(without.loss, queue, first_step, "views" in needs, create)

    return plain._replace(create=term, more=_QUEUE)


def of_margin(loss: Callable[..., jax.Array]) -> TermSpec:
    """A term in the table: what a margin adds to the cross-entropy of a cosine head.

    So cross-entropy plus the term with weight 1 is the loss with the margin.
    """

    def term(context: TermContext, **settings: Any) -> LogitTerm:
        scale = context.scale

        def added(logits: jax.Array, labels: jax.Array, **options: Any) -> jax.Array:
            cosines, scaled = logits / scale, partial(loss, scale=scale, **options)
            return scaled(cosines, labels, **settings) - scaled(cosines, labels, margin=0.0)

        return LogitTerm(added)

    return TermSpec(term, loss, given=("scale", "reduction"), needs=("cosine",))


def _kl(
    context: TermContext, target: Literal["batch", "present", "prior"] = "batch"
) -> ClassSumTerm:
    """The paper's KL term.

    Args:
        context: holds the class shares that `prior` refers to.
        target: what the features' distribution is compared with: class shares of the batch (the
            paper's), uniform over the classes present in it, or the prior: class shares of the
            training set.
    """
    if target != "prior":
        return ClassSumTerm(partial(kl_loss, target=target))
    return ClassSumTerm(partial(kl_loss, target=context.class_shares))


def _hierarchy(context: TermContext) -> LogitTerm:
    return LogitTerm(partial(hierarchy_loss, superclasses=context.superclasses, fine_weight=0.0))


def _comparator(key: jax.Array, channels: int, num_classes: int) -> Comparator:
    return Comparator.create(key, channels)


def _proxies(key: jax.Array, channels: int, num_classes: int) -> jax.Array:
    return jax.nn.initializers.he_normal()(key, (num_classes, channels))


def _projection(key: jax.Array, channels: int, num_classes: int) -> Projection:
    return Projection.create(key, channels)


TABLE: dict[str, TermSpec] = {
    "gini": of_class_sums(gini_loss, signed=True),
    "kl": TermSpec(_kl, _kl),
    "entropy": of_class_sums(entropy_loss, "signed_class_sums", signed=True),
    "renyi": of_class_sums(renyi_loss, signed=True),
    "mutual_information": of_class_sums(mutual_information_loss, signed=True),
    "center": of_class_sums(center_loss, "feature_moments"),
    "fisher": of_class_sums(fisher_loss, "feature_moments"),
    "island": of_class_sums(island_loss, "feature_moments"),
    "vcreg": of_class_sums(vcreg_loss, "second_moments"),
    "decorrelation": of_class_sums(decorrelation_loss, "second_moments"),
    "opl": of_class_sums(opl_loss, "direction_sums"),
    "rate_reduction": of_class_sums(rate_reduction_loss, "direction_products"),
    "monosemantic": of_features(monosemantic_loss),
    "supcon": of_pairs(supcon_loss),
    "triplet": of_pairs(triplet_loss),
    "multi_similarity": of_pairs(multi_similarity_loss),
    "proxy_anchor": of_features(proxy_anchor_loss, _proxies),
    "relation": of_features(relation_loss, _comparator),
    "relation_triplet": of_pairs(relation_triplet_loss, _comparator),
    "simclr": of_pairs(simclr_loss, _projection, needs=("probe", "views")),
    "cosface": of_margin(cosface_loss),
    "arcface": of_margin(arcface_loss),
    "hierarchy": TermSpec(_hierarchy, needs=("superclasses",)),
}


def _as_spec(part: Any) -> TermSpec:
    """A plugin as an entry of the table."""
    if isinstance(part, TermSpec):
        return part
    if not isinstance(part, type):
        return of_features(part)
    return TermSpec(lambda context, **settings: part(**settings), part)


TERMS = Registry(
    "term in loss.terms",
    TABLE,
    lambda part: isinstance(part, TermSpec) or callable(part),
    "a loss, a class like Term, or a TermSpec",
    _as_spec,
)

# Objectives by name, as they follow the colon in --config=FILE:OBJECTIVE.
PRESETS: dict[str, dict[str, float]] = {
    "ce": {},
    "gini": {"gini": 0.5},
    "anti_gini": {"gini": -0.5},
    "kl": {"kl": 0.5},
    "gini_kl": {"gini": 0.5, "kl": 0.5},
    "entropy_kl": {"entropy": 0.5, "kl": 0.5},
    "renyi": {"renyi": 0.1},
    "renyi_kl": {"renyi": 0.1, "kl": 0.5},
    "mutual_information": {"mutual_information": 0.1},
    "center": {"center": 0.01},
    "fisher": {"fisher": 0.1},
    "island": {"center": 0.01, "island": 0.1},
    "vcreg": {"vcreg": 0.1},
    "decorrelation": {"decorrelation": 0.5},
    "opl": {"opl": 0.5},
    "rate_reduction": {"rate_reduction": 0.1},
    "monosemantic": {"monosemantic": 0.5},
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


def weight_of(section: Any) -> Any:
    """The weight of a term, a number or one for each layer; 0 if all of them are 0.

    Args:
        section: of `config.loss.terms`; a number is a weight.

    Examples:
        >>> weight_of({"weight": {"stage4": 0.5}}), weight_of({"weight": {"stage4": 0.0}})
        ({'stage4': 0.5}, 0.0)
    """
    weight = section.get("weight", 0.0) if hasattr(section, "get") else section
    by_layer = dict(weight.items()) if hasattr(weight, "items") else None
    return weight if by_layer is None else by_layer if any(by_layer.values()) else 0.0


def spec_of(key: str, section: Any = None) -> TermSpec:
    """The entry of a term by its key in `config.loss.terms`, or by the `name` in its section.

    Raises:
        InputError: there is no such term.

    Examples:
        >>> spec_of("far", {"name": "gini_jax.losses:supcon_loss"}).declares.__name__
        'supcon_loss'
    """
    name = section.get("name", key) if hasattr(section, "get") else key
    return TERMS.find(name)  # type: ignore[no-any-return]


def needs_of(terms: Mapping[str, Any]) -> set[str]:
    """What the terms of a composition need; see `TermSpec`.

    Examples:
        >>> needs_of({"cosface": 1.0, "gini": 0.5, "simclr": 0.0})
        {'cosine'}
    """
    active = {key: section for key, section in terms.items() if weight_of(section)}
    return {need for key, section in active.items() for need in spec_of(key, section).needs}


def objective_name(terms: Mapping[str, Any]) -> str:
    """The name of a composition: that of the preset with these terms, or their names joined.

    A term with a negative weight has the opposite direction, which `anti_` says.

    Examples:
        >>> objective_name({"kl": 1.0, "gini": 0.1}), objective_name({}), objective_name({"kl": 0})
        ('gini_kl', 'ce', 'ce')
        >>> objective_name({"gini": -0.1}), objective_name({"kl": 1.0, "gini": -0.1})
        ('anti_gini', 'anti_gini_kl')
    """
    active = {key: _is_negative(weight_of(own)) for key, own in terms.items() if weight_of(own)}
    for preset, weights in PRESETS.items():
        if {key: _is_negative(weight) for key, weight in weights.items()} == active:
            return preset
    ordered = [name for name in TERMS if name in active] + sorted(active.keys() - set(TERMS))
    return "_".join("anti_" * active[key] + key.rpartition(":")[2] for key in ordered)


def _is_negative(weight: Any) -> bool:
    """Whether a weight, or the sum of those of the layers, is negative."""
    return bool((sum(weight.values()) if isinstance(weight, Mapping) else weight) < 0)
