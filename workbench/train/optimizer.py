"""Float32 master weights behind a bfloat16 model, with their optimizers and moving average.

Called by the training loop. Muon takes the matrices inside the layers, AdamW the embedding and the
norms. The model's own parameters are copies that `step` refreshes; nothing else writes to them.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any, Literal

import torch
from torch import nn

OptimizerName = Literal["muon", "adamw"]


class MasterWeights:
    """Float32 copies of a model's parameters, what updates them, and their moving average."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerName,
        weight_decay: float = 0.1,
        ema_decay: float = 0.999,
        max_grad_norm: float = 1.0,
    ) -> None:
        self.ema_decay, self.max_grad_norm = ema_decay, max_grad_norm
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters = [parameter for _, parameter in model.named_parameters()]
        self.masters = [nn.Parameter(p.detach().float().clone()) for p in self.parameters]
        self.averages = [master.detach().clone() for master in self.masters]
        pairs = list(zip(self.names, self.masters, strict=True))
        hidden = {name for name in self.names if ".layers." in name}
        self.optimizers = new_optimizers(pairs, hidden, optimizer, weight_decay)

    def accumulate(self, share: float) -> None:
        """Add `share` of the model's gradients to the masters' and clear the model's."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        assert len(grads) == len(self.parameters)
        scaled = torch._foreach_mul([grad.float() for grad in grads], share)
        if self.masters[0].grad is None:
            for master, grad in zip(self.masters, scaled, strict=True):
                master.grad = grad
        else:
            torch._foreach_add_(
                [master.grad for master in self.masters if master.grad is not None], scaled
            )
        for parameter in self.parameters:
            parameter.grad = None

    def step(self, rate: float, number: int) -> torch.Tensor:
        """One update at learning rate `rate`; returns the gradients' norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self.masters, self.max_grad_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(self.ema_decay, (1 + number) / (10 + number))  # short memory at the start
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, [m.detach() for m in self.masters], 1 - decay)
        self.load_into_model(self.masters)
        return norm

    @torch.no_grad()
    def load_into_model(self, weights: Sequence[torch.Tensor]) -> None:
        """Write `weights` (the masters or the averages) into the model's parameters."""
        targets: list[torch.Tensor] = [*self.parameters]
        torch._foreach_copy_(targets, list(weights))

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs."""
        return {
            "names": self.names,
            "masters": [master.detach() for master in self.masters],
            "averages": self.averages,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; the model must have the same parameters."""
        if state["names"] != self.names:
            raise ValueError("the saved state belongs to a model of another shape")
        torch._foreach_copy_([m.detach() for m in self.masters], state["masters"])
        torch._foreach_copy_(self.averages, state["averages"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.load_into_model(self.masters)


def new_optimizers(
    pairs: Sequence[tuple[str, nn.Parameter]],
    hidden_names: Container[str],
    optimizer: OptimizerName,
    weight_decay: float,
) -> list[torch.optim.Optimizer]:
    """Return what updates named parameters, at rate 0 as yet.

    Muon takes the matrices among `hidden_names`, AdamW the rest; or AdamW takes everything.
    """
    hidden = [m for name, m in pairs if m.ndim == 2 and name in hidden_names]
    other_matrices = [m for name, m in pairs if m.ndim == 2 and name not in hidden_names]
    vectors = [m for _, m in pairs if m.ndim < 2]
    fused = pairs[0][1].is_cuda
    if optimizer == "adamw":
        groups = [
            {"params": hidden + other_matrices, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return [torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8, fused=fused)]
    groups = [
        {"params": other_matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    # updates of AdamW's size, so that one learning rate serves both
    muon = torch.optim.Muon(
        hidden, lr=0.0, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8, fused=fused)]
