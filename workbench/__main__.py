"""`python -m workbench`: the same as the `workbench` command.

`-m` puts the current folder on `sys.path`; at the repository's root `datasets/` then answers to the
name of the `datasets` library unless that library is installed, which the set-up sees to.
"""

from __future__ import annotations

import sys

from workbench.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
