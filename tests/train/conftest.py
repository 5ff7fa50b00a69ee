"""A corpus of a few hundred kilobytes in the corpus builder's own layout."""

import json
from pathlib import Path

import numpy as np
import pytest

from workbench.data.token_arrays import write_tokens
from workbench.data.tokenizer_training import load_tokenizer, save_tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """`train.bin`, `heldout.jsonl`, `tokenizer/` and `manifest.json` over made-up functions."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [
        f"def function_{n}(value):\n    total = value + {n}\n    return total * {n % 7}\n"
        for n in range(400)
    ]
    save_tokenizer(train_tokenizer(texts, vocab_size=320), folder / "tokenizer", context=64)
    tokenizer = load_tokenizer(folder / "tokenizer")
    ids = [i for text in texts[40:] for i in [*tokenizer.encode(text).ids, 2]]
    write_tokens(np.array(ids, np.uint16), folder / "train.bin")
    rows = [
        {"distribution": "stdlib", "module": "held.one", "text": "\n\n".join(texts[:20])},
        {"distribution": "thing", "module": "held.two", "text": "\n\n".join(texts[20:40])},
    ]
    (folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = {
        "distributions": [
            {
                **{f"{part}_{unit}": 5 for part in ("train", "held_out") for unit in _UNITS},
                "name": "thing",
                "version": "1.0",
                "licence": "MIT",
            }
        ],
        "kinds": {"function": {"documents": 360, "tokens": len(ids)}},
        "rejected_files": {"tabs": 3},
        "dropped": {},
        "left_out_distributions": [{"name": "other", "version": "2", "declared": "MPL-2.0"}],
        "python": "3.12.0",
        "totals": {
            "train_files": 5,
            "train_bytes": 5,
            "train_tokens": len(ids),
            "train_array_tokens": len(ids),
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


_UNITS = ("files", "bytes", "tokens")
