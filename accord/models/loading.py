"""load_base: a causal LM by name, made ready for roles, or a clear reason why not.

Implements the embedded model, folders and Hugging Face names; safetensors only, no remote code. `HF_HUB_OFFLINE` is
respected by the library that downloads. Leaves out proving that the model is fit to be optimised (`doctor`).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from accord.errors import ModelError
from accord.models import attention
from accord.models.base import Base
from accord.models.embedded import EMBEDDED_NAME, find_embedded_model
from accord.models.tokenizer import ChatTokenizer

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def load_base(name: str, *, dtype: str = "bfloat16", split: int = -1, device: str = "auto") -> Base:
    """Load the causal LM `name`: `smollm2`, a folder, or a Hugging Face name.

    dtype: `bfloat16` or `float32`, of the frozen weights. split: see the setting `model.split`. device: `auto` is CUDA
    where there is one.

    Raises:
        ModelError: the model cannot be found or read, is no decoder-only LM, lacks weights, or has no EOS.
    """
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}", where="model.dtype", mend=f"use {' or '.join(DTYPES)}")
    source, place = find_source(name), choose_device(device)
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(source)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=DTYPES[dtype],
                attn_implementation=_choose_attention(dtype, place),
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"cannot load it: {reason}", where=f"model {name!r}", mend=_mend(source)) from error
    model: Any = loaded[0]
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise ModelError(
            f"{len(missing)} weights are missing from its files ({missing[0]}, ...) and would be random",
            where=f"model {name!r}",
            mend="use a complete checkpoint of a causal LM",
        )
    tokens = ChatTokenizer(
        tokenizer,
        eos_candidates=_eos_candidates(model),
        vocabulary=model.get_output_embeddings().weight.shape[0],
        where=f"model {name!r}",
    )
    model.to(place)
    if place.type == "cpu":
        _keep_freed_memory()
    return Base(model, tokens, name=name, split=split)


def find_source(name: str) -> str:
    """A folder or hub name that transformers can load.

    Raises:
        ModelError: `name` is a path and no such folder exists, or the embedded model is not installed.
    """
    if name == EMBEDDED_NAME:
        with _quiet():
            return str(find_embedded_model())
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError("no such folder", where=f"model {name!r}", mend="give a folder that holds config.json")
    return name


def _eos_candidates(model: PreTrainedModel) -> list[int]:
    """What the model's own configuration calls EOS, the generation configuration first."""
    found: list[int] = []
    for settings in (model.generation_config, model.config):
        eos: Any = getattr(settings, "eos_token_id", None)
        found += eos if isinstance(eos, list) else [] if eos is None else [eos]
    return found


def choose_device(device: str) -> torch.device:
    """The device that the setting `compute.device` names.

    Raises:
        ModelError: it is `cuda`, and there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("there is no CUDA device", where="compute.device", mend="use cpu or auto")
    return torch.device(device)


def _choose_attention(dtype: str, device: torch.device) -> str | None:
    """The model's default, except in bfloat16 on a CPU: grouped attention, faster there and steady."""
    return attention.register() if dtype == "bfloat16" and device.type == "cpu" else None


def _mend(source: str) -> str:
    if Path(source).is_dir():
        return "the folder needs config.json, a tokenizer and weights as safetensors"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE is set: give a folder, or a model that is in the cache already"
    return "check the name and the connection, or give a folder"


def _keep_freed_memory() -> None:
    """Tell glibc to keep what is freed for the next tensor; elsewhere nothing.

    By default it gives large blocks back and gets them anew from the system, page by page: 5 % of a training step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_MMAP_THRESHOLD, 2**30)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars from transformers while open: Accord draws its own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
