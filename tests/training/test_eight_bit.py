"""Moments of a byte: near torch's AdamW, exact through a checkpoint, and refused in words where it cannot be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tiny import build_tiny_model
from torch import Tensor, nn

from accord.errors import ConfigError
from accord.models import load_base
from accord.models.checkpoints import pack_optimizer, unpack_optimizer
from accord.training.optimization import (
    OPTIMIZERS,
    build_adamw,
    build_optimizer,
    check_optimizer,
    pack_roles,
    unpack_roles,
)
from accord.workspace import FolderCheckpoint


def draw_gradients(step: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(step)
    return [torch.randn(64, 128, generator=source), torch.randn(5, generator=source)]


def build_weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.linspace(-1, 1, 64 * 128).view(64, 128)), nn.Parameter(torch.ones(5))]


def walk(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        for weight, gradient in zip(weights, draw_gradients(step)):
            weight.grad = gradient
        optimizer.step()


def test_it_goes_where_adamw_goes_with_moments_of_a_byte() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'accord[8bit]'")
    plain, small = build_weights(), build_weights()
    for weights, kind in ((plain, "adamw"), (small, "adamw_8bit")):
        optimizer = build_adamw(weights, 1e-2, kind)
        walk(optimizer, weights, range(20))
    moved = plain[0] - build_weights()[0]
    assert (small[0] - plain[0]).norm().item() < 0.05 * moved.norm().item()
    torch.testing.assert_close(small[1], plain[1])  # too small to be worth it: float32
    held = optimizer.state[small[0]]
    assert [held[name].dtype for name in ("state1", "state2")] == [torch.uint8, torch.uint8]
    assert sum(v.nbytes for v in held.values() if torch.is_tensor(v)) < 2.5 * small[0].numel()


def test_a_resumed_fit_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'accord[8bit]'")
    whole, parted = build_weights(), build_weights()
    walk(build_adamw(whole, 1e-2, "adamw_8bit"), whole, range(6))
    first = build_adamw(parted, 1e-2, "adamw_8bit")
    walk(first, parted, range(3))
    FolderCheckpoint(tmp_path).save(pack_optimizer(first), {})
    second = build_adamw(parted, 1e-2, "adamw_8bit")
    tensors, _ = FolderCheckpoint(tmp_path).load() or ({}, {})
    unpack_optimizer(second, tensors)
    walk(second, parted, range(3, 6))
    for one, other in zip(whole, parted):
        assert torch.equal(one, other)


def test_a_role_learns_and_is_packed_by_what_its_base_names(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'accord[8bit]'")
    base = load_base(str(build_tiny_model(tmp_path)), dtype="float32", split=0, device="cpu")
    base.optimizer = "adamw_8bit"
    base.add_policy("policy", lora=None, seed=0)
    optimizer = build_optimizer(base, "policy", 1e-2)
    base.compute_logits("policy", torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.bool), 2).sum().backward()
    optimizer.step()
    packed = pack_roles(base, {"policy": optimizer})
    assert packed["policy/optimizer/0.state1"].dtype == torch.uint8  # the embedding's
    again = build_optimizer(base, "policy", 1e-2)
    unpack_roles(base, {"policy": again}, packed)
    for name, value in pack_roles(base, {"policy": again}).items():
        assert torch.equal(value, packed[name]), name


def test_without_the_package_it_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match="needs bitsandbytes"):
        check_optimizer("adamw_8bit", torch.device("cpu"))
    check_optimizer("adamw", torch.device("cpu"))


def test_a_device_without_such_a_step_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> torch.optim.Optimizer:
        raise RuntimeError("no kernel is registered\nat line 3")

    monkeypatch.setitem(OPTIMIZERS, "adamw_8bit", refuse)
    with pytest.raises(ConfigError, match=r"no 8-bit AdamW for cpu here: no kernel is registered \(mend"):
        check_optimizer("adamw_8bit", torch.device("cpu"))


def test_the_package_that_is_here_has_it_on_this_device() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'accord[8bit]'")
    check_optimizer("adamw_8bit", torch.device("cpu"))
