"""`python -m cifar_keras.train --flagfile=experiments/NAME.flags`: one whole run, from pixels to a measured model."""

import sys
from collections.abc import Sequence

from cifar_keras import api, command, flags
from cifar_keras.files import environment, workdir


def main(argv: Sequence[str]) -> None:
    """Train, evaluate, export and report as the flags say."""
    config, dry_run = flags.parse_train(argv)
    workdir.check_workdir(config.workdir, config.checkpoint.resume)
    environment.load_keras()
    # TensorFlow reads the variables when it is imported.
    from cifar_keras import run
    from cifar_keras.training.rehearsal import rehearse

    if dry_run:
        print(rehearse(config))
    else:
        run.run(config)


if __name__ == "__main__":
    command.run(main)
else:
    # Once this module is imported, it takes the name of the function `cifar_keras.train`.
    sys.modules[__name__].__class__ = api.CallableModule
