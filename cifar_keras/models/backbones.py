"""The networks that can be trained: those of keras.applications, and two small ones.

To add another network of keras.applications, add a row to `BACKBONES`. Standard library only.

Examples:
    >>> BACKBONES["resnet50"].application, BACKBONES["resnet50"].input_convention
    ('ResNet50', 'caffe')
    >>> BACKBONES["resnet50"].block_groups
    ('conv1', 'conv2', 'conv3', 'conv4', 'conv5')
    >>> BACKBONES["inception_v3"].minimum_size
    75
"""

from typing import Literal, NamedTuple

# The pixels that a family of networks was trained on:
# "caffe": BGR minus the ImageNet mean.
# "tf": scaled to -1..1 by 127.5.
# "torch": scaled to 0..1, minus the mean of ImageNet, divided by its standard deviation.
# "efficientnet_v2": scaled to -1..1 by 128.
InputConvention = Literal["caffe", "tf", "torch", "efficientnet_v2"]

# Whether the constructor puts layers before the network that apply its input convention. Our classifier does this in its own input
# transform, for all networks alike. So these layers are "left out" if the constructor has a setting for it, and otherwise "cut off".
Preprocessing = Literal["none", "left out", "cut off"]


class Backbone(NamedTuple):
    """One network: how to build it, what it expects, and where it can be cut."""

    application: str  # name of its constructor in keras.applications; "" for those in `models.small_resnet`
    weights_file: str  # file name of its headless ImageNet weights in Keras's cache; "" if there are none
    weights_digest: str  # MD5 or SHA-256 of that file, as Keras publishes it; "" if it publishes none
    input_convention: InputConvention
    minimum_size: int  # smallest image side that the constructor accepts, in pixels
    block_groups: tuple[str, ...]  # prefixes of its layer names, input first; a finetune phase can start at any of them
    layer_prefix: str = ""  # comes before the group's prefix in all layer names
    preprocessing: Preprocessing = "none"


_RESNET = ("conv1", "conv2", "conv3", "conv4", "conv5")
_VGG = ("block1", "block2", "block3", "block4", "block5")
# Only the joints of its blocks have names, not the layers inside them. "From mixed3" means all layers that follow that joint.
_INCEPTION = tuple(f"mixed{block}" for block in range(10))
_INCEPTION_RESNET = ("mixed_5b", "mixed_6a", "mixed_7a", "conv_7b")
_XCEPTION = tuple(f"block{block}" for block in range(1, 15))
_MOBILENET = ("conv1", *(f"conv_dw_{block}" for block in range(1, 14)))
_MOBILENET_V2 = ("Conv1", "expanded_conv", *(f"block_{block}" for block in range(1, 17)), "Conv_1")


def _keras(
    application: str,
    stem: str,
    digest: str,
    convention: InputConvention,
    block_groups: tuple[str, ...],
    *,
    minimum_size: int = 32,
) -> Backbone:
    """Return the row of a network whose weights file has the usual name."""
    file = f"{stem}_weights_tf_dim_ordering_tf_kernels_notop.h5"
    return Backbone(application, file, digest, convention, minimum_size, block_groups)


def _mobilenet_v3(size: str, digest: str, blocks: int) -> Backbone:
    block_groups = ("conv", "expanded_conv", *(f"expanded_conv_{block}" for block in range(1, blocks)), "conv_1")
    file = f"weights_mobilenet_v3_{size.lower()}_224_1.0_float_no_top_v2.h5"
    return Backbone(f"MobileNetV3{size}", file, digest, "tf", 32, block_groups, preprocessing="left out")


def _nasnet(size: str, digest: str, repeats: int) -> Backbone:
    """Return the row of a NASNet. Its block groups are the joints of cells: from one on means all layers that follow that joint."""
    # There are three times as many normal cells as repeats. The first reduction takes one of their numbers.
    joints = tuple(f"normal_concat_{cell}" for cell in range(3 * repeats + 1) if cell != repeats)
    block_groups = ("reduction_concat_stem_1", "reduction_concat_stem_2", *joints)
    return Backbone(f"NASNet{size}", f"nasnet_{size.lower()}_no_top.h5", digest, "tf", 32, block_groups)


def _efficientnet(variant: int, digest: str) -> Backbone:
    block_groups = ("stem", *(f"block{block}" for block in range(1, 8)), "top")
    file = f"efficientnetb{variant}_notop.h5"
    return Backbone(f"EfficientNetB{variant}", file, digest, "torch", 32, block_groups, preprocessing="cut off")


def _efficientnet_v2(variant: str, digest: str, blocks: int) -> Backbone:
    convention: InputConvention = "torch" if variant.startswith("B") else "efficientnet_v2"
    block_groups = ("stem", *(f"block{block}" for block in range(1, blocks + 1)), "top")
    file = f"efficientnetv2-{variant.lower()}_notop.h5"
    return Backbone(f"EfficientNetV2{variant}", file, digest, convention, 32, block_groups, preprocessing="left out")


def _convnext(size: str, digest: str) -> Backbone:
    block_groups = (
        "stem",
        "stage_0",
        *(f"{kind}_{n + more}" for n in range(3) for kind, more in (("downsampling_block", 0), ("stage", 1))),
    )
    prefix = f"convnext_{size.lower()}_"
    file = f"convnext_{size.lower()}_notop.h5"
    return Backbone(f"ConvNeXt{size}", file, digest, "torch", 32, block_groups, prefix, "left out")


BACKBONES: dict[str, Backbone] = {
    "resnet50": _keras("ResNet50", "resnet50", "4d473c1dd8becc155b73f8504c6f6626", "caffe", _RESNET),
    "resnet101": _keras("ResNet101", "resnet101", "88cf7a10940856eca736dc7b7e228a21", "caffe", _RESNET),
    "resnet152": _keras("ResNet152", "resnet152", "ee4c566cf9a93f14d82f913c2dc6dd0c", "caffe", _RESNET),
    "resnet9": Backbone("", "", "", "tf", 8, ("conv1", "conv2", "conv3", "conv4")),
    "resnet20": Backbone("", "", "", "tf", 8, ("conv1", "conv2", "conv3", "conv4")),
    "resnet50v2": _keras("ResNet50V2", "resnet50v2", "fac2f116257151a9d068a22e544a4917", "tf", _RESNET),
    "resnet101v2": _keras("ResNet101V2", "resnet101v2", "c0ed64b8031c3730f411d2eb4eea35b5", "tf", _RESNET),
    "resnet152v2": _keras("ResNet152V2", "resnet152v2", "ed17cf2e0169df9d443503ef94b23b33", "tf", _RESNET),
    "vgg16": _keras("VGG16", "vgg16", "6d6bbae143d832006294945121d1f1fc", "caffe", _VGG),
    "vgg19": _keras("VGG19", "vgg19", "253f8cb515780f3b799900260a226db6", "caffe", _VGG),
    "inception_v3": _keras(
        "InceptionV3", "inception_v3", "bcbd6486424b2319ff4ef7d526e38f63", "tf", _INCEPTION, minimum_size=75
    ),
    "inception_resnet_v2": _keras(
        "InceptionResNetV2",
        "inception_resnet_v2",
        "d19885ff4a710c122648d3b5c3b684e4",
        "tf",
        _INCEPTION_RESNET,
        minimum_size=75,
    ),
    "xception": _keras("Xception", "xception", "b0042744bf5b25fce3cb969f33bebb97", "tf", _XCEPTION, minimum_size=71),
    "densenet121": _keras("DenseNet121", "densenet121", "30ee3e1110167f948a6b9946edeeb738", "torch", _RESNET),
    "densenet169": _keras("DenseNet169", "densenet169", "b8c4d4c20dd625c148057b9ff1c1176b", "torch", _RESNET),
    "densenet201": _keras("DenseNet201", "densenet201", "c13680b51ded0fb44dff2d8f86ac8bb1", "torch", _RESNET),
    # Keras publishes no digest for the next two.
    "mobilenet": Backbone("MobileNet", "mobilenet_1_0_224_tf_no_top.h5", "", "tf", 32, _MOBILENET),
    "mobilenet_v2": Backbone(
        "MobileNetV2",
        "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
        "",
        "tf",
        32,
        _MOBILENET_V2,
    ),
    "mobilenet_v3_small": _mobilenet_v3("Small", "d3e8ec802a04aa4fc771ee12a9a9b836", 11),
    "mobilenet_v3_large": _mobilenet_v3("Large", "07fb09a5933dd0c8eaafa16978110389", 15),
    "nasnet_mobile": _nasnet("Mobile", "1ed92395b5b598bdda52abe5c0dbfd63", 4),
    "nasnet_large": _nasnet("Large", "d81d89dc07e6e56530c4e77faddd61b5", 6),
    "efficientnet_b0": _efficientnet(0, "50bc09e76180e00e4465e1a485ddc09d"),
    "efficientnet_b1": _efficientnet(1, "74c4e6b3e1f6a1eea24c589628592432"),
    "efficientnet_b2": _efficientnet(2, "111f8e2ac8aa800a7a99e3239f7bfb39"),
    "efficientnet_b3": _efficientnet(3, "af6d107764bb5b1abb91932881670226"),
    "efficientnet_b4": _efficientnet(4, "ebc24e6d6c33eaebbd558eafbeedf1ba"),
    "efficientnet_b5": _efficientnet(5, "38879255a25d3c92d5e44e04ae6cec6f"),
    "efficientnet_b6": _efficientnet(6, "9ecce42647a20130c1f39a5d4cb75743"),
    "efficientnet_b7": _efficientnet(7, "cbcfe4450ddf6f3ad90b1b398090fe4a"),
    "efficientnet_v2_b0": _efficientnet_v2("B0", "893217f2bb855e2983157299931e43ff", 6),
    "efficientnet_v2_b1": _efficientnet_v2("B1", "0e80663031ca32d657f9caa404b6ec37", 6),
    "efficientnet_v2_b2": _efficientnet_v2("B2", "1dfe2e7a5d45b6632553a8961ea609eb", 6),
    "efficientnet_v2_b3": _efficientnet_v2("B3", "f6abf7b5849ac99a89b50dd3fd532856", 6),
    "efficientnet_v2_s": _efficientnet_v2("S", "af0682fb74e8c54910f2d4393339c070", 6),
    "efficientnet_v2_m": _efficientnet_v2("M", "1b8dc055df72dde80d614482840fe342", 7),
    "efficientnet_v2_l": _efficientnet_v2("L", "b0b66b5c863aef5b46e8608fe1711615", 7),
    "convnext_tiny": _convnext("Tiny", "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1"),
    "convnext_small": _convnext("Small", "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab"),
    "convnext_base": _convnext("Base", "40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45"),
    "convnext_large": _convnext("Large", "96f02b6f0753d4f543261bc9d09bed650f24dd6bc02ddde3066135b63d23a1cd"),
    "convnext_xlarge": _convnext("XLarge", "de3f8a54174130e0cecdc71583354753d557fcf1f4487331558e2a16ba0cfe05"),
}
