"""Which installed distributions carry a permissive licence.

Called by `workbench.data.sources`. Reads only a distribution's own metadata, in the order of how
far each can be trusted: SPDX expression, classifiers, free-text field, the licence file itself. It
never guesses: what it cannot place is not permissive.
"""

from __future__ import annotations

import re
from importlib.metadata import Distribution

_PERMISSIVE_SPDX = re.compile(
    r"(MIT(-0|-CMU)?|0?BSD(-[\w.-]+)?|Apache-2\.0|ISC|Zlib|Unlicense|CC0-1\.0|PSF-2\.0|Python-2\.0"
    r"(\.1)?|CNRI-Python|HPND|BSL-1\.0)",
    re.IGNORECASE,
)
_RESTRICTED = re.compile(
    r"\b[AL]?GPL|General Public|Mozilla|\bMPL|Eclipse|\bEPL|proprietary|commercial|EULA|"
    r"end user license|nvidia|\bCC[- ]BY|all rights reserved\.?\s*$",
    re.IGNORECASE,
)
_CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication": "CC0-1.0",
    "Historical Permission Notice and Disclaimer (HPND)": "HPND",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "zlib/libpng License": "Zlib",
}
_NAMES = (  # tried in order on a short free-text licence field
    (re.compile(r"apache", re.IGNORECASE), "Apache-2.0"),
    (re.compile(r"\bBSD\b|\d-clause", re.IGNORECASE), "BSD"),
    (re.compile(r"\bMIT\b|\bexpat\b", re.IGNORECASE), "MIT"),
    (re.compile(r"\bISC", re.IGNORECASE), "ISC"),
    (re.compile(r"\bPSFL?\b|python software foundation", re.IGNORECASE), "PSF-2.0"),
    (re.compile(r"\bzlib", re.IGNORECASE), "Zlib"),
    (re.compile(r"unlicense", re.IGNORECASE), "Unlicense"),
    (re.compile(r"\bCC0\b", re.IGNORECASE), "CC0-1.0"),
    (re.compile(r"\bHPND\b", re.IGNORECASE), "HPND"),
)
_TEXTS = (  # tried in order on the text of a licence, whitespace collapsed
    (re.compile(r"Permission is hereby granted, free of charge", re.IGNORECASE), "MIT"),
    (re.compile(r"Redistribution and use in source and binary forms", re.IGNORECASE), "BSD"),
    (re.compile(r"Apache License,? Version 2\.0", re.IGNORECASE), "Apache-2.0"),
    (re.compile(r"Permission to use, copy, modify,? and", re.IGNORECASE), "ISC"),
    (re.compile(r"Python Software Foundation License", re.IGNORECASE), "PSF-2.0"),
    (re.compile(r"This is free and unencumbered software", re.IGNORECASE), "Unlicense"),
)
_LICENCE_FILE = re.compile(r"^(licen[cs]e|copying)[\w.-]*$", re.IGNORECASE)
_LONGEST_NAME = 80  # a licence field longer than this is the licence's text


def permissive_licence(distribution: Distribution) -> str | None:
    """The permissive licence of `distribution` (SPDX-like), or `None` if it has none we know."""
    metadata = distribution.metadata
    expression = field_of(distribution, "License-Expression")
    if expression:
        return expression if permissive_expression(expression) else None
    classifiers = [
        line.split("::")[-1].strip()
        for line in metadata.get_all("Classifier") or []
        if line.startswith("License ::")
    ]
    classifiers = [name for name in classifiers if name not in ("OSI Approved", "DFSG approved")]
    if classifiers:
        names = [_CLASSIFIERS.get(name) for name in classifiers]
        found = sorted({name for name in names if name})
        return " AND ".join(found) if all(names) else None
    field = field_of(distribution, "License").strip()
    if field and field.upper() != "UNKNOWN":
        return licence_of_text(field)
    return _licence_file(distribution)


def field_of(distribution: Distribution, field: str) -> str:
    """A metadata field's text; empty where the distribution does not have it."""
    values = distribution.metadata.get_all(field) or []
    return str(values[0]) if values else ""


def permissive_expression(expression: str) -> bool:
    """Whether an SPDX expression can be met with permissive licences alone.

    `AND` needs every side, `OR` needs one, and an exception after `WITH` only ever permits more.
    """
    text = re.sub(r"\s+WITH\s+[\w.-]+", "", expression, flags=re.IGNORECASE)
    text = text.replace("(", " ( ").replace(")", " ) ")
    alternatives = re.split(r"\s+OR\s+", text, flags=re.IGNORECASE)
    if "(" in text:  # without a parser for nesting, every licence named must be permissive
        alternatives = [text.replace("(", " ").replace(")", " ").replace(" OR ", " AND ")]
    return any(
        all(
            _PERMISSIVE_SPDX.fullmatch(name.strip())
            for name in re.split(r"\s+AND\s+", side.strip(), flags=re.IGNORECASE)
        )
        for side in alternatives
    )


def licence_of_text(text: str) -> str | None:
    """The permissive licence that a free-text field or a licence file's text states, or `None`."""
    text = " ".join(text.split())
    if len(text) <= _LONGEST_NAME:
        if permissive_expression(text):
            return text
        if _RESTRICTED.search(text):
            return None
        return next((name for pattern, name in _NAMES if pattern.search(text)), None)
    head = text[:3000]
    if re.search(r"GENERAL PUBLIC LICENSE|Mozilla Public|NVIDIA|proprietary", head):
        return None
    return next((name for pattern, name in _TEXTS if pattern.search(head)), None)


def _licence_file(distribution: Distribution) -> str | None:
    """The licence that all of the distribution's licence files state."""
    found: list[str | None] = []
    for file in distribution.files or []:
        if _LICENCE_FILE.match(file.name) and ".dist-info" in str(file):
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                return None
            found.append(licence_of_text(text))
    names = sorted({name for name in found if name})
    return " AND ".join(names) if names and all(found) else None
