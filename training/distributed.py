"""One training from one process to many hosts: who this process is, and what all must agree on.

torchrun starts the processes and says in the environment how many there are; `session` joins them. A training that was
started without it is one of one process, and all here works there too, without a process group. A batch is that of the
whole training: what is drawn for it depends on the seed and the iteration alone, and `own_parts` says which samples a
process takes, so that losses do not depend on how many processes there are.

A collective that one process does not reach is waited for by all others until a timeout. So whatever may fail on one
alone (a disk, a file) is done in `agreement`, and what is read from a disk to decide something goes through
`from_main`. What fails on one alone elsewhere (a GPU out of memory) ends that process at once, by `leave`, whereupon
torchrun ends the others.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

T = TypeVar("T")

_TIMEOUT = timedelta(minutes=30)
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes what there is one of: the log, samples, results."""
    return rank() == 0


@contextmanager
def session(device: torch.device, *, timeout: timedelta = _TIMEOUT) -> Iterator[torch.device]:
    """Joins the processes that torchrun started, and leaves them at a good end; without torchrun it does nothing.

    Args:
        device: its type, "cuda" or "cpu"; each process of a host gets an accelerator of its own.
        timeout: how long processes wait for one another.

    Yields:
        the device of this process.

    Raises:
        ValueError: not all processes came, or a host has fewer accelerators than processes.
    """
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield device
        return
    missing = [name for name in _ENVIRONMENT if name not in os.environ]
    if missing:
        raise ValueError(f"the environment has WORLD_SIZE but no {', '.join(missing)}: start the processes by torchrun")
    backend = "gloo"
    if device.type == "cuda":
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise ValueError(f"process {local} of this host has no accelerator: torchrun --nproc-per-node={there}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=timeout)
    except dist.DistError as error:
        raise ValueError(
            f"not all of the {os.environ['WORLD_SIZE']} processes came within {timeout}: are all hosts started, with "
            f"the same --nnodes, and do they reach {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}?"
        ) from error
    if not is_main():
        logging.getLogger(__package__).setLevel(logging.WARNING)
    yield device
    # Not after an error: with NCCL this may wait for the others, which may wait for this process in a collective.
    dist.destroy_process_group()


def leave(main: Callable[[], int]) -> NoReturn:
    """Ends this process with the status that `main` returns, or that it leaves with by SystemExit; one of several ends
    at once, when all that it writes is written, also by any other exception.

    What torch remembers of sharded tensors keeps the group's threads alive to the very end, and an interpreter that is
    taken down under them aborts now and then: torchrun would call a finished training failed. After an error it may
    wait for processes that wait for this one, and torchrun would not hear of it.
    """
    try:
        status = main()
    except SystemExit as end:
        if not isinstance(end.code, int):  # a message, which Python prints
            raise
        status = end.code
    except BaseException:
        if "WORLD_SIZE" not in os.environ:
            raise
        traceback.print_exc()
        status = 1
    if "WORLD_SIZE" not in os.environ:
        sys.exit(status)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


@contextmanager
def agreement() -> Iterator[None]:
    """What fails in here on any process fails on all, and process 0 tells it: the others leave with SystemExit.

    All processes must come here. A collective inside must be one that fails on all or none.
    """
    if world_size() == 1:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as own:
        error = own
    errors: list[Exception | None] = [None] * world_size()
    dist.all_gather_object(errors, error)
    first = next((e for e in errors if e is not None), None)
    if first is None:
        return
    if is_main():
        raise first
    raise SystemExit(2)


def from_main(value: T) -> T:
    """Process 0's value, on all."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def from_all(value: T) -> list[T]:
    """Every process's value, on all, in their order."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def to_main(value: T) -> list[T]:
    """Every process's value, in their order, on process 0; nothing on the others."""
    if world_size() == 1:
        return [value]
    values = [value] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return values or []


def mean(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over processes of scalars by name."""
    if not values:
        return {}
    stacked = torch.stack([value.double() for value in values.values()])
    if world_size() > 1:
        dist.all_reduce(stacked)
        stacked /= world_size()
    return dict(zip(values, stacked.tolist(), strict=True))


def own_parts(batch: int, micro_batch: int = 0) -> list[slice]:
    """Samples of a batch that this process takes, a slice for each forward of at most `micro_batch` samples.

    Args:
        batch: samples of all processes.
        micro_batch: samples of a forward; 0 takes all of a process's at once.

    Raises:
        ValueError: they do not divide evenly, so that some would weigh more than others.
    """
    share, left = divmod(batch, world_size())
    if left:
        raise ValueError(
            f"recipe: batch must be a multiple of the {world_size()} processes, got {batch}; change batch, or start "
            "another number of processes"
        )
    size = micro_batch or share
    if share % size:
        raise ValueError(
            f"recipe: micro_batch must divide the {share} samples of each process (batch {batch} over {world_size()}), "
            f"got {micro_batch}"
        )
    first = rank() * share
    return [slice(start, start + size) for start in range(first, first + share, size)]


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a sharded tensor, in its storage; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Whole tensors on the CPU of process 0, cast to `dtype` where given, one at a time; nothing on the others.

    All processes must call it. Without sharding the tensors come as they are.
    """
    if world_size() == 1:
        return dict(tensors)
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if is_main():
            whole[name] = full.detach().to("cpu", dtype)
    return whole
