"""`python -m cifar_keras.exporting.runtimes FORMAT MODEL IMAGES.npy LOGITS.npz`: run a model with its own runtime, in its own process.

From this package it uses only what keeps its output readable. So any other program gets the same results, and an export that needed
this package would fail.
"""

import importlib.metadata
import os
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cifar_keras import command
from cifar_keras.files.environment import start_tensorflow
from cifar_keras.files.progress_bar import progress

BATCH_SIZE = 64

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def main(format_name: str, model: str, images_file: str, logits_file: str) -> None:
    """Run a model on all images, and write the logits, the images per second, the runtime with its version, and the batch size."""
    load, package, batch_size = RUNTIMES[format_name]
    images = np.load(images_file, mmap_mode="r")
    run = load(model)
    for count in {min(batch_size, len(images)), len(images) % batch_size} - {0}:
        # The first batch of a size also builds what all batches of this size use.
        run(images[:count])
    started = time.perf_counter()
    parts = range(0, len(images), batch_size)
    told = progress(parts, desc=f"test, {format_name}", unit="batch")
    logits = np.concatenate([run(images[start : start + batch_size]) for start in told])
    speed = len(images) / (time.perf_counter() - started)
    runtime = f"{package} {importlib.metadata.version(package)}"
    np.savez(logits_file, logits=logits, images_per_second=speed, runtime=runtime, batch_size=batch_size)


def load_keras(path: str) -> Run:
    """Return a function that runs a `.keras` file with Keras."""
    start_tensorflow()
    import keras
    import tensorflow as tf

    # As when the run was measured.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    model = keras.models.load_model(path, compile=False)
    return lambda images: np.asarray(model.predict_on_batch(images))


def load_saved_model(path: str) -> Run:
    """Return a function that runs a SavedModel with TensorFlow."""
    start_tensorflow()
    import tensorflow as tf

    # As when the run was measured.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    # Keep the whole model: a signature alone does not keep its variables.
    loaded = tf.saved_model.load(path)
    return lambda images: loaded.signatures["serve"](images=tf.constant(images))["logits"].numpy()


def load_onnx(path: str) -> Run:
    """Return a function that runs an ONNX file with onnxruntime, on the processor."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        (logits,) = session.run(["logits"], {"images": np.ascontiguousarray(images)})
        return np.asarray(logits)

    return run


def load_litert(path: str) -> Run:
    """Return a function that runs a LiteRT file with its own interpreter, on all cores that the process may use."""
    from ai_edge_litert.interpreter import Interpreter

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    interpreter = Interpreter(path, num_threads=cores)
    interpreter.allocate_tensors()
    (inputs,), (outputs,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        interpreter.set_tensor(inputs["index"], images)
        interpreter.invoke()
        return np.array(interpreter.get_tensor(outputs["index"]))

    return run


# For each format: the function that loads it, the distribution that runs it, and how many images it takes at a time.
RUNTIMES: dict[str, tuple[Callable[[str], Run], str, int]] = {
    "keras": (load_keras, "keras", BATCH_SIZE),
    "saved_model": (load_saved_model, "tensorflow", BATCH_SIZE),
    "onnx": (load_onnx, "onnxruntime", BATCH_SIZE),
    "litert": (load_litert, "ai-edge-litert", 1),
    "litert_int8": (load_litert, "ai-edge-litert", 1),
}

if __name__ == "__main__":
    command.run(lambda arguments: main(*arguments[1:]))
