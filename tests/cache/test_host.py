"""The host tier's books on their own."""

from __future__ import annotations

from array import array

import pytest

from workbench.cache import HostTier
from workbench.cache.prefix import Content
from workbench.errors import ConfigError


def content(name: bytes) -> Content:
    """Return what a block of this name holds."""
    return Content(name, b"parent", array("q", [*name]))


class Recorder:
    """Notes the transfers it is asked for; fails when told to."""

    def __init__(self) -> None:
        self.made: list[tuple[str, dict[int, int]]] = []
        self.fails = False

    def offload(self, block_of):
        self.made.append(("offload", dict(block_of)))
        if self.fails:
            raise OSError("no luck")

    def restore(self, slot_of):
        self.made.append(("restore", dict(slot_of)))


def test_evicted_content_is_kept_once_and_the_oldest_goes_first() -> None:
    host = HostTier(2)
    first, second = host.keep(content(b"a"), 5), host.keep(content(b"b"), 6)
    assert {first, second} == {0, 1}
    assert host.keep(content(b"a"), 7) is None, "it is here already"
    third = host.keep(content(b"c"), 8)
    assert third == second, "a was kept again, so b is the oldest"
    assert host.find(b"b") is None
    assert host.offloading == {first: 5, third: 8}
    host.check()


def test_swapping_takes_what_is_here_and_refuses_before_changing_anything() -> None:
    host = HostTier(3)
    slot = host.keep(content(b"a"), 5)
    assert host.swap_out(1, [9, 10, 11, 12], [content(b"a"), content(b"x")], 14) is None
    host.check()
    assert host.num_free == 3
    moved = host.swap_out(1, [9, 10, 11], [content(b"a"), content(b"x")], 10)
    assert [block for block, _ in moved] == [10, 11]
    assert host.swapped[1].slots[0] == slot
    assert host.num_free == 0
    assert host.keep(content(b"y"), 3) is None, "every slot is held"
    host.drop(1)
    host.drop(1)
    assert host.num_free == 3
    assert host.find(b"x") is not None, "named blocks stay findable"
    host.check()


def test_transfers_are_made_once_and_owed_until_then() -> None:
    host, memory = HostTier(3), Recorder()
    host.swap_out(1, [4, 5], [], 8)
    memory.fails = True
    with pytest.raises(OSError, match="no luck"):
        host.carry_out(memory)
    assert host.num_offloads == 0
    memory.fails = False
    host.carry_out(memory)
    host.carry_out(memory)
    slots = host.swapped[1].slots
    for block, slot in zip([7, 8], slots, strict=True):
        host.hold(slot)
        host.restore(slot, block)
    host.drop(1)
    host.check()
    assert host.num_free == 1, "held until the content has arrived"
    assert host.cancel(8)
    assert not host.cancel(8)
    host.carry_out(memory)
    offload = {slots[0]: 4, slots[1]: 5}
    assert memory.made == [("offload", offload), ("offload", offload), ("restore", {7: slots[0]})]
    assert (host.num_offloads, host.num_restores, host.num_free) == (2, 1, 3)
    host.check()


def test_clearing_leaves_what_is_held_for_somebody() -> None:
    host = HostTier(4)
    host.keep(content(b"a"), 1)
    host.swap_out(3, [2, 6], [content(b"b")], 6)
    host.clear()
    host.check()
    assert (host.num_findable, host.num_free) == (0, 2)
    assert len(host.offloading) == 2
    host.drop(3)
    assert host.num_free == 4
    assert not host.offloading


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True])
def test_a_tier_without_room(wrong) -> None:
    with pytest.raises(ConfigError, match="num_host_blocks"):
        HostTier(wrong)


def test_the_check_finds_what_is_broken() -> None:
    for spoil, words in [
        (lambda host: host._blank.append(host._blank[0]), "blank twice"),
        (lambda host: host.holds.__setitem__(0, 7), "hold is wrong"),
        (lambda host: host._slot_of.clear(), "names out of step"),
        (lambda host: host._idle.clear(), "lost"),
    ]:
        host = HostTier(4)
        host.swap_out(1, [2], [], 3)
        host.keep(content(b"a"), 1)
        host.check()
        spoil(host)
        with pytest.raises(AssertionError, match=words):
            host.check()
