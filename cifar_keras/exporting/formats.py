"""The formats that a run's model can be had in, and what an export has to keep of it. Standard library only."""

from typing import NamedTuple


class Bound(NamedTuple):
    """How far an export may be from the model that was measured; on the test images."""

    logit_difference: float | None  # largest, as a fraction of the model's largest logit; None where it is not limited
    agreement: float  # smallest fraction of images with the same prediction
    lost_accuracy: float  # largest fraction of images that are right no more, less those that are right now


class Format(NamedTuple):
    """One format: where an export of it lies in the workdir, what it needs, what it promises."""

    path: str
    converted: bool  # by the export command; otherwise the run itself has written it
    packages: tuple[str, ...]  # that have to be importable to make and to run it, beside what the package itself needs
    bound: Bound
    any_size: bool = True  # of images, which are smoothed where they shrink; otherwise one image of the training images' size at a time


# The same operations in the same precision.
_SAME = Bound(logit_difference=1e-3, agreement=1.0, lost_accuracy=0.0)
# Eight bits a weight and an activation are another model; how much worse it may be is a choice.
_QUANTIZED = Bound(logit_difference=None, agreement=0.0, lost_accuracy=0.005)

FORMATS: dict[str, Format] = {
    "keras": Format("model.keras", False, (), _SAME),
    "saved_model": Format("saved_model", False, (), _SAME),
    "onnx": Format("exports/model.onnx", True, ("tf2onnx", "onnx", "onnxruntime"), _SAME),
    "litert": Format("exports/model.tflite", True, ("ai_edge_litert",), _SAME, any_size=False),
    "litert_int8": Format("exports/model_int8.tflite", True, ("ai_edge_litert",), _QUANTIZED, any_size=False),
}
