"""Several roles in one pass: what each would read alone, and as few passes as there are adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from accord.errors import ModelError
from accord.models import Base, LoraSettings
from accord.models.lanes import compute_hidden_of

LORA = LoraSettings(4, 8)
ROLES = (None, "one", "two", "policy")


@torch.no_grad()
def add_roles(base: Base) -> None:
    """Two scorers and a policy, with random weights in place of zeros."""
    base.add_scorer("one", lora=LORA, seed=1)
    base.add_scorer("two", lora=LORA, seed=2)
    base.add_policy("policy", lora=LoraSettings(2, 8), seed=3)
    generator = torch.Generator().manual_seed(0)
    for role in ("one", "two", "policy"):
        for parameter in base.parameters(role).values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def draw(base: Base) -> tuple[Tensor, Tensor]:
    ids = torch.randint(base.vocabulary, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[1, :4] = mask[2, -3:] = False
    return ids, mask


def count_layer_calls(base: Base) -> list[int]:
    """The rows of each call of the last layer from now on."""
    rows: list[int] = []
    forward = base.stack[-1].forward

    def counted(hidden: Tensor, *args: object, **kwargs: object) -> object:
        rows.append(len(hidden))
        return forward(hidden, *args, **kwargs)

    counted.original = forward  # type: ignore[attr-defined]
    base.stack[-1].forward = counted
    return rows


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gemma2"])
@pytest.mark.parametrize("split", [0, 1])
def test_each_role_reads_what_it_reads_alone(tiny_base: Callable[..., Base], architecture: str, split: int) -> None:
    base = tiny_base(architecture, split=split)
    add_roles(base)
    ids, mask = draw(base)
    inputs, trunk = base.build_inputs(ids, mask), base.compute_trunk(ids, mask)
    wanted = mask.clone()
    wanted[:, :6] = False
    with torch.no_grad():
        for states in (None, trunk):
            alone = [base.compute_hidden(role, inputs) for role in ROLES]
            for rows, options in ((mask, {}), (wanted, {"wanted": wanted})):
                together = compute_hidden_of(base, ROLES, inputs, states, **options)
                for one, other in zip(together, alone, strict=True):
                    torch.testing.assert_close(one[rows], other[rows], atol=2e-5, rtol=1e-4)
    apart = min(float((a - b)[mask].abs().max()) for i, a in enumerate(alone) for b in alone[:i])
    assert apart > 1e-2, "the roles differ"


def test_packed_layers_run_once_for_all(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base("llama", split=0)
    add_roles(base)
    ids, mask = draw(base)
    calls = count_layer_calls(base)
    with torch.no_grad():
        compute_hidden_of(base, ROLES, base.build_inputs(ids, mask))
    assert calls == [len(ROLES) * 3]


def test_who_learns_runs_alone(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base("llama", split=0)
    add_roles(base)
    ids, mask = draw(base)
    inputs = base.build_inputs(ids, mask)
    found = compute_hidden_of(base, ("one", "two"), inputs)
    for role, hidden in zip(("one", "two"), found, strict=True):
        weights = [p for n, p in base.parameters(role).items() if not n.startswith("head.")]
        apart = torch.autograd.grad(base.compute_hidden(role, inputs)[mask].square().sum(), weights)
        together = torch.autograd.grad(hidden[mask].square().sum(), weights)
        for a, b in zip(together, apart, strict=True):
            torch.testing.assert_close(a, b)


def test_a_full_copy_runs_beside_adapters(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base("llama", split=0)
    base.add_policy("full", lora=None, seed=0)
    base.add_scorer("one", lora=LORA, seed=1)
    with torch.no_grad():
        next(iter(base.parameters("full").values())).mul_(1.5)
        ids, mask = draw(base)
        inputs = base.build_inputs(ids, mask)
        for role, hidden in zip(("full", "one"), compute_hidden_of(base, ("full", "one"), inputs), strict=True):
            torch.testing.assert_close(hidden, base.compute_hidden(role, inputs))


def test_a_head_shares_its_scorers_pass(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base("llama", split=0)
    add_roles(base)
    base.add_head("critic", on="one")
    ids, mask = draw(base)
    calls = count_layer_calls(base)
    with torch.no_grad():
        one, critic = compute_hidden_of(base, ("one", "critic"), base.build_inputs(ids, mask))
    assert calls == [3]
    assert critic is one


def test_a_head_is_a_scorer_of_its_own_on_anothers_states(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base("llama", split=1)
    add_roles(base)
    ids, mask = draw(base)
    with torch.no_grad():
        before = base.compute_scores("one", ids, mask)
        base.add_head("critic", on="one")
        assert set(base.parameters("critic")) == {"head.weight", "head.bias"}
        torch.testing.assert_close(base.compute_scores("critic", ids, mask), before)
        base.head("critic").bias.add_(1.0)
        torch.testing.assert_close(base.compute_scores("critic", ids, mask), before + 1)
        torch.testing.assert_close(base.compute_scores("one", ids, mask), before)


def test_a_head_keeps_its_scorer_and_is_not_saved_without_it(tiny_base: Callable[..., Base], tmp_path: Path) -> None:
    base = tiny_base("llama", split=1)
    add_roles(base)
    base.add_head("critic", on="one")
    for attempt, word in (
        (lambda: base.remove("one"), "'critic' stands on role 'one'"),
        (lambda: base.save_role("critic", tmp_path / "critic"), "'critic' is a head on 'one'"),
        (lambda: base.add_head("third", on="critic"), "'critic' has no adapter of its own"),
        (lambda: base.add_head("third", on="policy"), "has no head"),
    ):
        with pytest.raises(ModelError, match=word):
            attempt()
    assert not (tmp_path / "critic").exists()
    base.remove("critic")
    base.remove("one")
    assert base.roles() == ["two", "policy"]
