import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from cifar_keras.data import synthetic
from cifar_keras.data.cifar10.layout import CLASS_NAMES


def test_shapes_and_balance() -> None:
    dataset = synthetic.make_dataset(3)
    for split, count in ((dataset.train, 400), (dataset.test, 100)):
        assert split.images.shape == (count, 32, 32, 3)
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
        assert np.bincount(split.labels).tolist() == [count // 10] * 10
    assert dataset.class_names == CLASS_NAMES


def test_seed_decides_everything() -> None:
    first, again, other = (synthetic.make_dataset(seed) for seed in (0, 0, 1))
    for split in ("train", "test"):
        for field in ("images", "labels"):
            drawn, drawn_again, drawn_otherwise = (getattr(getattr(d, split), field) for d in (first, again, other))
            np.testing.assert_array_equal(drawn, drawn_again)
            assert not np.array_equal(drawn, drawn_otherwise)


def test_train_and_test_are_different_images() -> None:
    dataset = synthetic.make_dataset(0)
    images = np.concatenate([dataset.train.images, dataset.test.images])
    assert len({image.tobytes() for image in images}) == 500


def pooled(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Average 4 x 4 pixels, so that the fit takes no time."""
    means: NDArray[np.float64] = images.reshape(-1, 8, 4, 8, 4, 3).mean(axis=(2, 4)).reshape(len(images), -1) / 255
    return means


def test_logistic_regression_on_pixels_learns_it() -> None:
    dataset = synthetic.make_dataset(0)
    model = LogisticRegression(max_iter=200, tol=0.01).fit(pooled(dataset.train.images[:]), dataset.train.labels)
    assert model.score(pooled(dataset.test.images[:]), dataset.test.labels) > 0.9
