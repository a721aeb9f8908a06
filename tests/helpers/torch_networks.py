"""Networks of PyTorch to compare with, and their logits."""

import numpy as np

from gini_jax.models import to_torch


def random_statistics(module):
    import torch

    generator = torch.Generator().manual_seed(1)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):  # scales of either sign
            part.weight.data += torch.randn(part.weight.shape, generator=generator)
    return module


def torch_resnet(name, stem, width=16):
    """A ResNet of torch's own layers, in the naming of torchvision."""
    import torch
    from torch import nn

    expansion, depths = {"resnet18": (1, (2, 2, 2, 2)), "resnet50": (4, (3, 4, 6, 3))}[name]

    class Block(nn.Module):
        def __init__(self, inside, channels, stride):
            super().__init__()
            out = channels * expansion
            sizes = [(inside, channels, 3, stride), (channels, channels, 3, 1)]
            if expansion == 4:
                sizes = [(inside, channels, 1, 1), (channels, channels, 3, stride)]
                sizes.append((channels, out, 1, 1))
            self.depth = len(sizes)
            for i, (a, b, kernel, s) in enumerate(sizes, start=1):
                setattr(self, f"conv{i}", nn.Conv2d(a, b, kernel, s, kernel // 2, bias=False))
                setattr(self, f"bn{i}", nn.BatchNorm2d(b))
            self.downsample = None
            if stride != 1 or inside != out:
                self.downsample = nn.Sequential(
                    nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out)
                )

        def forward(self, x):
            y = x
            for i in range(1, self.depth + 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
                y = y.relu() if i < self.depth else y
            return (y + (x if self.downsample is None else self.downsample(x))).relu()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            kernel, stride = (3, 1) if stem == "cifar" else (7, 2)
            self.conv1 = nn.Conv2d(3, width, kernel, stride, kernel // 2, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            inside = width
            for stage, depth in enumerate(depths, start=1):
                blocks = []
                for i in range(depth):
                    channels = width * 2 ** (stage - 1)
                    blocks.append(Block(inside, channels, 2 if i == 0 and stage > 1 else 1))
                    inside = channels * expansion
                setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            self.fc = nn.Linear(inside, 10)

        def forward(self, x):
            x = self.bn1(self.conv1(x)).relu()
            if stem == "imagenet":
                x = nn.functional.max_pool2d(x, 3, 2, 1)
            for stage in range(1, 5):
                x = getattr(self, f"layer{stage}")(x)
            return self.fc(x.mean(dim=(2, 3)))

    torch.manual_seed(0)
    return random_statistics(Net())


def torch_cvt(name, depth=None):
    import torch
    from transformers import CvtConfig, CvtForImageClassification

    torch.manual_seed(0)
    depth = depth or {"cvt13": [1, 2, 10], "cvt21": [1, 4, 16]}[name]
    config = CvtConfig(num_labels=10, depth=list(depth), drop_path_rate=[0.0] * 3)
    net = CvtForImageClassification(config)
    with torch.no_grad():
        for parameter in net.parameters():  # away from the small initial values
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return random_statistics(net)


def random_images(height, width, n=2):
    images = np.random.default_rng(0).normal(size=(n, height, width, 3)).astype(np.float32)
    return images


def relative_error(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def torch_logits(net, images):
    import torch

    with torch.no_grad():
        out = net.eval()(torch.tensor(images.transpose(0, 3, 1, 2)))
    return getattr(out, "logits", out).numpy()


def as_torch(variables, name):
    """Weights in the naming of torchvision or microsoft/CvT, without PyTorch's counters."""
    dialect = "microsoft/CvT" if name.startswith("cvt") else "torchvision or timm"
    weights = to_torch(name, variables, dialect)
    return {key: value for key, value in weights.items() if "num_batches" not in key}
