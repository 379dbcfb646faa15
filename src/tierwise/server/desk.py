"""Where keys, budgets and credits are made, whoever asks: an admin over HTTP, or the owner at the command line.

An admin gives no more than it has (`core.keys`), sees no more than it has made, and cannot change what lies above it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from tierwise.core import keys
from tierwise.core.budget import Budget
from tierwise.core.check_budget import BOUNDS, check, check_names
from tierwise.core.errors import BadRequest, Conflict, Forbidden, Problem, Unauthorised, Unknown
from tierwise.core.keys import NAME, NAME_RULE, Book, Credit, Grant, Issued, Limits, Placed, Registry
from tierwise.core.money import MAX_NANO, NANO_PER_USD, cap_to_nano
from tierwise.core.request import Payer
from tierwise.core.snapshot import Snapshot
from tierwise.server.forms import BudgetBody, CreditBody, KeyBody, MachineZones, Misfilled, converted

MOST_USD = 1_000_000_000
MOST_DAYS = 36_500
MOST_OVERLAP_S = 30 * 86_400
DAY_S = 86_400
_PAYER = ("user", "team", "organisation")


class Desk:
    """One grantor at work on the registry as it is now. `grantor` None: the owner, on the machine itself. `snapshot`
    None: names of models and policies are taken as they are given. Every method may wait for a disk."""

    def __init__(
        self,
        registry: Registry,
        book: Book,
        at_s: int,
        *,
        files: Mapping[str, Grant],
        budgets: tuple[Budget, ...] = (),
        snapshot: Snapshot | None = None,
        grantor: str | None = None,
        checked: bool = True,
    ) -> None:
        """`files` and `budgets` are those of the configuration file; `checked` False: it could not be read, so nobody
        knows which tags there are. Raises Unauthorised for a grantor that is none any more."""
        self.registry = registry
        self.book = book
        self.at_s = at_s
        self.files = files
        self.file_budgets = budgets
        self.snapshot = snapshot
        self.checked = checked
        self.issued = {key.grant.name: key for key in book.keys}
        self.grantor = self._grantor(grantor) if grantor is not None else None

    def _grantor(self, name: str) -> Grant:
        issued = self.issued.get(name)
        found = self.files.get(name) or (issued.grant if issued and issued.state(self.at_s) == "active" else None)
        if found is None or not found.admin:
            raise Unauthorised("this API key is not an admin's any more", code="invalid_api_key")
        return found

    @property
    def owner(self) -> bool:
        return self.grantor is None or self.grantor.owner

    # -------------------------------------------------------------------------------------------- keys

    def keys(self) -> list[dict[str, Any]]:
        """Those that the grantor may see, those of the file first."""
        issued = [Issued(grant=grant) for grant in self.files.values()]
        issued += [key for key in self.book.keys if key.grant.name not in self.files]
        return [self._shown(key) for key in issued if self._sees(key.grant)]

    def key(self, name: str) -> dict[str, Any]:
        return self._shown(self._found(name))

    def create(self, body: KeyBody) -> tuple[str, dict[str, Any]]:
        """(the secret, shown only here; the key). Raises BadRequest, Forbidden and Conflict."""
        if not NAME.fullmatch(body.name):
            raise _wrong("key", "name", NAME_RULE)
        if body.name in self.files:
            raise Conflict(f"there is a key named {body.name!r} in the configuration file", code="key_exists")
        within = (*self.grantor.payer.within, self.grantor.name) if self.grantor else ()
        grant = self._grant(body, within)
        self._must_be_within(grant)
        secret = self.registry.create(grant, self.at_s)
        return secret, self._shown(Issued(grant=grant, prefix=secret[:9], made_s=self.at_s))

    def change(self, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Give an existing key another grant: what is named in `changes` becomes so, the rest stays."""
        key = self._found(name, to_change=True)
        if self.grantor is not None and not self.owner and name == self.grantor.name:
            raise Forbidden("a key cannot change itself; ask whoever gave it to you", code="wider_than_grantor")
        if "name" in changes:
            raise _wrong("key", "name", "of a key cannot be changed: what it has spent is kept under it")
        grant = self._grant(converted({**_said(key.grant), **changes}, KeyBody, "key"), key.grant.payer.within)
        self._must_be_within(grant)
        self.registry.change(grant)
        return self._shown(msgspec.structs.replace(key, grant=grant))

    def rotate(self, name: str, overlap_s: int) -> tuple[str, dict[str, Any]]:
        """(the new secret, shown only here; the key)"""
        if not 0 <= overlap_s <= MOST_OVERLAP_S:
            raise _wrong("key", "overlap_s", f"must be from 0 to {MOST_OVERLAP_S} seconds")
        key = self._found(name, to_change=True)
        if self.grantor is None or name != self.grantor.name:
            self._must_be_within(key.grant)  # else whoever was narrowed would get back what it gave before
        secret = self.registry.rotate(name, overlap_s, self.at_s)
        return secret, self._shown(msgspec.structs.replace(key, prefix=secret[:9], rotated_s=self.at_s))

    def revoke(self, name: str, *, descendants: bool = False) -> list[str]:
        """For ever. `descendants`: also every key that was made with it. Gives the names."""
        self._found(name, to_change=True)
        names = [name]
        if descendants:
            names += [each for each, key in self.issued.items() if name in key.grant.payer.within]
        self.registry.revoke(names, self.at_s)
        return names

    # -------------------------------------------------------------------------------------------- budgets and credits

    def budgets(self) -> list[dict[str, Any]]:
        """Those that the grantor is under or may set, with where each comes from."""
        limits = [
            ("key", budget)
            for key in self.book.keys
            if self._sees(key.grant) and key.state(self.at_s) == "active"
            for budget in keys.key_budgets(key.grant.name, key.grant.limits)
        ]
        every = [("file", each) for each in self.file_budgets] + [("runtime", each) for each in self.book.budgets]
        mine = [
            (source, each)
            for source, each in every
            if not self._barred(each) or (self.grantor is not None and keys.applies(each, self.grantor.payer))
        ]
        return [_shown_budget(each, source) for source, each in (*mine, *limits)]

    def set_budget(self, body: BudgetBody) -> dict[str, Any]:
        """In place of the one with the same scope, match and window, if it was set at runtime. `in_force` says what
        holds instead where the file or the key's own limits are tighter."""
        budget = _budget(body)
        self._check_match(budget)
        self._must_govern(budget)
        self.registry.set_budget(budget)
        told = _shown_budget(budget, "runtime")
        held = _shown_budget(self._in_force(budget), "runtime")
        tighter = {name: held.get(name) for name in told.keys() | held.keys() if told.get(name) != held.get(name)}
        return {**told, "in_force": tighter} if tighter else told

    def _in_force(self, budget: Budget) -> Budget:
        """What comes of it with the same budget in the file and with what its key has as its limits."""
        id = keys.budget_id(budget)
        of_keys = (each for key in self.book.keys for each in keys.key_budgets(key.grant.name, key.grant.limits))
        filed = (each for each in self.file_budgets if keys.budget_id(each) == id)
        return keys.merged((*filed, budget, *(each for each in of_keys if keys.budget_id(each) == id)))[0]

    def remove_budget(self, id: str) -> None:
        found = next((each for each in self.book.budgets if keys.budget_id(each) == id), None)
        hidden = found is None or (self.grantor is not None and not keys.applies(found, self.grantor.payer))
        if found is None or (hidden and self._barred(found)):
            if self.owner and any(keys.budget_id(each) == id for each in self.file_budgets):
                raise Conflict(f"the budget {id} is in the configuration file; change it there", code="in_file")
            raise Unknown(f"no budget {id!r} was set at runtime", code="budget_not_found")
        self._must_govern(found)
        self.registry.remove_budget(id)

    def credits(self) -> list[dict[str, Any]]:
        self._must_own()
        return [_shown_credit(credit) for credit in self.book.credits]

    def add_credit(self, body: CreditBody) -> tuple[bool, dict[str, Any]]:
        """(whether it is new, the top-up). The same id counts once."""
        self._must_own()
        if not body.id or len(body.id) > 200 or not body.id.isprintable():
            raise _wrong("credit", "id", "names the top-up: 1 to 200 visible characters")
        if not 0 < abs(body.amount_usd) <= MOST_USD:  # as no nan is
            raise _wrong("credit", "amount_usd", f"must not be 0, and at most {MOST_USD} either way")
        nano = _nano("credit", "amount_usd", abs(body.amount_usd)) or 0
        credit = Credit(
            id=body.id,
            scope=body.scope,
            subject=_label("credit", "subject", body.subject),
            amount_nano=nano if body.amount_usd > 0 else -nano,
            at_s=self.at_s,
            made_by=self.grantor.name if self.grantor else "",
        )
        before = [each for each in self.book.credits if (each.scope, each.subject) == (credit.scope, credit.subject)]
        sum_nano = sum(each.amount_nano for each in before if each.id != credit.id) + credit.amount_nano
        if abs(sum_nano) > MOST_USD * NANO_PER_USD:  # a sum that no ledger can write down would stop every call
            raise _wrong("credit", "amount_usd", f"brings this balance beyond {MOST_USD} either way")
        return self.registry.add_credit(credit), _shown_credit(credit)

    # -------------------------------------------------------------------------------------------- helpers

    def _sees(self, grant: Grant) -> bool:
        return self.grantor is None or keys.visible(grant.payer, self.grantor)

    def _found(self, name: str, *, to_change: bool = False) -> Issued:
        """What is not the grantor's to see is not there, in the same words as what is missing."""
        in_file = self.files.get(name)
        key = Issued(grant=in_file) if in_file is not None else self.issued.get(name)
        if key is None or not self._sees(key.grant):
            raise Unknown(f"no key is named {name[:100]!r}", code="key_not_found")
        if to_change and in_file is not None:
            raise Conflict(f"the key {name!r} is in the configuration file; change it there", code="in_file")
        return key

    def _grant(self, body: KeyBody, within: tuple[str, ...]) -> Grant:
        payer = Payer(
            key=body.name,
            **{name: _label("key", name, value) for name in _PAYER if (value := getattr(body, name)) is not None},
            tags=tuple(sorted((_label("key", "tags", k), _label("key", "tags", v)) for k, v in body.tags.items())),
            within=within,
        )
        self._check_names(body)
        if body.window is not None and body.limit_usd is None:
            raise _wrong("key", "window", "has no effect without limit_usd")
        if "admin" in body.routes and body.role != "admin":
            raise _wrong("key", "routes", "`admin` takes the role admin as well")
        if body.expires_days is not None and not 0 < body.expires_days <= MOST_DAYS:
            raise _wrong("key", "expires_days", f"must be above 0, and {MOST_DAYS} at most")
        if body.expires_at is not None and not 0 < body.expires_at <= self.at_s + MOST_DAYS * DAY_S:
            raise _wrong("key", "expires_at", f"is a time in seconds since 1970, {MOST_DAYS} days ahead at most")
        for name in ("rpm", "tpm", "parallel"):
            _count("key", name, getattr(body, name))
        expires_s = body.expires_at if body.expires_days is None else self.at_s + int(body.expires_days * DAY_S)
        return Grant(
            payer=payer,
            allow=body.allow,
            policies=body.policies,
            routes=body.routes,
            admin=body.role == "admin",
            limits=Limits(
                limit_nano=_nano("key", "limit_usd", body.limit_usd),
                window=body.window or "lifetime",
                rpm=body.rpm,
                tpm=body.tpm,
                parallel=body.parallel,
            ),
            expires_s=expires_s,
        )

    def _check_names(self, body: KeyBody) -> None:
        if self.snapshot is None:
            return
        catalogue = self.snapshot.catalogue
        known = {*catalogue.models, *catalogue.tiers, *catalogue.providers}
        policies = [name for name in self.snapshot.policies if not name.startswith("tier:")]
        _must_be_known("allow", "model, tier or provider", body.allow, known)
        _must_be_known("policies", "policy", body.policies, policies)

    def _check_match(self, budget: Budget) -> None:
        """By the keys that the grantor may see, or the nearest name would tell of those that it may not."""
        if not self.checked:
            return
        payers = [grant.payer for grant in self.files.values() if self._sees(grant)]
        payers += [key.grant.payer for key in self.book.keys if key.revoked_s is None and self._sees(key.grant)]
        found = check_names(budget, {name for payer in payers for name, _ in payer.tags})
        _refuse(tuple(msgspec.structs.replace(each, where=f"match.{each.where}") for each in found))

    def _must_be_within(self, grant: Grant) -> None:
        if self.grantor is None:
            return
        others = [key.grant.payer for key in self.book.keys if key.grant.name != grant.name]
        others += [file.payer for file in self.files.values()]
        found = keys.wider(grant, self.grantor, self._placed()) + keys.foreign(grant.payer, self.grantor, others)
        if found:
            raise Forbidden(
                f"this would give more than your own key has: {'; '.join(found)}",
                code="wider_than_grantor",
                metadata={"wider": found},
            )

    def _placed(self) -> Placed:
        models = self.snapshot.catalogue.models if self.snapshot else {}
        return {id: (model.tier, model.provider) for id, model in models.items()}

    def _barred(self, budget: Budget) -> str:
        """Why the grantor may not touch this budget; "" when it may. The keys that made it must be allowed to as well:
        or whoever belongs to nobody would make a key for somebody, and have that one do it."""
        if self.grantor is None:
            return ""
        line = [self.grantor]
        for name in self.grantor.payer.within:
            made = self.files.get(name) or (self.issued[name].grant if name in self.issued else None)
            line += [made] if made is not None else []
        return next((why for each in line if (why := keys.governs(each, budget))), "")

    def _must_govern(self, budget: Budget) -> None:
        if why := self._barred(budget):
            raise Forbidden(f"this budget is not yours to change: {why}", code="wider_than_grantor")

    def _must_own(self) -> None:
        if not self.owner:
            raise Forbidden("credits take an admin key that nothing limits", code="wider_than_grantor")

    def _shown(self, key: Issued) -> dict[str, Any]:
        within = key.grant.payer.within
        return {
            **_said(key.grant),
            "object": "key",
            "prefix": key.prefix,
            "state": key.state(self.at_s),
            "source": "file" if key.grant.name in self.files else "runtime",
            "made_at": key.made_s or None,
            "made_by": within[-1] if within else None,
            "rotated_at": key.rotated_s,
            "revoked_at": key.revoked_s,
        }


# ------------------------------------------------------------------------------------------------ bodies and values


def _said(grant: Grant) -> dict[str, Any]:
    """A grant in the words of KeyBody."""
    limits, payer = grant.limits, grant.payer
    return {
        "name": grant.name,
        "role": "admin" if grant.admin else "caller",
        **{name: getattr(payer, name) or None for name in _PAYER},
        "tags": dict(payer.tags),
        "allow": list(grant.allow),
        "policies": list(grant.policies),
        "routes": list(grant.routes),
        "limit_usd": _usd(limits.limit_nano),
        "window": None if limits.limit_nano is None else limits.window,
        "rpm": limits.rpm,
        "tpm": limits.tpm,
        "parallel": limits.parallel,
        "expires_at": grant.expires_s,
    }


def _budget(body: BudgetBody) -> Budget:
    for name, value in body.match.items():
        for part in (name, value):
            if not part or len(part) > 200 or not part.isprintable() or set(part) & set(",=[]/"):
                raise _wrong("budget", "match", f"{part[:50]!r} is empty, or has one of , = [ ] / in it")
    budget = Budget(
        scope=body.scope,
        match=tuple(sorted(body.match.items())),
        limit_nano=_nano("budget", "limit_usd", body.limit_usd),
        **{name: getattr(body, name) for name in BOUNDS},
        window=body.window or "lifetime",
        rolling=body.rolling,
        zone=body.zone or "UTC",
        hard=body.hard,
        reserve_nano=_nano("budget", "reserve_usd", body.reserve_usd),
    )
    said = [name for name in ("window", "zone") if getattr(body, name) is not None]
    _refuse(check(budget, MachineZones(), said=said))
    return budget


def _refuse(found: tuple[Problem, ...]) -> None:
    """Raises BadRequest with all of them."""
    if found:
        raise Misfilled("budget", found)


def _shown_budget(budget: Budget, source: str) -> dict[str, Any]:
    fields = msgspec.structs.asdict(budget)
    money = {"limit_usd": _usd(fields.pop("limit_nano")), "reserve_usd": _usd(fields.pop("reserve_nano"))}
    told = {"object": "budget", "id": keys.budget_id(budget), "source": source, **fields, **money}
    told["match"] = dict(budget.match)
    return {name: value for name, value in told.items() if value is not None}


def _shown_credit(credit: Credit) -> dict[str, Any]:
    return {
        "object": "credit",
        "id": credit.id,
        "scope": credit.scope,
        "subject": credit.subject,
        "amount_usd": credit.amount_nano / NANO_PER_USD,
        "at": credit.at_s,
        "made_by": credit.made_by or None,
    }


def _usd(nano: int | None) -> float | None:
    return None if nano is None else nano / NANO_PER_USD


def _nano(what: str, name: str, usd: float | None) -> int | None:
    if usd is None:
        return None
    if not 0 <= usd <= MOST_USD:
        raise _wrong(what, name, f"must be from 0 to {MOST_USD}")
    try:
        return cap_to_nano(usd, what=name)
    except ValueError as error:
        raise _wrong(what, name, str(error).removeprefix(f"{name}: ")) from None


def _count(what: str, name: str, count: int | None) -> None:
    if count is not None and not 1 <= count <= MAX_NANO:
        raise _wrong(what, name, "must be 1 or more")


def _label(what: str, name: str, value: str) -> str:
    """Names of people and groups: as they are, so long as no log line or account can be taken for another."""
    if not value or len(value) > 200 or not value.isprintable():
        raise _wrong(what, name, f"{value[:50]!r} is no name: 1 to 200 visible characters")
    return value


def _must_be_known(name: str, what: str, given: tuple[str, ...], known: Collection[str]) -> None:
    from difflib import get_close_matches

    for each in given:
        if each not in known:
            near = get_close_matches(each[:200], sorted(known), n=3, cutoff=0.4)
            hint = f"; the nearest are {', '.join(near)}" if near else ""
            raise _wrong("key", name, f"no {what} is named {each[:100]!r}{hint}")


def _wrong(what: str, name: str, why: str) -> BadRequest:
    return Misfilled(what, (Problem(name, why),))
