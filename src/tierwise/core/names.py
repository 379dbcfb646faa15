"""What a caller's model name means: a policy, a preset, a tier, or one model that is never rerouted."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Literal

import msgspec

from tierwise.core.errors import BadRequest, Unknown
from tierwise.core.policy import PRESETS
from tierwise.core.snapshot import Snapshot, tier_policy

AUTO = "auto"
# For clients that show only names of the vendor they were made for.
CLAUDE_ALIAS = "claude-auto"
FEW, MANY = 3, 10  # names in a sentence
_LISTED = " (GET /v1/models lists them)"


class Meaning(msgspec.Struct, frozen=True):
    """`pinned` is "" when a policy is to choose."""

    policy: str
    pinned: str = ""


def meaning(snapshot: Snapshot, name: str, policy_hint: str | None, kind: Literal["chat", "embedding"]) -> Meaning:
    """Raises Unknown, with the nearest names, for a name that means nothing here, and BadRequest for one that cannot
    make what is asked for."""
    found = _meaning(snapshot, name, policy_hint, kind)
    models = snapshot.catalogue.models
    if found.pinned and models[found.pinned].kind != kind:
        makes = "makes embeddings; use /v1/embeddings" if kind == "chat" else f"makes none; {_embedders(snapshot)}"
        raise BadRequest(f"{found.pinned} {makes}", code="wrong_kind", param="model")
    if kind == "embedding" and found.policy == tier_policy(name):
        if not any(model.tier == name and model.kind == kind for model in models.values()):
            what = f"no model of tier {name} makes embeddings; {_embedders(snapshot)}"
            raise BadRequest(what, code="wrong_kind", param="model")
    return found


def _meaning(snapshot: Snapshot, name: str, policy_hint: str | None, kind: Literal["chat", "embedding"]) -> Meaning:
    policy = _policy(snapshot, policy_hint, "policy") if policy_hint else "default"
    if name in ("", AUTO, CLAUDE_ALIAS):
        return Meaning(policy, _one_embedding(snapshot) if kind == "embedding" else "")
    if name.startswith(("auto/", "auto:")):
        return Meaning(_policy(snapshot, name[5:]), _one_embedding(snapshot) if kind == "embedding" else "")
    catalogue = snapshot.catalogue
    if name in catalogue.tiers:
        return Meaning(tier_policy(name))
    if name in catalogue.models:
        return Meaning(policy, name)
    # provider:model is read as well; a bare name is enough where only one provider has it.
    slashed = name.replace(":", "/", 1)
    if slashed in catalogue.models:
        return Meaning(policy, slashed)
    bare = [model.id for model in catalogue.models.values() if model.name == name]
    if len(bare) == 1:
        return Meaning(policy, bare[0])
    if bare:
        raise Unknown(
            f"{len(bare)} providers have a model {name!r}; name one of: {', '.join(bare)}",
            code="model_not_found",
            param="model",
        )
    raise Unknown(
        f"no model, tier or policy is named {name[:200]!r}{_hint(name, offered(snapshot)) or _there_are(snapshot)}",
        code="model_not_found",
        param="model",
        metadata={"nearest": _near(name, offered(snapshot))},
    )


def check_selectors(snapshot: Snapshot, what: str, names: tuple[str, ...]) -> None:
    """Raises BadRequest for a name under `allow` or `deny` that is no model, tier or provider: it would do nothing."""
    catalogue = snapshot.catalogue
    for name in names:
        if name not in catalogue.models and name not in catalogue.tiers and name not in catalogue.providers:
            known = [*catalogue.tiers, *catalogue.providers, *catalogue.models]
            raise BadRequest(
                f"{what}: no model, tier or provider is named {name[:200]!r}{_hint(name, known)}",
                code="invalid_hint",
                param=what,
            )


def offered(snapshot: Snapshot) -> list[str]:
    """Every name that a caller may use, the policies first."""
    named = [name for name in snapshot.policies if name != "default" and not name.startswith("tier:")]
    policies = [f"auto:{name}" if name in PRESETS else f"auto/{name}" for name in named]
    return [AUTO, *policies, *snapshot.catalogue.tiers, *snapshot.catalogue.models, CLAUDE_ALIAS]


def _policy(snapshot: Snapshot, name: str, param: str = "model") -> str:
    if name in snapshot.policies and not name.startswith("tier:"):
        return name
    known = [each for each in snapshot.policies if not each.startswith("tier:")]
    raise Unknown(
        f"no policy is named {name[:200]!r}{_hint(name, known) or f'; there are {_few(known)}{_LISTED}'}",
        code="policy_not_found",
        param=param,
        metadata={"nearest": _near(name, known)},
    )


def _one_embedding(snapshot: Snapshot) -> str:
    """Vectors of different models cannot be compared, so `auto` is always the same embedding model."""
    for model in snapshot.catalogue.models.values():
        if model.kind == "embedding":
            return model.id
    raise BadRequest("no embedding model is configured; add one under `models`", code="model_not_found", param="model")


def _embedders(snapshot: Snapshot) -> str:
    names = [model.id for model in snapshot.catalogue.models.values() if model.kind == "embedding"]
    return f"ask for {' or '.join(names[:FEW])}" if names else "none is configured: add one under `models`"


def _there_are(snapshot: Snapshot) -> str:
    models = list(snapshot.catalogue.models)
    others = [name for name in offered(snapshot) if name not in snapshot.catalogue.models and name != CLAUDE_ALIAS]
    return f"; there are {_few(others)}, and models such as {', '.join(models[:FEW])}{_LISTED}"


def _few(names: list[str]) -> str:
    return f"{', '.join(names[:MANY])}{', ...' * (len(names) > MANY)}"


def _near(name: str, known: list[str]) -> list[str]:
    return get_close_matches(name[:200], known, n=3, cutoff=0.4)


def _hint(name: str, known: list[str]) -> str:
    close = _near(name, known)
    return f"; the nearest are {', '.join(close)}" if close else ""
