"""The accounts that open holds stand on: by their key, also when their line has let them go, and by line and subject,
whose calls at once they come to."""

from __future__ import annotations

from tierwise.stores.ledger.accounts import Account, Key, Line


class Live(dict[Key, Account]):
    """Each is among `under_way` of its line as well."""

    def begin(self, account: Account) -> None:
        self[account.key] = account
        account.line.under_way.setdefault(account.subject, []).append(account)

    def end(self, account: Account) -> None:
        self.pop(account.key, None)
        under_way = account.line.under_way.pop(account.subject, [])
        if len(under_way) > 1:
            account.line.under_way[account.subject] = [each for each in under_way if each is not account]

    def adopt(self, line: Line) -> None:
        """A line that comes anew takes over what is still held under its name."""
        for key, account in self.items():
            if key[0] == line.id:
                account.line = line
                line.under_way.setdefault(account.subject, []).append(account)
                if line.rolling:
                    line.older.setdefault(account.subject, []).append(account)
