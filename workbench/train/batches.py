"""Training windows drawn from the token array, the same for the same seed and step.

Called by the training loop. The whole array lies on the device; a batch is a gather. Nothing here
keeps a position: what a step sees is a function of its number, so a resumed run goes on exactly.
"""

from __future__ import annotations

import numpy as np
import torch

from workbench.data.token_arrays import TokenArray


class Windows:
    """Windows of `context + 1` tokens over a token array.

    Every epoch shifts the grid of windows by a random offset and visits it in a random order.
    """

    def __init__(self, tokens: TokenArray, context: int, seed: int, device: torch.device) -> None:
        self.context, self.seed = context, seed
        self.per_epoch = (len(tokens) - 1) // context - 1
        if self.per_epoch < 1:
            raise ValueError(f"{len(tokens)} tokens are too few for windows of {context}")
        signed = np.ascontiguousarray(tokens).view(np.int16)  # ids stay below 2**15
        self.tokens = torch.from_numpy(signed.copy()).to(device)
        self._span = torch.arange(context + 1, device=device)
        self._epoch = -1
        self._order = np.zeros(0, np.int64)

    def batch(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets `[count, context]` of the run's windows from number `first` on."""
        starts = np.array([self._start(number) for number in range(first, first + count)])
        offsets = torch.from_numpy(starts).to(self.tokens.device, non_blocking=True)
        window = self.tokens[offsets[:, None] + self._span].long()
        return window[:, :-1], window[:, 1:]

    def _start(self, number: int) -> int:
        epoch, place = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            generator = np.random.default_rng((self.seed, epoch))
            shift = generator.integers(self.context)
            self._order = generator.permutation(self.per_epoch) * self.context + shift
            self._epoch = epoch
        return int(self._order[place])
