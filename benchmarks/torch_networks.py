"""The benchmarked networks in PyTorch, and their training steps."""

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np

try:
    import torch
    from torch import nn
except ImportError:
    torch = None  # type: ignore[assignment]

EPS = 1e-10


def version() -> str | None:
    """PyTorch's version; None without it."""
    return None if torch is None else torch.__version__


def steps(
    network: str, settings: dict[str, Any], images: np.ndarray, labels: np.ndarray, num_classes: int
) -> dict[str, Callable[[], None]]:
    """By name, functions that do one training step: eager, and compiled where a compiler is."""
    if torch is None:
        print("torch is not installed: no comparison")
        return {}
    ways = {"torch eager": _step(network, settings, images, labels, num_classes, False)}
    if shutil.which("g++") and network != "cvt13":
        ways["torch.compile"] = _step(network, settings, images, labels, num_classes, True)
    return ways


def _step(network, settings, images, labels, num_classes, compiled) -> Callable[[], None]:
    cvt = network.startswith("cvt")
    model = _cvt(num_classes) if cvt else _resnet(network, settings["width"], num_classes)
    model.train()
    x = torch.tensor(images.transpose(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)
    y = torch.tensor(labels, dtype=torch.long)
    onehot = nn.functional.one_hot(y, num_classes).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    if not cvt:
        model = model.to(memory_format=torch.channels_last)

    def loss_of(x):
        logits, features = model(x.float() / 255.0)
        ce = nn.functional.cross_entropy(logits, y)
        return ce + _terms(features, onehot)

    loss_fn = torch.compile(loss_of) if compiled else loss_of

    def call() -> None:
        optimizer.zero_grad()
        loss_fn(x).backward()
        optimizer.step()

    return call


def gpu_steps(
    network: str, settings: dict[str, Any], images: np.ndarray, labels: np.ndarray, num_classes: int
) -> dict[str, Callable[[], None]]:
    """Training steps of a ResNet in bfloat16 on a GPU, or on the CPU if there is none."""
    if torch is None:
        print("torch is not installed: no comparison")
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True

    def step(compiled: bool) -> Callable[[], None]:
        width, large = settings.get("width", 64), settings.get("stem") == "imagenet"
        model = _resnet(network, width, num_classes, large).train()
        model = model.to(device, memory_format=torch.channels_last)
        x = torch.tensor(images.transpose(0, 3, 1, 2), device=device)
        x = x.contiguous(memory_format=torch.channels_last)
        y = torch.tensor(labels, dtype=torch.long, device=device)
        onehot = nn.functional.one_hot(y, num_classes).float()
        fused = {"fused": True} if device == "cuda" else {}
        optimizer = torch.optim.SGD(
            model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, **fused
        )

        def loss_of(x):
            with torch.autocast(device, torch.bfloat16):
                logits, features = model(x.float() / 255.0)
            ce = nn.functional.cross_entropy(logits.float(), y)
            return ce + _terms(features.float(), onehot)

        loss_fn = torch.compile(loss_of) if compiled else loss_of

        def call() -> None:
            optimizer.zero_grad()
            loss = loss_fn(x)
            loss.backward()
            optimizer.step()
            loss.item()

        return call

    return {"torch eager": step(False), "torch.compile": step(True)}


def evaluations(
    network: str, settings: dict[str, Any], images: np.ndarray, labels: np.ndarray, num_classes: int
) -> dict[str, Callable[[], None]]:
    """By name, functions that evaluate the images eight times, in eager mode."""
    del labels
    if torch is None:
        print("torch is not installed: no comparison")
        return {}
    cvt = network.startswith("cvt")
    model = _cvt(num_classes) if cvt else _resnet(network, settings["width"], num_classes)
    model = model.eval() if cvt else model.eval().to(memory_format=torch.channels_last)
    x = torch.tensor(images.transpose(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)

    def call() -> None:
        with torch.inference_mode():
            for _ in range(8):
                logits, features = model(x.float() / 255.0)
                pooled = features.abs().flatten(2).mean(2)
                logits.numpy(), pooled.numpy()

    return {"torch eager": call}


def _terms(features, onehot):
    """The Gini and KL terms of `[N, C, ...]` features, weight 0.5 each."""
    z = features.abs().flatten(2).mean(2)
    mass = onehot.sum(0)
    s = z.T @ onehot / (mass + EPS)
    p = s / (s.sum(1, keepdim=True) + EPS)
    q = (p.sum(0) + EPS) / (p.sum() + len(mass) * EPS)
    t = mass / mass.sum()
    gini = (1 - (p * p).sum(1)).mean()
    return 0.5 * gini + 0.5 * (torch.xlogy(t, t) - t * torch.log(q)).sum()


def _resnet(name: str, width: int, num_classes: int, large: bool = False):
    expansion, depths = {"resnet18": (1, (2, 2, 2, 2)), "resnet50": (4, (3, 4, 6, 3))}[name]

    def conv_norm(inside, outside, kernel, stride=1):
        conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outside))

    class Block(nn.Module):
        def __init__(self, inside, channels, stride):
            super().__init__()
            out = channels * expansion
            if expansion == 1:
                parts = [conv_norm(inside, channels, 3, stride), conv_norm(channels, out, 3)]
            else:
                parts = [
                    conv_norm(inside, channels, 1),
                    conv_norm(channels, channels, 3, stride),
                    conv_norm(channels, out, 1),
                ]
            self.parts = nn.ModuleList(parts)
            same = stride == 1 and inside == out
            self.shortcut = nn.Identity() if same else conv_norm(inside, out, 1, stride)

        def forward(self, x):
            y = x
            for part in self.parts[:-1]:
                y = part(y).relu()
            return (self.parts[-1](y) + self.shortcut(x)).relu()

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            blocks, inside = [], width
            for stage, depth in enumerate(depths):
                for i in range(depth):
                    channels = width * 2**stage
                    blocks.append(Block(inside, channels, 2 if stage and i == 0 else 1))
                    inside = channels * expansion
            self.stem = conv_norm(3, width, 7, 2) if large else conv_norm(3, width, 3)
            self.pool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
            self.blocks = nn.Sequential(*blocks)
            self.head = nn.Linear(inside, num_classes)

        def forward(self, x):
            features = self.blocks(self.pool(self.stem(x).relu()))
            return self.head(features.mean((2, 3))), features

    return Network()


def _cvt(num_classes: int):
    """Hugging Face's CvT-13, with the features of its last stage."""
    from transformers import CvtConfig, CvtForImageClassification

    whole = CvtForImageClassification(CvtConfig(num_labels=num_classes))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.whole = whole

        def forward(self, x):
            features, token = self.whole.cvt(x, return_dict=False)[:2]
            logits = self.whole.classifier(self.whole.layernorm(token).mean(dim=1))
            return logits, features

    return Network()
