"""Tiny models, one folder for each architecture, made once a session."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import build_tiny_model

from accord.models import Base, load_base


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root, made = tmp_path_factory.mktemp("tiny"), {}

    def build(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = build_tiny_model(root / architecture, architecture, layers=3)
        return made[architecture]

    return build


@pytest.fixture
def tiny_base(tiny_folder: Callable[[str], Path]) -> Callable[..., Base]:
    def load(architecture: str = "llama", *, split: int = -1, dtype: str = "float32") -> Base:
        return load_base(str(tiny_folder(architecture)), dtype=dtype, split=split, device="cpu")

    return load
