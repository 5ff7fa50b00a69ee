"""One compiler over the embedded model's tokenizer for all tests: its worker takes seconds to
start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from workbench.guided import GrammarCompiler
from workbench.models import DecoderLM, load_model
from workbench.models.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer(repository: Path) -> Tokenizer:
    """The embedded model's."""
    return Tokenizer.from_folder(repository / "adapters/tinypy/base")


@pytest.fixture(scope="session")
def compiler(tokenizer: Tokenizer) -> Iterator[GrammarCompiler]:
    """Tests must not close it. Its limit is generous: the machine may be busy."""
    compiler = GrammarCompiler(tokenizer, 4096, max_seconds=60)
    compiler.warm_up()
    yield compiler
    compiler.close()


@pytest.fixture(scope="session")
def model() -> DecoderLM:
    """The embedded model. Tests must not change it."""
    return load_model("tinypy", device="cpu", dtype="float32")
