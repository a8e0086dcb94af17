"""A merged policy, loaded as a base of its own, says what the policy said on its adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import build_tiny_model

from accord.models import LoraSettings, load_base


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("full", [False, True])
def test_the_merged_model_speaks_as_the_policy(architecture: str, full: bool, tmp_path: Path) -> None:
    build_tiny_model(tmp_path / "base", architecture)
    base = load_base(str(tmp_path / "base"), dtype="float32", split=0)
    base.add_policy("policy", lora=None if full else LoraSettings(rank=4, alpha=16), seed=0)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in base.parameters("policy").values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=source))
    base.save_merged("policy", tmp_path / "merged")
    merged = load_base(str(tmp_path / "merged"), dtype="float32", split=0)
    ids = torch.randint(3, 200, (2, 9), generator=source)
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        before = base.compute_logits(None, ids, mask, 5)
        wanted = base.compute_logits("policy", ids, mask, 5)
        found = merged.compute_logits(None, ids, mask, 5)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert (wanted - before).abs().max() > 1e-2, "the policy did not move"
    assert merged.fingerprint != base.fingerprint
    assert merged.tokens.eos_id == base.tokens.eos_id and merged.tokens.pad_id == base.tokens.pad_id
