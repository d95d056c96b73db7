import io
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from cifar_keras.data.synthetic import make_dataset
from cifar_keras.evaluation import corruptions
from cifar_keras.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt, published_set, strength_of

IMAGES = make_dataset(0).test.images[:20]
LARGE = np.asarray(tf.cast(tf.image.resize(IMAGES[:4], (224, 224), "bicubic"), tf.uint8))
NOISE = ("gaussian_noise", "shot_noise", "impulse_noise")


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
# As their program for ImageNet-C has them.
STRENGTHS_OF_224_PX = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60, 25, 12, 5, 3),
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "gaussian_blur": (1, 2, 3, 4, 6),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "jpeg_compression": (25, 18, 15, 10, 7),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
}


def strength(name: str, severity: int, side: int = 32) -> float:
    return {32: STRENGTHS, 224: STRENGTHS_OF_224_PX}[side][name][severity - 1]


@pytest.mark.parametrize("side", [32, 224])
def test_corruptions_are_as_strong_as_those_of_the_paper(side: int) -> None:
    table = {32: STRENGTHS, 224: STRENGTHS_OF_224_PX}[side]
    assert list(CORRUPTIONS) == list(table)
    assert {name: tuple(strength_of(name, severity, side) for severity in SEVERITIES) for name in CORRUPTIONS} == table


def test_the_shorter_side_chooses_the_strengths_and_scales_the_blur_alone() -> None:
    for side in (1, 32, 64):
        assert all(strength_of(name, 4, side) == strength(name, 4) for name in CORRUPTIONS)
    for side in (65, 224, 448):
        others = [name for name in CORRUPTIONS if name != "gaussian_blur"]
        assert all(strength_of(name, 4, side) == strength(name, 4, 224) for name in others)
        assert strength_of("gaussian_blur", 4, side) == pytest.approx(4 * side / 224)
    for shape, name in (((64, 999), "CIFAR-10-C"), ((999, 64), "CIFAR-10-C"), ((65, 65), "ImageNet-C")):
        assert published_set(np.zeros((1, *shape, 3), np.uint8)) == name


def grey(value: int, count: int = 50, side: int = 32) -> NDArray[np.uint8]:
    return np.full((count, side, side, 3), value, np.uint8)


@pytest.mark.parametrize("images", [IMAGES, LARGE], ids=["32", "224"])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_are_the_same_in_any_parts(
    name: str, images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = corrupt(images, name, 4, seed=3)
    for count in (1, 3):
        # An odd number of values more makes no image more.
        monkeypatch.setattr(corruptions, "PART_VALUES", count * images[0].size + 17)
        np.testing.assert_array_equal(corrupt(images, name, 4, seed=3), whole)
    monkeypatch.setattr(corruptions, "PART_VALUES", 1)
    np.testing.assert_array_equal(corrupt(images, name, 4, seed=3), whole)


@pytest.mark.parametrize("name", NOISE)
def test_noise_is_what_one_generator_draws_for_all_images_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the results that were measured before images were corrupted in parts."""
    monkeypatch.setattr(corruptions, "PART_VALUES", 3 * IMAGES[0].size)
    for severity in SEVERITIES:
        generator = np.random.default_rng([5, NOISE.index(name), severity])
        level, images = strength(name, severity), IMAGES / 255
        if name == "gaussian_noise":
            wanted = images + generator.normal(scale=level, size=images.shape)
        elif name == "shot_noise":
            wanted = generator.poisson(images * level) / level
        else:
            hit, white = generator.random((2, *images.shape))
            wanted = np.where(hit < level, white < 0.5, images)
        bits = np.round(255 * np.clip(wanted, 0, 1)).astype(np.uint8)
        np.testing.assert_array_equal(corrupt(IMAGES, name, severity, seed=5), bits)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_memory_does_not_grow_with_the_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corruptions, "PART_VALUES", LARGE[0].size)
    images = np.repeat(LARGE, 4, axis=0)
    tracemalloc.start()
    corrupted = corrupt(images, name, 2, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Ten arrays of one image in float64. The 16 images would be 16 of these in every step.
    assert peak - corrupted.nbytes < 10 * 8 * LARGE[0].size


def test_no_images_stay_none() -> None:
    assert corrupt(IMAGES[:0], "contrast", 1, seed=0).shape == (0, 32, 32, 3)


@pytest.mark.parametrize("images", [IMAGES, LARGE, LARGE[:, :90]], ids=["32", "224", "90 x 224"])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_keep_the_kind_of_images_and_repeat(name: str, images: NDArray[np.uint8]) -> None:
    before = images.copy()
    corrupted = corrupt(images, name, 3, seed=0)
    assert corrupted.dtype == np.uint8
    assert corrupted.shape == images.shape
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(corrupted, corrupt(images, name, 3, seed=0))


@pytest.mark.parametrize("images", [IMAGES, LARGE], ids=["32", "224"])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_severity_changes_images_more(name: str, images: NDArray[np.uint8]) -> None:
    changes = [np.abs(corrupt(images, name, severity, seed=0).astype(float) - images).mean() for severity in SEVERITIES]
    assert changes[0] > 0
    assert changes == sorted(changes)


@pytest.mark.parametrize("name", NOISE)
def test_noise_depends_on_the_seed_and_differs_from_image_to_image(name: str) -> None:
    noisy = corrupt(grey(128, 2), name, 3, seed=0)
    assert (noisy != corrupt(grey(128, 2), name, 3, seed=1)).any()
    assert (noisy[0] != noisy[1]).any()


@pytest.mark.parametrize(("side", "count"), [(32, 50), (224, 1)])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_the_noise_has_the_spread_of_the_paper(severity: int, side: int, count: int) -> None:
    """More than 150,000 values: the standard error of a spread is 0.2 % of it."""
    level, image = 128 / 255, grey(128, count, side)

    gaussian = corrupt(image, "gaussian_noise", severity, seed=0) / 255
    values = stats.norm(level, strength("gaussian_noise", severity, side)).rvs(10**6, random_state=0)
    # Noise is cut off at black and white.
    assert gaussian.std() == pytest.approx(np.clip(values, 0, 1).std(), rel=0.02)
    shot, photons = corrupt(image, "shot_noise", severity, seed=0) / 255, strength("shot_noise", severity, side)
    counts = np.clip(stats.poisson(level * photons).rvs(10**6, random_state=0) / photons, 0, 1)
    assert shot.mean() == pytest.approx(counts.mean(), rel=0.01)
    assert shot.var() == pytest.approx(counts.var(), rel=0.05)
    impulse = corrupt(image, "impulse_noise", severity, seed=0)
    assert set(np.unique(impulse)) == {0, 128, 255}
    assert (impulse != 128).mean() == pytest.approx(strength("impulse_noise", severity, side), rel=0.1)
    assert (impulse == 255).sum() / (impulse != 128).sum() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("side", [33, 225])
def test_blur_is_a_gaussian(side: int) -> None:
    # A square of 9 x 9, because a single pixel would leave less than a level of the widest blur.
    middle = side // 2
    image = np.zeros((1, side, side, 3), np.uint8)
    image[0, middle - 4 : middle + 5, middle - 4 : middle + 5] = 255
    for severity in SEVERITIES:
        blurred = corrupt(image, "gaussian_blur", severity, seed=0)[0, :, :, 0] / 255
        spread = strength("gaussian_blur", severity) if side == 33 else side / 224 * (1, 2, 3, 4, 6)[severity - 1]
        reach = int(4 * spread + 0.5)
        line = np.exp(-((np.arange(-reach, reach + 1) / spread) ** 2) / 2)
        across = np.convolve(image[0, middle, :, 0] / 255, line / line.sum(), mode="same")
        np.testing.assert_allclose(blurred, np.outer(across, across), atol=0.003)


def test_brightness_adds_to_the_value_of_hsv() -> None:
    for severity in SEVERITIES:
        for images in (IMAGES, LARGE):
            hsv = tf.image.rgb_to_hsv(images / 255.0).numpy()
            hsv[..., 2] = np.minimum(hsv[..., 2] + strength("brightness", severity, images.shape[1]), 1)
            wanted = 255 * tf.image.hsv_to_rgb(hsv).numpy()
            np.testing.assert_allclose(corrupt(images, "brightness", severity, seed=0), wanted, atol=1.0)
    assert set(np.unique(corrupt(grey(0), "brightness", 5, seed=0))) == {round(0.3 * 255)}


@pytest.mark.parametrize(("images", "fraction"), [(IMAGES, 0.5), (LARGE, 0.3)], ids=["32", "224"])
def test_contrast_scales_the_distance_from_the_mean_colour(images: NDArray[np.uint8], fraction: float) -> None:
    corrupted = corrupt(images, "contrast", 2, seed=0)
    for image, changed in zip(images, corrupted, strict=True):
        for channel in range(3):
            values = image[..., channel].astype(float)
            wanted = fraction * (values - values.mean()) + values.mean()
            np.testing.assert_allclose(changed[..., channel], wanted, atol=0.51)


@pytest.mark.parametrize("images", [IMAGES, LARGE], ids=["32", "224"])
def test_jpeg_and_pixelate_are_those_of_another_library(images: NDArray[np.uint8]) -> None:
    """Pillow, which CIFAR-10-C and ImageNet-C were made with."""
    whole = images.shape[1]
    for severity in SEVERITIES:
        files = corrupt(images, "jpeg_compression", severity, seed=0)
        pixelated = corrupt(images, "pixelate", severity, seed=0)
        for place, image in enumerate(images):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=int(strength("jpeg_compression", severity, whole)))
            decoded = np.asarray(Image.open(file)).astype(float)
            assert np.abs(files[place] - decoded).mean() < 2  # two decoders
            side = int(whole * strength("pixelate", severity, whole))
            small = Image.fromarray(image).resize((side, side), Image.Resampling.BOX)
            large = np.asarray(small.resize((whole, whole), Image.Resampling.BOX)).astype(float)
            assert np.abs(pixelated[place] - large).max() <= 1
