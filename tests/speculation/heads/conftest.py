"""A tiny target by transformers, the same loaded here, and what it makes of a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import head_files as files
import pytest
import torch
import transformers
from torch import Tensor

from workbench.models import DecoderLM, load_model
from workbench.ops import get_backend


class Sentence(NamedTuple):
    """token_ids [T]; hidden_states: of every layer, as transformers lists them; final [T, H]."""

    token_ids: Tensor
    hidden_states: list[Tensor]
    final: Tensor


@pytest.fixture(scope="session")
def reference_model() -> Any:
    """A transformers Llama of `head_files.LAYERS` layers with large random weights."""
    config = transformers.LlamaConfig(
        **{**files.CONFIG, "num_hidden_layers": files.LAYERS},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.2 * noise)
    return model


@pytest.fixture(scope="session")
def target(reference_model: Any, tmp_path_factory: pytest.TempPathFactory) -> DecoderLM:
    """The same model, loaded here in float32."""
    folder: Path = tmp_path_factory.mktemp("target")
    reference_model.save_pretrained(folder)
    return load_model(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def sentence(reference_model: Any) -> Sentence:
    """Twelve tokens and what the transformers model makes of them."""
    ids = torch.randint(0, files.VOCAB, (12,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        out = reference_model.model(ids[None], output_hidden_states=True)
    return Sentence(ids, [h[0] for h in out.hidden_states], out.last_hidden_state[0])


@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> Any:
    """A backend that heads run on."""
    return get_backend(request.param, "cpu")
