"""`Head`: what every drafting head has in common, and `SequentialHead`, which drafts step by step.

A head is a plain module beside a target model. It says which of the target's states it reads
(`needs`), and as data which tensors of a checkpoint fill which parameters (`rules`), so that
loading and saving are one map read both ways. A head never touches the target, and owns no cache.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from workbench.batch import ForwardContext
from workbench.config import ModelConfig
from workbench.describe import Described, human_bytes
from workbench.models.base import DecoderLM
from workbench.models.weights import Piece, WeightRule, expand
from workbench.speculation.heads.target import Target


class Head(nn.Module, Described):
    """A drafting head of a target model.

    kind: the family's name. needs: probe points of the target whose outputs, side by side in this
    order, are the head's states [T, sum of widths]; "" is the final norm's output. source: what a
    loader found, in words. copies: tensors that a checkpoint may hold and that are the target's.
    """

    kind: ClassVar[str]
    copies: tuple[str, ...] = ()
    needs: tuple[str, ...]

    def __init__(self, target: DecoderLM) -> None:
        super().__init__()
        self.target = Target(target)
        self.source = "made here"

    @abstractmethod
    def rules(self) -> list[WeightRule]:
        """Return which checkpoint tensor fills which parameter."""

    def decode(self, name: str, tensor: Tensor) -> Tensor:
        """Return what a parameter holds, of a tensor as it is published."""
        return tensor

    def encode(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor as it is published, of what the parameter holds; undoes `decode`."""
        return tensor

    def parts(self) -> dict[str, slice]:
        """Return the rows of fused parameters that `rules` name."""
        return {}

    def pieces(self) -> list[Piece]:
        """Return every tensor of a checkpoint with its shape and place; aliases come once."""
        shapes = {name: tuple(p.shape) for name, p in self.named_parameters()}
        return expand(self.rules(), self.parts(), shapes, 1)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (published name, tensor) of every weight: what a checkpoint of it holds."""
        parameters = dict(self.named_parameters())
        for piece in self.pieces():
            held = parameters[piece.target].detach()[piece.rows]
            yield piece.source, self.encode(piece.source, held)

    @torch.no_grad()
    def init_weights(self, *, std: float = 0.02, seed: int = 0) -> None:
        """Fill an untrained head: normal(0, std) matrices, zero biases, unit norms."""
        device = next(self.parameters()).device
        generator = torch.Generator(device=device).manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, std, generator=generator)
            elif name.endswith(".bias"):
                parameter.zero_()
            else:
                parameter.fill_(1.0)

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are held in."""
        return next(self.parameters()).dtype

    @property
    def num_bytes(self) -> int:
        """Memory of the head's own weights in bytes."""
        return sum(p.numel() * p.element_size() for p in self.parameters())

    def describe(self) -> dict[str, Any]:
        """Return the family, where it came from, what it reads and how large it is."""
        return {
            "kind": self.kind,
            "source": self.source,
            "reads": ", ".join(point or "final norm" for point in self.needs),
            "parameters": f"{sum(p.numel() for p in self.parameters()) / 1e6:.2f} M",
            "bytes": human_bytes(self.num_bytes),
        }


class SequentialHead(Head):
    """A head that makes each next state out of a token and the state before it.

    The pair (token i + 1, state of token i) makes an output; its `logits` are about token i + 2,
    and `carry` of it stands for the state of token i + 1: so the head goes on by itself.
    config: the shape of its own layers, `num_layers` of them.
    """

    config: ModelConfig

    @abstractmethod
    def forward(self, token_ids: Tensor, features: Tensor, ctx: ForwardContext) -> Tensor:
        """Map packed pairs, token ids [T] and features [T, hidden], to outputs [T, hidden]."""

    def features(self, states: Tensor, ctx: ForwardContext) -> Tensor:
        """Map the target's states at `needs` [T, sum of widths] to features [T, hidden]."""
        return states

    def carry(self, out: Tensor, ctx: ForwardContext) -> Tensor:
        """Return the feature that goes into the next step, of an output [T, hidden]."""
        return out

    @abstractmethod
    def logits(self, out: Tensor, ctx: ForwardContext) -> Tensor:
        """Map outputs [T, hidden] to logits [T, draft vocabulary]."""

    def target_ids(self, draft_ids: Tensor) -> Tensor:
        """Map ids of the draft vocabulary to the target's."""
        return draft_ids
