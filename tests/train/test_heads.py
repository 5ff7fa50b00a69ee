"""Training of heads on a tiny target: they learn, are measured, and resume exactly."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TEXTS, write_checkpoint

from workbench.cli.main import main
from workbench.data.token_arrays import write_tokens
from workbench.errors import ConfigError
from workbench.models import DecoderLM, load_model
from workbench.ops import get_backend
from workbench.speculation.heads import (
    Eagle3Flags,
    TreeShape,
    commit,
    draft_chain,
    load_head,
    new_cache,
)
from workbench.speculation.heads.attention import bare_context
from workbench.train.heads import HeadSettings, new_run, take_step, train_head
from workbench.train.heads_acceptance import (
    hops,
    measure_acceptance,
    medusa_accuracy,
    medusa_ranks,
    run_lengths,
    tree_lengths,
)
from workbench.train.heads_capture import capture, training_backend
from workbench.train.heads_data import (
    TextWindows,
    frequent_ids,
    token_stream,
)
from workbench.train.heads_export import save_draft_model
from workbench.train.heads_log import RunLog
from workbench.train.heads_tasks import new_task
from workbench.train.heads_writing import own_rows

SETTINGS = HeadSettings(batch=4, length=44, rate=1e-2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DecoderLM:
    """A tiny target with a real tokenizer; random weights, and sure enough of itself to learn."""
    folder = write_checkpoint(tmp_path_factory.mktemp("target"), "llama")
    loaded = load_model(folder, device="cpu", dtype="float32")
    loaded.head.weight.data.mul_(4)
    return loaded


def options(kind: str) -> dict[str, Any]:
    """Return what makes a head of a kind small, and fit for a target of two layers."""
    return {
        "medusa": {"num_heads": 2},
        "eagle3": {"unroll": 2, "flags": Eagle3Flags((0, 1, 2))},
        "draft": {"hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "num_heads": 2},
    }[kind]


def rows_of(model: DecoderLM) -> torch.Tensor:
    """Return rows that the target wrote greedily: there is something to learn of them."""
    stream = token_stream(TEXTS, model)
    more: dict[str, Any] = {"temperatures": (0.0,), "prompt_tokens": (4,)}
    return next(own_rows(model, stream, 14, 44, **more))


def text(model: DecoderLM) -> torch.Tensor:
    """Return those rows as one stream."""
    return rows_of(model).int().flatten()


@pytest.mark.parametrize("kind", ["medusa", "eagle3", "draft"])
def test_loss_falls_and_acceptance_rises(kind: str, model: DecoderLM) -> None:
    """On text that the target wrote behind the very prompts that acceptance is measured on."""
    rows_written = rows_of(model)
    prompts = rows_written[:6, :4].tolist()
    rows: list[dict[str, Any]] = []
    head, log = train_head(
        model,
        kind,
        text(model),
        steps=250,
        settings=replace(SETTINGS, own_share=1.0),
        own_rows=rows_written,
        prompts=prompts,
        callback=rows.append,
        log_every=0.0,
        progress=False,
        **options(kind),
    )
    assert rows == log
    assert [row["step"] for row in log] == list(range(251))
    assert log[-1]["loss"] < 0.85 * log[1]["loss"]
    assert log[-1]["agreed"][0] > log[1]["agreed"][0] + 0.08
    assert log[-1]["acceptance"] > log[0]["acceptance"] + 0.04
    assert not any(p.requires_grad for p in head.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("kind", ["medusa", "eagle3", "draft"])
def test_a_target_in_bfloat16_trains_heads_in_float32(kind: str, model, tmp_path) -> None:
    save_draft_model(model, tmp_path, torch.bfloat16)
    narrow = load_model(tmp_path, device="cpu", dtype="bfloat16")
    prompts = [[5, 6, 7], [8, 9]]
    head, log = train_head(
        narrow, kind, text(model), steps=2, settings=SETTINGS, prompts=prompts, **options(kind)
    )
    assert {p.dtype for p in head.parameters()} == {torch.float32}
    assert log[-1]["acceptance"] >= 1


def test_a_thinned_target_is_the_target_where_nothing_is_left_out(model) -> None:
    layers = range(model.config.num_layers)
    whole = new_task("draft", model, from_layers=layers).module
    prompts = [[5, 6, 7], [8, 9]]
    assert measure_acceptance(whole, model, prompts, max_tokens=8).length == 5.0
    less = new_task("draft", model, from_layers=[1]).module
    assert less.config.num_layers == 1
    ours, theirs = less.layers[0].state_dict(), model.layers[1].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert less.head.weight is less.embedding.weight or not model.config.tied_head
    for wrong in ([], [2]):
        with pytest.raises(ConfigError, match="the target has 2 layers"):
            new_task("draft", model, from_layers=wrong)


@pytest.mark.parametrize("kind", ["medusa", "eagle3", "draft"])
def test_muon_and_bfloat16_learn_too(kind: str, model) -> None:
    settings = replace(SETTINGS, optimizer="muon", autocast=True)
    head, log = train_head(
        model,
        kind,
        text(model),
        steps=30,
        settings=settings,
        log_every=0.0,
        progress=False,
        **options(kind),
    )
    assert {p.dtype for p in head.parameters()} == {torch.float32}
    assert log[-1]["loss"] < log[1]["loss"]


class Interrupted(Exception):
    """Stands for a notebook's stop button."""


@pytest.mark.parametrize("kind", ["medusa", "eagle3", "draft"])
def test_a_resumed_run_equals_an_uninterrupted_one(kind: str, model, tmp_path) -> None:
    keywords: dict[str, Any] = {
        "steps": 6,
        "settings": SETTINGS,
        "log_every": 0.0,
        "progress": False,
        **options(kind),
    }
    whole, log = train_head(model, kind, text(model), **keywords)

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_head(model, kind, text(model), out=tmp_path, callback=stop, **keywords)
    parts, resumed = train_head(model, kind, text(model), out=tmp_path, **keywords)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [row["step"] for row in resumed] == [row["step"] for row in log]
    again, same = train_head(model, kind, text(model), out=tmp_path, **keywords)
    assert same == resumed, "nothing is left to do"
    assert torch.equal(next(iter(again.parameters())), next(iter(parts.parameters())))


def test_another_runs_state_is_refused(model, tmp_path) -> None:
    train_head(model, "medusa", text(model), steps=1, out=tmp_path, settings=SETTINGS)
    with pytest.raises(ConfigError, match="of another run"):
        train_head(
            model, "medusa", text(model), steps=1, out=tmp_path, num_heads=1, settings=SETTINGS
        )
    other = HeadSettings(batch=4, length=44, rate=1e-3)
    with pytest.raises(ConfigError, match="settings"):
        train_head(model, "medusa", text(model), steps=1, out=tmp_path, settings=other)


def test_what_cannot_be_trained_is_refused(model) -> None:
    stream = text(model)
    with pytest.raises(ConfigError, match="Known: medusa, eagle3, draft"):
        train_head(model, "hydra", stream, steps=1)
    with pytest.raises(ConfigError, match="either steps or minutes"):
        train_head(model, "medusa", stream)
    with pytest.raises(ConfigError, match="too few"):
        train_head(model, "medusa", stream[:9], steps=1, settings=SETTINGS)
    with pytest.raises(ConfigError, match="own tokenizer"):
        train_head(model, "medusa", stream + 10_000, steps=1)
    with pytest.raises(ConfigError, match=r"HeadSettings\.rate"):
        HeadSettings(rate=3.0)


def test_a_run_may_begin_as_another_head(model) -> None:
    trained, _ = train_head(model, "medusa", text(model), steps=3, settings=SETTINGS, num_heads=2)
    again = {"steps": 1, "settings": replace(SETTINGS, rate=1e-9), "begin_as": trained}
    head, _ = train_head(model, "medusa", text(model), num_heads=2, **again)
    for one, other in zip(head.parameters(), trained.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    with pytest.raises(ConfigError, match="differs in shape"):
        train_head(model, "medusa", text(model), num_heads=1, **again)


def test_a_loss_that_is_no_number_ends_the_run(model) -> None:
    run = new_run(model, "medusa", text(model), SETTINGS)
    with torch.no_grad():
        next(run.task.module.parameters()).fill_(torch.nan)
    log = RunLog(run, None, None, 0.0, 0.0)
    log.add(*take_step(run))
    with pytest.raises(FloatingPointError, match="lower the rate"):
        log.tell(_Bar())


class _Bar:
    n = 0

    def set_postfix(self, shown: dict[str, Any]) -> None: ...

    def update(self, n: int) -> None: ...


def test_medusas_loss_is_the_papers(model) -> None:
    """Against cross entropy written out: head i at t on token t + 2 + i."""
    task = new_task("medusa", model, num_heads=2, labels="text")
    task.module.init_weights()
    ids = TextWindows(text(model), 10, 0).batch(0, 2)
    seen = capture(model, ids, ("",), training_backend(model))
    loss, _ = task.loss(seen)
    expected = 0.0
    for i in range(2):
        costs = []
        for row in range(2):
            for t in range(10 - 2 - i):
                x = seen.final[row, t]
                logits = model.head.weight @ x  # blocks start as nothing, heads as the target's
                costs.append(-logits.log_softmax(0)[seen.token_ids[row, t + 2 + i]])
        expected += float(torch.stack(costs).mean())
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_eagle3s_loss_is_the_papers(model) -> None:
    """Against chains of the driven head, fed the text's tokens, slot by slot and pass by pass."""
    unroll, decay, n = 3, 0.8, 9
    kept = torch.arange(0, model.config.vocab_size, 2)
    more = options("eagle3") | {"unroll": unroll, "decay": decay, "draft_ids": kept}
    task = new_task("eagle3", model, **more)
    head, backend = task.module, get_backend("reference", "cpu")
    ids = TextWindows(text(model), n, 0).batch(0, 1)
    seen = capture(model, ids, task.needs, training_backend(model))
    loss, agreed = task.loss(seen)
    truth = seen.logits()[0]
    total = 0.0
    rights: list[list[bool]] = []
    with torch.no_grad():
        costs: list[list[float]] = [[] for _ in range(unroll)]
        rights = [[] for _ in range(unroll)]
        for t in range(n - 1):
            cache = new_cache(head, 1)
            tokens = ids[0, 1 : t + 2]
            out = commit(head, cache, [0], tokens, seen.states[0, : t + 1], [t + 1], backend)
            for i in range(unroll):
                if t + 1 + i >= n:
                    break
                if i:
                    ctx = cache.extend([0], [1], backend, ahead=i - 1)
                    out = head(ids[0, t + 1 + i][None], head.carry(out, ctx), ctx)
                ctx = cache.extend([0], [1], backend)
                logits = head.logits(out, ctx)[0]
                wanted = truth[t + 1 + i]
                rights[i].append(bool(head.target_ids(logits.argmax()) == wanted.argmax()))
                if int(wanted.argmax()) in kept:
                    soft = wanted[kept].softmax(0)
                    costs[i].append(-float((soft * logits.log_softmax(0)).sum()))
        total = sum(decay**i * sum(c) / max(1, len(c)) for i, c in enumerate(costs))
    assert float(loss.detach()) == pytest.approx(total, rel=1e-4)
    assert agreed.tolist() == pytest.approx([sum(r) / len(r) for r in rights])


def test_a_model_drafts_itself_perfectly(model) -> None:
    prompts = TextWindows(token_stream(TEXTS, model), 5, 0).batch(0, 3).tolist()
    found = measure_acceptance(model, model, prompts, depth=3, max_tokens=20)
    assert found.length == 4.0
    assert found.accepted == found.agreed == (1.0, 1.0, 1.0)


def test_acceptance_is_what_driving_the_head_accepts(model) -> None:
    """Text whose pieces the head drafts rightly but for every third token."""
    head = new_task("eagle3", model, **options("eagle3")).module.eval().requires_grad_(False)
    backend, cache = get_backend("reference", "cpu"), new_cache(head, 1)
    prompt = TextWindows(token_stream(TEXTS, model), 5, 0).batch(0, 1)[0].tolist()
    ids = [*prompt, 7]
    while len(ids) < 5 + 1 + 3 * 6:
        seen = capture(model, torch.tensor([ids]), head.needs, training_backend(model))
        span = slice(cache.lens[0], len(ids) - 1)
        tokens = torch.tensor(ids[span.start + 1 :])
        out = commit(head, cache, [0], tokens, seen.states[0, span], [len(tokens)], backend)
        first, second, third = draft_chain(head, cache, [0], out, 3, backend).token_ids[0].tolist()
        ids += [first, second, (third + 1) % 300]
    texts = [ids[5:]]
    for shape in (None, TreeShape(3, 3, 1)):
        found = measure_acceptance(head, model, [prompt], depth=3, texts=texts, tree=shape)
        assert found.length == 3.0
        assert found.num_passes >= 5
    wide = measure_acceptance(
        head, model, [prompt], depth=3, texts=texts, tree=TreeShape(300, 2, 299)
    )
    assert wide.length > 2.5, "the tree holds nearly every token behind the first"


def test_medusas_ranks_and_trees(model) -> None:
    head = new_task("medusa", model, num_heads=2).module
    prompt = TextWindows(text(model), 12, 0).batch(0, 1)
    seen = capture(model, prompt, head.needs, training_backend(model))
    ranks = medusa_ranks(head, seen)
    with torch.no_grad():
        logits = head(seen.final[0], bare_context(seen.backend))
    for i in range(2):
        for t in range(11):
            rank = 10
            if t + 2 + i < 12:
                order = logits[i, t].sort(descending=True).indices.tolist()
                rank = min(10, order.index(int(prompt[0, t + 2 + i])))
            assert int(ranks[i, t]) == rank
    accuracy = medusa_accuracy(head, seen)
    known = ranks[1, :9]
    assert accuracy[1, 3] == (known == 3).float().mean()
    column = torch.tensor([[0, 2, 1, 0], [1, 0, 0, 5]])
    paths = ((0,), (1,), (0, 0), (0, 1))
    assert tree_lengths(column, paths).tolist() == [2, 0, 1, 1]
    assert run_lengths(column == 0).tolist() == [1, 0, 0, 1]


def test_hops() -> None:
    """Passes from token 3 of 12, with what each accepts; the one that meets the end is left out."""
    lengths = [9, 9, 2, 9, 9, 0, 4, 9, 9, 9, 9]
    assert hops(lengths, 3, 12) == [3, 1]
    assert hops([0] * 11, 3, 12) == [1] * 8


def test_windows_are_a_function_of_their_number() -> None:
    windows = TextWindows(torch.arange(100), 7, seed=1)
    assert torch.equal(windows.batch(4, 3), windows.batch(4, 3))
    assert not torch.equal(windows.batch(4, 3), windows.batch(5, 3))
    assert (windows.batch(2, 50).diff(dim=1) == 1).all()


def test_frequent_ids_are_ascending_and_do_occur() -> None:
    stream = torch.tensor([5, 5, 5, 2, 2, 9, 7, 7, 7, 7], dtype=torch.int32)
    assert frequent_ids(stream, 2).tolist() == [5, 7]
    assert frequent_ids(stream, 99).tolist() == [2, 5, 7, 9]


@pytest.mark.parametrize("kind", ["medusa", "draft"])
def test_the_program_exports_what_loads(kind: str, model, tmp_path, capsys) -> None:
    folder = write_checkpoint(tmp_path / "target", "llama")
    out, export = str(tmp_path / "run"), tmp_path / "head"
    words = ["train", kind, "--model", str(folder), "--out", out, "--export", str(export)]
    words += ["--steps", "2", "--batch", "2", "--length", "24"]
    words += ["--data", str(corpus_of(model, folder, tmp_path / "corpus"))]
    words += ["--every", "64", "--max-tokens", "12", "--dtype", "float32", "--tree", "6"]
    words += {"medusa": ["--num-heads", "2"], "draft": ["--hidden-size", "64"]}[kind]
    assert main(words) == 0
    capsys.readouterr()
    words += ["--begin-as", str(export)]
    words[words.index("--out") + 1] += " more"
    assert main(words) == 0
    assert "acceptance" in (export / "metrics.json").read_text()
    card = (export / "README.md").read_text()
    assert f"# {kind} for" in card
    assert "| chain |" in card
    assert f"workbench {shlex.join(words)}" in card
    if kind == "draft":
        draft = load_model(export, device="cpu", dtype="float32")
        assert draft.config.hidden_size == 64
        assert draft.tokenizer is not None
    else:
        head = load_head(export, load_model(folder, device="cpu", dtype="float32"))
        assert head.num_heads == 2
        assert len(head.paths) == 6


def test_distinct_batches_are_read_by_the_target_once(model: DecoderLM) -> None:
    """As long as none comes again, everything is as without them."""
    weights, passes = [], []
    with counting(model, passes):
        for distinct, steps in ((None, 3), (3, 3), (3, 9)):
            settings = replace(SETTINGS, distinct=distinct)
            run = new_run(model, "medusa", text(model), settings, **options("medusa"))
            before = len(passes)
            for _ in range(steps):
                run.progress.advance_tokens(1, 20)  # the rate is 0 at first
                take_step(run)
            weights.append(run.task.module.state_dict())
            assert len(passes) - before == 3
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name])
    assert any(not torch.equal(w, weights[2][name]) for name, w in weights[0].items())
    with pytest.raises(ConfigError, match=r"HeadSettings\.distinct"):
        HeadSettings(distinct=0)


@contextmanager
def counting(model: DecoderLM, passes: list[int]) -> Iterator[None]:
    """Note each pass of a model."""
    hook = model.register_forward_hook(lambda *_: passes.append(1))
    try:
        yield
    finally:
        hook.remove()


def corpus_of(model: DecoderLM, target: Path, folder: Path) -> Path:
    """Write a corpus with a target's tokenizer, as `workbench.data.corpus` lays it out."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_bytes((target / "tokenizer.json").read_bytes())
    write_tokens(token_stream(TEXTS * 20, model).numpy().astype("uint16"), folder / "train.bin")
    return folder
