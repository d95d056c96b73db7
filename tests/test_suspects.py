import numpy as np
import pytest
from cleanlab.filter import find_label_issues
from numpy.typing import NDArray

from cifar_keras.evaluation.suspects import out_of_sample_probabilities, suspect_labels

CLASSES, COUNT = 5, 1500


def clouds() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features in clouds that overlap a little, and their classes."""
    generator = np.random.default_rng(0)
    labels = np.arange(COUNT) % CLASSES
    centres = generator.normal(size=(CLASSES, 20)) * 1.2
    return (centres[labels] + generator.normal(size=(COUNT, 20))).astype(np.float32), labels


def with_wrong_labels(labels: NDArray[np.int64], fraction: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give some images another label, and say which."""
    generator = np.random.default_rng(1)
    wrong = generator.choice(len(labels), int(fraction * len(labels)), replace=False)
    given = labels.copy()
    given[wrong] = (labels[wrong] + generator.integers(1, CLASSES, len(wrong))) % CLASSES
    return given, wrong


def test_wrong_labels_are_found() -> None:
    features, labels = clouds()
    given, wrong = with_wrong_labels(labels, 0.05)
    suspects, likely = suspect_labels(out_of_sample_probabilities(features, given, seed=0), given)
    found = set(suspects) & set(wrong)
    assert len(found) / len(wrong) > 0.8
    assert len(found) / len(suspects) > 0.7
    assert set(suspects[:50]) <= set(wrong)  # the surest first
    assert (likely == labels[suspects]).mean() > 0.9
    assert (likely != given[suspects]).all()


def test_no_image_is_judged_by_a_model_that_saw_its_label() -> None:
    """With labels by chance, a model that saw them would agree with them more often than chance."""
    generator = np.random.default_rng(2)
    features = generator.normal(size=(600, 300)).astype(np.float32)
    labels = generator.permutation(np.arange(600) % CLASSES)
    probabilities = out_of_sample_probabilities(features, labels, seed=0)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (probabilities.argmax(axis=1) == labels).mean() == pytest.approx(1 / CLASSES, abs=0.06)


@pytest.mark.parametrize("fraction", [0.02, 0.2])
def test_the_rule_is_that_of_its_authors(fraction: float) -> None:
    """cleanlab is the library of the paper's authors."""
    features, labels = clouds()
    given, _ = with_wrong_labels(labels, fraction)
    probabilities = out_of_sample_probabilities(features, given, seed=0)
    wanted = find_label_issues(
        given,
        probabilities,
        filter_by="confident_learning",
        return_indices_ranked_by="self_confidence",
        min_examples_per_class=0,
        n_jobs=1,
    )
    assert len(wanted) > 10
    assert suspect_labels(probabilities, given)[0].tolist() == list(wanted)


def test_a_label_that_is_the_most_probable_class_is_no_suspect() -> None:
    """Class 0 is less probable than where it usually is, and class 1 more than where it usually is: of image 2 0.55 to 0.45."""
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.55, 0.45], [0.7, 0.3], [0.6, 0.4]])
    labels = np.array([0, 0, 0, 1, 1])
    suspects, likely = suspect_labels(probabilities, labels)
    assert 2 not in suspects
    assert (suspects.tolist(), likely.tolist()) == ([], [])


def test_a_small_example_by_hand() -> None:
    """Over the images that are called so, class 0 has a probability of 0.6 in the mean, and class 1 of 0.625."""
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7], [0.4, 0.6], [0.35, 0.65]])
    labels = np.array([0, 0, 1, 1])
    suspects, likely = suspect_labels(probabilities, labels)
    assert (suspects.tolist(), likely.tolist()) == (
        [1],
        [1],
    )  # image 2 is likely nothing, and image 3 what it is called
