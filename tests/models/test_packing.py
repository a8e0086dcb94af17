"""Packed layers against transformers' own layers with peft: values, gradients, caches, and when not to pack."""

import pytest
import torch
from transformers import DynamicCache

from accord.models import LoraSettings
from accord.models.decoding import PackedDecoder
from accord.models.packing import pack_model, unpacked
from accord.models.trunk import build_probe

LORA = LoraSettings(rank=3, alpha=6)
PACKED = ["llama", "qwen2"]  # without and with biases


def fill(base, role):
    generator = torch.Generator().manual_seed(1)
    base.load_state(role, {n: 0.2 * torch.randn(v.shape, generator=generator) for n, v in base.state(role).items()})


def run(base, split_states=None):
    """Logits of real tokens, and the gradient of a fixed random sum of them for each weight of the policy."""
    ids, mask = build_probe(base.vocabulary, base.device)
    real = mask[:, -9:]
    logits = base.compute_logits("policy", ids, mask, 9, split_states)[real]
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (logits * weights).sum().backward()
    gradients = {}
    for name, parameter in base.parameters("policy").items():
        gradients[name], parameter.grad = parameter.grad.clone(), None
    return logits.detach(), gradients


@pytest.mark.parametrize("architecture", PACKED)
@pytest.mark.parametrize("split", [0, 2])
def test_values_and_gradients_are_those_of_transformers_and_peft(tiny_base, architecture, split):
    base = tiny_base(architecture, split=split)
    assert len(base.packed) == base.layers
    base.add_policy("policy", lora=LORA, seed=0)
    fill(base, "policy")
    ours, our_gradients = run(base)
    with unpacked(base.stack):
        theirs, their_gradients = run(base)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    for name, gradient in their_gradients.items():
        assert gradient.abs().max() > 0, name
        assert (our_gradients[name] - gradient).norm() < 1e-3 * gradient.norm(), name


@pytest.mark.parametrize("architecture", PACKED)
@pytest.mark.parametrize("what", ["logprobs", "values", "scores"])
def test_a_last_layer_of_which_some_rows_are_read_gives_them_and_their_gradients(tiny_base, architecture, what):
    base = tiny_base(architecture, split=2)
    base.add_policy("policy", lora=LORA, seed=0)
    base.add_scorer("critic", lora=LORA, seed=1)
    for role in ("policy", "critic"):
        fill(base, role)
    ids, mask = build_probe(base.vocabulary, base.device)
    passes = {
        "logprobs": ("policy", lambda: base.compute_logprobs("policy", ids, mask, 9, 1.0).logprobs),
        "values": ("critic", lambda: base.compute_values("critic", ids, mask, 9) * mask[:, -9:]),
        "scores": ("critic", lambda: base.compute_scores("critic", ids, mask)),
    }
    role, forward = passes[what]

    def run():
        found = forward()
        (found * torch.linspace(-1, 1, found.numel()).view(found.shape)).sum().backward()
        gradients = {name: parameter.grad.clone() for name, parameter in base.parameters(role).items()}
        for parameter in base.parameters(role).values():
            parameter.grad = None
        return found.detach(), gradients

    ours, our_gradients = run()
    hidden = base.compute_hidden(role, base.build_inputs(ids, mask), wanted=torch.zeros_like(mask))
    with unpacked(base.stack):
        theirs, their_gradients = run()
        whole = base.compute_hidden(role, base.build_inputs(ids, mask))
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    for name, gradient in their_gradients.items():
        assert gradient.abs().max() > 0, name
        assert (our_gradients[name] - gradient).norm() < 1e-3 * gradient.norm(), name
    assert not hidden.any(), "rows that nobody reads are not computed"
    assert whole[mask].any()


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "gemma3", "qwen3"])
def test_other_layers_stay_as_they_are(tiny_base, architecture):
    base = tiny_base(architecture)
    assert base.packed == ()
    assert not any("forward" in layer.__dict__ for layer in base.stack)
    assert not base.decodes_packed


def test_a_layer_that_computes_something_else_is_not_packed(tiny_base):
    base = tiny_base()
    ids, _ = build_probe(base.vocabulary, base.device)
    with unpacked(base.stack):
        base.stack[1].mlp.act_fn = torch.nn.GELU()  # its configuration still says SiLU
        found = pack_model(base.stack, lambda: base.model(input_ids=ids[:1], use_cache=False).logits)
        assert found == () and "forward" not in base.stack[1].__dict__


def test_the_models_own_parameters_are_views_of_the_packed_weights(tiny_base):
    base = tiny_base()
    fingerprint = base.fingerprint
    q = base.model.model.layers[0].self_attn.q_proj.weight
    assert q.data_ptr() == base.packed[0].qkv.data_ptr()
    base.add_policy("policy", lora=LORA, seed=0)
    del base.fingerprint
    assert base.fingerprint == fingerprint


@pytest.mark.parametrize("architecture", PACKED)
def test_a_transformers_cache_works_with_packed_layers(tiny_base, architecture):
    base = tiny_base(architecture)
    ids, _ = build_probe(base.vocabulary, base.device)
    with torch.no_grad():
        whole = base.model(input_ids=ids, use_cache=False).logits
        cache = DynamicCache(config=base.model.config)
        parts = [
            base.model(input_ids=ids[:, a:b], past_key_values=cache).logits for a, b in ((0, 11), (11, 12), (12, 24))
        ]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", PACKED)
def test_slots_come_and_go_and_each_decodes_as_if_it_were_alone(tiny_base, architecture):
    base = tiny_base(architecture)
    base.add_policy("policy", lora=LORA, seed=0)
    fill(base, "policy")
    ids, _ = build_probe(base.vocabulary, base.device)
    first, second, third = ids[0, :9].tolist(), ids[1, :4].tolist(), ids[2, :6].tolist()

    def expect(tokens):
        with base.activate("policy") as model:
            return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]

    with torch.no_grad(), base.activate("policy"):
        decoder = PackedDecoder(base, 3, 16)
        logits = decoder.admit([first, second])
        torch.testing.assert_close(logits[0], expect(first), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(logits[1], expect(second), atol=2e-5, rtol=1e-4)
        decoder.step(torch.tensor([5, 6]))
        decoder.free(0)  # the second row moves into slot 0
        logits = decoder.admit([third, third])
        assert torch.equal(logits[0], logits[1])
        logits = decoder.step(torch.tensor([7, 8, 9]))
        for row, tokens in enumerate([[*second, 6, 7], [*third, 8], [*third, 9]]):
            torch.testing.assert_close(logits[row], expect(tokens), atol=2e-5, rtol=1e-4)
