"""One step's work: `StepPlan` (what the scheduler decided) and `ForwardContext` (the same as
tensors).

A forward pass is a packed list of tokens, never a padded matrix. Rows are sequences; a row adds
`num_new` tokens at positions `start …`. Rows of a single token come first, so that a backend can
treat them as one batch of decodes. `Backend` is the contract between layers and `workbench.ops`.
"""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from workbench.lora_batch import LoRABackend, LoRABatch
from workbench.step_plan import StepPlan as StepPlan

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from workbench.config import ModelConfig


class Backend(LoRABackend, Protocol):
    """The operations a layer asks for. Implementations live in `workbench.ops`.

    Shapes: T packed tokens, H query heads, K key/value heads, D head dim.

    capturable: whether a pass of decodes alone can be captured in a CUDA graph. Then what it
    launches follows from the batch's size and `graph_key`; lengths, slots and tables are read on
    the device; and a row of length 0 with slot -1 reads and writes nothing.
    """

    name: str
    chosen_because: str  # empty unless `auto` chose this backend
    batch_invariant: bool  # whether a token's results have the same bits whatever the batch
    capturable: bool

    def check_model(self, model: ModelConfig, block_size: int) -> None:
        """Raise `ConfigError` for a model's shape, or a cache's blocks, that cannot run here."""

    def prepare(self, ctx: ForwardContext) -> Any:
        """Return what attention needs once per step (indices, masks); kept in `ctx.prepared`."""

    def graph_key(
        self, kv_lens: list[int], kv: Tensor, chunk_lens: Tokens[int] = (), num_tokens: int = 0
    ) -> Hashable:
        """Return what else decides the launches for decodes of these lengths over a layer's `kv`,
        and for rows of these lengths behind them with room for `num_tokens` new tokens.

        A graph is replayed for batches of an equal key alone. Asked of capturable backends only.
        """

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: int,
        ctx: ForwardContext,
        *,
        scale: float,
        rope: tuple[Tensor, Tensor] | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Write k, v [T, K, D] to the cache, attend from q [T, H, D] causally; return [T, H, D].

        rope: (cos, sin) that q and k are rotated by first, as by `rope`.
        """

    def embedding(self, token_ids: Tensor, weight: Tensor) -> Tensor:
        """Return the rows of weight [vocab, N] that token_ids [T] int64 name: [T, N]."""

    def angles(
        self, positions: Tensor, frequencies: Tensor, amplitude: float
    ) -> tuple[Tensor, Tensor]:
        """Return (cos, sin) times amplitude, each [T, D/2] float32, of the angles by which heads
        turn: positions [T] int64 times frequencies [D/2], or [T, D/2] where tokens differ."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x W^T + b [..., out] for x [..., in], weight [out, in] and bias [out]."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return x [T, N] over its root mean square, times weight [N]; statistics in float32."""

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return (rms_norm(x + residual), x + residual), both [T, N]."""

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """Return x [T, N] less its mean, over its spread, times weight [N], plus bias [N]."""

    def add_layer_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return (layer_norm(x + residual), x + residual), both [T, N]."""

    def rope(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate q [T, H, D] and k [T, K, D] by cos, sin [T, D/2] (halves convention of HF)."""

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """Return silu(gate) * up for gate_up [T, 2N] = [gate | up]."""

    def gelu_mul(self, gate_up: Tensor, *, tanh: bool) -> Tensor:
        """Return gelu(gate) * up for gate_up [T, 2N]; tanh: by its approximation with tanh."""


class TreeMasks(NamedTuple):
    """What the new tokens of rows `first_row` … see of each other, where not just those before.

    ancestors [N, W] int32, for the N tokens of these rows: bit j % 32 of word j // 32 says whether
    a token sees its row's new token j. They see all older ones.
    """

    first_row: int
    num_rows: int
    ancestors: Tensor


class EmbeddedRows(NamedTuple):
    """Embeddings in place of token ids: rows [E, hidden] for the packed positions [E] int64."""

    positions: Tensor
    rows: Tensor


@dataclass(slots=True)
class ForwardContext:
    """The packed batch as tensors, an argument of every layer's forward; built by `run.inputs`.

    T tokens in S rows. positions [T] int64; slot_mapping [T] int64, a token's slot in the KV
    tensors; block_tables [S, B] int32, padded with 0; query_starts [S + 1] and context_lens [S]
    int32. `query_lens` and `kv_lens` are the same numbers on the host (kv_lens counts the new
    tokens too). `kv` holds a tensor per layer, [2 (keys, values), num_blocks, block_size, K, D],
    and `kv_scales` the scales of an 8-bit cache, [2, num_blocks, K, block_size] float32.
    With `kv` None there is no cache and each row attends to its own new tokens (training, a bare
    model's forward). rope_lens [T]: the sequence length a token's rotation is made for; only for
    `dynamic` scaling. embeds: None where every token of the batch is one of the vocabulary. lora:
    None where no token goes through an adapter. padded: whether there may be tokens behind the last
    row's, which belong to nobody.

    A row's table holds what the row looks at: with a window its first slot need not be that of
    position 0, and `context_lens` and `kv_lens` count the keys from there on. So masks come from
    these lengths, never from `positions`: the last key is the row's last token. `trees`: the masks
    of rows whose new tokens are a tree, None where there are none. Where layers differ
    in that (a model with several KV groups), `by_layer` holds the context of each layer that is not
    of the first group; ask `of`. `first_layer` is one of the context's own layers.
    """

    backend: Backend
    positions: Tensor
    query_lens: list[int]
    kv_lens: list[int]
    num_decodes: int = 0
    query_starts: Tensor | None = None
    context_lens: Tensor | None = None
    slot_mapping: Tensor | None = None
    block_tables: Tensor | None = None
    kv: list[Tensor] | None = None
    kv_scales: list[Tensor] | None = None
    rope_lens: Tensor | None = None
    embeds: EmbeddedRows | None = None
    lora: LoRABatch | None = None
    trees: TreeMasks | None = None
    prepared: Any = None
    first_layer: int = 0
    padded: bool = False
    by_layer: list[ForwardContext | None] | None = None

    @property
    def any_kv(self) -> Tensor:
        """A tensor of `kv` in the context's group: all of the group have its shape and dtype."""
        assert self.kv is not None, "a context without a cache"
        return self.kv[self.first_layer]

    def scales(self, layer: int) -> Tensor | None:
        """Return the scales of a layer's 8-bit keys and values; None for a float cache."""
        return None if self.kv_scales is None else self.kv_scales[layer]

    def of(self, layer: int) -> ForwardContext:
        """Return the context with the slots, tables and lengths of a layer's KV group."""
        other = None if self.by_layer is None else self.by_layer[layer]
        return self if other is None else other

    def at(self, positions: Tokens[int]) -> ForwardContext:
        """Return the context of the tokens at these packed positions, for what comes after the
        layers: attention is over, so only their adapters are chosen."""
        lora = self.lora
        return self if lora is None else replace(self, lora=lora.at(positions, self.backend))

    @classmethod
    def without_cache(
        cls, query_lens: list[int], backend: Backend, device: torch.device | str = "cpu"
    ) -> ForwardContext:
        """Return a context for whole sequences of these lengths, packed, with no KV cache."""
        import torch

        positions = torch.cat([torch.arange(n) for n in query_lens]).to(device)
        lens = torch.tensor([0, *query_lens], dtype=torch.int32)
        ctx = cls(
            backend=backend,
            positions=positions,
            query_lens=query_lens,
            kv_lens=query_lens,
            query_starts=lens.cumsum(0, dtype=torch.int32).to(device),
            context_lens=lens[1:].to(device),
        )
        ctx.prepared = backend.prepare(ctx)
        return ctx
