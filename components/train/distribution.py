"""What fits a network: one device, several of one machine, or several processes on several machines.

However many there are, they take the steps that one would take: the same batches in the same order, each device with
its share of every batch, gradients and the statistics of batch normalisation over all of it.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from components import networks
from components.stage import StageError

_JOIN_S = 300  # machines start at different times
_LOST_S = 30


class Team:
    """One device of one process, which is all most trainings have."""

    devices = processes = 1
    number = 0

    def __str__(self) -> str:
        return "1 device"

    def batch(self, size: int) -> int:
        """Images of a batch that one call of the network sees.

        Raises:
            StageError: a batch can't be shared evenly.
        """
        return size

    def scope(self) -> AbstractContextManager[Any]:
        """For the body, variables are made, and steps taken, on all devices."""
        return nullcontext()

    def twin(self, network: Any, build: Callable[[], Any]) -> Any:
        """The network on all devices: itself, or one that `build` makes and that gets its weights."""
        return network

    def bring(self, twin: Any, network: Any) -> None:
        """Give the network what its twin learned."""

    def gathered(self, n: int, predict: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """What `predict` says of n images; each process asks it for its share.

        Args:
            n: images.
            predict: from their numbers to values of shape (images,).
        """
        return predict(np.arange(n))

    def told(self, message: Any) -> Any:
        """What the first process says, in all of them; anything that JSON can hold."""
        return message

    def shared(self, values: list[np.ndarray]) -> list[np.ndarray]:
        """The arrays of the first process, in all of them; shapes and dtypes are the same everywhere."""
        return values

    @contextmanager
    def together(self, name: str) -> Iterator[None]:
        """The body needs all processes, and fails in one line when one is lost."""
        yield

    def leave(self) -> None:
        """The end of what needs all processes."""


class _Several(Team):
    """Several devices, whose network is another one than the process's own."""

    def __init__(self, devices: int) -> None:
        self.devices = devices

    def __str__(self) -> str:
        return f"{self.devices} devices"

    def batch(self, size: int) -> int:
        if size % self.devices:
            raise StageError(
                f"a batch of {size} images can't be shared evenly by {self.devices} devices; make batch_size a "
                f"multiple of {self.devices}, or show fewer devices (CUDA_VISIBLE_DEVICES)"
            )
        return size

    def twin(self, network: Any, build: Callable[[], Any]) -> Any:
        with self.scope():
            twin = build()
        twin.set_weights(network.get_weights())
        return twin

    def bring(self, twin: Any, network: Any) -> None:
        convert = networks.load_keras().ops.convert_to_numpy
        for mine, theirs in zip(network.variables, twin.variables, strict=True):
            mine.assign(convert(theirs))


class _Mirrored(_Several):
    """The GPUs of one machine under TensorFlow: a copy of the network on each."""

    def __init__(self, devices: list[str]) -> None:
        import tensorflow as tf

        super().__init__(len(devices))
        self._strategy = tf.distribute.MirroredStrategy(devices)

    def batch(self, size: int) -> int:
        return super().batch(size) // self.devices

    def scope(self) -> AbstractContextManager[Any]:
        return self._strategy.scope()

    def twin(self, network: Any, build: Callable[[], Any]) -> Any:
        keras = networks.load_keras()
        twin = super().twin(network, build)
        for layer in twin._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True
        return twin


class _Jax(_Several):
    """All devices of all processes under JAX, as one."""

    def __init__(self) -> None:
        import jax
        import keras

        super().__init__(jax.device_count())
        self.processes, self.number = jax.process_count(), jax.process_index()
        self._distribution = keras.distribution.DataParallel(auto_shard_dataset=False)

    def __str__(self) -> str:
        return f"{self.devices} devices" + (f" in {self.processes} processes" if self.processes > 1 else "")

    def scope(self) -> AbstractContextManager[Any]:
        return self._distribution.scope()

    def gathered(self, n: int, predict: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        from jax.experimental import multihost_utils

        each = -(-n // self.processes)
        padded = np.resize(np.arange(n), each * self.processes)
        share = predict(padded[self.number * each :][:each])
        return np.asarray(multihost_utils.process_allgather(share, tiled=True))[:n]

    def told(self, message: Any) -> Any:
        content = np.frombuffer(json.dumps(message).encode(), np.uint8).astype(np.int32)
        [length] = self.shared([np.array(len(content), np.int32)])
        [said] = self.shared([np.resize(content, int(length))])
        return json.loads(said.astype(np.uint8).tobytes())

    def shared(self, values: list[np.ndarray]) -> list[np.ndarray]:
        from jax.experimental import multihost_utils

        return [np.asarray(value) for value in multihost_utils.broadcast_one_to_all(values)]

    @contextmanager
    def together(self, name: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if self.processes == 1:
                raise
            raise StageError(
                f"{name}: process {self.number} of {self.processes} lost another one "
                f"({str(error).splitlines()[0]}); start all of them again: the training goes on after its last epoch"
            ) from None

    def leave(self) -> None:
        if self.processes > 1:
            import jax

            jax.distributed.shutdown()


def asked() -> tuple[int, int, str | None]:
    """How many processes the environment asks for, which of them this is, and where the first one listens.

    Keras' own variables are KERAS_DISTRIBUTION_NUM_PROCESSES, _PROCESS_ID and _JOB_ADDRESSES; Kubeflow's Trainer sets
    JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS.
    """

    def read(keras: str, jax: str) -> str | None:
        return os.environ.get(f"KERAS_DISTRIBUTION_{keras}") or os.environ.get(f"JAX_{jax}")

    count, number = read("NUM_PROCESSES", "NUM_PROCESSES") or "1", read("PROCESS_ID", "PROCESS_ID") or "0"
    if not (count.isdecimal() and number.isdecimal() and int(number) < int(count)):
        raise StageError(f"process {number} of {count}: no such process; correct KERAS_DISTRIBUTION_PROCESS_ID")
    addresses = read("JOB_ADDRESSES", "COORDINATOR_ADDRESS")
    return int(count), int(number), addresses.split(",")[0] if addresses else None


def team() -> Team:
    """What there is to fit a network with; waits for the other processes where the environment asks for several.

    Raises:
        StageError: several processes are asked for, and the backend isn't JAX, or they didn't come together.
    """
    backend = networks.load_keras().backend.backend()
    count, number, address = asked()
    if backend != "jax" and (count > 1 or _workers() > 1):
        raise StageError(
            f"a training in several processes needs JAX, and the backend is {backend} (TensorFlow's "
            "MultiWorkerMirroredStrategy does not work with Keras 3); set KERAS_BACKEND=jax, with "
            "`pip install -e '.[jax]'`, and take TF_CONFIG away"
        )
    if backend == "jax":
        import jax

        if count > 1 and not jax.distributed.is_initialized():
            _join(count, number, address)
        return _Jax() if jax.device_count() > 1 else Team()
    if backend == "tensorflow":
        import tensorflow as tf

        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return _Mirrored([device.name for device in devices]) if len(devices) > 1 else Team()
    return Team()


def _join(count: int, number: int, address: str | None) -> None:
    import jax
    from jax.experimental import multihost_utils

    if address is None:
        raise StageError(
            f"{count} processes are asked for, and no address where the first one listens; set "
            "KERAS_DISTRIBUTION_JOB_ADDRESSES=HOST:PORT in all of them"
        )
    # It would catch SIGTERM, and the process would live on.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        # What `keras.distribution.initialize` calls, which has no limits of time.
        jax.distributed.initialize(
            address,
            count,
            number,
            initialization_timeout=_JOIN_S,
            heartbeat_timeout_seconds=_LOST_S,
            shutdown_timeout_seconds=_LOST_S,
        )
        # Connections between all are made now: later, one that is still busy by itself would be waited for in vain.
        multihost_utils.sync_global_devices("together")
    except RuntimeError as error:
        raise StageError(
            f"the {count} processes of this training did not come together at {address} within {_JOIN_S} s "
            f"({str(error).splitlines()[0]}); start them all, with the same address and count"
        ) from None


def _workers() -> int:
    """The workers that TF_CONFIG names."""
    try:
        cluster = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
        return sum(len(cluster.get(role, [])) for role in ("chief", "master", "worker"))
    except (ValueError, AttributeError, TypeError):
        return 0
