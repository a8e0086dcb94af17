"""Layers that are run again in the backward pass give the gradients of layers that kept everything, and keep less."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from tiny import build_tiny_model
from torch import Tensor, nn

from accord.models import Base, LoraSettings, load_base
from accord.models.ensemble import add_ensemble
from accord.models.packing import PackedForward
from accord.models.recompute import RecomputedForward, recompute_layers
from accord.training.peak import PeakCounter

LORA = LoraSettings(4, 8)
IDS = torch.arange(2 * 24).view(2, 24) % 200 + 3
MASK = torch.ones(2, 24, dtype=torch.bool)
MASK[1, :5] = False


def load(folder: Path, architecture: str, split: int = 1) -> Base:
    return load_base(str(build_tiny_model(folder, architecture, layers=4)), dtype="float32", split=split)


@torch.no_grad()
def stir(parameters: Mapping[str, nn.Parameter]) -> None:
    for number, weight in enumerate(parameters.values()):
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)), alpha=0.1)


@pytest.fixture(params=["llama", "qwen3", "gpt2", "gemma2"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Base:
    """A policy on every layer and a critic above the split. Only Llama's layers run packed."""
    found = load(tmp_path, request.param)
    found.add_policy("policy", lora=LORA, seed=1, every_layer=True)
    found.add_scorer("critic", lora=LORA, seed=2)
    for role in found.roles():
        stir(found.parameters(role))
    return found


def compute_loss(base: Base) -> Tensor:
    """Two roles in one loss: when the backward pass comes, neither acts."""
    trunk = base.compute_trunk(IDS, MASK)
    logprobs, entropy = base.compute_logprobs("policy", IDS, MASK, 8, 1.0, trunk=trunk)
    values = base.compute_values("critic", IDS, MASK, 8, trunk=trunk)
    return logprobs.mean() + entropy.mean() + values.square().mean()


def find_gradients(base: Base, compute: Callable[[], Tensor]) -> dict[str, Tensor]:
    torch.autograd.backward(compute())
    found = {}
    for role in base.roles():
        for name, weight in base.parameters(role).items():
            if weight.grad is not None:
                found[f"{role}/{name}"] = weight.grad
            weight.grad = None
    return found


def check_same_bits(base: Base, compute: Callable[[], Tensor]) -> None:
    plain = find_gradients(base, compute)
    recompute_layers(base)
    recompute_layers(base)
    again = find_gradients(base, compute)
    assert plain.keys() == again.keys()
    assert len(plain) > 20
    for name, gradient in plain.items():
        assert torch.equal(again[name], gradient), name
        assert gradient.abs().max() > 0, name


def test_gradients_of_two_roles_in_one_loss_are_the_same_bit_for_bit(base: Base) -> None:
    check_same_bits(base, lambda: compute_loss(base))
    wrapped = [layer.forward for layer in base.stack]
    assert all(isinstance(forward, RecomputedForward) for forward in wrapped)
    assert all(isinstance(forward.original, PackedForward) for forward in wrapped) == bool(base.packed)
    assert all(weight.requires_grad for role in base.roles() for weight in base.parameters(role).values())


def test_a_backward_pass_leaves_the_role_that_acts_alone(base: Base) -> None:
    with torch.no_grad():
        expected = base.compute_values("critic", IDS, MASK, 8)
    recompute_layers(base)
    loss = base.compute_logprobs("policy", IDS, MASK, 8, 1.0).logprobs.sum()
    with base.activate("critic") as model, torch.no_grad():
        torch.autograd.backward(loss)
        hidden = model.base_model(**base.build_inputs(IDS, MASK)).last_hidden_state
        values = base.head("critic")(hidden[:, -9:-1])
    assert torch.equal(values, expected)


def test_much_less_is_held_at_the_peak(base: Base) -> None:
    def measure() -> int:
        with PeakCounter() as counter:
            torch.autograd.backward(compute_loss(base))
        return counter.peak_bytes

    plain = measure()
    recompute_layers(base)
    assert measure() < 0.75 * plain


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("split", [0, 1])
def test_an_ensemble_with_layers_in_common(tmp_path: Path, architecture: str, split: int) -> None:
    base = load(tmp_path, architecture, split)
    ensemble = add_ensemble(base, "proxy", 3, own_layers=2, lora=LORA, seed=3)
    stir(ensemble.parameters())
    trunk = base.compute_trunk(IDS, MASK)
    check_same_bits(base, lambda: ensemble.compute_scores(IDS, MASK, trunk).square().sum())


def test_a_full_copy_that_came_later(tmp_path: Path) -> None:
    base = load(tmp_path, "llama", split=0)
    recompute_layers(base)
    base.add_policy("policy", lora=None, seed=1)
    check_same_bits(base, lambda: base.compute_logprobs("policy", IDS, MASK, 8, 1.0).logprobs.mean())
