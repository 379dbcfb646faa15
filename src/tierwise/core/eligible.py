"""Why a model cannot serve a request: one code, or "" when it can. Used to screen and to explain."""

from __future__ import annotations

from collections.abc import Iterable

from tierwise.core.catalogue import Catalogue, Model
from tierwise.core.episode import Episode
from tierwise.core.policy import Screen

# A reply shorter than this is no reply, so a context that leaves less room than this does not fit.
LEAST_OUTPUT_TOKENS = 16


def selected(model: Model, names: tuple[str, ...]) -> bool:
    """Whether one of these names (models, tiers, providers) is this model's."""
    return model.id in names or model.tier in names or model.provider in names


def meant(names: tuple[str, ...], pool: Iterable[Model]) -> tuple[Model, ...]:
    """The models that these names (models, tiers) mean, in the names' order, then the pool's, each once. One look at
    each model, for a catalogue may have hundreds."""
    if len(names) == 1:
        name = names[0]
        return tuple([model for model in pool if model.id == name or model.tier == name])
    named: dict[str, list[Model]] = {name: [] for name in names}
    for model in pool:
        if model.tier in named:
            named[model.tier].append(model)
        if model.id in named and model.id != model.tier:
            named[model.id].append(model)
    return tuple({model.id: model for models in named.values() for model in models}.values())


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
    # Spelled out, for every request asks this of every model.
    abilities = model.abilities
    if features.tools and "tools" not in abilities:
        return "no_tools"
    if features.images and "images" not in abilities:
        return "no_images"
    if features.audio and "audio" not in abilities:
        return "no_audio"
    if features.documents and "documents" not in abilities:
        return "no_documents"
    if features.structured == "schema" and "schema" not in abilities:
        return "no_schema"
    return "no_json" if features.structured == "json" and "json" not in abilities else ""


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
