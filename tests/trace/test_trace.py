"""A trace that is saved and loaded is the same trace; anything else is refused in one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import tiny_tokenizers

from workbench import events
from workbench.errors import TraceError
from workbench.events import EventBus
from workbench.models.tokenizer import Tokenizer
from workbench.trace import Trace
from workbench.trace.file import VERSION

EVENTS = [
    events.RequestAdded(0, "r0 – “q”", 0, 5, 3, (9, 8, 7, 6, 5)),
    events.PrefixHit(1, 0, 4, 5, "whole prompt cached", "whole"),
    events.PrefixMiss(1, 1, 5, "no such prefix", "new"),
    events.SequenceAdmitted(1, 0, 4),
    events.BlockShared(1, 2, 0, 0),
    events.BlockAllocated(1, 3, 0, 1),
    events.StepPlanned(1, ((0, 4, 1), (1, 0, 5)), 2, 2),
    events.StepPlanned(1, (), 0, 0),
    events.BlockCopied(1, 2, 4, 0, 0),
    events.BlockReleased(1, 2, 0, 1),
    events.BlockCached(1, 3, "00ff"),
    events.BlockEvicted(1, 3, "00ff", None),
    events.BlockEvicted(1, 3, "00ff", 7),
    events.BlockFreed(1, 3, True),
    events.Preempted(1, 0, "no free block", 4),
    events.PolicyFailed(1, "p", "Traceback:\n  …"),
    events.SubscriberFailed(1, "s", "Traceback:\n  …"),
    events.StepDone(1, ((0, 17), (1, 2)), {"schedule": 1.25e-05, "run": 0.1 + 0.2}, 9),
    events.RequestFinished(1, "r0 – “q”", 0, "length", 3),
    events.EngineRestored(2, 1),
    events.RequestFailed(2, "r0", 0, "logits: NaN"),
    events.Preempted(2, 0, "no free block", 4, "swap"),
    events.BlockOffloaded(2, 3, 0, 0, None),
    events.BlockOffloaded(2, 4, 1, None, "00ff"),
    events.SwappedOut(2, 0, (0, 1), 4),
    events.SwappedIn(3, 0, 4),
    events.BlockRestored(3, 0, 2, 0),
    events.SequencePaused(3, 0),
    events.SequenceResumed(3, 0, True),
    events.SequenceResumed(3, 1, False, True),
    events.PrefixAwaited(3, 2, 0, 4),
    events.BlockReleased(3, 2, None, 0),
    events.BlocksMoved(3, "offload", 2),
    events.HostCleared(3),
    events.BlocksDropped(3, 0, (1, 4)),
    events.SequenceQueued(3, 1),
    events.SequenceForked(3, "r1", 1, 0, 5, 4, (3,), 1),
    events.SequenceExtended(3, 1, 7, -0.1 / 3),
    events.DraftVerified(3, 0, "medusa", (4, 5, 6), (-1, 0, 0), (0.5, 0.1 / 3, 0.2), (0, 2), 9),
    events.DraftVerified(3, 0, "ngram", (4,), (-1,), None, (), 9),
    events.StepDone(
        3, ((0, 1), (1, 2)), {}, 9, (4, 5), ((-0.5, ((1, -0.5), (2, -1.0))), None), 0.25
    ),
    events.AdapterLoaded(4, "sql", "00ff", 16, 4096, 0.25),
    events.AdapterMoved(4, "sql", "host", "device", "wanted", (3, 1), 0.125),
    events.AdapterPinned(4, "sql", True),
    events.AdapterAwaited(4, 1, "sql", "no room"),
    events.AdapterUnloaded(4, "sql"),
    events.MemoryRebalanced(4, 64, 9),
    events.StateSeen(
        3, (0,), ((0, "r0", (1, 2), None),), ((0, 1, "ff", (0,), 0),), (), (), (), (), ()
    ),
]


def kinds() -> set[type]:
    return {
        kind
        for kind in vars(events).values()
        if isinstance(kind, type) and issubclass(kind, events.Event) and kind is not events.Event
    }


@pytest.fixture
def trace() -> Trace:
    """A trace with every kind of event."""
    trace = Trace({"model": "LlamaForCausalLM", "num_blocks": 9, "started": 12.5})
    for event in EVENTS:
        trace(event)
    return trace


@pytest.fixture
def saved(trace: Trace, tmp_path: Path) -> Path:
    """That trace, saved."""
    return trace.save(tmp_path / "run.trace")


def test_every_kind_of_event_comes_back(trace: Trace, saved: Path) -> None:
    assert {type(event) for event in EVENTS} == kinds(), "add the new kind to EVENTS"
    loaded = Trace.load(saved)
    assert loaded.events == EVENTS
    assert loaded.header == trace.header
    times = list(trace.seconds)
    assert list(loaded.seconds) == pytest.approx(times, abs=1e-6)
    assert times == sorted(times)
    assert loaded.describe() == {**trace.describe(), "seconds": loaded.describe()["seconds"]}


def test_saved_twice_is_the_same(saved: Path, tmp_path: Path) -> None:
    again = Trace.load(Trace.load(saved).save(tmp_path / "again.trace"))
    assert again.events == Trace.load(saved).events
    assert again.seconds == Trace.load(saved).seconds
    assert again.header == Trace.load(saved).header


def test_an_empty_trace(tmp_path: Path) -> None:
    loaded = Trace.load(Trace().save(tmp_path / "empty.trace"))
    assert len(loaded) == 0
    assert loaded.describe()["events"] == 0


def test_what_comes_while_it_is_saved_is_left_for_the_next_time(
    trace: Trace, tmp_path: Path
) -> None:
    """An engine on a thread has stated an event whose time is not noted yet."""
    trace.events.append(events.HostCleared(5))
    assert len(Trace.load(trace.save(tmp_path / "run.trace"))) == len(EVENTS)
    written = json.loads(trace.to_perfetto(tmp_path / "run.json").read_text())
    assert written["traceEvents"]
    assert trace.describe()["events"] == len(EVENTS)
    assert len(trace.to_pandas(events.HostCleared)) == len(trace.of(events.HostCleared)) - 1


def test_a_save_that_fails_leaves_the_older_file(trace: Trace, saved: Path) -> None:
    before = saved.read_bytes()
    trace(events.PolicyFailed(5, "p", object()))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        trace.save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_of_and_len(trace: Trace) -> None:
    assert len(trace) == len(EVENTS)
    assert trace.of(events.BlockEvicted) == EVENTS[11:13]
    assert len(trace.of(events.Event)) == len(EVENTS)
    assert len(trace.seconds) == len(EVENTS)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_file(saved: Path, share: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(share * len(data))])
    refused(saved)


def test_a_file_whole_in_gzip_but_not_in_lines(saved: Path) -> None:
    lines = gzip.decompress(saved.read_bytes()).splitlines(keepends=True)
    for kept in range(len(lines)):
        saved.write_bytes(gzip.compress(b"".join(lines[:kept])))
        refused(saved)
    missing = lines[:5] + lines[6:]
    saved.write_bytes(gzip.compress(b"".join(missing)))
    assert "truncated" in refused(saved)


def test_damaged_bytes(saved: Path) -> None:
    data = saved.read_bytes()
    for position in range(10, len(data), 9):  # the header of gzip lies before that
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        saved.write_bytes(bytes(damaged))
        refused(saved)


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        b"",
        gzip.compress(b"hello"),
        gzip.compress(b"\xff\xfe"),
        gzip.compress(b"[]\n"),
        gzip.compress(b"{}\n{}\n"),
        gzip.compress(b'{"format": "other", "version": 1}\n{"events": 0}\n'),
        json.dumps({"traceEvents": []}).encode(),
    ],
    ids=["text", "empty", "gz text", "gz bytes", "list", "no format", "other format", "json"],
)
def test_a_foreign_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.trace"
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize("version", [VERSION + 1, VERSION - 1, None, "1"])
def test_another_version(saved: Path, version: object) -> None:
    lines = gzip.decompress(saved.read_bytes()).splitlines(keepends=True)
    header = {**json.loads(lines[0]), "version": version}
    lines[0] = json.dumps(header).encode() + b"\n"
    saved.write_bytes(gzip.compress(b"".join(lines)))
    assert f"trace version {version}, this reads {VERSION}" in refused(saved)


@pytest.mark.parametrize(
    "line",
    [
        '[0.1, "NoSuchEvent", {"step": 1}]',
        '[0.1, "BlockFreed", {"step": 1}]',
        '[0.1, "BlockFreed", {"step": 1, "block_id": 1, "cached": true, "more": 1}]',
        '["soon", "BlockFreed", {"step": 1, "block_id": 1, "cached": true}]',
        '[0.1, "BlockFreed"]',
        '[0.1, "BlockFreed", []]',
        '[0.1, ["BlockFreed"], {}]',
        '"BlockFreed"',
        "3",
        "null",
    ],
)
def test_an_event_that_is_none(saved: Path, line: str) -> None:
    lines = gzip.decompress(saved.read_bytes()).decode().splitlines()
    lines[3] = line
    saved.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert "an event cannot be read" in refused(saved)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "nowhere.trace")
    refused(tmp_path)


def refused(path: Path) -> str:
    """Return the message with which a file is refused; one line that names it and the fix."""
    with pytest.raises(TraceError) as caught:
        Trace.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "Record it again" in message
    assert "\n" not in message
    return message


def test_perfetto(trace: Trace, tmp_path: Path) -> None:
    path = trace.to_perfetto(tmp_path / "run.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    records = content["traceEvents"]
    assert content["metadata"] == trace.header
    assert all({"ph", "pid", "name"} <= record.keys() for record in records)
    assert all("ts" in record for record in records if record["ph"] != "M")
    slices = {record["name"]: record for record in records if record["ph"] == "X"}
    assert {"step 1", "schedule", "run", "step 3"} <= set(slices)
    whole, first, second = slices["step 1"], slices["schedule"], slices["run"]
    assert whole["dur"] == pytest.approx(1e6 * (1.25e-05 + 0.3))
    assert first["ts"] == whole["ts"]
    assert second["ts"] == pytest.approx(first["ts"] + first["dur"])
    assert second["ts"] + second["dur"] == pytest.approx(whole["ts"] + whole["dur"])
    counters = {r["name"]: r["args"] for r in records if r["ph"] == "C"}
    assert counters["batch"] == {"rows": 0, "waiting": 0}
    assert counters["blocks"] == {"free": 9}


def test_a_trace_is_a_subscriber() -> None:
    bus, trace = EventBus(), Trace()
    stop = bus.subscribe(trace)
    bus.emit(EVENTS[0])
    stop()
    bus.emit(EVENTS[1])
    assert trace.events == EVENTS[:1]
    assert not bus


def test_a_part_of_a_character_is_kept_for_readers_and_shown_as_one(tmp_path: Path) -> None:
    trace = Trace()
    trace.tokenizer = Tokenizer(tiny_tokenizers.wrap(tiny_tokenizers.byte_level()))
    ids = trace.tokenizer.encode("日", special=False)
    assert len(ids) > 1, "the test needs a character of several tokens"
    trace(events.RequestAdded(0, "r0", 0, len(ids), 3, tuple(ids)))
    for known in (trace, Trace.load(trace.save(tmp_path / "run.trace"))):
        pieces = "".join(str(known.piece_of(i)) for i in ids)
        assert pieces.encode("utf-8", "surrogateescape").decode() == "日"
        assert "\ufffd" in "".join(known.text_of(i) for i in ids)
    assert (trace.piece_of(10**6), Trace().text_of(7)) == ("", "<7>")
