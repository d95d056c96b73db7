"""Corrupt images in common ways at five severities. Nothing has to be downloaded.

These are eight of the corruptions of Hendrycks and Dietterich (arXiv:1903.12261), as strong as in their CIFAR-10-C. They are for
evaluation; training never sees them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from scipy import ndimage

SEVERITIES = (1, 2, 3, 4, 5)

# A function from float64 images [n, height, width, 3] in 0..1, a strength and a random generator to images of the same shape, not yet
# clipped.
CorruptionFunction = Callable[[NDArray[np.float64], float, np.random.Generator], NDArray[np.float64]]


class Corruption(NamedTuple):
    """One way to corrupt images."""

    function: CorruptionFunction
    strengths: tuple[float, float, float, float, float]  # of the severities 1 to 5


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
    corruption = CORRUPTIONS[name]
    generator = np.random.default_rng([seed, list(CORRUPTIONS).index(name), severity])
    changed = corruption.function(images / 255.0, corruption.strengths[severity - 1], generator)
    return np.round(255 * np.clip(changed, 0, 1)).astype(np.uint8)


def _gaussian_noise(
    images: NDArray[np.float64], strength: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    return images + generator.normal(scale=strength, size=images.shape)


def _shot_noise(images: NDArray[np.float64], strength: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Add the noise of counted photons; the strength is the number of photons of a white value."""
    return generator.poisson(images * strength) / strength


def _impulse_noise(images: NDArray[np.float64], strength: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Set a fraction of the values, of each channel on its own, to black or white."""
    hit, white = generator.random((2, *images.shape)) < np.array([strength, 0.5]).reshape(2, 1, 1, 1, 1)
    return np.where(hit, white, images)


def _gaussian_blur(
    images: NDArray[np.float64], strength: float, _generator: np.random.Generator
) -> NDArray[np.float64]:
    """Blur by a Gaussian; the strength is its standard deviation in pixels."""
    blurred: NDArray[np.float64] = ndimage.gaussian_filter(images, (0, strength, strength, 0), mode="nearest")
    return blurred


def _brightness(images: NDArray[np.float64], strength: float, _generator: np.random.Generator) -> NDArray[np.float64]:
    """Add to the value of HSV: the largest channel grows by the strength, and the others in proportion."""
    value = images.max(axis=-1, keepdims=True)
    brighter = np.minimum(value + strength, 1)
    # The channels of a black pixel have no proportion, so all of them become the new value.
    black = np.broadcast_to(brighter, images.shape).copy()
    changed: NDArray[np.float64] = np.divide(images * brighter, value, out=black, where=value > 0)
    return changed


def _contrast(images: NDArray[np.float64], strength: float, _generator: np.random.Generator) -> NDArray[np.float64]:
    """Scale the differences from each image's mean colour."""
    mean: NDArray[np.float64] = images.mean(axis=(1, 2), keepdims=True)
    return (images - mean) * strength + mean


def _pixelate(images: NDArray[np.float64], strength: float, _generator: np.random.Generator) -> NDArray[np.float64]:
    """Shrink to a fraction of the side and enlarge again, both with a box filter."""
    changed = images
    for shape in ([int(side * strength) for side in images.shape[1:3]], images.shape[1:3]):
        rows, columns = (_box_weights(old, new) for old, new in zip(changed.shape[1:3], shape, strict=True))
        changed = np.einsum("yh,nhwc,xw->nyxc", rows, changed, columns, optimize=True)
    return changed


def _box_weights(old: int, new: int) -> NDArray[np.float64]:
    """Return the weights `[new, old]` of `old` pixels of a line in each of `new` pixels, as in Pillow's box filter.

    A new pixel is the plain mean of the old pixels whose centres it covers. In an enlarged line it is the one old pixel that it lies in.
    """
    scale = old / new
    offsets = np.arange(old)[None] + 0.5 - (np.arange(new)[:, None] + 0.5) * scale
    covered = (offsets > -0.5 * max(scale, 1.0)) & (offsets <= 0.5 * max(scale, 1.0))
    weights: NDArray[np.float64] = covered / covered.sum(axis=1, keepdims=True)
    return weights


def _jpeg(images: NDArray[np.float64], strength: float, _generator: np.random.Generator) -> NDArray[np.float64]:
    """Compress to JPEG and decompress; the strength is the quality of the file."""
    bytes_of = np.round(255 * images).astype(np.uint8)
    files = [tf.io.encode_jpeg(image, quality=int(strength)) for image in bytes_of]
    return np.stack([tf.io.decode_jpeg(file).numpy() for file in files]) / 255.0


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Corruption(_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": Corruption(_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "gaussian_blur": Corruption(_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "brightness": Corruption(_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "jpeg_compression": Corruption(_jpeg, (80, 65, 58, 50, 40)),
    "pixelate": Corruption(_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
}
