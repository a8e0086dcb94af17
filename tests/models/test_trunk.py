"""The trunk: split equals unsplit bit for bit on every architecture, or the model is not split and says why."""

import pytest
import torch
from tiny import ARCHITECTURES, build_tiny_config, build_tiny_tokenizer
from torch import nn
from transformers import LlamaForCausalLM

from accord.errors import ModelError
from accord.models import Base, ChatTokenizer, LoraSettings
from accord.models.packing import unpacked
from accord.models.trunk import build_probe, choose_split, find_layers


def build_base(model, split=-1):
    return Base(model, ChatTokenizer(build_tiny_tokenizer()), name="tiny", split=split)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("split", [1, 2])
def test_split_equals_unsplit_bit_for_bit(tiny_base, architecture, split):
    base = tiny_base(architecture, split=split)
    assert base.split == split
    assert "bit for bit" in base.split_reason
    base.add_policy("policy", lora=LoraSettings(4, 8), seed=0)
    generator = torch.Generator().manual_seed(3)
    base.load_state("policy", {n: torch.randn(v.shape, generator=generator) for n, v in base.state("policy").items()})
    ids, mask = build_probe(base.vocabulary, base.device)
    trunk = base.compute_trunk(ids, mask)
    assert trunk.shape == (4, 24, 32)
    assert not trunk.requires_grad
    whole = base.compute_logits("policy", ids, mask, 10)
    resumed = base.compute_logits("policy", ids, mask, 10, trunk)
    assert torch.equal(whole, resumed)
    assert torch.equal(base.compute_logits("policy", ids, mask, 10), whole)  # the layers below are back


def test_the_layers_below_do_not_run_when_their_output_is_given(tiny_base):
    base = tiny_base(split=2)
    ids, mask = build_probe(base.vocabulary, base.device)
    trunk, runs = base.compute_trunk(ids, mask), []
    for layer in base.model.model.layers:
        layer.mlp.register_forward_hook(lambda module, *_: runs.append(module))
    with unpacked(base.stack):  # hooks on the parts of packed layers are not called
        base.compute_logits(None, ids, mask, 3, trunk)
    assert runs == [base.model.model.layers[2].mlp]
    runs.clear()
    with unpacked(base.stack):
        base.compute_trunk(ids, mask)
    assert runs == [base.model.model.layers[i].mlp for i in range(2)]


def test_an_exception_inside_a_resumed_pass_leaves_the_model_whole(tiny_base):
    base = tiny_base(split=2)
    ids, mask = build_probe(base.vocabulary, base.device)
    trunk, whole = base.compute_trunk(ids, mask), base.compute_logits(None, ids, mask, 3)

    def fail(*_):
        raise KeyboardInterrupt

    handle = base.model.model.norm.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        base.compute_logits(None, ids, mask, 3, trunk)
    handle.remove()
    assert torch.equal(base.compute_logits(None, ids, mask, 3), whole)


@pytest.mark.parametrize(
    "split, layers, expected", [(-1, 30, 20), (-1, 3, 2), (-1, 2, 1), (-1, 1, 0), (0, 4, 0), (3, 4, 3)]
)
def test_the_default_split_is_two_thirds_of_the_layers(split, layers, expected):
    assert choose_split(split, layers) == expected


@pytest.mark.parametrize("split", [-2, 4, 9])
def test_a_split_that_leaves_no_layer_is_refused(split):
    with pytest.raises(ModelError, match="does not fit"):
        choose_split(split, 4)


class SkippingLlama(LlamaForCausalLM):
    """Adds the embedding to the final states, past every layer: what runs above the split is not all that counts."""

    def forward(self, *args, **kwargs):
        self.carried = 0.0

        def remember(_, __, output):
            self.carried = output.mean(dim=-1, keepdim=True)

        def add(_, __, output):
            return output + self.carried

        handles = [
            self.model.layers[0].mlp.register_forward_hook(remember),
            self.model.norm.register_forward_hook(add),
        ]
        try:
            return super().forward(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()


def test_a_model_that_does_not_allow_the_split_runs_whole_and_says_why():
    torch.manual_seed(0)
    config = build_tiny_config("llama", layers=3)
    config.initializer_range = 0.2
    base = build_base(SkippingLlama(config))
    assert base.split == 0
    assert "differ by" in base.split_reason
    ids, mask = build_probe(base.vocabulary, base.device)
    assert base.compute_trunk(ids, mask) is None
    base.add_policy("policy", lora=LoraSettings(4, 8), seed=0)
    assert any(".layers.0." in name for name in base.parameters("policy"))


def test_a_model_without_decoder_layers_is_refused():
    model = LlamaForCausalLM(build_tiny_config("llama"))
    model.model.layers = nn.Sequential(*model.model.layers)
    with pytest.raises(ModelError, match="no list of 2 decoder layers"):
        find_layers(model)
