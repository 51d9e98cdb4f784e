from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from forks import Forks
from toymix import write_mix


@pytest.fixture(scope="session")
def toy_mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mix.json of 22 samples in four tars."""
    return write_mix(tmp_path_factory.mktemp("mix"))


@pytest.fixture(scope="session")
def trainers() -> Iterator[Forks]:
    """Forks processes that have torch, transformers and DeepSpeed loaded."""
    with Forks(
        code="import deepspeed, trainer.loop, trainer.train", DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1"
    ) as forks:
        yield forks
