"""Distributed processes, one for each device: how they join, and their collective operations."""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from scaleup.common.errors import UserError, first_line

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # timeout of collective operations
OWN_FAULT = re.compile("ncclSystemError|ncclInvalidUsage|ncclUnhandledCudaError|out of memory")
LOST = "no longer answers"


class World(NamedTuple):
    """The processes that run together, and the device of this one."""

    rank: int
    size: int
    device: torch.device

    def first(self, value: T) -> T:
        """The value that the first rank has."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, group=_host_group())
        return box[0]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in the order of the ranks."""
        everyone = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(everyone, value, group=_host_group())
        return everyone

    def gather_numbers(self, value: int) -> list[int]:
        """The numbers of all ranks, in the order of the ranks: a single small message."""
        everyone = [torch.tensor(value) for _ in range(self.size)]
        if self.size > 1:
            dist.all_gather(everyone, torch.tensor(value), group=_host_group())
        return [int(each) for each in everyone]

    def join_lists(self, values: list[T]) -> list[T]:
        """The lists of all ranks, concatenated. This is fast if all are empty."""
        if not any(self.gather_numbers(len(values))):
            return values
        return [value for each in self.gather(values) for value in each]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place; of a tensor on the device."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all ranks, in place."""
        return self.sum(values).div_(self.size)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Turn the error of a collective operation into a UserError: another rank has ended, or NCCL failed on this."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            raise UserError(f"rank {self.rank} stops, because {self._cause(error)}") from error

    def _cause(self, error: RuntimeError) -> str:
        """Why a collective operation failed, as far as its error says."""
        if own := OWN_FAULT.search(str(error)):
            return (
                f"NCCL failed on this rank: {' '.join(str(error)[own.start() :].split())}; it needs room in /dev/shm "
                "(containers: --shm-size=8g), and for each rank a GPU of its own with free memory; NCCL_DEBUG=WARN "
                "prints more"
            )
        return (
            f"another of the {self.size} ranks {LOST}; read its last message, and start the same command again: "
            f"training goes on from the last checkpoint ({first_line(error)})"
        )


def join() -> World:
    """Join the processes that torchrun or the deepspeed launcher started. Without a launcher there is one process."""
    device = own_device()
    if not dist.is_initialized():
        _meet(device)
        atexit.register(leave)
    return World(dist.get_rank(), dist.get_world_size(), device)


@cache
def _host_group() -> dist.ProcessGroup | None:
    """A group by gloo, where the ranks' own does not take what is on the host: so nobody waits for the device."""
    if dist.get_backend() == dist.Backend.GLOO:
        return None
    return dist.new_group(backend=dist.Backend.GLOO, timeout=PATIENCE)


def _meet(device: torch.device) -> None:
    backend = dist.get_default_backend_for_device(device)
    if "RANK" not in os.environ:  # a single process needs no port and no network
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        return
    try:
        dist.init_process_group(backend, timeout=PATIENCE)
        _host_group()
    except RuntimeError as error:
        raise UserError(
            f"rank {os.environ['RANK']} does not reach the others: {first_line(error)}; MASTER_ADDR and MASTER_PORT "
            "name the host of the first rank and a free port there; if hosts have several networks, "
            "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the one to use"
        ) from error


def device_type() -> str:
    """The kind of device that this machine computes on: ``cuda``, ..., or ``cpu``.

    Raises:
        UserError: there is a GPU, but its driver does not fit this torch, which would compute on the CPU.
    """
    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None and torch.version.cuda is not None:
        _refuse_driver()
    return "cpu" if kind is None else kind.type


@cache
def _refuse_driver() -> None:
    try:
        torch.cuda.init()
    except RuntimeError as error:  # also where there is no GPU, or none is visible
        if re.search("too old|unsupported display driver|forward compatibility|CUDA unknown error", str(error)):
            raise UserError(
                f"this torch cannot use the GPU: {first_line(error)} Update the driver, install a torch for its "
                "CUDA, or compute on the CPU (CUDA_VISIBLE_DEVICES=)"
            ) from error


def has_bfloat16(kind: str) -> bool:
    """Whether a kind of device computes fast in bfloat16; a GPU before Ampere only emulates it."""
    return kind != "cpu" and (kind != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False))


def own_device() -> torch.device:
    """The device of this process: the accelerator with the number of its local rank, or the CPU.

    Raises:
        UserError: this machine has fewer accelerators than ranks.
    """
    if (kind := device_type()) == "cpu":
        return torch.device("cpu")
    module, local = torch.get_device_module(kind), int(os.environ.get("LOCAL_RANK", "0"))
    if local >= (count := module.device_count()):
        raise UserError(
            f"rank {local} of this machine has no GPU: there {'is' if count == 1 else 'are'} {count}; start at most "
            f"{count} ranks on a machine (--nproc-per-node, --num_gpus), or show more (CUDA_VISIBLE_DEVICES)"
        )
    device = torch.device(kind, local)
    module.set_device(device)  # streams, events and DeepSpeed use the current device
    return device


def leave() -> None:
    """Destroy the process group before Python ends. Otherwise a thread of gloo may free its last tensor too late, which
    crashes the process (exit code -6)."""
    if dist.is_initialized():
        dist.destroy_process_group()
    _host_group.cache_clear()
