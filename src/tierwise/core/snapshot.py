"""Everything we know, frozen under one hash: catalogue, policies, estimator. Taken once per request, swapped whole."""

from __future__ import annotations

import functools
import hashlib

import msgspec

from tierwise.core.catalogue import Catalogue
from tierwise.core.check_policy import check
from tierwise.core.errors import Problem
from tierwise.core.estimate import BuiltIn, Estimator
from tierwise.core.learned import Trained
from tierwise.core.policy import Best, Keep, Plan, Policy, Screen, keywords
from tierwise.core.promise import Promise

SNAPSHOT_VERSION = 1


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """`policies` holds at least `default`, and one for each tier asked for by name. `keywords` is what the
    feature reader looks for, from every policy."""

    hash: str
    catalogue: Catalogue
    policies: dict[str, Policy]
    estimator: Estimator
    keywords: tuple[str, ...]
    promises: dict[str, Promise]  # by name
    grams: bool  # whether the words' hashes are kept, to serve or to learn from

    @functools.cached_property
    def reads_grams(self) -> bool:
        """Whether decisions need them; else whoever keeps the episode makes them, when there is time."""
        return isinstance(self.estimator, Trained)


class _Content(msgspec.Struct, frozen=True, omit_defaults=True):
    version: int
    catalogue: Catalogue
    policies: dict[str, Policy]
    estimator: Estimator
    promises: tuple[Promise, ...] = ()
    grams: bool = False


# The order of models and tiers has a meaning, so it is part of the hash: no sorting here.
_ENCODER = msgspec.json.Encoder()


def build(
    catalogue: Catalogue,
    policies: dict[str, Policy],
    estimator: Estimator = BuiltIn(),
    promises: tuple[Promise, ...] = (),
    *,
    grams: bool = False,
) -> Snapshot:
    """Freeze these under their hash. The caller has checked the policies (`problems`). A trained estimator reads grams
    whatever `grams` says."""
    grams = grams or isinstance(estimator, Trained)
    content = _Content(SNAPSHOT_VERSION, catalogue, policies, estimator, promises, grams)
    digest = hashlib.sha256(_ENCODER.encode(content)).hexdigest()[:16]
    words = tuple(dict.fromkeys(word for policy in policies.values() for word in keywords(policy)))
    usual = policies.get("default")
    served = policies | {tier_policy(tier): _for_tier(tier, usual) for tier in catalogue.tiers}
    return Snapshot(
        hash=digest,
        catalogue=catalogue,
        policies=served,
        estimator=estimator,
        keywords=words,
        promises={promise.name: promise for promise in promises},
        grams=grams,
    )


def tier_policy(tier: str) -> str:
    """The name of the policy that answers a request for this tier."""
    return f"tier:{tier}"


def _for_tier(tier: str, usual: Policy | None) -> Policy:
    """A tier asked for by name: its best model, under the default policy's screen, amounts and limits."""
    first = usual.plans.get(usual.start) if usual else None
    screen = first.keep if isinstance(first, Keep) else Screen()
    plans: dict[str, Plan] = {"screen": Keep(keep=screen, then="tier"), "tier": Best(best=(tier,))}
    policy = usual or Policy(name="", start="", plans={})
    return msgspec.structs.replace(policy, name=tier_policy(tier), start="screen", plans=plans)


def problems(catalogue: Catalogue, policies: dict[str, Policy]) -> tuple[Problem, ...]:
    """Every reason why these cannot be frozen together."""
    return tuple(problem for policy in policies.values() for problem in check(policy, catalogue))


def dump(snapshot: Snapshot) -> bytes:
    """As bytes that `load` reads strictly, in any process."""
    named = {name: policy for name, policy in snapshot.policies.items() if not name.startswith("tier:")}
    promises = tuple(snapshot.promises.values())
    return _ENCODER.encode(
        _Content(SNAPSHOT_VERSION, snapshot.catalogue, named, snapshot.estimator, promises, snapshot.grams)
    )


def load(data: bytes) -> Snapshot:
    """Raises msgspec.ValidationError for anything that is not exactly a snapshot of this version."""
    content = msgspec.json.decode(data, type=_Content)
    if content.version != SNAPSHOT_VERSION:
        raise msgspec.ValidationError(f"snapshot version {content.version}, this build reads {SNAPSHOT_VERSION}")
    return build(content.catalogue, content.policies, content.estimator, content.promises, grams=content.grams)
