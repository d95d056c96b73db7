"""Picture files that tests write, and what is wrong with some of them."""

import io
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cifar_keras.config import RunConfig, from_values


def noise(seed: int, height: int = 8, width: int = 8) -> NDArray[np.uint8]:
    """Pixels that are others for each seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(pixels: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def huge_png(side: int) -> bytes:
    """A few bytes that say they are a very large picture."""
    content = bytearray(encoded(noise(0)))
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def flipped(content: bytes) -> bytes:
    """The same with one bit changed in the middle, which PNG's checksums find."""
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    return bytes(changed)


# Kinds of broken files: the end of the name, the content, and the reason that is told.
BROKEN: dict[str, tuple[str, bytes, str]] = {
    "empty": (".png", b"", "it is empty"),
    "text": (".jpg", b"not a picture", "it is not a JPEG, PNG, BMP, GIF or WebP file"),
    "cut off": (".png", encoded(noise(1, 64, 64))[:4000], "it is damaged: "),
    "a bit flipped": (".png", flipped(encoded(noise(2, 64, 64))), "it is damaged: "),
    "a billion pixels": (".png", huge_png(32_000), "it has more than 100,000,000 pixels: 32000 x 32000"),
    "half a header": (".gif", encoded(noise(3), "GIF")[:9], "it is "),
    "a document": (".txt", b"These are my pictures.", "its name does not end with "),
}


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a folder, and make it and the folders inside."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_classes(folder: Path, counts: Mapping[str, int], pixels: Callable[[int], NDArray[np.uint8]] = noise) -> Path:
    """Write `CLASS/NUMBER.png`, so many of each class, all of them different."""
    number = 0
    for name, count in counts.items():
        for place in range(count):
            write(folder, {f"{name}/{place:04d}.png": encoded(pixels(number))})
            number += 1
    return folder


def picture_config(dataset: str, cache_dir: Path, **flags: object) -> RunConfig:
    return from_values({"dataset": dataset, "cache_dir": str(cache_dir), "image_size": 32, "weights": "none"} | flags)
