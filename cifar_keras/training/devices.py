"""What the computation runs on."""

import tensorflow as tf

from cifar_keras.errors import UserError


def set_up_devices(virtual_devices: int, *, deterministic: bool) -> None:
    """Configure TensorFlow's devices; before anything else uses them.

    Args:
        virtual_devices: number of logical CPUs that the processor is split into; 0 leaves it whole.
        deterministic: only run operations that give the same bits each time.
    """
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    # TF32 would round the products of a newer GPU to 10 bits; it has bfloat16 for that. Off from the beginning, because TensorFlow keeps
    # the kernel that it chose for a shape: after training in TF32 an H100's logits were off by 0.5 %, although it was off by then.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    if virtual_devices:
        tf.config.set_visible_devices([], "GPU")
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * virtual_devices)
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def device_names() -> list[str]:
    """Name what the run computes on: each GPU by its model, or each logical CPU by its number."""
    gpus = tf.config.get_visible_devices("GPU")
    models = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    return models or [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices("CPU")]


def check_no_idle_device(image_count: int, global_batch_size: int, replicas: int) -> None:
    """Check that the last validation batch has an image for each device; oneDNN's convolutions fail on none.

    The strategy gives each device ceil(batch / replicas) images until there are none left.

    Raises:
        UserError: a device would be left without.
    """
    last = image_count % global_batch_size
    per_device = -(-last // replicas)
    if last and per_device * (replicas - 1) >= last:
        raise UserError(
            f"--global_batch_size leaves {last} of the {image_count} validation images for the last batch, which are too few "
            f"for {replicas} devices. Received: {global_batch_size}"
        )


def make_strategy(global_batch_size: int) -> tf.distribute.Strategy:
    """Mirror over all GPUs, or over all virtual CPUs where there is no GPU; use a single device as it is.

    Raises:
        UserError: the batch does not divide by the devices. Keras averages the devices' mean losses, so an image on a
            device with fewer of them would count for more.
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
