from __future__ import annotations

from pathlib import Path

import pytest
from toymix import write_mix


@pytest.fixture(scope="session")
def toy_mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mix.json of 22 samples in four tars."""
    return write_mix(tmp_path_factory.mktemp("mix"))
