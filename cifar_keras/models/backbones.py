"""The networks that can be trained: those of keras.applications, where adding one is adding a row, and two small ones.

Standard library only.
"""

from typing import Literal, NamedTuple

# What keras.applications feeds each family. "caffe": BGR minus the ImageNet mean; "tf": scaled to -1..1.
InputConvention = Literal["caffe", "tf"]


class Backbone(NamedTuple):
    """One network: how to build it, what it expects, and where it can be cut."""

    application: str  # its constructor in keras.applications; "" for those in `models.small_resnet`
    weights_md5: str  # of the file with its headless ImageNet weights, as Keras publishes it; "" where nobody does
    input_convention: InputConvention
    minimum_size: int  # smallest image side that the constructor accepts, in pixels
    stages: tuple[str, ...]  # what its layer names begin with, input first; a finetune phase can start at any of them

    @property
    def weights_file(self) -> str:
        """The name of its headless ImageNet weights in Keras's cache."""
        stem = {"InceptionV3": "inception_v3"}.get(self.application, self.application.lower())
        return f"{stem}_weights_tf_dim_ordering_tf_kernels_notop.h5"


_RESNET = ("conv1", "conv2", "conv3", "conv4", "conv5")
_VGG = ("block1", "block2", "block3", "block4", "block5")
# The joints of its blocks are named, the layers in them are not: from mixed3 on means all that follows that joint.
_INCEPTION = tuple(f"mixed{block}" for block in range(10))

BACKBONES: dict[str, Backbone] = {
    "resnet50": Backbone("ResNet50", "4d473c1dd8becc155b73f8504c6f6626", "caffe", 32, _RESNET),
    "resnet101": Backbone("ResNet101", "88cf7a10940856eca736dc7b7e228a21", "caffe", 32, _RESNET),
    "resnet152": Backbone("ResNet152", "ee4c566cf9a93f14d82f913c2dc6dd0c", "caffe", 32, _RESNET),
    "resnet9": Backbone("", "", "tf", 8, ("conv1", "conv2", "conv3", "conv4")),
    "resnet20": Backbone("", "", "tf", 8, ("conv1", "conv2", "conv3", "conv4")),
    "resnet50v2": Backbone("ResNet50V2", "fac2f116257151a9d068a22e544a4917", "tf", 32, _RESNET),
    "resnet101v2": Backbone("ResNet101V2", "c0ed64b8031c3730f411d2eb4eea35b5", "tf", 32, _RESNET),
    "resnet152v2": Backbone("ResNet152V2", "ed17cf2e0169df9d443503ef94b23b33", "tf", 32, _RESNET),
    "vgg16": Backbone("VGG16", "6d6bbae143d832006294945121d1f1fc", "caffe", 32, _VGG),
    "vgg19": Backbone("VGG19", "253f8cb515780f3b799900260a226db6", "caffe", 32, _VGG),
    "inception_v3": Backbone("InceptionV3", "bcbd6486424b2319ff4ef7d526e38f63", "tf", 75, _INCEPTION),
}
