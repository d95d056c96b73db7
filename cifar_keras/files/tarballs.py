"""Reading .tar.gz files in memory and without trusting them. Nothing is ever extracted to disk, so no path in one is followed."""

import contextlib
import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import tensorflow as tf

from cifar_keras.errors import SourceError, reason_of

# The official archives unpack to 184 and 186 MB, the npm tarballs to 139 and 103 MB; what unpacks to more is none of them.
UNPACKED_BYTES_LIMIT = 256 * 2**20


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn whatever is wrong inside a file into a SourceError that names the file."""
    try:
        yield
    except EOFError as error:
        raise SourceError(f"{path} is truncated") from error
    except (
        OSError,
        zlib.error,
        tarfile.TarError,
        UnpicklingError,
        tf.errors.OpError,
        SourceError,
        ValueError,  # wrong sizes, JSON that is none
        TypeError,  # JSON or a pickle of other things than are wanted
        LookupError,
        AttributeError,
        ArithmeticError,  # a size that no number holds
        MemoryError,
        RecursionError,  # JSON that is nested too deeply
    ) as error:
        raise SourceError(f"{path} cannot be used: {reason_of(error)}") from error


def read_members(path: Path) -> dict[str, bytes]:
    """Return the regular files of a .tar.gz by name. The whole stream is read, so its checksum has been compared.

    Links, devices and sparse files are left out, and so a link under an expected name is a missing file.
    """
    with gzip.open(path) as stream:
        unpacked = stream.read(UNPACKED_BYTES_LIMIT + 1)
    if len(unpacked) > UNPACKED_BYTES_LIMIT:
        raise SourceError(f"it unpacks to more than {UNPACKED_BYTES_LIMIT} bytes")
    members: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if name in members:
                raise SourceError(f"it has {name} twice")
            file = tar.extractfile(member) if member.isreg() and not member.issparse() else None
            if file is not None:
                members[name] = file.read()
    return members


def member(members: dict[str, bytes], name: str) -> bytes:
    """Return one file of a tarball.

    Raises:
        SourceError: there is none of this name.
    """
    if name not in members:
        raise SourceError(f"it has no file {name}")
    return members[name]
