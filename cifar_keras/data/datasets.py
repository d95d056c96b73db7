"""The data sets that a run can use: the name of each, and how it is loaded."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cifar_keras.config import DataConfig, DatasetName, DataSource, RunConfig, dataset_of
from cifar_keras.data.cifar10 import layout
from cifar_keras.data.types import Dataset, PublishedDataset
from cifar_keras.errors import UserError


class DatasetRow(NamedTuple):
    """A data set. To add one, add a row to `DATASETS`, and its name to the config."""

    title: str  # its name in a sentence of a page
    hub_id: str  # its name on the Hugging Face hub, for the model card; "" if it is not there
    description: str  # one or two sentences
    load: Callable[[RunConfig], PublishedDataset]
    is_prepared: Callable[[str], bool]  # takes a folder; true if it holds the set, so that nothing has to be fetched


def load_published(config: RunConfig) -> PublishedDataset:
    """Return the verified images of a run, in their published order.

    Args:
        config: of the run. The synthetic set depends on its seed; a published set does not.

    Raises:
        UserError: the images are not available, or two classes have the same name.
    """
    name = dataset_of(config.data)
    published = DATASETS[name].load(config)
    names = Counter(published.class_names)
    if repeated := [class_name for class_name, count in names.items() if count > 1]:
        raise UserError(f"--dataset={name} has classes of the same name. Received: {', '.join(repeated)}")
    return published


def load_dataset(config: RunConfig) -> Dataset:
    """Return the three splits of a run: what `load_published` loads, divided by `make_splits`.

    Raises:
        UserError: as in `load_published` and `make_splits`.
    """
    # This imports scikit-learn, for which no command should wait.
    from cifar_keras.data.splits import make_splits

    return make_splits(load_published(config), config.data.validation_share, config.seed)


def is_prepared(settings: DataConfig) -> bool:
    """Return whether the folder that the settings name holds the images, or the images need no folder.

    Raises:
        UserError: the folder is no path that can be used.
    """
    return DATASETS[dataset_of(settings)].is_prepared(settings.data_dir)


def row_of(values: Mapping[str, Any]) -> DatasetRow:
    """Return the row of a run's data set.

    Args:
        values: the run's settings, as `result.json` has them. Older ones name no data set.
    """
    settings = DataConfig(
        dataset=DatasetName(values.get("dataset", DatasetName.CIFAR10)),
        data_source=DataSource(values.get("data_source", DataSource.AUTO)),
    )
    return DATASETS[dataset_of(settings)]


def _load_cifar10(config: RunConfig) -> PublishedDataset:
    # This imports TensorFlow.
    from cifar_keras.data.cifar10.sources import prepare_dataset

    data = config.data
    return prepare_dataset(data.data_source, data.data_dir, data.archive, config.source_timeout_seconds)


def _load_synthetic(config: RunConfig) -> PublishedDataset:
    from cifar_keras.data import synthetic

    return synthetic.make_dataset(config.seed, config.data.synthetic_classes)


DATASETS = {
    DatasetName.CIFAR10: DatasetRow(
        "CIFAR-10",
        "uoft-cs/cifar10",
        "CIFAR-10 (Krizhevsky, 2009): 32 x 32 colour images.",
        _load_cifar10,
        layout.is_prepared,
    ),
    DatasetName.SYNTHETIC: DatasetRow(
        "a synthetic set",
        "",
        "A small set that the program draws itself (`--dataset=synthetic`), to try things out: the metrics above say nothing "
        "about photographs.",
        _load_synthetic,
        lambda _data_dir: True,
    ),
}
