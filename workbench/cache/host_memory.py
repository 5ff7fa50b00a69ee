"""`HostMemory`: the tensor behind the host tier, and the copies between it and the device.

On CUDA the memory is pinned and a stream of its own moves it: an offload is gathered on the current
stream, then leaves while the forward pass runs; a restored block is waited for by the current
stream alone, never by the host. On a CPU the same code copies between two tensors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice

import torch
from torch import Tensor

# At most this much is gathered at a time, twice: one leaves while the next is gathered.
_STAGING_BYTES = 64 << 20


class HostMemory:
    """Host slots for a device tensor [layers, 2, blocks, block_size, kv_heads, head_dim].

    `tensor` is [slots, layers, 2, block_size, kv_heads, head_dim]: a slot lies in one piece.
    """

    def __init__(self, device_tensor: Tensor, num_slots: int) -> None:
        """Allocate the slots; pinned if the device is a GPU."""
        layers, two, _, *slot = device_tensor.shape
        shape = (num_slots, layers, two, *slot)
        cuda = device_tensor.device.type == "cuda"
        self.device_tensor = device_tensor
        self.tensor = torch.empty(shape, dtype=device_tensor.dtype, pin_memory=cuda)
        self.stream = torch.cuda.Stream(device_tensor.device) if cuda else None  # type: ignore[no-untyped-call]
        per_slot = self.tensor[0].numel() * self.tensor.element_size()
        self._group = max(1, _STAGING_BYTES // max(1, per_slot))
        self._under_way: deque[torch.cuda.Event] = deque()

    @property
    def num_bytes(self) -> int:
        """Bytes of all slots."""
        return self.tensor.numel() * self.tensor.element_size()

    def offload(self, block_of: Mapping[int, int]) -> None:
        """Copy each block to its slot: {slot: block}. The blocks may be written right after."""
        for slots, blocks in self._groups(block_of):
            self._await_staging()
            staged = self.device_tensor.index_select(2, self._ids(blocks)).movedim(2, 0)
            staged = staged.contiguous()
            if self.stream is not None:
                self.stream.wait_stream(torch.cuda.current_stream(staged.device))
            with self._side():
                for place, slot in enumerate(slots):
                    self.tensor[slot].copy_(staged[place], non_blocking=True)
            if self.stream is not None:
                staged.record_stream(self.stream)
                self._under_way.append(self.stream.record_event())

    def restore(self, slot_of: Mapping[int, int]) -> None:
        """Copy each slot to its block: {block: slot}. What reads the blocks next sees them."""
        for blocks, slots in self._groups(slot_of):
            self._await_staging()
            ids = self._ids(blocks)  # before the wait: nothing here may hold the host up
            with self._side():
                shape = (len(slots), *self.tensor.shape[1:])
                staged = self.device_tensor.new_empty(shape)
                for place, slot in enumerate(slots):
                    staged[place].copy_(self.tensor[slot], non_blocking=True)
            if self.stream is not None:
                torch.cuda.current_stream(staged.device).wait_stream(self.stream)
            self.device_tensor.index_copy_(2, ids, staged.movedim(0, 2))
            if self.stream is not None:
                current = torch.cuda.current_stream(staged.device)
                staged.record_stream(current)
                self._under_way.append(current.record_event())

    def _groups(self, pairs: Mapping[int, int]) -> list[tuple[list[int], list[int]]]:
        """Return keys and values in groups that fit the staging memory."""
        items = iter(pairs.items())
        groups = []
        while group := list(islice(items, self._group)):
            groups.append(([key for key, _ in group], [value for _, value in group]))
        return groups

    def _await_staging(self) -> None:
        """Wait on the host while two groups are under way, so that staging memory is bounded."""
        while len(self._under_way) >= 2:
            self._under_way.popleft().synchronize()

    def _side(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self.stream) if self.stream is not None else nullcontext()

    def _ids(self, ids: list[int]) -> Tensor:
        return torch.tensor(ids).to(self.device_tensor.device, non_blocking=True)

    def close(self) -> None:
        """Wait for what is under way and give the memory back."""
        if self.stream is not None:
            self.stream.synchronize()
        self.tensor = self.tensor.new_empty(0)
        self.device_tensor = self.device_tensor.new_empty(0)
        self._under_way.clear()
