"""All use of DeepSpeed: one engine for each arm."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from scaleup.common.distributed import World
from scaleup.config.schema import Arm, Train

OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
LIVE = 10**8  # weights that stage 3 has whole at a time
SMALL = 10**5  # weights of a tensor that each rank has whole all the time
DIVIDED = {
    "stage3_max_live_parameters": LIVE,
    "stage3_max_reuse_distance": LIVE,
    "stage3_param_persistence_threshold": SMALL,
    "memory_efficient_linear": False,  # it would replace torch's linear function for all of the process
}
HELD = -1  # in the place of the number of a module that uses a parameter: it stays whole
TINY = 1e-6  # beside a norm that may be 0, as in torch's clip_grad_norm_
OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}


def _deepspeed() -> ModuleType:
    """DeepSpeed without messages, and without its compiled extension for collectives on CPUs (gloo is used)."""
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def _zero(train: Train) -> dict[str, Any]:
    """DeepSpeed's settings of a stage."""
    if train.zero_stage == 3:  # DeepSpeed calls what torch has renamed
        warnings.filterwarnings("ignore", "`torch.distributed.*is deprecated", FutureWarning)
    return {"stage": train.zero_stage} | (DIVIDED if train.zero_stage == 3 else {}) | (OFFLOAD if train.offload else {})


def parameter_groups(arm: nn.Module, settings: Arm) -> list[dict[str, Any]]:
    """The trained parameters, by learning rate and weight decay.

    The gate has its own rate. The gate, norms, biases and the scales of (IA)^3 have no weight decay. Parameters that
    some batches do not use (of the tokenizer and the heads) have their own groups, so that they can rest (see
    :class:`Engine`).
    """
    by_setting: dict[tuple, dict[str, Any]] = {}
    for name, parameter in arm.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = settings.gate_lr if name.startswith("gate.") else settings.lr
        decay = settings.weight_decay if parameter.dim() > 1 and ".ia3_l." not in name else 0.0
        unit = name if name.startswith(("tokenizer.", "heads.")) else "rest"
        new = {"params": [], "lr": lr, "base_lr": lr, "weight_decay": decay, "unit": unit}
        by_setting.setdefault((unit, lr, decay), new)["params"].append(parameter)
    return list(by_setting.values())


class Engine:
    """One arm under DeepSpeed. ``module`` is called through :meth:`__call__` and has the arm at ``module.arm``.

    A parameter group without a gradient in a step rests: momentum and weight decay do not change it. (DeepSpeed alone
    would give it a gradient of 0, and the optimizer would change it.) In a step all ranks must use the same groups.
    """

    def __init__(self, module: nn.Module, settings: Arm, train: Train, batch: int, world: World) -> None:
        self.arm, self.rank = cast(nn.Module, module.arm), world.rank
        self.divides = train.zero_stage == 3  # each rank has a part of every weight
        param_groups = parameter_groups(self.arm, settings)
        self.optimizer = OPTIMIZERS[train.optimizer](param_groups, betas=tuple(train.betas), fused=True)
        self.optimizer.register_step_pre_hook(self._rest)
        self.resting: list[tuple[Tensor, Tensor | None]] = []
        self.optimizer.register_step_post_hook(self._wake)
        config = {
            "train_batch_size": batch,
            "train_micro_batch_size_per_gpu": batch // world.size // train.accumulate,
            "gradient_accumulation_steps": train.accumulate,
            "gradient_clipping": settings.clip if train.zero_stage else 0.0,
            "zero_optimization": _zero(train),
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # torch's own fused update works on the host too
            "steps_per_print": sys.maxsize,
            "timers": {"throughput": {"enabled": False}},  # it would wait for the device twice a step
        }
        self.groups = [list(group["params"]) for group in param_groups]
        self.units = [group["unit"] for group in param_groups]
        self.parameters = [parameter for group in self.groups for parameter in group]
        self.used: set[str] = set()
        used = self.used  # a hook that refers to the engine would keep it in memory (see close)
        for group in param_groups:
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(lambda _, unit=group["unit"]: used.add(unit))
        self.clip = 0.0 if train.zero_stage else settings.clip  # clipped by :meth:`step`, which has the norm
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed requires it
        self.engine = _deepspeed().initialize(model=module, optimizer=self.optimizer, config=config)[0]
        if world.size == 1 and not train.zero_stage:
            self.engine.enable_backward_allreduce = False  # it would copy all gradients twice

    def __call__(self, *inputs: Any) -> Any:
        return self.engine(*inputs)

    @contextmanager
    def whole(self, changes: bool = False) -> Iterator[None]:
        """Inside, each rank has all weights of the arm, also where stage 3 divides them. All ranks must call.

        Args:
            changes: those of the first rank are kept.
        """
        if not self.divides:
            yield
            return
        parameters: list[Any] = [*self.arm.parameters()]
        with _deepspeed().zero.GatheredParameters(parameters, 0 if changes else None):
            for parameter in parameters:
                parameter.ds_active_sub_modules.add(HELD)
            try:
                yield
            finally:
                for parameter in parameters:
                    parameter.ds_active_sub_modules.discard(HELD)

    def unite(self) -> None:
        """Give each rank all weights for good, on the host; the arm trains no more. All ranks must call."""
        for parameter in self.arm.parameters() if self.divides else ():
            with _deepspeed().zero.GatheredParameters([parameter]):
                whole = parameter.detach().to("cpu", copy=True)
            parameter.data = whole
        self.divides = False

    def close(self) -> None:
        """Free the memory; the engine can no longer train.

        torch stores hooks of parameters, also DeepSpeed's, where Python's garbage collector does not look. All that
        hooks refer to would stay in memory.
        """
        self.engine.destroy()

    def step(self, loss: Tensor, lr_factor: float) -> Tensor | float:
        """Backward; after the last micro-batch of a step also the update.

        Returns the norm, before clipping, of the gradient of all micro-batches of this step so far.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = group["base_lr"] * lr_factor
        self.engine.backward(loss)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else loss.new_zeros(())  # stages 2 and 3 take them
        if self.clip and self.engine.is_gradient_accumulation_boundary() and self._may_clip(norm):
            torch._foreach_mul_(gradients, (self.clip / (norm + TINY)).clamp(max=1))
        if self.divides and self.engine.is_gradient_accumulation_boundary():
            self._forget()
        self.engine.step()
        if self.engine.micro_steps % self.engine.gradient_accumulation_steps() == 0:
            self.used.clear()
        return self._norm(norm)

    def _norm(self, own: Tensor) -> Tensor | float:
        """``own``, or the norm that ZeRO knows, which keeps gradients to itself; with offload it is on the host."""
        zero = self.engine.get_global_grad_norm()
        if zero is None:
            return own
        return zero if getattr(zero, "device", None) == own.device else float(zero)

    def _forget(self) -> None:
        """Make gradients that this step does not have 0: stage 3 keeps them, and counts them into the norm."""
        from deepspeed.utils import safe_set_local_grad

        for unit, group in zip(self.units, self.groups, strict=True):
            for parameter in group if unit not in self.used else ():
                safe_set_local_grad(parameter, torch.zeros_like(parameter.ds_tensor))  # type: ignore[attr-defined]

    def _may_clip(self, norm: Tensor) -> bool:
        """Whether to multiply by the clipping factor. A GPU always does, by 1 where the norm is small: if the host
        asked, it would wait."""
        return norm.device.type != "cpu" or bool(norm > self.clip)

    def holders(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter, and the tensor that the optimizer updates for it.

        This is the parameter itself; with ZeRO, this rank's part of the concatenated parameters of its group.
        """
        zero = self.engine.optimizer
        if self.divides:
            flat = zero.fp32_partitioned_groups_flat
            yield from ((each, flat[zero.grad_position[zero.get_param_id(each)][0]]) for each in self.parameters)
            return
        flat = getattr(zero, "single_partition_of_fp32_groups", None)
        for index, group in enumerate(self.groups):
            yield from ((parameter, parameter if flat is None else flat[index]) for parameter in group)

    def refresh_holders(self) -> None:
        """Copy parameters that were changed outside the optimizer to its master weights."""
        if hasattr(self.engine.optimizer, "refresh_fp32_params"):
            self.engine.optimizer.refresh_fp32_params()

    def _rest(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        for group in optimizer.param_groups:
            if group["unit"] not in self.used:
                self.resting += [(parameter, parameter.grad) for parameter in group["params"]]
                for parameter in group["params"]:
                    parameter.grad = None

    def _wake(self, *_: Any) -> None:
        """Give the resting parameters their gradients back; with offload these are permanent buffers on the host."""
        for parameter, gradient in self.resting:
            parameter.grad = gradient
        self.resting.clear()
