"""What is known of a model before its weights are loaded: its size, and whether it is still the same files.

Implements counting parameters on a meta device and a cheap identity of a model's folder. Leaves out the weights' own
hash, which `Base.fingerprint` takes once they are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from accord.errors import ModelError
from accord.models.loading import find_source
from accord.types import compute_content_id


@dataclass(frozen=True)
class ModelSize:
    """parameters: of the whole model. layers: decoder layers. vocabulary: rows of the logits."""

    parameters: int
    layers: int
    vocabulary: int


def measure_size(name: str) -> ModelSize:
    """Size of the model `name`, from its configuration alone: no weights are read.

    Raises:
        ModelError: the model or its configuration cannot be found.
    """
    source = find_source(name)
    try:
        config = AutoConfig.from_pretrained(source)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"cannot read its configuration: {reason}",
            where=f"model {name!r}",
            mend="check the name and the connection, or give a folder: model.name = PATH",
        ) from error
    text = config.get_text_config()
    return ModelSize(model.num_parameters(), text.num_hidden_layers, text.vocab_size)


def compute_source_id(name: str) -> str:
    """A hash of the model's small files and of the names and sizes of the large ones; of the name, for a hub model.

    Enough to notice that a folder holds another model; that the weights themselves are the same is checked by their
    fingerprint when they are loaded.

    Raises:
        ModelError: the model cannot be found.
    """
    folder = Path(find_source(name))
    if not folder.is_dir():
        return compute_content_id(name)
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    return compute_content_id(
        [
            [path.name, path.stat().st_size, path.read_text(encoding="utf-8") if path.name == "config.json" else ""]
            for path in files
        ]
    )
