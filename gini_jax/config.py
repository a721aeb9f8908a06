"""The settings of a run: every key with its default, and the rules that values must obey."""

from typing import Any

from ml_collections import ConfigDict

from gini_jax.errors import InputError, unknown_name

# objective -> (impurity term or None, whether the KL term is on)
OBJECTIVES: dict[str, tuple[str | None, bool]] = {
    "ce": (None, False),
    "gini": ("gini", False),
    "kl": (None, True),
    "gini_kl": ("gini", True),
    "entropy_kl": ("entropy", True),
}


def default_config(objective: str | None = None) -> ConfigDict:
    """Every setting of a run, to be changed by a file in configs/ and by the command line.

    Args:
        objective: what stands after the colon of `--config=FILE:objective`; `gini_kl` if nothing.

    Returns:
        A ConfigDict, not yet checked; `check_config` does that once all changes are made.

    Example:
        >>> default_config("ce").objective
        'ce'
    """
    config = ConfigDict()
    config.name = ""  # name of the experiment, the config file's own by convention
    config.objective = objective or "gini_kl"  # ce, gini, kl, gini_kl or entropy_kl
    config.seed = 0
    config.num_epochs = 1
    config.batch_size = 128  # global: over all devices of all processes
    config.grad_accumulation = 1  # parts that a batch is taken in; terms exact, batch norm by part
    config.steps_per_call = 1  # steps in one compiled call, for small networks
    config.eval_batch_size = 1000  # global; the last batch is padded and masked
    config.eval_every_epochs = 1  # evaluation on the validation split
    config.checkpoint_every_epochs = 1  # and at every best validation accuracy
    config.checkpoint_every_minutes = 0.0  # and so often within an epoch; 0: not
    config.debug_nans = False  # name the first module with a NaN if the loss becomes one
    config.profile = False  # trace ten steps of the first epoch into the workdir

    config.dataset = ConfigDict()
    config.dataset.name = "digits"  # digits, or any image classification set of TFDS
    config.dataset.data_dir = ""  # where TFDS keeps its sets; TFDS_DATA_DIR or its default if ""
    config.dataset.test_split = "test"  # of TFDS; validation where test has no labels
    config.dataset.val_size = 0  # examples of TFDS's training split kept for validation
    config.dataset.val_seed = 0  # which ones; the same for every seed of the run
    config.dataset.image_size = 0  # resize to this on decoding; 0: as the images are
    config.dataset.num_classes = 0  # that the data must have; 0: as many as there are
    config.dataset.feed = "auto"  # device: held on each; stream: by the host; auto: what fits

    config.augment = ConfigDict()
    config.augment.crop_padding = 0  # pixels of zero padding before the random crop
    config.augment.resized_crop = 0.0  # resized crops of this share of the area or more; 0: no
    config.augment.flip = False  # mirror left and right, half of the time
    config.augment.policy = ""  # randaugment or trivialaugment
    config.augment.erasing = 0.0  # probability of erasing a random rectangle
    config.augment.cutout = 0  # side of a square that is cut out, pixels
    config.augment.mixup = 0.0  # images and labels mixed, the share from Beta(this, this)
    config.augment.cutmix = 0.0  # a box of another image, likewise; with mixup: either, by batch

    config.model = ConfigDict()
    config.model.name = "resnet18"
    config.model.width = 64  # channels of the first stage
    config.model.stem = "cifar"  # cifar or imagenet
    config.model.dropout = 0.0  # before the last layer
    config.model.dtype = "float32"  # float32 or bfloat16: type of the computation
    config.model.init = ""  # PyTorch weights to start from, .safetensors or .pth
    config.model.remat = False  # recompute activations in the backward pass to save memory

    config.loss = ConfigDict()
    config.loss.layers = ("stage4",)  # the features that the terms act on
    config.loss.ce_weight = 1.0
    config.loss.gini_weight = 0.5  # of the impurity term, Gini or entropy
    config.loss.kl_weight = 0.5
    config.loss.start_epoch = 1  # the terms are off before it; epochs count from 1
    config.loss.label_smoothing = 0.0
    config.loss.running_decay = 0.0  # of the class sums' moving average; 0: the batch alone

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # sgd, adam, adamw or adamax
    config.optimizer.momentum = 0.9  # sgd
    config.optimizer.nesterov = False  # sgd
    config.optimizer.weight_decay = 5e-4  # on every parameter

    config.schedule = ConfigDict()
    config.schedule.name = "cosine"  # constant, step, cosine or onecycle
    config.schedule.learning_rate = 0.1  # the highest
    config.schedule.warmup_epochs = 0.0  # linear from 0
    config.schedule.boundaries = ()  # step: after these epochs ...
    config.schedule.factor = 0.2  # ... times this
    config.schedule.final = 0.0  # cosine: the last value
    config.schedule.onecycle_peak = 0.3  # onecycle: share of the steps before the peak
    return config


def check_config(config: ConfigDict, num_devices: int) -> None:
    """Refuses values that break a rule, before anything is built.

    Args:
        config: the settings.
        num_devices: devices that the global batch is divided over.

    Raises:
        InputError: names the first value that breaks a rule, the rule and the fix.

    Example:
        >>> check_config(default_config("ce"), num_devices=8)
        >>> check_config(default_config("cee"), num_devices=8)
        Traceback (most recent call last):
        gini_jax.errors.InputError: unknown objective 'cee'; did you mean 'ce'? Known: ce, ...
    """
    if config.objective not in OBJECTIVES:
        raise unknown_name("objective", config.objective, OBJECTIVES)
    at_least = {
        "seed": 0,
        "num_epochs": 1,
        "eval_every_epochs": 1,
        "checkpoint_every_epochs": 1,
        "checkpoint_every_minutes": 0,
        "grad_accumulation": 1,
        "steps_per_call": 1,
        "dataset.val_size": 0,
        "dataset.image_size": 0,
        "dataset.num_classes": 0,
        "augment.crop_padding": 0,
        "augment.cutout": 0,
        "augment.mixup": 0,
        "augment.cutmix": 0,
        "loss.start_epoch": 1,
        "loss.gini_weight": 0,
        "loss.kl_weight": 0,
        "optimizer.weight_decay": 0,
    }
    for path, least in at_least.items():
        if (value := _get(config, path)) < least:
            raise InputError(f"{path}={value} must be at least {least}: --config.{path}={least}")
    for key, parts in (("batch_size", config.grad_accumulation), ("eval_batch_size", 1)):
        if config[key] <= 0 or config[key] % (num_devices * parts):
            below = max(config[key] // (num_devices * parts), 1) * num_devices * parts
            in_parts = f" times grad_accumulation={parts}" if parts > 1 else ""
            raise InputError(
                f"{key}={config[key]} does not divide over {num_devices} devices{in_parts}; it "
                f"must be a positive multiple, such as --config.{key}={below}"
            )
    for path in ("augment.resized_crop", "augment.erasing"):
        if not 0 <= (value := _get(config, path)) <= 1:
            raise InputError(f"{path}={value} must lie in [0, 1]; set --config.{path}")
    if config.augment.resized_crop and config.augment.crop_padding:
        raise InputError(
            f"augment.resized_crop={config.augment.resized_crop} takes the place of padded crops; "
            "set --config.augment.crop_padding=0"
        )
    for path in ("loss.running_decay", "loss.label_smoothing", "model.dropout"):
        if not 0 <= (value := _get(config, path)) < 1:
            raise InputError(f"{path}={value} must lie in [0, 1); set --config.{path}")
    if config.schedule.learning_rate <= 0:
        raise InputError(f"schedule.learning_rate={config.schedule.learning_rate} must be above 0")
    if not config.loss.layers:
        raise InputError("loss.layers is empty; name at least one layer, such as ('stage4',)")


def check_layers(layers: tuple[str, ...], known: Any) -> None:
    """Refuses `loss.layers` that the model has no features for.

    Raises:
        InputError: names the layer and the known ones.

    Example:
        >>> check_layers(("stage4",), ["stage3", "stage4"])
    """
    for layer in layers:
        if layer not in known:
            raise unknown_name("layer in loss.layers", layer, known)


def model_settings(config: ConfigDict) -> dict[str, Any]:
    """The attributes of the network that a config sets.

    Example:
        >>> model_settings(default_config())["width"]
        64
    """
    return {key: value for key, value in config.model.items() if key not in ("name", "init")}


def _get(config: ConfigDict, path: str) -> Any:
    for key in path.split("."):
        config = config[key]
    return config
