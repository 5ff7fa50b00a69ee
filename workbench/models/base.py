"""The model-definition API: what the engine needs of a decoder-only language model.

A family subclasses `DecoderLM`, builds its layers in `__init__`, and states as data how a
checkpoint's config and tensors map to them. A model never samples, never schedules and never owns a
KV cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from workbench.batch import ForwardContext
from workbench.config import ModelConfig
from workbench.describe import Described, human_bytes
from workbench.layers import Embedding, Linear
from workbench.models.weights import WeightRule

if TYPE_CHECKING:
    from workbench.models.tokenizer import Tokenizer


class DecoderLM(nn.Module, Described):
    """A decoder-only language model over packed tokens.

    Subclasses set `embedding` and `head` (a Linear without bias) and define `forward`.
    `architectures` are the names in `config.json` that the family reads; `weight_rules` maps
    checkpoint tensors to parameters; `ignored_weights` are name endings that checkpoints may hold
    and that mean nothing; `tied_weights` maps a tensor to the one it must equal where the head is
    tied. `fused_parameters` names what transformers holds as one parameter, by the end of its path
    in a layer -> the modules of a checkpoint, `{expert}` running. replayable: whether a pass is the
    same calls for any tokens, so that it can be captured. `tokenizer` is set by `load_model`, as
    is `source`, what it was asked for: a name or a folder.
    """

    architectures: ClassVar[tuple[str, ...]] = ()
    weight_rules: ClassVar[tuple[WeightRule, ...]] = ()
    ignored_weights: ClassVar[tuple[str, ...]] = ()
    tied_weights: ClassVar[Mapping[str, str]] = MappingProxyType({})
    fused_parameters: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})
    replayable: ClassVar[bool] = True

    config: ModelConfig
    embedding: Embedding
    head: Linear

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer: Tokenizer | None = None
        self.source = ""

    @classmethod
    def config_from_hf(cls, hf: Mapping[str, Any]) -> ModelConfig:
        """Return what a `config.json` states. Raises `ConfigError` for what cannot run."""
        raise NotImplementedError(f"{cls.__name__}.config_from_hf")

    @classmethod
    def weight_parts(cls, config: ModelConfig) -> dict[str, slice]:
        """Return which rows of a fused parameter each part named in `weight_rules` fills."""
        return {}

    def forward(self, token_ids: Tensor, ctx: ForwardContext) -> Tensor:
        """Map token ids [T] to hidden states after the final norm [T, hidden]."""
        raise NotImplementedError(f"{type(self).__name__}.forward")

    def logits(self, hidden: Tensor, ctx: ForwardContext) -> Tensor:
        """Map hidden states [R, hidden] to logits [R, vocab] in the model's dtype."""
        out: Tensor = self.head(hidden, ctx)
        return out

    @property
    def activation_points(self) -> tuple[str, ...]:
        """The modules whose output has a row for each token: what a request may keep of each.

        A family with modules that see only some of the tokens leaves those out.
        """
        named = ((name, module) for name, module in self.named_modules() if name)
        return tuple(
            name
            for name, module in named
            if name.split(".")[0] not in ("head", "rope") and not isinstance(module, nn.ModuleList)
        )

    def tie_head(self) -> None:
        """Make the head's weight the embedding's table (one parameter) where the config says so."""
        if self.config.tied_head:
            self.head.weight = self.embedding.weight

    @torch.no_grad()
    def init_weights(self, *, std: float = 0.02, seed: int = 0) -> None:
        """Fill a model that has no checkpoint: normal(0, std) matrices, zero biases, unit norms."""
        device = self.embedding.weight.device
        generator = torch.Generator(device=device).manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, std, generator=generator)
            elif name.endswith(".bias"):
                parameter.zero_()
            else:
                parameter.fill_(1.0)

    @property
    def needs_rope_lens(self) -> bool:
        """Whether `ForwardContext.rope_lens` must be filled: rotations depend on a length.

        A token at position p of a sequence with a prompt of P tokens takes the length max(P, p +
        1): the prompt is rotated for its whole length, every later token for the length it makes.
        """
        scaling = self.config.rope_scaling
        return scaling is not None and scaling.kind == "dynamic"

    def rope_scope(self, num_prompt_tokens: int) -> int | None:
        """Return the length a prompt's keys are rotated for, or None where they are as ever.

        KV blocks may only be shared between prompts of equal scope.
        """
        scaling = self.config.rope_scaling
        if scaling is None or scaling.kind != "dynamic":
            return None
        trained = scaling.original_context
        return None if trained is None or num_prompt_tokens <= trained else num_prompt_tokens

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are held in."""
        return self.embedding.weight.dtype

    @property
    def num_parameters(self) -> int:
        """Weights, a tied head counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def num_bytes(self) -> int:
        """Memory of weights and buffers in bytes, a tied head counted once."""
        tensors = [*self.parameters(), *self.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def describe(self) -> dict[str, Any]:
        """Return the model's shape and size, and where it lives."""
        config = self.config
        heads = f"{config.num_heads} query, {config.num_kv_heads} key/value, of {config.head_dim}"
        return {
            "family": config.architecture,
            "parameters": f"{self.num_parameters / 1e6:.1f} M",
            "bytes": human_bytes(self.num_bytes),
            "layers": config.num_layers,
            "heads": heads,
            "hidden": config.hidden_size,
            "vocabulary": config.vocab_size,
            "context": config.context,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
        }
