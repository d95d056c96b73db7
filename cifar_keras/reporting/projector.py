"""Write files for TensorBoard's projector, which shows images as points that can be turned and searched in a browser."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tensorboard.plugins import projector

from cifar_keras.files import writing
from cifar_keras.reporting.figures import image_png

PROJECTED_IMAGES = 2000  # their pictures together have 1,440 x 1,440 pixels
PROJECTED_DIMENSIONS = 50  # principal components; TensorBoard goes on from there


def write_projector(
    folder: Path,
    components: NDArray[np.float32],
    images: NDArray[np.uint8],
    columns: Sequence[tuple[str, Sequence[str]]],
) -> None:
    """Write what TensorBoard's projector shows: points, their labels, and their images.

    Args:
        folder: a folder under TensorBoard's `--logdir`.
        components: float32 `[n, dimensions]`.
        images: uint8 `[n, height, width, 3]`.
        columns: headings with the values of all images under each, e.g. ("label", [...]).
    """
    folder.mkdir(parents=True, exist_ok=True)
    points, labels = io.BytesIO(), io.StringIO(newline="")
    np.savetxt(points, components, delimiter="\t", fmt="%.6g")
    writer = csv.writer(labels, delimiter="\t", lineterminator="\n")
    writer.writerow([heading for heading, _ in columns])
    writer.writerows(zip(*(values for _, values in columns), strict=True))
    writing.write_whole(folder / "features.tsv", points.getvalue())
    writing.write_whole(folder / "labels.tsv", labels.getvalue().encode())
    writing.write_whole(folder / "images.png", _sprite(images))
    config = projector.ProjectorConfig()
    embedding = config.embeddings.add()
    embedding.tensor_name, embedding.tensor_path, embedding.metadata_path = "features", "features.tsv", "labels.tsv"
    embedding.sprite.image_path = "images.png"
    embedding.sprite.single_image_dim.extend([images.shape[2], images.shape[1]])
    projector.visualize_embeddings(str(folder), config)


def _sprite(images: NDArray[np.uint8]) -> bytes:
    """Return one PNG file with all images in a square grid, as the projector expects it."""
    side = math.ceil(math.sqrt(len(images)))
    _, height, width, channels = images.shape
    rows = math.ceil(len(images) / side)
    filled = np.zeros((rows * side, height, width, channels), np.uint8)
    filled[: len(images)] = images
    grid = filled.reshape(rows, side, height, width, channels).transpose(0, 2, 1, 3, 4)
    return image_png(grid.reshape(rows * height, side * width, channels))
