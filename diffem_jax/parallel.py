"""The only module whose code depends on the devices: it maps the E-step and the M-step over them.

    pmap    every device holds the whole state and its part of a batch; the step averages gradients itself (several processes: 'jit')
    jit     the same layout as shardings of global arrays; XLA averages
    fsdp    'jit' with parameters, their average and the optimiser state cut over the devices, so that each holds 1 / devices

A batch of B examples is an array with a leading axis B on the host; ``shard`` lays it over the devices, ``gather`` brings results
back. States are un-stacked: a leaf has the shape it has on one device.
"""

import contextlib
import functools
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import process_count, process_index
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffem_jax.errors import UserError, first_line
from diffem_jax.types import PyTree

AXIS = "batch"
# Before jaxlib 0.11.2 a CPU kernel (a batch of Cholesky factors) waits in a thread of the pool that it shares its work out to: with as
# many at once as threads, such as two devices on two cores, all wait for ever. One device keeps the usual number, which is faster.
_FORCED = re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
_CPU_DEVICES = max(jax.config.jax_num_cpu_devices, int(_FORCED[1]) if _FORCED else 1)  # type: ignore[attr-defined]
if _CPU_DEVICES > 1 and not {"PJRT_NPROC", "NPROC"} & os.environ.keys():
    os.environ["PJRT_NPROC"] = str(max(os.cpu_count() or 1, 4 * _CPU_DEVICES))


class Parallel(NamedTuple):
    """A way of using devices."""

    num_devices: int  # over all processes
    mean: Callable[[PyTree], PyTree]  # average over devices inside an M-step; the identity where the batch is global
    map_e_step: Callable[[Callable], Callable]  # e_step -> compiled (key, params, observations, indices)
    map_m_step: Callable[[Callable], Callable]  # m_step -> compiled (key, state, x, slots); donates the state
    shard: Callable[..., PyTree]  # (tree, axis of this process's examples) -> device arrays, split along the axis
    replicate: Callable[[PyTree], PyTree]  # tree -> device arrays, whole on every device
    place: Callable[[PyTree], PyTree]  # state -> device arrays for ``map_m_step``, whole on every device or cut
    gather: Callable[[Any], np.ndarray]  # sharded array -> this process's rows on the host


def make_parallel(name: str = "pmap", devices: Sequence[jax.Device] | None = None) -> Parallel:
    """'pmap', 'jit' or 'fsdp' over the given or all devices; UserError for another name."""
    if name not in ("pmap", "jit", "fsdp"):
        raise UserError(f"parallel: {name!r}; expected one of pmap, jit, fsdp")
    found = list(devices or jax.devices())
    # Of several processes jax.pmap would send the whole state over the host at every call.
    mapped = name == "pmap" and all(device.process_index == process_index() for device in found)
    return _pmap(found) if mapped else _jit(found, cut=name == "fsdp")


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array on the devices of a sharding, from this process's part of it."""
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if _is_key(leaf):
        return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), sharding))
    return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))


def _replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    # Of copies: the state is donated later, and placing an array may share its memory.
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: _put(leaf if _is_key(leaf) else np.array(leaf), whole), tree)


def on_host(leaf: Any) -> np.ndarray:
    """A whole array on the host, whatever devices it lies on; where processes share it, all call this."""
    if isinstance(leaf, jax.Array) and leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def snapshot(tree: PyTree) -> PyTree:
    """A copy on the host, which stays as it is when the tree is donated to the next step."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()  # all at once, before the first is waited for
    return jax.tree.map(lambda leaf: np.array(on_host(leaf)), tree)


def _local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is split along its first axis."""
    if array.is_fully_addressable and len(array.addressable_shards) == 1:
        return np.asarray(array)
    shards = sorted(array.addressable_shards, key=lambda s: s.index[0].start or 0)
    return np.concatenate([np.asarray(s.data) for s in shards])


def _cut(mesh: Mesh, leaf: Any) -> NamedSharding:
    """Along the longest axis that the devices divide; arrays without one are whole on every device."""
    axes = [axis for axis, size in enumerate(leaf.shape) if size and size % mesh.size == 0]
    longest = max(axes, key=lambda axis: leaf.shape[axis], default=None)
    return NamedSharding(mesh, PartitionSpec() if longest is None else PartitionSpec(*(None,) * longest, AXIS))


def _jit(devices: list[jax.Device], cut: bool) -> Parallel:
    mesh = Mesh(np.array(devices), (AXIS,))
    whole, replicate = NamedSharding(mesh, PartitionSpec()), functools.partial(_replicate, mesh)

    def split(axis: int) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, AXIS))

    map_e_step = functools.partial(jax.jit, in_shardings=(whole, whole, split(0), split(0)), out_shardings=split(0))

    def map_m_step(m_step: Callable) -> Callable:
        def cut_again(*arguments: Any) -> Any:
            state, info = m_step(*arguments)
            return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, _cut(mesh, leaf)), state), info

        # Where a leaf is cut depends on its shape, which ``cut_again`` knows.
        step, of_state = (cut_again, None) if cut else (m_step, whole)
        into = (whole, of_state, split(1), split(1))
        return jax.jit(step, in_shardings=into, out_shardings=(of_state, whole), donate_argnums=1)

    def place(state: PyTree) -> PyTree:
        def put(leaf: Any) -> jax.Array:
            copied = np.array(leaf)  # the state is donated later
            return jax.make_array_from_callback(copied.shape, _cut(mesh, copied), lambda index: copied[index])

        return jax.tree.map(put, state) if cut else replicate(state)

    def shard(tree: PyTree, axis: int = 0) -> PyTree:
        return jax.tree.map(lambda leaf: _put(leaf, split(axis)), tree)

    return Parallel(len(devices), lambda tree: tree, map_e_step, map_m_step, shard, replicate, place, _local_rows)


def _pmap(devices: list[jax.Device]) -> Parallel:
    mesh = Mesh(np.array(devices), (AXIS,))
    stacked, replicate = NamedSharding(mesh, PartitionSpec(AXIS)), functools.partial(_replicate, mesh)
    mapped = functools.partial(jax.pmap, axis_name=AXIS, in_axes=(None, None, 0, 0), devices=devices)
    mean = functools.partial(jax.lax.pmean, axis_name=AXIS)
    map_m_step = functools.partial(mapped, out_axes=None, donate_argnums=1)

    def shard(tree: PyTree, axis: int = 0) -> PyTree:
        """[.., B, ..] -> [devices, .., B / devices, ..], each device's part on it."""

        def split(leaf: Any) -> np.ndarray:
            data = np.asarray(leaf)
            return data[None] if len(devices) == 1 else np.stack(np.split(data, len(devices), axis))

        return jax.tree.map(lambda leaf: _put(split(leaf), stacked), tree)

    def gather(array: jax.Array) -> np.ndarray:
        rows = _local_rows(array)
        return rows.reshape(-1, *rows.shape[2:])

    return Parallel(len(devices), mean, mapped, map_m_step, shard, replicate, place=replicate, gather=gather)


def no_transfers(after_first: bool) -> contextlib.AbstractContextManager[None]:
    """Refuses copies between host and devices that nobody asked for, in every call of a compiled function but the first."""
    # That one traces, and an accelerator's arrays that a program holds as constants are copied to the host for it.
    return jax.transfer_guard("disallow") if after_first else contextlib.nullcontext()


def accelerated() -> bool:
    """Whether the computation runs on a TPU or GPU, whose own convolution gradients are the fastest."""
    return jax.default_backend() != "cpu"


def agree(value: np.ndarray) -> np.ndarray:
    """The first process's array, on every process; all call it."""
    return np.asarray(multihost_utils.broadcast_one_to_all(value))


def agree_text(text: str) -> str:
    """The first process's text of up to 128 bytes, on every process; all call it."""
    padded = np.frombuffer(text.encode().ljust(128, b"\0"), np.uint8)
    return bytes(agree(padded)).rstrip(b"\0").decode()


def most(number: int) -> int:
    """The largest of the processes' numbers: how one's trouble is known to the others; all call it."""
    if process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.asarray(number, np.int32))))


def total(values: np.ndarray) -> np.ndarray:
    """The sum of the processes' arrays, in float64; all call it."""
    if process_count() == 1:
        return values
    # Arrays of devices have 32 bits: high and low parts are sent apart.
    high = np.asarray(values, np.float32)
    low = np.asarray(values - high, np.float32)
    return np.asarray(multihost_utils.process_allgather(np.stack([high, low])), np.float64).sum(axis=(0, 1))


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if process_count() > 1:
        multihost_utils.sync_global_devices(name)


HEARTBEAT_SECONDS = 30  # a process that was not heard of for so long is taken for dead, and all others end


def initialize(coordinator: str, num_processes: int, process_id: int) -> None:
    """Joins a run of several processes; 'auto' as coordinator lets the cluster's environment decide (TPU pods, Slurm)."""
    auto, (host, _, port) = coordinator == "auto", coordinator.rpartition(":")
    if not auto and not (host and port.isdecimal()):
        raise UserError(f"--coordinator: {coordinator!r}; expected host:port of process 0, or auto; correct it")
    if not auto and not 0 <= process_id < num_processes:
        expected = f"a number from 0 to {num_processes - 1}, with --num_processes={num_processes}"
        raise UserError(f"--process_id: {process_id}; expected {expected}; correct one of them")
    # Before anything asks for devices: CPU devices of several processes need it, others do not mind.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    where = (None, None, None) if auto else (coordinator, num_processes, process_id)
    waits = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS, "shutdown_timeout_seconds": 2 * HEARTBEAT_SECONDS}
    try:
        jax.distributed.initialize(*where, **waits)  # type: ignore[misc, arg-type]
    except (ValueError, RuntimeError) as error:
        expected = "process 0 at that address and, for auto, a cluster that JAX knows (TPU pod, Slurm, Open MPI)"
        cure = "start every process, or give host:port"
        raise UserError(f"--coordinator: {coordinator}: {first_line(error)}; expected {expected}; {cure}") from error


def joined() -> bool:
    """Whether this process has joined others; starts nothing."""
    return jax.distributed.is_initialized()
