"""`python -m cifar_keras.data.tfds_download DATA_DIR`: TFDS's own download of CIFAR-10, to be run under a time limit."""

import contextlib
import sys
import urllib.error
import urllib.request

ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CONNECT_SECONDS = 10


def main() -> None:
    """Prepare `cifar10` in the folder that the command line names. TFDS's bars go to stderr, why it failed to stdout."""
    try:
        # Without network TFDS itself tries for minutes.
        urllib.request.urlopen(urllib.request.Request(ARCHIVE_URL, method="HEAD"), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        sys.exit(_report(f"{ARCHIVE_URL} cannot be reached ({error})"))
    import tensorflow_datasets as tfds

    try:
        with contextlib.redirect_stdout(sys.stderr):
            tfds.builder("cifar10:3.0.2", data_dir=sys.argv[1]).download_and_prepare()
    except Exception as error:  # whatever it is, the parent shows its first line
        sys.exit(_report(str(error) or type(error).__name__))


def _report(reason: str) -> int:
    print(reason)
    return 1


if __name__ == "__main__":
    main()
