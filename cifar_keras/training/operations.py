"""Count the floating point operations of a stage's training: what is really computed, forward and backward."""

from typing import NamedTuple

from cifar_keras.config import RunConfig
from cifar_keras.models.cost import cost_of_classifier
from cifar_keras.training.phases import Phase, Stage
from cifar_keras.training.setup import RunSetup


class StageOperations(NamedTuple):
    """Floating point operations of a stage, counted as `models.cost` does."""

    ahead: int  # before the first step: features that are cached
    per_epoch: int  # of training steps, of a teacher that is asked in them, and of the validation at the epoch's end
    of_teacher: int  # all answers that the run has kept, of this stage and those before


def count_operations(
    config: RunConfig, setup: RunSetup, phase: Phase, stage: Stage, *, cached: bool
) -> StageOperations:
    """Return the operations of a stage's training.

    Frozen layers compute forward alone, and with cached features only once for each image and its mirror image.

    Args:
        config: the config of the run.
        setup: what the run trains with. Its classifier is frozen as the stage wants it.
        phase: the phase.
        stage: the stage of the phase.
        cached: whether the stage trains on cached features.
    """
    cost = cost_of_classifier(setup.classifier, stage.image_size)
    teacher, validated = setup.teacher, setup.validation.total
    trained = phase.steps_per_epoch * config.data.global_batch_size
    kept = teacher.operations_ahead({"train": setup.train.total, "validation": validated}) if teacher else 0
    if cached:
        views = setup.train.total * (2 if config.augmentation.flip else 1)
        frozen = cost.forward - cost.forward_learning
        per_epoch = (cost.forward_learning + cost.backward) * trained + cost.forward_learning * validated
        return StageOperations(frozen * (views + validated), per_epoch, kept)
    asked = teacher.forward_operations if teacher and teacher.is_asked_in_steps else 0
    per_epoch = (cost.forward + cost.backward + asked) * trained + cost.forward * validated
    return StageOperations(0, per_epoch, kept)
