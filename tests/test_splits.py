import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cifar_keras.data.splits import hold_out
from cifar_keras.errors import UserError


def balanced(images_of_a_class: int) -> NDArray[np.int64]:
    return np.random.default_rng(7).permutation(np.repeat(np.arange(10, dtype=np.int64), images_of_a_class))


def test_a_tenth_of_50000_is_500_of_each_class() -> None:
    labels = balanced(5000)
    train, validation = hold_out(labels, 0.1, seed=0, flag="validation_share")
    assert train.dtype == validation.dtype == np.int64
    assert (len(train), len(validation)) == (45_000, 5_000)
    assert np.bincount(labels[train]).tolist() == [4500] * 10
    assert np.bincount(labels[validation]).tolist() == [500] * 10


@pytest.mark.parametrize("fraction", [0.01, 0.07, 0.123, 0.5, 0.93])
def test_the_two_splits_hold_every_image_once_in_rising_order(fraction: float) -> None:
    labels = np.random.default_rng(1).integers(0, 10, 5000)
    train, validation = hold_out(labels, fraction, seed=3, flag="validation_share")
    assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(5000))
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()
    assert len(validation) == round(5000 * fraction)
    # Stratified: within one image of the fraction in every class.
    assert (np.abs(np.bincount(labels[validation]) - fraction * np.bincount(labels)) <= 1).all()


def test_a_fraction_that_binary_fractions_cannot_hold_is_not_rounded_up() -> None:
    assert 50_000 * 0.07 > 3500
    assert len(hold_out(balanced(5000), 0.07, seed=0, flag="validation_share")[1]) == 3500


def test_the_seed_decides() -> None:
    labels = balanced(100)
    first, again, other = (hold_out(labels, 0.1, seed=seed, flag="validation_share")[1] for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("labels", "fraction"),
    [
        (balanced(100), 0.001),  # one image for ten classes
        (balanced(100), 0.0001),  # none at all
        (balanced(100), 0.999),
        (np.repeat(np.arange(2), [999, 1]), 0.5),  # a class of one image
        (
            np.repeat(np.arange(2), [9990, 10]),
            0.01,
        ),  # its fraction rounds to none, although there is room for both classes
    ],
)
def test_a_split_without_a_class_is_refused(labels: NDArray[np.int64], fraction: float) -> None:
    with pytest.raises(UserError, match=rf"--validation_share .* Received: {fraction}$"):
        hold_out(labels, fraction, seed=0, flag="validation_share")


@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=12),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31 - 1),
)
def test_any_split_is_whole_stratified_and_the_seeds_or_refused(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    try:
        train, validation = hold_out(labels, fraction, seed, "validation_share")
    except UserError:
        # Only where a class has too few images for both splits, or a split too few for all classes.
        held_out = round(sum(counts) * fraction)
        too_few = min(held_out, sum(counts) - held_out) < len(counts)
        assert too_few or min(counts) < 2 or min(min(counts) * fraction, min(counts) * (1 - fraction)) < 1
        return
    assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(sum(counts)))
    assert set(labels[train]) == set(labels[validation]) == set(range(len(counts)))
    exact = len(validation) / sum(counts) * np.array(counts)
    assert (np.abs(np.bincount(labels[validation]) - exact) <= 1).all()
    again = hold_out(labels, fraction, seed, "validation_share")
    assert np.array_equal(train, again[0])
    assert np.array_equal(validation, again[1])
