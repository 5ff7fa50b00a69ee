"""Dropping policies: which blocks of its KV a sequence may do without, so that it holds fewer.

A policy is a function of a `KeptBlocks`, so one can be written in a notebook cell and swapped in
between two steps: `engine.swap(dropping=lambda kept: [b.index for b in kept.blocks[4:-8]])`. What
it names is given up for good: later tokens do not see it, and their positions stay as they are.
Prompts are computed whole first; then a policy is asked after each token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from workbench.config import require_positive
from workbench.errors import ConfigError


@dataclass(frozen=True, slots=True)
class KeptBlock:
    """A full block that a sequence has: tokens `start` to `stop` - 1 of it.

    mass: the attention that it has had, summed over layers, heads and queries, from the prompt's
    last token on; 0.0 unless the policy `needs_attention`.
    """

    index: int
    start: int
    stop: int
    mass: float


@dataclass(frozen=True, slots=True)
class KeptBlocks:
    """A sequence between two steps, as a dropping policy sees it.

    num_tokens: computed so far, dropped ones included; the next token has that position. blocks:
    what may be dropped, in order: all that it has but a last block that is not full.
    """

    request_id: str
    branch: int
    num_prompt_tokens: int
    num_tokens: int
    block_size: int
    blocks: tuple[KeptBlock, ...]


# Returns the `index` of each block to drop. It may have an attribute `needs_attention`: then blocks
# come with their masses, which takes a further product with all keys in each layer and step.
DroppingPolicy = Callable[[KeptBlocks], Iterable[int]]


def keep_all(kept: KeptBlocks) -> Iterable[int]:
    """Drop nothing: the model's own attention."""
    return ()


def require_at_least_0(field: str, value: object) -> None:
    """Raise `ConfigError` unless `value` is an int of at least 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(field, value, "must be a whole number of at least 0", "Raise it.")


@dataclass(frozen=True, slots=True)
class SinkWindow:
    """Keep the first `num_sinks` tokens and a window of the last, by whole blocks (StreamingLLM,
    arXiv 2309.17453; there positions move up, here they stay).

    window: tokens that the next token sees, itself included, beside the sinks. A block stays while
    any of its tokens is one of them.
    """

    num_sinks: int = 4
    window: int = 256

    def __post_init__(self) -> None:
        """Refuse sizes that mean nothing."""
        require_at_least_0("SinkWindow.num_sinks", self.num_sinks)
        require_positive("SinkWindow.window", self.window)

    def __call__(self, kept: KeptBlocks) -> list[int]:
        """Return the blocks between sinks and window."""
        first = kept.num_tokens + 1 - self.window  # the first position in the window
        return [b.index for b in kept.blocks if b.start >= self.num_sinks and b.stop <= first]


@dataclass(frozen=True, slots=True)
class HeavyHitter:
    """Keep the last `num_recent` tokens, and of those before them the `num_heavy` that have had
    most attention, by whole blocks (H2O, arXiv 2306.14048, whose heads choose each for itself).

    Both are rounded up to blocks. Of blocks with equal attention the later ones stay.
    """

    num_heavy: int = 128
    num_recent: int = 128
    needs_attention = True

    def __post_init__(self) -> None:
        """Refuse sizes that mean nothing."""
        require_at_least_0("HeavyHitter.num_heavy", self.num_heavy)
        require_positive("HeavyHitter.num_recent", self.num_recent)

    def __call__(self, kept: KeptBlocks) -> list[int]:
        """Return the lightest of the blocks that are not recent, as many as are too many."""
        first = kept.num_tokens + 1 - self.num_recent
        old = [block for block in kept.blocks if block.stop <= first]
        surplus = len(old) - -(-self.num_heavy // kept.block_size)
        lightest = sorted(old, key=lambda block: (block.mass, block.index))
        return sorted(block.index for block in lightest[: max(0, surplus)])


DROPPINGS: dict[str, DroppingPolicy] = {
    "keep_all": keep_all,
    "sink_window": SinkWindow(),
    "heavy_hitter": HeavyHitter(),
}


def dropping_name(policy: DroppingPolicy) -> str:
    """Return how a policy is shown: a function by its name, an object as it shows itself."""
    return getattr(policy, "__name__", None) or repr(policy)


def get_dropping(policy: str | DroppingPolicy) -> DroppingPolicy:
    """Return a policy by name, or the one given; raise `ConfigError` for anything else."""
    if callable(policy):
        return policy
    if policy not in DROPPINGS:
        known = ", ".join(DROPPINGS)
        fix = f"Known: {known}; or pass a function of a `KeptBlocks`."
        raise ConfigError("dropping", policy, "no such policy", fix)
    return DROPPINGS[policy]
