"""Decode picture files to RGB pixels, in one way for everything that reads pictures.

JPEG, PNG, BMP, GIF and WebP files become RGB with 8 bits:

- A photograph is turned upright, as its EXIF orientation says.
- Grey values are repeated in the three channels. A palette is looked up.
- Of 16 bits the upper 8 are kept.
- CMYK becomes `(255 - c) (255 - k) / 255`, and the same for magenta and yellow.
- Transparency is ignored: a transparent pixel has the colour that the file stores for it.
- Of a GIF or WebP file with several frames the first is taken.
- A PNG file whose checksums are not those of its content is damaged.
"""

import contextlib
import io
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

# Pillow reads more formats, some of them documents.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")
# How the names of their files end.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
# Changes whenever other pixels are decoded, or other files are damaged, so that nobody mixes old and new ones.
VERSION = 2
# A larger file is no picture that is decoded; it is not read to its end.
FILE_BYTES_LIMIT = 64 * 2**20
# A picture of this size takes 300 MB when it is decoded.
PIXELS_LIMIT = 100_000_000
# EXIF's tag for the orientation of a photograph, and its value for upright.
_ORIENTATION, _UPRIGHT = 0x0112, 1
_ON_ITS_SIDE = (5, 6, 7, 8)
# Pillow's modes of grey values with 16 bits.
_DEEP_GREY = ("I;16", "I;16B", "I;16L", "I;16N", "I")
# Held while Pillow's own limit is away. Two threads that set it would each keep what the other one had set.
_LIMIT_LOCK = threading.Lock()


class PictureError(Exception):
    """A file is not a picture that can be decoded. The text says why."""


class Header(NamedTuple):
    """What the beginning of a picture file says."""

    format: str  # one of `FORMATS`
    pixels: int
    size: tuple[int, int]  # height and width of the picture that `decode` returns
    upright: bool  # False if the EXIF orientation says that the stored pixels have to be turned


def read_header(content: bytes) -> Header:
    """Return the format and size of a picture. No pixel is decoded, because a few KB can unpack to gigabytes.

    Raises:
        PictureError: the content is not a picture, or it has more than `PIXELS_LIMIT` pixels.
    """
    with _opened(content) as image:
        orientation, size = _orientation_of(image), (image.height, image.width)
        turned = size[::-1] if orientation in _ON_ITS_SIDE else size
        return Header(str(image.format), image.width * image.height, turned, orientation == _UPRIGHT)


def decode(content: bytes) -> NDArray[np.uint8]:
    """Return the pixels of a picture, uint8 `[height, width, 3]`, RGB.

    Raises:
        PictureError: the content is not a picture, is damaged, or has more than `PIXELS_LIMIT` pixels.

    Examples:
        >>> decode(b"GIF89a")
        Traceback (most recent call last):
        ...
        cifar_keras.data.decoding.PictureError: it is not a JPEG, PNG, BMP, GIF or WebP file
    """
    _check_sums(content)
    with _opened(content) as image:
        return _to_rgb(ImageOps.exif_transpose(image) if _orientation_of(image) != _UPRIGHT else image)


def central_square(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return the central square of a decoded picture, resized: uint8 `[side, side, 3]`, RGB.

    The square is as wide as the shorter side of the picture, and is resized bilinearly. If it shrinks, it is smoothed first. Up to
    rounding, this is what the classifier's own resize does with the whole picture.
    """
    picture = Image.fromarray(image)
    shorter = min(picture.size)
    left, top = (picture.width - shorter) // 2, (picture.height - shorter) // 2
    box = (left, top, left + shorter, top + shorter)
    return np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR, box=box))


def _check_sums(content: bytes) -> None:
    """Check the checksums of a PNG file, which Pillow does not look at when it decodes the pixels."""
    with _opened(content) as image:
        if image.format == "PNG":
            image.verify()


@contextlib.contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    try:
        with _without_pillows_limit():
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        with image:
            if image.width * image.height > PIXELS_LIMIT:
                raise PictureError(f"it has more than {PIXELS_LIMIT:,} pixels: {image.width} x {image.height}")
            yield image
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError("it is not a JPEG, PNG, BMP, GIF or WebP file") from error
    # On damaged data Pillow may raise almost anything.
    except Exception as error:
        raise PictureError(f"it is damaged: {' '.join(str(error).split()) or type(error).__name__}") from error


@contextlib.contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Let Pillow open a picture of any size. Its own limit warns, or raises an error without the sides of the picture."""
    with _LIMIT_LOCK:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _orientation_of(image: Image.Image) -> int:
    # If the EXIF data are damaged, the pixels stay as they are stored.
    with contextlib.suppress(Exception):
        orientation = int(image.getexif().get(_ORIENTATION, _UPRIGHT))
        return orientation if 1 <= orientation <= 8 else _UPRIGHT
    return _UPRIGHT


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in _DEEP_GREY:
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "CMYK":
        paper = 255 - np.asarray(image).astype(np.uint16)
        return (paper[:, :, :3] * paper[:, :, 3:] // 255).astype(np.uint8)
    if image.mode in ("P", "PA", "LA", "RGBA"):
        # The alpha channel is made and dropped. A direct conversion to RGB would mix some transparent colours.
        return np.ascontiguousarray(np.asarray(image.convert("RGBA"))[:, :, :3])
    return np.asarray(image.convert("RGB"))
