"""The discriminability-enforcing loss, and its baselines: pure functions of activations and labels.

Croitoru, Grigore, Ionescu, "Discriminability-enforcing loss to improve representation learning"
(arXiv 2202.07073). The paper's terms are functions of two sums over the examples of a batch, the
`ClassSums`; center, Fisher and island loss are functions of the `FeatureMoments`. Sums add over
examples, micro-batches and devices. Losses over pairs gather the features of all devices. So every
value is that of the global batch. This package imports jax and nothing else.

Notation: `N` examples, `K` classes, `C` features (channels), activations `[N, ..., C]`.
All functions work under jit, vmap, grad, pmap and shard_map and on meshes with Auto or Explicit
axes, accumulate in float32 (float64 for float64 input) and return that type.

Wrong shapes always raise an error. Wrong values (a label of `K`, logits instead of labels, a
negative temperature) raise one where they are known; where they are traced, `checked` finds them.

Gradients under `axis_name`. The value is the same on every device. As for any loss with a psum
inside, differentiating it inside `pmap` or `vmap(axis_name=...)` sums the cotangents of all
devices: `lax.pmean` of the parameters' gradients, the usual data-parallel step, is then exactly
the global batch's gradient. Under `shard_map` (with its default `check_vma=True`) the gradient of
a replicated parameter is already the global one, and a `pmean` changes nothing.
"""

from gini_jax.losses.accumulation import RunningSums, linearize_at
from gini_jax.losses.caching import cached_value_and_grad
from gini_jax.losses.center import center_loss
from gini_jax.losses.class_sums import ClassSums, class_sums
from gini_jax.losses.covariance import SecondMoments, second_moments
from gini_jax.losses.decorrelation import decorrelation_loss
from gini_jax.losses.discriminability import (
    class_distribution,
    class_profile,
    entropy_loss,
    gini_impurity,
    gini_loss,
    kl_loss,
)
from gini_jax.losses.fisher import fisher_loss
from gini_jax.losses.hierarchy import hierarchy_loss
from gini_jax.losses.information import mutual_information_loss
from gini_jax.losses.island import island_loss
from gini_jax.losses.joint import discriminability_loss
from gini_jax.losses.margins import arcface_loss, cosface_loss
from gini_jax.losses.moments import FeatureMoments, feature_moments
from gini_jax.losses.monosemantic import monosemantic_loss
from gini_jax.losses.multi_similarity import multi_similarity_loss
from gini_jax.losses.nt_xent import nt_xent_loss
from gini_jax.losses.opl import opl_loss
from gini_jax.losses.proxy_anchor import proxy_anchor_loss
from gini_jax.losses.queue import Queue
from gini_jax.losses.rate_reduction import rate_reduction_loss
from gini_jax.losses.relation import (
    Comparator,
    relation_loss,
    relation_scores,
    relation_triplet_loss,
)
from gini_jax.losses.renyi import renyi_loss
from gini_jax.losses.rules import checked
from gini_jax.losses.simclr import Projection, simclr_loss
from gini_jax.losses.supcon import supcon_loss
from gini_jax.losses.towers import clip_loss, siglip_loss
from gini_jax.losses.triplet import triplet_loss
from gini_jax.losses.vcreg import vcreg_loss

__all__ = [
    "ClassSums",
    "Comparator",
    "FeatureMoments",
    "Projection",
    "Queue",
    "RunningSums",
    "SecondMoments",
    "arcface_loss",
    "cached_value_and_grad",
    "center_loss",
    "checked",
    "class_distribution",
    "class_profile",
    "class_sums",
    "clip_loss",
    "cosface_loss",
    "decorrelation_loss",
    "discriminability_loss",
    "entropy_loss",
    "feature_moments",
    "fisher_loss",
    "gini_impurity",
    "gini_loss",
    "hierarchy_loss",
    "island_loss",
    "kl_loss",
    "linearize_at",
    "monosemantic_loss",
    "multi_similarity_loss",
    "mutual_information_loss",
    "nt_xent_loss",
    "opl_loss",
    "proxy_anchor_loss",
    "rate_reduction_loss",
    "relation_loss",
    "relation_scores",
    "relation_triplet_loss",
    "renyi_loss",
    "second_moments",
    "siglip_loss",
    "simclr_loss",
    "supcon_loss",
    "triplet_loss",
    "vcreg_loss",
]
