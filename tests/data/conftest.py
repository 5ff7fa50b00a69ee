"""One small tokenizer for the tests of this folder."""

from pathlib import Path

import pytest

from workbench.data.sources import stdlib_files
from workbench.data.tokenizer_training import save_tokenizer, train_tokenizer

NAMES = ("argparse", "ast", "dataclasses", "textwrap", "heapq", "json.decoder", "json.encoder")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    """A tokenizer of 1,024 entries trained on a few modules of the standard library."""
    texts = [f.path.read_text(encoding="utf-8") for f in stdlib_files() if f.module in NAMES]
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(texts, vocab_size=1024), folder, context=2048)
    return folder
