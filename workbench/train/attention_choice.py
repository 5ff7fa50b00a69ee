"""Which of PyTorch's attention kernels trains fastest on this device.

Called once by the trainer, on a GPU and on request. A kernel is only eligible if its output and
gradients agree with the flash kernel's; the choice and both times are printed.
"""

from __future__ import annotations

import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention


def fastest_attention(
    windows: int, context: int, num_heads: int, num_kv_heads: int, head_dim: int
) -> SDPBackend:
    """Time forward plus backward of each kernel on `[windows, heads, context, head_dim]`.

    The tensors lie in memory as the model's do: `[windows, context, heads, head_dim]`, transposed.
    """
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(windows, context, n, head_dim) for n in (num_heads, num_kv_heads, num_kv_heads)]
    inputs = [
        torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
        for shape in shapes
    ]
    reference, flash_time = _measure(SDPBackend.FLASH_ATTENTION, inputs)
    try:
        other, cudnn_time = _measure(SDPBackend.CUDNN_ATTENTION, inputs)
    except RuntimeError as error:  # not in this build, or not for these shapes
        print(f"attention: flash {flash_time * 1e3:.2f} ms; cudnn refused: {error}", flush=True)
        return SDPBackend.FLASH_ATTENTION
    worst = max(
        float((a - b).float().norm() / b.float().norm())
        for a, b in zip(other, reference, strict=True)
    )
    chosen = (
        SDPBackend.CUDNN_ATTENTION
        if worst < 0.02 and cudnn_time < 0.95 * flash_time
        else SDPBackend.FLASH_ATTENTION
    )
    print(
        f"attention: flash {flash_time * 1e3:.2f} ms, cudnn {cudnn_time * 1e3:.2f} ms, "
        f"relative difference {worst:.1e}: {chosen.name}",
        flush=True,
    )
    return chosen


def _measure(
    backend: SDPBackend, inputs: list[torch.Tensor], repeats: int = 5
) -> tuple[list[torch.Tensor], float]:
    """Output and gradients of one run, and the mean seconds of forward plus backward."""
    query, key, value = leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    with sdpa_kernel(backend):
        for repeat in range(repeats + 2):
            if repeat == 2:
                torch.cuda.synchronize()
                started = time.perf_counter()
            for leaf in leaves:
                leaf.grad = None
            output = scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=True
            )
            output.backward(inputs[0])  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / repeats
    grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
    return [output.detach(), *grads], seconds
