"""Corrupt images in common ways at five severities. Nothing has to be downloaded.

These are eight of the corruptions of Hendrycks and Dietterich (arXiv:1903.12261). They are as strong as in their CIFAR-10-C, of images
of 32 px, or as in their ImageNet-C, of 224 px: see `published_set`. They are for evaluation; training never sees them.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from scipy import ndimage

SEVERITIES = (1, 2, 3, 4, 5)
# The strengths of CIFAR-10-C are for images up to this side, twice that of its own. A blur of 1 px is nothing in a photograph, and one
# of 6 px leaves nothing of an image of 32 px.
LARGEST_CIFAR10_C_SIDE = 64
IMAGENET_C_SIDE = 224
# Images are corrupted in parts of at most this many values, or one by one, so that float64 takes some 25 MB for each step of a
# corruption. It is 1,000 images of 32 px.
PART_VALUES = 1000 * 32 * 32 * 3


class Draws(NamedTuple):
    """The random draws of a part of the images.

    Each generator goes on where it stopped at the part before. So a draw for each value of all images is the same in any parts.
    """

    first: np.random.Generator
    second: np.random.Generator  # begins where `first` is after one uniform draw for each value of all images


# A function from float64 images [n, height, width, 3] in 0..1, a strength and random draws to images of the same shape, not yet clipped.
CorruptionFunction = Callable[[NDArray[np.float64], float, Draws], NDArray[np.float64]]


class Corruption(NamedTuple):
    """One way to corrupt images, and how strong it is at the severities 1 to 5."""

    function: CorruptionFunction
    cifar10_c: tuple[float, float, float, float, float]
    imagenet_c: tuple[float, float, float, float, float]
    is_in_pixels: bool = False  # whether the strength is a length in the image


def corrupt(images: NDArray[np.uint8], name: str, severity: int, *, seed: int) -> NDArray[np.uint8]:
    """Return the images, corrupted. Each image gets random draws of its own.

    Args:
        images: uint8 `[n, height, width, 3]`, RGB.
        name: a key of `CORRUPTIONS`.
        severity: 1..5.
        seed: seed of the noise. Each corruption and severity has draws of its own. The same arguments give the same images.

    Returns:
        uint8, of the shape of `images`.
    """
    strength = strength_of(name, severity, _side_of(images))
    first, second = (np.random.PCG64([seed, list(CORRUPTIONS).index(name), severity]) for _ in range(2))
    draws = Draws(np.random.Generator(first), np.random.Generator(second.advance(images.size)))
    corrupted = np.empty_like(images)
    count = max(1, PART_VALUES // max(1, images[:1].size))
    for start in range(0, len(images), count):
        part = images[start : start + count]
        changed = CORRUPTIONS[name].function(part / 255.0, strength, draws)
        corrupted[start : start + count] = np.round(255 * np.clip(changed, 0, 1))
    return corrupted


def published_set(images: NDArray[np.uint8]) -> Literal["CIFAR-10-C", "ImageNet-C"]:
    """Return the published set whose strengths fit images `[n, height, width, 3]`, by their shorter side: up to 64 px, or above."""
    return "CIFAR-10-C" if _side_of(images) <= LARGEST_CIFAR10_C_SIDE else "ImageNet-C"


def strength_of(name: str, severity: int, side: int) -> float:
    """Return the strength of a corruption of images whose shorter side has `side` pixels.

    The strengths of ImageNet-C are for 224 px. At another side, the blur is the same in proportion to the image. Every other strength
    is a noise, a change of colour, a quality or a fraction, and stays as it is.
    """
    corruption = CORRUPTIONS[name]
    if side <= LARGEST_CIFAR10_C_SIDE:
        return corruption.cifar10_c[severity - 1]
    strength = corruption.imagenet_c[severity - 1]
    return strength * side / IMAGENET_C_SIDE if corruption.is_in_pixels else strength


def _side_of(images: NDArray[np.uint8]) -> int:
    return int(min(images.shape[1:3]))


def _gaussian_noise(images: NDArray[np.float64], strength: float, draws: Draws) -> NDArray[np.float64]:
    return images + draws.first.normal(scale=strength, size=images.shape)


def _shot_noise(images: NDArray[np.float64], strength: float, draws: Draws) -> NDArray[np.float64]:
    """Add the noise of counted photons; the strength is the number of photons of a white value."""
    return draws.first.poisson(images * strength) / strength


def _impulse_noise(images: NDArray[np.float64], strength: float, draws: Draws) -> NDArray[np.float64]:
    """Set a fraction of the values, of each channel on its own, to black or white."""
    hit, white = draws.first.random(images.shape) < strength, draws.second.random(images.shape) < 0.5
    return np.where(hit, white, images)


def _gaussian_blur(images: NDArray[np.float64], strength: float, _draws: Draws) -> NDArray[np.float64]:
    """Blur by a Gaussian; the strength is its standard deviation in pixels."""
    blurred: NDArray[np.float64] = ndimage.gaussian_filter(images, (0, strength, strength, 0), mode="nearest")
    return blurred


def _brightness(images: NDArray[np.float64], strength: float, _draws: Draws) -> NDArray[np.float64]:
    """Add to the value of HSV: the largest channel grows by the strength, and the others in proportion."""
    value = images.max(axis=-1, keepdims=True)
    brighter = np.minimum(value + strength, 1)
    # The channels of a black pixel have no proportion, so all of them become the new value.
    black = np.broadcast_to(brighter, images.shape).copy()
    changed: NDArray[np.float64] = np.divide(images * brighter, value, out=black, where=value > 0)
    return changed


def _contrast(images: NDArray[np.float64], strength: float, _draws: Draws) -> NDArray[np.float64]:
    """Scale the differences from each image's mean colour."""
    mean: NDArray[np.float64] = images.mean(axis=(1, 2), keepdims=True)
    return (images - mean) * strength + mean


def _pixelate(images: NDArray[np.float64], strength: float, _draws: Draws) -> NDArray[np.float64]:
    """Shrink to a fraction of the side and enlarge again, both with a box filter."""
    # One by one: a product of several images may sum in another order, and a mean of pixels is often half a level, which the sum's last
    # bit rounds up or down.
    changed = list(np.split(images, len(images)))
    for shape in ([int(side * strength) for side in images.shape[1:3]], images.shape[1:3]):
        rows, columns = (_box_weights(old, new) for old, new in zip(changed[0].shape[1:3], shape, strict=True))
        changed = [np.einsum("yh,nhwc,xw->nyxc", rows, image, columns, optimize=True) for image in changed]
    return np.concatenate(changed)


def _box_weights(old: int, new: int) -> NDArray[np.float64]:
    """Return the weights `[new, old]` of `old` pixels of a line in each of `new` pixels, as in Pillow's box filter.

    A new pixel is the plain mean of the old pixels whose centres it covers. In an enlarged line it is the one old pixel that it lies in.
    """
    scale = old / new
    offsets = np.arange(old)[None] + 0.5 - (np.arange(new)[:, None] + 0.5) * scale
    covered = (offsets > -0.5 * max(scale, 1.0)) & (offsets <= 0.5 * max(scale, 1.0))
    weights: NDArray[np.float64] = covered / covered.sum(axis=1, keepdims=True)
    return weights


def _jpeg(images: NDArray[np.float64], strength: float, _draws: Draws) -> NDArray[np.float64]:
    """Compress to JPEG and decompress; the strength is the quality of the file."""
    bytes_of = np.round(255 * images).astype(np.uint8)
    files = [tf.io.encode_jpeg(image, quality=int(strength)) for image in bytes_of]
    return np.stack([tf.io.decode_jpeg(file).numpy() for file in files]) / 255.0


# The strengths are those of the authors' programs for the two sets.
CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": Corruption(_shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": Corruption(_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "gaussian_blur": Corruption(_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6), is_in_pixels=True),
    "brightness": Corruption(_brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption(_contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "jpeg_compression": Corruption(_jpeg, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
    "pixelate": Corruption(_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
}
