"""Settings of how weights are trained that do not go together."""

from __future__ import annotations

from pathlib import Path

import pytest

from accord.config import load_config
from accord.errors import ConfigError

PARTS = ("compute.shard=full", "model.adapter=full")


@pytest.mark.parametrize(
    "besides, words", [("model.optimizer=adamw_8bit", "parts float32 moments"), ("compute.memory_gb=4", "in parts")]
)
def test_weights_in_parts_refuse_what_cannot_work_with_them(tmp_path: Path, besides: str, words: str) -> None:
    (tmp_path / "accord.toml").write_text("")
    with pytest.raises(ConfigError, match=words):
        load_config(tmp_path, [*PARTS, besides])
    assert load_config(tmp_path, list(PARTS)).compute.shard == "full"
    assert load_config(tmp_path, [PARTS[0], besides]).model.adapter == "lora"
