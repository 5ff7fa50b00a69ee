"""`HostMemory`: the tensors behind the host tier, and the copies between it and the device.

On CUDA the memory is pinned and a stream of its own moves it: an offload is gathered on the current
stream, then leaves while the forward pass runs; a restored block is waited for by the current
stream alone, never by the host. On a CPU the same code copies between two tensors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice

import torch
from torch import Tensor

# At most this much is gathered at a time, twice: one leaves while the next is gathered.
_STAGING_BYTES = 64 << 20


class HostMemory:
    """Host slots for device tensors [layers, 2, blocks, ...]: keys and values, perhaps scales.

    `tensors` are [slots, layers, 2, ...], one for each: a slot lies in one piece of each.
    """

    def __init__(self, device_tensors: Sequence[Tensor], num_slots: int) -> None:
        """Allocate the slots; pinned if the device is a GPU."""
        device = device_tensors[0].device
        cuda = device.type == "cuda"
        # As bytes, which any dtype can be copied as.
        self.device_tensors = [tensor.view(torch.uint8) for tensor in device_tensors]
        self.tensors = [
            torch.empty((num_slots, layers, two, *slot), dtype=torch.uint8, pin_memory=cuda)
            for layers, two, _, *slot in (tensor.shape for tensor in self.device_tensors)
        ]
        self.stream = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        per_slot = sum(tensor[0].numel() for tensor in self.tensors) if num_slots else 0
        self._group = max(1, _STAGING_BYTES // max(1, per_slot))
        self._under_way: deque[torch.cuda.Event] = deque()

    @property
    def num_bytes(self) -> int:
        """Bytes of all slots."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def follow(self, device_tensors: Sequence[Tensor]) -> None:
        """Copy to and from these tensors from now on, once what is under way has arrived."""
        if self.stream is not None:
            self.stream.synchronize()
        self.device_tensors = [tensor.view(torch.uint8) for tensor in device_tensors]

    def offload(self, block_of: Mapping[int, int]) -> None:
        """Copy each block to its slot: {slot: block}. The blocks may be written right after."""
        for slots, blocks in self._groups(block_of):
            self._await_staging()
            ids, leaving = self._ids(blocks), []
            for tensor in self.device_tensors:
                leaving.append(tensor.index_select(2, ids).movedim(2, 0).contiguous())
            if self.stream is not None:
                self.stream.wait_stream(torch.cuda.current_stream(ids.device))
            with self._side():
                for kept, staged in zip(self.tensors, leaving, strict=True):
                    for place, slot in enumerate(slots):
                        kept[slot].copy_(staged[place], non_blocking=True)
            if self.stream is not None:
                self._note(leaving, self.stream)

    def restore(self, slot_of: Mapping[int, int]) -> None:
        """Copy each slot to its block: {block: slot}. What reads the blocks next sees them."""
        for blocks, slots in self._groups(slot_of):
            self._await_staging()
            ids = self._ids(blocks)  # before the wait: nothing here may hold the host up
            arriving = []
            with self._side():
                for kept in self.tensors:
                    shape = (len(slots), *kept.shape[1:])
                    staged = torch.empty(shape, dtype=kept.dtype, device=ids.device)
                    for place, slot in enumerate(slots):
                        staged[place].copy_(kept[slot], non_blocking=True)
                    arriving.append(staged)
            if self.stream is not None:
                torch.cuda.current_stream(ids.device).wait_stream(self.stream)
            for tensor, staged in zip(self.device_tensors, arriving, strict=True):
                tensor.index_copy_(2, ids, staged.movedim(0, 2))
            if self.stream is not None:
                self._note(arriving, torch.cuda.current_stream(ids.device))

    def _note(self, staged: Sequence[Tensor], stream: torch.cuda.Stream) -> None:
        """Keep staging memory until a stream has come this far."""
        for tensor in staged:
            tensor.record_stream(stream)
        self._under_way.append(stream.record_event())

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
        return torch.tensor(ids).to(self.device_tensors[0].device, non_blocking=True)

    def close(self) -> None:
        """Wait for what is under way and give the memory back."""
        if self.stream is not None:
            self.stream.synchronize()
        self.tensors = [tensor.new_empty(0) for tensor in self.tensors]
        self.device_tensors = [tensor.new_empty(0) for tensor in self.device_tensors]
        self._under_way.clear()
