"""The networks of keras.applications that can be fine-tuned. Adding one is adding a row. Standard library only."""

from typing import Literal, NamedTuple

# What keras.applications feeds each family. "caffe": BGR minus the ImageNet mean; "tf": scaled to -1..1.
InputConvention = Literal["caffe", "tf"]


class Backbone(NamedTuple):
    """One network: how to build it, what it expects, and where it can be cut."""

    application: str  # its constructor in keras.applications
    weights_file: str  # the name of its headless ImageNet weights in Keras's cache
    input_convention: InputConvention
    minimum_size: int  # smallest image side that the constructor accepts, in pixels
    stages: tuple[str, ...]  # what its layer names begin with, input first; a finetune phase can start at any of them


_RESNET = ("conv1", "conv2", "conv3", "conv4", "conv5")
_VGG = ("block1", "block2", "block3", "block4", "block5")
_INCEPTION = tuple(f"mixed{block}" for block in range(11))

BACKBONES: dict[str, Backbone] = {
    "resnet50": Backbone("ResNet50", "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5", "caffe", 32, _RESNET),
    "resnet101": Backbone("ResNet101", "resnet101_weights_tf_dim_ordering_tf_kernels_notop.h5", "caffe", 32, _RESNET),
    "resnet152": Backbone("ResNet152", "resnet152_weights_tf_dim_ordering_tf_kernels_notop.h5", "caffe", 32, _RESNET),
    "resnet50v2": Backbone("ResNet50V2", "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5", "tf", 32, _RESNET),
    "resnet101v2": Backbone("ResNet101V2", "resnet101v2_weights_tf_dim_ordering_tf_kernels_notop.h5", "tf", 32, _RESNET),
    "resnet152v2": Backbone("ResNet152V2", "resnet152v2_weights_tf_dim_ordering_tf_kernels_notop.h5", "tf", 32, _RESNET),
    "vgg16": Backbone("VGG16", "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5", "caffe", 32, _VGG),
    "vgg19": Backbone("VGG19", "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5", "caffe", 32, _VGG),
    "inception_v3": Backbone("InceptionV3", "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5", "tf", 75, _INCEPTION),
}
