"""A file or the environment becomes a router. The only room that names a backend; nothing else may import one.

`load` (in `setup`) reads, checks and freezes; `open_app` and `open_router` (in `opened`) make what runs, and `state`
knows what lies in a state folder; `reload` and `watch` serve a change without a stop. A configuration is taken whole or
not at all: ConfigError carries every problem, and whoever holds a Setup keeps it.
"""

from typing import TYPE_CHECKING

from tierwise.config.opened import Upstreams as Upstreams
from tierwise.config.opened import apply as apply
from tierwise.config.opened import open_app as open_app
from tierwise.config.opened import open_ledger as open_ledger
from tierwise.config.opened import open_router as open_router
from tierwise.config.setup import Setup as Setup
from tierwise.config.setup import find as find
from tierwise.config.setup import find_state as find_state
from tierwise.config.setup import load as load
from tierwise.config.setup import reload as reload
from tierwise.config.setup import watch as watch
from tierwise.config.state import LEDGER_FILE as LEDGER_FILE
from tierwise.config.state import REGISTRY_FILE as REGISTRY_FILE
from tierwise.config.state import make_state_folder as make_state_folder
from tierwise.config.state import open_journal as open_journal
from tierwise.config.state import open_registry as open_registry
from tierwise.config.state import open_reports as open_reports

if TYPE_CHECKING:
    from tierwise.stores.ledger.reports import LedgerReports as LedgerReports
