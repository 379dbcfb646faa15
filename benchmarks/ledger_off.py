"""The gateway with its ledger in memory: what the durable one costs is the difference. Takes the arguments of
`tierwise`. Only here: a gateway whose money is forgotten at a stop is nobody's wish."""

from __future__ import annotations

from tierwise.cli.main import main
from tierwise.config import opened

if __name__ == "__main__":
    opened._ledger = lambda setup, in_memory: opened.open_ledger(setup)
    main()
