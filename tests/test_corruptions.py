import io

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

from cifar_keras.data.synthetic import make_dataset
from cifar_keras.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt

IMAGES = make_dataset(0).test.images[:20]


# Of severities 1 to 5, as the authors' program for CIFAR-10-C has them.
STRENGTHS = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "jpeg_compression": (80, 65, 58, 50, 40),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
}


def strength(name: str, severity: int) -> float:
    return STRENGTHS[name][severity - 1]


def test_corruptions_are_as_strong_as_those_of_the_paper() -> None:
    assert {name: corruption.strengths for name, corruption in CORRUPTIONS.items()} == STRENGTHS


def grey(value: int, count: int = 50) -> NDArray[np.uint8]:
    return np.full((count, 32, 32, 3), value, np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_keep_the_kind_of_images_and_repeat(name: str) -> None:
    before = IMAGES.copy()
    corrupted = corrupt(IMAGES, name, 3, seed=0)
    assert corrupted.dtype == np.uint8
    assert corrupted.shape == IMAGES.shape
    np.testing.assert_array_equal(IMAGES, before)
    np.testing.assert_array_equal(corrupted, corrupt(IMAGES, name, 3, seed=0))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_severity_changes_images_more(name: str) -> None:
    changes = [np.abs(corrupt(IMAGES, name, severity, seed=0).astype(float) - IMAGES).mean() for severity in SEVERITIES]
    assert changes[0] > 0
    assert changes == sorted(changes)


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise"])
def test_noise_depends_on_the_seed_and_differs_from_image_to_image(name: str) -> None:
    noisy = corrupt(grey(128, 2), name, 3, seed=0)
    assert (noisy != corrupt(grey(128, 2), name, 3, seed=1)).any()
    assert (noisy[0] != noisy[1]).any()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_the_noise_has_the_spread_of_the_paper(severity: int) -> None:
    """153,600 values: the standard error of a spread is 0.2 % of it."""
    level = 128 / 255
    gaussian = corrupt(grey(128), "gaussian_noise", severity, seed=0) / 255
    assert gaussian.std() == pytest.approx(strength("gaussian_noise", severity), rel=0.02)
    shot = corrupt(grey(128), "shot_noise", severity, seed=0) / 255
    assert shot.mean() == pytest.approx(level, rel=0.01)
    assert shot.var() == pytest.approx(level / strength("shot_noise", severity), rel=0.05)
    impulse = corrupt(grey(128), "impulse_noise", severity, seed=0)
    assert set(np.unique(impulse)) == {0, 128, 255}
    assert (impulse != 128).mean() == pytest.approx(strength("impulse_noise", severity), rel=0.1)
    assert (impulse == 255).sum() / (impulse != 128).sum() == pytest.approx(0.5, abs=0.03)


def test_blur_is_a_gaussian() -> None:
    image = np.zeros((1, 33, 33, 3), np.uint8)
    image[0, 16, 16] = 255
    blurred = corrupt(image, "gaussian_blur", 5, seed=0)[0, :, :, 0] / 255
    offsets = np.arange(33) - 16
    line = np.exp(-(offsets**2) / 2)
    np.testing.assert_allclose(blurred, np.outer(line, line) / line.sum() ** 2, atol=0.003)


def test_brightness_adds_to_the_value_of_hsv() -> None:
    for severity in SEVERITIES:
        hsv = tf.image.rgb_to_hsv(IMAGES / 255.0).numpy()
        hsv[..., 2] = np.minimum(hsv[..., 2] + strength("brightness", severity), 1)
        wanted = 255 * tf.image.hsv_to_rgb(hsv).numpy()
        np.testing.assert_allclose(corrupt(IMAGES, "brightness", severity, seed=0), wanted, atol=1.0)
    assert set(np.unique(corrupt(grey(0), "brightness", 5, seed=0))) == {round(0.3 * 255)}


def test_contrast_scales_the_distance_from_the_mean_colour() -> None:
    corrupted = corrupt(IMAGES, "contrast", 2, seed=0)
    for image, changed in zip(IMAGES, corrupted, strict=True):
        for channel in range(3):
            values = image[..., channel].astype(float)
            wanted = [0.5 * (value - values.mean()) + values.mean() for value in values.ravel()]
            np.testing.assert_allclose(changed[..., channel].ravel(), wanted, atol=0.51)


def test_jpeg_and_pixelate_are_those_of_another_library() -> None:
    """Pillow, which CIFAR-10-C was made with."""
    for severity in SEVERITIES:
        files = corrupt(IMAGES, "jpeg_compression", severity, seed=0)
        pixelated = corrupt(IMAGES, "pixelate", severity, seed=0)
        for place, image in enumerate(IMAGES):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=int(strength("jpeg_compression", severity)))
            decoded = np.asarray(Image.open(file)).astype(float)
            assert np.abs(files[place] - decoded).mean() < 2  # two decoders
            side = int(32 * strength("pixelate", severity))
            small = Image.fromarray(image).resize((side, side), Image.Resampling.BOX)
            large = np.asarray(small.resize((32, 32), Image.Resampling.BOX)).astype(float)
            assert np.abs(pixelated[place] - large).max() <= 1
