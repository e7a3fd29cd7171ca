"""All use of DeepSpeed: one engine for each arm, and the state of its optimizer."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from scaleup.common.distributed import World
from scaleup.common.errors import UserError
from scaleup.config.schema import Arm, Train

OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}


def _deepspeed() -> ModuleType:
    """DeepSpeed without messages, and without its compiled extension for collectives on CPUs (gloo is used)."""
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


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
        self.arm = cast(nn.Module, module.arm)
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
            "zero_optimization": {"stage": train.zero_stage} | (OFFLOAD if train.offload else {}),
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # torch's own fused update works on the host too
            "steps_per_print": sys.maxsize,
            "timers": {"throughput": {"enabled": False}},  # it would wait for the device twice a step
        }
        self.groups = [list(group["params"]) for group in param_groups]
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
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.clip and self.engine.is_gradient_accumulation_boundary() and self._may_clip(norm):
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        self.engine.step()
        if self.engine.micro_steps % self.engine.gradient_accumulation_steps() == 0:
            self.used.clear()
        zero_norm = self.engine.get_global_grad_norm()  # ZeRO keeps gradients to itself
        return norm if zero_norm is None else float(zero_norm)

    def _may_clip(self, norm: Tensor) -> bool:
        """Whether to multiply by the clipping factor. A GPU always does, by 1 where the norm is small: if the host
        asked, it would wait."""
        return norm.device.type != "cpu" or bool(norm > self.clip)

    def holders(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter, and the tensor that the optimizer updates for it.

        This is the parameter itself; with ZeRO, this rank's part of the concatenated parameters of its group.
        """
        flat = getattr(self.engine.optimizer, "single_partition_of_fp32_groups", None)
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


MOMENTS = ("exp_avg", "exp_avg_sq")


class Piece(NamedTuple):
    """This rank's part of a parameter: elements ``here`` of the flat parameter are elements ``there`` of ``holder``,
    the tensor that the optimizer updates."""

    holder: Tensor
    here: slice
    there: slice


def gather(engine: Engine, world: World) -> dict[str, Tensor]:
    """The trained parameters and the optimizer's state, on the first rank, on the CPU. All ranks must call.

    The names are ``arm/NAME``, ``exp_avg/NAME``, ``exp_avg_sq/NAME`` (of the parameter's shape) and ``step/NAME``."""
    tensors = {f"arm/{name}": tensor for name, tensor in weights(engine.arm).items()}
    for name, parameter, piece, state in _pieces(engine):
        for key in MOMENTS if state else ():
            tensors[f"{key}/{name}"] = _whole(parameter, state[key], piece, world)
        if state:
            tensors[f"step/{name}"] = state["step"]
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return copies if world.rank == 0 else {}


@torch.no_grad()
def restore(engine: Engine, tensors: dict[str, Tensor]) -> None:
    """Restore what :func:`gather` returned, with any number of ranks and any ZeRO stage.

    Raises:
        UserError: the arm has other tensors than these.
    """
    own = weights(engine.arm)
    names = {name.removeprefix("arm/") for name in tensors if name.startswith("arm/")}
    if names != own.keys():
        raise UserError(f"the checkpoint is of another model: {', '.join(sorted(names ^ own.keys())[:6])}")
    for name, tensor in own.items():
        tensor.copy_(tensors[f"arm/{name}"])
    engine.refresh_holders()
    for name, _, piece, state in _pieces(engine):
        if f"step/{name}" not in tensors:
            continue
        for key in MOMENTS:
            moment = state.setdefault(key, torch.zeros_like(piece.holder))
            moment.view(-1)[piece.there] = tensors[f"{key}/{name}"].flatten()[piece.here].to(moment)
        state["step"] = tensors[f"step/{name}"].to(piece.holder)


def weights(arm: nn.Module) -> dict[str, Tensor]:
    """The tensors that an arm does not share with the trunk."""
    frozen = {name for name, parameter in arm.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in arm.state_dict().items() if name not in frozen}


def _pieces(engine: Engine) -> Iterator[tuple[str, nn.Parameter, Piece, dict[str, Any]]]:
    """Each trained parameter: its name, this rank's part of it, and the optimizer's state of the holder."""
    names = {parameter: name for name, parameter in engine.arm.named_parameters()}
    for parameter, holder in engine.holders():
        piece = Piece(holder, slice(None), slice(None))
        if holder is not parameter:
            part: Any = parameter._hp_mapping  # type: ignore[attr-defined]  # None: other ranks have all of it
            here, there = (part.lp_fragment_address, part.hp_fragment_address) if part else (None, None)
            piece = Piece(holder, _slice(here), _slice(there))
        yield names[parameter], parameter, piece, engine.optimizer.state[holder]


def _slice(address: Any) -> slice:
    return slice(address.start, address.start + address.numel) if address else slice(0, 0)


def _whole(parameter: nn.Parameter, part: Tensor, piece: Piece, world: World) -> Tensor:
    """Combine the parts of all ranks, bit for bit: they are summed as integers, because 0.0 + -0.0 is 0.0.

    Parts that are on the host travel by the device: NCCL takes no others."""
    if piece.holder is parameter:
        return part
    whole = torch.zeros(parameter.numel(), dtype=torch.float32, device=world.device)
    whole[piece.here] = part[piece.there]
    world.sum(whole.view(torch.int32))
    return whole.view(parameter.shape)
