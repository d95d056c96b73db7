"""The formats of a run's model, and how far an export in each may be from the measured model. Standard library only.

Examples:
    >>> FORMATS["onnx"].path, FORMATS["onnx"].bound.agreement
    ('exports/model.onnx', 1.0)
    >>> [name for name, row in FORMATS.items() if not row.converted]
    ['keras', 'saved_model']
"""

from typing import NamedTuple


class Bound(NamedTuple):
    """How far an export may be from the model that the run measured, on the test images."""

    logit_difference: float | None  # largest difference, as a fraction of the model's largest logit; None is no limit
    agreement: float  # smallest fraction of images with the same prediction
    lost_accuracy: float  # largest loss of accuracy, as a fraction of the images


class Format(NamedTuple):
    """One format: its path in the workdir, the packages that it needs, and its bound."""

    path: str
    converted: bool  # the export command writes it; otherwise the run itself has written it
    packages: tuple[str, ...]  # have to be importable to convert and run it, in addition to this package's requirements
    bound: Bound
    # It takes images of any size, and smooths those that shrink. Otherwise it takes one image of the training images' size at a time.
    any_size: bool = True


# For the same operations in the same precision.
_SAME = Bound(logit_difference=1e-3, agreement=1.0, lost_accuracy=0.0)
# With eight bits for each weight and activation it is another model. How much worse it may be is our choice.
_QUANTIZED = Bound(logit_difference=None, agreement=0.0, lost_accuracy=0.005)

FORMATS: dict[str, Format] = {
    "keras": Format("model.keras", False, (), _SAME),
    "saved_model": Format("saved_model", False, (), _SAME),
    "onnx": Format("exports/model.onnx", True, ("tf2onnx", "onnx", "onnxruntime"), _SAME),
    "litert": Format("exports/model.tflite", True, ("ai_edge_litert",), _SAME, any_size=False),
    "litert_int8": Format("exports/model_int8.tflite", True, ("ai_edge_litert",), _QUANTIZED, any_size=False),
}
