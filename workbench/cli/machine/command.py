"""Ask a program of the system a question and get its text.

Used by the readers of this folder. A program that is absent, fails or hangs is an answer too: None.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence


def output_of(command: Sequence[str], timeout: float = 20.0) -> str | None:
    """Return what a command prints, stripped; None where it is absent, fails or is too slow.

    `timeout` is in seconds.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None
