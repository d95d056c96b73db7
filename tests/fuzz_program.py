"""Feeds damaged files to a reader for some seconds; run by `test_fuzz.py`, since what it looks for could end the process.

`fuzz_program.py READER SECONDS SEED`. A reader may return, or raise the error that a person is told; anything else is a finding.
Prints how many files it was fed, how many it refused, and the GiB of memory that it took at most.
"""

import faulthandler
import gzip
import hashlib
import io
import json
import random
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from conftest import BATCHES, IMAGES_PER_BATCH
from test_archives import PYTHON, binary_files, npm_files, python_2_pickle
from test_weights import FOLDER, SMALL_TENSORS, drawn, package_files

from cifar_keras.data.cifar10 import archives, layout
from cifar_keras.errors import SourceError, UserError
from cifar_keras.exporting import classify
from cifar_keras.files.environment import peak_gib
from cifar_keras.models import weights

HANG_SECONDS = 30


def small_batches() -> dict[str, bytes]:
    generator = np.random.default_rng(1)
    records = generator.integers(0, 256, (len(BATCHES), IMAGES_PER_BATCH, 3073), np.uint8)
    records[..., 0] %= 10
    return {name: batch.tobytes() for name, batch in zip(BATCHES, records, strict=True)}


def tar_of(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def images() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    return [tf.io.encode_png(pixels).numpy(), tf.io.encode_jpeg(pixels).numpy(), b"GIF89a" + bytes(40)]


def cases(reader: str, folder: Path) -> tuple[list[bytes], Callable[[bytes], object]]:
    """Return whole files, as yet uncompressed, and what reads one."""
    batches, path = small_batches(), folder / "file"
    digests = {name: hashlib.md5(records).hexdigest() for name, records in batches.items()}
    contents = layout.Contents(IMAGES_PER_BATCH, digests)

    def packed(read: Callable[[Path], object]) -> Callable[[bytes], object]:
        def unpack_and_read(content: bytes) -> object:
            path.write_bytes(gzip.compress(content, compresslevel=1))
            return read(path)

        return unpack_and_read

    if reader == "archive":
        pickles = {f"{PYTHON}/{name}": python_2_pickle(records) for name, records in batches.items()}
        whole = [tar_of(binary_files(batches)), tar_of(pickles)]
        return whole, packed(lambda path: archives.read_official_archive(path, contents))
    if reader == "npm":
        path.write_bytes(gzip.compress(tar_of(binary_files(batches))))
        dataset = archives.read_official_archive(path, contents)
        return [tar_of(npm_files(dataset))], packed(lambda path: archives.read_npm_tarball(path, contents))
    if reader == "weights":
        listed = package_files(drawn(SMALL_TENSORS))
        files = {FOLDER + name: content for name, content in listed.items() if isinstance(content, bytes)}
        return [tar_of(files)], packed(weights.read_package)

    def read_image(content: bytes) -> None:
        classify.header_of(path, content)
        classify.decode(path, content)

    return images(), read_image


def damaged(whole: list[bytes], chance: random.Random) -> Iterator[bytes]:
    """Give files with bits flipped, pieces cut out, doubled, or swapped for others' and for numbers that are often special."""
    special = [
        b"\x00",
        b"\xff",
        b"\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff",
        b"\x80\x00\x00\x00",
        b"-1",
        b"99999999999",
        b"[",
        b"{",
    ]
    while True:
        content = bytearray(chance.choice(whole))
        for _ in range(chance.choice([1, 1, 2, 4, 16])):
            place = chance.randrange(len(content) + 1)
            length = chance.choice([1, 4, 512, chance.randrange(len(content) + 1)])
            match chance.randrange(5):
                case 0:
                    content[place : place + 1] = bytes([chance.randrange(256)])
                case 1:
                    del content[place : place + length]
                case 2:
                    content[place:place] = content[place : place + length]
                case 3:
                    piece = chance.choice(special)
                    content[place : place + len(piece)] = piece
                case _:
                    other = chance.choice(whole)
                    content[place : place + length] = other[place : place + length]
        yield bytes(content)


def main() -> None:
    reader, seconds, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    fed = refused = 0
    with tempfile.TemporaryDirectory() as folder:
        whole, read = cases(reader, Path(folder))
        for content in whole[:1]:
            read(content)  # a whole one is no finding
        ends = time.monotonic() + seconds
        for content in damaged(whole, random.Random(seed)):
            if time.monotonic() > ends:
                break
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
            fed += 1
            try:
                read(content)
            except (SourceError, UserError):
                refused += 1
            except BaseException:
                finding = Path(tempfile.gettempdir()) / f"finding-{reader}-{seed}-{fed}"
                finding.write_bytes(content)
                print(f"a finding: {finding}", file=sys.stderr)
                raise
            faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"fed": fed, "refused": refused, "peak_gib": round(peak_gib(), 2)}))


if __name__ == "__main__":
    main()
