"""Tiny models, ours and transformers', in float32; both may be changed by a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import write_checkpoint

from workbench.models import DecoderLM, load_model

Pair = Callable[..., tuple[DecoderLM, Any]]


@pytest.fixture(scope="session")
def _folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    written: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in written:
            written[family] = write_checkpoint(tmp_path_factory.mktemp(family), family)
        return written[family]

    return folder


@pytest.fixture
def pair(_folders: Callable[[str], Path]) -> Pair:
    """Return a family's model as we load it and as transformers does, both freshly."""

    def load(family: str = "llama", attention: str = "eager") -> tuple[DecoderLM, Any]:
        folder = _folders(family)
        auto = transformers.AutoModelForCausalLM
        settings = {"dtype": torch.float32, "attn_implementation": attention}
        peer = auto.from_pretrained(folder, **settings).eval()
        return load_model(folder, device="cpu", dtype="float32"), peer

    return load
