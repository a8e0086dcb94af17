"""Base against plain transformers: logits, values, scores, adapters and full copies, whatever the padding."""

import pytest
import torch
from tiny import ARCHITECTURES
from transformers import AutoModelForCausalLM

from accord.errors import ModelError
from accord.models import LoraSettings
from accord.models.ensemble import add_ensemble
from accord.models.trunk import build_probe

LORA = LoraSettings(rank=3, alpha=6)


def fill(base, role, seed=0, scale=0.2):
    """Random numbers in every weight of a role, so that nothing is zero by accident."""
    generator = torch.Generator().manual_seed(seed)
    state = {n: scale * torch.randn(v.shape, generator=generator) for n, v in base.state(role).items()}
    base.load_state(role, state)
    return state


def run_alone(model, ids):
    """Logits (T, V) and last hidden states (T, H) of one unpadded row by plain transformers."""
    output = model(input_ids=ids[None], output_hidden_states=True, use_cache=False)
    return output.logits[0], output.hidden_states[-1][0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_values_and_scores_are_those_of_plain_transformers(tiny_folder, tiny_base, architecture):
    base = tiny_base(architecture)
    base.add_scorer("critic", lora=LORA, seed=0)
    head = {"head.weight": torch.randn(32), "head.bias": torch.tensor(0.7)}
    base.load_state("critic", base.state("critic") | head)
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder(architecture))
    ids, mask = build_probe(base.vocabulary, base.device)
    last = 9
    with torch.no_grad():
        trunk = base.compute_trunk(ids, mask)
        logits = base.compute_logits(None, ids, mask, last, trunk)
        values = base.compute_values("critic", ids, mask, last, trunk)
        scores = base.compute_scores("critic", ids, mask, trunk)
        for row in range(len(ids)):
            alone, hidden = run_alone(plain, ids[row][mask[row]])
            expected = hidden @ head["head.weight"] + head["head.bias"]
            places = mask[row].long().cumsum(0) - 1  # column -> place in the unpadded row
            for t in range(last):
                column = ids.shape[1] - last + t
                if mask[row, column]:
                    assert torch.allclose(logits[row, t], alone[places[column] - 1], atol=1e-4)
                    assert torch.allclose(values[row, t], expected[places[column] - 1], atol=1e-4)
            assert torch.allclose(scores[row], expected[-1], atol=1e-4)
    assert values.dtype == scores.dtype == torch.float32


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("split", [0, 2])
def test_an_adapter_is_the_low_rank_update_of_each_linear_layer_above_the_split(
    tiny_folder, tiny_base, architecture, split
):
    base = tiny_base(architecture, split=split)
    base.add_policy("policy", lora=LORA, seed=1)
    state = fill(base, "policy")
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder(architecture))
    touched = set()
    with torch.no_grad():
        for name in state:
            if ".lora_A." in name:
                path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                update = LORA.alpha / LORA.rank * state[name.replace("lora_A", "lora_B")] @ state[name]
                weight = plain.get_submodule(path).weight
                weight += update.T if architecture == "gpt2" else update
                touched.add(path)
    stack = "transformer.h" if architecture == "gpt2" else "model.layers"
    linear = 4 if architecture == "gpt2" else 7
    assert len(touched) == linear * (3 - split)
    assert all(any(path.startswith(f"{stack}.{i}.") for i in range(split, 3)) for path in touched)
    ids, mask = build_probe(base.vocabulary, base.device)
    with torch.no_grad():
        ours = base.compute_logits("policy", ids[:1], mask[:1], 23)
        assert torch.allclose(ours[0], run_alone(plain, ids[0])[0][:-1], atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_new_policy_is_the_reference_and_the_reference_never_moves(tiny_base, dtype):
    base = tiny_base(dtype=dtype)
    ids, mask = build_probe(base.vocabulary, base.device)
    before, fingerprint = base.compute_logits(None, ids, mask, 5), base.fingerprint
    base.add_policy("policy", lora=LORA, seed=0)
    assert torch.equal(base.compute_logits("policy", ids, mask, 5), before)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in base.parameters("policy").values())
    fill(base, "policy")
    assert not torch.equal(base.compute_logits("policy", ids, mask, 5), before)
    assert torch.equal(base.compute_logits(None, ids, mask, 5), before)
    del base.fingerprint  # hash the weights again
    assert base.fingerprint == fingerprint


def test_activation_nests_and_survives_exceptions(tiny_base):
    base = tiny_base()
    ids, mask = build_probe(base.vocabulary, base.device)

    def now(model):
        return model(input_ids=ids, attention_mask=mask.long()).logits

    for seed, role in enumerate(("train", "keys")):  # names that nn.ModuleDict itself uses
        base.add_policy(role, lora=LORA, seed=0)
        fill(base, role, seed)
    with torch.no_grad():
        alone = {}
        for role in (None, "train", "keys"):
            with base.activate(role) as model:
                alone[role] = now(model)
        assert not torch.equal(alone["train"], alone["keys"])

        def fail_inside():
            with base.activate("keys") as inner:
                with base.activate(None) as reference:
                    assert torch.equal(now(reference), alone[None])
                assert torch.equal(now(inner), alone["keys"])
                raise RuntimeError

        with base.activate("train") as model:
            with pytest.raises(RuntimeError):
                fail_inside()
            assert torch.equal(now(model), alone["train"])
            with pytest.raises(ModelError, match="active"):
                base.remove("train")
        assert torch.equal(now(model), alone[None])


def test_gradients_reach_only_the_role_that_ran_even_after_another_was_activated(tiny_base):
    base = tiny_base()
    ids, mask = build_probe(base.vocabulary, base.device)
    base.add_policy("policy", lora=LORA, seed=0)
    base.add_scorer("critic", lora=LORA, seed=0)
    fill(base, "critic")
    loss = base.compute_logits("policy", ids, mask, 5).square().mean()
    with torch.no_grad():
        base.compute_values("critic", ids, mask, 5)
    loss.backward()
    assert all(p.grad is not None for n, p in base.parameters("policy").items() if "lora_B" in n)
    assert all(p.grad is None for p in base.parameters("critic").values())
    assert all(p.grad is None for n, p in base.model.named_parameters() if ".lora_" not in n)


def test_a_full_copy_learns_every_weight_and_leaves_the_reference(tiny_base):
    base = tiny_base(split=2)
    ids, mask = build_probe(base.vocabulary, base.device)
    reference = base.compute_logits(None, ids, mask, 5)
    base.add_policy("policy", lora=None, seed=0)
    trunk = base.compute_trunk(ids, mask)
    logits = base.compute_logits("policy", ids, mask, 5, trunk)
    real = mask[:, -5:]
    torch.testing.assert_close(logits[real], reference[real], atol=2e-5, rtol=1e-4)
    logits.square().mean().backward()
    parameters = base.parameters("policy")
    assert all(p.grad is not None for p in parameters.values())
    assert sum(p.numel() for p in parameters.values()) == sum(p.numel() for p in base.model.parameters())
    with torch.no_grad():
        parameters["model.layers.0.mlp.up_proj.weight"].add_(1.0)
    assert not torch.equal(base.compute_logits("policy", ids, mask, 5, trunk), reference)  # the trunk is not its own
    assert torch.equal(base.compute_logits(None, ids, mask, 5, trunk), reference)


def test_a_critic_starts_from_the_reward_model(tiny_base):
    base = tiny_base()
    ids, mask = build_probe(base.vocabulary, base.device)
    base.add_scorer("reward", lora=LORA, seed=0)
    assert torch.equal(base.compute_scores("reward", ids, mask), torch.zeros(4))
    fill(base, "reward")
    base.add_scorer("critic", lora=LORA, seed=5, init_from="reward")
    scores = base.compute_scores("reward", ids, mask)
    assert torch.equal(base.compute_scores("critic", ids, mask), scores)
    fill(base, "critic", seed=9)
    assert torch.equal(base.compute_scores("reward", ids, mask), scores)
    with pytest.raises(ModelError, match="LoRA settings"):
        base.add_scorer("other", lora=LoraSettings(rank=2, alpha=6), seed=0, init_from="reward")


def test_normalising_a_head_gives_scores_of_mean_zero_and_variance_one(tiny_base):
    base = tiny_base()
    base.add_scorer("reward", lora=LORA, seed=0)
    fill(base, "reward")
    ids, mask = build_probe(base.vocabulary, base.device)
    with torch.no_grad():
        scores = base.compute_scores("reward", ids, mask)
        base.normalize_head("reward", float(scores.mean()), float(scores.std(correction=0)))
        scores = base.compute_scores("reward", ids, mask)
    assert scores.mean().abs() < 1e-5
    assert (scores.var(correction=0) - 1).abs() < 1e-4
    with pytest.raises(ModelError, match="normalised"):
        base.normalize_head("reward", 0.0, 0.0)


def test_adapters_depend_on_their_seed_and_not_on_the_global_generator(tiny_base):
    states = []
    for seed, noise in ((1, 0), (1, 99), (2, 0)):
        base = tiny_base()
        torch.manual_seed(noise)
        drawn = torch.random.get_rng_state()
        base.add_policy("policy", lora=LORA, seed=seed)
        base.add_policy("full", lora=None, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), drawn)
        states.append(base.state("policy"))
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert any(not torch.equal(states[0][n], states[2][n]) for n in states[0])
    a = next(v for n, v in states[0].items() if "lora_A" in n)
    assert a.abs().max() <= 1 / 32**0.5  # kaiming uniform with a = sqrt(5) over 32 inputs
    assert a.abs().max() > 0.8 / 32**0.5


def test_roles_are_named_listed_and_removed(tiny_base):
    base = tiny_base()
    base.add_policy("policy", lora=LORA, seed=0)
    base.add_scorer("critic", lora=LORA, seed=0)
    assert base.roles() == ["policy", "critic"]
    for call in (
        lambda: base.add_policy("policy", lora=LORA, seed=0),
        lambda: base.add_policy("a.b", lora=LORA, seed=0),
        lambda: base.add_policy("", lora=LORA, seed=0),
        lambda: base.parameters("nobody"),
        lambda: base.compute_scores("policy", *build_probe(259, base.device)),
        lambda: base.compute_logits(None, *build_probe(259, base.device), 24),
        lambda: base.compute_logits(None, *build_probe(259, base.device), 4, torch.zeros(4, 24, 31)),
        lambda: base.load_state("policy", base.state("critic")),
    ):
        with pytest.raises(ModelError):
            call()
    base.remove("policy")
    assert base.roles() == ["critic"]
    assert not any("role_policy" in name for name, _ in base.model.named_parameters())
    base.add_policy("policy", lora=LORA, seed=0)


@pytest.mark.parametrize("role", [None, "full"])
def test_the_head_is_given_one_block_of_memory(tiny_base, role):
    base = tiny_base()
    base.add_policy("full", lora=None, seed=0)
    ids, mask = build_probe(base.vocabulary, base.device)
    with base.activate(role) as model, torch.no_grad():
        layouts = []
        model.lm_head.register_forward_hook(lambda _, inputs, __: layouts.append(inputs[0].is_contiguous()))
        model(input_ids=ids, attention_mask=mask.long(), logits_to_keep=1)  # as the sampler reads its prompts
        base.compute_logits(role, ids, mask, 5)
    assert layouts == [True, True]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_a_policy_on_every_layer_is_that_of_an_unsplit_base_while_scorers_use_the_trunk(tiny_base, architecture):
    base, unsplit = tiny_base(architecture, split=2), tiny_base(architecture, split=0)
    for one in (base, unsplit):
        one.add_scorer("critic", lora=LORA, seed=0)
        one.add_policy("policy", lora=LORA, seed=1, every_layer=True)
    expected = fill(unsplit, "policy")
    assert base.parameters("policy").keys() == expected.keys()
    base.load_state("policy", expected)
    ids, mask = build_probe(base.vocabulary, base.device)
    trunk = base.compute_trunk(ids, mask)
    noise = torch.randn(trunk.shape, generator=torch.Generator().manual_seed(0))
    real = mask[:, -5:]
    with torch.no_grad():
        logprobs = base.compute_logprobs("policy", ids, mask, 5, 1.0, trunk=noise).logprobs
        assert torch.allclose(logprobs, unsplit.compute_logprobs("policy", ids, mask, 5, 1.0).logprobs, atol=1e-5)
        reference = base.compute_logprobs(None, ids, mask, 5, 1.0, trunk=trunk).logprobs
        assert torch.allclose(reference, unsplit.compute_logprobs(None, ids, mask, 5, 1.0).logprobs, atol=1e-5)
        assert not torch.allclose(reference[real], logprobs[real], atol=1e-2)
        fill(base, "critic")
        values = base.compute_values("critic", ids, mask, 5)
        assert torch.allclose(base.compute_values("critic", ids, mask, 5, trunk=trunk), values, atol=1e-5)
        assert not torch.allclose(base.compute_values("critic", ids, mask, 5, trunk=noise), values, atol=1e-2)


def test_members_of_an_ensemble_share_layers_beside_a_policy_on_every_layer(tiny_base):
    base = tiny_base(split=1)
    base.add_policy("policy", lora=LORA, seed=1, every_layer=True)
    ensemble = add_ensemble(base, "reward", 2, own_layers=1, lora=LORA, seed=0)
    ids, mask = build_probe(base.vocabulary, base.device)
    with torch.no_grad():
        scores = ensemble.compute_scores(ids, mask)
        alone = [base.compute_scores(role, ids, mask) for role in ensemble.roles]
    assert torch.allclose(scores, torch.stack(alone), atol=1e-5)
