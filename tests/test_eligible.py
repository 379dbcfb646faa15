"""Who may serve, found for all models at once, is who may serve when each is asked each question."""

from __future__ import annotations

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.stories import FEATURES, HINTS, SEVERAL
from tests.support.worlds import MODELS, catalogue, episode, model, world
from tierwise.core.catalogue import Model
from tierwise.core.decide import decide
from tierwise.core.eligible import LEAST_OUTPUT_TOKENS, barred, meant, screened, selected
from tierwise.core.episode import Episode
from tierwise.core.policy import Keep, Screen
from tierwise.core.request import Features, Hints
from tierwise.core.snapshot import build
from tierwise.core.weigh import billed_model

ANY = settings(suppress_health_check=[HealthCheck.too_slow])
KINDS = st.sampled_from(("chat", "chat", "chat", "embedding"))
NEEDED = {"tools": "no_tools", "images": "no_images", "audio": "no_audio", "documents": "no_documents"}


def changed(model: Model) -> st.SearchStrategy[Model]:
    return st.builds(
        msgspec.structs.replace,
        st.just(model),
        kind=KINDS,
        price=st.sampled_from((None, model.price, model.price, model.price)),
        context_tokens=st.sampled_from((9, *[10**6] * 9)),
        max_output_tokens=st.integers(0, 5_000),
        abilities=st.sampled_from(((), ("tools", "json"), model.abilities)),
    )


POOLS = st.tuples(*map(changed, MODELS))
TWIN = model("acme/models/mid", "fast", 9.0, 9.0, 0.5)
# Most requests need nothing of a model but room.
PLAIN = FEATURES.map(lambda each: msgspec.structs.replace(each, tools=0, images=0, structured="none"))


def code_of(model: Model, screen: Screen, story: Episode) -> str:
    """Each question to this model alone."""
    features = story.features
    if selected(model, screen.deny):
        return "denied_by_policy"
    if screen.allow and not selected(model, screen.allow):
        return "not_allowed_by_policy"
    if screen.local and not model.local:
        return "not_local"
    if screen.max_usd_per_mtok is not None:
        if model.price is None:
            return "unpriced"
        if model.price.rows[0].rates.input_tokens > screen.max_usd_per_mtok * 1e9:
            return "too_dear"
    if not screen.fits:
        return ""
    asked = features.max_tokens
    if asked is not None and asked > model.max_output_tokens:
        return "output_too_small"
    written = min(LEAST_OUTPUT_TOKENS if asked is None else asked, model.max_output_tokens)
    if features.input_tokens + (0 if story.kind == "embedding" else written) > model.context_tokens:
        return "context_too_small"
    if story.kind == "embedding":
        return ""
    lacks = [code for name, code in NEEDED.items() if getattr(features, name) and name not in model.abilities]
    if features.structured != "none" and features.structured not in model.abilities:
        lacks.append(f"no_{features.structured}")
    return lacks[0] if lacks else ""


@ANY
@given(
    POOLS,
    st.builds(
        Screen,
        fits=st.booleans(),
        deny=st.just(()) | SEVERAL,
        allow=st.just(()) | SEVERAL,
        local=st.booleans(),
        max_usd_per_mtok=st.sampled_from((None, None, 0.3)),
    )
    | st.just(Screen()),
    FEATURES | PLAIN,
    KINDS,
)
def test_a_screen_rules_out_whom_its_questions_rule_out(
    pool: tuple[Model, ...], screen: Screen, features: Features, kind: str
) -> None:
    story = episode(world(), features=features, kind=kind)
    asked = {model.id: code_of(model, screen, story) for model in pool}
    assert screened(pool, screen, story) == {name: code for name, code in asked.items() if code}
    assert screened((), screen, story) == {}


@ANY
@given(POOLS, HINTS, st.just(()) | SEVERAL, KINDS, st.sampled_from(("refuse", "allow")))
def test_every_model_that_nobody_bars_is_a_candidate(
    models: tuple[Model, ...], hints: Hints, grants: tuple[str, ...], kind: str, unpriced: str
) -> None:
    """And each other one of its kind says why not."""
    rows = catalogue(*models, unpriced=unpriced)
    plain = msgspec.structs.replace(hints, min_quality=None, max_latency_ms=None, max_cost_nano=None)
    default = world({"all": Keep(Screen(fits=False), then="most"), "most": world().policies["default"].plans["choose"]})
    snapshot = build(rows, {"default": default.policies["default"]})
    story = episode(snapshot, hints=plain, grants=grants, kind=kind)
    codes = {model.id: barred(model, story, rows) for model in models}
    seen = {each.model: each.code for each in decide(snapshot, story).candidates}
    assert seen.keys() == {name for name, code in codes.items() if code != "wrong_kind"}
    assert {name: code for name, code in seen.items() if codes[name]} == {
        name: codes[name] for name in seen if codes[name]
    }


@given(SEVERAL, st.permutations(MODELS), st.integers(0, 4))
def test_names_mean_models_in_their_order_and_then_the_catalogues(
    names: tuple[str, ...], models: list[Model], size: int
) -> None:
    pool = tuple(models[:size])
    found = [model for name in names for model in pool if name in (model.id, model.tier)]
    assert meant(names, pool) == tuple(dict.fromkeys(found))


@given(
    POOLS.map(lambda pool: (*pool, TWIN)),
    st.sampled_from(["big", "mid", "MID", "tiny", "mid-2024-07-18", "small", "acme/big", ""]),
)
def test_a_reply_is_billed_as_its_providers_model_of_that_name_or_as_the_dearest(
    models: tuple[Model, ...], served: str
) -> None:
    rows, name = catalogue(*models), served.rsplit("/", 1)[-1].casefold()
    for routed in models:
        own = routed.name.removeprefix("models/")
        family = [model for model in models if model.provider == routed.provider]
        same = [model for model in family if model.name.removeprefix("models/") == name]
        billed = billed_model(rows, routed, served)
        if name in ("", own) or name.removesuffix("-2024-07-18") == own:
            assert billed == routed
        elif same and same[0].price:
            assert billed == same[0]
        else:
            priced = [model for model in family if model.price]
            dearest = max(priced, key=lambda each: each.price.rows[0].rates.output_tokens, default=routed)  # type: ignore[union-attr]
            assert billed == dearest
