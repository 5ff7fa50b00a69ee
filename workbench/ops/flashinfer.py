"""The Triton backend with FlashInfer's attention over the paged cache.

Decodes and chunks go to FlashInfer's two paged wrappers, planned once a step for all layers of a
shape; everything else, the writing of keys and values too, is our kernels'. FlashInfer is no
dependency of ours: `pip install flashinfer-python`. It compiles its kernels with nvcc and ninja,
which is done when an engine is built. Asked for by name; `auto` does not take it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from workbench.config import ModelConfig
from workbench.errors import ConfigError, KernelFailed, telling_line
from workbench.ops.flashinfer_plans import Kind, Plans, Shape
from workbench.ops.kernel_set import shapes_of
from workbench.ops.requirements import require_flashinfer
from workbench.ops.triton import TritonBackend
from workbench.ops.triton_rows import Prepared, Rows

HEAD_DIMS = (64, 128, 256)
_HALVES = (torch.bfloat16, torch.float16)
_FIX = 'Use backend="triton".'


class TritonWithFlashInfer(TritonBackend):
    """Our kernels, but for attention over a float cache, which is FlashInfer's.

    Left to our kernels, and counted in `describe()`: rows without a cache, trees of drafts, and
    8-bit caches (they have a scale per token; FlashInfer takes one per tensor). No CUDA graph can
    hold a plan, so decodes are launched one by one. `plans.chunks_by` names FlashInfer's kernel.
    """

    name = "triton+flashinfer"

    def __init__(self, device: torch.device) -> None:
        """Raise `ConfigError` where FlashInfer or our kernels cannot run, saying what would."""
        require_flashinfer(device)
        super().__init__(device)
        self.capturable = False
        self.left: Counter[str] = Counter()
        self.taken: Counter[str] = Counter()
        self.plans = Plans(device)

    def describe(self) -> dict[str, Any]:
        """Return what the Triton backend says, and which calls of a layer went where."""
        import flashinfer

        own: dict[str, Any] = {"version": flashinfer.__version__, **self.taken}
        if self.left:
            own["left to our kernels"] = dict(self.left)
        return {**super().describe(), "flashinfer": own}

    def check_model(self, model: ModelConfig, block_size: int) -> None:
        """Raise `ConfigError` for a model that neither takes; compile FlashInfer's kernels for it.

        That takes minutes the first time on a machine.
        """
        super().check_model(model, block_size)
        refuse_model(model)
        dtype, sizes = getattr(torch, model.dtype), (model.num_heads, model.num_kv_heads)
        for window in dict.fromkeys(model.windows or (None,)):
            shape = Shape(*sizes, model.head_dim, block_size, dtype, 1.0, window)
            try:
                with torch.cuda.device(self.device):
                    self.plans.compile(shape)
            except Exception as error:
                problem = f"FlashInfer does not compile its kernels here: {compiler_line(error)}"
                fix = f"It needs nvcc of torch's CUDA version, a C++ compiler and ninja. {_FIX}"
                raise ConfigError("backend", self.name, problem, fix) from error

    def _decode(
        self, q: Tensor, kv: Tensor | None, prepared: Prepared, settings: Any, out: Tensor
    ) -> None:
        count = prepared.num_decodes
        if not self._takes(q, kv, settings):
            super()._decode(q, kv, prepared, settings, out)
            return
        assert kv is not None, "`_takes` was asked"
        self._attend("decodes", q[:count], kv, prepared.decodes, settings, out[:count])

    def _chunks(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kv: Tensor | None,
        scales: Tensor | None,
        rows: Rows,
        fresh: bool,
        settings: Any,
        out: Tensor,
    ) -> None:
        if not self._takes(q, kv, settings):
            super()._chunks(q, k, v, kv, scales, rows, fresh, settings, out)
            return
        assert kv is not None, "`_takes` was asked"
        tokens = slice(rows.first, rows.first + rows.num_tokens)
        self._attend("chunks", q[tokens], kv, rows, settings, out[tokens])

    def _takes(self, q: Tensor, kv: Tensor | None, settings: Any) -> bool:
        """Whether FlashInfer takes these rows; counts the reason if it does not."""
        reason = why_not(q, kv, tree="ancestors" in settings)
        if reason:
            self.left[reason] += 1
        return not reason

    def _attend(
        self, kind: Kind, q: Tensor, kv: Tensor, rows: Rows, settings: Any, out: Tensor
    ) -> None:
        """Attend from q [T, H, D] over kv [2, blocks, block_size, K, D] into out [T, H, D]."""
        _, _, block_size, kv_heads, dim = kv.shape
        how = (settings["scale"], settings["window"])
        shape = Shape(q.shape[1], kv_heads, dim, block_size, q.dtype, *how)
        try:
            with torch.cuda.device(self.device):
                self.plans.of(kind, rows, shape).run(q, kv.unbind(0), out=out)
        except Exception as error:
            shapes = shapes_of({"q": q, "kv": kv})
            raise KernelFailed(f"flashinfer {kind}", shapes, error, _FIX) from error
        self.taken[kind] += 1


def why_not(q: Tensor, kv: Tensor | None, *, tree: bool = False) -> str:
    """Return why FlashInfer cannot attend from queries [T, H, D] over a layer's kv; empty if it
    can."""
    if kv is None:
        return "there is no cache"
    if kv.dtype != q.dtype:
        return f"a cache of {_name(kv.dtype)}"
    if q.dtype not in _HALVES:
        return f"queries of {_name(q.dtype)}"
    if q.shape[2] not in HEAD_DIMS:
        return f"heads of {q.shape[2]}"
    return "a tree of drafts" if tree else ""


def refuse_model(model: ModelConfig) -> None:
    """Raise `ConfigError` for a model of which FlashInfer could attend in no layer."""
    name, problem = TritonWithFlashInfer.name, ""
    if model.head_dim not in HEAD_DIMS:
        known = ", ".join(map(str, HEAD_DIMS))
        problem = f"FlashInfer takes heads of {known}, and the model's have {model.head_dim}"
    elif getattr(torch, model.dtype) not in _HALVES:
        problem = f"FlashInfer takes bfloat16 and float16, and the model is {model.dtype}"
    if problem:
        raise ConfigError("backend", name, problem, _FIX)


def compiler_line(error: BaseException) -> str:
    """Return the line of a failed build that says most: a compiler's first error, if it has one."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if "error: " in line), telling_line(error))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
