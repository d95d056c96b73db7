"""Errors that users can fix."""

import errno
import os
import re

# Errors of the operating system about a disk that is full, that fails, or that may not be written.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)


class UserError(Exception):
    """Input that cannot be used: a flag, a file, a folder or the network.

    The message is one paragraph. It names the flag or file at fault and ends with `Received: ...`. Commands print the message and
    exit with status 2. A program that imports the package can catch the error.
    """


class SourceError(Exception):
    """One source of data or weights does not have them, or has them damaged.

    `fetching.first_available` then tries the next source.
    """


class DivergedError(Exception):
    """A loss or a weight is no longer a finite number. The message names the step."""


class InterruptedRunError(Exception):
    """SIGINT or SIGTERM asked the run to end. The message says how to resume it."""


def reason_of(error: Exception) -> str:
    """Return the first line of an error's message, at most 200 characters, without a full stop.

    An error without a message gives the name of its type.

    Examples:
        >>> reason_of(ValueError("the shapes differ."))
        'the shapes differ'
        >>> reason_of(KeyError())
        'KeyError'
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".: ")


def unwritable(error: BaseException) -> str | None:
    """Return the system's message if an error comes from a disk that is full, fails or may not be written; otherwise None.

    The causes of the error are searched too. TensorFlow and HDF5 copy the system's message into the text of their own errors, and
    NumPy only gives numbers.
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
