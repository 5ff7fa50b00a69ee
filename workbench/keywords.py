"""Names that nothing has: an error with the nearest one, and with what it is called here.

Keywords of frozen settings (`known_keywords`) and of functions that users call (`known_arguments`);
what a module lacks (`unknown_name`).
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import Any, TypeVar, cast

from workbench.errors import InvalidValue

C = TypeVar("C")
F = TypeVar("F", bound=Callable[..., Any])

# What vLLM, TensorRT-LLM and transformers call it -> what it is called here.
NAMES_ELSEWHERE = {
    "max_num_seqs": "max_sequences",
    "max_batch_size": "max_sequences",
    "max_num_batched_tokens": "max_batch_tokens",
    "max_num_tokens": "max_batch_tokens",
    "enable_prefix_caching": "prefix_reuse",
    "enable_block_reuse": "prefix_reuse",
    "enable_chunked_prefill": "chunked_prefill",
    "num_gpu_blocks_override": "num_blocks",
    "gpu_memory_utilization": "num_blocks",
    "free_gpu_memory_fraction": "num_blocks",
    "tokens_per_block": "block_size",
    "kv_cache_dtype": "cache_dtype",
    "swap_space": "host_cache_bytes",
    "host_cache_size": "host_cache_bytes",
    "scheduling_policy": "policy",
    "attention_backend": "backend",
    "attn_backend": "backend",
    "enforce_eager": "cuda_graphs",
    "torch_dtype": "dtype",
    "speculative_model": "proposer",
    "speculative_config": "proposer",
    "max_new_tokens": "max_tokens",
    "num_beams": "beam_width",
    "use_beam_search": "beam_width",
    "num_return_sequences": "n",
    "do_sample": "temperature",
    "random_seed": "seed",
    "stop_strings": "stop",
    "end_id": "stop_token_ids",
    "eos_token_id": "stop_token_ids",
    "bad_words_ids": "bad_words",
    "return_log_probs": "logprobs",
    "output_hidden_states": "hidden_states",
    "guided_json": "guided_decoding",
    "structured_outputs": "guided_decoding",
}


def known_keywords(error: type[InvalidValue]) -> Callable[[type[C]], type[C]]:
    """Class decorator for dataclasses: an unknown keyword raises `error` with the nearest name."""

    def decorate(cls: type[C]) -> type[C]:
        names = [field.name for field in fields(cls) if field.init]  # type: ignore[arg-type]
        init = cls.__init__

        @functools.wraps(init)
        def checked(self: C, *args: Any, **kwargs: Any) -> None:
            __tracebackhide__ = True
            for name in kwargs:
                if name not in names:
                    raise unknown_keyword(error, f"{cls.__name__}.{name}", kwargs[name], names)
            init(self, *args, **kwargs)

        cls.__init__ = checked  # type: ignore[assignment]
        return cls

    return decorate


def known_arguments(
    error: type[InvalidValue], elsewhere: Mapping[str, str] = MappingProxyType({})
) -> Callable[[F], F]:
    """Decorator for functions: an unknown keyword raises `error` with the nearest name.

    elsewhere: names that belong somewhere else -> what to write instead.
    """

    def decorate(function: F) -> F:
        names = [
            name
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        ]
        takes = frozenset(names)

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True  # IPython and pytest leave this frame out
            if not takes.issuperset(kwargs):
                name = next(name for name in kwargs if name not in takes)
                field, value = f"{function.__qualname__}.{name}", kwargs[name]
                if name in elsewhere:
                    raise error(field, value, "no argument of this", elsewhere[name])
                raise unknown_keyword(error, field, value, [n for n in names if n != "self"])
            return function(*args, **kwargs)

        return cast("F", checked)

    return decorate


def unknown_keyword(
    error: type[InvalidValue], field: str, value: Any, known: Sequence[str]
) -> InvalidValue:
    """Return an error for a keyword that nothing takes, naming the closest that something does."""
    name = field.rsplit(".", 1)[-1]
    near = [NAMES_ELSEWHERE[name]] if NAMES_ELSEWHERE.get(name) in known else None
    near = near or difflib.get_close_matches(name, known, n=1)
    fix = f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(known)}."
    return error(field, value, "no such setting", fix)


def unknown_name(module: str, name: str, known: Sequence[str]) -> AttributeError:
    """Return the error of a module for a name that it lacks, naming the nearest."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f". Did you mean `{near[0]}`?" if near else ""
    return AttributeError(f"module {module!r} has no attribute {name!r}{hint}")
