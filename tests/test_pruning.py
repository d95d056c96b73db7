import itertools
from pathlib import Path

import keras
import numpy as np
import pytest
from small_runs import SHORT, set_up_small, small_config, train_small

from cifar_keras.config import FinetuneConfig
from cifar_keras.training.phases import Phase, finetune_phase
from cifar_keras.training.pruning import Prune, first_sparse_epoch, sparsity_at, sparsity_of
from cifar_keras.training.tracking import RunLog


def phase_of(epochs: int, steps_per_epoch: int, sparsity: float, *, first_epoch: int = 0, ramp: float = 0.5) -> Phase:
    settings = FinetuneConfig(epochs=epochs, sparsity=sparsity, sparsity_ramp=ramp)
    return finetune_phase(settings, steps_per_epoch, image_size=16, first_epoch=first_epoch)


def test_the_fraction_grows_like_a_cube_and_stays() -> None:
    """Of 100 steps the first 50; half of the way leaves an eighth of the whole."""
    phase = phase_of(10, 10, 0.8)
    assert sparsity_at(0, phase) == 0
    assert sparsity_at(25, phase) == pytest.approx(0.8 * 7 / 8)
    assert sparsity_at(50, phase) == sparsity_at(100, phase) == 0.8
    fractions = [sparsity_at(step, phase) for step in range(101)]
    assert fractions == sorted(fractions)
    assert sparsity_at(1, phase_of(1, 1, 0.5)) == 0.5  # one step is a phase, too


def test_it_grows_for_as_long_as_is_asked() -> None:
    phase = phase_of(10, 10, 0.8, ramp=0.2)
    assert sparsity_at(10, phase) == pytest.approx(0.8 * 7 / 8)
    assert sparsity_at(20, phase) == 0.8
    uneven = phase_of(25, 10, 0.8, ramp=0.28)  # 0.28 * 25 is more than 7 in floating point
    assert sparsity_at(70, uneven) == 0.8
    assert first_sparse_epoch(uneven) == 6
    whole = phase_of(10, 10, 0.8, ramp=1.0)
    assert sparsity_at(99, whole) < 0.8
    assert first_sparse_epoch(whole) == 9


@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch", "first"), [(1, 10, 7), (4, 10, 8), (3, 10, 8), (2, 10, 7), (5, 1, 9)]
)
def test_epochs_count_from_where_nothing_more_is_pruned(epochs: int, steps_per_epoch: int, first: int) -> None:
    phase = phase_of(epochs, steps_per_epoch, 0.9, first_epoch=7)
    assert first_sparse_epoch(phase) == first
    done = (first - 7 + 1) * steps_per_epoch
    assert sparsity_at(done, phase) == 0.9
    if first > 7:
        assert sparsity_at(done - steps_per_epoch, phase) < 0.9


@pytest.mark.parametrize("cached", [True, False])
def test_what_learns_is_as_sparse_as_asked(cached: bool, tmp_path: Path) -> None:
    config = small_config(**SHORT, finetune_sparsity=0.75, finetune_cached_features=cached)
    setup = set_up_small(config)
    backbone = setup.classifier.get_layer("backbone")
    frozen, learning = (backbone.get_layer(f"conv{stage}_conv").kernel for stage in (1, 2))
    train_small(config, setup, RunLog(tmp_path), tmp_path)
    assert (np.asarray(frozen) != 0).all()
    zero = np.asarray(learning) == 0
    assert zero.sum() == round(0.75 * zero.size)
    fraction = zero.sum() / (zero.size + np.asarray(frozen).size)
    assert sparsity_of(backbone) == pytest.approx(fraction)
    assert (np.asarray(setup.classifier.get_layer("head").kernel) != 0).all()


def test_a_dense_epoch_is_never_the_best_epoch(tmp_path: Path) -> None:
    """The head phase, which is better than what a ruined network gives, and the epochs before the fraction is reached."""
    config = small_config(
        flip=False, head_epochs=4, finetune_epochs=4, finetune_sparsity=0.95, finetune_learning_rate=1e-6
    )
    setup = set_up_small(config)
    log = RunLog(tmp_path)
    train_small(config, setup, log, tmp_path)
    accuracies = [record["validation_accuracy"] for record in log.records if "validation_accuracy" in record]
    assert max(accuracies[:4]) > max(accuracies[5:])
    kernel = np.asarray(setup.classifier.get_layer("backbone").get_layer("conv2_conv").kernel)
    assert (kernel == 0).mean() == pytest.approx(0.95, abs=0.001)


@pytest.mark.parametrize("stops", [[13], [20], [27], [7, 19, 33]])
@pytest.mark.parametrize(("final", "noise"), [(0.8, 0.02), (0.1, 0.2)])
def test_what_goes_on_prunes_as_what_was_never_stopped(stops: list[int], final: float, noise: float) -> None:
    """Noise after each of 40 steps, in place of an optimizer; the fraction is reached at step 20.

    It moves what is zero as well, in the second case further than the largest that is to become zero.
    """
    phase = phase_of(4, 10, final, first_epoch=3)
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(16, 3), keras.layers.Conv2D(8, 1)])
    kernels, start = [layer.kernel for layer in model.layers], model.get_weights()

    def steps(first: int, last: int) -> None:
        prune = Prune(phase, first_step=first % 10)
        prune.set_model(model)
        prune.on_train_begin()
        for step in range(first, last):
            if step == first or step % 10 == 0:
                prune.on_epoch_begin(3 + step // 10)
            zero = [np.asarray(kernel) == 0 for kernel in kernels]
            for number, kernel in enumerate(kernels):
                kernel.assign(kernel + np.random.default_rng([step, number]).normal(size=kernel.shape) * noise)
            prune.on_train_batch_end(step % 10)
            for kernel, before in zip(kernels, zero, strict=True):
                assert (np.asarray(kernel)[before] == 0).all()
                assert (np.asarray(kernel) == 0).sum() == round(sparsity_at((step + 1) // 10 * 10, phase) * before.size)

    steps(0, 40)
    wanted = model.get_weights()
    model.set_weights(start)
    for first, last in itertools.pairwise([0, *stops, 40]):
        steps(first, last)
    assert all(np.array_equal(found, kernel) for found, kernel in zip(model.get_weights(), wanted, strict=True))


def test_the_smallest_become_zero() -> None:
    phase = phase_of(1, 1, 0.4)
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(5, 3)])
    kernel = model.layers[0].kernel
    before = np.asarray(kernel).copy()
    prune = Prune(phase)
    prune.set_model(model)
    prune.on_train_begin()
    prune.on_epoch_begin(0)
    prune.on_train_batch_end(0)
    limit = np.sort(np.abs(before).ravel())[round(0.4 * before.size)]
    np.testing.assert_array_equal(np.asarray(kernel), np.where(np.abs(before) < limit, 0, before))
