"""Why a model cannot serve a request: one code, or "" when it can. Used to screen and to explain."""

from __future__ import annotations

import functools

import msgspec

from tierwise.core.catalogue import Ability, Catalogue, Model
from tierwise.core.episode import Episode
from tierwise.core.policy import Screen

# A reply shorter than this is no reply, so a context that leaves less room than this does not fit.
LEAST_OUTPUT_TOKENS = 16


def selected(model: Model, names: tuple[str, ...]) -> bool:
    """Whether one of these names (models, tiers, providers) is this model's."""
    return model.id in names or model.tier in names or model.provider in names


@functools.lru_cache(maxsize=64)  # a plan's names mean the same until another model may not serve
def meant(names: tuple[str, ...], pool: tuple[Model, ...]) -> tuple[Model, ...]:
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


class Needs(msgspec.Struct, frozen=True):
    """What a request asks of any model: worked out once for all of them."""

    read_tokens: int
    written_tokens: int  # for which the context must have room
    max_tokens: int  # that the caller may get; 0: the caller said nothing
    abilities: tuple[tuple[Ability, str], ...]  # each with the code for its absence


def needs(episode: Episode) -> Needs:
    features = episode.features
    read, most = features.input_tokens, features.max_tokens
    if episode.kind == "embedding":
        return Needs(read, 0, most or 0, ())
    abilities: tuple[tuple[Ability, str], ...] = ()
    if features.tools:
        abilities += (("tools", "no_tools"),)
    if features.images:
        abilities += (("images", "no_images"),)
    if features.audio:
        abilities += (("audio", "no_audio"),)
    if features.documents:
        abilities += (("documents", "no_documents"),)
    if features.structured == "schema":
        abilities += (("schema", "no_schema"),)
    elif features.structured == "json":
        abilities += (("json", "no_json"),)
    return Needs(read, LEAST_OUTPUT_TOKENS if most is None else most, most or 0, abilities)


def unfit(model: Model, needed: Needs) -> str:
    """What the model itself cannot do of what the request needs."""
    most, written = model.max_output_tokens, needed.written_tokens
    if needed.max_tokens > most:
        return "output_too_small"
    if needed.read_tokens + (written if written < most else most) > model.context_tokens:
        return "context_too_small"
    for ability, code in needed.abilities:
        if ability not in model.abilities:
            return code
    return ""


@functools.lru_cache(maxsize=16)
def _least(pool: tuple[Model, ...]) -> tuple[int, int]:
    """The least context and the least output of the pool's models."""
    return min([each.context_tokens for each in pool]), min([each.max_output_tokens for each in pool])


def screened(pool: tuple[Model, ...], screen: Screen, episode: Episode) -> dict[str, str]:
    """Whom of the pool the policy's screen rules out, by id, and why."""
    out = {}
    if screen.deny or screen.allow or screen.local or screen.max_usd_per_mtok is not None:
        out = {model.id: code for model in pool if (code := _excluded(model, screen, episode))}
    if screen.fits and pool:
        needed = needs(episode)
        context, output = _least(pool)
        # What the least of them can do is no question to each.
        if needed.abilities or needed.max_tokens > output or needed.read_tokens + needed.written_tokens > context:
            out = {model.id: code for model in pool if (code := out.get(model.id) or unfit(model, needed))}
    return out


def _excluded(model: Model, screen: Screen, episode: Episode) -> str:
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
    return ""
