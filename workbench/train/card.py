"""Cards: README.md beside trained weights, made from the figures in `metrics.json` alone.

Every number in a card comes from that file, so it can be made again without training. Here is the
base model's; heads and adapters bring their own text, and `write_card` writes any of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.atomic_files import atomic_write

_LICENCE_NOTE = """\
The weights are published under this repository's licence (Apache-2.0). They were trained only on
source code whose distribution declares a permissive licence; the table above names each with its
licence. Distributions without such a declaration and files with a copyleft header were left out.
A model of this size can repeat short passages of what it saw often."""

_LIMITS = """\
- It knows Python and nothing else: no conversation, no instructions, little English prose.
- It is small. It writes plausible, mostly valid code with the shape of what was asked; it does not
  reason about what the code does, and the code can be wrong.
- Greedy completions tend to repeat themselves: methods written twice, doctests without end. The
  prompts above were picked from about twenty; `def is_even(n):`, for one, never leaves its doctest.
- The chat template gives chat servers something to render. The model was not tuned for it.
- Trained with windows of {context} tokens; positions beyond that are untrained."""


def model_card(metrics: dict[str, Any]) -> str:
    """The card as Markdown."""
    sections = [
        _head(metrics),
        "## Architecture\n\n" + _architecture(metrics),
        "## Held-out figures\n\n" + _held_out(metrics),
        "## Training\n\n" + _training(metrics),
        "## Completions\n\n" + _completions(metrics),
        "## Corpus\n\n" + _corpus(metrics["corpus"]),
        "## Limits\n\n" + _LIMITS.format(context=metrics["config"]["max_position_embeddings"]),
        "## Licence\n\n" + _LICENCE_NOTE,
    ]
    return "\n\n".join(sections) + "\n"


def write_card(
    folder: Path, metrics: dict[str, Any], card: Callable[[dict[str, Any]], str]
) -> None:
    """Write `metrics.json`, and README.md as the card that `card` makes of these figures alone."""
    text = json.dumps(metrics, indent=1, sort_keys=True) + "\n"
    for name, content in (("metrics.json", text), ("README.md", card(metrics))):
        with atomic_write(folder / name) as partial:
            partial.write_text(content, encoding="utf-8")


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return what `write_card` recorded in a folder."""
    recorded: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return recorded


def table(columns: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table; integers get thousands separators and are set to the right."""
    numeric = [bool(rows) and isinstance(value, int | float) for value in (rows or [[]])[0]]
    numeric += [False] * (len(columns) - len(numeric))
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "|".join("---:" if number else "---" for number in numeric) + "|",
    ]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _head(metrics: dict[str, Any]) -> str:
    overall = metrics["held_out"]["overall"]
    return (
        "---\nlicense: apache-2.0\nlanguage: code\npipeline_tag: text-generation\n---\n\n"
        "# tinypy/base\n\n"
        f"A Llama-architecture model of {metrics['num_parameters'] / 1e6:.1f} M parameters that "
        "completes Python source. It is the model the workbench's notebooks and tests run on. "
        f"Held-out bits per byte: {overall['bits_per_byte']:.4f}."
    )


def _architecture(metrics: dict[str, Any]) -> str:
    keys = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"]
    keys += ["num_key_value_heads", "head_dim", "intermediate_size", "max_position_embeddings"]
    keys += ["rms_norm_eps", "tie_word_embeddings"]
    config = metrics["config"]
    rows = [[f"`{key}`", str(config[key])] for key in keys]
    rows.append(["`rope_theta`", str(config["rope_parameters"]["rope_theta"])])
    rows.append(["parameters", f"{metrics['num_parameters']:,}"])
    return (
        table(["field", "value"], rows)
        + "\n\nThe tokenizer is a byte-level BPE trained on the same corpus: digits stand alone, a "
        "newline takes the indentation after it, ids 0 to 15 are special tokens, and `<bos>` "
        "begins every text. Any UTF-8 text survives encoding and decoding unchanged."
    )


def _held_out(metrics: dict[str, Any]) -> str:
    rows = [
        [name, row["files"], row["bytes"], row["tokens"], row["loss"], row["bits_per_byte"]]
        for name, row in metrics["held_out"].items()
    ]
    return (
        "Whole modules kept away from training by a hash of their name; code they share with a "
        "training file was removed from training. Every token is predicted once, each file by "
        "itself, with at least half a context before it where the file has that much. Bits per "
        "byte are total nats / ln 2 / total UTF-8 bytes.\n\n"
        + table(["held out", "files", "bytes", "tokens", "loss", "bits per byte"], rows)
    )


def _training(metrics: dict[str, Any]) -> str:
    settings, progress = metrics["settings"], metrics["progress"]
    rows = [[f"`{key}`", str(value)] for key, value in sorted(settings.items())]
    alternatives = ", ".join(
        f"{name} {value:.4f}" for name, value in sorted(metrics["weights_bits_per_byte"].items())
    )
    epochs = progress["tokens"] / max(1, metrics["corpus"]["totals"]["train_array_tokens"])
    return (
        f"{progress['tokens']:,} tokens in {metrics['steps']:,} steps and "
        f"{progress['seconds'] / 60:.1f} minutes of stepping on {metrics['device']} "
        f"({metrics['tokens_per_second']:,} tokens/s, median of the log; {epochs:.1f} passes over "
        f"the token array; {progress['fraction']:.0%} of the budget). Float32 master weights, "
        "bfloat16 forward and backward, linear warm-up, then a cosine to zero. Of the raw weights "
        f"and their moving average the better one is kept: {metrics['chosen_weights']} "
        f"(bits per byte: {alternatives}).\n\n"
        + table(["setting", "value"], rows)
        + f"\n\nMade with torch {metrics['versions']['torch']}, "
        + f"transformers {metrics['versions']['transformers']} by\n\n"
        + "```\npython -m workbench.data.corpus --out CORPUS\nworkbench train base --data CORPUS "
        + f"--out RUN --minutes-total {settings['minutes_total']:g} "
        + "--export adapters/tinypy/base\n```"
    )


def _completions(metrics: dict[str, Any]) -> str:
    parts = ["Greedy, 160 tokens, cut at the last complete statement."]
    for row in metrics["completions"]:
        verdict = "valid Python" if row["valid"] else "NOT valid Python"
        end = "ended by itself" if row["finished"] else "stopped by length"
        fence = "````" if "```" in row["program"] else "```"
        prompt = row["prompt"].strip().splitlines()[-1]
        code = f"{fence}python\n{row['program'].rstrip()}\n{fence}"
        parts.append(f"`{prompt}` – {verdict}, {end}\n\n{code}")
    return "\n\n".join(parts)


def _corpus(corpus: dict[str, Any]) -> str:
    totals = corpus["totals"]
    rows = [
        [
            f"{row['name']} {row['version']}",
            row["licence"],
            row["train_files"],
            row["train_bytes"],
            row["train_tokens"],
            row["held_out_files"],
        ]
        for row in corpus["distributions"]
    ]
    kinds = [[kind, row["documents"], row["tokens"]] for kind, row in corpus["kinds"].items()]
    refused = [[reason, count] for reason, count in sorted(corpus["rejected_files"].items())]
    refused += [[reason, count] for reason, count in sorted(corpus["dropped"].items())]
    left_out = ", ".join(
        f"{row['name']} ({row['declared']})" for row in corpus["left_out_distributions"]
    )
    return "\n\n".join(
        [
            f"Python source found on the training machine (Python {corpus['python']}): "
            f"{totals['train_files']:,} files, {totals['train_bytes']:,} bytes, and the "
            f"definitions in them once more as documents of their own; "
            f"{totals['train_tokens']:,} tokens.",
            table(["document", "documents", "tokens"], sorted(kinds)),
            table(["distribution", "licence", "files", "bytes", "tokens", "held-out files"], rows),
            "Files and definitions not used:",
            table(["reason", "count"], refused),
            "Distributions left out for want of a permissive licence in their metadata: "
            + (left_out or "none")
            + ".",
        ]
    )
