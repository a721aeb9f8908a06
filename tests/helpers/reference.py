"""The paper's equations in float64 NumPy, loop by loop, and by PyTorch autograd."""

import jax
import numpy as np

EPS = 1e-10


def class_means(features, onehot, weights=None, signed=False):
    """S [C, K] and m [K]."""
    a = np.asarray(features, np.float64)
    y = np.asarray(onehot, np.float64)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    a = a if signed else np.abs(a)
    z = a.reshape(len(a), -1, a.shape[-1]).mean(axis=1)
    mass = np.zeros(y.shape[1])
    activation = np.zeros((z.shape[1], y.shape[1]))
    for n in range(len(y)):
        mass += w[n] * y[n]
        activation += w[n] * np.outer(z[n], y[n])
    return activation / (mass + EPS), mass


def profile(features, onehot, weights=None):
    s, _ = class_means(features, onehot, weights)
    return s / (s.sum(axis=1, keepdims=True) + EPS)


def gini(features, onehot, weights=None):
    return float(np.mean(1 - (profile(features, onehot, weights) ** 2).sum(axis=1)))


def kl(features, onehot, weights=None, target=None):
    p = profile(features, onehot, weights)
    _, mass = class_means(features, onehot, weights)
    q = (p.sum(axis=0) + EPS) / (p.sum() + p.shape[1] * EPS)
    if target is None:
        if mass.sum() == 0:
            return 0.0
        target = mass / mass.sum()
    total = 0.0
    for t_k, q_k in zip(target, q, strict=True):
        if t_k > 0:
            total += t_k * (np.log(t_k) - np.log(q_k))
    return total


def kl_present(features, onehot, weights=None):
    _, mass = class_means(features, onehot, weights)
    present = (mass > 0).astype(np.float64)
    return kl(features, onehot, weights, target=present / max(present.sum(), 1))


def renyi(features, onehot, weights=None):
    s, _ = class_means(features, onehot, weights)
    values = []
    for row in s:
        dead = row.sum() == 0
        values.append(np.log(len(row)) if dead else -np.log(((row / row.sum()) ** 2).sum()))
    return float(np.mean(values))


def mutual_information(features, onehot, weights=None):
    s, _ = class_means(features, onehot, weights)
    if not s.sum():
        return 0.0
    p = s / s.sum()
    total = 0.0
    for c in range(p.shape[0]):
        for k in range(p.shape[1]):
            if p[c, k] > 0:
                total -= p[c, k] * np.log(p[c, k] / (p[c].sum() * p[:, k].sum()))
    return total


def entropy(features, onehot, weights=None):
    s, _ = class_means(features, onehot, weights, signed=True)
    e = np.exp(s - s.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    return float(np.mean(-(p * np.log10(np.where(p > 0, p, 1.0))).sum(axis=1)))


def torch_value_and_gradient(term, features, onehot, weights=None):
    """Value and gradient by the features, float64, of a term by its name."""
    import torch

    a = torch.tensor(np.asarray(features, np.float64), requires_grad=True)
    y = torch.tensor(np.asarray(onehot, np.float64))
    w = torch.ones(len(y), dtype=torch.float64)
    w = w if weights is None else torch.tensor(np.asarray(weights, np.float64))
    z = (a if term == "entropy" else a.abs()).reshape(len(a), -1, a.shape[-1]).mean(dim=1)
    mass = (w[:, None] * y).sum(dim=0)
    s = (w[:, None] * z).T @ y / (mass + EPS)
    if term == "entropy":
        p = torch.softmax(s, dim=1)
        value = -(p * torch.log10(p)).sum(dim=1).mean()
    elif term == "renyi":
        alive = s.sum(dim=1) > 0
        p = s[alive] / s[alive].sum(dim=1, keepdim=True)
        dead = (~alive).sum() * np.log(s.shape[1])
        value = (dead - torch.log((p**2).sum(dim=1)).sum()) / len(s)
    elif term == "mutual_information":
        p = s / (s.sum() or 1)  # no feature fires: 0, as in NumPy's
        margins = p.sum(dim=1, keepdim=True) * p.sum(dim=0, keepdim=True)
        value = -(p[p > 0] * torch.log(p[p > 0] / margins[p > 0])).sum()
    else:
        p = s / (s.sum(dim=1, keepdim=True) + EPS)
        value = (1 - (p**2).sum(dim=1)).mean()
    if term.startswith("kl"):
        q = (p.sum(dim=0) + EPS) / (p.sum() + p.shape[1] * EPS)
        counted = (mass > 0).double() if term == "kl, present" else mass
        t = counted / counted.sum()
        value = (torch.xlogy(t, t) - t * torch.log(q)).sum()
    value.backward()
    return value.item(), a.grad.numpy()


# Networks small enough to compile in seconds.
SMALL: dict[str, dict] = {
    "resnet18": {"width": 8, "blocks": (1, 1, 1, 1)},
    "resnet50": {"width": 4, "blocks": (1, 1, 1, 1)},
    "cvt13": {"widths": (8, 16, 24), "blocks": (1, 1, 1), "heads": (1, 2, 3)},
}


def random_variables(model, size=32):
    """A network's variables with any values: to draw them as it does takes a compilation."""
    rng = np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(x.dtype), shapes)
