"""The Llama family: Llama 1 to 3, Mistral and Qwen2, which differ only in what their configs say.

What tells them apart is data (`_DIALECTS`, and what a config states of biases, windows, head sizes,
tied heads and rope scaling); the layers are the same. Loaded through `workbench.models.load_model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from workbench.batch import ForwardContext
from workbench.config import ModelConfig
from workbench.errors import ConfigError
from workbench.layers import DecoderLayer, Embedding, Linear, RMSNorm, RotaryEmbedding
from workbench.models import hf as read
from workbench.models.base import DecoderLM
from workbench.models.weights import WeightRule


class _Dialect(NamedTuple):
    """How transformers' class of an architecture reads its config.

    defaults: what a key means that config.json leaves out. windows: which layers have the sliding
    window. Biases: always, never, or by the config key named.
    """

    defaults: dict[str, Any]
    windows: Literal["none", "all", "by layer"]
    qkv_bias: bool | str
    output_bias: bool | str
    mlp_bias: bool | str


_DIALECTS = MappingProxyType(
    {
        "LlamaForCausalLM": _Dialect(
            {"bos_token_id": 1, "eos_token_id": 2},
            windows="none",
            qkv_bias="attention_bias",
            output_bias="attention_bias",
            mlp_bias="mlp_bias",
        ),
        "MistralForCausalLM": _Dialect(
            {
                "bos_token_id": 1,
                "eos_token_id": 2,
                "num_key_value_heads": 8,
                "sliding_window": 4096,
            },
            windows="all",
            qkv_bias=False,
            output_bias=False,
            mlp_bias=False,
        ),
        "MixtralForCausalLM": _Dialect(
            {
                "bos_token_id": 1,
                "eos_token_id": 2,
                "num_key_value_heads": 8,
                "sliding_window": None,
            },
            windows="all",
            qkv_bias=False,
            output_bias=False,
            mlp_bias=False,
        ),
        "Qwen2ForCausalLM": _Dialect(
            {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
            windows="by layer",
            qkv_bias=True,
            output_bias=False,
            mlp_bias=False,
        ),
    }
)


class LlamaForCausalLM(DecoderLM):
    """Pre-norm decoder: embedding, layers of attention and gated MLP, norm, head."""

    architectures: ClassVar[tuple[str, ...]] = (
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
    )
    weight_rules: ClassVar[tuple[WeightRule, ...]] = (
        WeightRule("model.embed_tokens.weight", "embedding.weight"),
        *(
            WeightRule(
                f"model.layers.{{layer}}.self_attn.{part}_proj.{kind}",
                f"layers.{{layer}}.attention.qkv_proj.{kind}",
                part,
            )
            for kind in ("weight", "bias")
            for part in ("q", "k", "v")
        ),
        *(
            WeightRule(
                f"model.layers.{{layer}}.mlp.{part}_proj.{kind}",
                f"layers.{{layer}}.mlp.gate_up_proj.{kind}",
                part,
            )
            for kind in ("weight", "bias")
            for part in ("gate", "up")
        ),
        *(
            WeightRule(f"model.layers.{{layer}}.{source}", f"layers.{{layer}}.{target}")
            for source, target in (
                ("self_attn.o_proj.weight", "attention.o_proj.weight"),
                ("self_attn.o_proj.bias", "attention.o_proj.bias"),
                ("mlp.down_proj.weight", "mlp.down_proj.weight"),
                ("mlp.down_proj.bias", "mlp.down_proj.bias"),
                ("input_layernorm.weight", "attention_norm.weight"),
                ("post_attention_layernorm.weight", "mlp_norm.weight"),
            )
        ),
        WeightRule("model.norm.weight", "norm.weight"),
        WeightRule("lm_head.weight", "head.weight"),
    )
    ignored_weights: ClassVar[tuple[str, ...]] = ("rotary_emb.inv_freq",)
    tied_weights: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"lm_head.weight": "model.embed_tokens.weight"}
    )

    def __init__(self, config: ModelConfig) -> None:
        """Make the layers with uninitialised weights: see `load_model` and `init_weights`."""
        super().__init__(config)
        self.embedding = Embedding(config.vocab_size, config.hidden_size)
        self.rope = RotaryEmbedding(config)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_head()

    def forward(self, token_ids: Tensor, ctx: ForwardContext) -> Tensor:
        """Map token ids [T] to hidden states after the final norm [T, hidden]."""
        rope = self.rope(ctx.positions, self._rope_lens(ctx), ctx.backend)
        x: Tensor = self.embedding(token_ids, ctx)
        residual: Tensor | None = None
        for layer in self.layers:
            x, residual = layer(x, residual, rope, ctx)
        x, _ = self.norm(x, residual, ctx)
        return x

    def _rope_lens(self, ctx: ForwardContext) -> Tensor | None:
        """Return the lengths that `dynamic` scaling rotates for; None for every other kind.

        Without a cache a row is a whole sequence, rotated for its own length, as transformers does
        with a sequence it is given at once. With a cache only the plan knows how long the prompt
        was.
        """
        if not self.needs_rope_lens or ctx.rope_lens is not None:
            return ctx.rope_lens
        if ctx.kv is not None:
            fix = "Fill it with max(prompt length, position + 1) per token."
            problem = "dynamic rope scaling needs it beside a KV cache"
            raise ConfigError("ForwardContext.rope_lens", None, problem, fix)
        lens = torch.tensor(ctx.query_lens)
        return lens.repeat_interleave(lens).to(ctx.positions.device)

    @classmethod
    def weight_parts(cls, config: ModelConfig) -> dict[str, slice]:
        """Return the rows of q, k, v in `qkv_proj` and of gate, up in `gate_up_proj`."""
        q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        inner = config.intermediate_size
        return {
            "q": slice(0, q_rows),
            "k": slice(q_rows, q_rows + kv_rows),
            "v": slice(q_rows + kv_rows, q_rows + 2 * kv_rows),
            "gate": slice(0, inner),
            "up": slice(inner, 2 * inner),
        }

    @classmethod
    def config_from_hf(cls, hf: Mapping[str, Any]) -> ModelConfig:
        """Return what a `config.json` states. Raises `ConfigError` for what cannot run."""
        architecture, dialect = _dialect(hf)
        hf = {**dialect.defaults, **hf}
        _refuse_unsupported(hf)
        hidden_size = read.whole(hf, "hidden_size")
        num_layers = read.whole(hf, "num_hidden_layers")
        num_heads = read.whole(hf, "num_attention_heads")
        theta, scaling = read.rope(hf)
        bos = read.token_ids(hf, "bos_token_id")
        config = ModelConfig(
            architecture=architecture,
            vocab_size=read.whole(hf, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=read.whole(hf, "intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=read.whole(hf, "num_key_value_heads", num_heads),
            head_dim=read.whole(hf, "head_dim", hidden_size // num_heads),
            context=read.context(hf, scaling),
            norm_eps=read.positive(hf, "rms_norm_eps", 1e-6),
            activation=read.activation(hf),
            rope_theta=theta,
            rope_scaling=scaling,
            windows=_windows(dialect, hf, num_layers),
            qkv_bias=_bias(dialect.qkv_bias, hf),
            output_bias=_bias(dialect.output_bias, hf),
            mlp_bias=_bias(dialect.mlp_bias, hf),
            tied_head=read.flag(hf, "tie_word_embeddings"),
            bos_token_id=bos[0] if bos else None,
            eos_token_ids=read.token_ids(hf, "eos_token_id"),
            dtype=read.dtype_name(hf) or "float32",
        )
        _check_heads(config)
        return config


def _dialect(hf: Mapping[str, Any]) -> tuple[str, _Dialect]:
    stated = hf.get("architectures") or []
    for name in stated:
        if name in _DIALECTS:
            return name, _DIALECTS[name]
    known = f"Known: {', '.join(_DIALECTS)}."
    raise ConfigError("config.json: architectures", stated, "not of the Llama family", known)


def _refuse_unsupported(hf: Mapping[str, Any]) -> None:
    if hf.get("quantization_config"):
        raise ConfigError(
            "config.json: quantization_config",
            hf["quantization_config"],
            "quantized checkpoints are not read",
            "Load the unquantized model.",
        )


def _check_heads(config: ModelConfig) -> None:
    if config.num_heads % config.num_kv_heads:
        raise ConfigError(
            "config.json: num_key_value_heads",
            config.num_kv_heads,
            f"does not divide num_attention_heads={config.num_heads}",
            "Restore both from the model.",
        )
    if config.head_dim % 2 or config.head_dim < 4:
        raise ConfigError(
            "config.json: head_dim",
            config.head_dim,
            "rotary embedding needs an even size of at least 4",
            "Restore hidden_size, num_attention_heads and head_dim from the model.",
        )


def _bias(rule: bool | str, hf: Mapping[str, Any]) -> bool:
    return read.flag(hf, rule) if isinstance(rule, str) else rule


def _windows(dialect: _Dialect, hf: Mapping[str, Any], num_layers: int) -> tuple[int | None, ...]:
    """Return each layer's sliding window in tokens; empty where no layer has one."""
    used = dialect.windows == "all" or (
        dialect.windows == "by layer" and read.flag(hf, "use_sliding_window")
    )
    stated = used and hf["sliding_window"] is not None
    window = read.whole(hf, "sliding_window") if stated else None
    first = read.whole(hf, "max_window_layers", least=0) if dialect.windows == "by layer" else 0
    usual = [
        "full_attention" if window is None or layer < first else "sliding_attention"
        for layer in range(num_layers)
    ]
    kinds = hf.get("layer_types") or usual
    if kinds != usual:
        _check_layer_types(kinds, dialect, window, num_layers)
    windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return windows if any(windows) else ()


def _check_layer_types(kinds: Any, dialect: _Dialect, window: int | None, num_layers: int) -> None:
    problem = None
    if dialect.windows != "by layer":
        problem = "this architecture has one kind of attention in all layers"
    elif not isinstance(kinds, list) or len(kinds) != num_layers:
        problem = f"must list one kind for each of {num_layers} layers"
    elif not set(kinds) <= {"full_attention", "sliding_attention"}:
        problem = "only full_attention and sliding_attention run here"
    elif window is None and "sliding_attention" in kinds:
        problem = "names sliding layers, but no sliding window is in use"
    if problem:
        fix = "Restore it, use_sliding_window and sliding_window from the model."
        raise ConfigError("config.json: layer_types", kinds, problem, fix)
