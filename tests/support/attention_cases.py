"""Batches that are awkward for attention in every way, for the tests of every backend."""

from __future__ import annotations

from typing import Any

# name -> ((new tokens, context with them) per row, keywords of `make_batch`)
CASES: dict[str, tuple[list[tuple[int, int]], dict[str, Any]]] = {
    "one token of one": ([(1, 1)], {}),
    "one decode": ([(1, 9)], {}),
    "a whole prompt": ([(7, 7)], {}),
    "a prompt of a block": ([(16, 16)], {}),
    "a first chunk and a later one": ([(5, 5), (4, 21)], {}),
    "a chunk at a block's edge": ([(3, 19), (16, 32), (2, 18)], {}),
    "decodes of one length": ([(1, 12)] * 4, {}),
    "decodes, the shortest of 1": ([(1, 1), (1, 2), (1, 17), (1, 16), (1, 1)], {}),
    "decodes in many groups": ([(1, n) for n in (3, 200, 90, 4, 140, 91, 1, 400)], {}),
    "decodes and chunks": ([(1, 5), (1, 40), (3, 3), (2, 30), (9, 17)], {}),
    "a decode alone with a chunk": ([(1, 8), (6, 6)], {}),
    "a chunk of one token in the middle": ([(1, 5), (4, 9), (1, 33)], {}),
    "blocks of 1": ([(1, 5), (1, 9), (3, 6), (4, 4)], {"block_size": 1}),
    "blocks of 3": ([(1, 5), (1, 9), (3, 6), (4, 4)], {"block_size": 3}),
    "blocks of 64": ([(1, 65), (1, 64), (3, 63)], {"block_size": 64}),
    "no groups": ([(1, 5), (1, 20), (3, 7)], {"heads": 3, "kv_heads": 3}),
    "one key head": ([(1, 5), (1, 20), (3, 7)], {"heads": 4, "kv_heads": 1}),
    "groups of 8": ([(1, 5), (1, 20), (3, 7)], {"heads": 16, "kv_heads": 2}),
    "head size 24": ([(1, 5), (1, 20), (3, 7)], {"dim": 24}),
    "head size 6": ([(1, 5), (1, 20), (3, 7)], {"dim": 6}),
    "head size 80": ([(1, 5), (3, 7)], {"dim": 80, "heads": 2, "kv_heads": 1}),
}
WINDOWS = [None, 1, 4, 16, 1000]
