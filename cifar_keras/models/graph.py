"""The graph of a Keras model: which layer reads the output of which."""

import keras


def readers_of(model: keras.Model) -> dict[str, list[keras.Operation]]:
    """Return, by the name of each layer, the layers of the model that read its output. Nothing reads the last layer.

    Operators between tensors count as layers: `x + y` reads both.
    """
    readers: dict[str, list[keras.Operation]] = {operation.name: [] for operation in model.operations}
    giver = {id(operation.output): operation.name for operation in model.operations}
    for operation in model.operations:
        for tensor in {id(tensor) for tensor in keras.tree.flatten(operation.input)} & giver.keys():
            # The input of an input layer is its own output.
            if giver[tensor] != operation.name:
                readers[giver[tensor]].append(operation)
    return readers
