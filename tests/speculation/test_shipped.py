"""What ships for the embedded model drafts as well as its card says, and changes no token."""

from __future__ import annotations

import json

import pytest

from workbench.data.prompts import load_prompts, repository_root
from workbench.models import DecoderLM, load_model
from workbench.speculation import get_proposer
from workbench.train.heads_served import served_acceptance

SHIPPED = repository_root() / "adapters" / "tinypy"


@pytest.fixture(scope="module")
def model() -> DecoderLM:
    """The embedded model in float32, where no two tokens are nearly as likely."""
    return load_model("tinypy", device="cpu", dtype="float32")


@pytest.mark.parametrize("name", ["medusa", "eagle3", "draft"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_it_drafts_as_its_card_says(name: str, temperature: float, model) -> None:
    """On 6 prompts of the suite, 48 tokens each; the card's figure is of more and longer ones."""
    prompts = load_prompts()[4::22]
    on = {"temperature": temperature, "max_tokens": 48}
    plain = served_acceptance(model, None, prompts, **on)
    found = served_acceptance(model, get_proposer(name, model, "tinypy"), prompts, **on)
    assert found["token_ids"] == plain["token_ids"]
    metrics = json.loads((SHIPPED / name / "metrics.json").read_text(encoding="utf-8"))
    [stated] = [
        row["length"]
        for key, row in metrics["acceptance"].items()
        if key.endswith(f"temperature {temperature:g}")
    ]
    assert found["length"] == pytest.approx(stated, rel=0.15)


@pytest.mark.parametrize("name", ["medusa", "eagle3", "draft"])
def test_its_files_are_small(name: str) -> None:
    assert sum(file.stat().st_size for file in (SHIPPED / name).iterdir()) < 16e6
