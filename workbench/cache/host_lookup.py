"""A prefix lookup that goes on into the host tier.

A pure function, called by `BlockManager.lookup` where there is a host tier.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import replace

from workbench.cache.host import HostTier
from workbench.cache.prefix import PrefixLookup, block_hash, root_hash


def continued(
    found: PrefixLookup,
    host: HostTier,
    token_ids: Tokens[int],
    block_size: int,
    namespace: str,
    names: Tokens[bytes] = (),
) -> PrefixLookup:
    """Return a lookup that goes on, where it ended, with full blocks that the host tier holds."""
    if not host.num_findable:
        return found
    hashes, slots = list(found.hashes), []
    num_full = (len(token_ids) - 1) // block_size
    for index in range(len(hashes), num_full):
        if index < len(names):
            content_hash = names[index]
        else:
            tokens = token_ids[index * block_size : (index + 1) * block_size]
            content_hash = block_hash(hashes[-1] if hashes else root_hash(namespace), tokens)
        slot = host.find(content_hash)
        if slot is None:
            break
        hashes.append(content_hash)
        slots.append(slot)
    if not slots:
        return found
    whole = len(hashes) == num_full
    reason = "whole prompt cached" if whole else f"no block {len(hashes)} on device or host"
    return replace(
        found,
        hashes=tuple(hashes),
        slots=tuple(slots),
        num_tokens=len(hashes) * block_size,
        reason=reason,
    )
