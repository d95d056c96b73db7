"""`train --dry_run`: it says what a run would take, and leaves nothing behind."""

import json
import re
from pathlib import Path

import pytest
from processes import run
from small_runs import finish_small_run

from cifar_keras.config import from_values
from cifar_keras.models.cost import cost_per_image
from cifar_keras.training import rehearsal
from cifar_keras.training.setup import set_up

FLAGS = (
    *("--dataset=synthetic", "--backbone=resnet20", "--weights=none", "--image_size=16", "--global_batch_size=40"),
    *("--head_epochs=3", "--head_steps_per_epoch=9", "--finetune_epochs=2", "--finetune_image_sizes=16,24"),
)


def test_a_dry_run_tells_of_the_run_and_writes_nothing(tmp_path: Path) -> None:
    done = run("train", *FLAGS, "--workdir=run", "--dry_run", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
    assert "synthetic: 10 classes: airplane, automobile" in done.stdout
    assert "images: 360 train, 40 validation, 100 test; 32 x 32 px" in done.stdout
    # The head of 64 features and 10 classes; then everything but the statistics and the frozen normalizations.
    assert re.search(r"head phase: 27 steps, from cached features, 650 parameters learn, [\d.e-]+ PFLOP", done.stdout)
    assert re.search(r"finetune phase, stage 2 of 2: 24 px, all layers learn: 9 steps, [\d,]+ parameters", done.stdout)
    assert done.stdout.endswith("this was a dry run: no workdir was made\n")


@pytest.mark.slow
@pytest.mark.parametrize("view", ["augmented", "plain"])
def test_a_teacher_is_not_asked_before_its_steps_are_timed(view: str, tmp_path: Path) -> None:
    finish_small_run(tmp_path / "teacher")
    flags = (*FLAGS, "--head_epochs=0", "--finetune_image_sizes=16", "--crop_padding=0", f"--teacher_view={view}")
    done = run("train", *flags, "--teacher=teacher", "--workdir=run", "--dry_run", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"finetune phase: 18 steps, [\d,]+ parameters learn", done.stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]
    assert not (tmp_path / "teacher" / "checkpoints").exists()


def test_what_a_run_cannot_use_is_found_by_a_dry_run_too(tmp_path: Path) -> None:
    done = run("train", *FLAGS, "--workdir=run", "--dry_run", "--head_steps_per_epoch=10", cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"error: --head_steps_per_epoch .* Received: 10\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_stages_cost_what_their_steps_and_their_validation_cost() -> None:
    values = dict(flag.removeprefix("--").split("=") for flag in FLAGS)
    config = from_values({name: json.loads(value) if value.isdigit() else value for name, value in values.items()})
    setup = set_up(config, Path("nowhere"))
    head, first, second = rehearsal.estimate_stages(config, setup)
    # Cached features: each image and its mirror image once, and validation. The head learns from them.
    network, of_head = setup.classifier.get_layer("backbone"), 2 * 64 * 10
    forward = cost_per_image(network).forward
    assert head.cached_features
    wanted = forward * (2 * 360 + 40) + of_head * (2 * 27 * 40 + 3 * 40)
    assert head.pflop * 1e15 == pytest.approx(wanted)
    assert (head.steps, head.learning_parameters) == (27, 64 * 10 + 10)
    # All layers learn: the gradients of the kernels and of all inputs but the first convolution's.
    assert first.pflop * 1e15 == pytest.approx(forward * (3 * 9 * 40 + 40), rel=0.02)
    # The operations of convolutions grow with the number of pixels.
    assert second.pflop / first.pflop == pytest.approx((24 / 16) ** 2, rel=0.05)
    assert min(head.minutes, first.minutes, second.minutes) > 0
