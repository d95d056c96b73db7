"""Configure the devices of a run, and distribute its batches over them."""

import tensorflow as tf

from cifar_keras.errors import UserError


def set_up_devices(virtual_devices: int, *, deterministic: bool) -> None:
    """Configure TensorFlow's devices. This has to happen before anything else uses them.

    Args:
        virtual_devices: number of logical CPUs that the processor is split into; 0 leaves it whole.
        deterministic: whether to run only operations that give the same bits each time.
    """
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    # On a newer GPU TF32 would round products to 10 bits. Such a GPU has bfloat16 for low precision.
    # TF32 is off from the beginning, because TensorFlow keeps the kernel that it once chose for a shape. After training in TF32, an
    # H100's logits were wrong by 0.5 %, although TF32 was off by then.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    if virtual_devices:
        tf.config.set_visible_devices([], "GPU")
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * virtual_devices)
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def device_names() -> list[str]:
    """Return the names of the run's devices: the model of each GPU, or without a GPU the number of each logical CPU."""
    gpus = tf.config.get_visible_devices("GPU")
    models = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    return models or [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices("CPU")]


def check_no_idle_device(image_count: int, global_batch_size: int, replicas: int) -> None:
    """Check that the last validation batch has an image for each device.

    oneDNN's convolutions fail without images. The strategy gives each device ceil(batch / replicas) images until none are left.

    Raises:
        UserError: a device would get no image.

    Examples:
        >>> check_no_idle_device(image_count=1000, global_batch_size=64, replicas=2)
        >>> check_no_idle_device(image_count=1001, global_batch_size=100, replicas=2)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        cifar_keras.errors.UserError: --global_batch_size leaves 1 of the 1001 validation images for the last batch, ...
    """
    last = image_count % global_batch_size
    per_device = -(-last // replicas)
    if last and per_device * (replicas - 1) >= last:
        raise UserError(
            f"--global_batch_size leaves {last} of the {image_count} validation images for the last batch, which are too few "
            f"for {replicas} devices. Received: {global_batch_size}"
        )


def make_strategy(global_batch_size: int) -> tf.distribute.Strategy:
    """Return a strategy that mirrors the variables over all GPUs, or without a GPU over all logical CPUs.

    A single device gets TensorFlow's current strategy, which mirrors nothing.

    Raises:
        UserError: the batch size is not a multiple of the number of devices. Keras averages the devices' mean losses, so an image
            on a device with fewer images would count for more.
    """
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) == 1:
        return tf.distribute.get_strategy()
    if global_batch_size % len(devices):
        raise UserError(
            f"--global_batch_size has to be a multiple of the number of devices, {len(devices)}. "
            f"Received: {global_batch_size}"
        )
    return tf.distribute.MirroredStrategy([device.name for device in devices])
