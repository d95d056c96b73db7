import keras
import numpy as np
import pytest

from cifar_keras.models.classifier import build_backbone, build_classifier
from cifar_keras.models.small_resnet import build_resnet9, build_resnet20
from cifar_keras.training.pruning import sparsity_of


@pytest.fixture(scope="module")
def network() -> keras.Model:
    return build_resnet20((32, 32, 3), name="backbone")


def test_it_has_the_layers_and_the_weights_of_the_paper(network: keras.Model) -> None:
    """Section 4.2, for n = 3: 6n + 1 convolutions and the classifier; 0.27 million weights."""
    convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    shortcuts = [layer for layer in convolutions if layer.kernel_size == (1, 1)]
    assert len(convolutions) - len(shortcuts) == 19
    assert [layer.name for layer in shortcuts] == ["conv3_block1_0_conv", "conv4_block1_0_conv"]
    by_hand = 3 * 9 * 16 + 6 * 16 * 16 * 9
    by_hand += (16 + 5 * 32) * 32 * 9 + 16 * 32 + (32 + 5 * 64) * 64 * 9 + 32 * 64
    assert sum(int(np.prod(layer.kernel.shape)) for layer in convolutions) == by_hand == 270_256
    assert not any(layer.use_bias for layer in convolutions)


def test_stages_halve_the_maps_and_double_the_width(network: keras.Model) -> None:
    shapes = [network.get_layer(f"conv{stage}_block3_out").output.shape[1:] for stage in (2, 3, 4)]
    assert shapes == [(32, 32, 16), (16, 16, 32), (8, 8, 64)]
    assert network.output_shape == (None, 64)


def test_a_block_adds_its_input(network: keras.Model) -> None:
    """With kernels of zeros a block without a projection is the ReLU of what comes in."""
    before = network.get_layer("conv2_block1_out").output
    block = keras.Model(before, network.get_layer("conv2_block2_out").output)
    for name in ("conv2_block2_1_conv", "conv2_block2_2_conv"):
        kernel = network.get_layer(name).kernel
        kernel.assign(0 * kernel)
    values = np.random.default_rng(0).normal(size=(2, 32, 32, 16)).astype(np.float32)
    np.testing.assert_allclose(block.predict(values, verbose=0), np.maximum(values, 0), atol=1e-6)


@pytest.mark.parametrize("name", ["resnet9", "resnet20"])
def test_the_table_builds_it_and_next_to_nothing_is_zero_at_first(name: str) -> None:
    backbone = build_backbone(name, 32)
    assert backbone.name == "backbone"
    assert sparsity_of(backbone) < 1e-4  # one draw of 270,256 can be 0.0: seen once
    classifier = build_classifier(backbone, "tf", class_count=10, dropout=0.0, seed=0)
    assert classifier(np.zeros((2, 20, 30, 3), np.uint8)).shape == (2, 10)


def test_resnet9_has_the_layers_and_half_the_widths_of_pages() -> None:
    network = build_resnet9((32, 32, 3), name="backbone")
    convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.kernel.shape[2:] for layer in convolutions] == [
        *((3, 32), (32, 64), (64, 64), (64, 64)),
        *((64, 128), (128, 256), (256, 256), (256, 256)),
    ]
    assert {layer.kernel_size for layer in convolutions} == {(3, 3)}
    by_hand = 9 * (3 * 32 + 32 * 64 + 2 * 64 * 64 + 64 * 128 + 128 * 256 + 2 * 256 * 256)
    assert sum(int(np.prod(layer.kernel.shape)) for layer in convolutions) == by_hand == 1_641_312
    assert not any(layer.use_bias for layer in convolutions)
    shapes = [network.get_layer(name).output.shape[1:] for name in ("conv2_pool", "conv3_pool", "conv4_pool")]
    assert shapes == [(16, 16, 64), (8, 8, 128), (4, 4, 256)]
    assert network.output_shape == (None, 256)


@pytest.mark.parametrize("stage", ["conv2", "conv4"])
def test_a_block_of_resnet9_adds_what_its_two_layers_make_of_its_input(stage: str) -> None:
    network = build_resnet9((32, 32, 3), name="backbone")
    outputs = [network.get_layer(f"{stage}_{name}").output for name in ("pool", "block1_2_relu", "block1_out")]
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    before, block, after = keras.Model(network.input, outputs).predict(images, verbose=0)
    np.testing.assert_allclose(after, before + block, rtol=1e-5, atol=1e-5)
    assert block.min() == 0 < block.max()
