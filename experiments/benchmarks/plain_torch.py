"""ResNet-50 in PyTorch, channels last, in float32 or under bfloat16 autocast."""

import contextlib
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.benchmarks.cases import CLASSES, SOURCE_SIZE, Case, NotMeasuredError, Runnable


class System:
    """A plain training loop with frozen normalization."""

    def __init__(self, variant: str) -> None:
        self._bfloat16 = variant == "bfloat16"

    def set_up(self, case: Case) -> Runnable:
        """Return a case, ready to run."""
        if case.work == "pipeline":
            raise NotMeasuredError("torchvision is not installed")
        torch.manual_seed(0)
        # `eval` freezes BatchNorm's statistics.
        model = ResNet50(case.image_size).to(memory_format=torch.channels_last).eval()
        generator = np.random.default_rng(0)
        images = torch.from_numpy(
            generator.integers(0, 256, (case.batch_size, 3, SOURCE_SIZE, SOURCE_SIZE), dtype=np.uint8)
        )
        labels = torch.from_numpy(generator.integers(0, CLASSES, case.batch_size))
        if case.work in ("frozen_forward", "inference"):
            return Runnable(lambda count: self._infer(model, images, count), case.batch_size)
        for module in model.features.modules():
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad = case.work == "train_step" and not isinstance(module, nn.BatchNorm2d)
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(learning, lr=1e-4, momentum=0.9)

        def train(count: int) -> None:
            for _ in range(count):
                with self._autocast():
                    loss = nn.functional.cross_entropy(model(images).float(), labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

        return Runnable(train, case.batch_size)

    def _infer(self, model: nn.Module, images: torch.Tensor, count: int) -> None:
        with torch.inference_mode(), self._autocast():
            for _ in range(count):
                model(images)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if self._bfloat16 else contextlib.nullcontext()


class Bottleneck(nn.Module):
    """A block of 1x1, 3x3 and 1x1 convolutions with a shortcut (arXiv:1512.03385, figure 5).

    The first convolution has the stride, as in Keras.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *_convolution(channels, width, 1, stride),
            nn.ReLU(inplace=True),
            *_convolution(width, width, 3, 1),
            nn.ReLU(inplace=True),
            *_convolution(width, 4 * width, 1, 1),
        )
        same = channels == 4 * width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(channels, 4 * width, 1, stride))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the activated sum of the branch and the shortcut."""
        return nn.functional.relu(self.branch(inputs) + self.shortcut(inputs))


class ResNet50(nn.Module):
    """A ResNet-50 from uint8 images of any size to logits."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        layers: list[nn.Module] = [*_convolution(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)]
        channels = 64
        for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for block in range(blocks):
                layers.append(Bottleneck(channels, width, stride if block == 0 else 1))
                channels = 4 * width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images, which are resized and normalised first."""
        pixels = images.to(torch.float32).to(memory_format=torch.channels_last)
        pixels = nn.functional.interpolate(pixels, size=(self.image_size, self.image_size), mode="bilinear")
        features = self.features(pixels / 127.5 - 1)
        return self.head(features.mean(dim=(2, 3)))


def _convolution(channels: int, filters: int, size: int, stride: int) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(channels, filters, size, stride, padding=size // 2, bias=False)
    return convolution, nn.BatchNorm2d(filters)
