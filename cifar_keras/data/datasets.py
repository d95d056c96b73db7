"""The data sets that a run can use: the kinds of them, and how each is loaded."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cifar_keras.config import DataConfig, DatasetKind, DataSource, RunConfig, dataset_of
from cifar_keras.data.cifar10 import layout
from cifar_keras.data.types import Dataset, PublishedDataset, contents_of
from cifar_keras.errors import UserError
from cifar_keras.files import paths
from cifar_keras.files.finished_run import FinishedRun
from cifar_keras.files.workdir import check_same_images


class DatasetRow(NamedTuple):
    """A kind of data set. To add one, add a row to `DATASETS`, and its name to the config."""

    title: str  # its name in a sentence of a page; "{place}" is what `--dataset` names
    card_type: str  # of the set, in the model card: its name on the Hugging Face hub, if it is there
    description: str  # one or two sentences
    load: Callable[[RunConfig], PublishedDataset]
    is_prepared: Callable[[DataConfig], bool]  # true if the machine holds the set, so that nothing has to be fetched

    @property
    def hub_id(self) -> str:
        """Its name on the Hugging Face hub, OWNER/NAME; "" if it is not there."""
        return self.card_type if "/" in self.card_type else ""


def load_published(config: RunConfig) -> PublishedDataset:
    """Return the images of a run, verified, in their published order.

    Args:
        config: of the run. A synthetic set, and a test set that is held out, depend on its seed.

    Raises:
        UserError: the images are not available or cannot be used, or two classes have the same name.
    """
    # NumPy, for which no command should wait.
    from cifar_keras.data.subset import keep_classes

    published = DATASETS[dataset_of(config.data).kind].load(config)
    names = Counter(published.class_names)
    if repeated := [class_name for class_name, count in names.items() if count > 1]:
        raise UserError(
            f"--dataset={config.data.dataset} has classes of the same name. Received: {', '.join(repeated)}"
        )
    if not published.names:
        published = published._replace(names=tuple(f"train[{place}]" for place in range(len(published.train.labels))))
    return keep_classes(published, config.subset.classes)


def check_outside(config: RunConfig) -> None:
    """Check that a run writes nothing into its folder of pictures, where the next command would take it for classes.

    Raises:
        UserError: the workdir or the cache lies there, and not in a hidden folder, which no command looks into.
    """
    kind, place = dataset_of(config.data)
    if kind is not DatasetKind.FOLDER:
        return
    pictures = paths.expand("dataset", place).resolve()
    for flag, value in (("workdir", config.workdir), ("cache_dir", config.data.cache_dir)):
        path = paths.expand(flag, value).resolve()
        if path.is_relative_to(pictures) and not any(part.startswith(".") for part in path.relative_to(pictures).parts):
            raise UserError(
                f"--{flag} has to lie outside the folder of the pictures, whose folders are classes ({paths.shown(pictures)}). "
                f"Received: {value}"
            )


def load_dataset(config: RunConfig) -> Dataset:
    """Return the three splits of a run: what `load_published` loads, divided by `divide`.

    Raises:
        UserError: as in `load_published` and `divide`.
    """
    return divide(load_published(config), config)


def divide(published: PublishedDataset, config: RunConfig) -> Dataset:
    """Return the three splits of a run: the images and labels that the config keeps, divided by `make_splits`.

    Raises:
        UserError: as in `make_splits`, `read_corrections`, `check_has_all_classes` and `reduce_train`.
    """
    # This imports scikit-learn, for which no command should wait.
    from cifar_keras.data.splits import make_splits
    from cifar_keras.data.subset import check_has_all_classes, read_corrections, reduce_train

    corrections = read_corrections(published, config.subset.exclude)
    dataset = make_splits(published, config.data.validation_share, config.seed, corrections)
    if corrections is not None:
        check_has_all_classes(dataset.train, dataset.class_names, config.subset.exclude)
    dataset = reduce_train(dataset, config.subset, config.seed)
    return dataset._replace(contents=contents_of(dataset, published.skipped))


def load_again(run: FinishedRun) -> Dataset:
    """Return the three splits of a finished run.

    Raises:
        UserError: as in `load_dataset`, or the images are others than the run had.
    """
    dataset = load_dataset(run.config)
    check_same_images(run.path, dataset.contents.digest)
    return dataset


def is_prepared(settings: DataConfig) -> bool:
    """Return whether this machine holds the images that the settings name, or they need no files.

    Raises:
        UserError: the settings name a path that cannot be used.
    """
    return DATASETS[dataset_of(settings).kind].is_prepared(settings)


def row_of(values: Mapping[str, Any]) -> DatasetRow:
    """Return the row of a run's data set.

    Args:
        values: the run's settings, as `result.json` has them. Older ones name no data set.
    """
    address = dataset_of(
        DataConfig(
            dataset=values.get("dataset", DatasetKind.CIFAR10),
            data_source=DataSource(values.get("data_source", DataSource.AUTO)),
        )
    )
    row = DATASETS[address.kind]
    place = Path(address.place).name or address.place
    return row._replace(title=row.title.format(place=place), description=row.description.format(place=place))


def _load_cifar10(config: RunConfig) -> PublishedDataset:
    # This imports TensorFlow.
    from cifar_keras.data.cifar10.sources import prepare_dataset

    data = config.data
    return prepare_dataset(data.data_source, data.data_dir, data.archive, config.source_timeout_seconds)


def _load_cifar100(config: RunConfig) -> PublishedDataset:
    # This imports TensorFlow.
    from cifar_keras.data import cifar100

    return cifar100.load(config)


def _load_synthetic(config: RunConfig) -> PublishedDataset:
    from cifar_keras.data import synthetic

    return synthetic.make_dataset(config.seed, config.data.synthetic_classes)


def _load_folder(config: RunConfig) -> PublishedDataset:
    from cifar_keras.data.pictures.dataset import load_pictures
    from cifar_keras.data.pictures.listing import list_folder

    return load_pictures(list_folder(dataset_of(config.data).place), config)


def _load_csv(config: RunConfig) -> PublishedDataset:
    from cifar_keras.data.pictures.dataset import load_pictures
    from cifar_keras.data.pictures.listing import list_table

    return load_pictures(list_table(dataset_of(config.data).place), config)


def _load_tfds(config: RunConfig) -> PublishedDataset:
    from cifar_keras.data.pictures.dataset import load_pictures
    from cifar_keras.data.pictures.tfds_set import list_tfds

    return load_pictures(list_tfds(dataset_of(config.data).place, config.data), config)


def _is_place(settings: DataConfig) -> bool:
    return paths.expand("dataset", dataset_of(settings).place).exists()


DATASETS = {
    DatasetKind.CIFAR10: DatasetRow(
        "CIFAR-10",
        "uoft-cs/cifar10",
        "CIFAR-10 (Krizhevsky, 2009): 32 x 32 colour images.",
        _load_cifar10,
        lambda settings: layout.is_prepared(settings.data_dir),
    ),
    DatasetKind.CIFAR100: DatasetRow(
        "CIFAR-100",
        "uoft-cs/cifar100",
        "CIFAR-100 (Krizhevsky, 2009): 32 x 32 colour images of 100 classes.",
        _load_cifar100,
        # Its reader finds out, and downloads nothing for a finished run.
        lambda _settings: True,
    ),
    DatasetKind.FOLDER: DatasetRow(
        "the pictures of {place}",
        "imagefolder",
        "The pictures of the folder `{place}`, whose classes are its subfolders.",
        _load_folder,
        _is_place,
    ),
    DatasetKind.CSV: DatasetRow(
        "the pictures of {place}",
        "imagefolder",
        "The pictures that `{place}` lists with their labels.",
        _load_csv,
        _is_place,
    ),
    DatasetKind.TFDS: DatasetRow(
        "{place}",
        "tfds",
        "The data set `{place}` of TensorFlow Datasets.",
        _load_tfds,
        # Its reader finds out, and does not download here.
        lambda _settings: True,
    ),
    DatasetKind.SYNTHETIC: DatasetRow(
        "a synthetic set",
        "synthetic",
        "A small set that the program draws itself (`--dataset=synthetic`), to try things out: the metrics above say nothing "
        "about photographs.",
        _load_synthetic,
        lambda _settings: True,
    ),
}
