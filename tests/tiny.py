"""Tiny random models with a byte-level chat tokenizer, made on the spot: what tests stand on instead of downloads.

Implements Llama, Qwen 2, Qwen 3, GPT-2, Gemma 2 (soft-capped logits, sliding windows) and Gemma 3 (two kinds of rotary
positions) with two or more layers and 32 hidden units. Leaves out anything trained: their texts are noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SPECIAL_TOKENS = ("<|pad|>", "<|im_start|>", "<|im_end|>")
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
VOCABULARY = len(SPECIAL_TOKENS) + 256
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ARCHITECTURES: dict[str, tuple[type, type]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "gpt2": (GPT2Config, GPT2LMHeadModel),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
}


def build_tiny_tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """One token for each byte, `<|pad|>` = 0, `<|im_start|>` = 1, `<|im_end|>` = 2 = EOS; every text encodes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<|pad|>",
        unk_token="<|pad|>",  # never used; where there is none, Qwen 2's tokenizer class adds one of its own
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    )
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    return tokenizer


def build_tiny_config(architecture: str, *, vocabulary: int = VOCABULARY, layers: int = 2) -> Any:
    """The configuration of a tiny model: 32 hidden units, 4 heads, 2 key-value heads where there is a choice."""
    config_class, _ = ARCHITECTURES[architecture]
    ids = {"pad_token_id": PAD_ID, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
    if architecture == "gpt2":
        return config_class(vocab_size=vocabulary, n_embd=32, n_layer=layers, n_head=4, n_positions=512, **ids)
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    if architecture.startswith("gemma"):
        common |= {"sliding_window": 8, "query_pre_attn_scalar": 8}
        common["layer_types"] = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(layers)]
    if architecture == "gemma2":
        common |= {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.0}
    return config_class(**common, **ids)


def build_tiny_model(
    folder: str | Path,
    architecture: str = "llama",
    *,
    vocabulary: int = VOCABULARY,
    layers: int = 2,
    seed: int = 0,
    chat: bool = True,
) -> Path:
    """Save a random model and its tokenizer to `folder`, as `load_base(str(folder), dtype="float32")` reads them.

    Weights are drawn with a standard deviation wide enough (0.2) that outputs depend visibly on inputs and positions.
    `vocabulary` is the number of embedding rows (at least 259, the tokenizer's). The global generator stays as it was.
    """
    if vocabulary < VOCABULARY:
        raise ValueError(f"the tokenizer has {VOCABULARY} tokens")
    config = build_tiny_config(architecture, vocabulary=vocabulary, layers=layers)
    config.initializer_range = 0.2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ARCHITECTURES[architecture][1](config)
    model.save_pretrained(folder)
    build_tiny_tokenizer(chat=chat).save_pretrained(folder)
    return Path(folder)
