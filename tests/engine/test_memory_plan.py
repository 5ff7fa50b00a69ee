"""The memory plan: every byte is in it once, the cache is what it says, and what cannot fit is told
before it is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from drafted_kv import perturbed
from tiny import FAMILIES, write_checkpoint

import workbench as wb
from workbench.build import build, resolve
from workbench.config import EngineConfig
from workbench.errors import ConfigError
from workbench.memory_plan import Memory, MemoryPlan, plan_memory
from workbench.models import DecoderLM, load_model
from workbench.models.loader import _pieces, _require_room
from workbench.speculation import DraftModel, EarlyExit

MIB = 1 << 20
PLENTY = Memory(1024 * MIB, 900 * MIB)


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DecoderLM:
    folder = write_checkpoint(tmp_path_factory.mktemp("model"), request.param)
    return load_model(folder, device="cpu", dtype="float32")


def cache_bytes(plan: MemoryPlan) -> int:
    return sum(count for name, count in plan.shares.items() if name.startswith("KV cache"))


def test_the_engine_takes_what_the_plan_says(model: DecoderLM) -> None:
    config = EngineConfig(num_blocks=40, max_sequences=4, max_batch_tokens=64)
    plan = plan_memory(model, config, PLENTY)
    with build(config, model=model) as engine:
        assert engine.cache.num_blocks >= plan.num_blocks == 40
        assert cache_bytes(plan) == sum(t.nbytes for t in engine.cache.tensors)
    weights = {p.data_ptr(): p.nbytes for p in (*model.parameters(), *model.buffers())}
    assert plan.shares["weights"] == sum(weights.values())
    assert sum(plan.shares.values()) == plan.capacity == PLENTY.capacity


def test_by_itself_the_cache_leaves_room_and_is_no_larger_than_it_can_use(
    model: DecoderLM,
) -> None:
    config = EngineConfig(max_sequences=3, max_batch_tokens=64)
    free = plan_memory(model, config, PLENTY)
    assert free.num_blocks == 3 * model.config.context // 16, "all sequences at full context"
    steps = (
        free.shares["activations of a step, at most"] + free.shares["logits and sampling, at most"]
    )
    tight = Memory(1024 * MIB, steps + cache_bytes(free) // 2)
    plan = plan_memory(model, config, tight)
    assert 0 < plan.num_blocks < free.num_blocks
    assert cache_bytes(plan) <= 0.85 * (tight.free - steps)
    assert plan.num_left > 0
    assert resolve(config, model).num_blocks == free.num_blocks


def test_more_than_fits_is_refused_with_what_would(model: DecoderLM) -> None:
    memory = Memory(64 * MIB, 20 * MIB)
    config = EngineConfig(num_blocks=10**6, max_sequences=4, max_batch_tokens=64)
    with pytest.raises(ConfigError, match=r"num_blocks=1000000: .*\n.*in use by others") as caught:
        plan_memory(model, config, memory)
    most = int(caught.value.fix.split("num_blocks=")[1].split()[0])
    fitting = EngineConfig(num_blocks=most, max_sequences=4, max_batch_tokens=64)
    plan = plan_memory(model, fitting, memory)
    assert str(plan) in str(caught.value)
    assert plan.num_left >= 0
    with pytest.raises(ConfigError):
        plan_memory(model, EngineConfig(**{**vars_of(fitting), "num_blocks": most + 1}), memory)


def vars_of(config: EngineConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_no_room_for_a_block(model: DecoderLM) -> None:
    for num_blocks in (None, 1):
        config = EngineConfig(num_blocks=num_blocks, max_batch_tokens=64)
        with pytest.raises(ConfigError, match=r"(?s)no room for a single block.*weights"):
            plan_memory(model, config, Memory(64 * MIB, 1000))


def test_build_refuses_before_anything_is_taken(model: DecoderLM) -> None:
    with pytest.raises(ConfigError, match="At most num_blocks="):
        build(EngineConfig(num_blocks=10**12), model=model)


def test_it_shows_itself(model: DecoderLM) -> None:
    plan = wb.plan_memory(model, EngineConfig(num_blocks=40), PLENTY)
    assert "40 blocks of 16: 640 tokens" in str(plan)
    assert "1.0 GiB on cpu" in plan._repr_html_()
    assert len(str(plan).splitlines()) == len(plan.describe())


def test_weights_that_do_not_fit_are_refused_by_name(model: DecoderLM) -> None:
    pieces, device = _pieces(model), torch.device("cuda:0")
    size = 2 * sum(p.numel() for p in model.parameters())
    _require_room(pieces, torch.bfloat16, device, size)
    with pytest.raises(ConfigError, match=r"cuda:0.*weights take .* as torch.bfloat16"):
        _require_room(pieces, torch.bfloat16, device, size - 1)


def test_a_draft_model_is_in_the_plan(model: DecoderLM) -> None:
    """Its weights, and what it keeps beside each block; both are what the engine then takes."""
    settings = {"num_blocks": 40, "max_sequences": 4, "max_batch_tokens": 64}
    alone = plan_memory(model, EngineConfig(**settings), PLENTY)
    proposers: dict[str, DraftModel] = {
        "draft model": DraftModel(perturbed(model)),
        "early exit": EarlyExit(1),
    }
    for name, proposer in proposers.items():
        config = EngineConfig(**settings, proposer=proposer)
        plan = plan_memory(model, config, PLENTY)
        with build(config, model=model) as engine:
            assert plan.shares[f"{name}: KV cache"] == proposer.kv.num_bytes > 0
            assert cache_bytes(plan) == cache_bytes(alone) == engine.cache.num_bytes
        weights = 0 if name == "early exit" else plan.shares["weights"]
        assert plan.shares[f"{name}: weights"] == weights
        others = "in use by others"
        assert plan.shares[others] == alone.shares[others] - weights, "they are loaded by then"
        assert sum(plan.shares.values()) == plan.capacity
        assert f"{name}: KV cache" in str(plan)
        step = "activations of a step, at most"
        assert plan.shares[step] > alone.shares[step], "its longest pass has more tokens"


def test_a_cache_beside_a_draft_model_is_smaller(model: DecoderLM) -> None:
    config = EngineConfig(max_sequences=4, max_batch_tokens=64)
    drafted = replace(config, proposer=DraftModel(perturbed(model)))
    memory = Memory(64 * MIB, 30 * MIB)
    with pytest.raises(ConfigError, match="At most num_blocks=") as caught:
        plan_memory(model, replace(drafted, num_blocks=10**6), memory)
    most = int(caught.value.fix.split("num_blocks=")[1].split()[0])
    plan = plan_memory(model, replace(drafted, num_blocks=most), memory)
    block = (cache_bytes(plan) + plan.shares["draft model: KV cache"]) // most
    assert 0 <= plan.num_left < 2 * block
    with pytest.raises(ConfigError, match="At most num_blocks="):
        plan_memory(model, replace(drafted, num_blocks=most + 1), memory)
    assert plan_memory(model, replace(config, num_blocks=most + 1), memory).num_left > 0
