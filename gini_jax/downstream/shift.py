"""Subpopulation shift: recognising superclasses from classes that training did not see.

The network learns superclasses from some classes of each, and is tested on the others, as in
Santurkar et al., "BREEDS" (arXiv 2008.04859). Train with `dataset.superclasses=True` and
`dataset.held_out_classes`.
"""

from gini_jax.data.protocols import HELD_OUT
from gini_jax.downstream.subject import Subject

KEYS = {
    "shift_accuracy": ("Accuracy on classes of the superclasses that training did not see", True),
    "shift_gap": ("Accuracy lost on classes that training did not see", False),
}


def unfit(subject: Subject) -> str:
    """The reason why a run does not fit: it needs held-out classes of known superclasses."""
    if subject.config.dataset.superclasses and HELD_OUT in subject.dataset.splits:
        return ""
    return (
        "it needs superclasses with classes that training did not see; train with "
        "--config.dataset.superclasses=True --config.dataset.held_out_classes=20 on data with "
        "superclasses, such as cifar100"
    )


def measure(subject: Subject) -> dict[str, float]:
    """The numbers of `KEYS`."""
    assert subject.held_out is not None
    there, here = (
        float((outputs.logits.argmax(axis=1) == outputs.labels).mean())
        for outputs in (subject.held_out, subject.test)
    )
    return {"shift_accuracy": there, "shift_gap": here - there}
