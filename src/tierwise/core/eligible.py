"""Why a model cannot serve a request: one code, or "" when it can. Used to screen and to explain."""

from __future__ import annotations

from tierwise.core.catalogue import Ability, Catalogue, Model
from tierwise.core.episode import Episode
from tierwise.core.policy import Screen

# A reply shorter than this is no reply, so a context that leaves less room than this does not fit.
LEAST_OUTPUT_TOKENS = 16


def selected(model: Model, names: tuple[str, ...]) -> bool:
    """Whether one of these names (models, tiers, providers) is this model's."""
    return model.id in names or model.tier in names or model.provider in names


def barred(model: Model, episode: Episode, catalogue: Catalogue) -> str:
    """What the caller, its key or the catalogue rules out, whatever the policy says."""
    hints = episode.hints
    if model.kind != episode.kind:
        return "wrong_kind"
    if episode.grants and not selected(model, episode.grants):
        return "not_granted"
    if hints.deny and selected(model, hints.deny):
        return "denied_by_caller"
    if hints.allow and not selected(model, hints.allow):
        return "not_allowed_by_caller"
    if hints.locality == "local" and not model.local:
        return "not_local"
    if model.price is None and catalogue.unpriced == "refuse":
        return "unpriced"
    return ""


def unfit(model: Model, episode: Episode) -> str:
    """What the model itself cannot do of what the request needs."""
    features = episode.features
    wanted = features.max_tokens if features.max_tokens is not None else LEAST_OUTPUT_TOKENS
    if features.max_tokens is not None and features.max_tokens > model.max_output_tokens:
        return "output_too_small"
    if episode.kind == "embedding":
        return "context_too_small" if features.input_tokens > model.context_tokens else ""
    if features.input_tokens + min(wanted, model.max_output_tokens) > model.context_tokens:
        return "context_too_small"
    needs: tuple[tuple[bool | int, Ability, str], ...] = (
        (features.tools, "tools", "no_tools"),
        (features.images, "images", "no_images"),
        (features.audio, "audio", "no_audio"),
        (features.documents, "documents", "no_documents"),
        (features.structured == "schema", "schema", "no_schema"),
        (features.structured == "json", "json", "no_json"),
    )
    for needed, ability, code in needs:
        if needed and ability not in model.abilities:
            return code
    return ""


def screened(model: Model, screen: Screen, episode: Episode) -> str:
    """What the policy's screen rules out."""
    if screen.deny and selected(model, screen.deny):
        return "denied_by_policy"
    if screen.allow and not selected(model, screen.allow):
        return "not_allowed_by_policy"
    if screen.local and not model.local:
        return "not_local"
    if screen.max_usd_per_mtok is not None:
        if model.price is None:
            return "unpriced"
        rate = model.price.rates(episode.at_s, episode.features.input_tokens, episode.service).input_tokens
        if rate > screen.max_usd_per_mtok * 1_000_000_000:
            return "too_dear"
    return unfit(model, episode) if screen.fits else ""
