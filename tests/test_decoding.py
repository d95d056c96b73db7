"""How picture files become pixels: as TensorFlow and formulas say, and the same in `predict` and in the SavedModel."""

import io
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image
from small_runs import finish_small_run

from cifar_keras.data.decoding import PictureError, decode, read_header
from cifar_keras.errors import UserError
from cifar_keras.exporting import classify
from cifar_keras.exporting.saved_model import load_saved_model

PHOTOGRAPH = load_sample_image("flower.jpg")[:120, :161]  # of scikit-learn
ALPHA = Image.fromarray((np.arange(120 * 161).reshape(120, 161) % 256).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def of_mode(mode: str) -> Image.Image:
    image = Image.fromarray(PHOTOGRAPH).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(ALPHA)
    return image


def deep_grey() -> NDArray[np.uint16]:
    return (np.arange(120 * 161).reshape(120, 161) * 3).astype(np.uint16)


def by_tensorflow(content: bytes) -> NDArray[np.uint8]:
    if content.startswith(b"\xff\xd8"):
        decoded = tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE")
    else:
        decoded = tf.io.decode_image(content, channels=3, expand_animations=False)
    pixels: NDArray[np.uint8] = decoded.numpy()
    return pixels


# What TensorFlow decodes too.
FILES = {
    **{f"PNG {mode}": encoded(of_mode(mode), "PNG") for mode in ("RGB", "L", "P", "LA", "RGBA", "1")},
    "PNG with a transparent colour": encoded(of_mode("P"), "PNG", transparency=3),
    "PNG of 16 bits": encoded(Image.fromarray(deep_grey()), "PNG"),
    **{
        f"JPEG {mode} {subsampling}": encoded(of_mode(mode), "JPEG", quality=90, subsampling=subsampling)
        for mode in ("RGB", "L", "CMYK")
        for subsampling in (0, 2)
    },
    "progressive JPEG": encoded(of_mode("RGB"), "JPEG", progressive=True),
    "BMP": encoded(of_mode("RGB"), "BMP"),
    "GIF": encoded(of_mode("RGB"), "GIF"),
    "GIF of two frames": encoded(of_mode("L"), "GIF", save_all=True, append_images=[Image.new("L", (161, 120))]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_what_tensorflow_decodes(name: str) -> None:
    pixels = decode(FILES[name])
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, by_tensorflow(FILES[name]))
    kind = "JPEG" if "JPEG" in name else name.partition(" ")[0]
    assert read_header(FILES[name]) == (kind, 120 * 161, (120, 161), True)


def test_pictures_of_a_package_are_what_tensorflow_decodes() -> None:
    """All that scikit-image brings with it: photographs, drawings, scans and an animation, of many makers."""
    found: Counter[str] = Counter()
    for path in sorted(Path(skimage.__file__).with_name("data").iterdir()):
        kind = path.suffix[1:]
        if kind in ("png", "jpg", "gif"):
            content = path.read_bytes()
            np.testing.assert_array_equal(decode(content), by_tensorflow(content), err_msg=path.name)
        elif kind == "tif":
            with pytest.raises(PictureError):
                decode(path.read_bytes())
        else:
            continue
        found[kind] += 1
    assert found.keys() == {"png", "jpg", "gif", "tif"}
    assert found["png"] >= 10


def test_of_16_bits_the_upper_8_are_kept() -> None:
    np.testing.assert_array_equal(decode(FILES["PNG of 16 bits"])[..., 1], deep_grey() >> 8)


def test_inks_become_light_by_the_formula() -> None:
    content = encoded(of_mode("CMYK"), "TIFF")
    inks = np.asarray(Image.open(io.BytesIO(content))).astype(int)
    wanted = (255 - inks[..., :3]) * (255 - inks[..., 3:]) // 255
    found = decode(encoded(of_mode("CMYK"), "JPEG", quality=100, subsampling=0))
    # A JPEG file loses a little.
    assert np.abs(found - wanted).mean() < 1


def test_webp_without_loss_keeps_every_pixel() -> None:
    np.testing.assert_array_equal(decode(encoded(of_mode("RGB"), "WEBP", lossless=True)), PHOTOGRAPH)


# How the pixels of an upright photograph are stored for each value of the tag, by the EXIF standard.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_photograph_is_turned_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](PHOTOGRAPH)))
    content = encoded(stored, kind, exif=exif, lossless=True)
    np.testing.assert_array_equal(decode(content), PHOTOGRAPH)
    assert read_header(content).upright == (orientation == 1)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_there_is_not_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(PHOTOGRAPH), "PNG", exif=exif)
    np.testing.assert_array_equal(decode(content), PHOTOGRAPH)
    assert read_header(content).upright


def large_png(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that says that it is large."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b""), b"IEND"]
    parts = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


BAD = {
    "empty": (b"", "it is not a JPEG, PNG, BMP, GIF or WebP file"),
    "text": (b"not a picture at all", "it is not a JPEG, PNG, BMP, GIF or WebP file"),
    "a document": (b"%PDF-1.4 ...", "it is not a JPEG, PNG, BMP, GIF or WebP file"),
    "another format": (encoded(of_mode("RGB"), "TIFF"), "it is not a JPEG, PNG, BMP, GIF or WebP file"),
    "cut off": (FILES["PNG RGB"][:2000], "it is damaged: "),
    "a JPEG file that is cut off": (FILES["JPEG RGB 0"][:1500], "it is damaged: "),
    "a billion pixels": (large_png(40_000, 30_000), "it has more than 100,000,000 pixels: 40000 x 30000"),
    "a little too many pixels": (large_png(10_001, 10_000), "it has more than 100,000,000 pixels: 10001 x 10000"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_a_picture_has_a_reason(name: str, recwarn: pytest.WarningsRecorder) -> None:
    content, reason = BAD[name]
    with pytest.raises(PictureError) as error:
        decode(content)
    assert str(error.value).startswith(reason)
    assert not recwarn.list
    assert Image.MAX_IMAGE_PIXELS is not None


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish_small_run(tmp_path_factory.mktemp("runs") / "small")


def test_a_file_is_served_as_its_pixels(workdir: Path) -> None:
    model = load_saved_model(workdir)
    served = model.serve_bytes(tf.constant(list(FILES.values())))["logits"].numpy()
    for row, (name, content) in zip(served, FILES.items(), strict=True):
        wanted = model.serve(decode(content)[None])["logits"].numpy()[0]
        np.testing.assert_allclose(row, wanted, rtol=1e-5, atol=1e-5, err_msg=name)


def test_predict_takes_all_of_them_and_names_what_is_none(workdir: Path, tmp_path: Path) -> None:
    contents = {**FILES, "WebP": encoded(of_mode("RGB"), "WEBP")} | {
        name: content for name, (content, _) in BAD.items()
    }
    files = {name: tmp_path / name for name in contents}
    for name, file in files.items():
        file.write_bytes(contents[name])
    model = load_saved_model(workdir)
    found = dict(classify.classify(model, list(files.values())))
    for name, file in files.items():
        row = found[file]
        if name in BAD:
            assert isinstance(row, UserError)
            assert f": {BAD[name][1]}" in str(row)
            assert str(row).endswith(f"Received: {file}")
        else:
            assert not isinstance(row, UserError)
            wanted = model.serve(decode(contents[name])[None])["probabilities"].numpy()[0]
            np.testing.assert_allclose(row, wanted, atol=1e-5, err_msg=name)
