"""Read untrusted .tar.gz files in memory. Nothing is ever extracted to disk, so no path inside an archive is followed."""

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

# The official archives unpack to 184 and 186 MB, the npm tarballs to 139 and 103 MB. A file that unpacks to more is none of these.
UNPACKED_BYTES_LIMIT = 256 * 2**20


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn errors about a file's content, raised inside the block, into a SourceError that names the file."""
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
        # Wrong sizes, or malformed JSON.
        ValueError,
        # JSON or a pickle that holds other things than are expected.
        TypeError,
        LookupError,
        AttributeError,
        # A size that no number can hold.
        ArithmeticError,
        MemoryError,
        # JSON that is nested too deeply.
        RecursionError,
    ) as error:
        raise SourceError(f"{path} cannot be used: {reason_of(error)}") from error


def read_members(path: Path) -> dict[str, bytes]:
    """Return the regular files of a .tar.gz, their bytes by their names.

    The whole stream is read, so its checksum has been compared. Links, devices and sparse files are left out: a link under an
    expected name counts as a missing file.

    Raises:
        SourceError: the archive unpacks to more than `UNPACKED_BYTES_LIMIT`, or has a name twice.
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
    """Return the bytes of one file of a tarball.

    Args:
        members: what `read_members` returned.
        name: of the file.

    Raises:
        SourceError: there is no file of this name.
    """
    if name not in members:
        raise SourceError(f"it has no file {name}")
    return members[name]
