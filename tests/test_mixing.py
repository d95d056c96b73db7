"""MixUp and CutMix: against NumPy, SciPy's Beta distribution and the papers' definitions."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from scipy import stats
from small_runs import SHORT, set_up_small, small_config, train_small
from test_trainer import Signal, join_in

from cifar_keras.config import AugmentationConfig, RunConfig, from_values, validate
from cifar_keras.data.augmentation import make_augmentation, without_mixing
from cifar_keras.data.mixing import beta, rectangles
from cifar_keras.data.pipeline import Batch, Targets
from cifar_keras.data.seeds import KeyedSeeds
from cifar_keras.errors import InterruptedRunError, UserError
from cifar_keras.training.batches import batches_of
from cifar_keras.training.checkpoints import Checkpoints
from cifar_keras.training.tasks import from_images
from cifar_keras.training.tracking import RunLog

OFF: dict[str, Any] = {"flip": False, "crop_padding": 0}
MIXUP: dict[str, Any] = {"mixup_alpha": 0.4}
CUTMIX: dict[str, Any] = {"cutmix_alpha": 1.0}
BOTH = MIXUP | CUTMIX
COUNT, SIDE = 64, 16
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)
PARTNERS = np.roll(IMAGES, 1, axis=0)


def mixed(key: tuple[int, int] = (0, 0), **settings: Any) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The images, and the weight of each in its label. Each image has a class of its own, so the label has both weights."""
    augment = tf.function(make_augmentation(AugmentationConfig(**{**OFF, **settings})))
    batch = Batch(tf.constant(IMAGES), Targets(labels=tf.eye(COUNT)))
    images, targets = augment(batch, tf.constant(key, tf.int64))
    labels = targets["labels"].numpy().astype(np.float64)
    weights = np.diagonal(labels)
    # The partner's class has the rest, and no other class has anything.
    np.testing.assert_allclose(
        labels, np.diag(weights) + np.roll(np.diag(1 - np.roll(weights, -1)), 1, axis=0), atol=1e-6
    )
    return images.numpy(), weights


def keyed(number: int) -> KeyedSeeds:
    return KeyedSeeds(tf.constant([number, 0], tf.int64))


def is_blend(images: NDArray[np.uint8], weights: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which images are the weighted mean of both, up to rounding."""
    share = weights[:, None, None, None]
    away: NDArray[np.float64] = np.abs(share * IMAGES + (1 - share) * PARTNERS - images).reshape(COUNT, -1)
    return np.array(away.max(axis=1) < 0.51)


def is_cut(images: NDArray[np.uint8], weights: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which images are the image outside of a rectangle and its partner inside, with so many pixels."""
    found = []
    for image, own, partner, weight in zip(images, IMAGES, PARTNERS, weights, strict=True):
        replaced = (image != own).any(axis=-1)
        rows, columns = np.flatnonzero(replaced.any(axis=1)), np.flatnonzero(replaced.any(axis=0))
        rectangle = np.zeros_like(replaced)
        if len(rows):
            rectangle[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        whole = np.where(rectangle[..., None], partner, own)
        found.append(np.array_equal(whole, image) and abs((~rectangle).mean() - weight) < 1e-6)
    return np.array(found)


def test_mixup_is_the_weighted_mean_of_images_and_labels() -> None:
    images, weights = mixed(**MIXUP)
    assert is_blend(images, weights).all()
    assert len(np.unique(weights)) == COUNT  # each image has its own


def test_cutmix_puts_a_rectangle_of_the_partner_into_the_image() -> None:
    images, weights = mixed(**CUTMIX)
    assert is_cut(images, weights).all()
    assert len(np.unique(weights)) > 10


def test_with_both_each_image_takes_one() -> None:
    blends, cuts = 0, 0
    for number in range(8):
        images, weights = mixed((number, 0), **BOTH)
        blend, cut = is_blend(images, weights), is_cut(images, weights)
        assert (blend | cut).all()
        # One that is hardly mixed is both.
        blends, cuts = blends + int((blend & ~cut).sum()), cuts + int((cut & ~blend).sum())
    assert abs(blends - cuts) < 4 * np.sqrt(8 * COUNT)


@pytest.mark.parametrize("settings", [MIXUP, CUTMIX, BOTH], ids=["mixup", "cutmix", "both"])
def test_the_key_decides_all(settings: dict[str, Any]) -> None:
    tf.random.set_seed(1)
    first = mixed((3, 4), **settings)
    tf.random.set_seed(2)
    for one, other in zip(first, mixed((3, 4), **settings), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(first[0], mixed((3, 5), **settings)[0])


def test_the_draws_of_cutmix_do_not_depend_on_mixup() -> None:
    """Images that both settings cut have the same rectangle."""
    images, _ = mixed(**CUTMIX)
    others, other_weights = mixed(**BOTH)
    cut = is_cut(others, other_weights) & ~is_blend(others, other_weights)
    assert cut.sum() > 10
    np.testing.assert_array_equal(images[cut], others[cut])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_weights_are_of_the_beta_distribution(alpha: float) -> None:
    """In bins, because float32 has no numbers between 1 and 1 less 6e-8, where 3 % of the weights of alpha 0.2 lie."""
    weights = np.asarray(beta(alpha, tf.constant(20_000), keyed(1)))
    bounds = np.array([0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1])
    found, wanted = np.histogram(weights, bounds)[0], 20_000 * np.diff(stats.beta(alpha, alpha).cdf(bounds))
    assert (
        stats.chisquare(
            found[wanted > 5], wanted[wanted > 5] * found[wanted > 5].sum() / wanted[wanted > 5].sum()
        ).pvalue
        > 0.01
    )


def test_a_small_alpha_gives_numbers() -> None:
    weights = np.asarray(beta(0.01, tf.constant(100_000), keyed(0)))
    assert np.isfinite(weights).all()
    assert 0.45 < weights.mean() < 0.55


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.75, 1.0])
def test_a_rectangle_has_the_papers_sides_where_it_is_not_cut_off(weight: float) -> None:
    height, width, count = 20, 30, 2000
    inside, remaining = rectangles(tf.fill([count], weight), tf.constant([height, width]), keyed(2))
    covered = np.asarray(inside)[..., 0]
    np.testing.assert_allclose(remaining, 1 - covered.mean(axis=(1, 2)), atol=1e-6)
    sides = [np.floor(np.float32(size) * np.sqrt(np.float32(1 - weight))) for size in (height, width)]
    found = [covered.max(axis=axis).sum(axis=1) for axis in (2, 1)]
    for largest, lengths in zip(sides, found, strict=True):
        assert lengths.max(initial=0) == largest if weight < 1 else not lengths.any()
    # Each place is a centre as often as any other: the middle row is covered as the paper's uniform centre says.
    if weight == 0.75:
        rows = covered.max(axis=2).mean(axis=0)
        assert rows[height // 2] == pytest.approx(sides[0] / height, abs=0.04)


def test_half_of_a_phase_is_mixed_wherever_a_process_begins() -> None:
    config = small_config(**SHORT | {"crop_padding": 2, "unmixed_share": 0.5, **BOTH})
    setup = set_up_small(config)
    (_, phase) = setup.phases
    task = from_images(config, setup, phase.stages[0])
    steps = phase.steps_of(phase.epochs)

    def labels(first: int) -> list[NDArray[np.float32]]:
        batches = batches_of(config, phase, range(first, steps.stop), task)
        return [batch[1]["labels"].numpy() for batch in batches]

    whole = labels(steps.start)
    assert [bool(((each > 0) & (each < 1)).any()) for each in whole] == [True] * 4 + [False] * 4
    for done in (1, 4, 6):
        for one, other in zip(labels(steps.start + done), whole[done:], strict=True):
            np.testing.assert_array_equal(one, other)
    # Mixing changes neither the order of the images nor their other changes.
    plain = make_augmentation(without_mixing(config.augmentation))
    unmixed = batches_of(config, phase, steps, task._replace(augment=plain))
    for one, other in zip(unmixed, whole, strict=True):
        assert (other[one[1]["labels"].numpy() == 1] > 0).sum() >= len(other) - 2


@pytest.mark.slow
def test_a_run_that_mixes_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uncached = {"head_cached_features": False, "finetune_cached_features": False}
    config = small_config(**SHORT | uncached | {"unmixed_share": 0.25, **BOTH})

    def train(folder: Path) -> tuple[list[NDArray[Any]], list[dict[str, Any]]]:
        folder.mkdir(exist_ok=True)
        setup, log = set_up_small(config), RunLog(folder)
        train_small(config, setup, log, folder)
        kept = [{name: value for name, value in each.items() if name != "images_per_second"} for each in log.records]
        return setup.classifier.get_weights(), kept

    wanted, records = train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        join_in(patch, Signal(signal.SIGTERM, step=2))
        with pytest.raises(InterruptedRunError):
            train(tmp_path / "asked")
    assert Checkpoints(tmp_path / "asked" / "checkpoints", 2).newest() is not None
    found, records_again = train(tmp_path / "asked")
    assert all(np.array_equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert records_again == records


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"global_batch_size": 1}, r"another image in each batch\. Received: --global_batch_size=1"),
        (
            {"finetune_cached_features": True},
            r"without cached features\. Received: --head_cached_features and --finetune_cached_features",
        ),
        ({"finetune_epochs": 0}, r"without cached features\. Received: --head_cached_features"),
        ({"teacher": "a", "teacher_view": "plain"}, r"--teacher_view=augmented\. Received: --teacher_view=plain"),
    ],
)
def test_what_cannot_be_mixed_is_refused(flags: dict[str, Any], message: str) -> None:
    for alphas, names in (
        (MIXUP, "--mixup_alpha"),
        (CUTMIX, "--cutmix_alpha"),
        (BOTH, "--mixup_alpha and --cutmix_alpha"),
    ):
        with pytest.raises(UserError, match=rf"^{names} needs .*{message}$"):
            validate(from_values({**flags, **alphas}))
    validate(from_values({**flags, "finetune_epochs": 1, "unmixed_share": 0.2}))


def test_mixing_works_with_the_defaults() -> None:
    validate(from_values(BOTH))
    assert without_mixing(from_values(BOTH).augmentation) == RunConfig().augmentation
