"""`python -m cifar_keras.data.cifar10.tfds_download URL FOLDER`: download an archive with TFDS, in a process that can be ended.

The archive gets the last part of the URL as its name. If the download fails, the reason is printed on stdout.
"""

import sys
import urllib.error
import urllib.request
from pathlib import Path

CONNECT_SECONDS = 10


def main() -> None:
    """Download the URL that the command line names."""
    url, folder = sys.argv[1:]
    try:
        # Without a network, TFDS itself would try for minutes.
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        sys.exit(_report(f"{url} cannot be reached ({error})"))
    import tensorflow_datasets as tfds

    try:
        downloaded = tfds.download.DownloadManager(download_dir=f"{folder}/downloads").download(url)
    # Whatever the error is, the parent process shows its first line.
    except Exception as error:
        sys.exit(_report(str(error) or type(error).__name__))
    Path(downloaded).replace(Path(folder, url.rpartition("/")[2]))


def _report(reason: str) -> int:
    print(reason)
    return 1


if __name__ == "__main__":
    main()
