"""`batch_invariant=True`: tokens and log-probabilities have the same bits in any company."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from drive import MakeEngine, drawn, greedy
from interpreter import kernel_device
from tiny import random_prompts

from workbench.build import check
from workbench.config import EngineConfig
from workbench.engine import Engine
from workbench.errors import ConfigError
from workbench.ops import get_backend
from workbench.run import Runner
from workbench.sampling_params import SamplingParams

Result = list[tuple[list[int], list[float]]]


def results(engine: Engine, prompts: list[list[int]], params: list[SamplingParams]) -> Result:
    """Return each request's tokens and their log-probabilities."""
    outputs = [output.outputs[0] for output in engine.generate(prompts, params)]
    return [(o.token_ids, [entry.logprob for entry in o.logprobs or ()]) for o in outputs]


def one_by_one(make: Any, prompts: list[list[int]], params: list[SamplingParams]) -> Result:
    """Return the same of each request in an engine of its own."""
    pairs = zip(prompts, params, strict=True)
    return [results(make(), [prompt], [own])[0] for prompt, own in pairs]


@pytest.fixture(params=["reference", "native", "triton"])
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Backends that have the mode, and the device of each."""
    device: Any = kernel_device()
    on_gpu = not isinstance(device, str)
    if request.param == "triton":
        if not on_gpu:
            pytest.skip("in the interpreter this would take an hour: lifted by a GPU")
        return {"backend": "triton", "device": "cuda"}
    return {"backend": request.param, "device": "cpu"}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_alone_equals_any_mix_bitwise(
    make_engine: MakeEngine, where: dict[str, Any], family: str
) -> None:
    prompts = random_prompts(7, seed=11)
    params = [greedy(12, logprobs=0) if i % 2 else drawn(i, 12, logprobs=0) for i in range(7)]

    def make(**settings: Any) -> Engine:
        return make_engine(family, batch_invariant=True, **where, **settings)

    expected = one_by_one(make, prompts, params)
    assert all(len(values) == 12 for _, values in expected)
    mixes: list[dict[str, Any]] = [
        {},  # all together
        {"max_batch_tokens": 9, "max_sequences": 3},  # chunks beside decodes
        {"max_batch_tokens": 16, "max_sequences": 7, "num_blocks": 12, "prefix_reuse": False},
    ]
    for settings in mixes:
        assert results(make(**settings), prompts, params) == expected, settings


def test_what_is_preempted_or_found_in_the_cache_keeps_its_bits(
    make_engine: MakeEngine, where: dict[str, Any]
) -> None:
    prompts = random_prompts(5, seed=3, longest=30)
    params = [greedy(16, logprobs=0)] * 5

    def make(**settings: Any) -> Engine:
        return make_engine(batch_invariant=True, **where, **settings)

    expected = one_by_one(make, prompts, params)
    tight = make(num_blocks=8, block_size=8)
    for prompt, own in zip(prompts, params, strict=True):
        tight.add(prompt, own)
    records = tight.run()
    assert any(record.plan.preempted for record in records), "nobody was preempted"
    engine = make()
    first, again = results(engine, prompts, params), results(engine, prompts, params)
    assert first == again == expected


def tile_product(a: Any, b: Any, dtype: Any = None) -> Any:
    """Return a b, each element summed in order: a tensor core's bits do not depend on the place."""
    return np.einsum("mk,kn->mn", a, b)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_the_kernels_in_the_interpreter(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """On a few tokens: alone, in chunks, and beside another request."""
    device: Any = kernel_device()
    if not isinstance(device, str):
        pytest.skip("the kernels run natively here: test_alone_equals_any_mix_bitwise holds them")
    # numpy's BLAS gives the rows of a tile other bits in other places, as no GPU does.
    monkeypatch.setattr(np, "matmul", tile_product)
    prompts, params = [[5, 9, 2, 40, 3, 8, 8, 8, 1], [7, 1]], [greedy(2, logprobs=0)] * 2

    def make(**settings: Any) -> Engine:
        return make_engine(family, backend="triton", batch_invariant=True, **settings)

    expected = one_by_one(make, prompts, params)
    assert results(make(max_batch_tokens=4, max_sequences=2), prompts, params) == expected


def test_the_reference_without_the_mode_would_fail_this(make_engine: MakeEngine) -> None:
    """Whole batches and single rows differ in their last bits: what the mode is for."""
    x = torch.randn(7, 512, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(300, 512, generator=torch.Generator().manual_seed(1))
    plain, fixed = get_backend("reference"), get_backend("reference", batch_invariant=True)
    assert not torch.equal(plain.linear(x, weight)[:1], plain.linear(x[:1], weight))
    assert torch.equal(fixed.linear(x, weight)[:1], fixed.linear(x[:1], weight))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("outputs", "inputs"), [(4096, 4096), (28672, 4096), (1000, 1100)])
def test_a_row_of_a_product_has_its_bits_beside_any_others(
    dtype: torch.dtype, outputs: int, inputs: int
) -> None:
    """Tiles for few rows and for many sum alike."""
    backend = get_backend("triton", "cuda", batch_invariant=True)
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn((600, inputs), generator=generator, device="cuda").to(dtype)
    weight = torch.randn((outputs, inputs), generator=generator, device="cuda").to(dtype)
    whole = backend.linear(x, weight)
    for count in (1, 2, 17, 64, 65, 128, 300):
        assert torch.equal(backend.linear(x[:count], weight), whole[:count]), count
        assert torch.equal(backend.linear(x[-count:], weight), whole[-count:]), count


def test_where_it_cannot_be_had(make_engine: MakeEngine) -> None:
    engine = make_engine(backend="native")
    with pytest.raises(ConfigError, match=r"batch_invariant=True: the sdpa backend's results"):
        get_backend("sdpa", batch_invariant=True)
    with pytest.raises(ConfigError, match=r"batch_invariant=True: the sdpa backend's results"):
        make_engine(backend="sdpa", batch_invariant=True)
    with pytest.raises(ConfigError, match="of this sdpa backend depend on the batch"):
        Runner(engine.model, engine.cache, get_backend("sdpa"), batch_invariant=True)
    with pytest.raises(ConfigError, match="batch_invariant='yes': is not a bool"):
        check(EngineConfig(batch_invariant="yes"))  # type: ignore[arg-type]
    on = {"backend": "triton", "device": "cuda" if torch.cuda.is_available() else "cpu"}
    with pytest.raises(
        ConfigError, match=r"block_size=24: prefill_attention takes blocks of a mul"
    ):
        make_engine("mistral", batch_invariant=True, block_size=24, **on)
    make_engine("llama", batch_invariant=True, block_size=24, **on)


def test_a_swapped_backend_keeps_the_mode(make_engine: MakeEngine) -> None:
    engine = make_engine(backend="native", batch_invariant=True)
    engine.swap(backend="reference")
    assert engine.runner.backend.batch_invariant
    with pytest.raises(ConfigError, match="batch_invariant"):
        engine.swap(backend="sdpa")
