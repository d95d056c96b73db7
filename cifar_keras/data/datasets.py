"""The data sets that a run can name: what each is called, and how it is loaded."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cifar_keras.config import DataConfig, DatasetName, DataSource, RunConfig, dataset_of
from cifar_keras.data.cifar10 import layout
from cifar_keras.data.types import Dataset, PublishedDataset
from cifar_keras.errors import UserError


class DatasetRow(NamedTuple):
    """A data set. To add one is to add a row to `DATASETS`, and its name to the config."""

    title: str  # as a page calls it in a sentence
    description: str  # what it is, a sentence or two
    load: Callable[[RunConfig], PublishedDataset]
    is_prepared: Callable[[str], bool]  # whether a folder holds it, so that nothing has to be fetched


def load_published(config: RunConfig) -> PublishedDataset:
    """Load the verified images of a run, in the order in which they are published.

    Args:
        config: of the run. Its seed draws a synthetic set; a published one does not depend on it.

    Raises:
        UserError: the images cannot be had, or two classes have the same name.
    """
    name = dataset_of(config.data)
    published = DATASETS[name].load(config)
    names = Counter(published.class_names)
    if repeated := [class_name for class_name, count in names.items() if count > 1]:
        raise UserError(f"--dataset={name} has classes of the same name. Received: {', '.join(repeated)}")
    return published


def load_dataset(config: RunConfig) -> Dataset:
    """Load the verified images of a run and hold out its validation split, as `load_published` and `make_splits` do."""
    from cifar_keras.data.splits import make_splits  # it imports scikit-learn, for which no command should wait

    return make_splits(load_published(config), config.data.validation_share, config.seed)


def is_prepared(settings: DataConfig) -> bool:
    """Return whether the images are in the folder that the settings name, or need none.

    Raises:
        UserError: it is no path that can be used.
    """
    return DATASETS[dataset_of(settings)].is_prepared(settings.data_dir)


def row_of(values: Mapping[str, Any]) -> DatasetRow:
    """Return the row of the data set that the settings of a run name, as `result.json` keeps them; older ones name no data set."""
    settings = DataConfig(
        dataset=DatasetName(values.get("dataset", DatasetName.CIFAR10)),
        data_source=DataSource(values.get("data_source", DataSource.AUTO)),
    )
    return DATASETS[dataset_of(settings)]


def _load_cifar10(config: RunConfig) -> PublishedDataset:
    from cifar_keras.data.cifar10.sources import prepare_dataset  # it imports TensorFlow

    data = config.data
    return prepare_dataset(data.data_source, data.data_dir, data.archive, config.source_timeout_seconds)


def _load_synthetic(config: RunConfig) -> PublishedDataset:
    from cifar_keras.data import synthetic

    return synthetic.make_dataset(config.seed, config.data.synthetic_classes)


DATASETS = {
    DatasetName.CIFAR10: DatasetRow(
        "CIFAR-10",
        "CIFAR-10 (Krizhevsky, 2009): 32 x 32 colour images.",
        _load_cifar10,
        layout.is_prepared,
    ),
    DatasetName.SYNTHETIC: DatasetRow(
        "a synthetic set",
        "A small set that the program draws itself (`--dataset=synthetic`), to try things out: the metrics above say nothing "
        "about photographs.",
        _load_synthetic,
        lambda _data_dir: True,
    ),
}
