"""A network whose body is frozen: only a hidden layer and the last one are trained."""

from collections.abc import Hashable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gini_jax.models.layers import Classifier, perturbed

BODY = "frozen_body"


class Frozen(nn.Module):
    """A frozen network up to its pooled features, then a hidden layer with a ReLU and the head.

    The body's variables lie in the collection `batch_stats`, under `frozen_body`: they are state
    that the optimiser does not see. Its normalisation uses the running statistics.

    Attributes:
        body: a network, as the registry makes it.
        num_classes: `K`.
        hidden: units of the hidden layer; 0: none.
        dropout: before the last layer.
        head: kind of the last layer; see `Classifier`.
        scale: of a cosine head.
        axis_name: not used, as no statistics are taken over the batch.
    """

    body: nn.Module
    num_classes: int
    hidden: int = 0
    dropout: float = 0.0
    head: str = "linear"
    scale: float = 16.0
    axis_name: Hashable | None = None

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "N ..."],
        train: bool = False,
        example_index: Int[Array, " N"] | None = None,
    ) -> tuple[Float[Array, "N K"], dict[str, Float[Array, "N ..."]]]:
        """Logits `[N, K]` and features by layer.

        Args:
            images: `[N, H, W, 3]`; or the body's features `[N, C]`, which spare the pass through
                it. Then only the layers behind it are returned.
            train: whether dropout is on.
            example_index: as in `ResNet`.

        Returns:
            The logits, and features: the body's by its own names, but `body` for its pooled ones;
            and `pooled`, which the classifier sees. Without a hidden layer these are the body's.
        """
        x, features = self._through_body(images)
        if self.hidden:
            features["body"] = x
            x = nn.relu(nn.Dense(self.hidden, name="hidden")(x))
        features["pooled"] = x = perturbed(self, "pooled", x)
        classifier = Classifier(
            self.num_classes,
            self.dropout,
            self.head,  # type: ignore[arg-type]
            self.scale,
            name="head",
        )
        return classifier(x, train=train, example_index=example_index), features

    def _through_body(self, images: Array) -> tuple[Array, dict[str, Array]]:
        """The body's pooled features, and those of its other layers."""
        body = self.body.clone(parent=None)

        def made() -> Any:
            variables = body.init(self.make_rng("params"), jnp.zeros((1, *images.shape[1:])))
            return {key: variables.get(key, {}) for key in ("params", "batch_stats")}

        variables = self.variable("batch_stats", BODY, made).value
        if images.ndim == 2:
            return images, {}
        variables = dict(variables)
        if self.has_variable("perturbations", "pooled"):
            variables["perturbations"] = self._perturbations(body, images)
        _, found = body.apply(variables, images, train=False)  # type: ignore[misc]
        features = dict(found)
        return features.pop("pooled").astype(jnp.float32), features

    def _perturbations(self, body: nn.Module, images: Array) -> dict[str, Any]:
        """Those of the body: its own layers' from here, and zeros for all else that it perturbs."""
        one = jnp.zeros((1, *images.shape[1:]))
        (_, features), variables = jax.eval_shape(body.init_with_output, jax.random.key(0), one)
        wanted = {**features, **variables.get("perturbations", {})}
        given = dict(self.variables["perturbations"])
        given["pooled"] = given.pop("body", None)
        zeros = jax.tree.map(lambda x: jnp.zeros((len(images), *x.shape[1:]), x.dtype), wanted)
        return {k: zeros[k] if given.get(k) is None else given[k] for k in wanted}


def has_body(variables: Mapping[str, Any]) -> bool:
    """Whether these are the variables of a frozen network.

    Examples:
        >>> has_body({"params": {}, "batch_stats": {"frozen_body": {}}})
        True
    """
    return BODY in variables.get("batch_stats", {})


def body_of(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of the network itself: those of a frozen body, or all.

    Examples:
        >>> body_of({"params": {}, "batch_stats": {"frozen_body": {"params": {"a": 1}}}})
        {'params': {'a': 1}}
        >>> body_of({"params": {"a": 1}, "batch_stats": {}})
        {'params': {'a': 1}, 'batch_stats': {}}
    """
    return dict(variables.get("batch_stats", {}).get(BODY, variables))


def with_body(variables: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """The variables with those of another network in the place of the body, or of all.

    Examples:
        >>> frozen = {"params": {}, "batch_stats": {"frozen_body": {"params": {"a": 1}}}}
        >>> with_body(frozen, {"params": {"a": 2}})["batch_stats"]
        {'frozen_body': {'params': {'a': 2}, 'batch_stats': {}}}
    """
    if not has_body(variables):
        return dict(body)
    whole = {kind: body.get(kind, {}) for kind in ("params", "batch_stats")}  # {}, if it has none
    return {**variables, "batch_stats": {**variables["batch_stats"], BODY: whole}}


def whole_of(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of a network whose head is the trained one, if it can have it.

    A frozen body has the trained head where there is no hidden layer between them.

    Examples:
        >>> body = {"params": {"head": 0}, "batch_stats": {}}
        >>> whole_of({"params": {"head": 1}, "batch_stats": {"frozen_body": body}})["params"]
        {'head': 1}
    """
    found = body_of(variables)
    if not has_body(variables) or "hidden" in variables["params"]:
        return found
    return {**found, "params": {**found["params"], **variables["params"]}}


def pooled_width(network: nn.Module, image_size: int) -> int:
    """`C`, the width of the pooled features of a network."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    (_, features), _ = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    return int(features["pooled"].shape[-1])
