"""Fine-tune keras.applications networks on CIFAR-10, from verified pixels to an exported model whose metrics were measured.

Importing the package does nothing and does not import TensorFlow: the commands (`train`, `prepare`, `evaluate`, `predict`,
`compare`, `export`, `explain`) import it after the flags have been checked.
"""

__version__ = "0.1.0"
