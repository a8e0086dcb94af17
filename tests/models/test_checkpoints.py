"""Roles on disk: PEFT and transformers read them, the bytes do not depend on the place, and misfits are refused."""

import json

import pytest
import torch
from peft import PeftModel
from tiny import build_tiny_model
from transformers import AutoModelForCausalLM

from accord.errors import ModelError
from accord.models import LoraSettings, load_base
from accord.models.checkpoints import pack_optimizer, unpack_optimizer
from accord.models.trunk import build_probe
from accord.types import Prompt

LORA = LoraSettings(rank=3, alpha=6)


def fill(base, role, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base.load_state(role, {n: 0.2 * torch.randn(v.shape, generator=generator) for n, v in base.state(role).items()})


def read_all(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_peft_loads_what_we_save_and_we_load_what_peft_saves(tiny_folder, tiny_base, tmp_path, architecture):
    base = tiny_base(architecture, split=1)
    base.add_policy("policy", lora=LORA, seed=0)
    fill(base, "policy")
    base.save_role("policy", tmp_path / "ours")
    ids, mask = build_probe(base.vocabulary, base.device)
    with torch.no_grad():
        expected = base.compute_logits("policy", ids[:1], mask[:1], 23)
        plain = AutoModelForCausalLM.from_pretrained(tiny_folder(architecture))
        theirs = PeftModel.from_pretrained(plain, str(tmp_path / "ours"))
        assert torch.allclose(theirs(input_ids=ids[:1]).logits[:, :-1], expected, atol=1e-4)
        theirs.save_pretrained(tmp_path / "theirs")
        base.load_policy("again", tmp_path / "theirs")
        assert torch.equal(base.compute_logits("again", ids[:1], mask[:1], 23), expected)


def test_a_scorer_comes_back_and_its_bytes_know_no_place(tiny_folder, tmp_path):
    written = []
    for place in ("here", "there/and/elsewhere"):
        folder = build_tiny_model(tmp_path / place / "model", layers=3)
        base = load_base(str(folder), dtype="float32", device="cpu")
        base.add_scorer("reward", lora=LORA, seed=4)
        fill(base, "reward")
        base.save_role("reward", tmp_path / place / "role")
        written.append(read_all(tmp_path / place / "role"))
    assert written[0] == written[1]
    assert sorted(written[0]) == ["adapter_config.json", "adapter_model.safetensors", "head.safetensors", "role.json"]
    assert str(tmp_path) not in written[0]["adapter_config.json"].decode()
    base.load_scorer("again", tmp_path / "here" / "role")
    ids, mask = build_probe(base.vocabulary, base.device)
    assert torch.equal(base.compute_scores("again", ids, mask), base.compute_scores("reward", ids, mask))
    assert all(p.requires_grad for p in base.parameters("again").values())


def test_a_full_policy_is_a_transformers_folder(tiny_base, tmp_path):
    base = tiny_base("qwen2")
    base.add_policy("policy", lora=None, seed=0)
    fill(base, "policy")
    base.save_role("policy", tmp_path / "a")
    base.save_role("policy", tmp_path / "b")
    assert read_all(tmp_path / "a") == read_all(tmp_path / "b")
    assert str(base.name) not in (tmp_path / "a" / "config.json").read_text()
    ids, mask = build_probe(base.vocabulary, base.device)
    base.load_policy("again", tmp_path / "a")
    with torch.no_grad():
        expected = base.compute_logits("policy", ids, mask, 5)
        assert torch.equal(base.compute_logits("again", ids, mask, 5), expected)
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
        assert torch.allclose(plain(input_ids=ids[:1]).logits[:, -6:-1], expected[:1], atol=1e-4)
        fresh = load_base(str(tmp_path / "a"), dtype="float32", device="cpu")  # tokenizer and all
        ours, real = fresh.compute_logits(None, ids, mask, 5), mask[:, -5:]
        torch.testing.assert_close(ours[real], expected[real], atol=1e-4, rtol=1e-4)
    assert fresh.tokens.encode_prompt(Prompt.from_user("Hi")) == base.tokens.encode_prompt(Prompt.from_user("Hi"))


def test_a_role_for_another_base_split_or_kind_is_refused_and_leaves_no_trace(tiny_base, tmp_path):
    base = tiny_base(split=2)
    base.add_policy("policy", lora=LORA, seed=0)
    base.add_scorer("reward", lora=LORA, seed=0)
    for role in base.roles():
        base.save_role(role, tmp_path / role)
    other = tiny_base("qwen3", split=2)
    with pytest.raises(ModelError, match="another base"):
        other.load_policy("policy", tmp_path / "policy")
    whole = tiny_base(split=0)
    with pytest.raises(ModelError, match="layers_to_transform"):
        whole.load_policy("policy", tmp_path / "policy")
    with pytest.raises(ModelError, match=r"head\.safetensors"):
        base.load_scorer("new", tmp_path / "policy")
    with pytest.raises(ModelError, match="no policy here"):
        base.load_policy("new", tmp_path)
    (tmp_path / "policy" / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="cannot read weights"):
        base.load_policy("new", tmp_path / "policy")
    for text, reason in (
        (json.dumps({"peft_type": "LORA", "target_modules": ["q_proj"]}), "target_modules"),
        ("{", "no"),
    ):
        (tmp_path / "reward" / "adapter_config.json").write_text(text)
        with pytest.raises(ModelError, match=reason):
            base.load_scorer("new", tmp_path / "reward")
    assert base.roles() == ["policy", "reward"]
    assert other.roles() == whole.roles() == []


def test_training_goes_on_from_packed_state_bit_for_bit(tiny_base):
    def train(base, optimizer, steps):
        ids, mask = build_probe(base.vocabulary, base.device)
        for _ in steps:
            (base.compute_values("critic", ids, mask, 5) - 1).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    def build():
        base = tiny_base()
        base.add_scorer("critic", lora=LORA, seed=0)
        return base, torch.optim.AdamW(base.parameters("critic").values(), lr=1e-2)

    base, optimizer = build()
    train(base, optimizer, range(2))
    weights, packed = base.state("critic"), pack_optimizer(optimizer)
    train(base, optimizer, range(2))
    assert all(isinstance(value, torch.Tensor) for value in packed.values())
    again, restored = build()
    again.load_state("critic", weights)
    unpack_optimizer(restored, packed)
    train(again, restored, range(2))
    for name, value in base.state("critic").items():
        assert torch.equal(value, again.state("critic")[name]), name
    with pytest.raises(ModelError, match="fits no parameter"):
        unpack_optimizer(restored, {"999.exp_avg": torch.zeros(3)})


def test_a_policy_on_every_layer_comes_back_on_every_layer(tiny_base, tmp_path):
    base = tiny_base(split=2)
    base.add_policy("policy", lora=LORA, seed=0, every_layer=True)
    fill(base, "policy")
    base.save_role("policy", tmp_path)
    assert json.loads((tmp_path / "role.json").read_text())["split"] == 0
    base.load_policy("again", tmp_path)
    assert not base.describe("again").on_trunk
    ids, mask = build_probe(base.vocabulary, base.device)
    with torch.no_grad():
        expected = base.compute_logits("policy", ids, mask, 5)
        assert torch.equal(base.compute_logits("again", ids, mask, 5), expected)
    with pytest.raises(ModelError, match="layers_to_transform"):
        base.load_scorer("reward", tmp_path)
