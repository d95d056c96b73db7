"""Every setting of a run: one tree of frozen dataclasses, with bounds and validation. Standard library only.

A field is declared with `setting(default, help, ...)`. Its bounds and choices are the field's metadata, which the flag, its help text
and its validation read. So the three cannot disagree. `flags.py` makes one flag for each field.
"""

import dataclasses
import enum
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

from cifar_keras.errors import UserError
from cifar_keras.models.backbones import BACKBONES


class DatasetKind(enum.StrEnum):
    """The kinds of data sets. Each has a row in `data.datasets`."""

    CIFAR10 = "cifar10"
    CIFAR100 = "cifar100"
    FOLDER = "folder"
    CSV = "csv"
    TFDS = "tfds"
    SYNTHETIC = "synthetic"


# After these kinds follows a colon, and what it names: a folder, a file or a TFDS set.
WITH_A_PLACE = {DatasetKind.FOLDER: "DIR", DatasetKind.CSV: "FILE", DatasetKind.TFDS: "NAME"}
DATASETS_IN_WORDS = ", ".join(f"{kind}:{WITH_A_PLACE[kind]}" if kind in WITH_A_PLACE else kind for kind in DatasetKind)


class DatasetAddress(NamedTuple):
    """What `--dataset` names."""

    kind: DatasetKind
    place: str  # "" if the kind says all


class BadImages(enum.StrEnum):
    """What happens if files of a data set cannot be used: the run is refused, or leaves them out."""

    REFUSE = "refuse"
    SKIP = "skip"


class DataSource(enum.StrEnum):
    """The source of CIFAR-10. AUTO tries PREPARED, ARCHIVE, NPM and TFDS in this order. SYNTHETIC is `--dataset=synthetic`."""

    AUTO = "auto"
    PREPARED = "prepared"
    ARCHIVE = "archive"
    NPM = "npm"
    TFDS = "tfds"
    SYNTHETIC = "synthetic"


class OptimizerName(enum.StrEnum):
    """SGD is stochastic gradient descent with momentum; ADAMW is Adam with decoupled weight decay (arXiv:1711.05101)."""

    SGD = "sgd"
    ADAMW = "adamw"


class ComputeDtype(enum.StrEnum):
    """The dtype of activations. AUTO chooses by the processor's instruction sets and a short measurement."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class KernelGradientChoice(enum.StrEnum):
    """How kernel gradients are computed. AUTO takes for each shape what is measured to be faster."""

    AUTO = "auto"
    CONVOLUTION = "convolution"
    MATMUL = "matmul"


class Resume(enum.StrEnum):
    """Whether a run continues from its last checkpoint. AUTO continues if there is a run to continue."""

    NO = "no"
    YES = "yes"
    AUTO = "auto"


class Divergence(enum.StrEnum):
    """What happens if the loss is not finite: the run stops, or goes back to the last checkpoint at half the learning rate."""

    STOP = "stop"
    ROLLBACK = "rollback"


class TeacherView(enum.StrEnum):
    """What a teacher looks at: the augmented view that its student learns from, or the image and its mirror image."""

    AUGMENTED = "augmented"
    PLAIN = "plain"


class ChooseBy(enum.StrEnum):
    """The measure of the validation split that chooses the best epoch. Each is the metric's name in the log."""

    ACCURACY = "accuracy"
    BALANCED_ACCURACY = "balanced_accuracy"
    MACRO_F1 = "macro_f1"
    CROSS_ENTROPY = "cross_entropy"


class Views(enum.StrEnum):
    """The views that test-time augmentation averages: an image and its mirror image, or both and both moved by a pixel."""

    NONE = "none"
    FLIP = "flip"
    FLIP_AND_SHIFTS = "flip_and_shifts"


def setting(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare a field: its default, its help text, and its bounds.

    `minimum` and `maximum` are allowed values, `above` and `below` are not. Give a float a limit on both sides: that keeps out
    infinity, and NaN, for which no comparison holds.
    """
    bounds = {"minimum": minimum, "maximum": maximum, "above": above, "below": below}
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, **bounds})


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Images, their splits and batches."""

    dataset: str = setting(
        "cifar10",
        f"data set: {DATASETS_IN_WORDS}. folder is DIR/CLASS/* or DIR/{{train,val,test}}/CLASS/*; csv has the columns file_name, label and "
        "perhaps split; tfds is a set of TFDS with image and label, as NAME or NAME/CONFIG; synthetic is a small set that is drawn",
    )
    data_source: DataSource = setting(
        DataSource.AUTO,
        "source of CIFAR-10; auto tries prepared, archive, npm and tfds in this order; synthetic is the same as --dataset=synthetic",
    )
    synthetic_classes: int = setting(
        10, "classes of the synthetic set; each has 40 training and 10 test images", minimum=2, maximum=1000
    )
    data_dir: str = setting("~/tensorflow_datasets", "TFDS folder of the images; made where it is missing")
    archive: str = setting(
        "",
        "official cifar-10-binary.tar.gz or cifar-10-python.tar.gz; empty: either one in DATA_DIR or DATA_DIR/downloads/manual",
    )
    validation_share: float = setting(
        0.1,
        "fraction of the train set that is held out as the validation split, stratified by class, if the data set has none",
        above=0,
        below=1,
    )
    test_share: float = setting(
        0.2,
        "fraction of the train set that is held out as the test split, stratified by class, if the data set has none; it is taken before "
        "the validation split",
        above=0,
        below=1,
    )
    stored_size: int = setting(
        0,
        "side in pixels in which the pictures of a folder, csv or tfds set are stored: the central square, resized. 0: the largest image "
        "size of the run; or the size that the pictures have, if it is the same for all and at most four times the pixels",
        minimum=0,
        maximum=2048,
    )
    bad_images: BadImages = setting(
        BadImages.REFUSE,
        "what happens if files of the set are broken, empty, too large or wrongly named. refuse: the run ends and names them. skip: it "
        "leaves them out and lists them in skipped_images.csv",
    )
    allow_duplicates: bool = setting(
        False, "train although a picture lies in two splits or has two labels; pictures with equal pixels are all kept"
    )
    cache_dir: str = setting("~/.cache/cifar_keras", "folder for decoded pictures, so that they are decoded only once")
    global_batch_size: int = setting(64, "images per step, over all devices together", minimum=1, maximum=65536)


@dataclasses.dataclass(frozen=True)
class SubsetConfig:
    """Subset: which images and labels of the data set a run learns from."""

    classes: str = setting("", "names of the classes that are kept in all splits, with commas between; empty: all")
    examples_per_class: int = setting(
        0, "images of each class that the train split keeps, drawn by the seed; 0: all", minimum=0
    )
    label_noise: float = setting(
        0.0,
        "fraction of the training labels that another class replaces, drawn by the seed; for studies. Validation and test stay as they are",
        minimum=0,
        below=1,
    )
    exclude: str = setting(
        "",
        "CSV file with the column name of training images to leave out, such as suspect_labels.csv of explain; an image whose column "
        "new_label is not empty gets that label instead",
    )


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """Augmentation: random changes to training images at their own size, before any resize."""

    flip: bool = setting(True, "mirror half of the images")
    crop_padding: int = setting(
        4,
        "pixels that are padded on each side by reflection, before a random crop to the old size; less than the side of the images; "
        "0 is off",
        minimum=0,
        maximum=2048,
    )
    resized_crop_scale: float = setting(
        1.0,
        "smallest area of the random part that is enlarged to the whole image, as a fraction of the image's; 0.08 is usual for ImageNet; "
        "1 is off",
        above=0,
        maximum=1,
    )
    # As in torchvision, and in arXiv:1409.4842, section 6.
    resized_crop_ratio: float = setting(
        4 / 3,
        "largest factor by which the aspect ratio of that part is above or below the image's; 1 keeps it",
        minimum=1,
        maximum=100,
    )
    rotation_degrees: float = setting(
        0.0, "largest rotation to either side, in degrees; 0 is off", minimum=0, maximum=180
    )
    zoom: float = setting(0.0, "largest zoom in or out, as a fraction of the side; 0 is off", minimum=0, below=1)
    color_jitter: float = setting(
        0.0, "largest relative change of brightness, contrast and saturation; 0 is off", minimum=0, maximum=1
    )
    cutout: int = setting(
        0, "side of the square that is blanked out, in pixels (keras-cv); 0 is off", minimum=0, maximum=2048
    )
    grid_mask: float = setting(
        0.0,
        "side of the blanked squares, as a fraction of the grid cell's side (keras-cv GridMask); 0 is off",
        minimum=0,
        below=1,
    )
    mixup_alpha: float = setting(
        0.0,
        "MixUp (arXiv:1710.09412): each image is blended with another, and so are their labels, by a weight from Beta(alpha, alpha); "
        "0.2 is usual; 0 is off",
        minimum=0,
        maximum=100,
    )
    cutmix_alpha: float = setting(
        0.0,
        "CutMix (arXiv:1905.04899): a rectangle of each image is replaced by another's, and the labels are mixed by its area, from "
        "Beta(alpha, alpha); 1 is usual; 0 is off. With MixUp, each image takes one of both",
        minimum=0,
        maximum=100,
    )
    unmixed_share: float = setting(
        0.0,
        "fraction of the steps of a phase, at its end, in which no images are mixed",
        minimum=0,
        maximum=1,
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network and its initial weights."""

    backbone: str = setting(
        "resnet50",
        "network of keras.applications; or resnet9 or resnet20, small networks without ImageNet weights",
        choices=tuple(sorted(BACKBONES)),
    )
    weights: str = setting(
        "imagenet",
        "initial weights of the backbone: imagenet, none (random), or the path of a .weights.h5, .h5 or .keras file",
    )
    image_size: int = setting(64, "side in pixels to which the model resizes its input", minimum=1, maximum=2048)
    dropout: float = setting(0.0, "fraction of the pooled features that is dropped in training", minimum=0, below=1)


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """Distillation: learning from a teacher's logits and from the labels (arXiv:1503.02531)."""

    teacher: str = setting("", "workdir of the run whose model teaches; empty: no teacher")
    distillation_weight: float = setting(
        0.9,
        "fraction of the loss that is the distance from the teacher; the rest comes from the labels",
        above=0,
        maximum=1,
    )
    distillation_temperature: float = setting(
        4.0, "temperature that divides the logits of teacher and student in that distance", above=0, maximum=100
    )
    teacher_view: TeacherView = setting(
        TeacherView.AUGMENTED,
        "view of an image that the teacher looks at. augmented: the view that its student learns from. plain: the image and its "
        "mirror image, whose mean logits are computed once",
    )


# Values of `--class_weights` that are no files.
NO_WEIGHTS, AUTO_WEIGHTS = "none", "auto"


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Objective: how much each class counts, and what the best epoch is best at."""

    class_weights: str = setting(
        NO_WEIGHTS,
        "weight of each class in the training loss: none (all count 1), auto (inversely proportional to the class's images in the train "
        'split, with mean 1 over these images), or a JSON file {"CLASS NAME": WEIGHT, ...} with all classes',
    )
    choose_by: ChooseBy = setting(
        ChooseBy.ACCURACY,
        "validation metric that chooses the best epoch, and that early stopping watches. Equal epochs are decided by the cross-entropy, "
        "or by the accuracy if that is the metric",
    )


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How the network is computed.

    These settings change results by rounding alone, with one exception. If cached features do not fit into `cache_gib`, a phase learns
    from images, with every augmentation that is set.
    """

    compute_dtype: ComputeDtype = setting(
        ComputeDtype.AUTO,
        "dtype of activations in training; weights and exports stay float32. Where the processor has bfloat16, auto measures "
        "whether it is faster (with --deterministic, auto takes it without measuring)",
    )
    kernel_gradient: KernelGradientChoice = setting(
        KernelGradientChoice.AUTO,
        "how kernel gradients are computed: as a convolution or as matrix products; auto takes for each shape what is measured to "
        "be faster (with --deterministic: the convolution)",
    )
    cache_gib: float = setting(
        4.0,
        "largest memory for cached features, in GiB; computing them needs twice as much",
        minimum=0,
        maximum=65536,
    )


_CACHED_FEATURES = (
    "compute the features of the frozen layers once, for each image and (with --flip) its mirror image, and learn from them "
    "without other augmentation; used only if it saves work and the features fit into --cache_gib"
)


@dataclasses.dataclass(frozen=True)
class PhaseConfig:
    """One phase of training: its length, optimizer and schedule."""

    epochs: int = setting(1, "epochs of this phase; 0 leaves it out", minimum=0, maximum=100_000)
    steps_per_epoch: int = setting(
        0, "steps in an epoch of this phase; 0: every whole batch of the train split", minimum=0
    )
    image_size: int = setting(
        0,
        "side in pixels to which images are resized in this phase; 0: --image_size, at which the model is evaluated",
        minimum=0,
        maximum=2048,
    )
    optimizer: OptimizerName = setting(OptimizerName.SGD, "optimizer of this phase")
    learning_rate: float = setting(
        0.01, "highest learning rate of this phase, at the end of the warm-up", above=0, maximum=100
    )
    momentum: float = setting(0.9, "momentum of sgd in this phase", minimum=0, below=1)
    weight_decay: float = setting(
        0.0,
        "decoupled weight decay of kernels in this phase, multiplied by the learning rate at each step",
        minimum=0,
        maximum=1,
    )
    warmup_share: float = setting(
        0.1,
        "fraction of the steps of this phase over which the learning rate rises to its highest value",
        minimum=0,
        maximum=1,
    )
    label_smoothing: float = setting(
        0.0, "fraction of each label that is spread over all classes in this phase", minimum=0, below=1
    )
    cached_features: bool = setting(False, _CACHED_FEATURES)
    early_stopping_patience: int = setting(
        0,
        "epochs without a better validation metric, the one that --choose_by names, after which this phase stops; 0: never",
        minimum=0,
    )


@dataclasses.dataclass(frozen=True)
class HeadConfig(PhaseConfig):
    """The head phase: the backbone is frozen and only the new head learns."""

    # Pooled features are far from unit scale (a ResNet50's have a norm near 30), which Adam does not mind.
    optimizer: OptimizerName = setting(OptimizerName.ADAMW, "optimizer of this phase")
    learning_rate: float = setting(
        0.001, "highest learning rate of this phase, at the end of the warm-up", above=0, maximum=100
    )
    cached_features: bool = setting(True, _CACHED_FEATURES)


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(PhaseConfig):
    """The finetune phase: the backbone learns too, at a low rate."""

    epochs: int = setting(3, "epochs of this phase; 0 leaves it out", minimum=0, maximum=100_000)
    learning_rate: float = setting(
        0.003, "highest learning rate of this phase, at the end of the warm-up", above=0, maximum=100
    )
    label_smoothing: float = setting(
        0.1, "fraction of each label that is spread over all classes in this phase", minimum=0, below=1
    )
    unfreeze_from: str = setting(
        "",
        "first block group of the backbone that learns, such as conv4 of a ResNet; empty: the whole backbone. A list with commas has one "
        "for each stage of this phase; conv5,conv3, ends with the whole backbone",
    )
    image_sizes: str = setting(
        "",
        "image sizes in pixels of the stages of this phase, with commas between, such as 64,96,128. The stages share one learning "
        "rate schedule and one optimizer state. Empty: --finetune_image_size in all stages",
    )
    stage_epochs: str = setting(
        "",
        "epochs of the stages of this phase, with commas between; their sum is --finetune_epochs. Empty: equally many each",
    )
    sparsity: float = setting(
        0.0,
        "fraction of each learning convolution's weights that is set to zero, smallest first; 0 is off",
        minimum=0,
        below=1,
    )
    sparsity_ramp: float = setting(
        0.5,
        "fraction of this phase over which weights are set to zero; in the rest of it the other weights recover",
        above=0,
        maximum=1,
    )
    train_batch_norm: bool = setting(
        False,
        "let BatchNormalization learn too, synchronized over devices; otherwise its statistics and scales stay frozen",
    )


CORRUPTION_SUITE = "corruptions"
TEST_SETS = (CORRUPTION_SUITE, "cifar10_1", "cifar10_corrupted", "cifar10_h", "cifar10_n")
OF_SEVERAL = ("cifar10_1", "cifar10_corrupted")  # of these a "/" and a TFDS config may follow


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Robustness: what is measured in addition to the splits of the run."""

    test_time_augmentation: Views = setting(
        Views.NONE,
        "also measure test by the mean logits of an image and its mirror image (flip), or of both and both moved by a pixel "
        "(flip_and_shifts); the served model stays the same",
    )
    test_sets: str = setting(
        "",
        "other test sets, with commas between: corruptions, which are made here; and cifar10_1, cifar10_corrupted, cifar10_h and "
        "cifar10_n, where TFDS has prepared them in DATA_DIR",
    )
    unknown: str = setting(
        "",
        "pictures of none of the classes, as folder:DIR; measures how well the largest probability tells them from the test images",
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints: how a run survives.

    They change the result of a run only if it rolls back to the last checkpoint.
    """

    resume: Resume = setting(
        Resume.NO,
        "continue the run in WORKDIR at the exact step of its last checkpoint. --resume needs a run there; --resume=auto begins one if "
        "there is none",
    )
    checkpoint_every_steps: int = setting(
        200,
        "steps from one checkpoint to the next; 0: at the ends of epochs only",
        minimum=0,
    )
    keep_checkpoints: int = setting(2, "number of newest checkpoints that are kept", minimum=1, maximum=1000)
    divergence: Divergence = setting(
        Divergence.STOP,
        "what happens if the loss is not finite: stop, or rollback to the last checkpoint at half the learning rate, three times at most",
    )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that a run depends on, except the machine and the versions of libraries."""

    workdir: str = setting(
        "runs/latest", "folder for everything that the run writes; has to be new or empty, except with --resume"
    )
    seed: int = setting(
        0,
        "seed of all random draws: validation split, random weights, batches, augmentation, dropout, intervals and corruptions",
        minimum=0,
        maximum=2**31 - 1,
    )
    deterministic: bool = setting(False, "use TensorFlow operations that give the same bits in every run (slower)")
    virtual_devices: int = setting(
        0,
        "split the CPU into this many devices, to run the multi-device code on any machine; 0: do not split",
        minimum=0,
        maximum=16,
    )
    source_timeout_seconds: float = setting(
        60.0, "seconds without progress after which a source of data or weights is given up", above=0, maximum=86400
    )
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    subset: SubsetConfig = dataclasses.field(default_factory=SubsetConfig)
    augmentation: AugmentationConfig = dataclasses.field(default_factory=AugmentationConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    distillation: DistillationConfig = dataclasses.field(default_factory=DistillationConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    finetune: FinetuneConfig = dataclasses.field(default_factory=FinetuneConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)


MOST_IN_A_LIST = 100_000

# A resumed run may change these: where files lie, robustness, and how the run survives. That the images of another folder are the same
# is checked by their digest.
FREE_WHEN_RESUMED = (
    *("workdir", "dataset", "data_dir", "archive", "cache_dir", "source_timeout_seconds"),
    *("test_sets", "test_time_augmentation", "unknown"),
    *("resume", "checkpoint_every_steps", "keep_checkpoints", "divergence"),
)


class Setting(NamedTuple):
    """A leaf of the config tree, with the name of its flag."""

    flag: str
    section: str  # "" for a field of RunConfig itself
    field: dataclasses.Field[Any]
    type: type[bool | int | float | str]  # an enum is a str


# The phases, in their order. They share their fields, so their flags begin with the phase's name. Every other field name is unique.
PHASES = ("head", "finetune")


def settings_of(section_type: type = RunConfig, section: str = "") -> list[Setting]:
    """List the leaves of a config dataclass in the order of declaration, e.g. `--head_epochs` for `RunConfig.head.epochs`."""
    leaves: list[Setting] = []
    hints = typing.get_type_hints(section_type)
    for field in dataclasses.fields(section_type):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            leaves += settings_of(typing.cast(type, kind), field.name)
        else:
            flag = f"{section}_{field.name}" if section in PHASES else field.name
            leaves.append(Setting(flag, section, field, kind))
    return leaves


def value_of(config: RunConfig, leaf: Setting) -> Any:
    """Return the value of one leaf."""
    return getattr(getattr(config, leaf.section) if leaf.section else config, leaf.field.name)


def with_later_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that an earlier run kept, completed by what runs did before later settings existed."""
    then = {"teacher_view": str(TeacherView.PLAIN)} if values.get("teacher") else {}
    return to_values(RunConfig()) | then | dict(values)


def from_values(values: dict[str, Any]) -> RunConfig:
    """Build a config from flag names and values. Settings that are not named keep their defaults.

    Raises:
        UserError: a name is not a setting, or a value is not of the setting's type.
    """
    leaves = {leaf.flag: leaf for leaf in settings_of()}
    unknown = sorted(set(values) - set(leaves))
    if unknown:
        raise UserError(f"a config has no setting of this name. Received: {', '.join(unknown)}")
    by_section: dict[str, dict[str, Any]] = {leaf.section: {} for leaf in leaves.values()}
    for flag, value in values.items():
        leaf = leaves[flag]
        by_section[leaf.section][leaf.field.name] = _typed(leaf, value)
    return RunConfig(
        **by_section[""],
        data=DataConfig(**by_section["data"]),
        subset=SubsetConfig(**by_section["subset"]),
        augmentation=AugmentationConfig(**by_section["augmentation"]),
        model=ModelConfig(**by_section["model"]),
        distillation=DistillationConfig(**by_section["distillation"]),
        objective=ObjectiveConfig(**by_section["objective"]),
        compute=ComputeConfig(**by_section["compute"]),
        head=HeadConfig(**by_section["head"]),
        finetune=FinetuneConfig(**by_section["finetune"]),
        evaluation=EvaluationConfig(**by_section["evaluation"]),
        checkpoint=CheckpointConfig(**by_section["checkpoint"]),
    )


def to_values(config: RunConfig) -> dict[str, Any]:
    """Return flag names and plain values (str, int, float, bool), ready for JSON; the inverse of `from_values`."""
    return {leaf.flag: _plain(value_of(config, leaf)) for leaf in settings_of()}


def dataset_of(settings: DataConfig) -> DatasetAddress:
    """Return the data set of the settings: `--dataset`, or synthetic by `--data_source=synthetic`.

    Raises:
        UserError: there is no such data set.

    Examples:
        >>> dataset_of(DataConfig(dataset="folder:photos"))
        DatasetAddress(kind=<DatasetKind.FOLDER: 'folder'>, place='photos')
    """
    kind, colon, place = settings.dataset.partition(":")
    if kind not in tuple(DatasetKind) or bool(colon and place) != (kind in WITH_A_PLACE) or (colon and not place):
        raise UserError(f"--dataset has to be one of {DATASETS_IN_WORDS}. Received: {settings.dataset!r}")
    if settings.data_source is DataSource.SYNTHETIC:
        return DatasetAddress(DatasetKind.SYNTHETIC, "")
    return DatasetAddress(DatasetKind(kind), place)


def largest_image_size(config: RunConfig) -> int:
    """Return the largest size in pixels to which a run resizes images, in any of its phases or in the evaluation."""
    stages = [size for size, _, _ in finetune_stages(config.finetune)]
    return max(config.model.image_size, config.head.image_size, *stages)


def other_sets_of(settings: EvaluationConfig) -> list[str]:
    """Return the names of the test sets that TFDS has to have prepared."""
    return [name for name in settings.test_sets.split(",") if name not in ("", CORRUPTION_SUITE)]


def validate(config: RunConfig) -> None:
    """Check bounds, choices and the combinations that cannot work, without touching disk, network or TensorFlow.

    Raises:
        UserError: the first setting that is wrong; the message names its flag.
    """
    for leaf in settings_of():
        _check_bounds(leaf, value_of(config, leaf))
    row = BACKBONES[config.model.backbone]
    if config.model.image_size < row.minimum_size:
        raise UserError(
            f"--image_size has to be at least {row.minimum_size} for --backbone={config.model.backbone}. "
            f"Received: {config.model.image_size}"
        )
    for name, phase in _phases_of(config):
        if 0 < phase.image_size < row.minimum_size:
            raise UserError(
                f"--{name}_image_size has to be 0 or at least {row.minimum_size} for --backbone={config.model.backbone}. "
                f"Received: {phase.image_size}"
            )
    _check_stages(config.finetune, config.model.backbone)
    if config.model.weights == "imagenet" and not row.weights_file:
        raise UserError(
            f"--weights=imagenet: there are none for this network; --weights=none begins with random ones. "
            f"Received: --backbone={config.model.backbone}"
        )
    if config.head.epochs + config.finetune.epochs == 0:
        raise UserError(
            "--head_epochs and --finetune_epochs cannot both be 0: nothing would be trained. Received: 0 and 0"
        )
    _check_combinations(config)


def _check_combinations(config: RunConfig) -> None:
    _check_data(config)
    if not config.objective.class_weights:
        raise UserError("--class_weights has to be none, auto or the path of a JSON file. Received: ''")
    if config.virtual_devices > config.data.global_batch_size:
        raise UserError(
            f"--global_batch_size has to be at least --virtual_devices, so that each device gets an image. "
            f"Received: {config.data.global_batch_size} and {config.virtual_devices}"
        )
    for name, phase in _phases_of(config):
        if phase.optimizer is OptimizerName.ADAMW and phase.momentum != PhaseConfig.momentum:
            raise UserError(f"--{name}_momentum is for sgd; adamw does not use it. Received: {phase.momentum}")
    if config.finetune.sparsity and not config.finetune.epochs:
        raise UserError(f"--finetune_sparsity needs a finetune phase. Received: {config.finetune.sparsity}")
    _check_mixing(config)
    _check_test_sets(config)
    unknown_folder_of(config.evaluation)
    if config.model.weights == "none" and config.finetune.epochs == 0:
        raise UserError(
            "--weights=none needs a finetune phase: a head on random features learns little. Received: --finetune_epochs=0"
        )


def _check_mixing(config: RunConfig) -> None:
    alphas = {name: getattr(config.augmentation, name) for name in ("mixup_alpha", "cutmix_alpha")}
    flags = " and ".join(f"--{name}" for name, alpha in alphas.items() if alpha)
    if not flags:
        return
    if config.data.global_batch_size < 2:
        raise UserError(f"{flags} needs another image in each batch. Received: --global_batch_size=1")
    trained = {name: phase for name, phase in _phases_of(config) if phase.epochs}
    if all(phase.cached_features for phase in trained.values()):
        received = " and ".join(f"--{name}_cached_features" for name in trained)
        raise UserError(f"{flags} needs a phase that learns from images, without cached features. Received: {received}")
    if config.distillation.teacher and config.distillation.teacher_view is TeacherView.PLAIN:
        raise UserError(
            f"{flags} needs a teacher that looks at the mixed image: --teacher_view=augmented. Received: --teacher_view=plain"
        )


def _check_data(config: RunConfig) -> None:
    data = config.data
    for flag, folder in (("workdir", config.workdir), ("data_dir", data.data_dir), ("cache_dir", data.cache_dir)):
        if not folder:
            raise UserError(f"--{flag} has to name a folder. Received: ''")
    if data.archive and data.data_source not in (DataSource.AUTO, DataSource.ARCHIVE):
        raise UserError(
            f"--archive is read with --data_source=archive or auto only. Received: --data_source={data.data_source}"
        )
    kind = dataset_of(data).kind
    if data.archive and kind not in (DatasetKind.CIFAR10, DatasetKind.CIFAR100):
        raise UserError(f"--archive is for cifar10 and cifar100 alone. Received: --dataset={data.dataset}")
    for name in ("test_share", "stored_size", "bad_images", "allow_duplicates"):
        if kind not in WITH_A_PLACE and getattr(data, name) != getattr(DataConfig, name):
            raise UserError(
                f"--{name} is for the pictures of a folder, csv or tfds set. Received: --dataset={data.dataset}"
            )


def _phases_of(config: RunConfig) -> list[tuple[str, PhaseConfig]]:
    return [(name, getattr(config, name)) for name in PHASES]


def finetune_stages(settings: FinetuneConfig) -> list[tuple[int, str, int]]:
    """Return each stage of the finetune phase: image size (0 is the model's), first block group that learns, and epochs.

    Raises:
        UserError: the lists of the settings do not fit together.
    """
    sizes = [_whole("finetune_image_sizes", text, settings.image_sizes) for text in _listed(settings.image_sizes)]
    if sizes and settings.image_size:
        raise UserError(
            "--finetune_image_sizes and --finetune_image_size cannot both be given. "
            f"Received: {settings.image_sizes} and {settings.image_size}"
        )
    # Nothing after the last comma is the whole backbone; nothing at all is too, in every stage.
    learn_from = settings.unfreeze_from.split(",")
    epochs = [_whole("finetune_stage_epochs", text, settings.stage_epochs) for text in _listed(settings.stage_epochs)]
    count = max(len(sizes), len(learn_from), len(epochs), 1)
    lists = (("image_sizes", sizes), ("unfreeze_from", learn_from), ("stage_epochs", epochs))
    several = {f"--finetune_{name}": len(values) for name, values in lists if len(values) > 1}
    if len(set(several.values())) > 1:
        raise UserError(
            f"{' and '.join(several)} have to name equally many stages, or one for all. Received: {', '.join(map(str, several.values()))}"
        )
    if not epochs and settings.epochs % count:
        raise UserError(
            f"--finetune_epochs has to be a multiple of the {count} stages, or --finetune_stage_epochs to say how many each has. "
            f"Received: {settings.epochs}"
        )
    epochs = epochs or [settings.epochs // count]
    if (len(epochs) > 1 and sum(epochs) != settings.epochs) or (
        len(epochs) == 1 and epochs[0] * count != settings.epochs
    ):
        raise UserError(
            f"--finetune_stage_epochs has to add up to --finetune_epochs. Received: {settings.stage_epochs} and {settings.epochs}"
        )

    def of_all(values: list[Any]) -> list[Any]:
        return values * count if len(values) == 1 else values

    return list(zip(of_all(sizes or [settings.image_size]), of_all(learn_from), of_all(epochs), strict=True))


def _listed(text: str) -> list[str]:
    return text.split(",") if text else []


def _whole(flag: str, text: str, received: str) -> int:
    """Return a whole number of a list, 1 or more."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= MOST_IN_A_LIST):
        raise UserError(f"--{flag} has to list whole numbers from 1 to {MOST_IN_A_LIST:,}. Received: {received}")
    return int(text)


def _check_stages(settings: FinetuneConfig, backbone: str) -> None:
    row = BACKBONES[backbone]
    for size, stage, _ in finetune_stages(settings):
        if stage and stage not in row.block_groups:
            raise UserError(
                f"--finetune_unfreeze_from has to be a block group of {backbone} ({', '.join(row.block_groups)}) or empty, or a list of "
                f"them. Received: {settings.unfreeze_from}"
            )
        if 0 < size < row.minimum_size:
            raise UserError(
                f"--finetune_image_sizes have to be at least {row.minimum_size} for --backbone={backbone}. "
                f"Received: {settings.image_sizes or settings.image_size}"
            )


def _check_test_sets(config: RunConfig) -> None:
    for name in filter(None, config.evaluation.test_sets.split(",")):
        family, slash, _ = name.partition("/")
        if family not in (OF_SEVERAL if slash else TEST_SETS):
            raise UserError(f"--test_sets has to name some of {', '.join(TEST_SETS)}. Received: {name}")
    of_cifar10, kind = other_sets_of(config.evaluation), dataset_of(config.data).kind
    if of_cifar10 and kind is DatasetKind.SYNTHETIC and config.data.synthetic_classes != 10:
        raise UserError(
            f"--test_sets={of_cifar10[0]} has ten classes. Received: --synthetic_classes={config.data.synthetic_classes}"
        )
    if of_cifar10 and kind not in (DatasetKind.CIFAR10, DatasetKind.SYNTHETIC):
        raise UserError(
            f"--test_sets={of_cifar10[0]} has the classes of CIFAR-10. Received: --dataset={config.data.dataset}"
        )


def unknown_folder_of(settings: EvaluationConfig) -> str:
    """Return the folder with pictures of none of the classes; "" if there is none.

    Raises:
        UserError: the setting does not name a folder.

    Examples:
        >>> unknown_folder_of(EvaluationConfig(unknown="folder:birds"))
        'birds'
    """
    kind, _, place = settings.unknown.partition(":")
    if settings.unknown and (kind != DatasetKind.FOLDER or not place):
        raise UserError(f"--unknown has to be folder:DIR. Received: {settings.unknown!r}")
    return place


def _check_bounds(leaf: Setting, value: Any) -> None:
    bounds = leaf.field.metadata
    if bounds["choices"] and value not in bounds["choices"]:
        raise UserError(f"--{leaf.flag} has to be one of {', '.join(bounds['choices'])}. Received: {value!r}")
    limits: list[tuple[str, typing.Callable[[float, float], bool]]] = [
        ("minimum", lambda number, limit: number >= limit),
        ("maximum", lambda number, limit: number <= limit),
        ("above", lambda number, limit: number > limit),
        ("below", lambda number, limit: number < limit),
    ]
    in_words = {"minimum": "at least", "maximum": "at most", "above": "above", "below": "below"}
    broken = [
        f"{in_words[name]} {bounds[name]}"
        for name, holds in limits
        if bounds[name] is not None and not holds(value, bounds[name])
    ]
    if broken:
        raise UserError(f"--{leaf.flag} has to be {' and '.join(broken)}. Received: {value}")


def _typed(leaf: Setting, value: Any) -> Any:
    if issubclass(leaf.type, enum.StrEnum):
        if value not in tuple(leaf.type):
            raise UserError(f"--{leaf.flag} has to be one of {', '.join(leaf.type)}. Received: {value!r}")
        return leaf.type(value)
    if leaf.type is float and type(value) is int:
        value = float(value)
    if type(value) is not leaf.type:  # not isinstance: a bool is an int
        raise UserError(f"--{leaf.flag} has to be of type {leaf.type.__name__}. Received: {value!r}")
    return value


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, enum.Enum) else value
