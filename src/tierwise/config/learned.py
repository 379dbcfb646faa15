"""What was learned and is to serve: an estimator and promises, in the folder `learned` of the state folder.

Every state that was ever promoted is a numbered file that nothing changes again; the highest number serves. So a change
is whole or not there, two writers cannot both make the same number, and going back is going forward with old content.
Artefacts lie beside them, each in a folder named by its hash.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import msgspec

from tierwise.core.check_policy import reachable
from tierwise.core.errors import ConfigError, Problem, TierwiseError
from tierwise.core.estimate import BuiltIn, Estimator
from tierwise.core.learned import Trained
from tierwise.core.policy import Best, Cascade, references
from tierwise.core.promise import Promise, problems
from tierwise.core.snapshot import Snapshot, build

FOLDER = "learned"
ARTEFACTS = "artefacts"
STATE_BYTES_MAX = 8 << 20


class State(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What serves from this number on. `estimator` "" is the built-in one."""

    version: int = 1
    serial: int
    at_s: int
    estimator: str = ""
    promises: tuple[Promise, ...] = ()
    note: str = ""  # who or what promoted it, and why


class Learned:
    """The folder of one state folder; it need not exist."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / FOLDER
        self._seen = -1

    @property
    def artefacts(self) -> Path:
        return self.folder / ARTEFACTS

    def serials(self) -> list[int]:
        """Ascending."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _unusable(self.folder, f"cannot be read ({error.strerror})") from None
        return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())

    def changed(self) -> bool:
        """Whether there is another newest state than the last time this was asked or one was read."""
        newest = self.serials()[-1:]
        return (newest[0] if newest else 0) != self._seen

    def doubt(self) -> None:
        """Whether the newest state serves is no longer known: `changed` says so until one is read."""
        self._seen = -1

    def read(self, serial: int | None = None) -> State | None:
        """This state, else the newest; None when nothing was ever promoted. Raises ConfigError."""
        known = self.serials()
        if serial is None:
            self._seen = known[-1] if known else 0
            if not known:
                return None
            serial = known[-1]
        path = self.folder / _name(serial)
        try:
            with path.open("rb") as file:
                data = file.read(STATE_BYTES_MAX + 1)
            if len(data) > STATE_BYTES_MAX:
                raise _unusable(path, f"is larger than {STATE_BYTES_MAX >> 20} MiB")
            return msgspec.json.decode(data, type=State)
        except FileNotFoundError:
            told = f"there are {known[0]} to {known[-1]}" if known else "nothing was promoted yet"
            raise _unusable(self.folder, f"there is no state {serial}; {told}") from None
        except OSError as error:
            raise _unusable(path, f"cannot be read ({error.strerror})") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _unusable(
                path, f"is no promoted state ({error}); `tierwise rollback` goes back to one before it"
            ) from None

    def write(self, make: Callable[[State], State]) -> State:
        """The next state, made from the newest one. `make` may be asked again when somebody else was quicker."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            before = self.read() or State(serial=0, at_s=0)
            after = msgspec.structs.replace(make(before), serial=before.serial + 1, at_s=int(time.time()))
            if _placed(self.folder, _name(after.serial), msgspec.json.format(msgspec.json.encode(after), indent=1)):
                return after

    def rollback(self, to: int | None = None) -> State:
        """What served before, or at the number `to`, serves again. Raises ConfigError when there is no such state."""
        known = self.serials()
        if not known:
            raise _unusable(self.folder, "there is nothing to go back to: nothing was promoted yet")
        if to is None:
            to = known[-2] if len(known) > 1 else 0
        # Before the first there was the estimator that nobody trained.
        old = self.read(to) if to else State(serial=0, at_s=0)
        assert old is not None  # noqa: S101  (read of a number raises)
        promises = self.still(old.promises)
        return self.write(lambda _: msgspec.structs.replace(old, promises=promises, note=f"rolled back to {to}"))

    def still(self, promises: Iterable[Promise]) -> tuple[Promise, ...]:
        """These, with what was ever withdrawn of them: nothing but a new calibration brings it back. Raises
        ConfigError when the folder cannot be read."""
        found = {(each.name, each.made_s, each.data_hash): each for each in promises}
        for serial in self.serials() if found else ():
            try:
                state = self.read(serial)
            except ConfigError:
                continue  # it never served
            for past in state.promises if state else ():
                key = (past.name, past.made_s, past.data_hash)
                for segment in past.segments:
                    if key in found and segment.status == "withdrawn":
                        found[key] = found[key].withdrawn(segment.workload, segment.why, segment.since_s or 0)
        return tuple(found.values())

    def withdraw(self, promise: str, workload: str, why: str) -> State:
        """The safe plan for this segment from now on. Another call for the same segment changes nothing."""

        def without(state: State) -> State:
            now_s = int(time.time())
            found = tuple(
                each.withdrawn(workload, why, now_s) if each.name == promise else each for each in state.promises
            )
            return msgspec.structs.replace(state, promises=found, note=f"promise {promise} withdrawn: {why}")

        return self.write(without)

    def estimator(self, id: str) -> Estimator:
        """Raises ConfigError when the artefact is not there or not sound."""
        if not id:
            return BuiltIn()
        from tierwise.study.training.artefact import load

        try:
            return load(self.artefacts, id)
        except (OSError, ValueError, TierwiseError) as error:
            # What is wrong names the file.
            raise ConfigError((Problem(f"estimator {id} cannot serve", self._lacking(id) or str(error)),)) from None

    def estimators(self) -> list[str]:
        """Ids of all artefacts that are here, ascending."""
        try:
            return sorted(each.name for each in self.artefacts.iterdir() if not each.name.startswith("."))
        except OSError:
            return []

    def _lacking(self, id: str) -> str:
        """What to say of an id that is none here; "" when it is one."""
        known = self.estimators()
        if id in known:
            return ""
        there = f"there are {', '.join(known[:5])}" if known else "`tierwise fit` makes one"
        return f"there is none of this id in {self.artefacts}; {there}"

    def taught(self, plain: Snapshot, *, grams: bool) -> tuple[Snapshot, tuple[str, ...]]:
        """This catalogue and these policies with what was learned, and what there is to say about it. A state that
        cannot serve leaves the newest before it that can: a bad artefact costs its savings, never a request."""
        notes: list[str] = []
        serials = self.serials()
        self._seen = serials[-1] if serials else 0
        for serial in reversed(serials):
            try:
                state = self.read(serial)
                assert state is not None  # noqa: S101
                wrong = unsound(state.promises)
                if wrong:
                    raise _unusable(self.folder / _name(serial), f"cannot serve: {wrong[0]}")
                found = build_with(plain, self.estimator(state.estimator), state.promises, grams=grams)
            except ConfigError as error:
                notes.append(f"What was promoted as number {serial} does not serve: {error.problems[0]}")
                continue
            return found, tuple(notes)
        return build_with(plain, BuiltIn(), (), grams=grams), tuple(notes)


def build_with(snapshot: Snapshot, estimator: Estimator, promises: tuple[Promise, ...], *, grams: bool) -> Snapshot:
    """This catalogue and these policies with another estimator and other promises. `grams`: kept to learn from, even
    when nothing that serves reads them."""
    named = {name: policy for name, policy in snapshot.policies.items() if not name.startswith("tier:")}
    return build(snapshot.catalogue, named, estimator, promises, grams=grams)


def unpromised(snapshot: Snapshot) -> tuple[str, ...]:
    """A sentence for each plan that names a promise which lets nobody answer, for nothing of it is certified here."""
    certified = [
        name for name, each in snapshot.promises.items() if any(part.status == "certified" for part in each.segments)
    ]
    found: dict[tuple[str, str], str] = {}
    for policy in snapshot.policies.values():
        rungs = {rung for plan in policy.plans.values() if isinstance(plan, Cascade) for rung in plan.cascade[:-1]}
        for name, plan in policy.plans.items():
            if isinstance(plan, Best) and plan.promise and plan.promise not in certified:
                known = snapshot.promises.get(plan.promise)
                safe = f"requests go to {known.reference if known else snapshot.catalogue.reliable}"
                found[name, plan.promise] = "its rung is left out" if name in rungs else safe
    there = ", ".join(certified) or "none"
    return tuple(
        f"The plan {plan} names the promise {promise}, which is not certified here (certified: {there}): {so} until "
        "it is promoted."
        for (plan, promise), so in found.items()
    )


def strangers(
    estimator: Estimator, promises: tuple[Promise, ...], snapshot: Snapshot, known: Collection[str] = ()
) -> list[str]:
    """What of these cannot serve with this catalogue, each a sentence: names that it does not have, promises about
    another estimator. `known`: ids of the estimators that are there to be promoted."""
    models, found = snapshot.catalogue.models, []
    if isinstance(estimator, Trained):
        missing = [name for name in estimator.models if name not in models]
        if len(missing) == len(estimator.models):
            found.append(f"none of the models that it was trained on is in the catalogue: {', '.join(missing[:5])}")
    own = estimator.id if isinstance(estimator, Trained) else ""
    found += unsound(promises)
    for promise in promises:
        if promise.estimator != own:
            there = promise.estimator in known
            found.append(
                f"promise {promise.name} is about estimator {promise.estimator or 'built in'}"
                + (f", and not {own or 'the built-in one'}: add --estimator {promise.estimator}" if there else "")
                + ("" if there else ": calibrate again")
            )
        names = {promise.reference, *(name for each in promise.segments for name in each.models)}
        found += [
            f"promise {promise.name} names {name}, which the catalogue lacks" for name in sorted(names - set(models))
        ]
        found += _misled(promise, snapshot)
    return found


def _misled(promise: Promise, snapshot: Snapshot) -> Iterator[str]:
    """Cascades that climb from this promise to somebody else than its reference: what they lose nobody certified."""
    for policy in snapshot.policies.values():
        for name, plan in policy.plans.items():
            if not isinstance(plan, Cascade):
                continue
            rungs = [policy.plans.get(each) for each in plan.cascade[:-1]]
            if not any(isinstance(rung, Best) and rung.promise == promise.name for rung in rungs):
                continue
            last = plan.cascade[-1]
            ends = {last} | {
                each for plan_name in reachable(policy, last) for _, each in references(policy.plans[plan_name])
            }
            model = snapshot.catalogue.models.get(promise.reference)
            if model is not None and not ends & {model.id, model.tier}:
                yield (
                    f"promise {promise.name} is against {model.id}, and the cascade {name!r} ends in {last!r}, which "
                    "does not lead there"
                )


def unsound(promises: Iterable[Promise]) -> list[str]:
    """Which of these no calibration can have made, and why, each a sentence."""
    return [f"promise {ascii(promise.name)[1:-1]}: {what}" for promise in promises for what in problems(promise)]


def _name(serial: int) -> str:
    return f"{serial:06d}.json"


def _placed(folder: Path, name: str, data: bytes) -> bool:
    """Written whole and for good under this name; False when the name was taken meanwhile."""
    try:
        made = _durable(folder, data)
        try:
            os.link(made, folder / name)  # unlike a rename, this never replaces
            _synced(folder)
        finally:
            os.unlink(made)
    except FileExistsError:
        return False
    except OSError as error:
        raise _unusable(folder, f"cannot be written ({error.strerror})") from None
    return True


def written(path: Path, data: bytes) -> None:
    """This file from now on has these bytes, or those it had. Raises ConfigError when it cannot be written."""
    try:
        made = _durable(path.parent, data)
        os.replace(made, path)
        _synced(path.parent)
    except OSError as error:
        raise _unusable(path, f"cannot be written ({error.strerror})") from None


def _durable(folder: Path, data: bytes) -> str:
    handle, made = tempfile.mkstemp(dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        os.unlink(made)  # a full disk is not to be fuller
        raise
    return made


def _synced(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unusable(path: Path, what: str) -> ConfigError:
    return ConfigError((Problem(str(path), what),))
