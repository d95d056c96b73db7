"""The progress of a run: every counter of its training, in one typed place."""

import dataclasses
from typing import Any, NamedTuple

from cifar_keras.errors import UserError

# Format of the checkpoints. Format 1 named an optimizer's variables by their positions. Format 2 had another name for `mid_phase`, and
# its teachers saw plain images. Format 3 had the images in their published order. Format 4 did not count operations.
FORMAT = 5


class PhaseSummary(NamedTuple):
    """How a phase was computed. `result.json` holds it."""

    images_per_second: float | None  # of training steps; with cached features, of the whole phase
    pipeline_images_per_second: float | None  # of the input pipeline alone
    cached_features: bool
    kernel_gradients_by_matmul: int  # number of convolutions


class Position(NamedTuple):
    """The phase, epoch and step that a run has reached."""

    phase: int = 0  # its position in the list of phases; the number of phases once all are done
    epoch: int = 0  # counted through all phases
    step: int = 0  # steps of this epoch that are done


@dataclasses.dataclass
class Progress:
    """How far a run has come."""

    position: Position = dataclasses.field(default_factory=Position)
    rate_fraction: float = 1.0  # fraction of the learning rates in the config, after rollbacks
    rollbacks: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    checkpoints: dict[str, float] = dataclasses.field(default_factory=lambda: {"saved": 0, "minutes": 0.0})
    summaries: dict[str, PhaseSummary] = dataclasses.field(default_factory=dict)  # of the phases that are done
    # Weights that began to learn later in the phase, by their positions, with the step at which they began.
    first_steps: dict[str, int] = dataclasses.field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """Return all counters as plain values for JSON."""
        summaries = {name: summary._asdict() for name, summary in self.summaries.items()}
        return {
            "format": FORMAT,
            "position": self.position._asdict(),
            "rate_fraction": self.rate_fraction,
            "rollbacks": self.rollbacks,
            "states": self.checkpoints,
            "summaries": summaries,
            "first_steps": self.first_steps,
        }

    def restore(self, values: dict[str, Any]) -> None:
        """Restore the counters that `state` returned."""
        self.position = Position(**values["position"])
        self.rate_fraction, self.rollbacks = values["rate_fraction"], values["rollbacks"]
        self.checkpoints, self.first_steps = values["states"], values["first_steps"]
        self.summaries = {name: PhaseSummary(**summary) for name, summary in values["summaries"].items()}

    def count_checkpoint(self, minutes: float) -> None:
        """Count a saved checkpoint, and the minutes that saving it took."""
        self.checkpoints = {"saved": self.checkpoints["saved"] + 1, "minutes": self.checkpoints["minutes"] + minutes}


def check_format(values: dict[str, Any]) -> None:
    """Check that this version of the program can read a checkpoint.

    Raises:
        UserError: the checkpoint has another version's format.
    """
    found = values.get("progress", {}).get("format", 1)
    if found != FORMAT:
        raise UserError(
            "--resume: another version of the program saved the run's checkpoint, and only that one can go on with it. "
            f"Received: format {found}"
        )
