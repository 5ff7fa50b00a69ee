"""Heads in an engine: the same tokens as without, and drafts as from a fresh head each time."""

from __future__ import annotations

from typing import Any

import head_files as files
import pytest
import torch

from workbench.batch import ForwardContext
from workbench.build import build
from workbench.config import EngineConfig
from workbench.draft import Draft
from workbench.engine import Engine
from workbench.errors import ConfigError
from workbench.layers import probe
from workbench.models import DecoderLM, load_model
from workbench.models.resolve import attached_names
from workbench.ops import get_backend
from workbench.sampling_params import SamplingParams
from workbench.speculation import DraftModel, NGram, SuffixAutomaton, get_proposer
from workbench.speculation.dflash import DFlashProposer
from workbench.speculation.eagle import EagleProposer
from workbench.speculation.head_proposers import load_proposer
from workbench.speculation.heads import TreeShape, load_head
from workbench.speculation.medusa import HydraProposer, MedusaProposer, usual_paths
from workbench.speculation.proposer import Candidate, ProposalContext
from workbench.speculation.states import States

SHAPE = TreeShape(60, 3, 25)  # wide, so that random heads are right now and then
CONFIGS: dict[str, Any] = {
    "medusa": ({"medusa_num_heads": 3}, files.medusa),
    "hydra": ({"hydra_num_heads": 3, "hydra_num_layers": 2}, files.hydra),
    "hydra-prefix": (
        {"hydra_num_heads": 3, "hydra_num_layers": 2, "hydra_head_arch": "prefix-mlp"},
        lambda: files.hydra(prefix=True),
    ),
    "eagle": (files.CONFIG, files.eagle),
    "eagle3": (files.CONFIG | {"draft_vocab_size": 40}, lambda: files.eagle3(drafts=40)),
    "mtp": (files.CONFIG | {"num_hidden_layers": files.LAYERS}, lambda: files.mtp("qwen3_next")),
    "dflash": (
        files.CONFIG
        | {
            "num_hidden_layers": 2,
            "block_size": 5,
            "dflash_config": {"mask_token_id": 60, "target_layer_ids": [1, 3, 5]},
        },
        files.dflash,
    ),
}
CLASSES: dict[str, Any] = {
    "medusa": MedusaProposer,
    "hydra": HydraProposer,
    "hydra-prefix": HydraProposer,
    "dflash": DFlashProposer,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"prefix_reuse": False},
    "chunks": {"max_batch_tokens": 80, "max_sequences": 3, "prefix_reuse": False},
    "preemption": {"num_blocks": 14, "block_size": 4, "prefix_reuse": False},
    "prefix reuse": {"block_size": 4},
}
PARAMS = [
    SamplingParams(max_tokens=18, temperature=0),
    SamplingParams(max_tokens=14, temperature=1.2, seed=4),
    SamplingParams(max_tokens=1, temperature=0),
    SamplingParams(max_tokens=16, temperature=0, repetition_penalty=1.3),
]


def prompts() -> list[list[int]]:
    """Return prompts of which two share their first half."""
    generator = torch.Generator().manual_seed(8)
    rows = [torch.randint(0, files.VOCAB, (n,), generator=generator).tolist() for n in (5, 17, 3)]
    return [*rows, [*rows[1][:12], 7, 8]]


def proposer_of(kind: str, target: DecoderLM, folder: Any, backend: str = "reference") -> Any:
    """Return a proposer with a random head of a kind."""
    config, make = CONFIGS[kind]
    torch.manual_seed(1)
    files.write(folder, config, make())
    options: dict[str, Any] = {"shape": SHAPE}
    if kind in ("medusa", "hydra", "hydra-prefix"):
        options = {"paths": usual_paths(3, 60)}
    elif kind == "dflash":
        options = {}
    proposer = load_proposer(folder, target, backend=backend, **options)
    assert type(proposer) is CLASSES.get(kind, EagleProposer)
    return proposer


def engine_of(target: DecoderLM, proposer: Any = None, **settings: Any) -> Engine:
    """Return an engine; its states are float32, as the target's are."""
    config = EngineConfig(**{"num_blocks": 60, "backend": "reference", **settings})
    engine = build(config, model=target)
    if proposer is not None:
        engine.swap(proposer=proposer)
    return engine


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_tokens_are_those_without(kind: str, setting: str, target, tmp_path) -> None:
    texts = prompts()
    with engine_of(target) as plain:
        expected = [o.outputs[0].token_ids for o in plain.generate(texts, PARAMS)]
    with engine_of(target, proposer_of(kind, target, tmp_path), **SETTINGS[setting]) as engine:
        for _ in range(2 if setting == "prefix reuse" else 1):
            outputs = engine.generate(texts, PARAMS)
            assert [o.outputs[0].token_ids for o in outputs] == expected
            drafted = sum(o.metrics.num_draft_tokens for o in outputs)
            assert drafted > 50 if kind != "dflash" else drafted > 0
            if kind != "dflash":
                assert sum(o.metrics.num_accepted for o in outputs) > 0
        engine.cache.check()


class Spy:
    """Passes on what a proposer says, and keeps it beside what was asked."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.name, self.needs = inner, inner.name, inner.needs
        self.seen: list[tuple[list[int], Draft | None, tuple[int, int]]] = []

    def propose(self, context: ProposalContext) -> list[Draft | None]:
        answers = self.inner.propose(context)
        for candidate, answer in zip(context.candidates, answers, strict=True):
            bounds = candidate.max_tokens, candidate.max_depth
            self.seen.append((list(candidate.token_ids), answer, bounds))
        return answers


def states_of(target: DecoderLM, needs: tuple[str, ...], token_ids: list[int]) -> States:
    """Return what the target makes of all tokens but the last."""
    ids = torch.tensor(token_ids[:-1])
    ctx = ForwardContext.without_cache([len(ids)], get_backend("reference", "cpu"))
    with torch.inference_mode(), probe(target, needs) as seen:
        target(ids, ctx)
    return States(0, dict(seen))


class Still:
    """Stands for a sequence."""

    sequence_id, finished = 0, False

    def __init__(self, token_ids: list[int]) -> None:
        self.token_ids = token_ids


@pytest.mark.parametrize("setting", ["plain", "chunks", "preemption"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_drafts_are_those_of_a_fresh_head(kind: str, setting: str, target, tmp_path) -> None:
    """Whatever was committed, batched, preempted and rolled back on the way."""
    proposer = proposer_of(kind, target, tmp_path)
    spy = Spy(proposer)
    with engine_of(target, spy, **SETTINGS[setting]) as engine:
        engine.generate(prompts(), PARAMS)
    compared = 0
    for token_ids, draft, bounds in spy.seen:
        proposer.close()
        states = states_of(target, proposer.needs, token_ids)
        candidate: Any = Candidate(Still(token_ids), *bounds, states)
        context = ProposalContext(0, (candidate,), target, None)
        [expected] = proposer.propose(context)
        assert draft is not None, "no states were missing"
        # Of nearly equal scores either may be kept, so the shape is compared where it is plain.
        assert len(draft) == len(expected)
        same = set(zip(draft.token_ids, draft.depths, strict=True))
        wanted = set(zip(expected.token_ids, expected.depths, strict=True))
        assert len(same & wanted) >= 0.95 * len(wanted)
        compared += 1
    assert compared > 15


def test_a_head_without_the_prefixes_states_drafts_from_what_it_has(target, tmp_path) -> None:
    """After a prefix hit, states begin late: the row does too, and drafts come all the same."""
    proposer = proposer_of("eagle3", target, tmp_path)
    ids = list(range(20))
    states = states_of(target, proposer.needs, ids)
    late = States(8, {point: rows[8:] for point, rows in states.rows.items()})
    candidate: Any = Candidate(Still(ids), 20, 3, late)
    context = ProposalContext(0, (candidate,), target, None)
    [draft] = proposer.propose(context)
    assert len(draft) == 20
    [again] = proposer.propose(
        ProposalContext(0, (Candidate(candidate.sequence, 20, 3, None),), target, None)
    )
    assert again.token_ids == draft.token_ids, "nothing new: the head is asked again"
    longer: Any = Candidate(Still([*ids, 4]), 20, 3, None)
    assert proposer.propose(ProposalContext(0, (longer,), target, None)) == [None]


@pytest.mark.parametrize("tail", [[7, 7, 7], [7, 7, 7, 7, 7, 7]], ids=["shorter", "longer"])
def test_a_sequence_that_went_back_is_followed(tail: list[int], target, tmp_path) -> None:
    """Tokens change under the same id, as after `engine.restore`: the row is cut where they do."""
    proposer = proposer_of("eagle3", target, tmp_path)

    def ask(ids: list[int], since: int) -> Any:
        states = states_of(target, proposer.needs, ids)
        part = States(since, {point: rows[since:] for point, rows in states.rows.items()})
        candidate: Any = Candidate(Still(ids), 30, 3, part)
        return proposer.propose(ProposalContext(0, (candidate,), target, None))[0]

    first = [3, 1, 4, 1, 5, 9, 2, 6]
    ask(first, 0)
    other = [3, 1, 4, 1, *tail]
    changed = ask(other, 3)
    proposer.close()
    assert changed.token_ids == ask(other, 0).token_ids


def test_an_interrupted_proposal_leaves_no_trace(target, tmp_path, monkeypatch) -> None:
    """It strikes after the cache took the states in, before the row knows."""
    proposer = proposer_of("eagle3", target, tmp_path)
    ids = [3, 1, 4, 1, 5, 9]
    states = states_of(target, proposer.needs, ids)
    candidate: Any = Candidate(Still(ids), 20, 3, states)
    context = ProposalContext(0, (candidate,), target, None)
    [expected] = proposer.propose(context)
    proposer.close()

    def struck(news: Any, kept: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(proposer.rows, "took", struck)
        with pytest.raises(KeyboardInterrupt):
            proposer.propose(context)
    assert proposer.rows.cache.lens[0] == 5
    [draft] = proposer.propose(context)
    assert draft.token_ids == expected.token_ids


@pytest.mark.parametrize("kind", ["medusa", "eagle3", "dflash"])
def test_bounds_are_kept(kind: str, target, tmp_path) -> None:
    proposer = proposer_of(kind, target, tmp_path)
    ids = list(range(9))
    for max_tokens, max_depth in [(1, 5), (7, 1), (9, 2), (60, 9)]:
        states = states_of(target, proposer.needs, ids)
        candidate: Any = Candidate(Still(ids), max_tokens, max_depth, states)
        [draft] = proposer.propose(ProposalContext(0, (candidate,), target, None))
        draft.check(files.VOCAB, max_tokens, max_depth)
        assert draft.probabilities.min() > 0
        assert draft.probabilities.max() <= 1 + 1e-5
        proposer.close()


def test_rows_are_used_again(target, tmp_path) -> None:
    proposer = proposer_of("eagle3", target, tmp_path)
    with engine_of(target, proposer, max_sequences=2) as engine:
        for _ in range(3):
            engine.generate(prompts(), PARAMS)
        assert proposer.rows.cache.num_rows <= 4


@pytest.mark.parametrize("kind", ["medusa", "hydra", "eagle3", "dflash"])
def test_a_cpu_drafts_chains_unless_trees_are_asked_for(kind, target, tmp_path) -> None:
    config, make = CONFIGS[kind]
    files.write(tmp_path, config, make())
    usual, chain, tree = (
        get_proposer(tmp_path, target, trees=trees).describe()["draft"]
        for trees in (None, False, True)
    )
    assert usual == chain
    assert (tree == chain) == (kind == "dflash")


def test_what_does_not_fit_is_refused(target, tmp_path) -> None:
    proposer = proposer_of("eagle", target, tmp_path)
    other = load_model(_saved(target, tmp_path / "other"), device="cpu", dtype="float32")
    with engine_of(other) as engine, pytest.raises(ConfigError, match="another model object"):
        engine.swap(proposer=proposer)
    head = load_head(files.write(tmp_path / "m", *_medusa()), target)
    with pytest.raises(ConfigError, match="looks 3 tokens ahead"):
        MedusaProposer(head, paths=((0,), (0, 0), (0, 0, 0), (0, 0, 0, 0)))
    with pytest.raises(ConfigError, match="beside a shape"):
        EagleProposer(proposer.head, shape=SHAPE, length=3)


def _medusa() -> tuple[dict, dict]:
    return {"medusa_num_heads": 3}, files.medusa()


def _saved(target: DecoderLM, folder: Any) -> Any:
    from workbench.train.heads_export import save_draft_model

    save_draft_model(target, folder, torch.float32)
    return folder


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_is_enough(kind: str, target, tmp_path) -> None:
    """Each calls itself a Llama, as published EAGLE heads do; only a whole model is one."""
    config, make = CONFIGS[kind]
    folder = files.write(tmp_path, config | {"architectures": ["LlamaForCausalLM"]}, make())
    proposer = get_proposer(folder, target)
    assert type(proposer) is CLASSES.get(kind, EagleProposer)


def test_a_folder_with_a_whole_model_drafts_by_itself(target, reference_model, tmp_path) -> None:
    reference_model.save_pretrained(tmp_path)
    proposer = get_proposer(str(tmp_path), target)
    assert isinstance(proposer, DraftModel)
    with build(EngineConfig(num_blocks=60, proposer=tmp_path), model=target) as engine:
        (output,) = engine.generate([[1, 2, 3]], SamplingParams(max_tokens=12, temperature=0))
    assert output.metrics.num_accepted == output.metrics.num_draft_tokens > 0, "its own twin"


def test_names(target, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(get_proposer("ngram", target), NGram)
    assert isinstance(get_proposer("suffix", target), SuffixAutomaton)
    own = NGram()
    assert get_proposer(own, target) is own
    assert get_proposer(None, target) is None
    config, make = CONFIGS["eagle3"]
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    folder = tmp_path / "adapters" / "tiny" / "eagle3"
    folder.mkdir(parents=True)
    files.write(folder, config, make())
    assert isinstance(get_proposer("eagle3", target, "tiny"), EagleProposer)
    assert attached_names("tiny") == ["eagle3"]
    assert attached_names("org/tiny") == attached_names("other") == []
    with pytest.raises(ConfigError, match=r"ships for 'tiny' \(eagle3\). Or one of ngram"):
        get_proposer("medusa", target, "tiny")
    with pytest.raises(ConfigError, match=r"no config\.json"):
        build(EngineConfig(proposer="../medusa", num_blocks=8), model=target)
