"""Importing the trainer changes nothing: what has to be set for a training is set by who trains."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="needs the `train` extra")
pytest.importorskip("transformers", reason="needs the `train` extra")

# torch, transformers and DeepSpeed do a lot when they are imported; that is theirs, so it is done before.
CODE = """
import importlib, logging, os, pkgutil, sys, warnings
import torch, torch.distributed, torch.utils.data, transformers, tokenizers, safetensors
import transformers.utils.chat_template_utils
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
import trainer

def state():
    return {
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "log": (logging.root.level, list(logging.root.handlers)),
        "random numbers": torch.random.initial_seed(),
        "process group": torch.distributed.is_initialized(),
        "torchvision": "torchvision" in sys.modules,
        "deepspeed": "deepspeed" in sys.modules,
    }

before = state()
for module in pkgutil.iter_modules(trainer.__path__):
    importlib.import_module(f"trainer.{module.name}")
    changed = [name for name, value in state().items() if value != before[name]]
    assert not changed, (module.name, changed)
"""


def test_importing_the_trainer_changes_nothing_outside_of_it():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
