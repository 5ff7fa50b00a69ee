"""The copies between device blocks and host slots: every byte, every layer, in order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from workbench.cache import KVCache
from workbench.cache import host_memory as module
from workbench.cache.host_memory import HostMemory
from workbench.config import ModelConfig, SchedulerConfig
from workbench.errors import ConfigError
from workbench.scheduler import Scheduler

CONFIG = ModelConfig("none", 128, 1, 1, 3, 4, 2, 8, context=128)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def filled(num_blocks: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    shape = (3, 2, num_blocks, 4, 2, 8)
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return numbers.to(dtype).to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("group", [1, 3, 100])
def test_what_leaves_comes_back(
    device: str, dtype: torch.dtype, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = filled(10, dtype, device)
    monkeypatch.setattr(module, "_STAGING_BYTES", group * tensor[:, :, 0].nbytes)
    memory, before = HostMemory([tensor], 8), tensor.clone()
    blocks = [3, 0, 9, 5, 1, 7, 2]
    memory.offload(dict(enumerate(blocks)))
    tensor.fill_(torch.nan)  # right after, as a forward pass would
    targets = [8, 1, 2, 3, 4, 5, 6]
    memory.restore({block: slot for slot, block in enumerate(targets)})
    for source, target in zip(blocks, targets, strict=True):
        assert torch.equal(tensor[:, :, target], before[:, :, source])
    assert tensor[:, :, [0, 7, 9]].isnan().all()


def test_every_tensor_of_a_block_moves(device: str) -> None:
    """Keys and values in 8 bits, and their scales."""
    kept = filled(4, torch.float32, device).to(torch.float8_e4m3fn)
    scales = filled(4, torch.float32, device)[..., 0].transpose(3, 4).contiguous()
    memory = HostMemory([kept, scales], 3)
    before = kept[:, :, 2].float(), scales[:, :, 2].clone()
    memory.offload({1: 2})
    memory.restore({0: 1})
    assert torch.equal(kept[:, :, 0].float(), before[0])
    assert torch.equal(scales[:, :, 0], before[1])


def test_a_slot_used_again_holds_the_later_content(device: str) -> None:
    tensor = filled(4, torch.float32, device)
    memory, before = HostMemory([tensor], 1), tensor.clone()
    for block in range(3):
        memory.offload({0: block})
        memory.restore({3: 0})
        assert torch.equal(tensor[:, :, 3], before[:, :, block])


def test_it_is_pinned_and_given_back(device: str) -> None:
    memory = HostMemory([filled(4, torch.float32, device)], 5)
    assert memory.tensors[0].is_pinned() == (device == "cuda")
    assert memory.num_bytes == 5 * 3 * 2 * 4 * 2 * 8 * 4
    memory.close()
    assert memory.num_bytes == 0


def test_the_budget_in_bytes() -> None:
    per_block = KVCache.bytes_per_block(CONFIG, 16, torch.float32)
    cache = KVCache.for_config(CONFIG, 4, host_bytes=3 * per_block + 1)
    assert cache.blocks.host.num_slots == 3
    assert "host memory" in cache.describe()
    cache.close()
    assert KVCache.for_config(CONFIG, 4).blocks.host is None
    with pytest.raises(ConfigError, match=r"host_cache_bytes=.* less memory than one block"):
        KVCache.for_config(CONFIG, 4, host_bytes=per_block - 1)


@pytest.mark.parametrize("windows", [(8, 8, 8), (None, 8, 8)], ids=["all", "some"])
def test_layers_with_a_window_have_no_host_tier(windows: tuple[int | None, ...]) -> None:
    config = replace(CONFIG, windows=windows)
    with pytest.raises(ConfigError, match=r"host_cache_bytes=.*no host tier .*window of 8"):
        KVCache.for_config(config, 4, host_bytes=10**9)
    shape = {"num_layers": 3, "num_kv_heads": 2, "head_dim": 8, "num_blocks": 4}
    with pytest.raises(ConfigError, match=r"num_host_blocks=2.*no host tier for layers with"):
        KVCache(**shape, windows=windows, num_host_blocks=2)
    cache = KVCache(**shape, windows=windows)
    with pytest.raises(ConfigError, match=r"preemption=.*nor can it: layers with a window"):
        Scheduler(cache, SchedulerConfig(preemption="swap"))
    assert cache.stats().offloads == 0
