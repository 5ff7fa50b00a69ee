"""Build the training corpus out of the Python source on this machine.

Run as `python -m workbench.data.corpus --out FOLDER`. Leaves in the folder `train.bin` (token ids),
`heldout.jsonl` (whole files), `tokenizer/`, and `manifest.json` (what went in, licences, counts).
It reads source files only; it imports, executes and downloads nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from workbench.data.cleaning import Rejected, clean_source
from workbench.data.documents import Document, definitions, digest_of
from workbench.data.holdout import stable_hash
from workbench.data.selection import CleanFile, Split, split_files, training_documents
from workbench.data.sources import LeftOut, SourceFile, installed_files, stdlib_files
from workbench.data.token_arrays import encode_documents, split_newlines, write_tokens
from workbench.data.tokenizer_training import load_tokenizer, save_tokenizer, train_tokenizer

CONTEXT = 2048
_FILES_PER_TASK = 64


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    files, left_out = _sources(arguments)
    # fork: the workers need nothing but what is imported already, and no thread runs yet
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(arguments.workers, mp_context=context) as executor:
        # every worker is forked by the first task, before the tokenizer library starts threads
        manifest = build(files, left_out, out, executor, arguments)
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    (out / "manifest.json").write_text(text, encoding="utf-8")
    _say(json.dumps(manifest["totals"]))
    return 0


def build(
    files: Sequence[SourceFile],
    left_out: Sequence[LeftOut],
    out: Path,
    executor: Executor,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Clean, split, train the tokenizer, encode, write to `out`; returns the manifest."""
    started = time.perf_counter()
    clean, rejected = clean_files(files, executor)
    _say(f"{len(files)} files read, {len(clean)} clean, {time.perf_counter() - started:.0f} s")
    split = split_files(clean, arguments.max_share)
    documents = training_documents(split)
    if arguments.tokenizer:
        save_tokenizer(load_tokenizer(Path(arguments.tokenizer)), out / "tokenizer", CONTEXT)
    else:
        sample = _sample((document for _, document in documents), int(arguments.sample_mb * 1e6))
        save_tokenizer(train_tokenizer(sample, arguments.vocab_size), out / "tokenizer", CONTEXT)
        _say(f"tokenizer trained, {time.perf_counter() - started:.0f} s")
    tokens, lengths = encode_documents(
        [document.text for _, document in documents], out / "tokenizer", executor
    )
    _, held_out_lengths = encode_documents(
        [file.text for file in split.held_out], out / "tokenizer", executor
    )
    tokenizer = load_tokenizer(out / "tokenizer")
    written = split_newlines(tokens, tokenizer, arguments.split_newlines, arguments.seed)
    write_tokens(written, out / "train.bin")
    _write_held_out(split.held_out, out / "heldout.jsonl")
    _say(f"{len(written):,} training tokens, {time.perf_counter() - started:.0f} s")
    manifest = describe(split, documents, lengths, held_out_lengths)
    manifest["rejected_files"] = dict(rejected)
    manifest["left_out_distributions"] = [
        {"name": item.name, "version": item.version, "declared": item.declared} for item in left_out
    ]
    manifest["totals"] |= {"files_read": len(files), "train_array_tokens": len(written)}
    manifest["python"] = platform.python_version()
    return manifest


def clean_files(
    files: Sequence[SourceFile], executor: Executor
) -> tuple[list[CleanFile], Counter[str]]:
    """The files that pass the filters, and how many were refused for which reason."""
    ordered = sorted(files, key=lambda file: stable_hash(f"{file.origin.name}:{file.module}"))
    tasks = [
        ordered[start : start + _FILES_PER_TASK]
        for start in range(0, len(ordered), _FILES_PER_TASK)
    ]
    clean: list[CleanFile] = []
    rejected: Counter[str] = Counter()
    for found, refused in executor.map(_clean_task, tasks):
        clean += found
        rejected += refused
    return clean, rejected


def describe(
    split: Split,
    documents: Sequence[tuple[str, Document]],
    lengths: Sequence[int],
    held_out_lengths: Sequence[int],
) -> dict[str, Any]:
    """The manifest: what went in, by distribution and by kind of document."""
    rows: dict[str, dict[str, Any]] = {}
    for file in [*split.train, *split.held_out]:
        name = file.origin.name
        row = rows.setdefault(name, defaultdict(int, name=name, licence=file.origin.licence))
        if file.origin.version not in (versions := row.setdefault("version", "").split(" + ")):
            row["version"] = " + ".join(sorted(filter(None, [*versions, file.origin.version])))
        part = "held_out" if file.held_out else "train"
        row[f"{part}_files"] += 1
        row[f"{part}_bytes"] += len(file.text.encode("utf-8", "surrogatepass"))
    kinds: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for (name, document), length in zip(documents, lengths, strict=True):
        rows[name]["train_tokens"] += length
        kinds[document.kind]["documents"] += 1
        kinds[document.kind]["tokens"] += length
    for file, length in zip(split.held_out, held_out_lengths, strict=True):
        rows[file.origin.name]["held_out_tokens"] += length
    counted = [
        key + unit for key in ("train_", "held_out_") for unit in ("files", "bytes", "tokens")
    ]
    ordered = sorted(rows.values(), key=lambda row: (-row["train_tokens"], row["name"]))
    return {
        "distributions": [{**dict.fromkeys(counted, 0), **row} for row in ordered],
        "kinds": {kind: dict(counts) for kind, counts in kinds.items()},
        "dropped": dict(split.dropped),
        "totals": {key: sum(row[key] for row in rows.values()) for key in counted},
    }


def _clean_task(files: list[SourceFile]) -> tuple[list[CleanFile], Counter[str]]:
    clean: list[CleanFile] = []
    rejected: Counter[str] = Counter()
    for file in files:
        try:
            text = clean_source(file.path.read_bytes())
            pieces = tuple(definitions(text))
        except Rejected as refusal:
            rejected[refusal.reason] += 1
        except OSError:
            rejected["unreadable"] += 1
        else:
            clean.append(CleanFile(file.origin, file.module, text, digest_of(text), pieces))
    return clean, rejected


def _sources(arguments: argparse.Namespace) -> tuple[list[SourceFile], list[LeftOut]]:
    files = stdlib_files()
    left_out: list[LeftOut] = []
    if not arguments.stdlib_only:
        installed, left_out = installed_files()
        files += installed
    for folder in arguments.also_stdlib:
        files += stdlib_files(Path(folder), version=Path(folder).name.removeprefix("python"))
    if arguments.also_packages:
        known = {file.origin.name.lower() for file in files}
        more, more_left_out = installed_files(map(Path, arguments.also_packages))
        files += [file for file in more if file.origin.name.lower() not in known]
        left_out += more_left_out
    if arguments.limit_files:
        files.sort(key=lambda file: stable_hash(f"limit:{file.origin.name}:{file.module}"))
        files = files[: arguments.limit_files]
    return files, left_out


def _sample(documents: Iterable[Document], characters: int) -> Iterable[str]:
    """Whole files only: the definitions repeat what is in them."""
    for document in documents:
        if document.kind == "file":
            if characters <= 0:
                return
            characters -= len(document.text)
            yield document.text


def _write_held_out(files: Sequence[CleanFile], path: Path) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for file in files:
            row = {"distribution": file.origin.name, "module": file.module, "text": file.text}
            stream.write(json.dumps(row) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("workbench.data.corpus", description=__doc__)
    parser.add_argument("--out", required=True, help="folder for the corpus")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--max-share", type=float, default=0.12, help="of one distribution")
    parser.add_argument("--sample-mb", type=float, default=100, help="text the tokenizer sees")
    parser.add_argument("--tokenizer", help="folder of the one to use, instead of training one")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--split-newlines", type=float, default=0.08, help="share of lines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stdlib-only", action="store_true")
    parser.add_argument("--also-stdlib", action="append", default=[], metavar="FOLDER")
    parser.add_argument("--also-packages", action="append", default=[], metavar="SITE_PACKAGES")
    parser.add_argument("--limit-files", type=int, default=0, help="0: all")
    return parser


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
