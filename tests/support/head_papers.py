"""Draft heads written down from their papers: plain torch over dicts of published tensors.

Whole sequences, no cache, one sequence at a time, nothing of the package. `wrong` names a mistake
that the text of a paper or of a checkpoint invites; a golden test must tell each from the right
reading.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight."""
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def swish(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return x * torch.sigmoid(x)


def turned(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotary embedding of [T, heads, D]: dimension i turns with i + D/2."""
    half = x.shape[-1] // 2
    angle = positions[:, None].double() / theta ** (torch.arange(half).double() / half)
    cos, sin = angle.cos().float()[:, None], angle.sin().float()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k / sqrt(D)) v per head, with key heads shared; mask [queries, keys]."""
    group = q.shape[1] // k.shape[1]
    out = torch.empty_like(q)
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head // group].T / math.sqrt(q.shape[-1])
        out[:, head] = scores.masked_fill(~mask, -math.inf).softmax(-1) @ v[:, head // group]
    return out


def heads(x: Tensor, weight: Tensor, dim: int) -> Tensor:
    """x W^T as [T, heads, D]."""
    return (x @ weight.T).view(len(x), -1, dim)


def attention(w: Weights, name: str, x: Tensor, c: dict, positions: Tensor, mask: Tensor) -> Tensor:
    """A Llama attention at `name`, over all of x [T, width]."""
    dim = c["head_dim"]
    q, k, v = (heads(x, w[f"{name}.{part}_proj.weight"], dim) for part in "qkv")
    if f"{name}.q_norm.weight" in w:
        q = rms(q, w[f"{name}.q_norm.weight"], c["rms_norm_eps"])
        k = rms(k, w[f"{name}.k_norm.weight"], c["rms_norm_eps"])
    theta = c["rope_theta"]
    out = attend(turned(q, positions, theta), turned(k, positions, theta), v, mask)
    return out.flatten(1) @ w[f"{name}.o_proj.weight"].T


def mlp(w: Weights, name: str, x: Tensor) -> Tensor:
    """down(silu(gate) * up)."""
    gate, up = x @ w[f"{name}.gate_proj.weight"].T, x @ w[f"{name}.up_proj.weight"].T
    return (swish(gate) * up) @ w[f"{name}.down_proj.weight"].T


def causal(n: int) -> Tensor:
    """[n, n], True where a query may look."""
    return torch.ones(n, n, dtype=torch.bool).tril()


def layer(w: Weights, name: str, x: Tensor, c: dict, positions: Tensor, mask: Tensor) -> Tensor:
    """A whole pre-norm decoder layer."""
    eps = c["rms_norm_eps"]
    normed = rms(x, w[f"{name}.input_layernorm.weight"], eps)
    x = x + attention(w, f"{name}.self_attn", normed, c, positions, mask)
    normed = rms(x, w[f"{name}.post_attention_layernorm.weight"], eps)
    return x + mlp(w, f"{name}.mlp", normed)


def medusa(w: Weights, hidden: Tensor, num_heads: int, num_layers: int, wrong: str = "") -> Tensor:
    """[num_heads, T, vocab]."""
    out = []
    for i in range(num_heads):
        x = hidden
        for j in range(1 if wrong == "one block" else num_layers):
            first = 0 if wrong == "always the first block" else j
            name = f"{i}.{first}.linear"
            inner = swish(x @ w[f"{name}.weight"].T + w[f"{name}.bias"])
            x = inner if wrong == "no residual" else x + inner
        out.append(x @ w[f"{i}.{num_layers}.weight"].T)
    return torch.stack(out)


def hydra(
    w: Weights, state: Tensor, tokens: list[int], embed: Tensor, num_layers: int, wrong: str = ""
) -> Tensor:
    """Logits [vocab] of head len(tokens) - 1, for one prefix state [H] and tokens x1, x2, …."""
    i = len(tokens) - 1
    embedded = [embed[t] for t in tokens]
    if wrong == "tokens newest first":
        embedded = embedded[::-1]
    parts = [*embedded, state] if wrong == "state last" else [state, *embedded]
    x = torch.cat(parts)
    for j in range(num_layers):
        name = f"hydra_mlp.{i}.{2 * j + 1}"
        inner = swish(w[f"{name}.linear.weight"] @ x + w[f"{name}.linear.bias"])
        if j == 0 and wrong != "no res_connection":
            x = w[f"{name}.res_connection.weight"] @ x + w[f"{name}.res_connection.bias"] + inner
        else:
            x = inner if j == 0 else x + inner
    head = f"hydra_lm_head.{i}.1"
    bias = 0 if wrong == "head without bias" else w[f"{head}.bias"]
    return w[f"{head}.weight"] @ x + bias


def hydra_prefix(w: Weights, states: Tensor, c: dict, wrong: str = "") -> Tensor:
    """What Hydra++'s heads read, of the target's states [T, H]."""
    name, positions = "prefix_embeding_layer", torch.arange(len(states))
    x = layer(w, f"{name}.layers.0", states, c, positions, causal(len(states)))
    return x if wrong == "no final norm" else rms(x, w[f"{name}.norm.weight"], c["rms_norm_eps"])


def eagle1(w: Weights, tokens: Tensor, features: Tensor, c: dict, wrong: str = "") -> Tensor:
    """Features after tokens[t], which came after features[t]: [T, H]."""
    embedded = w["embed"][tokens]
    pair = (features, embedded) if wrong == "feature first" else (embedded, features)
    x = torch.cat(pair, -1) @ w["fc.weight"].T
    if "fc.bias" in w and wrong != "no fc bias":
        x = x + w["fc.bias"]
    n, eps = len(x), c["rms_norm_eps"]
    inner = rms(x, torch.ones_like(x[0]), eps) if wrong == "an input norm" else x
    x = x + attention(w, "layers.0.self_attn", inner, c, torch.arange(n), causal(n))
    normed = rms(x, w["layers.0.post_attention_layernorm.weight"], eps)
    x = x + mlp(w, "layers.0.mlp", normed)
    return rms(x, torch.ones_like(x[0]), eps) if wrong == "a final norm" else x


def eagle3_states(w: Weights, states: list[Tensor], flags: set[str], eps: float) -> Tensor:
    """g [T, H] of the three states."""
    if "fc_norm" in flags:
        states = [rms(s, w[f"fc_norm.{i}.weight"], eps) for i, s in enumerate(states)]
    x = torch.cat(states, -1)
    if "norm_before_fc" in flags:
        x = rms(x, w["input_norm.weight"], eps)
    return x @ w["fc.weight"].T


def eagle3(
    w: Weights, tokens: Tensor, g: Tensor, c: dict, flags: set[str], wrong: str = ""
) -> Tensor:
    """Outputs before the final norm, of tokens[t] behind states or outputs g[t]: [T, H]."""
    eps, n = c["rms_norm_eps"], len(g)
    a = rms(w["embed"][tokens], w["midlayer.input_layernorm.weight"], eps)
    if wrong == "no input_layernorm":
        a = w["embed"][tokens]
    b = rms(g, w["midlayer.hidden_norm.weight"], eps)
    pair = (b, a) if wrong == "state first" else (a, b)
    x = attention(w, "midlayer.self_attn", torch.cat(pair, -1), c, torch.arange(n), causal(n))
    x = x + (b if "norm_before_residual" in flags else g)
    return x + mlp(w, "midlayer.mlp", rms(x, w["midlayer.post_attention_layernorm.weight"], eps))


def mtp(w: Weights, n: dict, tokens: Tensor, states: Tensor, c: dict, wrong: str = "") -> Tensor:
    """Outputs before the final norm; `n` gives the published names of the parts."""
    eps, count = c["rms_norm_eps"], len(states)
    embedded = w["embed"][tokens].clone()
    if n["zero_first"] and wrong != "embedding kept at position 0":
        embedded[0] = 0
    a = rms(embedded, w[n["token_norm"]], eps)
    b = rms(states, w[n["state_norm"]], eps)
    if wrong == "no hnorm":
        b = states
    pair = (b, a) if wrong == "state first" else (a, b)
    x = torch.cat(pair, -1) @ w[n["fc"]].T
    return layer(w, n["block"], x, c, torch.arange(count), causal(count))


def dflash(
    w: Weights, context: Tensor, block: Tensor, c: dict, num_layers: int, wrong: str = ""
) -> Tensor:
    """Outputs [B, H] after the final norm of a block of token ids behind context states [T, …]."""
    eps, dim, theta = c["rms_norm_eps"], c["head_dim"], c["rope_theta"]
    target = context @ w["fc.weight"].T
    if wrong != "no hidden_norm":
        target = rms(target, w["hidden_norm.weight"], eps)
    x, t = w["embed"][block], len(context)
    positions = torch.arange(t + len(block))
    q_at = positions[t:] - (1 if wrong == "block one too early" else 0)
    k_at = torch.cat((positions[:t], q_at))
    mask = torch.ones(len(block), t + len(block), dtype=torch.bool)
    if wrong == "a causal block":
        mask[:, t:] = causal(len(block))
    for i in range(num_layers):
        name = f"layers.{i}"
        normed = rms(x, w[f"{name}.input_layernorm.weight"], eps)
        both = torch.cat((target, normed))
        q = heads(normed, w[f"{name}.self_attn.q_proj.weight"], dim)
        k, v = (heads(both, w[f"{name}.self_attn.{part}_proj.weight"], dim) for part in "kv")
        q = turned(rms(q, w[f"{name}.self_attn.q_norm.weight"], eps), q_at, theta)
        k_normed = rms(k, w[f"{name}.self_attn.k_norm.weight"], eps)
        if wrong == "k_norm on the block alone":
            k_normed = torch.cat((k[:t], k_normed[t:]))
        k = turned(k_normed, k_at, theta)
        x = x + attend(q, k, v, mask).flatten(1) @ w[f"{name}.self_attn.o_proj.weight"].T
        normed = rms(x, w[f"{name}.post_attention_layernorm.weight"], eps)
        x = x + mlp(w, f"{name}.mlp", normed)
    return rms(x, w["norm.weight"], eps)
