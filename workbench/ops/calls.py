"""The C functions of `kernels/cpu` as ctypes sees them: their arguments, and their failures.

A call is either made (`functions`) or written down as a record that C reads (`Record`, the structs
of tape.c). Used by the native backend and by its tape.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

from workbench.ops.compiled import load_library

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float


class Signature(NamedTuple):
    """Types of a function's arguments, and the place of its number of rows, if it has one."""

    arguments: tuple[Any, ...]
    rows: int | None


# In the order of tape.c's kinds.
SIGNATURES: dict[str, Signature] = {
    "embedding": Signature((*[_POINTER] * 3, *[_LONG] * 3), 3),
    "angles": Signature((*[_POINTER] * 4, _LONG, _LONG, _FLOAT, _INT), 4),
    "linear": Signature((*[_POINTER] * 4, *[_LONG] * 4, _INT, _INT), 4),
    "rms_norm": Signature((*[_POINTER] * 5, _LONG, _LONG, _FLOAT, _INT, _INT), 5),
    "silu_mul": Signature((*[_POINTER] * 2, _LONG, _LONG, _INT, _INT), 2),
    "attention": Signature((*[_POINTER] * 8, *[_LONG] * 4, _FLOAT, _LONG, _INT), None),
    "lora": Signature((*[_POINTER] * 11, *[_LONG] * 6, _INT, _INT), 11),
    "lora_gain": Signature((*[_POINTER] * 6, *[_LONG] * 2, _INT, _INT), 6),
}
_KINDS = {name: kind for kind, name in enumerate(SIGNATURES)}


class Batch(ctypes.Structure):
    """`Batch` of heads.h: a step's rows, and the shape of the cache."""

    _fields_ = [
        *((name, _POINTER) for name in ("slots", "tables", "query_starts", "kv_lens")),
        *((name, _LONG) for name in ("rows", "tokens", "table_width")),
        *((name, _LONG) for name in ("num_blocks", "block_size", "kv_heads", "dim")),
        *((name, _LONG) for name in ("kv_is_bf16", "threads")),
        ("ancestors", _POINTER),
        *((name, _LONG) for name in ("first_tree", "tree_tokens", "tree_words")),
    ]


def functions() -> dict[str, Any]:
    """Return the functions by name, compiled first if need be; `ConfigError` if they cannot be."""
    library = load_library()
    for name, signature in SIGNATURES.items():
        getattr(library, name).argtypes = signature.arguments
    return {name: getattr(library, name) for name in SIGNATURES}


def replay_function() -> Any:
    """Return C's `replay`: an array of addresses of records, their number, tokens, threads."""
    replay = load_library().replay
    replay.argtypes = (_POINTER, _LONG, _LONG, _INT)
    return replay


def make_record(name: str, arguments: tuple[Any, ...]) -> ctypes.Structure:
    """Return one call as tape.c reads it: the function's number, then its arguments."""
    record: ctypes.Structure = _RECORDS[name](_KINDS[name], *arguments)
    return record


def _record_type(signature: Signature) -> type[ctypes.Structure]:
    places = enumerate(signature.arguments)
    fields = [("kind", _LONG), *((f"argument{place}", kind) for place, kind in places)]
    return type("Record", (ctypes.Structure,), {"_fields_": fields})


_RECORDS = {name: _record_type(signature) for name, signature in SIGNATURES.items()}


def check(failure: int) -> None:
    """Raise what a function's result says went wrong."""
    if failure == 1:
        raise MemoryError("no memory for partial results")
    if failure == 2:
        raise IndexError("a token id is outside the embedding's table")
