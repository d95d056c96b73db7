from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins import projector

from cifar_keras.evaluation.neighbours import nearest, principal_components
from cifar_keras.reporting.projector import write_projector

FEATURES = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)


def test_the_nearest_have_the_largest_cosines() -> None:
    queries, among = FEATURES[:5], FEATURES[5:]
    positions, cosines = nearest(queries, among, 3)
    for query, found, similar in zip(queries, positions, cosines, strict=True):
        every = [np.dot(query, other) / np.sqrt((query**2).sum() * (other**2).sum()) for other in among]
        order = np.argsort(every)[::-1][:3]
        assert found.tolist() == order.tolist()
        np.testing.assert_allclose(similar, np.array(every)[order], atol=1e-6)
    assert nearest(queries, among[:2], 3)[0].shape == (5, 2)
    assert nearest(among[:1], 7 * among, 1)[0].tolist() == [[0]]  # lengths do not count


def test_components_are_those_of_the_singular_value_decomposition() -> None:
    scaled = FEATURES * np.array([9, 5, 2, 1, 1, 1, 1, 1], np.float32)
    components, fractions = principal_components(scaled, 2, seed=0)
    centred = scaled - scaled.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(components), np.abs(left[:, :2] * values[:2]), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(fractions, (values**2 / (values**2).sum())[:2], rtol=1e-4)
    assert principal_components(FEATURES[:3], 50, seed=0)[0].shape == (3, 3)


@pytest.mark.parametrize("count", [1, 7, 40])
def test_the_projector_finds_points_labels_and_images(tmp_path: Path, count: int) -> None:
    images = np.random.default_rng(1).integers(0, 256, (count, 4, 6, 3), np.uint8)
    names = [f"class {place}" for place in range(count)]
    write_projector(tmp_path / "train", FEATURES[:count], images, [("label", names), ("predicted", names[::-1])])
    folder = tmp_path / "train"
    (embedding,) = text_format.Parse(
        (folder / "projector_config.pbtxt").read_text(), projector.ProjectorConfig()
    ).embeddings
    np.testing.assert_allclose(np.loadtxt(folder / embedding.tensor_path, ndmin=2), FEATURES[:count], rtol=1e-5)
    lines = (folder / embedding.metadata_path).read_text().splitlines()
    assert lines[:2] == ["label\tpredicted", f"class 0\tclass {count - 1}"]
    assert len(lines) == 1 + count
    width, height = embedding.sprite.single_image_dim
    sprite = np.asarray(Image.open(folder / embedding.sprite.image_path).convert("RGB"))
    columns = sprite.shape[1] // width
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        shown = sprite[row * height : (row + 1) * height, column * width : (column + 1) * width]
        np.testing.assert_array_equal(shown, image)
