"""The state of cache and scheduler as plain values: read off live parts, and off a replay.

The two are written apart from each other, so that what one forgets shows in the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from workbench.cache import KVCache
from workbench.events import Event
from workbench.request import Sequence, Status
from workbench.scheduler import Scheduler
from workbench.trace import CacheLayout, ReplayedState, apply


def of_live(
    cache: KVCache, scheduler: Scheduler, unfinished: Iterable[Sequence] = ()
) -> dict[str, Any]:
    """Return what the parts hold now. unfinished: all sequences, where some wait for a grammar."""
    waiting, running = scheduler.waiting, scheduler.running
    queued = {s.sequence_id for s in [*waiting, *running, *scheduler.paused]}
    everyone = {s.sequence_id: s for s in [*waiting, *running, *scheduler.paused, *unfinished]}
    blocks: dict[int, Any] = {}
    for place, group in enumerate(cache.blocks.groups):
        for block in group.pool.ids:
            content = group.prefix.content(block)
            homes = {
                number: table.indices[table.block_ids.index(block)]
                for number, table in group.tables.items()
                if block in table.block_ids
            }
            held = [everyone[n].num_computed - at * cache.block_size for n, at in homes.items()]
            fill = min(cache.block_size, max([0, *held]))
            name = None if content is None else content.name
            host = cache.blocks.host
            slot = None
            if host is not None:
                slot = host.restoring.get(block)
                if slot is None and name is not None:
                    slot = host.find(name)
            blocks[block] = {
                "group": place,
                "owners": sorted(homes),
                "index": next(iter(homes.values()), None),
                "references": cache.blocks.ref_counts[block],
                "fill": fill if content is None else cache.block_size,
                "content": None if name is None else name.hex(),
                "slot": slot,
            }
    return {
        "blocks": blocks,
        "used": cache.blocks.num_used,
        "copies": list(cache.blocks.pending_copies),
        "sequences": {
            number: _live_sequence(sequence, cache, number in queued)
            for number, sequence in everyone.items()
        },
        "running": [s.sequence_id for s in running],
        "waiting": sorted(s.sequence_id for s in waiting),
        "paused": sorted(s.sequence_id for s in scheduler.paused),
        "host": _live_host(cache),
    }


def _live_sequence(sequence: Sequence, cache: KVCache, queued: bool) -> dict[str, Any]:
    number, metrics = sequence.sequence_id, sequence.metrics
    assert sequence.status is not Status.FINISHED
    tables = [group.tables.get(number) for group in cache.blocks.groups]
    return {
        "request": sequence.request.request_id,
        "branch": sequence.index,
        "status": sequence.status.value if queued else "compiling",
        "prompt": sequence.num_prompt_tokens,
        "tokens": list(sequence.token_ids),
        "output": sequence.output_token_ids,
        "computed": sequence.num_computed,
        "cached": None if metrics.first_scheduled is None else metrics.num_cached_tokens,
        "preemptions": metrics.num_preemptions,
        "holds": number in cache.blocks.tables,
        "tables": [
            (table.first, list(table.block_ids), list(table.holes))
            if table and (table.block_ids or table.holes)
            else (0, [], [])
            for table in tables
        ],
    }


def _live_host(cache: KVCache) -> dict[str, Any] | None:
    host = cache.blocks.host
    if host is None:
        return None
    contents = {slot: host.content(slot) for slot in range(host.num_slots)}
    return {
        "contents": {slot: c.name.hex() for slot, c in contents.items() if c is not None},
        "holds": list(host.holds),
        "swapped": {n: (kept.slots, kept.num_tokens) for n, kept in host.swapped.items()},
        "offloading": dict(host.offloading),
        "restoring": dict(host.restoring),
    }


def of_replayed(state: ReplayedState) -> dict[str, Any]:
    """Return the same of a replayed state."""
    blocks = {number: state.block(number) for number in range(state.layout.num_blocks)}
    contents = {slot: c for slot, c in enumerate(state.slot_contents) if c is not None}
    host = {
        "contents": contents,
        "holds": state.slot_holds,
        "swapped": {n: tuple(kept) for n, kept in state.swapped.items()},
        "offloading": state.offloading,
        "restoring": state.restoring,
    }
    return {
        "blocks": {
            number: {
                "group": block.group,
                "owners": sorted(block.owners),
                "index": block.position if block.owners else None,
                "references": block.references,
                "fill": block.fill,
                "content": block.content_hash,
                "slot": block.slot,
            }
            for number, block in blocks.items()
        },
        "used": state.num_used,
        "copies": sorted(state.copies, key=lambda copy: state.layout.group_of(copy[0])),
        "sequences": {
            number: {
                "request": sequence.request_id,
                "branch": sequence.branch,
                "status": sequence.status,
                "prompt": sequence.num_prompt_tokens,
                "tokens": state.token_ids(number),
                "output": state.output_token_ids(number),
                "computed": sequence.num_computed,
                "cached": sequence.num_cached,
                "preemptions": sequence.num_preemptions,
                "holds": sequence.holds_blocks,
                "tables": [(t.first, t.block_ids, t.holes) for t in sequence.tables],
            }
            for number, sequence in state.sequences.items()
        },
        "running": [s.sequence_id for s in state.of_status("running")],
        "waiting": sorted(s.sequence_id for s in state.waiting),
        "paused": sorted(s.sequence_id for s in state.paused),
        "host": host if state.layout.num_slots else None,
    }


class Follower:
    """A subscriber that replays as events come, and compares when it is asked."""

    def __init__(self, cache: KVCache) -> None:
        self.state = ReplayedState(CacheLayout.of(cache))
        self.errors: list[Exception] = []

    def __call__(self, event: Event) -> None:
        """Take an event in; what goes wrong is told by `compare`, since a bus would swallow it."""
        try:
            apply(self.state, event)
        except Exception as error:  # noqa: BLE001 - told by `compare`
            self.errors.append(error)

    def compare(
        self, cache: KVCache, scheduler: Scheduler, unfinished: Iterable[Sequence] = ()
    ) -> None:
        """Assert that the replayed state is the live one."""
        assert not self.errors, self.errors[0]
        live, replayed = of_live(cache, scheduler, unfinished), of_replayed(self.state)
        for name in live:
            assert replayed[name] == live[name], f"{name}: {difference(replayed[name], live[name])}"


def difference(replayed: Any, live: Any) -> Any:
    """Return where two snapshots differ, replayed first."""
    if isinstance(replayed, dict) and isinstance(live, dict) and replayed.keys() == live.keys():
        pairs = {key: (replayed[key], live[key]) for key in live if replayed[key] != live[key]}
        return {key: difference(*pair) for key, pair in pairs.items()}
    return replayed, live
