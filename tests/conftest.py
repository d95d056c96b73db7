"""What several test files share: valid settings, and a CIFAR-10 of 24 images in the layout of the binary version, with its own digests."""

# ruff: noqa: E402
import os
import subprocess

from cifar_keras.files import environment

environment.set_variables()  # before anything imports TensorFlow
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # the tests are for the processor, whatever the machine has

import enum
import hashlib
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from cifar_keras import config as config_lib
from cifar_keras.data.cifar10 import tfds_folder
from cifar_keras.data.cifar10.layout import CLASS_NAMES, Contents
from cifar_keras.data.types import LabelledImages, PublishedDataset
from cifar_keras.models.backbones import BACKBONES

# The same examples at every run, nothing kept between runs, and no verdict that depends on the speed of the machine.
hypothesis.settings.register_profile("house", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("house")

# Those that take longest, so that none of them is what everybody waits for in the end.
BEGIN = (
    "test_kills",
    "test_backbones",
    "test_machines",
    "test_full_disks",
    "test_bad_input",
    "test_run",
    "test_fuzz",
    "test_devices",
    "test_export",
    "test_fused",
    "test_partition",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(BEGIN)}
    items.sort(key=lambda item: order.get(item.path.stem, len(BEGIN)))  # which keeps the order of all others


BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
IMAGES_PER_BATCH = 4


@pytest.fixture(scope="session")
def small_batches() -> dict[str, bytes]:
    """Each batch as the label byte and the red, green and blue plane of its four images."""
    generator = np.random.default_rng(1)
    batches = {}
    for name in BATCHES:
        records = generator.integers(0, 256, (IMAGES_PER_BATCH, 3073), np.uint8)
        records[:, 0] = generator.integers(0, 10, IMAGES_PER_BATCH)
        batches[name] = records.tobytes()
    return batches


@pytest.fixture(scope="session")
def small_contents(small_batches: dict[str, bytes]) -> Contents:
    digests = {name: hashlib.md5(records).hexdigest() for name, records in small_batches.items()}
    return Contents(IMAGES_PER_BATCH, digests)


@pytest.fixture(scope="session")
def small_dataset(small_batches: dict[str, bytes]) -> PublishedDataset:
    def images_of(records: bytes) -> LabelledImages:
        labels, images = [], []
        for start in range(0, len(records), 3073):
            red, green, blue = (records[start + 1 + 1024 * plane :][:1024] for plane in range(3))
            labels.append(records[start])
            images.append(np.array([list(pixel) for pixel in zip(red, green, blue, strict=True)]).reshape(32, 32, 3))
        return LabelledImages(np.array(images, np.uint8), np.array(labels, np.int64))

    return PublishedDataset(
        images_of(b"".join(small_batches[name] for name in BATCHES[:5])),
        images_of(small_batches["test_batch"]),
        CLASS_NAMES,
    )


@pytest.fixture(scope="session")
def small_data_dir(
    small_dataset: PublishedDataset, small_contents: Contents, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A TFDS folder that holds the 24 images. Copy it before you change it."""
    data_dir = tmp_path_factory.mktemp("tensorflow_datasets")
    tfds_folder.write_folder(small_dataset, data_dir, small_contents)
    return data_dir


@pytest.fixture
def nobody() -> tuple[str, ...]:
    """What to put before a command so that it runs as a user who has no name, and may read only what everybody may."""
    other_user = ("unshare", "--user", "--map-user=54321")
    if subprocess.run([*other_user, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system lets no program have another user")
    return other_user


@pytest.fixture(scope="session")
def valid_values() -> st.SearchStrategy[dict[str, Any]]:
    """Draws a value for every flag, so that the config of them is valid."""
    return _valid_values()


@st.composite
def _valid_values(draw: st.DrawFn) -> dict[str, Any]:
    values = {leaf.flag: draw(_values_of(leaf)) for leaf in config_lib.settings_of()}
    row = BACKBONES[values["backbone"]]
    values["test_sets"] = ",".join(draw(st.lists(st.sampled_from(config_lib.TEST_SETS), max_size=3)))
    values["unknown"] = draw(st.sampled_from(["", "folder:others"]))
    values["image_size"] = draw(st.integers(row.minimum_size, 2048))
    values["finetune_unfreeze_from"] = draw(st.sampled_from(["", *row.block_groups]))
    sizes = draw(st.lists(st.integers(row.minimum_size, 2048), max_size=3))
    values["finetune_image_sizes"] = ",".join(map(str, sizes))
    values["finetune_epochs"] -= values["finetune_epochs"] % max(1, len(sizes))
    values["finetune_stage_epochs"] = ""
    of_cifar10 = set(values["test_sets"].split(",")) - {"", config_lib.CORRUPTION_SUITE}
    known = ["cifar10", "synthetic"]
    pictures = ["folder:photos", "csv:photos.csv", "tfds:flowers/small", "cifar100"]
    values["dataset"] = draw(st.sampled_from(known if of_cifar10 else known + pictures))
    if (values["dataset"] == "synthetic" and of_cifar10) or values["data_source"] == "synthetic":
        values["synthetic_classes"] = 10
    kind = values["dataset"].partition(":")[0]
    if kind not in config_lib.WITH_A_PLACE or values["data_source"] == "synthetic":
        for flag in ("test_share", "stored_size", "bad_images", "allow_duplicates"):
            values[flag] = config_lib.to_values(config_lib.RunConfig())[flag]
    if kind not in ("cifar10", "cifar100") or values["data_source"] == "synthetic":
        values["archive"] = ""
    values["virtual_devices"] = min(values["virtual_devices"], values["global_batch_size"])
    if values["weights"] == "imagenet" and not row.weights_file:
        values["weights"] = "none"
    if values["data_source"] not in ("auto", "archive"):
        values["archive"] = ""
    if values["finetune_epochs"] == 0 and (values["head_epochs"] == 0 or values["weights"] == "none"):
        values["finetune_epochs"] = max(1, len(sizes))
    if values["finetune_epochs"] == 0:
        values["finetune_sparsity"] = 0.0
    if values["mixup_alpha"] or values["cutmix_alpha"]:
        values["global_batch_size"] = max(2, values["global_batch_size"])
        values["teacher_view"] = "augmented"
        values["head_cached_features"] = values["finetune_cached_features"] = False
    for phase in ("head", "finetune"):
        values[f"{phase}_image_size"] = draw(st.just(0) | st.integers(row.minimum_size, 2048))
        if values[f"{phase}_optimizer"] == "adamw":
            values[f"{phase}_momentum"] = config_lib.PhaseConfig.momentum
    if sizes:
        values["finetune_image_size"] = 0
    return values


def _values_of(leaf: config_lib.Setting) -> st.SearchStrategy[Any]:
    bounds = leaf.field.metadata
    lowest = bounds["above"] if bounds["minimum"] is None else bounds["minimum"]
    highest = bounds["below"] if bounds["maximum"] is None else bounds["maximum"]
    if leaf.type is bool:
        return st.booleans()
    if leaf.type is int:
        return st.integers(lowest, highest)
    if leaf.type is float:
        exclude_min, exclude_max = bounds["above"] is not None, bounds["below"] is not None
        return st.floats(lowest, highest, exclude_min=exclude_min, exclude_max=exclude_max)
    if issubclass(leaf.type, enum.StrEnum):
        return st.sampled_from(list(leaf.type)).map(str)
    if bounds["choices"]:
        return st.sampled_from(bounds["choices"])
    # Any line of text that does not begin or end in spaces, which a flagfile would not keep.
    words = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1).filter(
        lambda text: text == text.strip()
    )
    return st.sampled_from([leaf.field.default, "none"]) | words
