"""The gateway with its ledger in memory: what the durable one costs is the difference. Takes the arguments of
`tierwise`. Only here: a gateway whose money is forgotten at a stop is nobody's wish."""

from __future__ import annotations

from tierwise import config
from tierwise.cli import main

if __name__ == "__main__":
    config._ledger = lambda setup, in_memory: config.open_ledger(setup)
    main()
