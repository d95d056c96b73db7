import shutil
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from small_networks import small_classifier

from cifar_keras.data.cifar10.layout import CLASS_NAMES
from cifar_keras.errors import UserError
from cifar_keras.exporting import saved_model


def some_images(count: int = 5, height: int = 32, width: int = 32) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def classifier() -> keras.Model:
    return small_classifier(dropout=0.3)


@pytest.fixture(scope="module")
def workdir(classifier: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    saved_model.save_classifier(classifier, path / "model.keras")
    saved_model.export_saved_model(classifier, CLASS_NAMES, path / "saved_model")
    return path


def test_what_trained_on_several_devices_loads_on_every_backend(tmp_path: Path) -> None:
    """Synchronized statistics are TensorFlow's alone: Keras refuses them on others."""
    classifier = small_classifier()
    classifier.get_layer("backbone").get_layer("conv1_bn").synchronized = True
    saved_model.save_classifier(classifier, tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        written = archive.read("config.json").decode()
    assert '"synchronized": false' in written
    assert '"synchronized": true' not in written


def test_nothing_but_the_exported_models_is_written(workdir: Path) -> None:
    assert {path.name for path in workdir.iterdir()} == {"model.keras", "saved_model"}


def test_every_variable_is_in_the_file_once(workdir: Path) -> None:
    """By hand: a 1x1 convolution for the pixels, two 3x3 ones of 8 and 16 filters, each with its shifts, and the head."""
    stored = tf.train.list_variables(str(workdir / "saved_model" / "variables" / "variables"))
    parts = [3 * 3 + 3, 9 * 3 * 8 + 8, 9 * 8 * 16 + 16, 16 * 10 + 10]
    assert sum(int(np.prod(shape)) for _, shape in stored if shape) == sum(parts)


def test_both_signatures_give_the_classifiers_logits(classifier: keras.Model, workdir: Path) -> None:
    loaded = saved_model.load_saved_model(workdir)
    assert set(loaded.signatures) >= {"serve", "serve_bytes"}
    images = some_images()
    wanted = classifier.predict(images, verbose=0)
    served = loaded.signatures["serve"](images=tf.constant(images))
    np.testing.assert_allclose(served["logits"], wanted, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(served["probabilities"], tf.nn.softmax(wanted), atol=1e-5)
    assert saved_model.class_names_of(loaded) == CLASS_NAMES
    files = [tf.io.encode_png(image) for image in images]
    served = loaded.signatures["serve_bytes"](files=tf.stack(files))
    np.testing.assert_allclose(served["logits"], wanted, rtol=1e-5, atol=1e-4)


def test_files_of_different_sizes_and_formats_make_a_batch(classifier: keras.Model, workdir: Path) -> None:
    big, small = some_images(1, 90, 50)[0], some_images(1, 8, 20)[0]
    jpeg = tf.io.encode_jpeg(big, quality=95)
    grey = tf.io.encode_png(small[..., :1])
    wanted = [
        classifier.predict(np.asarray(image)[None], verbose=0)[0]
        for image in (tf.io.decode_jpeg(jpeg, dct_method="INTEGER_ACCURATE"), np.repeat(small[..., :1], 3, axis=-1))
    ]
    loaded = saved_model.load_saved_model(workdir / "saved_model")
    served = loaded.serve_bytes(tf.stack([jpeg, grey]))
    np.testing.assert_allclose(served["logits"], wanted, rtol=1e-4, atol=1e-3)


def test_serving_is_deterministic_and_without_dropout(workdir: Path) -> None:
    loaded = saved_model.load_saved_model(workdir)
    images = tf.constant(some_images())
    np.testing.assert_array_equal(loaded.serve(images)["logits"], loaded.serve(images)["logits"])


@pytest.mark.slow
def test_both_exported_models_load_where_the_package_is_not_installed(classifier: keras.Model, workdir: Path) -> None:
    """`-I` keeps the checkout out; where the package is installed, the hook refuses it."""
    program = """
        import sys
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "cifar_keras":
                    raise ImportError("not installed")
        sys.meta_path.insert(0, Refuse())
        import keras, numpy as np, tensorflow as tf
        images = np.random.default_rng(7).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
        served = tf.saved_model.load(sys.argv[1] + "/saved_model").signatures["serve"](images=tf.constant(images))
        loaded = keras.models.load_model(sys.argv[1] + "/model.keras").predict(images, verbose=0)
        np.save(sys.argv[1] + ".npy", np.stack([served["logits"].numpy(), loaded]))
    """
    subprocess.run([sys.executable, "-I", "-c", textwrap.dedent(program), str(workdir)], check=True)
    wanted = classifier.predict(some_images(), verbose=0)
    for logits in np.load(f"{workdir}.npy"):
        np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_every_image_is_served_once_at_any_batch_size(classifier: keras.Model, workdir: Path, batch_size: int) -> None:
    images = some_images(7)
    logits = saved_model.serve_all(saved_model.load_saved_model(workdir), images, batch_size, "test").logits
    np.testing.assert_allclose(logits, classifier.predict(images, verbose=0), rtol=1e-5, atol=1e-4)


def test_a_failed_write_leaves_the_earlier_model(classifier: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(b"an earlier model")
    nowhere = tmp_path / "missing" / "model.keras"
    with pytest.raises(OSError, match="missing"):
        saved_model.save_classifier(classifier, nowhere)
    assert path.read_bytes() == b"an earlier model"
    saved_model.save_classifier(classifier, path)
    assert keras.models.load_model(path).count_params() == classifier.count_params()


def test_a_model_with_one_other_weight_is_told_from_the_trained_one(classifier: keras.Model, tmp_path: Path) -> None:
    images = some_images()
    trained = classifier.predict(images, verbose=0)
    other = keras.models.clone_model(classifier)
    other.set_weights(classifier.get_weights())
    assert saved_model.check_same_logits(trained, other.predict(images, verbose=0), "model") < 1e-6
    kernel = other.get_layer("head").kernel
    kernel.assign(np.asarray(kernel) + 0.01 * np.eye(*kernel.shape))
    with pytest.raises(RuntimeError, match="is not the model that was trained"):
        saved_model.check_same_logits(trained, other.predict(images, verbose=0), "model")


def test_logits_that_are_not_numbers_are_not_the_same() -> None:
    with pytest.raises(RuntimeError, match="not the model"):
        saved_model.check_same_logits(np.ones((2, 3), np.float32), np.full((2, 3), np.nan, np.float32), "model")


def truncate(folder: Path) -> None:
    content = (folder / "saved_model.pb").read_bytes()
    (folder / "saved_model.pb").write_bytes(content[: len(content) // 2])


def drop_variables(folder: Path) -> None:
    (folder / "variables" / "variables.index").unlink()


def replace_by_another(folder: Path) -> None:
    module = tf.Module()
    module.double = tf.function(lambda x: 2 * x, input_signature=[tf.TensorSpec((), tf.float32)])
    tf.saved_model.save(module, str(folder))


@pytest.mark.parametrize("damage", [truncate, drop_variables, replace_by_another])
def test_a_model_that_cannot_be_used_is_named(workdir: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    shutil.copytree(workdir / "saved_model", tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(UserError, match=r"--model .*Received: .*copy$"):
        saved_model.load_saved_model(tmp_path / "copy")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--model has to name .* Received: "):
        saved_model.load_saved_model(tmp_path)


@pytest.mark.parametrize("count", [1, 3, 10])
def test_every_output_of_every_signature_begins_with_the_batch(workdir: Path, count: int) -> None:
    """What a server asks for that takes the answer to several requests apart, in rows or in batches."""
    loaded = tf.saved_model.load(str(workdir / "saved_model"))
    images = some_images(count)
    files = tf.stack([tf.io.encode_png(image) for image in images])
    assert {"serve", "serve_bytes", "serving_default"} <= set(loaded.signatures)
    for name, signature in loaded.signatures.items():
        (given,) = signature.structured_input_signature[1].values()
        outputs = signature(**{given.name: files if given.dtype == tf.string else tf.constant(images)})
        assert {output: values.shape[0] for output, values in outputs.items()} == {
            "logits": count,
            "probabilities": count,
            "class_names": count,
        }, name
        row = {output: values[count - 1] for output, values in outputs.items()}
        assert [each.decode() for each in row["class_names"].numpy()] == list(CLASS_NAMES)


def test_the_names_of_an_earlier_export_are_read_too() -> None:
    """It gave `[classes]`."""
    module = tf.Module()
    module.serve = tf.function(
        lambda images: {"class_names": tf.constant(list(CLASS_NAMES))},
        input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)],
    )
    assert saved_model.class_names_of(module) == CLASS_NAMES


def test_large_images_are_smoothed_in_every_signature(classifier: keras.Model, workdir: Path) -> None:
    photographs = some_images(3, 120, 90)
    wanted = classifier.predict(photographs, verbose=0)
    loaded = saved_model.load_saved_model(workdir)
    np.testing.assert_allclose(loaded.serve(tf.constant(photographs))["logits"], wanted, rtol=1e-4, atol=1e-4)
    files = tf.stack([tf.io.encode_png(image) for image in photographs])
    np.testing.assert_allclose(loaded.serve_bytes(files)["logits"], wanted, rtol=1e-4, atol=1e-4)
