import itertools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from scipy import ndimage, stats

from cifar_keras.config import AugmentationConfig
from cifar_keras.data.augmentation import is_flip_alone, make_augmentation
from cifar_keras.data.pipeline import Batch, Targets, of_views
from cifar_keras.data.seeds import KeyedSeeds

OFF: dict[str, Any] = {"flip": False, "crop_padding": 0}
ONE_EACH: list[dict[str, Any]] = [
    {"flip": True},
    {"crop_padding": 4},
    {"rotation_degrees": 20.0},
    {"zoom": 0.3},
    {"color_jitter": 0.5},
    {"cutout": 8},
    {"grid_mask": 0.4},
    {"resized_crop_scale": 0.3},
]
Images = NDArray[np.uint8]
VIEW = 1000.0  # from what stands for an image to what stands for its mirror image


def noise(count: int, seed: int = 0) -> Images:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def augmented(images: Images, key: tuple[int, int] = (0, 0), **settings: Any) -> Images:
    return np.asarray(augmented_batch(images, key, **settings).inputs)


def augmented_batch(images: Images, key: tuple[int, int] = (0, 0), **settings: Any) -> Batch:
    """With targets that say where an image is in the batch, and which view of it."""
    labels = tf.range(len(images), dtype=tf.float32)[:, None]
    targets = Targets(labels=labels, teacher=tf.stack([labels, labels + VIEW], axis=1))
    augment = tf.function(make_augmentation(AugmentationConfig(**{**OFF, **settings})))
    batch = augment(Batch(tf.constant(images), targets), tf.constant(key, tf.int64))
    assert np.array_equal(batch.targets["labels"], labels)
    return Batch(*batch)


def test_it_is_the_identity_where_every_change_is_off() -> None:
    images = noise(4)
    assert np.array_equal(augmented(images), images)


@pytest.mark.parametrize("settings", ONE_EACH, ids=lambda settings: next(iter(settings)))
def test_each_change_is_a_function_of_the_key_and_differs_from_image_to_image(settings: dict[str, Any]) -> None:
    images = np.repeat(noise(1), 24, axis=0)
    tf.random.set_seed(1)
    first = augmented(images, (3, 4), **settings)
    tf.random.set_seed(2)  # what a layer with a state or a global generator would follow
    again = augmented(images, (3, 4), **settings)
    assert first.dtype == np.uint8
    assert first.shape == images.shape
    assert np.array_equal(first, again)
    assert not np.array_equal(first, augmented(images, (3, 5), **settings))
    assert not np.array_equal(first, images)
    distinct = {image.tobytes() for image in first}
    # Whether to flip has two outcomes; where all others have many, 24 equal draws of the batch would leave one.
    assert len(distinct) == 2 if "flip" in settings else len(distinct) > 12


@pytest.mark.parametrize("settings", ONE_EACH, ids=lambda settings: next(iter(settings)))
def test_a_batch_of_unknown_size_gives_the_same(settings: dict[str, Any]) -> None:
    images = noise(6)
    augment = make_augmentation(AugmentationConfig(**{**OFF, **settings}))
    labels = Targets(labels=tf.TensorSpec([None, 1]))
    signature = [Batch(tf.TensorSpec([None, 32, 32, 3], tf.uint8), labels), tf.TensorSpec([2], tf.int64)]
    batch = Batch(tf.constant(images), Targets(labels=tf.zeros([6, 1])))
    result = tf.function(augment, input_signature=signature)(batch, tf.constant([0, 0], tf.int64))
    assert np.array_equal(result.inputs, augmented(images, **settings))


# Outside of a graph, keras-cv's GridMask takes no other seeds after its first image.
@pytest.mark.parametrize("settings", [each for each in ONE_EACH if "grid_mask" not in each], ids=str)
def test_eager_equals_graph(settings: dict[str, Any]) -> None:
    images = noise(6)
    batch = Batch(tf.constant(images), Targets(labels=tf.zeros([6, 1])))
    eager = make_augmentation(AugmentationConfig(**{**OFF, **settings}))(batch, tf.constant([0, 0], tf.int64))
    assert np.array_equal(eager.inputs, augmented(images, **settings))


@pytest.mark.parametrize("more", [{}, {"crop_padding": 4}, {"color_jitter": 0.2}])
def test_a_teachers_logits_are_those_of_the_view(more: dict[str, Any]) -> None:
    """Of the mirror image where the image was mirrored, which brightness from left to right tells."""
    images = np.broadcast_to(np.linspace(0, 255, 32, dtype=np.uint8)[None, None, :, None], (64, 32, 32, 3))
    batch = augmented_batch(np.ascontiguousarray(images), flip=True, **more)
    columns = np.asarray(batch.inputs, np.float64).mean(axis=(1, 3))
    mirrored = columns[:, :16].mean(axis=1) > columns[:, 16:].mean(axis=1)
    assert 10 < mirrored.sum() < 54
    assert np.array_equal(batch.targets["teacher"][:, 0], np.arange(64) + VIEW * mirrored)


@pytest.mark.parametrize("settings", [{}, *ONE_EACH[1:]])
def test_what_is_not_mirrored_has_the_first_views_logits(settings: dict[str, Any]) -> None:
    batch = augmented_batch(noise(5), **settings)
    assert np.array_equal(batch.targets["teacher"], batch.targets["labels"])


def test_logits_of_one_view_stand_for_both() -> None:
    targets = Targets(labels=tf.eye(3), teacher=tf.constant([[[0.0]], [[1.0]], [[2.0]]]))
    assert np.array_equal(of_views(targets, tf.constant([0, 1, 1]))["teacher"], [[0], [1], [2]])


@pytest.mark.parametrize("settings", [{}, *ONE_EACH], ids=lambda settings: next(iter(settings), "none"))
def test_flips_alone_make_at_most_two_views(settings: dict[str, Any]) -> None:
    """Where more than flips is done, no image of a hundred is itself or its mirror image."""
    images = noise(100)
    views = augmented(images, **settings)
    known = [
        np.array_equal(view, image) or np.array_equal(view, image[:, ::-1])
        for view, image in zip(views, images, strict=True)
    ]
    assert is_flip_alone(AugmentationConfig(**{**OFF, **settings})) == all(known)


def test_an_aspect_ratio_without_a_crop_makes_no_view() -> None:
    config = AugmentationConfig(**OFF, resized_crop_ratio=2.0)
    assert is_flip_alone(config)
    images = noise(4)
    assert np.array_equal(augmented(images, resized_crop_ratio=2.0), images)


def test_the_seeds_of_a_key_differ_from_draw_to_draw_and_follow_the_key() -> None:
    def drawn(key: int) -> list[tuple[int, ...]]:
        seeds = KeyedSeeds(tf.constant([0, key], tf.int64))
        return [tuple(seeds.next().numpy()) for _ in range(50)]

    assert drawn(0) == drawn(0)
    assert len({*drawn(0), *drawn(1), *drawn(2)}) == 150


def test_turning_one_change_on_leaves_the_draws_of_another() -> None:
    # Mid-grey images show the cutout and nothing of flip and crop.
    grey = np.full((8, 32, 32, 3), 200, np.uint8)
    others: dict[str, Any] = {"flip": True, "crop_padding": 4, "resized_crop_scale": 0.1}
    assert np.array_equal(augmented(grey, cutout=8), augmented(grey, cutout=8, **others))


def test_half_of_the_images_are_flipped() -> None:
    images = noise(4000)
    result = augmented(images, flip=True)
    flipped = (result == images[:, :, ::-1]).all(axis=(1, 2, 3))
    kept = (result == images).all(axis=(1, 2, 3))
    assert (flipped ^ kept).all()
    # Binomial: half of 4,000 has a standard deviation of 32; five of them are passed once in two million keys.
    assert abs(int(flipped.sum()) - 2000) < 5 * np.sqrt(4000 / 4)


def test_mirror_images_are_cropped_like_the_others() -> None:
    image = noise(1)[0]
    crops = {}
    for flipped, shown in enumerate((image, image[:, ::-1])):
        padded = np.pad(shown, ((1, 1), (1, 1), (0, 0)), mode="reflect")
        for row, column in itertools.product(range(3), repeat=2):
            crops[padded[row : row + 32, column : column + 32].tobytes()] = (flipped, row, column)
    results = augmented(np.repeat(image[None], 400, axis=0), flip=True, crop_padding=1)
    assert {crops[result.tobytes()] for result in results} == set(crops.values())
    assert len(set(crops.values())) == 18


@pytest.mark.parametrize("padding", [1, 2, 16])
def test_crops_equal_numpys_reflected_padding_and_reach_every_place_alike(padding: int) -> None:
    image = noise(1)[0]
    places = (2 * padding + 1) ** 2
    count = 40 * places if padding < 16 else 2000
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
    offsets = itertools.product(range(2 * padding + 1), repeat=2)
    crops = {padded[row : row + 32, column : column + 32].tobytes(): (row, column) for row, column in offsets}
    seen = [
        crops[result.tobytes()] for result in augmented(np.repeat(image[None], count, axis=0), crop_padding=padding)
    ]
    if padding == 16:
        rows, columns = np.transpose(seen)
        assert {rows.min(), columns.min(), rows.max(), columns.max()} == {0, 32}
        return
    times = np.bincount([row * (2 * padding + 1) + column for row, column in seen], minlength=places)
    # Chi-square over `places` outcomes: mean places - 1, standard deviation sqrt(2 (places - 1)).
    chi_square = ((times - 40) ** 2 / 40).sum()
    assert chi_square < places - 1 + 5 * np.sqrt(2 * (places - 1))


@pytest.mark.parametrize("side", [17, 256])
def test_crops_of_other_sides_equal_numpys_too(side: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    padding = side - 1
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
    for result in augmented(np.repeat(image[None], 4, axis=0), crop_padding=padding):
        # The middle pixel and its neighbours tell where the crop lies.
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3))[..., 0, :, :, :]
        middle = result[side // 2 - 1 : side // 2 + 2, side // 2 - 1 : side // 2 + 2]
        places = np.argwhere((windows == middle).all(axis=(2, 3, 4))) - (side // 2 - 1)
        assert any(np.array_equal(padded[y : y + side, x : x + side], result) for y, x in places if min(y, x) >= 0)


def parts_of(count: int, key: tuple[int, int] = (0, 0), **settings: Any) -> NDArray[np.float64]:
    """Read the crop of each image off its pixels: top, left, height and width, as fractions."""
    # Each pixel says in its red and green in which row and column it was.
    steps = 4 * np.arange(64, dtype=np.uint8)
    image = np.stack([*np.meshgrid(steps, steps, indexing="ij"), np.zeros((64, 64), np.uint8)], axis=-1)
    results = augmented(np.repeat(image[None], count, axis=0), key, **settings) / 4
    # The outer pixels may lie beyond the centre of the last pixel of the image.
    centres = np.arange(8, 56)
    ends, sides = [], []
    for values in (results[:, 8:56, 32, 0], results[:, 32, 8:56, 1]):
        slopes, starts = np.polynomial.polynomial.polyfit(centres + 0.5, values.T + 0.5, 1)[::-1]
        ends.append(starts / 64)
        sides.append(slopes)
    return np.stack([*ends, *sides], axis=1)


@pytest.mark.parametrize(("scale", "ratio"), [(0.08, 4 / 3), (0.6, 2.0), (0.25, 1.0)])
def test_the_parts_of_resized_crops_have_the_areas_ratios_and_places_of_the_paper(scale: float, ratio: float) -> None:
    """Kolmogorov-Smirnov tests, at p = 0.0001, of 2,000 parts that are read with an error of 0.001 of the side."""
    top, left, height, width = parts_of(2000, resized_crop_scale=scale, resized_crop_ratio=ratio).T
    assert min(height.min(), width.min()) > np.sqrt(scale / ratio) - 0.005
    assert max((top + height).max(), (left + width).max()) < 1.005
    assert min(top.min(), left.min()) > -0.005
    area = height * width
    assert stats.kstest(area, stats.uniform(scale, 1 - scale).cdf).pvalue > 1e-4
    logs = np.log(width / height)
    if ratio == 1:
        assert np.abs(logs).max() < 0.02
    else:
        # Of small areas every ratio fits; of a large one those that leave both sides within the image.
        widest = np.minimum(np.log(ratio), -np.log(np.minimum(area, 1)))
        clear = widest > 0.2
        assert 0.96 < np.abs(logs / widest)[clear].max() < 1.03
        assert stats.kstest((logs / widest)[clear], stats.uniform(-1, 2).cdf).pvalue > 1e-4
        assert np.abs(stats.spearmanr(area[clear], (logs / widest)[clear]).statistic) < 4 / np.sqrt(clear.sum())
    for start, side in ((top, height), (left, width)):
        free = side < 0.9
        assert stats.kstest((start / (1 - side))[free], stats.uniform(0, 1).cdf).pvalue > 1e-4


def test_height_and_width_of_a_resized_crop_are_exchangeable_and_its_places_independent() -> None:
    top, left, height, width = parts_of(2000, resized_crop_scale=0.2, resized_crop_ratio=3.0).T
    assert stats.ks_2samp(height, width).pvalue > 1e-4
    assert abs(stats.spearmanr(top / (1 - height), left / (1 - width)).statistic) < 4 / np.sqrt(2000)


@pytest.mark.parametrize("shape", [(64, 64), (48, 80), (256, 256)])
def test_a_resized_crop_equals_scipys_interpolation(shape: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, *shape, 3), dtype=np.uint8)
    scale, largest, number = 0.1, 1.5, 6  # its number among the operations
    seeds = KeyedSeeds(
        tf.random.experimental.stateless_fold_in(tf.constant((3, 4), tf.int64), tf.constant(number, tf.int64))
    )
    area, sideways, *free = (
        seeds.uniform([6], *bounds).numpy().astype(float) for bounds in ((scale,), (-1.0,), (), ())
    )
    ratio = np.minimum(largest, 1 / area) ** sideways
    lines = []
    for size, length, start in zip(shape, (np.sqrt(area / ratio), np.sqrt(area * ratio)), free, strict=True):
        # The centre of pixel i is at i + 0.5.
        begin, centres = (1 - length) * start * size, np.arange(size) + 0.5
        lines.append(begin[:, None] + length[:, None] * centres - 0.5)
    for image, rows, columns, result in zip(
        images, *lines, augmented(images, (3, 4), resized_crop_scale=scale, resized_crop_ratio=largest), strict=True
    ):
        places = np.meshgrid(rows, columns, indexing="ij")
        for channel in range(3):
            wanted = ndimage.map_coordinates(image[..., channel] / 1.0, places, order=1, mode="nearest")
            # A rounding, and the rounding of a place in float32.
            assert np.abs(result[..., channel] - wanted).max() < 0.52


def test_the_largest_resized_crops_are_the_image() -> None:
    images = noise(8)
    assert np.array_equal(augmented(images, resized_crop_scale=1.0), images)
    nearly = augmented(images, resized_crop_scale=0.999999, resized_crop_ratio=4.0).astype(int)
    assert np.abs(nearly - images).max() <= 1


def test_nothing_comes_into_a_resized_crop_from_outside() -> None:
    assert augmented(np.full((500, 16, 16, 3), 200, np.uint8), resized_crop_scale=0.05).min() == 200


def test_rotation_stays_within_its_angle_and_turns_both_ways() -> None:
    # A dot 12 pixels above the centre; where its light goes tells the angle.
    dot = np.zeros((200, 32, 32, 3), np.uint8)
    dot[:, 3:5, 15:17] = 255
    result = augmented(dot, rotation_degrees=30.0).astype(float).sum(axis=-1)
    result[:, 16:] = 0  # what is reflected in from below
    weights = result / result.sum(axis=(1, 2), keepdims=True)
    rows = (weights * np.arange(32)[:, None]).sum(axis=(1, 2)) - 15.5
    columns = (weights * np.arange(32)).sum(axis=(1, 2)) - 15.5
    angles = np.degrees(np.arctan2(columns, -rows))
    assert np.hypot(rows, columns) == pytest.approx(12, abs=0.3)
    assert -31 < angles.min() < -25
    assert 25 < angles.max() < 31


def test_zoom_stays_within_its_fraction_and_goes_both_ways() -> None:
    # Two lines 16 columns apart: their distance divided by 16 is the enlargement.
    lines = np.zeros((200, 32, 32, 3), np.uint8)
    lines[:, :, [8, 24]] = 255
    row = augmented(lines, zoom=0.2)[:, 16, :, 0].astype(float)
    left, right = row[:, :16], row[:, 16:]
    left[:, :4], right[:, 13:] = 0, 0  # what is reflected in from outside
    columns = np.arange(16)
    distances = (right * columns).sum(1) / right.sum(1) + 16 - (left * columns).sum(1) / left.sum(1)
    # Keras's zoom z takes a view of (1 + z) times the side, so enlargement is 1 / (1 + z).
    assert 16 / 1.2 - 0.3 < distances.min() < 16 / 1.15
    assert 16 / 0.85 < distances.max() < 16 / 0.8 + 0.3


def jitter_draws(count: int, strength: float, key: tuple[int, int]) -> tuple[NDArray[np.float32], ...]:
    """Draw what the three parts of the jitter draw, in their order, from TensorFlow alone."""
    number = 3  # its place among the operations
    seeds = KeyedSeeds(
        tf.random.experimental.stateless_fold_in(tf.constant(key, tf.int64), tf.constant(number, tf.int64))
    )
    return tuple(1 + seeds.uniform([count], -strength, strength).numpy() for _ in range(3))


def test_color_jitter_equals_its_formula() -> None:
    images = noise(6)
    brightness, contrast, saturation = (part[:, None, None, None] for part in jitter_draws(6, 0.6, (1, 2)))
    expected = images + (brightness - 1) * 127.5
    mean = expected.mean(axis=(1, 2), keepdims=True)
    expected = mean + (expected - mean) * contrast
    grey = (expected @ [0.299, 0.587, 0.114])[..., None]
    expected = np.clip(grey + (expected - grey) * saturation, 0, 255)
    result = augmented(images, (1, 2), color_jitter=0.6)
    assert np.abs(result - np.round(expected)).max() <= 1
    # Rounded, not cut off, which would lie half a level below on average.
    assert abs((result - expected).mean()) < 0.05


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_the_parts_of_color_jitter_are_equally_strong_in_both_directions(strength: float) -> None:
    brightness, contrast, saturation = jitter_draws(5000, strength, (0, 0))
    for relative in (brightness, contrast, saturation):
        assert 1 - strength <= relative.min() < 1 - 0.97 * strength
        assert 1 + 0.97 * strength < relative.max() <= 1 + strength * (1 + 1e-5)


def test_brightness_of_mid_grey_moves_by_up_to_its_fraction() -> None:
    # Contrast and saturation leave an image of one grey as it is.
    grey = np.full((500, 8, 8, 3), 128, np.uint8)
    result = augmented(grey, color_jitter=0.25)
    assert (result == result[:, :1, :1, :1]).all()
    assert 96 <= result.min() < 100
    assert 156 < result.max() <= 160


def test_cutout_blanks_a_square_around_any_pixel() -> None:
    images = np.full((3000, 32, 32, 3), 7, np.uint8)
    result = augmented(images, cutout=6)
    blank = (result == 128).all(axis=-1)
    assert (blank | (result == 7).all(axis=-1)).all()
    rows, columns = blank.any(axis=2), blank.any(axis=1)
    assert np.array_equal(blank, rows[:, :, None] & columns[:, None, :])
    for sides in (rows.sum(axis=1), columns.sum(axis=1)):
        # Around the 32 places of a centre: 3 at the low border and 2 at the high one cut the square off.
        assert sides.min() == 3
        assert sides.max() == 6
        assert (sides == 6).mean() == pytest.approx(27 / 32, abs=5 * np.sqrt(27 / 32 * 5 / 32 / 3000))


def test_grid_mask_blanks_its_fraction_of_the_cells() -> None:
    images = np.full((200, 32, 32, 3), 7, np.uint8)
    blank = (augmented(images, grid_mask=0.5) == 128).all(axis=-1)
    # A square of half the cell's side covers a quarter of it; turning the mask with interpolation widens each square by up to
    # two pixels, of at least 5 in a cell of 9.6: (7 / 9.6) ** 2 = 0.53.
    assert 0.2 < blank.mean() < 0.53
    assert blank.any(axis=(1, 2)).all()


def test_a_mixed_precision_policy_does_not_coarsen_the_pixels() -> None:
    images = noise(8)
    settings: dict[str, Any] = {"flip": True, "rotation_degrees": 20.0, "zoom": 0.2, "color_jitter": 0.5}
    expected = augmented(images, **settings)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert np.array_equal(augmented(images, **settings), expected)
    finally:
        keras.config.set_dtype_policy(policy)
