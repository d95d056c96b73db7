"""The two ways in which the outside world can fail a run."""


class UserError(Exception):
    """Input that cannot be used: a flag, a file, a folder or the network.

    The message is one paragraph, names the flag or file at fault and ends in `Received: ...`. Commands print it and exit with
    status 2; a programmer who imports the package can catch it.
    """


class SourceError(Exception):
    """One source of data or weights does not have them, or not intact. The next source may; `fetching` decides."""


def reason_of(error: Exception) -> str:
    """Return what an error says in one line of at most 200 characters, without a full stop; its type if it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".: ")
