"""Ensembles: each member is the scorer it would be alone, what is common is one tensor, the weight average is exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from accord.errors import ModelError
from accord.models import Base, LoraSettings, load_base
from accord.models.ensemble import Ensemble, add_ensemble, add_weight_average, load_ensemble, name_members
from tests.tiny import build_tiny_model

torch.set_num_threads(1)
LORA = LoraSettings(4, 8)


def build(folder: Path, architecture: str = "llama", split: int = 1, members: int = 3) -> tuple[Base, Ensemble]:
    """Four layers, of which the members own the last two where the base is split."""
    model = build_tiny_model(folder, architecture, layers=4)
    base = load_base(str(model), dtype="float32", split=split)
    ensemble = add_ensemble(base, "proxy", members, own_layers=2, lora=LORA, seed=3)
    stir(ensemble)
    return base, ensemble


@torch.no_grad()
def stir(ensemble: Ensemble, seed: int = 0) -> None:
    """Random weights in place of the zeros that every adapter and head starts with."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in ensemble.parameters().values():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def draw(base: Base, rows: int = 5, columns: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, base.vocabulary, (rows, columns), generator=generator)
    mask = torch.ones(rows, columns, dtype=torch.bool)
    mask[1, :4] = mask[2, -3:] = False
    return ids, mask


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gemma2"])
@pytest.mark.parametrize("split", [0, 1, 3])
def test_each_member_scores_as_it_would_alone(tmp_path: Path, architecture: str, split: int) -> None:
    base, ensemble = build(tmp_path, architecture, split)
    ids, mask = draw(base)
    trunk = base.compute_trunk(ids, mask)
    with torch.no_grad():
        alone = torch.stack([base.compute_scores(role, ids, mask) for role in ensemble.roles])
        for states in (None, trunk):
            torch.testing.assert_close(ensemble.compute_scores(ids, mask, states), alone, atol=1e-4, rtol=1e-3)
    assert alone.std(dim=0).min() > 1e-3, "the members differ"


def test_only_own_layers_differ(tmp_path: Path) -> None:
    base, ensemble = build(tmp_path)
    assert ensemble.fork == 2
    first, second = (base.parameters(role) for role in ensemble.roles[:2])
    common = {name for name in first if first[name] is second[name]}
    assert common == {name for name in first if ".layers.1." in name}
    alone = base.parameters("proxy")
    own = [name for name in alone if name not in common]
    assert len(ensemble.parameters()) == len(common) + 3 * len(own)


def test_gradients_are_those_of_the_members_one_by_one(tmp_path: Path) -> None:
    base, ensemble = build(tmp_path)
    ids, mask = draw(base)
    parameters = ensemble.parameters()
    together = torch.autograd.grad(ensemble.compute_scores(ids, mask).square().sum(), list(parameters.values()))
    alone = sum(base.compute_scores(role, ids, mask).square().sum() for role in ensemble.roles)
    assert isinstance(alone, Tensor)
    apart = torch.autograd.grad(alone, list(parameters.values()))
    for name, one, two in zip(parameters, together, apart, strict=True):
        torch.testing.assert_close(one, two, atol=1e-3, rtol=1e-3, msg=name)
        assert one.abs().max() > 0, name


def test_an_ensemble_of_one_is_the_scorer(tmp_path: Path) -> None:
    base, ensemble = build(tmp_path, members=1)
    ids, mask = draw(base)
    with torch.no_grad():
        assert torch.equal(ensemble.compute_scores(ids, mask)[0], base.compute_scores("proxy", ids, mask))
    assert list(ensemble.parameters()) == [f"proxy/{name}" for name in base.parameters("proxy")]


def test_common_layers_are_read_once(tmp_path: Path) -> None:
    """Of four layers the trunk is the first, the second is common, and the last two are the three members' own."""
    base, ensemble = build(tmp_path)
    ids, mask = draw(base)
    calls = [0, 0, 0, 0]

    def count(number: int) -> None:
        calls[number] += 1

    hooks = [
        layer.mlp.register_forward_hook(lambda *_, number=number: count(number))
        for number, layer in enumerate(base.model.model.layers)
    ]
    with torch.no_grad():
        ensemble.compute_scores(ids, mask)
    for hook in hooks:
        hook.remove()
    assert calls in ([1, 1, 3, 3], [0, 0, 0, 0])  # nothing is called where layers run packed


def test_members_survive_their_files(tmp_path: Path) -> None:
    base, ensemble = build(tmp_path / "model")
    ids, mask = draw(base)
    ensemble.save(tmp_path / "saved")
    again = load_base(base.name, dtype="float32", split=1)
    loaded = load_ensemble(again, "other", tmp_path / "saved")
    assert loaded.roles == name_members("other", 3) == ("other", "other-2", "other-3")
    with torch.no_grad():
        assert torch.equal(loaded.compute_scores(ids, mask), ensemble.compute_scores(ids, mask))
        loaded.load_state({f"other{name.removeprefix('proxy')}": value * 0 for name, value in ensemble.state().items()})
        assert not loaded.compute_scores(ids, mask).any()
    with pytest.raises(ModelError, match="do not fit"):
        loaded.load_state({})


def test_the_weight_average_is_the_mean_of_the_weights(tmp_path: Path) -> None:
    """Against the merged matrices themselves: W + s mean_k B_k A_k in every adapted layer, and the mean head."""
    base, ensemble = build(tmp_path)
    ids, mask = draw(base)
    add_weight_average(ensemble, "average")
    with torch.no_grad():
        found = base.compute_scores("average", ids, mask)
        states = [base.state(role) for role in ensemble.roles]
        plain = load_base(base.name, dtype="float32", split=0)
        plain.add_scorer("none", lora=LORA, seed=0)
        weights = dict(plain.model.named_parameters())
        for name in states[0]:
            if name.endswith(".lora_A.weight"):
                stem = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                other = name.replace("lora_A", "lora_B")
                update = sum(state[other] @ state[name] for state in states) * (2.0 / 3)
                weights[f"{stem}.base_layer.weight"].add_(update)
        head = plain.head("none")
        head.weight.copy_(torch.stack([s["head.weight"] for s in states]).mean(0))
        head.bias.copy_(torch.stack([s["head.bias"] for s in states]).mean(0))
        wanted = plain.compute_scores("none", ids, mask)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)
