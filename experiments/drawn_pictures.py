"""Draw many picture files for measurements: JPEG, smooth like photographs, and each another."""

import concurrent.futures
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cifar_keras.files.progress_bar import progress

SIDE = 256  # pixels
CLASSES = 10
FILES_IN_A_PART = 1000


def draw_pictures(folder: Path, count: int) -> list[Path]:
    """Return JPEG files of SIDE x SIDE px in a folder for each class. Those that are missing are drawn, by a process for each core."""
    files = [folder / f"class {number % CLASSES}" / f"{number:07d}.jpg" for number in range(count)]
    parts = [range(start, min(start + FILES_IN_A_PART, count)) for start in range(0, count, FILES_IN_A_PART)]
    with concurrent.futures.ProcessPoolExecutor() as pool:
        running = [pool.submit(_draw, [files[number] for number in part], part) for part in parts]
        done = concurrent.futures.as_completed(running)
        for part in progress(done, desc="pictures, drawn", unit="part", total=len(parts)):
            part.result()
    return files


def _draw(files: Sequence[Path], numbers: Sequence[int]) -> None:
    for file, number in zip(files, numbers, strict=True):
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            coarse = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, quality=90)
