import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from small_networks import small_backbone

from cifar_keras.config import ComputeDtype, KernelGradientChoice
from cifar_keras.errors import UserError
from cifar_keras.models.classifier import assemble, build_classifier
from cifar_keras.models.convolution import Geometry, KernelGradient, convolve
from cifar_keras.models.fused import fused_twin
from cifar_keras.models.partition import partition
from cifar_keras.training import compute
from cifar_keras.training.compute import (
    choose_compute_dtype,
    choose_kernel_gradients,
    faster_kernel_gradient,
    kernel_gradients,
    set_kernel_gradients,
)
from cifar_keras.training.fit import set_trainable

AUTO = KernelGradientChoice.AUTO
Shape = tuple[tuple[int, ...], tuple[int, ...], Geometry, str, int]


def give_gpus(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int]) -> None:
    """TensorFlow sees GPUs of these compute capabilities."""
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: list(capabilities) if kind == "GPU" else [])
    monkeypatch.setattr(
        tf.config.experimental, "get_device_details", lambda capability: {"compute_capability": capability}
    )


def time_steps(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    monkeypatch.setattr(compute, "_step_seconds", lambda dtype: seconds[dtype])


def count_chosen(model: keras.Model, *arguments: Any) -> int:
    """How many gradients are matrix products after a choice."""
    choose_kernel_gradients(model, *arguments)
    return list(kernel_gradients(model).values()).count("matmul")


def never(*arguments: Any) -> Any:
    raise AssertionError("nothing may be measured")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dtype_is_taken_as_asked(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_step_seconds", never)
    assert choose_compute_dtype(ComputeDtype(dtype), deterministic=False) == (dtype, "as asked")


def test_float16_is_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    give_gpus(monkeypatch)
    with pytest.raises(UserError, match=r"^--compute_dtype=float16 needs a GPU\. Received: no GPU$"):
        choose_compute_dtype(ComputeDtype.FLOAT16, deterministic=False)
    give_gpus(monkeypatch, (7, 0))
    assert choose_compute_dtype(ComputeDtype.FLOAT16, deterministic=False) == ("float16", "as asked")


@pytest.mark.parametrize("instructions", [[], ["avx2"], ["avx2", "avx512f"], ["asimd", "sve"]])
def test_a_processor_without_bfloat16_computes_in_float32(
    instructions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "_step_seconds", never)
    monkeypatch.setattr(compute, "instruction_sets", lambda: instructions)
    assert choose_compute_dtype(ComputeDtype.AUTO, deterministic=False) == (
        "float32",
        "the processor has no bfloat16 instructions",
    )


@pytest.mark.parametrize("instruction", ["avx512_bf16", "amx_bf16", "bf16"])
@pytest.mark.parametrize(
    ("seconds", "chosen"), [(0.5, "bfloat16"), (0.8, "bfloat16"), (0.9, "float32"), (2, "float32")]
)
def test_a_processor_with_bfloat16_computes_in_what_is_clearly_faster(
    instruction: str, seconds: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "instruction_sets", lambda: ["avx2", instruction])
    time_steps(monkeypatch, float32=1.0, bfloat16=seconds)
    reason = f"bfloat16 makes a convolution's step {1 / seconds:.1f} times as fast"
    assert choose_compute_dtype(ComputeDtype.AUTO, deterministic=False) == (chosen, reason)


def test_a_deterministic_run_takes_the_dtype_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_step_seconds", never)
    for instruction, chosen in (("amx_bf16", "bfloat16"), ("avx2", "float32")):
        monkeypatch.setattr(compute, "instruction_sets", lambda instruction=instruction: [instruction])
        assert choose_compute_dtype(ComputeDtype.AUTO, deterministic=True)[0] == chosen


def test_gpus_measure_only_where_all_have_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "instruction_sets", lambda: ["amx_bf16"])  # the processor's do not count
    monkeypatch.setattr(compute, "_step_seconds", never)
    give_gpus(monkeypatch, (9, 0), (7, 5))
    assert choose_compute_dtype(ComputeDtype.AUTO, deterministic=False) == (
        "float32",
        "the GPU has no bfloat16 instructions",
    )
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {})
    assert choose_compute_dtype(ComputeDtype.AUTO, deterministic=False)[0] == "float32"
    give_gpus(monkeypatch, (8, 0), (9, 0))
    time_steps(monkeypatch, float32=3.0, bfloat16=1.0)
    assert choose_compute_dtype(ComputeDtype.AUTO, deterministic=False)[0] == "bfloat16"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_takes_some_time(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "MEASURED_IMAGES", 1)
    assert 0 < compute._step_seconds(dtype) < np.inf


def test_the_time_of_a_call_is_that_of_the_fastest_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    durations = iter([1.0, 5.0, 3.0, 4.0])  # the first one traces

    def call() -> list[tf.Tensor]:
        nonlocal clock
        clock += next(durations)
        return [tf.zeros([])]

    monkeypatch.setattr(compute, "time", types.SimpleNamespace(perf_counter=lambda: clock))
    assert compute._fastest(call) == 3


def many_shapes() -> keras.Model:
    """Three convolutions of one shape, one each of another stride, of groups and of single channels."""
    images = keras.Input((12, 12, 3))
    features = keras.layers.Conv2D(8, 3, padding="same", name="conv1_conv")(images)
    for block in (1, 2, 3):
        features = keras.layers.Conv2D(8, 3, padding="same", use_bias=False, name=f"conv2_block{block}_conv")(features)
        features = keras.layers.BatchNormalization(name=f"conv2_block{block}_bn")(features)
        features = keras.layers.ReLU(name=f"conv2_block{block}_relu")(features)
    features = keras.layers.Conv2D(8, 3, strides=2, padding="same", name="conv3_conv")(features)
    features = keras.layers.Conv2D(8, 3, padding="same", groups=2, name="conv4_conv")(features)
    features = keras.layers.DepthwiseConv2D(3, padding="same", name="conv5_conv")(features)
    return keras.Model(images, keras.layers.GlobalAveragePooling2D(name="pool")(features), name="backbone")


def model_of(backbone: keras.Model, unfreeze_from: str = "") -> keras.Model:
    classifier = build_classifier(backbone, "tf", class_count=10, dropout=0.0, seed=0)
    set_trainable(classifier, unfreeze_from)
    return assemble(classifier, fused_twin(backbone, compute_dtype="float32"))


def chosen(model: keras.Model) -> dict[str, KernelGradient]:
    return {
        layer.name: layer.kernel_gradient
        for layer in model.get_layer("backbone").layers
        if hasattr(layer, "kernel_gradient")
    }


def measuring(monkeypatch: pytest.MonkeyPatch, answer: Callable[[Shape], KernelGradient]) -> list[Shape]:
    """Let a rule measure in place of the clock, and list what it is asked for."""
    asked: list[Shape] = []

    def measure(*shape: Any) -> KernelGradient:
        asked.append(shape)
        return answer(shape)

    monkeypatch.setattr(compute, "faster_kernel_gradient", measure)
    return asked


def test_what_is_asked_for_is_set_in_all_that_learn_and_in_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "faster_kernel_gradient", never)
    model = model_of(small_backbone(), unfreeze_from="conv2")
    assert count_chosen(model, KernelGradientChoice.MATMUL, "float32", 8) == 1
    assert chosen(model) == {"conv1_conv": "convolution", "conv2_conv": "matmul"}
    assert count_chosen(model, KernelGradientChoice.CONVOLUTION, "float32", 8) == 0
    assert set(chosen(model).values()) == {"convolution"}
    whole = model_of(small_backbone())
    assert count_chosen(whole, KernelGradientChoice.MATMUL, "float32", 8) == 2


def test_groups_and_single_channels_are_never_matrix_products() -> None:
    model = model_of(many_shapes())
    assert count_chosen(model, KernelGradientChoice.MATMUL, "float32", 8) == 5
    assert [name for name, way in chosen(model).items() if way == "convolution"] == ["conv4_conv", "conv5_conv"]


def test_each_shape_is_measured_once_and_decides_for_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measuring(monkeypatch, lambda shape: "matmul" if shape[2].strides == (1, 1) else "convolution")
    model = model_of(many_shapes())
    assert count_chosen(model, AUTO, "bfloat16", 8) == 4
    every, second = Geometry((1, 1), "same", (1, 1)), Geometry((2, 2), "same", (1, 1))
    assert asked == [
        ((12, 12, 3), (3, 3, 3, 8), every, "bfloat16", 8),
        ((12, 12, 8), (3, 3, 8, 8), every, "bfloat16", 8),
        ((12, 12, 8), (3, 3, 8, 8), second, "bfloat16", 8),
    ]
    assert [name for name, way in chosen(model).items() if way == "matmul"] == [
        *("conv1_conv", "conv2_block1_conv", "conv2_block2_conv", "conv2_block3_conv")
    ]


def test_choices_can_be_made_again_in_another_model() -> None:
    first, second = model_of(many_shapes()), model_of(many_shapes())
    ways: dict[str, KernelGradient] = {
        name: "matmul" if "block2" in name else "convolution" for name in kernel_gradients(first)
    }
    set_kernel_gradients(first, ways)
    set_kernel_gradients(second, kernel_gradients(first))
    assert [name for name, way in chosen(second).items() if way == "matmul"] == ["conv2_block2_conv"]


def test_what_does_not_learn_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measuring(monkeypatch, lambda shape: "matmul")
    model = model_of(small_backbone(), unfreeze_from="conv2")
    assert count_chosen(model, AUTO, "float32", 8) == 1
    assert asked == [((7, 7, 8), (3, 3, 8, 16), Geometry((2, 2), "valid", (1, 1)), "float32", 8)]
    assert chosen(model) == {"conv1_conv": "convolution", "conv2_conv": "matmul"}


def test_the_upper_half_is_measured_and_a_head_alone_has_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measuring(monkeypatch, lambda shape: "matmul")
    classifier = build_classifier(small_backbone(), "tf", class_count=10, dropout=0.0, seed=0)
    for learns_from, count in ((None, 0), ("conv2", 1)):
        set_trainable(classifier, learns_from)
        parts = partition(classifier, compute_dtype="float32", image_size=16)
        assert parts is not None
        assert count_chosen(parts.trainable, AUTO, "float32", 8) == len(asked) == count


def test_a_gpu_leaves_it_to_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "faster_kernel_gradient", never)
    give_gpus(monkeypatch, (9, 0))
    model = model_of(small_backbone())
    assert count_chosen(model, AUTO, "float32", 8) == 0
    assert count_chosen(model, KernelGradientChoice.MATMUL, "float32", 8) == 2


SHAPES = [
    ((5, 5, 2), (3, 3, 2, 4), Geometry((1, 1), "same", (1, 1))),
    ((6, 7, 3), (1, 1, 3, 2), Geometry((2, 2), "valid", (1, 1))),
]


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("input_shape", "kernel_shape", "geometry"), SHAPES)
def test_a_measurement_ends_in_one_of_the_two(
    input_shape: tuple[int, ...], kernel_shape: tuple[int, ...], geometry: Geometry, compute_dtype: str
) -> None:
    assert faster_kernel_gradient(input_shape, kernel_shape, geometry, compute_dtype, 2) in ("convolution", "matmul")


@pytest.mark.parametrize(("input_shape", "kernel_shape", "geometry"), SHAPES)
def test_both_ways_are_timed_at_the_same_sum(
    input_shape: tuple[int, ...], kernel_shape: tuple[int, ...], geometry: Geometry, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[NDArray[np.float32]] = []
    ways: list[tuple[str, int]] = []

    def keep(function: Callable[[], tf.Tensor]) -> float:
        computed.append(function().numpy())
        return 1.0

    def noted(inputs: tf.Tensor, *arguments: Any, **settings: Any) -> tf.Tensor:
        ways.append((settings["kernel_gradient"], inputs.shape[0]))
        return convolve(inputs, *arguments, **settings)

    monkeypatch.setattr(compute, "_fastest", keep)
    monkeypatch.setattr(compute, "convolve", noted)
    faster_kernel_gradient(input_shape, kernel_shape, geometry, "float32", 1000)
    assert ways == [("convolution", compute.MEASURED_IMAGES), ("matmul", compute.MEASURED_IMAGES)]
    assert computed[0].shape == kernel_shape
    assert np.abs(computed[0]).max() > 1
    np.testing.assert_allclose(computed[0], computed[1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("matmul_seconds", "taken"), [(0.5, "matmul"), (0.89, "matmul"), (0.95, "convolution"), (1.5, "convolution")]
)
def test_a_matrix_product_has_to_be_clearly_faster(
    matmul_seconds: float, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([1.0, matmul_seconds])  # the convolution is timed first, as the test before shows
    monkeypatch.setattr(compute, "_fastest", lambda function: next(seconds))
    assert faster_kernel_gradient(*SHAPES[0], "float32", 2) == taken
