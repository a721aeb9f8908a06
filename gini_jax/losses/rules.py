"""What the losses accept: shapes, types, and the values of labels and settings.

Shapes and types are always checked. Values are checked where they are known: outside of jit, vmap,
pmap and shard_map, and for settings that are plain numbers. `checked` checks traced values too.
"""

import contextlib
import contextvars
import functools
import inspect
import math
from collections.abc import Callable, Hashable, Iterator
from typing import Annotated, Any, ParamSpec, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from gini_jax.config.registry import in_bounds, rule_of

AxisName: TypeAlias = Hashable | tuple[Hashable, ...]
Angle: TypeAlias = Annotated[float, "[0, 1.5707963267948966]"]  # up to pi / 2
Finite: TypeAlias = Annotated[float, "(-inf, inf)"]

P = ParamSpec("P")
T = TypeVar("T")
_checks_traced = contextvars.ContextVar("checks_traced", default=False)
# Where jax has such contexts, a function that was compiled without checks is compiled again.
_retraced = jax.make_user_context(False) if hasattr(jax, "make_user_context") else None


@contextlib.contextmanager
def _checking() -> Iterator[None]:
    token = _checks_traced.set(True)
    try:
        with _retraced(True) if _retraced else contextlib.nullcontext():
            yield
    finally:
        _checks_traced.reset(token)


def checked(loss: Callable[P, T]) -> Callable[P, tuple[Any, T]]:
    """A loss that also checks the values of traced arrays.

    Args:
        loss: any loss of this package, or a function that calls some.

    Returns:
        A function with the same arguments, which works under jit. It returns an error and the
        loss's own result; `error.throw()` raises if a traced value was wrong, and does nothing
        otherwise. A known value that is wrong raises at once. See `jax.experimental.checkify`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from gini_jax.losses import supcon_loss
        >>> error, value = jax.jit(checked(supcon_loss))(jnp.eye(2), jnp.array([[3.0, -1.0]] * 2))
        >>> error.get().splitlines()[0]
        'labels hold numbers outside [0, 1]; ...'
    """
    from jax.experimental import checkify

    @functools.wraps(loss)
    def with_checks(*args: P.args, **kwargs: P.kwargs) -> tuple[Any, T]:
        def call(arrays: Any) -> T:
            with _checking():
                return loss(*arrays[0], **arrays[1])

        return checkify.checkify(call)((args, kwargs))

    return with_checks


def bounded(loss: Callable[P, T]) -> Callable[P, T]:
    """Refuses settings outside of the bounds and choices that the signature of a loss declares.

    Raises:
        ValueError: names the setting, its value, the rule and the default.

    Examples:
        >>> from gini_jax.losses import supcon_loss
        >>> supcon_loss(jnp.eye(2), jnp.array([0, 0]), temperature=0.0)
        Traceback (most recent call last):
        ValueError: temperature=0.0 must lie in (0, inf); the default is 0.1
    """
    parameters = inspect.signature(loss).parameters
    rules = {name: rule_of(p.annotation) for name, p in parameters.items()}
    rules = {name: rule for name, rule in rules.items() if any(rule)}

    @functools.wraps(loss)
    def with_bounds(*args: P.args, **kwargs: P.kwargs) -> T:
        for name in rules.keys() & kwargs.keys():
            value: Any = kwargs[name]
            choices, bounds = rules[name]
            if bounds and isinstance(value, jax.core.Tracer) and _checks_traced.get():
                low, high = (float(end) for end in bounds[1:-1].split(","))
                above = (value >= low) if bounds[0] == "[" else (value > low)
                below = (value <= high) if bounds[-1] == "]" else (value < high)
                inside = above & below & jnp.isfinite(value)
                require(f"{name} must lie in {bounds}", lambda inside: inside.all(), inside)
            is_default = value is parameters[name].default
            if not _is_known(value) or callable(value) or is_default:
                continue
            if choices and hasattr(value, "shape"):  # an array in the place of a word
                continue
            fits = in_bounds(float(value), bounds) if bounds else value in choices
            if not fits:
                at = "lie in" if bounds else "be one of"
                shown = bounds or ", ".join(map(repr, choices))
                hint = ""
                if parameters[name].annotation is Angle:
                    radians = math.radians(value)
                    hint = f"; it is in radians, and {value} degrees are {radians:.4g}"
                raise ValueError(
                    f"{name}={value!r} must {at} {shown}; the default is "
                    f"{parameters[name].default!r}{hint}"
                )
        return loss(*args, **kwargs)

    return with_bounds


def documented(text: str, before: str, after: str, raises: str) -> str:
    """A docstring with the arguments and errors that all losses of a kind share.

    Args:
        text: the docstring of one loss, with `Args` for its own settings alone.
        before: the arguments that come first, from `Args:` on.
        after: those that come last.
        raises: the errors.
    """
    said, _, rest = text.partition("    Returns:\n")
    said, _, own = said.partition("    Args:\n")
    for section in ("    References:\n", "    Examples:\n"):
        returns, found, more = rest.partition(section)
        if found:
            break
    settings = own.rstrip() + "\n" if own.strip() else ""
    return f"{said}{before}{settings}{after}    Returns:\n{returns}{raises}\n{found}{more}"


def require(text: str, holds: Callable[..., jax.Array], *arrays: jax.Array | None) -> None:
    """Refuses arrays whose values break a rule; traced values are tested only under `checked`.

    Args:
        text: the error.
        holds: from the arrays to a boolean.
        *arrays: those that the rule is about; None where there is none.

    Raises:
        ValueError: the rule does not hold.
    """
    given = [x for x in arrays if x is not None]
    if all(map(_is_known, given)):
        with jax.ensure_compile_time_eval():
            if not bool(holds(*arrays)):
                raise ValueError(text)
    elif _checks_traced.get():
        from jax.experimental import checkify

        checkify.check(holds(*arrays), text.replace("{", "{{").replace("}", "}}"))


def _is_known(value: Any) -> bool:
    if isinstance(value, jax.core.Tracer):
        return False
    return not isinstance(value, jax.Array) or value.is_fully_addressable


def known_array(values: Any) -> jax.Array:
    """Converts an argument to an array; known values, such as NumPy arrays, stay known in jit.

    Raises:
        ValueError: integers of NumPy need 64 bits, which jax does not use by default.
    """
    if isinstance(values, jax.Array):
        return values
    if not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        integers = np.asarray(values)
        if integers.dtype.kind in "iu" and integers.dtype.itemsize == 8 and integers.size:
            low, high = (0, 2**32) if integers.dtype.kind == "u" else (-(2**31), 2**31)
            if integers.min() < low or integers.max() >= high:
                raise ValueError(
                    f"integers up to {integers.max()} need 64 bits; set jax_enable_x64, or number "
                    "them anew: np.unique(labels, return_inverse=True)[1]"
                )
    with jax.ensure_compile_time_eval():
        return jnp.asarray(values)


def check_features(features: jax.Array, axis: int) -> int:
    """The feature axis, counted from 0.

    Raises:
        ValueError: the shape or the axis does not fit.
        TypeError: the features are not floating-point.
    """
    if features.ndim < 2 or not jnp.issubdtype(features.dtype, jnp.floating):
        error = ValueError if features.ndim < 2 else TypeError
        raise error(
            f"features have shape {features.shape} and type {features.dtype}; "
            "they must be floating-point [N, ..., C]"
        )
    if not -features.ndim < axis < features.ndim or axis == 0:
        raise ValueError(
            f"axis={axis}, but features of shape {features.shape} have their examples along axis "
            "0; the feature axis is -1 (channels last) or 1 (channels first)"
        )
    return axis % features.ndim


def check_where(where: Any, labels: jax.Array) -> jax.Array | None:
    """Example weights as an array.

    Raises:
        ValueError: the shape does not fit.
    """
    if where is None:
        return None
    where = known_array(where)
    if where.shape != labels.shape[:1]:
        raise ValueError(
            f"where has shape {where.shape}; it must be [N] = {labels.shape[:1]}, one weight per "
            "example"
        )
    if where.dtype != bool:
        require(
            "where holds numbers that are negative or not finite; give a mask, or weights >= 0",
            lambda where: ((where >= 0) & jnp.isfinite(where.astype(jnp.float32))).all(),
            where,
        )
    return where


def check_class_labels(
    labels: jax.Array, features: jax.Array, num_classes: int | None, weights: jax.Array | None
) -> None:
    """Refuses labels of losses that need to know all classes.

    Args:
        labels: `[N, K]` rows, or `[N]` integers.
        features: `[N, ...]`.
        num_classes: `K`; needed for integers.
        weights: `[N]`, or None. Labels of weight 0 may hold anything.

    Raises:
        ValueError: the shapes do not fit; where values are known, a row holds numbers outside
            `[0, 1]`, or an integer is `num_classes` or larger.
    """
    if labels.ndim == 1:
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(
                f"labels have shape {labels.shape} and type {labels.dtype}; they must be [N, K] "
                "rows, or [N] integers together with num_classes"
            )
        if num_classes is None:
            raise ValueError(f"integer labels of shape {labels.shape} need num_classes=K")
    elif labels.ndim != 2:
        raise ValueError(f"labels have shape {labels.shape}; they must be [N, K], or [N] integers")
    elif num_classes is not None and labels.shape[1] != num_classes:
        raise ValueError(
            f"labels of shape {labels.shape} have {labels.shape[1]} classes, but "
            f"num_classes={num_classes}; leave num_classes out, or make them agree"
        )
    if labels.shape[0] != features.shape[0]:
        raise ValueError(
            f"features of shape {features.shape} hold {features.shape[0]} examples, labels of "
            f"shape {labels.shape} hold {labels.shape[0]}; both must be of the same batch"
        )
    check_label_values(labels, num_classes, weights)


def check_pair_labels(labels: jax.Array, features: jax.Array, weights: jax.Array | None) -> None:
    """Refuses labels of losses that only compare the labels of examples.

    Raises:
        ValueError: they are neither `[N]` integers nor `[N, K]` rows of two classes or more; where
            values are known, a row holds numbers outside `[0, 1]`.
    """
    integers = labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer)
    if not (integers or labels.ndim == 2) or labels.shape[0] != features.shape[0]:
        raise ValueError(
            f"labels have shape {labels.shape} and type {labels.dtype}; for features of shape "
            f"{features.shape} they must be [{features.shape[0]}] integers or "
            f"[{features.shape[0]}, K] rows"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        raise ValueError(
            f"labels have shape {labels.shape}: as rows, all are of one class; give integers of "
            f"shape {labels.shape[:1]}, such as labels[:, 0]"
        )
    check_label_values(labels, None, weights)


def check_label_values(
    labels: jax.Array, num_classes: int | None, weights: jax.Array | None
) -> None:
    """Refuses known values that are not valid labels; see `check_class_labels`."""
    if labels.ndim == 1:
        if num_classes is not None:
            require(
                f"labels hold an integer of {num_classes} or more, but num_classes={num_classes}: "
                f"the classes are 0 to {num_classes - 1}, and a negative integer is no class; "
                "raise num_classes, or mend the labels",
                lambda labels, weights: (
                    ~_counts(weights, labels) | (of_32_bits(labels) < num_classes)
                ).all(),
                labels,
                weights,
            )
        return
    if labels.shape[1] == 1 or jnp.issubdtype(labels.dtype, jnp.complexfloating):
        raise ValueError(
            f"labels have shape {labels.shape} and type {labels.dtype}; give integers of shape "
            f"{labels.shape[:1]}, such as labels[:, 0], or real rows [N, K] of all K classes"
        )
    if labels.dtype == bool:
        return

    def holds(labels: jax.Array, weights: jax.Array | None) -> jax.Array:
        rows = labels.astype(jnp.float32)
        inside = (rows >= -5e-3) & (rows <= 1.005)  # as bfloat16 rounds them
        return (~_counts(weights, labels)[:, None] | inside).all()

    require(
        f"labels hold numbers outside [0, 1]; rows of shape {labels.shape} are shares of the "
        "classes, such as one-hot rows, not logits",
        holds,
        labels,
        weights,
    )


def check_cosines(cosines: jax.Array, labels: jax.Array, weights: jax.Array | None) -> None:
    """Refuses known values that are not cosines.

    Raises:
        ValueError: some lie outside `[-1, 1]`, by more than rounding.
    """
    require(
        "the cosines hold numbers outside [-1, 1]; give the products of features and class "
        "vectors that are both divided by their lengths, not logits or features",
        lambda cosines, labels, weights: (
            (
                ~_counts(weights, labels)[:, None]
                | (jnp.abs(cosines) <= 1.02)  # as bfloat16 rounds
            ).all()
        ),
        cosines,
        labels,
        weights,
    )


def of_32_bits(labels: jax.Array) -> jax.Array:
    """Integers of at least 32 bits, enough for any number of classes."""
    return labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)


def _counts(weights: jax.Array | None, labels: jax.Array) -> jax.Array:
    """`[N]`: which examples count: all but those with weight 0 or a negative integer label."""
    there = jnp.ones(len(labels), bool) if weights is None else weights.astype(bool)
    return there & (labels >= 0) if labels.ndim == 1 else there
