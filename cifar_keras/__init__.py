"""Fine-tune keras.applications networks on CIFAR-10 or your own images, from verified pixels to a model whose metrics were measured.

    import cifar_keras

    run = cifar_keras.train(dataset="folder:photos", backbone="resnet50")
    run.metrics["accuracy"]
    run.predict(["a.jpg", "b.jpg"])
    cifar_keras.load("runs/run_1")

Importing the package does nothing and does not import TensorFlow. Functions and commands (`train`, `prepare`, `evaluate`, `predict`,
`compare`, `export`, `explain`) import it after what they are given has been checked.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_keras.api import Run, load, train
    from cifar_keras.errors import InterruptedRunError, UserError

__version__ = "0.1.0"
__all__ = ["InterruptedRunError", "Run", "UserError", "load", "train"]


def __getattr__(name: str) -> Any:
    """Import the names of the package when they are used."""
    if name in ("Run", "load", "train"):
        from cifar_keras import api

        return getattr(api, name)
    if name in ("InterruptedRunError", "UserError"):
        from cifar_keras import errors

        return getattr(errors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
