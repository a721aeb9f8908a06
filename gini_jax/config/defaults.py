"""The settings that every run has: defaults, meanings and rules.

The settings of a component are declared with the component.
"""

from ml_collections import ConfigDict

from gini_jax.config.registry import (
    BELOW_1,
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SETTINGS,
    SHARE,
    Setting,
)
from gini_jax.data.augment import AUGMENTATIONS
from gini_jax.data.loader import FEEDS
from gini_jax.data.protocols import NOISES
from gini_jax.data.sampling import SAMPLERS
from gini_jax.evals import EVALS
from gini_jax.losses.terms import TERMS, weight_of
from gini_jax.models.registry import MODELS
from gini_jax.training.loggers import LOGGERS
from gini_jax.training.optim import OPTIMIZERS
from gini_jax.training.schedules import SCHEDULES
from gini_jax.training.step_metrics import METRICS


def _has_terms(config: ConfigDict) -> bool:
    return any(weight_of(section) for section in config.loss.terms.values())


def _is_folder(config: ConfigDict) -> bool:
    return config.dataset.name == "folder" or _is_own(config)


def _is_own(config: ConfigDict) -> bool:
    """Whether the data come from Hugging Face or from a plugin."""
    return ":" in config.dataset.name


def _sees_images(config: ConfigDict) -> bool:
    """Whether training sees augmented images, or their features."""
    return not config.model.frozen or config.model.views > 0


def _is_frozen(config: ConfigDict) -> bool:
    return bool(config.model.frozen)


def _draws(config: ConfigDict) -> bool:
    drawn = ("val_size", "train_size", "test_size", "labelled", "label_noise")
    return any(config.dataset[key] for key in drawn)


AUGMENT = {
    "augment.crop_padding": Setting(
        0, "pixels of zero padding before the random crop", bounds=NOT_NEGATIVE
    ),
    "augment.resized_crop": Setting(
        0.0, "resized crops of at least this share of the area; 0 disables", bounds=SHARE
    ),
    "augment.flip": Setting(False, "mirror horizontally, with probability 1/2"),
    "augment.mixup": Setting(
        0.0, "mix images and labels, with a coefficient from Beta(this, this)", bounds=NOT_NEGATIVE
    ),
    "augment.cutmix": Setting(
        0.0,
        "paste a box of another image, its area from Beta(this, this); with mixup: one of the two",
        bounds=NOT_NEGATIVE,
    ),
    **{f"augment.{name}": part.setting for name, part in AUGMENTATIONS.items()},
}
SETTINGS.rows |= {
    "name": Setting("", "name of the experiment, by convention that of its config file"),
    "objective": Setting("gini_kl", "name of the terms in loss.terms; set by FILE:OBJECTIVE"),
    "seed": Setting(0, "seed of initialisation, order, augmentation and dropout", bounds=SEED),
    "num_epochs": Setting(1, "epochs of training", bounds=COUNT),
    "batch_size": Setting(
        128,
        "images per step, over all devices of all processes; 0: 8 to 64, chosen by the numbers of "
        "images and classes; schedule.learning_rate, given for 64, is scaled in proportion",
        bounds=NOT_NEGATIVE,
    ),
    "grad_accumulation": Setting(1, "micro-batches per batch; the terms stay exact", bounds=COUNT),
    "steps_per_call": Setting(
        1, "steps per compiled call, for small networks on accelerators", bounds=COUNT
    ),
    "eval_batch_size": Setting(
        1000, "images per evaluation step, over all devices; the last is padded", bounds=COUNT
    ),
    "eval_every_epochs": Setting(1, "epochs between two validations", bounds=COUNT),
    "early_stopping_epochs": Setting(
        0,
        "stop after this many epochs without a better validation; 0: never",
        bounds=NOT_NEGATIVE,
        read_if=lambda config: config.early_stopping_epochs < config.num_epochs,
    ),
    "checkpoint_every_epochs": Setting(
        1, "epochs between two checkpoints; a best validation is always saved", bounds=COUNT
    ),
    "checkpoint_every_minutes": Setting(
        0.0, "also checkpoint this many minutes after the last one; 0 disables", bounds=NOT_NEGATIVE
    ),
    "evals": Setting(
        ("all",),
        "evaluations of the tested checkpoint; accuracy and features always run",
        choices=EVALS,
    ),
    "step_metrics": Setting(
        (),
        "metrics of the training steps besides the loss and accuracy",
        choices=METRICS,
    ),
    "loggers": Setting(
        ("jsonl", "tensorboard"),
        "where metrics go; jsonl, which pictures are drawn from, is always written",
        choices=LOGGERS,
    ),
    "log_every_steps": Setting(
        0, "steps between two logs, besides every epoch; 0: epochs only", bounds=NOT_NEGATIVE
    ),
    "report": Setting(True, "draw curves.png and impurity.png, and write report.html"),
    "debug_nans": Setting(False, "if the loss becomes NaN, name the first module with a NaN"),
    "profile": Setting(False, "trace ten steps of the first epoch into the workdir"),
    "dataset.name": Setting("digits", "digits, folder, hf:NAME_OR_PATH, or a set of TFDS"),
    "dataset.data_dir": Setting(
        "",
        "folder of the data; if empty, TFDS_DATA_DIR or TFDS's default",
        read_if=lambda config: config.dataset.name != "digits",
    ),
    "dataset.test_split": Setting("test", "split to test on, e.g. validation for ImageNet"),
    "dataset.test_size": Setting(
        0,
        "folder, hf: images to test on where there is no test split; 0: a fifth",
        bounds=NOT_NEGATIVE,
        read_if=_is_folder,
    ),
    "dataset.skip_damaged": Setting(
        False, "folder: name and skip images that cannot be read", read_if=_is_folder
    ),
    "dataset.image_column": Setting(
        "", "hf: column of the images; found if empty", read_if=_is_own
    ),
    "dataset.label_column": Setting(
        "", "hf: column of the classes; found if empty", read_if=_is_own
    ),
    "dataset.val_size": Setting(0, "training images held out for validation", bounds=NOT_NEGATIVE),
    "dataset.val_seed": Setting(
        0,
        "seed of the draws of val_size, train_size, labelled and label_noise; the same for all "
        "seeds of the run",
        bounds=SEED,
        read_if=_draws,
    ),
    "dataset.train_size": Setting(
        0, "train on a class-balanced subset of this size; 0 takes all", bounds=NOT_NEGATIVE
    ),
    "dataset.labelled": Setting(
        0,
        "training images of each class that keep their label; the network labels the others; 0: "
        "all",
        bounds=NOT_NEGATIVE,
    ),
    "dataset.held_out_classes": Setting(
        0, "the last classes, kept out of all splits; benches use them", bounds=NOT_NEGATIVE
    ),
    "dataset.superclasses": Setting(
        False, "superclasses are the classes; held_out_classes are the last ones of each"
    ),
    "dataset.label_noise": Setting(
        0.0, "share of the labelled training images that get a wrong label", bounds=SHARE
    ),
    "dataset.label_noise_kind": Setting(
        "symmetric",
        "symmetric: any other class; pairwise: the next one",
        choices=tuple(NOISES),
        read_if=lambda config: config.dataset.label_noise,
    ),
    "dataset.sampler": Setting(
        "shuffled",
        "class_balanced: batches of batch_size / examples_per_class random classes",
        choices=SAMPLERS,
    ),
    "dataset.examples_per_class": Setting(
        4,
        "class_balanced: examples of each class in a batch",
        bounds=COUNT,
        read_if=lambda config: config.dataset.sampler == "class_balanced",
    ),
    "dataset.image_size": Setting(
        0,
        "side of the images that the network sees; 0 keeps the size that the data set declares",
        bounds=NOT_NEGATIVE,
    ),
    "dataset.num_classes": Setting(
        0, "number of classes that the data must have; 0 accepts any", bounds=NOT_NEGATIVE
    ),
    "dataset.mean": Setting(
        (), "subtracted from pixels in [0, 1]: three numbers, or imagenet; (): 0, as in the paper"
    ),
    "dataset.std": Setting(
        (), "what pixels are then divided by: three numbers, or imagenet; (): 1"
    ),
    "dataset.feed": Setting(
        "auto",
        "device: held on each device; stream: from the host; auto: device if it fits",
        choices=tuple(FEEDS),
    ),
    **{path: row._replace(read_if=_sees_images) for path, row in AUGMENT.items()},
    "model.name": Setting(
        "resnet18",
        "the network",
        choices=MODELS,
    ),
    "model.init": Setting(
        "",
        "weights to start from: a .safetensors or .pth file of PyTorch, a run's folder, or "
        "pip:NAME, the file in an installed package",
    ),
    "model.frozen": Setting(
        False,
        "run the network once; a hidden layer and the last layer learn on its features",
    ),
    "model.hidden": Setting(
        256,
        "frozen: units of the hidden layer, whose features the terms act on; 0: no such layer",
        bounds=NOT_NEGATIVE,
        read_if=_is_frozen,
    ),
    "model.views": Setting(
        0,
        "frozen: augmented views of each training image whose features are kept, besides its own",
        bounds=NOT_NEGATIVE,
        read_if=_is_frozen,
    ),
    "loss.layers": Setting(("stage4",), "layers whose features the terms act on"),
    "loss.ce_weight": Setting(1.0, "weight of cross-entropy", bounds=NOT_NEGATIVE),
    "loss.start_epoch": Setting(
        1, "first epoch with the terms, counted from 1", bounds=COUNT, read_if=_has_terms
    ),
    "loss.ramp_epochs": Setting(
        0.0,
        "epochs over which the weights rise from 0, from start_epoch on",
        bounds=NOT_NEGATIVE,
        read_if=_has_terms,
    ),
    "loss.hold_gradient_ratios": Setting(
        False,
        "weights are gradient ratios: each term's gradient is held at weight times cross-entropy's",
        read_if=_has_terms,
    ),
    "loss.class_weights": Setting(
        (), "weights in cross-entropy: balanced (inverse to class frequency), or one per class"
    ),
    "loss.label_smoothing": Setting(
        0.0, "share of the label that is spread evenly over the classes", bounds=BELOW_1
    ),
    "loss.pseudo_confidence": Setting(
        0.95,
        "with dataset.labelled: the network's own label counts if its confidence is at least this",
        bounds=SHARE,
        read_if=lambda config: config.dataset.labelled,
    ),
    "loss.running_decay": Setting(
        0.0,
        "decay of the class sums' moving average; 0 uses only the batch",
        bounds=BELOW_1,
        read_if=_has_terms,
    ),
    "optimizer.name": Setting(
        "sgd",
        "the optimiser",
        choices=OPTIMIZERS,
    ),
    "optimizer.weight_decay": Setting(
        5e-4, "weight decay, on every parameter", bounds=NOT_NEGATIVE
    ),
    "optimizer.clip_norm": Setting(
        0.0, "largest global norm of the gradient; 0 disables clipping", bounds=NOT_NEGATIVE
    ),
    "optimizer.ema_decay": Setting(
        0.0, "decay of a moving average of the weights to evaluate; 0 disables", bounds=BELOW_1
    ),
    "optimizer.groups": Setting(
        (),
        "factors of the learning rate, and weight decay or not, by patterns over the parameters' "
        "names; the first that matches counts: (('head/.*', 10.0), ('.*/bias', 1.0, 0.0))",
    ),
    "schedule.name": Setting(
        "cosine",
        "learning-rate schedule",
        choices=SCHEDULES,
    ),
    "schedule.learning_rate": Setting(0.1, "highest learning rate", bounds=POSITIVE),
    "schedule.warmup_epochs": Setting(0.0, "epochs of linear warm-up from 0", bounds=NOT_NEGATIVE),
}

SETTINGS.sections |= {"model": MODELS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}
SETTINGS.keyed |= {"loss.terms": TERMS, "augment": AUGMENTATIONS}
