"""Optimisers, one global clip of the gradient, and their place in a checkpoint.

Implements AdamW for the trainable parameters of a role, with moments in float32 or, by bitsandbytes, of a byte; and the
packing of roles and optimisers into plain tensors. Leaves out 8-bit moments of weights that are parted over processes;
schedules, which are pure functions of the step (`functional.compute_linear`), so that a checkpoint needs only the
counters; and any generator's state: every draw is seeded by what it is for (`types.derive_seed`).
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from accord.distributed import sum_gradients
from accord.errors import ConfigError, TrainingError
from accord.models import Base
from accord.models.checkpoints import pack_optimizer, unpack_optimizer
from accord.models.sharding import gather_tensor, gather_tensors

BETAS = (0.9, 0.95)
"""AdamW's decay rates. 0.95 forgets the squared gradient in 20 steps: a run here has hundreds of steps, not 100,000."""


def build_optimizer(base: Base, role: str, learning_rate: float, *, head_only: bool = False) -> torch.optim.Optimizer:
    """`build_adamw` over the trainable parameters of `role` or of its head, of the kind that `base.optimizer` names."""
    learned = base.head(role).parameters() if head_only else base.parameters(role).values()
    return build_adamw(learned, learning_rate, base.optimizer)


def build_adamw(parameters: Iterable[nn.Parameter], learning_rate: float, kind: str = "adamw") -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019) with the settings that every fit here shares, over `parameters`.

    kind: a name of `OPTIMIZERS`. No weight decay.
    """
    build = OPTIMIZERS[kind]
    return build(list(parameters), lr=learning_rate, betas=BETAS, eps=1e-8, weight_decay=0.0)


def _build_adamw_8bit(parameters: list[nn.Parameter], **settings: Any) -> torch.optim.Optimizer:
    """AdamW with moments quantised in blocks of 256 (Dettmers et al. 2022); of less than 4,096 numbers, in float32."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses 4-bit kernels, which nothing here uses
    import bitsandbytes

    built: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(parameters, **settings)
    return built


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adamw_8bit": _build_adamw_8bit,
}


def check_optimizer(kind: str, device: torch.device) -> None:
    """Take one step on `device`, so that an optimiser that is not there or cannot work there stops nothing later.

    Raises:
        ConfigError: its package is not installed, or has no such step for the device.
    """
    weight = nn.Parameter(torch.ones(4096, device=device))
    weight.grad = torch.ones_like(weight)
    try:
        build_adamw([weight], 1e-3, kind).step()
    except ImportError as error:
        raise ConfigError(
            f"{kind} needs bitsandbytes, which cannot be imported: {error}",
            where="model.optimizer",
            mend='pip install "accord[8bit]", or model.optimizer = "adamw"',
        ) from error
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"bitsandbytes has no 8-bit AdamW for {device.type} here: {reason}",
            where="model.optimizer",
            mend='use a device that it supports, or model.optimizer = "adamw"',
        ) from error


def take_step(
    optimizers: Sequence[torch.optim.Optimizer], learning_rates: Sequence[float], *, max_grad_norm: float
) -> float:
    """Sum gradients over processes, clip those of all `optimizers` to one global norm, step, and clear them.

    Returns the norm before clipping, ||g||_2 over everything. A norm that is not finite leaves the weights untouched;
    the caller sees it in the result and stops (`checks.check_finite`).
    """
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    norm = clip_gradients(parameters, max_grad_norm)
    for optimizer, learning_rate in zip(optimizers, learning_rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        if math.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Sum gradients over processes, and scale them to at most `max_norm`; returns ||g||_2 before.

    Weights that are parted over processes (`models/sharding`) have the sum of their gradients already.
    """
    whole = [p for p in parameters if not isinstance(p, DTensor)]
    parted = [p for p in parameters if isinstance(p, DTensor)]
    sum_gradients(whole)
    groups = [group for group in (whole, parted) if group]
    norms = [nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]) for group in groups]
    norms = [gather_tensor(part) for part in norms]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    for group in groups:
        nn.utils.clip_grads_with_norm_(group, max_norm, norm)
    return float(norm)


def pack_roles(base: Base, optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Weights and optimiser state of each role as tensors, named `ROLE/weights/...` and `ROLE/optimizer/...`.

    What is parted over processes is whole in the first one, and left out in the others, which write nothing.
    """
    tensors: dict[str, Tensor] = {}
    for role, optimizer in optimizers.items():
        tensors |= {f"{role}/weights/{name}": value for name, value in gather_tensors(base.state(role)).items()}
        packed = gather_tensors(pack_optimizer(optimizer))
        tensors |= {f"{role}/optimizer/{name}": value for name, value in packed.items()}
    return tensors


def unpack_roles(base: Base, optimizers: Mapping[str, torch.optim.Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `pack_roles`: put weights and optimiser state back in their place."""
    for role, optimizer in optimizers.items():
        base.load_state(role, select(tensors, f"{role}/weights/"))
        unpack_optimizer(optimizer, select(tensors, f"{role}/optimizer/"))


def select(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with `prefix`, under the rest of their name."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def compute_reference_hash(base: Base, reference: str | None) -> str:
    """What names the reference in a checkpoint: the hash of the frozen base, and of the reference's adapter if any."""
    digest = hashlib.sha256(base.fingerprint.encode())
    for name, value in sorted(base.state(reference).items()) if reference is not None else ():
        digest.update(name.encode())
        digest.update(gather_tensor(value.detach()).to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_reference(found: str, expected: str, *, where: str) -> None:
    """A checkpoint may only go on over the very reference it was made on.

    Raises:
        TrainingError: the hashes differ.
    """
    if found != expected:
        raise TrainingError(
            "the checkpoint was made on another model: the reference's hash differs",
            where=where,
            mend="use the model that the run started with, or delete the unfinished artifact to start afresh",
        )


def merge_means(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The metrics of an update from those of its steps: the largest of `*_max`, the mean of all others."""
    columns: dict[str, list[float]] = {}
    for part in parts:
        for name, value in part.items():
            columns.setdefault(name, []).append(value)
    return {
        name: max(values) if name.endswith("_max") else sum(values) / len(values) for name, values in columns.items()
    }
