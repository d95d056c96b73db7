"""Mixing: each image of a batch is mixed with another one, and so are their labels. The result depends only on the batch and its key."""

from collections.abc import Callable

import tensorflow as tf

from cifar_keras.config import AugmentationConfig
from cifar_keras.data.pipeline import Batch, Targets
from cifar_keras.data.seeds import KeyedSeeds

# Takes a batch of float32 images 0..255 and the seeds of this batch.
Mixing = Callable[[Batch, KeyedSeeds], Batch]


def make_mixing(config: AugmentationConfig) -> Mixing | None:
    """Return the function that mixes the images of a batch by MixUp, by CutMix, or each image by one of both; None if both are off.

    The partner of image i is image i - 1, and that of the first image is the last. Batches are shuffled, so partners are random.

    - MixUp (arXiv:1710.09412): `w * image + (1 - w) * partner`.
    - CutMix (arXiv:1905.04899, section 3.1): a rectangle of the image is replaced by the partner's. Its sides are sqrt(1 - w) of the
      image's, its centre is uniform, and what lies outside of the image is cut off. Then w becomes the image's fraction of the pixels.

    The labels are mixed by the same w. It is drawn from Beta(alpha, alpha), for each image anew. If both are on, each image takes
    one of them, with equal probability (as in timm, which draws for the whole batch).

    Args:
        config: the settings with both alphas.
    """
    if not config.mixup_alpha and not config.cutmix_alpha:
        return None

    def mix(batch: Batch, seeds: KeyedSeeds) -> Batch:
        images, labels = batch.inputs, batch.targets["labels"]
        count = tf.shape(images)[0]
        # All are drawn, whichever is used, so that the draws of one do not change if the other one is turned on.
        blend, cut = (beta(alpha or 1.0, count, seeds) for alpha in (config.mixup_alpha, config.cutmix_alpha))
        inside, remaining = rectangles(cut, tf.shape(images)[1:3], seeds)
        blends = _blends(config, seeds.uniform([count]))
        of_image = tf.where(_over_pixels(blends), _over_pixels(blend), 1 - inside)
        of_label = tf.where(blends, blend, remaining)[:, None]
        mixed = _mean(images, of_image)
        targets: Targets = {**batch.targets, "labels": _mean(labels, of_label)}
        return Batch(tf.ensure_shape(mixed, images.shape), targets)

    return mix


def beta(alpha: float, count: tf.Tensor, seeds: KeyedSeeds) -> tf.Tensor:
    """Return numbers drawn from Beta(alpha, alpha), float32 `[count]`, as the ratio of two Gamma variables.

    In float64, because for a small alpha both variables are so small that float32 has no such numbers.
    """
    first, second = (tf.random.stateless_gamma([count], seeds.next(), alpha, dtype=tf.float64) for _ in range(2))
    return tf.cast(first / (first + second), tf.float32)


def rectangles(weight: tf.Tensor, size: tf.Tensor, seeds: KeyedSeeds) -> tuple[tf.Tensor, tf.Tensor]:
    """Return a random rectangle for each image (arXiv:1905.04899, equation 2), and the fraction of the pixels outside of it.

    Args:
        weight: float32 `[n]`, the fraction that is outside if the rectangle is not cut off.
        size: height and width of the images, int32 `[2]`.
        seeds: of the rectangles' centres.

    Returns:
        1 inside of the rectangle and 0 outside, float32 `[n, height, width, 1]`; and float32 `[n]`.
    """
    count = tf.shape(weight)[0]
    share = tf.sqrt(1 - weight)
    inside = []
    for axis in range(2):
        pixels = tf.cast(size[axis], tf.float32)
        centre, half = tf.floor(seeds.uniform([count]) * pixels), tf.floor(share * pixels) / 2
        begin, end = tf.floor(centre - half), tf.floor(centre + half)
        places = tf.range(pixels)[None]
        inside.append(tf.cast((places >= begin[:, None]) & (places < end[:, None]), tf.float32))
    rows, columns = inside
    remaining = 1 - tf.reduce_mean(rows, axis=1) * tf.reduce_mean(columns, axis=1)
    return (rows[:, :, None] * columns[:, None, :])[..., None], remaining


def _blends(config: AugmentationConfig, draw: tf.Tensor) -> tf.Tensor:
    """Return which images are mixed by MixUp, given a number 0..1 for each."""
    if config.mixup_alpha and config.cutmix_alpha:
        return draw < 0.5
    return tf.fill(tf.shape(draw), bool(config.mixup_alpha))


def _mean(values: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """Return `weight * value + (1 - weight) * value of the partner`."""
    return weight * values + (1 - weight) * tf.roll(values, 1, axis=0)


def _over_pixels(values: tf.Tensor) -> tf.Tensor:
    return values[:, None, None, None]
