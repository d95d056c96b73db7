import dataclasses
import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_keras.config import (
    ComputeDtype,
    DataSource,
    KernelGradientChoice,
    OptimizerName,
    RunConfig,
    Setting,
    from_values,
    settings_of,
    to_values,
    validate,
    value_of,
)
from cifar_keras.errors import UserError
from cifar_keras.models.backbones import BACKBONES

SETTINGS = settings_of()
BOUNDS = [
    pytest.param(leaf, name, id=f"{leaf.flag}-{name}")
    for leaf in SETTINGS
    for name in ("minimum", "maximum", "above", "below")
    if leaf.field.metadata[name] is not None
]


def config_of(**values: Any) -> RunConfig:
    return from_values(values)


def nearest(leaf: Setting, limit: float, direction: int) -> float:
    """The next value of the setting's type above (1) or below (-1) a limit."""
    return limit + direction if leaf.type is int else math.nextafter(float(limit), direction * math.inf)


def refused(leaf: Setting, value: Any) -> bool:
    """Whether `validate` refuses the value on its own account: with a message that begins with its flag and ends with it."""
    try:
        validate(config_of(**{leaf.flag: value}))
    except UserError as error:
        return re.fullmatch(rf"--{leaf.flag} has to be .+\. Received: {re.escape(str(value))}", str(error)) is not None
    return False


def test_the_defaults_are_valid() -> None:
    validate(RunConfig())
    assert config_of() == RunConfig()


def test_the_settings_that_the_two_phases_share_carry_the_name_of_the_phase() -> None:
    flags = [leaf.flag for leaf in SETTINGS]
    assert len(set(flags)) == len(flags)
    config = config_of(head_epochs=7, finetune_epochs=5, seed=3, dropout=0.5)
    assert (config.head.epochs, config.finetune.epochs, config.seed, config.model.dropout) == (7, 5, 3, 0.5)


@given(data=st.data())
def test_values_and_configs_are_inverse(valid_values: st.SearchStrategy[dict[str, Any]], data: st.DataObject) -> None:
    values = data.draw(valid_values)
    config = from_values(values)
    validate(config)
    assert to_values(config) == values
    assert from_values(json.loads(json.dumps(to_values(config), allow_nan=False))) == config


@given(data=st.data())
def test_what_is_not_named_keeps_its_default(
    valid_values: st.SearchStrategy[dict[str, Any]], data: st.DataObject
) -> None:
    values = data.draw(valid_values)
    named = data.draw(st.sets(st.sampled_from(sorted(values))))
    config = from_values({flag: values[flag] for flag in named})
    for leaf in SETTINGS:
        expected = values[leaf.flag] if leaf.flag in named else value_of(RunConfig(), leaf)
        assert value_of(config, leaf) == expected


def test_plain_values_are_of_the_types_of_json() -> None:
    values = to_values(RunConfig())
    assert {type(value) for value in values.values()} == {bool, int, float, str}
    config = from_values(values)
    assert config.data.data_source is DataSource.AUTO
    assert config.finetune.optimizer is OptimizerName.SGD
    assert config.compute.compute_dtype is ComputeDtype.AUTO
    assert config.compute.kernel_gradient is KernelGradientChoice.AUTO


@pytest.mark.parametrize(("leaf", "bound"), BOUNDS)
def test_a_bound_is_held_on_both_sides(leaf: Setting, bound: str) -> None:
    limit = leaf.field.metadata[bound]
    outwards = -1 if bound in ("minimum", "above") else 1
    belongs = bound in ("minimum", "maximum")
    outside = nearest(leaf, limit, outwards) if belongs else limit
    assert refused(leaf, leaf.type(outside))
    assert refused(leaf, leaf.type(limit + outwards * 1000))
    inside = leaf.type(limit if belongs else nearest(leaf, limit, -outwards))
    if leaf.flag != "image_size" or bound == "maximum":  # its true minimum is the backbone's, tested below
        assert not refused(leaf, inside)


def test_numbers_are_bounded_below_and_floats_above_too() -> None:
    for leaf in SETTINGS:
        limits = {name for name in ("minimum", "maximum", "above", "below") if leaf.field.metadata[name] is not None}
        if leaf.type in (int, float):
            assert limits & {"minimum", "above"}, leaf.flag
        if leaf.type is float:
            assert limits & {"maximum", "below"}, leaf.flag


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("leaf", [leaf for leaf in SETTINGS if leaf.type is float], ids=lambda leaf: leaf.flag)
def test_what_is_no_finite_number_is_refused(leaf: Setting, number: float) -> None:
    assert refused(leaf, number)


def wrong_values(leaf: Setting) -> list[Any]:
    """Values that are not of the setting's type, among them those that Python would take for it."""
    wrong: dict[type, list[Any]] = {
        bool: [0, 1, "true", 1.0, None],
        int: [True, 1.0, "1", None],
        float: [True, "0.1", None, [0.1]],
        str: [0, True, None, b"none", ["none"]],
    }
    return wrong.get(leaf.type, [0, None, "", "AUTO", "SGD", "nothing", ["sgd"]])  # an enum takes its values alone


@pytest.mark.parametrize("leaf", SETTINGS, ids=lambda leaf: leaf.flag)
def test_a_value_of_another_type_is_refused(leaf: Setting) -> None:
    for value in wrong_values(leaf):
        with pytest.raises(UserError, match=rf"^--{leaf.flag} has to be .* Received: "):
            config_of(**{leaf.flag: value})


def test_a_whole_number_is_a_float_too() -> None:
    rate = config_of(head_learning_rate=1).head.learning_rate
    assert rate == 1.0
    assert type(rate) is float


def test_unknown_names_are_refused() -> None:
    # "epochs" and "model" are names in the tree, but of no flag.
    with pytest.raises(UserError, match=r"no setting of this name\. Received: epochs, model, sed$"):
        config_of(sed=1, model={}, epochs=2, seed=3)


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_an_image_has_to_be_as_large_as_the_backbone_asks(backbone: str) -> None:
    # As the docstrings of keras.applications say; the small networks would take anything.
    others = {"inception_v3": 75, "inception_resnet_v2": 75, "xception": 71, "resnet9": 8, "resnet20": 8}
    smallest = others.get(backbone, 32)
    weights = "none" if backbone in ("resnet9", "resnet20") else "imagenet"

    def config_of(**values: Any) -> RunConfig:
        return from_values({"weights": weights, **values})

    validate(config_of(backbone=backbone, image_size=smallest))
    match = rf"^--image_size has to be at least {smallest} for --backbone={backbone}\. Received: {smallest - 1}$"
    with pytest.raises(UserError, match=match):
        validate(config_of(backbone=backbone, image_size=smallest - 1))
    for flag in ("head_image_size", "finetune_image_size"):
        validate(config_of(backbone=backbone, image_size=2048, **{flag: smallest}))
        validate(config_of(backbone=backbone, image_size=smallest, **{flag: 0}))  # means --image_size
        match = rf"^--{flag} has to be 0 or at least {smallest} for --backbone={backbone}\. Received: {smallest - 1}$"
        with pytest.raises(UserError, match=match):
            validate(config_of(backbone=backbone, image_size=2048, **{flag: smallest - 1}))


def test_a_network_without_imagenet_weights_says_so() -> None:
    validate(config_of(backbone="resnet20", weights="none"))
    with pytest.raises(UserError, match=r"^--weights=imagenet: .* Received: --backbone=resnet20$"):
        validate(config_of(backbone="resnet20"))


def test_features_are_cached_in_the_head_phase_unless_said_otherwise() -> None:
    assert (RunConfig().head.cached_features, RunConfig().finetune.cached_features) == (True, False)
    config = config_of(head_cached_features=False, finetune_cached_features=True)
    assert (config.head.cached_features, config.finetune.cached_features) == (False, True)


WORKING = {
    "all defaults": {},
    "an archive that auto finds first": {"archive": "a.tar.gz"},
    "an archive by name": {"archive": "a.tar.gz", "data_source": "archive"},
    "all augmentation in a deterministic run": {
        "deterministic": True,
        "rotation_degrees": 10.0,
        "color_jitter": 0.2,
        "resized_crop_scale": 0.08,
        "cutout": 8,
        "grid_mask": 0.3,
    },
    "an image for each device": {"virtual_devices": 2, "global_batch_size": 2},
    "head phase alone": {"finetune_epochs": 0},
    "finetune phase alone": {"head_epochs": 0},
    "from scratch": {"weights": "none"},
    "momentum where sgd uses it": {"head_optimizer": "sgd", "head_momentum": 0.5, "finetune_momentum": 0.95},
    "from a stage up": {"finetune_unfreeze_from": "conv4"},
    "from a block group of another family up": {"backbone": "vgg16", "finetune_unfreeze_from": "block5"},
    "small images first": {"head_image_size": 32, "finetune_image_size": 48, "image_size": 128},
    "large images first": {"head_image_size": 128, "image_size": 32},
    "cached features in both phases": {"finetune_cached_features": True, "finetune_unfreeze_from": "conv5"},
    "cached features of a backbone that all learns": {"finetune_cached_features": True},
    "no memory for cached features": {"cache_gib": 0.0},
    "measured gradients in a deterministic run": {"deterministic": True, "kernel_gradient": "auto"},
    "matrix products in a deterministic run": {"deterministic": True, "kernel_gradient": "matmul"},
    "float16, whatever the machine": {"compute_dtype": "float16"},
}
REFUSED = {
    "archive": {"archive": "a.tar.gz", "data_source": "npm"},
    "global_batch_size": {"virtual_devices": 4, "global_batch_size": 3},
    "head_epochs": {"head_epochs": 0, "finetune_epochs": 0},
    "weights": {"weights": "none", "finetune_epochs": 0},
    "head_momentum": {"head_momentum": 0.5},
    "finetune_momentum": {"finetune_optimizer": "adamw", "finetune_momentum": 0.95},
    "finetune_sparsity": {"finetune_sparsity": 0.5, "finetune_epochs": 0},
    "workdir": {"workdir": ""},
    "finetune_unfreeze_from": {"finetune_unfreeze_from": "block5"},
    "finetune_unfreeze_from ": {"finetune_unfreeze_from": "conv"},
    "backbone": {"backbone": "resnet5"},
    "backbone ": {"backbone": "ResNet50"},
    "head_image_size": {"head_image_size": 16},
    "finetune_image_size": {"finetune_image_size": 31},
    "compute_dtype": {"compute_dtype": "float64"},
    "kernel_gradient": {"kernel_gradient": "winograd"},
    "cache_gib": {"cache_gib": -0.5},
}


@pytest.mark.parametrize("values", WORKING.values(), ids=WORKING.keys())
def test_combinations_that_work(values: dict[str, Any]) -> None:
    validate(from_values(values))


@pytest.mark.parametrize(("flag", "values"), REFUSED.items())
def test_combinations_that_cannot_work(flag: str, values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^--{flag.strip()}\b[^\n]*\. Received: [^\n]+$"):
        validate(from_values(values))


def test_a_config_is_frozen() -> None:
    config = RunConfig()
    sections = [getattr(config, name) for name in ("data", "augmentation", "model", "compute", "head", "finetune")]
    for section in (config, *sections):
        name = dataclasses.fields(section)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(section, name, getattr(section, name))
