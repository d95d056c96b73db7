"""Operations of networks: by hand, against TensorFlow's own profiler, and against what automatic differentiation computes."""

import keras
import pytest
import tensorflow as tf
from small_networks import small_classifier
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2_as_graph

from cifar_keras.models.classifier import build_backbone
from cifar_keras.models.cost import Cost, cost_of_classifier, cost_per_image
from cifar_keras.training.fit import set_trainable


def operations_by_profiler(network: keras.Model) -> int:
    """The floating point operations that TensorFlow counts in the forward graph, two for a multiply-accumulate."""
    function = tf.function(lambda images: network(images, training=False))
    concrete = function.get_concrete_function(tf.TensorSpec((1, *network.input.shape[1:])))
    _, definition = convert_variables_to_constants_v2_as_graph(concrete)
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(definition, name="")
        builder = tf.compat.v1.profiler.ProfileOptionBuilder
        options = builder(builder.float_operation()).with_empty_output().build()
        found = tf.compat.v1.profiler.profile(graph, tf.compat.v1.RunMetadata(), cmd="op", options=options)
    return int(found.total_float_ops)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet20", 32),
        ("mobilenet_v2", 96),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("resnet50", 64), ("xception", 71), ("densenet121", 64))
        ),
    ],
)
def test_forward_operations_are_those_of_tensorflows_profiler(name: str, size: int) -> None:
    network = build_backbone(name, size)
    counted, profiled = cost_per_image(network).forward, operations_by_profiler(network)
    assert counted <= profiled < 1.06 * counted  # the profiler also counts sums, normalizations and activations


def by_hand() -> keras.Model:
    """10 x 10 pixels; a convolution to 8 x 8, a depthwise one to 4 x 4, a mean and a dense layer."""
    images = keras.Input((10, 10, 3))
    features = keras.layers.Conv2D(4, 3, name="first")(images)
    features = keras.layers.DepthwiseConv2D(2, strides=2, name="second")(features)
    features = keras.layers.GlobalAveragePooling2D()(features)
    return keras.Model(images, keras.layers.Dense(5, name="third")(features))


FIRST, SECOND, THIRD = 2 * 8 * 8 * 3 * 3 * 3 * 4, 2 * 4 * 4 * 2 * 2 * 4, 2 * 4 * 5


@pytest.mark.parametrize(
    ("frozen", "backward", "learning"),
    [
        # The gradients of all kernels, and of the inputs of all layers but the first.
        ((), FIRST + 2 * SECOND + 2 * THIRD, FIRST + SECOND + THIRD),
        (("first",), SECOND + 2 * THIRD, SECOND + THIRD),
        (("first", "second"), THIRD, THIRD),
        (("second",), FIRST + SECOND + 2 * THIRD, FIRST + SECOND + THIRD),
        (("first", "second", "third"), 0, 0),
    ],
)
def test_a_small_network_costs_what_it_costs_by_hand(frozen: tuple[str, ...], backward: int, learning: int) -> None:
    network = by_hand()
    for name in frozen:
        network.get_layer(name).trainable = False
    assert cost_per_image(network) == Cost(FIRST + SECOND + THIRD, backward, learning)


def test_a_classifier_costs_its_backbone_and_its_head() -> None:
    classifier = small_classifier()
    head = classifier.get_layer("head")
    of_head = 2 * head.kernel.shape[0] * head.kernel.shape[1]
    set_trainable(classifier, None)
    forward = cost_per_image(classifier.get_layer("backbone")).forward
    assert cost_of_classifier(classifier) == Cost(forward + of_head, of_head, of_head)
    set_trainable(classifier, "")
    backward = cost_per_image(classifier.get_layer("backbone")).backward
    assert forward < backward < 2 * forward
    assert cost_of_classifier(classifier) == Cost(forward + of_head, backward + 2 * of_head, forward + of_head)
