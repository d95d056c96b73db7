"""Errors that users can fix."""

import errno
import os
import re

# What the system says of a disk that is full, of one that fails, and of one that lets nobody write.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)


class UserError(Exception):
    """Input that cannot be used: a flag, a file, a folder or the network.

    The message is one paragraph, names the flag or file at fault and ends in `Received: ...`. Commands print it and exit with
    status 2; a programmer who imports the package can catch it.
    """


class SourceError(Exception):
    """One source of data or weights does not have them, or not intact. The next source may; `fetching` decides."""


class DivergedError(Exception):
    """A loss or a weight is not a finite number any more. The message names the step."""


class InterruptedRunError(Exception):
    """The run was asked to end, by SIGINT or SIGTERM. The message says how to go on."""


def reason_of(error: Exception) -> str:
    """Return what an error says in one line of at most 200 characters, without a full stop; its type if it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".: ")


def unwritable(error: BaseException) -> str | None:
    """Return what the system says of a disk that is full, fails or may not be written, if that is what an error comes from.

    TensorFlow and HDF5 put what the system says into the text of errors of their own, and NumPy puts it into numbers.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno in _UNWRITABLE:
            return found.strerror
        said = str(found)
        if re.fullmatch(r"\d+ requested and \d+ written", said):
            return os.strerror(errno.ENOSPC)
        for code in _UNWRITABLE:
            if os.strerror(code) in said:
                return os.strerror(code)
        found = found.__cause__ or found.__context__
    return None
