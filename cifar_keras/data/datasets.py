"""The data sets that a run can name, and how each is loaded."""

from cifar_keras.config import DataConfig, DataSource
from cifar_keras.data import synthetic
from cifar_keras.data.cifar10.sources import prepare_dataset
from cifar_keras.data.splits import make_splits
from cifar_keras.data.types import Dataset, PublishedDataset


def load_published(settings: DataConfig, *, seed: int, timeout_seconds: float) -> PublishedDataset:
    """Load the verified images of a run, in the order in which they are published.

    Args:
        settings: which images, and where they are.
        seed: of a synthetic set; a published one does not depend on it.
        timeout_seconds: seconds of standstill after which a source on the network is given up.

    Raises:
        UserError: the images cannot be had.
    """
    if settings.data_source is DataSource.SYNTHETIC:
        return synthetic.make_dataset(seed)
    return prepare_dataset(settings.data_source, settings.data_dir, settings.archive, timeout_seconds)


def load_dataset(settings: DataConfig, *, seed: int, timeout_seconds: float) -> Dataset:
    """Load the verified images of a run and hold out its validation split, as `load_published` and `make_splits` do."""
    published = load_published(settings, seed=seed, timeout_seconds=timeout_seconds)
    return make_splits(published, settings.validation_share, seed)
