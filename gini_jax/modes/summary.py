"""Shows what a network is made of: parameters, feature shapes, operations per image."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from clu import parameter_overview
from ml_collections import ConfigDict

from gini_jax.data import dataset_shapes
from gini_jax.training.experiment import check_before_data, create_model_of
from gini_jax.training.groups import Group, groups_of, of_parameters

FLAGS: dict[str, Any] = {}


def main(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Prints the parameter table, the features' shapes and the operations per image.

    The operations are those that the compiler counts in the compiled forward pass, and in forward
    and backward pass together; a multiply-add counts as two.

    Args:
        config: the settings of a run. Its data set is not decoded: only the number of classes and
            the image size are read.
        workdir: not written to.

    Returns:
        `num_parameters`, `feature_shapes`, `forward_flops` and `training_flops`, for one image.
    """
    del workdir
    check_before_data(config)
    dataset = dataset_shapes(config.dataset)
    num_classes, size = dataset.num_classes, dataset.image_size
    model = create_model_of(config, num_classes, axis_name=None)
    images = jnp.zeros((1, size, size, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    print(parameter_overview.get_parameter_overview(variables["params"], include_stats=False))
    print(groups_text(config.optimizer.groups, variables["params"]), end="")

    def loss(params, batch_stats, images):
        (logits, _), _ = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return logits.sum()

    def forward(params, batch_stats, images):
        return model.apply({"params": params, "batch_stats": batch_stats}, images, train=False)

    batch_stats = variables.get("batch_stats", {})
    arguments = (variables["params"], batch_stats, images)
    shapes = {name: x.shape[1:] for name, x in jax.eval_shape(forward, *arguments)[1].items()}
    forward_flops, training_flops = (
        dict(jax.jit(f).lower(*arguments).compile().cost_analysis() or {})["flops"]
        for f in (forward, jax.grad(loss))
    )
    width = max(map(len, shapes))
    print(f"\nfeatures of an image of {size} x {size}, {num_classes} classes")
    for name, shape in shapes.items():
        print(f"  {name:<{width}}  {' x '.join(map(str, shape))}")
    print(f"\noperations per image: {forward_flops / 1e9:.3f} G forward, ", end="")
    print(f"{training_flops / 1e9:.3f} G forward and backward")
    return {
        "num_parameters": int(parameter_overview.count_parameters(variables["params"])),
        "feature_shapes": shapes,
        "forward_flops": forward_flops,
        "training_flops": training_flops,
    }


def groups_text(rows: Any, params: Any) -> str:
    """How many parameters each group of the optimiser has; "" if there are no groups."""
    if not rows:
        return ""
    counts: dict[Group, int] = dict.fromkeys(groups_of(rows), 0)
    found = of_parameters(list(counts), params)
    leaves = jax.tree.leaves(found, is_leaf=lambda leaf: isinstance(leaf, Group))
    for group, array in zip(leaves, jax.tree.leaves(params), strict=True):
        counts[group] = counts.get(group, 0) + array.size
    lines = [
        f"  {group.pattern}: {count:,} parameters, learning rate x {group.rate:g}"
        + (", no weight decay" if not group.decay else "")
        for group, count in counts.items()
    ]
    return "\ngroups of the optimiser\n" + "\n".join(lines) + "\n"
