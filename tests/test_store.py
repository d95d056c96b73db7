"""The cache of decoded pictures: what is in it, what becomes of a damaged one, and how pictures are read from it."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from picture_files import BROKEN, encoded, huge_png, noise, write, write_classes
from PIL import Image
from processes import ROOT

from cifar_keras.config import AugmentationConfig
from cifar_keras.data import decoding
from cifar_keras.data.augmentation import make_augmentation
from cifar_keras.data.pictures import store as store_module
from cifar_keras.data.pictures.listing import Listing, Picture, list_folder
from cifar_keras.data.pictures.store import IMAGES, MANIFEST, Size, Store, store
from cifar_keras.data.pipeline import evaluation_batches, to_examples, training_batches
from cifar_keras.data.types import LabelledImages, StoredImages, digests_of
from cifar_keras.errors import UserError
from cifar_keras.files import progress_bar

OWN = Size(16, own=True)


def stored(pixels: NDArray[np.uint8], folder: Path) -> StoredImages:
    """The images of an array, in a file in another order and with others between them."""
    rows = np.random.default_rng(0).permutation(2 * len(pixels))[: len(pixels)]
    content = np.full((2 * len(pixels), *pixels.shape[1:]), 7, np.uint8)
    content[rows] = pixels
    (folder / "images").write_bytes(content.tobytes())
    return StoredImages(folder / "images", pixels.shape[1:], rows, digests_of(pixels))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[NDArray[np.uint8], StoredImages]:
    """The same 40 images in memory and on the disk."""
    pixels = np.random.default_rng(1).integers(0, 256, (40, 3, 5, 3), np.uint8)
    return pixels, stored(pixels, tmp_path_factory.mktemp("stored"))


def test_stored_images_say_what_they_are(both: tuple[NDArray[np.uint8], StoredImages]) -> None:
    pixels, images = both
    assert (images.shape, len(images)) == (pixels.shape, 40)
    np.testing.assert_array_equal(digests_of(images), digests_of(pixels))


@given(st.data())
def test_stored_images_are_indexed_like_an_array(
    both: tuple[NDArray[np.uint8], StoredImages], data: st.DataObject
) -> None:
    pixels, images = both
    whole = st.integers(-40, 39)
    ends = st.none() | st.integers(-60, 60)
    chosen = data.draw(
        whole
        | whole.map(np.int64)
        | st.builds(slice, ends, ends, st.none() | st.integers(-7, 7).filter(bool))
        | st.lists(whole, max_size=60).map(lambda indices: np.array(indices, np.int64))
        | st.lists(whole, max_size=60).map(lambda indices: np.array(indices, np.int32))
        | st.lists(st.booleans(), min_size=40, max_size=40).map(np.array)
    )
    np.testing.assert_array_equal(images[chosen], pixels[chosen])
    assert images[chosen].dtype == np.uint8
    if not isinstance(chosen, int | np.integer):
        part = images.at(chosen)
        np.testing.assert_array_equal(part[:], pixels[chosen])
        np.testing.assert_array_equal(part.digests, digests_of(pixels[chosen]))


@pytest.mark.parametrize("chosen", [40, -41, np.array([0, 40])])
def test_an_index_that_is_not_there_is_an_index_error(
    both: tuple[NDArray[np.uint8], StoredImages], chosen: int | NDArray[np.int64]
) -> None:
    with pytest.raises(IndexError):
        both[1][chosen]


def test_a_read_that_the_system_cuts_short_goes_on(
    both: tuple[NDArray[np.uint8], StoredImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux reads 2 GiB at a time; here it is 7 bytes."""
    pixels, images = both
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, parts, place: read(file, [parts[0][:7]], place))
    np.testing.assert_array_equal(images[:], pixels)


def test_a_file_that_is_cut_off_is_an_error_and_one_that_is_removed_is_not(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (4, 3, 5, 3), np.uint8)
    images = stored(pixels, tmp_path)
    (tmp_path / "images").rename(tmp_path / "moved")
    np.testing.assert_array_equal(images[:], pixels)
    os.truncate(tmp_path / "moved", 40)
    with pytest.raises(OSError, match="is shorter than it was"):
        images[:]


@pytest.mark.parametrize("parallel_calls", [1, 8, None])
@pytest.mark.parametrize("step", [0, 9])
def test_batches_of_stored_images_are_those_of_an_array(parallel_calls: int | None, step: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (96, 32, 32, 3), np.uint8)
    labels = np.arange(96) % 10

    def batches(images: NDArray[np.uint8] | StoredImages, calls: int | None) -> list[bytes]:
        examples, split = to_examples(LabelledImages(images, labels), 10)
        np.testing.assert_array_equal(examples.images[:], pixels)
        np.testing.assert_array_equal(split.images[:], pixels)
        made = training_batches(
            examples,
            global_batch_size=16,
            steps_per_epoch=6,
            steps=range(step, 18),
            seed=3,
            augment=make_augmentation(AugmentationConfig(flip=True, crop_padding=4, cutout=8)),
            parallel_calls=calls,
        )
        measured = evaluation_batches(examples, global_batch_size=25)
        return [
            batch.inputs.tobytes() + batch.targets["labels"].tobytes()
            for dataset in (made, measured)
            for batch in dataset.as_numpy_iterator()
        ]

    on_disk = batches(stored(pixels, tmp_path), parallel_calls)
    assert len(on_disk) == 18 - step + 4
    assert on_disk == batches(pixels, 2)


DETERMINISTIC = """
import hashlib, sys
from pathlib import Path
import numpy as np
import tensorflow as tf
from cifar_keras.config import AugmentationConfig
from cifar_keras.data.augmentation import make_augmentation
from cifar_keras.data.pipeline import to_examples, training_batches
from cifar_keras.data.types import LabelledImages
from test_store import stored

tf.config.experimental.enable_op_determinism()
pixels = np.random.default_rng(2).integers(0, 256, (96, 32, 32, 3), np.uint8)
for images in (pixels, stored(pixels, Path(sys.argv[1]))):
    batches = training_batches(
        to_examples(LabelledImages(images, np.arange(96) % 10), 10)[0], global_batch_size=16, steps_per_epoch=6, steps=range(12),
        seed=3, augment=make_augmentation(AugmentationConfig()), parallel_calls=None,
    )
    print(hashlib.sha256(b"".join(batch.inputs.tobytes() for batch in batches.as_numpy_iterator())).hexdigest())
"""


@pytest.mark.slow
def test_batches_are_the_same_with_deterministic_operations(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", DETERMINISTIC, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    array, on_disk = done.stdout.split()
    assert array == on_disk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """12 pictures of 8 x 8 pixels, of two classes."""
    return write_classes(tmp_path / "set", {"cat": 6, "dog": 6})


def make(folder: Path, cache: Path, size: Size = OWN) -> Store:
    return store(list_folder(str(folder)), size, str(cache))


def files_of(cache: Path) -> list[str]:
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.suffix != ".lock")


def folder_of(cache: Path) -> Path:
    (manifest,) = cache.glob(f"*/{MANIFEST}")
    return manifest.parent


def test_pictures_of_one_size_keep_it(folder: Path, tmp_path: Path) -> None:
    made = make(folder, tmp_path / "cache")
    np.testing.assert_array_equal(made.images[:], [noise(number) for number in range(12)])
    assert [entry.name for entry in made.entries] == [
        f"{name}/{place:04d}.png" for name in ("cat", "dog") for place in range(6)
    ]
    digests = [bytes(each).hex() for each in digests_of(np.array([noise(number) for number in range(12)]))]
    assert [entry.digest for entry in made.entries] == digests


@pytest.mark.parametrize(("side", "stored"), [(20, (40, 40)), (19, (19, 19))])
def test_pictures_of_one_size_that_is_far_too_large_become_squares(
    side: int, stored: tuple[int, int], tmp_path: Path
) -> None:
    """A camera gives all photographs one size, of which few fit into memory."""
    folder = write_classes(tmp_path / "set", {"cat": 2, "dog": 2}, lambda number: noise(number, 40, 40))
    images = make(folder, tmp_path / "cache", Size(side, own=True)).images
    assert images.shape == (4, *stored, 3)


@pytest.mark.parametrize("size", [OWN, Size(16, own=False)])
def test_pictures_of_several_sizes_become_squares(size: Size, folder: Path, tmp_path: Path) -> None:
    write(folder, {"dog/wide.png": encoded(noise(50, 20, 70))})
    made = make(folder, tmp_path / "cache", size)
    assert made.images.shape == (13, 16, 16, 3)
    for image, file in zip(made.images[:], sorted(folder.rglob("*.png")), strict=True):
        np.testing.assert_array_equal(image, decoding.central_square(decoding.decode(file.read_bytes()), 16))


def test_photographs_that_lie_on_their_side_have_the_size_of_the_upright_one(tmp_path: Path) -> None:
    write(tmp_path / "set", {"a/upright.png": encoded(noise(0, 30, 20))})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(1, 20, 30)).save(tmp_path / "set" / "a" / "turned.png", exif=exif)
    made = make(tmp_path / "set", tmp_path / "cache")
    assert made.images.shape == (2, 30, 20, 3)
    np.testing.assert_array_equal(made.images[0], np.rot90(noise(1, 20, 30), -1))


def test_the_second_time_nothing_is_decoded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, {"cat/broken.png": b"broken"})
    first = make(folder, tmp_path / "cache")
    monkeypatch.setattr(decoding, "decode", None)
    second = make(folder, tmp_path / "cache")
    assert second.entries == first.entries
    assert second.skipped == first.skipped == [("cat/broken.png", "it is not a JPEG, PNG, BMP, GIF or WebP file")]
    np.testing.assert_array_equal(second.images[:], first.images[:])
    assert capsys.readouterr().err == ""


def test_another_size_is_another_cache(folder: Path, tmp_path: Path) -> None:
    for size in (OWN, Size(8, own=False), Size(9, own=False), OWN):
        make(folder, tmp_path / "cache", size)
    assert len(files_of(tmp_path / "cache")) == 9


def test_every_kind_of_broken_file_is_found_in_one_pass(folder: Path, tmp_path: Path) -> None:
    for kind, (ending, content, _) in BROKEN.items():
        write(folder, {f"cat/{kind}{ending}": content})
    os.truncate(folder / "cat" / "empty.png", 0)
    write(folder, {"dog/large.png": b""})
    os.truncate(folder / "dog" / "large.png", 2**40)
    made = make(folder, tmp_path / "cache")
    found = dict(made.skipped)
    assert len(made.skipped) == len(BROKEN) + 1
    for kind, (ending, _, reason) in BROKEN.items():
        assert found[f"cat/{kind}{ending}"].startswith(reason)
    assert found["dog/large.png"] == "it is larger than 64 MiB"
    # Two of the broken ones say that they have another size.
    assert made.images.shape == (12, 16, 16, 3)


def test_a_set_of_which_no_file_can_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "set", {"cat/a.png": b"", "dog/b.png": b"broken"})
    for _ in range(2):
        made = make(tmp_path / "set", tmp_path / "cache")
        assert (len(made.images), made.entries, len(made.skipped)) == (0, [], 2)
    assert capsys.readouterr().err == ""


def test_files_that_vanish_or_change_meanwhile_are_named(folder: Path, tmp_path: Path) -> None:
    listing = list_folder(str(folder))
    (folder / "cat" / "0001.png").unlink()
    write(folder, {"dog/0002.png": encoded(noise(99, 9, 9))})

    class OfOneSize(list[Picture]):
        """Their sizes are read from other files than their pixels."""

        passes = 0

        def __iter__(self) -> Iterator[Picture]:
            self.passes += 1
            first = super().__getitem__(0).read
            return iter([each._replace(read=first) if self.passes == 1 else each for each in super().__iter__()])

    made = store(listing._replace(pictures=OfOneSize(listing.pictures)), OWN, str(tmp_path / "cache"))
    assert made.skipped == [
        ("cat/0001.png", "it cannot be read: No such file or directory"),
        ("dog/0002.png", "it changed while it was read"),
    ]
    assert len(made.images) == 10


def _cut_manifest(folder: Path) -> None:
    os.truncate(folder / MANIFEST, 100)


def _cut_images(folder: Path) -> None:
    os.truncate(folder / IMAGES, 1000)


def _flip(name: str) -> Callable[[Path], None]:
    def flip(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-1000] ^= 1
        (folder / name).write_bytes(content)

    return flip


def _other_shape(folder: Path) -> None:
    """One that multiplies to the same number of bytes."""
    values = json.loads((folder / MANIFEST).read_bytes())
    values["shape"] = [4, 16, 3]
    (folder / MANIFEST).write_text(json.dumps(values))


def _no_images(folder: Path) -> None:
    (folder / IMAGES).unlink()


def _empty_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [_cut_manifest, _cut_images, _flip(IMAGES), _flip(MANIFEST), _other_shape, _no_images, _empty_manifest]
)
def test_a_damaged_cache_is_said_and_made_again(
    damage: Callable[[Path], None], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    whole = make(folder, cache)
    before = {path: path.read_bytes() for path in folder_of(cache).iterdir()}
    damage(folder_of(cache))
    made = make(folder, cache)
    (warning,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"warning: the cache {cache}/\w+ is damaged \(.+\); it is made again", warning)
    assert made.entries == whole.entries
    np.testing.assert_array_equal(made.images[:], [noise(number) for number in range(12)])
    assert {path: path.read_bytes() for path in folder_of(cache).iterdir()} == before
    make(folder, cache)
    assert capsys.readouterr().err == ""


def test_the_number_of_threads_does_not_matter(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, {f"cat/{kind}{ending}": content for kind, (ending, content, _) in BROKEN.items()})
    contents = []
    for threads in (1, 2, 16):
        monkeypatch.setattr(store_module, "THREADS", threads)
        make(folder, tmp_path / str(threads))
        contents.append({path.name: path.read_bytes() for path in folder_of(tmp_path / str(threads)).iterdir()})
    assert contents[0] == contents[1] == contents[2]


def test_pillows_own_limit_is_never_seen_by_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would call a picture damaged that is too large, or warn of one that is not."""
    opened = Image.open

    def slowly(*arguments: Any, **settings: Any) -> Image.Image:
        # Other threads get their turn while the limit is away.
        time.sleep(0.002)
        return opened(*arguments, **settings)

    monkeypatch.setattr(Image, "open", slowly)
    limit = Image.MAX_IMAGE_PIXELS
    write(tmp_path / "set", {f"cat/{number:03d}.png": huge_png(20_000 - number) for number in range(60)})
    monkeypatch.setattr(store_module, "THREADS", 8)
    made = make(tmp_path / "set", tmp_path / "cache")
    assert len(made.skipped) == 60
    assert [reason for _, reason in made.skipped if not reason.startswith("it has more than 100,000,000 pixels")] == []
    assert limit == Image.MAX_IMAGE_PIXELS is not None


def test_a_line_of_progress_now_and_then(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress_bar.EVERY_SECONDS == 30
    monkeypatch.setattr(progress_bar, "EVERY_SECONDS", 0.1)
    monkeypatch.setattr(store_module, "THREADS", 1)
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    listing = list_folder(str(folder))

    def slowly(picture: Picture) -> Picture:
        def read() -> bytes:
            time.sleep(0.1)
            return picture.read()

        return picture._replace(read=read)

    store(listing._replace(pictures=list(map(slowly, listing.pictures))), OWN, str(tmp_path / "cache"))
    lines = stderr.getvalue().splitlines()
    for work in ("measured", "decoded"):
        assert any(re.match(rf"pictures, {work}: \d+ of 12, .* left$", line) for line in lines), lines


@pytest.mark.parametrize("place", ["file", "file/cache"])
def test_a_cache_folder_that_cannot_be_made(place: str, folder: Path, tmp_path: Path) -> None:
    write(tmp_path, {"file": b"something"})
    cache = tmp_path / place
    message = rf"^--cache_dir cannot be used: (File exists|Not a directory). Received: {cache}$"
    with pytest.raises(UserError, match=message):
        make(folder, cache)
    assert (tmp_path / "file").read_bytes() == b"something"


def test_a_disk_that_is_too_small_is_said_before_anything_is_decoded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=64 * 2**20 + 12 * 8 * 8 * 3 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage)
    monkeypatch.setattr(decoding, "decode", None)
    message = (
        r"^--cache_dir needs 0\.00 GB for the decoded pictures, and 0\.07 GB are free; --stored_size .* Received: "
    )
    with pytest.raises(UserError, match=message):
        make(folder, tmp_path / "cache")
    assert files_of(tmp_path / "cache") == []
    monkeypatch.undo()
    assert len(make(folder, tmp_path / "cache").images) == 12


class Waits:
    """Pictures of which one waits until it is told to go on."""

    def __init__(self, listing: Listing) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        pictures = list(listing.pictures)
        pictures[6] = pictures[6]._replace(read=self._read)
        self.listing, self._content = listing._replace(pictures=pictures), encoded(noise(6))

    def _read(self) -> bytes:
        self.begun.set()
        assert self.go_on.wait(60)
        return self._content


SECOND = """
import sys
from cifar_keras.data import decoding
from cifar_keras.data.pictures.listing import list_folder
from cifar_keras.data.pictures.store import Size, store

decoding.decode = None
print(len(store(list_folder(sys.argv[1]), Size(16, own=True), sys.argv[2]).images))
"""


def test_of_two_runs_the_second_waits_for_the_cache_of_the_first(folder: Path, tmp_path: Path) -> None:
    waits = Waits(list_folder(str(folder)))
    first = threading.Thread(target=store, args=(waits.listing, OWN, str(tmp_path / "cache")))
    first.start()
    assert waits.begun.wait(60)
    second = subprocess.Popen(
        [sys.executable, "-c", SECOND, str(folder), str(tmp_path / "cache")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert second.stderr
    line = second.stderr.readline()
    assert re.fullmatch(rf"waiting for another run that uses the cache {tmp_path}/cache/\w+\n", line)
    assert second.poll() is None
    waits.go_on.set()
    assert second.communicate(timeout=60) == ("12\n", "")
    first.join()
    assert len(files_of(tmp_path / "cache")) == 3


INTERRUPTED = """
import sys, time
from cifar_keras import command
from cifar_keras.data.pictures import store
from cifar_keras.data.pictures.listing import list_folder
from cifar_keras.training.interruption import Interruption

def main(argv):
    listing = list_folder(argv[1])
    def slowly(picture):
        def read():
            print("reading", flush=True)
            time.sleep(0.2)
            return picture.read()
        return picture._replace(read=read)
    with Interruption().listening():
        store.store(listing._replace(pictures=list(map(slowly, listing.pictures)) * 50), store.Size(8, own=False), argv[2])

command.run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_decoding_at_once_and_leaves_nothing(
    number: signal.Signals, folder: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(folder), str(tmp_path / "cache")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    for _ in range(20):
        assert process.stdout.readline() == "reading\n"
    assert any(name.startswith(".") for name in files_of(tmp_path / "cache"))
    process.send_signal(number)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert errors.startswith("stopped: ")
    # Those that are read already, and no other that waits.
    assert rest.count("reading") <= 3 * store_module.THREADS
    assert files_of(tmp_path / "cache") == []


def test_what_a_killed_process_left_is_cleared_away(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    make(folder, cache)
    place = folder_of(cache)
    place.rename(place.with_name(f".{place.name}"))
    assert len(make(folder, cache).images) == 12
    assert files_of(cache) == [place.name, f"{place.name}/{IMAGES}", f"{place.name}/{MANIFEST}"]
