"""Engines over tiny random models, on every backend and device; each is checked at the end."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from drive import Alone, MakeEngine, tokens_of
from tiny import write_checkpoint

from workbench.cache import KVCache
from workbench.cache.groups import kv_dtype
from workbench.config import SchedulerConfig
from workbench.engine import Engine
from workbench.guided import GrammarCompiler
from workbench.models import DecoderLM, load_model
from workbench.run import Runner
from workbench.sampling_params import SamplingParams
from workbench.scheduler import Scheduler


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a family's tiny checkpoint, written once. Tests must not change it."""
    folders: dict[str, Path] = {}

    def folder_of(family: str = "llama") -> Path:
        if family not in folders:
            folders[family] = write_checkpoint(tmp_path_factory.mktemp(family), family)
        return folders[family]

    return folder_of


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where the test runs."""
    return request.param


@pytest.fixture(
    params=["reference", "sdpa", "native", pytest.param("triton", marks=pytest.mark.gpu)]
)
def backend(request: pytest.FixtureRequest, device: str) -> str:
    """Which backend the test runs on."""
    if request.param == "triton" and device == "cpu":
        pytest.skip("in the interpreter all of these would take hours: lifted by a GPU")
    if request.param == "native" and device != "cpu":
        pytest.skip("the native backend runs on a CPU")
    return request.param


@pytest.fixture(scope="session")
def _models() -> dict[tuple[str, str], DecoderLM]:
    return {}


@pytest.fixture
def model_of(
    checkpoint: Callable[[str], Path], _models: dict[tuple[str, str], DecoderLM]
) -> Callable[..., DecoderLM]:
    """Return a family's model in float32, loaded once for each device. Tests must not change it."""

    def load(family: str = "llama", device: str = "cpu") -> DecoderLM:
        key = family, device
        if key not in _models:
            _models[key] = load_model(checkpoint(family), device=device, dtype="float32")
        return _models[key]

    return load


@pytest.fixture(scope="session")
def _grammars() -> Iterator[Callable[[DecoderLM], GrammarCompiler]]:
    """Return a model's compiler, shared by all tests: its worker takes seconds to start."""
    compilers: dict[int, GrammarCompiler] = {}

    def compiler_of(model: DecoderLM) -> GrammarCompiler:
        assert model.tokenizer is not None
        if id(model) not in compilers:
            config = model.config
            compilers[id(model)] = GrammarCompiler(
                model.tokenizer, config.vocab_size, eos_token_ids=config.eos_token_ids
            )
        return compilers[id(model)]

    yield compiler_of
    for compiler in compilers.values():
        compiler.close()


@pytest.fixture
def make_engine(
    model_of: Callable[..., DecoderLM], _grammars: Callable[[DecoderLM], GrammarCompiler]
) -> Callable[..., Engine]:
    """Build an engine by hand. Keywords: its parts' settings, and those of `SchedulerConfig`.

    guided: with a grammar compiler that all tests share.
    """

    def make(
        model: DecoderLM | str = "llama",
        *,
        device: str = "cpu",
        backend: str = "sdpa",
        num_blocks: int = 96,
        block_size: int = 16,
        cache_dtype: str = "auto",
        host_blocks: int = 0,
        seed: int | None = None,
        guided: bool = False,
        cuda_graphs: Any = "auto",
        tape: Any = "auto",
        overlap: Any = "auto",
        batch_invariant: bool = False,
        **scheduling: Any,
    ) -> Engine:
        model = model_of(model, device) if isinstance(model, str) else model
        kept = kv_dtype(cache_dtype, torch.float32)
        host_bytes = host_blocks * KVCache.bytes_per_block(model.config, block_size, kept)
        cache = KVCache.for_model(
            model, num_blocks, block_size, dtype=cache_dtype, host_bytes=host_bytes
        )
        # What nobody has computed must not matter: a wrong slot shows as NaN, not as a mild zero.
        for tensor in (*cache.tensors, *cache.scales):
            tensor.view(torch.uint8).fill_(255)
        for tensor in cache.host_memory.tensors if cache.host_memory is not None else ():
            tensor.fill_(255)
        settings = {"max_batch_tokens": 512, **scheduling}
        settings.setdefault("max_sequences", min(32, settings["max_batch_tokens"]))
        scheduler = Scheduler(cache, SchedulerConfig(**settings))
        runner = Runner(model, cache, backend, cuda_graphs, tape, batch_invariant)
        grammars = _grammars(model) if guided else None
        settings = {"overlap": overlap, "seed": seed}
        return Engine(model, cache, scheduler, runner, grammars=grammars, **settings)

    return make


@pytest.fixture(scope="session")
def _alone() -> dict[Any, list[int]]:
    return {}


@pytest.fixture
def alone(make_engine: MakeEngine, _alone: dict[Any, list[int]]) -> Alone:
    """Return the oracle: tokens of each prompt by itself, plain backend, whole prefill, no reuse.

    What it has worked out once in a session is remembered; keywords: `model` (a family), `device`.
    """

    def run(
        prompts: list[list[int]],
        params: SamplingParams | list[SamplingParams],
        *,
        model: str = "llama",
        device: str = "cpu",
        **_: Any,
    ) -> list[list[int]]:
        each = params if isinstance(params, list) else [params] * len(prompts)
        keys = [(model, device, tuple(p), own) for p, own in zip(prompts, each, strict=True)]
        if missing := [key for key in keys if key not in _alone]:
            engine = make_engine(model, device=device, backend="reference", prefix_reuse=False)
            for key in missing:
                _alone[key] = tokens_of(engine, [list(key[2])], key[3])[0]
        return [list(_alone[key]) for key in keys]

    return run


@pytest.fixture(autouse=True)
def _every_engine_ends_clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After every test, each engine it made and did not close has no work and all blocks free."""
    engines: weakref.WeakSet[Engine] = weakref.WeakSet()
    original = Engine.__init__

    def watched(self: Engine, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        engines.add(self)

    monkeypatch.setattr(Engine, "__init__", watched)
    yield
    for engine in engines:
        if engine.closed:
            continue
        engine.cache.check()
        assert not engine.has_work, "the test left requests in an engine"
        assert engine.cache.blocks.num_used == 0, "blocks leaked"
        assert not engine.cache.blocks.tables
        assert not engine.cache.blocks.pending_copies
        host = engine.cache.blocks.host
        assert host is None or host.num_free == host.num_slots, "host slots leaked"
