"""The ledger. Pure: `books` and what it is made of (accounts, admission, lines, windows, traffic, rows). On disk:
`sqlite` and its helpers. `audit`, `copies`, `bills`, `reconcile` and `reports` answer what is asked of a file."""
