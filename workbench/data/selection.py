"""Which of the cleaned files are used, and on which side of the split they fall.

Called by the corpus builder. Deterministic: the same files give the same corpus whatever the order
in which the workers return them. It never changes a text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from workbench.data.documents import Document
from workbench.data.holdout import STDLIB, is_held_out, stable_hash
from workbench.data.sources import Origin

_MAX_SHARED = 0.25  # a training file may share so much of its definitions with the held-out set
_SMALLEST_SHARED = 160  # characters; shorter definitions are equal by chance


@dataclass(frozen=True, slots=True)
class CleanFile:
    """A file that passed the filters, with the definitions found in it."""

    origin: Origin
    module: str
    text: str
    digest: bytes
    definitions: tuple[Document, ...]

    @property
    def held_out(self) -> bool:
        """Whether the hold-out rule keeps this module away from training."""
        return is_held_out(self.origin.name, self.module)

    @property
    def key(self) -> str:
        """A stable name for ordering: distribution, module and text."""
        return f"{self.origin.name}:{self.module}:{self.digest.hex()}"


@dataclass(slots=True)
class Split:
    """The chosen files; `dropped` counts what was removed and why."""

    train: list[CleanFile]
    held_out: list[CleanFile]
    dropped: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def split_files(files: Iterable[CleanFile], max_share: float) -> Split:
    """Deduplicate, split by module, keep held-out code out of training, cap large distributions.

    `max_share` bounds the part of all training characters that one distribution may have; the
    standard library is not bounded.
    """
    ordered = sorted(files, key=lambda file: file.key)
    split = Split([], [])
    modules: set[tuple[str, str]] = set()
    digests: set[bytes] = set()
    for file in ordered:
        name = (file.origin.name, file.module)
        if not file.held_out:
            continue
        if file.digest in digests or name in modules:
            split.dropped["duplicate held-out file"] += 1
            continue
        digests.add(file.digest)
        modules.add(name)
        split.held_out.append(file)
    hidden = {piece.digest for file in split.held_out for piece in file.definitions}
    for file in ordered:
        if file.held_out:
            continue
        if file.digest in digests:
            split.dropped["duplicate file"] += 1
        elif _shared(file, hidden) > _MAX_SHARED:
            split.dropped["file shares code with a held-out module"] += 1
        else:
            digests.add(file.digest)
            split.train.append(file)
    _cap(split, max_share)
    return split


def training_documents(split: Split) -> list[tuple[str, Document]]:
    """(distribution, document) pairs in a stable shuffled order; definitions appear once each."""
    documents: list[tuple[str, Document]] = []
    seen = {piece.digest for file in split.held_out for piece in file.definitions}
    for file in split.train:
        documents.append((file.origin.name, Document("file", file.text, file.digest)))
        for piece in file.definitions:
            if piece.digest in seen:
                split.dropped["duplicate or held-out definition"] += 1
            else:
                seen.add(piece.digest)
                documents.append((file.origin.name, piece))
    documents.sort(key=lambda pair: stable_hash(f"{pair[1].kind}:{pair[1].digest.hex()}"))
    return documents


def _shared(file: CleanFile, hidden: set[bytes]) -> float:
    """The part of the file's definitions, by characters, that a held-out module has too."""
    shared = sum(
        len(piece.text)
        for piece in file.definitions
        if piece.digest in hidden and len(piece.text) >= _SMALLEST_SHARED
    )
    return shared / max(1, sum(len(piece.text) for piece in file.definitions))


def _cap(split: Split, max_share: float) -> None:
    """Drop files, by hash, from distributions that would have more than `max_share`."""
    sizes: dict[str, int] = defaultdict(int)
    for file in split.train:
        sizes[file.origin.name] += len(file.text)
    limit = _limit(sizes, max_share)
    taken: dict[str, int] = defaultdict(int)
    kept = []
    for file in sorted(split.train, key=lambda file: stable_hash(file.key)):
        name = file.origin.name
        if name != STDLIB and sizes[name] > limit and taken[name] + len(file.text) > limit:
            split.dropped["over the distribution's share"] += 1
            continue
        taken[name] += len(file.text)
        kept.append(file)
    split.train = kept


def _limit(sizes: dict[str, int], max_share: float) -> int:
    """The largest size such that no capped distribution exceeds `max_share` of the capped total."""
    if max_share * len([name for name in sizes if name != STDLIB]) < 1:
        return max(sizes.values(), default=0)  # too few distributions for the bound to mean much
    limit = max(sizes.values(), default=0)
    for _ in range(50):
        total = sum(size if name == STDLIB else min(size, limit) for name, size in sizes.items())
        limit = min(limit, int(max_share * total) + 1)
    return limit
