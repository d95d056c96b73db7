"""Decode the pictures of a data set once, in parallel, into equal-sized pixels on the disk.

A cache is a folder with two files. `images.bin` has the pixels of the pictures, uint8, one picture after the other. `manifest.json` has
the size; for each picture its name, label and split, and the SHA-256 digests of its pixels, as they are stored and before they were
resized; the files that were left out; and the SHA-256 digest of all that.
"""

import collections
import concurrent.futures
import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import filelock
import numpy as np
from numpy.typing import NDArray

from cifar_keras.data import decoding
from cifar_keras.data.pictures.listing import Listing, Picture, SizedIterable
from cifar_keras.data.types import Skipped, StoredImages
from cifar_keras.errors import UserError, unwritable
from cifar_keras.files import paths, writing
from cifar_keras.files.progress_bar import progress

IMAGES, MANIFEST = "images.bin", "manifest.json"
VERSION = 5
THREADS = os.cpu_count() or 1
# Pictures of one size keep it if they have at most so many times the pixels of the square. A batch of 64 photographs of 12 megapixels
# would take 2.3 GB before the network makes them smaller.
MOST_OWN_PIXELS = 4
# Pictures that are decoded but not written yet, for each thread.
AHEAD = 4
# What other programs may write to the disk in the meantime.
SPARE_BYTES = 64 * 2**20

Result = TypeVar("Result")


class Entry(NamedTuple):
    """A decoded picture of a data set."""

    name: str
    label: str
    split: str  # "" if the data set is not divided
    digest: str  # SHA-256 of its pixels, in hexadecimal digits
    origin: str  # the same of its pixels before they were resized


class Store(NamedTuple):
    """The decoded pictures of a data set."""

    entries: list[Entry]
    images: StoredImages  # in the order of the entries
    skipped: list[Skipped]


class Size(NamedTuple):
    """The size in which pictures are stored."""

    side: int  # of a square, in pixels
    own: bool  # if all pictures have one size that is not much larger, they are stored in that size instead


def store(listing: Listing, size: Size, cache_dir: str) -> Store:
    """Return the decoded pictures of a listing, from the cache or into it.

    Args:
        listing: the pictures.
        size: the size in which they are stored.
        cache_dir: the folder of all caches, as the user named it.

    Raises:
        UserError: the cache cannot be written, or the disk is too small.
    """
    root = paths.expand("cache_dir", cache_dir)
    known = repr((VERSION, decoding.VERSION, size, listing.fingerprint))
    folder = root / hashlib.sha256(known.encode()).hexdigest()[:16]
    try:
        with paths.kept_if_filled(root):
            root.mkdir(parents=True, exist_ok=True)
            with _claimed(folder):
                return _read(folder) or _build(listing, size, folder)
    except OSError as error:
        reason = unwritable(error) or error.strerror or str(error)
        raise UserError(f"--cache_dir cannot be used: {reason}. Received: {cache_dir}") from error


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Let one process at a time read or make a cache. A second run of the same pictures waits, and finds the cache of the first."""
    lock = filelock.FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        print(f"waiting for another run that uses the cache {folder}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _read(folder: Path) -> Store | None:
    """Return the store of a folder; None if there is none, or if it is damaged, which is said on stderr."""
    if not folder.is_dir():
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest.pop("sha256") != _digest_of(manifest):
            raise OSError(f"{MANIFEST} is not what was written")
        entries = [Entry(*row) for row in manifest["entries"]]
        digests, origins = (
            np.frombuffer(bytes.fromhex("".join(column)), np.uint8).reshape(-1, 32)
            for column in ([entry.digest for entry in entries], [entry.origin for entry in entries])
        )
        images = StoredImages(folder / IMAGES, tuple(manifest["shape"]), np.arange(len(entries)), digests, origins)
        _verify(images)
        return Store(entries, images, [Skipped(*row) for row in manifest["skipped"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"warning: the cache {folder} is damaged ({error}); it is made again", file=sys.stderr, flush=True)
        return None


def _digest_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(_as_json(manifest).encode()).hexdigest()


def _as_json(values: dict[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":"))


def _verify(images: StoredImages) -> None:
    """Check the digest of each image.

    Raises:
        OSError: an image is not there, or has other pixels.
    """

    def is_whole(place: int) -> bool:
        return hashlib.sha256(images[place].tobytes()).digest() == bytes(images.digests[place])

    with _in_parallel(is_whole, range(len(images)), "pictures, verified") as found:
        for place, whole in enumerate(found):
            if not whole:
                raise OSError(f"picture {place} has other pixels than it had")


def _build(listing: Listing, size: Size, folder: Path) -> Store:
    """Decode the pictures into a folder, which appears whole or not at all, and return them."""
    common = _common_size(listing.pictures) if size.own else None
    if common is not None and common[0] * common[1] > MOST_OWN_PIXELS * size.side**2:
        common = None
    height, width = common or (size.side, size.side)
    _check_room(len(listing.pictures) * height * width * 3, folder.parent)
    skipped, entries = list(listing.skipped), []

    def decoded(picture: Picture) -> tuple[Entry, bytes] | Skipped:
        return _decoded(picture, (height, width), as_it_is=common is not None)

    with writing.written_beside(folder) as beside:
        beside.mkdir()
        with (
            (beside / IMAGES).open("wb") as file,
            _in_parallel(decoded, listing.pictures, "pictures, decoded") as found,
        ):
            for each in found:
                if isinstance(each, Skipped):
                    skipped.append(each)
                else:
                    entries.append(each[0])
                    file.write(each[1])
        values = {"shape": [height, width, 3], "entries": entries, "skipped": sorted(skipped)}
        (beside / MANIFEST).write_text(_as_json({"sha256": _digest_of(values), **values}), "utf-8")
    made = _read(folder)
    if made is None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return made


def _decoded(picture: Picture, size: tuple[int, int], *, as_it_is: bool) -> tuple[Entry, bytes] | Skipped:
    """Return a picture's entry and its pixels in the size that is stored, or why the picture is left out.

    Args:
        picture: the picture.
        size: height and width.
        as_it_is: whether the picture has this size already; otherwise its central square is resized.
    """
    try:
        whole = decoding.decode(_content_of(picture))
    except decoding.PictureError as error:
        return Skipped(picture.name, str(error))
    except OSError as error:
        return Skipped(picture.name, f"it cannot be read: {error.strerror}")
    if as_it_is and whole.shape[:2] != size:
        return Skipped(picture.name, "it changed while it was read")
    image = whole if as_it_is else decoding.central_square(whole, size[0])
    # By its origin a picture is put into the order of the set, and by that into a split. So the size of the store changes neither.
    digest = _sha256(image)
    origin = digest if as_it_is else _sha256(whole)
    return Entry(picture.name, picture.label, picture.split, digest, origin), image.tobytes()


def _sha256(pixels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def _common_size(pictures: SizedIterable[Picture]) -> tuple[int, int] | None:
    """Return height and width of the pictures if they are the same for all that can be opened, otherwise None."""

    def size_of(picture: Picture) -> tuple[int, int] | None:
        try:
            return decoding.read_header(_content_of(picture)).size
        except (decoding.PictureError, OSError):
            return None

    first: tuple[int, int] | None = None
    with _in_parallel(size_of, pictures, "pictures, measured") as sizes:
        for size in filter(None, sizes):
            if first is not None and size != first:
                return None
            first = size
    return first


def _content_of(picture: Picture) -> bytes:
    content = picture.read()
    if not content:
        raise decoding.PictureError("it is empty")
    if len(content) > decoding.FILE_BYTES_LIMIT:
        raise decoding.PictureError(f"it is larger than {decoding.FILE_BYTES_LIMIT >> 20} MiB")
    return content


@contextlib.contextmanager
def _in_parallel(
    function: Callable[[Any], Result], items: SizedIterable[Any], title: str
) -> Iterator[Iterator[Result]]:
    """Yield an iterator of what a function returns for each item, in order, with a progress bar. Few results wait at a time.

    When the block ends early, what has not begun yet is not done.
    """
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool, contextlib.ExitStack() as stack:
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        yield _results(pool, function, progress(items, desc=title, unit="picture"))


def _results(
    pool: concurrent.futures.Executor, function: Callable[[Any], Result], items: Iterable[Any]
) -> Iterator[Result]:
    waiting: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > AHEAD * THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _check_room(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed + SPARE_BYTES > free:
        raise UserError(
            f"--cache_dir needs {needed / 1e9:.2f} GB for the decoded pictures, and {free / 1e9:.2f} GB are free; --stored_size makes them "
            f"smaller. Received: {folder}"
        )
