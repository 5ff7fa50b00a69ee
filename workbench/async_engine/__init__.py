"""An engine on a thread of its own, shared by coroutines of any event loop and by plain threads."""

from workbench.async_engine.bridge import OnLoop
from workbench.async_engine.delta import StreamDelta
from workbench.async_engine.face import AsyncEngine
from workbench.async_engine.reply import Reply
from workbench.async_engine.stream import TokenStream

__all__ = ["AsyncEngine", "OnLoop", "Reply", "StreamDelta", "TokenStream"]
