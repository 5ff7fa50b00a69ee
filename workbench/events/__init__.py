"""Facts the engine states about itself, and the bus that carries them.

Enough is said to rebuild the allocator and the scheduler of any step; `workbench.trace` does so.
"""

from workbench.events.blocks import (
    BlockAllocated,
    BlockCached,
    BlockCopied,
    BlockEvicted,
    BlockFreed,
    BlockOffloaded,
    BlockReleased,
    BlockRestored,
    BlocksDropped,
    BlockShared,
    BlocksMoved,
    HostCleared,
    PrefixHit,
    PrefixMiss,
)
from workbench.events.bus import (
    EventBus,
    Subscriber,
    SubscriberFailed,
    warn,
)
from workbench.events.event import (
    Event,
)
from workbench.events.requests import (
    EngineRestored,
    Preempted,
    PrefixAwaited,
    RequestAdded,
    RequestFailed,
    RequestFinished,
    SequenceAdmitted,
    SequenceExtended,
    SequenceForked,
    SequencePaused,
    SequenceQueued,
    SequenceResumed,
    SwappedIn,
    SwappedOut,
)
from workbench.events.steps import (
    DraftVerified,
    PolicyFailed,
    StateSeen,
    StepDone,
    StepPlanned,
)

__all__ = [
    "BlockAllocated",
    "BlockCached",
    "BlockCopied",
    "BlockEvicted",
    "BlockFreed",
    "BlockOffloaded",
    "BlockReleased",
    "BlockRestored",
    "BlockShared",
    "BlocksDropped",
    "BlocksMoved",
    "DraftVerified",
    "EngineRestored",
    "Event",
    "EventBus",
    "HostCleared",
    "PolicyFailed",
    "Preempted",
    "PrefixAwaited",
    "PrefixHit",
    "PrefixMiss",
    "RequestAdded",
    "RequestFailed",
    "RequestFinished",
    "SequenceAdmitted",
    "SequenceExtended",
    "SequenceForked",
    "SequencePaused",
    "SequenceQueued",
    "SequenceResumed",
    "StateSeen",
    "StepDone",
    "StepPlanned",
    "Subscriber",
    "SubscriberFailed",
    "SwappedIn",
    "SwappedOut",
    "warn",
]
