"""`python -m cifar_keras.data.cifar10.tfds_download URL FOLDER`: an archive by TFDS's downloader, in a process that can be ended.

The archive is named as the last part of the URL. Why it failed is said on stdout.
"""

import sys
import urllib.error
import urllib.request
from pathlib import Path

CONNECT_SECONDS = 10


def main() -> None:
    """Download what the command line names."""
    url, folder = sys.argv[1:]
    try:
        # Without network TFDS itself tries for minutes.
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        sys.exit(_report(f"{url} cannot be reached ({error})"))
    import tensorflow_datasets as tfds

    try:
        downloaded = tfds.download.DownloadManager(download_dir=f"{folder}/downloads").download(url)
    except Exception as error:  # whatever it is, the parent shows its first line
        sys.exit(_report(str(error) or type(error).__name__))
    Path(downloaded).replace(Path(folder, url.rpartition("/")[2]))


def _report(reason: str) -> int:
    print(reason)
    return 1


if __name__ == "__main__":
    main()
