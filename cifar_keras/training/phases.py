"""Plan a run: its phases and their stages, which layers learn in each, and for how long.

The plan is data, which one pure function makes from the config. Nothing is trained here, and TensorFlow is not imported.
"""

from collections.abc import Iterator
from typing import NamedTuple

from cifar_keras.config import FinetuneConfig, PhaseConfig, RunConfig, finetune_stages
from cifar_keras.errors import UserError
from cifar_keras.models.backbones import BACKBONES


class Stage(NamedTuple):
    """A part of a phase. Stages share the phase's learning-rate schedule, and each takes over the optimizer's state."""

    image_size: int  # side in pixels to which images are resized
    # Prefix of the name of the first layer that learns; "" means the whole backbone learns, None means nothing does.
    learns_from: str | None
    epochs: int

    def with_prefix(self, prefix: str) -> "Stage":
        """Return the stage for a backbone whose layer names all begin with a prefix."""
        return self._replace(learns_from=f"{prefix}{self.learns_from}") if self.learns_from else self


class StageLeft(NamedTuple):
    """A stage, and the epochs of it that are left."""

    number: int  # from 0
    stage: Stage
    epochs: range  # counted through all phases


class Phase(NamedTuple):
    """One phase of a run."""

    name: str  # one of `config.PHASES`
    config: PhaseConfig
    steps_per_epoch: int  # each step is one global batch
    first_epoch: int  # counted through all phases
    stages: tuple[Stage, ...]
    train_batch_norm: bool = False
    sparsity: float = 0.0  # fraction of the weights of each learning convolution that is pruned
    sparsity_ramp: float = 0.5  # fraction of the phase's steps over which it grows

    @property
    def epochs(self) -> range:
        """The epochs of the phase."""
        return range(self.first_epoch, self.first_epoch + sum(stage.epochs for stage in self.stages))

    @property
    def steps(self) -> int:
        """The number of steps of the whole phase."""
        return len(self.epochs) * self.steps_per_epoch

    def steps_of(self, epochs: range, first_step: int = 0) -> range:
        """Return the steps of some epochs, counted from epoch 0 as in `data.pipeline`.

        The first `first_step` steps of the first epoch are left out.
        """
        return range(epochs.start * self.steps_per_epoch + first_step, epochs.stop * self.steps_per_epoch)

    def stages_from(self, epoch: int) -> Iterator[StageLeft]:
        """Yield each stage that has epochs left from `epoch` on, with those epochs."""
        end = self.first_epoch
        for number, stage in enumerate(self.stages):
            begin, end = end, end + stage.epochs
            if epoch < end:
                yield StageLeft(number, stage, range(max(begin, epoch), end))


def stage_in_words(phase: Phase, left: StageLeft) -> str:
    """Return a line that describes one stage of a phase."""
    if len(phase.stages) == 1:
        return f"{phase.name} phase"
    learns = f"{left.stage.learns_from} and what follows it learn" if left.stage.learns_from else "all layers learn"
    return f"{phase.name} phase, stage {left.number + 1} of {len(phase.stages)}: {left.stage.image_size} px, {learns}"


def plan_phases(config: RunConfig, train_count: int) -> list[Phase]:
    """Return the phases that have epochs, the head phase first.

    Args:
        config: the config of the run.
        train_count: number of images of the train split.

    Raises:
        UserError: the train split has fewer whole batches than asked for.
    """
    phases: list[Phase] = []
    batch_size, image_size = config.data.global_batch_size, config.model.image_size
    if config.head.epochs:
        steps = whole_steps(train_count, batch_size, config.head.steps_per_epoch, "head_steps_per_epoch")
        phases.append(head_phase(config.head, steps, image_size=image_size))
    if config.finetune.epochs:
        steps = whole_steps(train_count, batch_size, config.finetune.steps_per_epoch, "finetune_steps_per_epoch")
        planned = finetune_phase(config.finetune, steps, image_size=image_size, first_epoch=config.head.epochs)
        prefix = BACKBONES[config.model.backbone].layer_prefix
        phases.append(planned._replace(stages=tuple(stage.with_prefix(prefix) for stage in planned.stages)))
    return phases


def head_phase(settings: PhaseConfig, steps_per_epoch: int, *, image_size: int, first_epoch: int = 0) -> Phase:
    """Return a head phase, in which the backbone is frozen. `image_size` replaces an image size of 0 in the settings."""
    stage = Stage(settings.image_size or image_size, None, settings.epochs)
    return Phase("head", settings, steps_per_epoch, first_epoch, (stage,))


def finetune_phase(settings: FinetuneConfig, steps_per_epoch: int, *, image_size: int, first_epoch: int = 0) -> Phase:
    """Return a finetune phase, in which the backbone learns. `image_size` replaces an image size of 0 in the settings."""
    stages = tuple(Stage(size or image_size, stage, epochs) for size, stage, epochs in finetune_stages(settings))
    return Phase(
        "finetune",
        settings,
        steps_per_epoch,
        first_epoch,
        stages,
        train_batch_norm=settings.train_batch_norm,
        sparsity=settings.sparsity,
        sparsity_ramp=settings.sparsity_ramp,
    )


def whole_steps(image_count: int, global_batch_size: int, steps_per_epoch: int, steps_flag: str) -> int:
    """Return the number of steps of an epoch. Each step takes a whole batch.

    Args:
        image_count: images of the train split.
        global_batch_size: images per step, over all devices together.
        steps_per_epoch: steps that are asked for; 0 asks for every whole batch.
        steps_flag: name of the flag that asked, e.g. "head_steps_per_epoch".

    Raises:
        UserError: the split is smaller than one batch, or has fewer whole batches than are asked for.

    Examples:
        >>> whole_steps(45_000, 32, 0, "head_steps_per_epoch")
        1406
        >>> whole_steps(45_000, 32, 100, "head_steps_per_epoch")
        100
    """
    whole_batches = image_count // global_batch_size
    if whole_batches == 0:
        raise UserError(
            f"--global_batch_size has to be at most {image_count}, the images of the train split. "
            f"Received: {global_batch_size}"
        )
    if steps_per_epoch > whole_batches:
        raise UserError(
            f"--{steps_flag} has to be at most {whole_batches}, the whole batches of {global_batch_size} in the {image_count} images "
            f"of the train split, or 0 for all of them. Received: {steps_per_epoch}"
        )
    return steps_per_epoch or whole_batches
