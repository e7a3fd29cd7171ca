"""A pretended GPU for machines without one: its tensors are in host memory and carry a mark.

Inside :func:`gpu`, torch finds one CUDA device. What a GPU refuses is refused: operations on tensors of two devices,
``numpy()`` of its tensors, random numbers from the host's generator, host tensors in NCCL (they go by gloo where the
process group has it). What makes the host wait for the device, and what is copied to it, is counted with the line of
the package that asked for it.

It shows where tensors are and what waits. It does not show speed, memory, or the device's own rounding.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from weakref import finalize

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  it compiles: as torch._dynamo
import torch
import torch._dynamo  # before anything is replaced: it lists torch's functions
import torch.distributed as dist
import torch.utils.checkpoint
import torchvision  # noqa: F401  as torch._dynamo
from deepspeed.accelerator import real_accelerator
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    is_traceable_wrapper_subclass,
)
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from scaleup.data import upload
from scaleup.model import kernel_choice, slots, trunk

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SIZE = 80 * 2**30  # bytes
real_device = torch._C.TensorBase.device.__get__  # type: ignore[attr-defined]
aten = torch.ops.aten


class Refused(RuntimeError):
    """What a GPU would not do."""


class Events:
    """What happened, by kind and line: ``wait`` (the host waits), ``upload`` and ``download`` (bytes that move)."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.refuses_waits = False

    def refuse_waits(self, mode: str) -> None:
        self.refuses_waits = mode == "error"

    def note(self, kind: str) -> None:
        if Graph.recording is not None:
            raise Refused(f"operation not permitted when stream is capturing ({kind})")
        if kind == "wait" and self.refuses_waits:
            raise Refused("called a synchronizing CUDA operation")
        self.counts[kind, _line()] += 1

    def total(self, kind: str) -> int:
        return sum(count for (each, _), count in self.counts.items() if each == kind)

    def take(self) -> Counter[tuple[str, str]]:
        """The counts so far; then they begin at 0."""
        counts, self.counts = self.counts, Counter()
        return counts


def _line() -> str:
    frame: Any = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith((f"{ROOT}/scaleup/", f"{ROOT}/tools/")):
            return f"{path.removeprefix(f'{ROOT}/')}:{frame.f_lineno}"
        if (package := path.find("/deepspeed/")) >= 0:  # wherever it is installed
            return f"{path[package + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside"


EVENTS = Events()
marks = WeakIdKeyDictionary()  # storages on the device
pins = WeakIdKeyDictionary()  # storages on the host that the device reads by itself


class Memory:
    """Bytes of what is on the device."""

    def __init__(self) -> None:
        self.held = self.peak = 0

    def add(self, size: int) -> None:
        self.held += size
        self.peak = max(self.peak, self.held)

    def reset_peak(self, *_: Any) -> None:
        self.peak = self.held


MEMORY = Memory()


def parts(tensor: Tensor) -> list[Tensor]:
    """The tensor; of a quantised one, the tensors that it is made of."""
    if type(tensor) in (Tensor, Parameter) or not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]


def on_gpu(tensor: Any) -> bool:
    if not isinstance(tensor, Tensor) or tensor.is_meta:
        return False
    try:
        return parts(tensor)[0].untyped_storage() in marks
    except NotImplementedError:  # a tensor without storage
        return False


def mark(tensor: Any) -> Any:
    for part in parts(tensor) if isinstance(tensor, Tensor) and not tensor.is_meta else ():
        storage = part.untyped_storage()
        if storage not in marks:
            MEMORY.add(storage.nbytes())
            marks[storage] = finalize(storage, MEMORY.add, -storage.nbytes())
            marks[storage].atexit = False
    return tensor


def unmark(tensor: Tensor) -> Tensor:
    for part in parts(tensor):
        if forget := marks.pop(part.untyped_storage(), None):  # an operation on a marked tensor has marked it
            forget()
    return tensor


def pinned(tensor: Tensor) -> Tensor:
    copy = tensor.clone()
    pins[copy.untyped_storage()] = True
    return copy


def is_pinned(tensor: Tensor) -> bool:
    return all(part.untyped_storage() in pins for part in parts(tensor))


def blocks(source: Tensor, non_blocking: bool) -> bool:
    """Whether the host waits for a copy between it and the device: for one from ordinary memory it always does."""
    return on_gpu(source) or not non_blocking or not is_pinned(source)


def gpu_device() -> torch.device:
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def names_gpu(device: Any) -> bool:
    return device is not None and (isinstance(device, int) or torch.device(device).type == "cuda")


WAITS = {  # operations whose result the host needs
    *(aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.is_nonzero.default),
    *(aten.masked_select.default, aten._unique2.default),
}
INDEXING = {
    *(aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default),
    aten._unsafe_index.Tensor,
}
JOINS = {"stack", "cat"}  # take no number of the host, as others do
FREE = {"set_", "resize_", "record_stream", "_has_compatible_shallow_copy_type"}  # may have tensors of two devices


class Graph:
    """A CUDA graph: what was computed on the device while it was recorded, and into which tensors."""

    recording: list[tuple[Callable[[], Any], Any]] | None = None

    def __init__(self) -> None:
        self.work: list[tuple[Callable[[], Any], Any]] = []

    @staticmethod
    def note(call: Callable[[], Any]) -> Any:
        """What ``call`` computes on the device."""
        output = call()
        for leaf in tree_leaves(output):
            mark(leaf)
        if Graph.recording is not None:
            Graph.recording.append((call, output))
        return output

    @contextmanager
    def record(self, **_: Any) -> Iterator[None]:
        Graph.recording = self.work
        try:
            yield
        finally:
            Graph.recording = None

    @torch.no_grad()
    def replay(self) -> None:
        with _disable_current_modes():
            for call, output in self.work:
                for old, new in zip(tree_leaves(output), tree_leaves(call()), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # not a view, not in place
                        old.copy_(new)


class Operations(TorchDispatchMode):
    """Every operation on tensors, after autograd."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if names_gpu(kwargs.get("device")) and not any(each.is_meta for each in tensors):
            return Graph.note(partial(func, *args, **kwargs | {"device": CPU}))
        on = [each for each in tensors if on_gpu(each)]
        if not on:
            return func(*args, **kwargs)
        if func is aten.copy_.default:
            return self._copy(func, args, kwargs)
        self._check(func, args, tensors)
        return Graph.note(partial(func, *args, **kwargs))

    def _copy(self, func: Any, args: Any, kwargs: Any) -> Any:
        to, source = args[:2]
        if on_gpu(to) != on_gpu(source):
            EVENTS.note("upload" if on_gpu(to) else "download")
            if blocks(source, bool(args[2] if len(args) > 2 else kwargs.get("non_blocking"))):
                EVENTS.note("wait")
        return Graph.note(partial(func, *args, **kwargs)) if on_gpu(to) else func(*args, **kwargs)

    def _check(self, func: Any, args: Any, tensors: list[Tensor]) -> None:
        name = func._overloadpacket.__name__
        host = [each for each in tensors if not on_gpu(each) and not each.is_meta and (each.dim() or name in JOINS)]
        if host and func in INDEXING and on_gpu(args[0]):  # indices are copied
            EVENTS.note("upload")
        elif host and name not in FREE:
            places = ", ".join(f"{'cuda' if on_gpu(each) else 'cpu'}{tuple(each.shape)}" for each in tensors)
            raise Refused(f"{func}: expected all tensors to be on the same device: {places}")
        by_mask = func in INDEXING and any(each.dtype == torch.bool for each in tensors[1:])
        if func in WAITS or by_mask:
            EVENTS.note("wait")


class Calls(TorchFunctionMode):
    """Calls that name a device, or that leave it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in MOVES:
            return _move(args[0], *MOVES[func](args, kwargs))
        if func in (Tensor.numpy, Tensor.__array__) and on_gpu(args[0]):
            raise Refused("can't convert a cuda tensor to numpy; copy it to host memory first")
        if func is Tensor.tolist and on_gpu(args[0]):
            EVENTS.note("wait")
        if func is Tensor.record_stream:
            if len(parts(args[0])) > 1:
                raise Refused(f"{type(args[0]).__name__} has no record_stream")
            return None
        if func is Tensor.pin_memory:
            return args[0] if is_pinned(args[0]) else pinned(args[0])
        if names_gpu(kwargs.get("device")):
            return self._make(func, args, kwargs)
        return func(*args, **kwargs)

    def _make(self, func: Any, args: Any, kwargs: Any) -> Any:
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type == "cpu":
            raise Refused("expected a 'cuda' device type for generator but found 'cpu'")
        if func in (torch.tensor, torch.as_tensor):
            EVENTS.note("upload")
        return Graph.note(partial(func, *args, **kwargs | {"device": CPU}))


Move = tuple[Any, Any, bool, bool]  # device, dtype, non_blocking, copy


def _to(args: Any, kwargs: Any) -> Move:
    """The arguments of ``tensor.to``."""
    device, dtype, flags = kwargs.get("device"), kwargs.get("dtype"), []
    for value in args[1:]:
        if isinstance(value, Tensor):
            device, dtype = value.device, value.dtype
        elif isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, bool):
            flags.append(value)
        elif value is not None:
            device = value
    non_blocking, copy = [*flags, False, False][:2]
    return device, dtype, kwargs.get("non_blocking", non_blocking), kwargs.get("copy", copy)


MOVES: dict[Any, Callable[[Any, Any], Move]] = {
    Tensor.to: _to,
    Tensor.cuda: lambda args, kwargs: (gpu_device(), None, kwargs.get("non_blocking", False), False),
    Tensor.cpu: lambda args, kwargs: (CPU, None, False, False),
    Tensor.type_as: lambda args, kwargs: (args[1].device, args[1].dtype, False, False),
}
plain_to = torch._C.TensorBase.to


def _move(tensor: Tensor, device: Any, dtype: Any, non_blocking: bool, copy: bool) -> Tensor:
    """``tensor.to(device, dtype)``."""
    here = on_gpu(tensor)
    there = here if device is None else names_gpu(device)
    dtype = dtype or tensor.dtype
    if tensor.is_meta or (device is not None and torch.device(device).type == "meta"):
        return plain_to(tensor, device=CPU if there else device, dtype=dtype)
    if here == there:
        return plain_to(tensor, dtype=dtype, copy=copy)
    EVENTS.note("upload" if there else "download")
    if blocks(tensor, non_blocking):
        EVENTS.note("wait")
    moved = plain_to(tensor, dtype=dtype, copy=True)
    return mark(moved) if there else unmark(moved)


class Stream:
    """A stream or an event: nothing runs beside the host."""

    device, stream_id, device_index, device_type = torch.device("cuda", 0), 0, 0, 1

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None: ...
    def synchronize(self) -> None:
        EVENTS.note("wait")

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Any) -> float:
        return 1.0

    def record_event(self, _: Any = None) -> Stream:
        return self

    is_capturing = lambda self: False  # noqa: E731
    record = wait = wait_stream = wait_event = lambda self, *_: None  # noqa: E731


plain_wrapper = Tensor._make_wrapper_subclass


def _wrapper(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """A quantised tensor; the tensors that it is made of carry the mark."""
    return plain_wrapper(cls, *args, **kwargs | ({"device": CPU} if names_gpu(kwargs.get("device")) else {}))


def _wait(*_: Any) -> None:
    EVENTS.note("wait")


def _backward(
    self: Tensor, gradient: Any = None, retain_graph: Any = None, create_graph: bool = False, **_: Any
) -> None:
    gradient = torch.ones_like(self) if gradient is None else gradient
    _engine_run_backward((self,), (gradient,), bool(retain_graph), create_graph, (), allow_unreachable=True,
                         accumulate_grad=True)  # fmt: skip


class Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


class Pool(futures.ThreadPoolExecutor):
    """Threads see the device too."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        def call() -> Any:
            with Operations(), Calls():
                return fn(*args, **kwargs)

        return super().submit(call)


def _nccl(collective: Callable[..., Any]) -> Callable[..., Any]:
    """The ranks' own group takes tensors of the device; another one is by gloo."""

    @wraps(collective)
    def checked(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        here = any(isinstance(leaf, Tensor) and not on_gpu(leaf) for leaf in tree_leaves(tensor))
        if here and kwargs.get("group") is None:
            raise Refused(f"no backend type associated with device type cpu ({collective.__name__})")
        return collective(tensor, *args, **kwargs)

    return checked


def _of_objects(collective: Callable[..., Any]) -> Callable[..., Any]:
    """What names no device uses the current one, which must be this rank's by then."""

    @wraps(collective)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if torch.cuda.current_device() != gpu_device().index:
            raise Refused(f"{collective.__name__}: two ranks would use device {torch.cuda.current_device()}")
        return collective(*args, **kwargs)

    return checked


def _patches() -> Iterator[tuple[Any, dict[str, Any]]]:
    """Objects, and what is put in the place of their attributes."""
    yield Tensor, {"device": property(lambda self: gpu_device() if on_gpu(self) else real_device(self))}
    yield Tensor, {"is_cuda": property(on_gpu), "backward": _backward, "record_stream": lambda *_: None}
    yield Tensor, {"_make_wrapper_subclass": staticmethod(_wrapper)}
    properties = SimpleNamespace(name="pretended", total_memory=SIZE, major=9, minor=0, multi_processor_count=132)
    state, nothing = {"current": 0}, lambda *_, **__: None
    devices, current = (lambda: int(os.environ.get("WORLD_SIZE", "1"))), lambda: state["current"]
    yield (
        torch.cuda,
        {
            **{"is_available": lambda: True, "device_count": devices},
            **{
                "current_device": current,
                "set_device": lambda d: state.update(current=torch.device(d).index),
            },
            **{"is_initialized": lambda: True, "_lazy_init": nothing, "init": nothing, "synchronize": _wait},
            **{"get_device_name": lambda *_: "pretended", "get_device_capability": lambda *_: (9, 0)},
            **{"get_device_properties": lambda *_: properties, "mem_get_info": lambda *_: (SIZE, SIZE)},
            **{"Stream": Stream, "Event": Stream, "stream": lambda _: nullcontext(), "device": lambda _: nullcontext()},
            **{"current_stream": Stream, "default_stream": Stream, "empty_cache": nothing},
            **dict.fromkeys(("manual_seed", "manual_seed_all", "set_rng_state"), nothing),
            "set_sync_debug_mode": EVENTS.refuse_waits,
            "get_sync_debug_mode": lambda: "error" if EVENTS.refuses_waits else "default",
            **dict.fromkeys(("memory_allocated", "memory_reserved", "memory_cached"), lambda *_: MEMORY.held),
            **dict.fromkeys(
                ("max_memory_allocated", "max_memory_reserved", "max_memory_cached"), lambda *_: MEMORY.peak
            ),
            "reset_peak_memory_stats": MEMORY.reset_peak,
            **{"get_rng_state": lambda *_: torch.get_rng_state(), "is_bf16_supported": lambda *_, **__: True},
            "is_current_stream_capturing": lambda: Graph.recording is not None,
            **{"CUDAGraph": Graph, "graph": Graph.record, "graph_pool_handle": lambda: (0, 0)},
        },
    )
    yield torch.cuda.nccl, {"version": lambda: (2, 29, 0)}
    yield (
        torch.accelerator,
        {
            **{"is_available": lambda: True, "current_accelerator": lambda *_, **__: torch.device("cuda")},
            **{"synchronize": _wait, "current_stream": Stream, "empty_cache": nothing},
            **{"device_count": devices, "current_device_index": current},
        },
    )
    yield torch, {"Stream": Stream, "Event": Stream, "autocast": Autocast, "get_device_module": lambda *_: torch.cuda}
    yield torch.amp, {"autocast": Autocast}
    yield torch.amp.autocast_mode, {"autocast": Autocast}
    yield torch.utils.checkpoint, {"get_device_states": lambda *_: ([], []), "set_device_states": nothing}
    begin = dist.init_process_group

    yield (
        dist,
        {
            "init_process_group": lambda backend, **how: begin("gloo", **how),
            "get_backend": lambda *_: "nccl",
            **{name: _nccl(getattr(dist, name)) for name in ("all_reduce", "broadcast", "reduce", "all_gather")},
            **{name: _of_objects(getattr(dist, name)) for name in ("all_gather_object", "broadcast_object_list")},
        },
    )
    yield real_accelerator, {"ds_accelerator": None}  # DeepSpeed chooses again
    yield trunk, {"ThreadPoolExecutor": Pool}
    yield kernel_choice, {"has_compiler": lambda _: False}  # programs would not see the marks
    yield kernel_choice, {"is_slow_to_start": lambda *_: False}  # a block takes as long as to start it


@contextmanager
def gpu() -> Iterator[Events]:
    """Inside, this process has a pretended GPU."""
    with ExitStack() as stack:
        for owner, replaced in _patches():
            for name, value in replaced.items():
                original = getattr(owner, name)
                setattr(owner, name, value)
                stack.callback(setattr, owner, name, original)
        for stream in (slots.copy_stream, upload.upload_stream):  # of a real GPU, if there is one
            stream.cache_clear()
            stack.callback(stream.cache_clear)
        stack.enter_context(patch.dict(os.environ, DS_ACCELERATOR="cuda"))
        stack.enter_context(Operations())
        stack.enter_context(Calls())
        EVENTS.take()
        yield EVENTS
