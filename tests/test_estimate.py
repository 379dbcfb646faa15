"""The built-in estimator: laws that any estimator must keep, and whether a first install routes sensibly."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.core.catalogue import Model
from tierwise.core.estimate import (
    PREFILL_PER_TOKEN,
    SLOWEST,
    TASK_WEIGHTS,
    THINKING_SHARE,
    THINKING_USED,
    BuiltIn,
    Estimate,
    _one,
    _visible_tokens,
    estimate,
    estimate_all,
    outlook,
)
from tierwise.core.features import extract
from tierwise.core.learned import Score
from tierwise.core.money import NANO_PER_USD, Price, PriceRow, Rates
from tierwise.core.policy import BALANCED, PRESETS, Amounts
from tierwise.core.request import Features, Prompt, Turn

BUILT_IN = BuiltIn()


def model(tier: str, skill: float, input_usd: float, output_usd: float, first_ms: int, rate: float, **more) -> Model:
    rates = Rates.of(int(input_usd * NANO_PER_USD), int(output_usd * NANO_PER_USD))
    return Model(
        id=f"acme/{tier}",
        provider="acme",
        name=tier,
        tier=tier,
        price=Price((PriceRow(rates),), "config"),
        skill=skill,
        first_token_ms=first_ms,
        tokens_per_second=rate,
        **more,
    )


LOCAL = model("local", 0.35, 0.02, 0.06, 200, 90)
FAST = model("fast", 0.60, 0.25, 1.25, 500, 140)
FRONTIER = model("frontier", 0.90, 3.0, 15.0, 900, 60)
TIERS = (LOCAL, FAST, FRONTIER)


def price_nano(features: Features, candidate: Model, found: Estimate, amounts: Amounts, money: float = 1.0) -> float:
    """What `best` weighs, for a user who waits: expected cost, the chance of a miss, and the waiting."""
    assert candidate.price is not None
    rates = candidate.price.rows[0].rates
    cost = (features.input_tokens * rates.input_tokens + found.output_tokens * rates.output_tokens) / 1e6
    miss = (1.0 - found.quality.mid) * amounts.miss_user_nano
    return cost * money + miss + found.latency_ms / 1_000 * amounts.second_interactive_nano


def tier_of(prompt: str | Prompt, amounts: Amounts = BALANCED, money: float = 1.0) -> str:
    features = extract(asked(prompt) if isinstance(prompt, str) else prompt)
    found = estimate_all(BUILT_IN, features, TIERS)
    prices = [price_nano(features, each, guess, amounts, money) for each, guess in zip(TIERS, found, strict=True)]
    return TIERS[prices.index(min(prices))].tier


def asked(text: str, system: str = "") -> Prompt:
    turns = (Turn("system", system), Turn("user", text)) if system else (Turn("user", text),)
    return Prompt(turns=turns, size_bytes=80 + sum(len(turn.text.encode()) for turn in turns))


ARTICLE = (
    "The city council met on Tuesday to discuss the new tram line. Supporters say that it will cut traffic in the "
    "centre by a fifth; shop owners fear two years of building work. The vote was moved to the spring. "
) * 6

ROUTES: tuple[tuple[str, str], ...] = (
    # (tiers that a sensible person would accept, prompt)
    ("local", "hi"),
    ("local", "Hello, how are you today?"),
    ("local", "Guten Morgen!"),
    ("local", "merci beaucoup"),
    ("local", "¡Hola! ¿Qué tal?"),
    ("local", "Thanks a lot!"),
    ("local", "Extract the email address from: 'Please write to ada@example.org before Friday.'"),
    ("local", "Extract the invoice number and the date. Invoice 2024-117, issued 3 May 2024, total 90 EUR."),
    ("local", "Extrahiere den Namen und das Datum: Frau Weber war am 3. Mai hier."),
    ("local", "Classify the sentiment of this review as positive, negative or neutral: 'Fast delivery, works well.'"),
    ("local", "Is this spam or not? Answer yes or no. 'You have won a free cruise, click here'"),
    ("local", "Klassifiziere die Stimmung: positiv oder negativ? 'Das Essen war kalt und der Kellner unfreundlich.'"),
    ("local", "Clasifica este comentario como positivo o negativo: 'El hotel era precioso.'"),
    ("local fast", "Translate to French: Where is the railway station?"),
    ("local fast", "Übersetze ins Englische: Wir treffen uns um acht Uhr am Bahnhof."),
    ("local fast", "Is the following message toxic? Answer safe or unsafe: 'you are an idiot'"),
    ("fast", "What is the capital of Australia, and why is it not Sydney?"),
    ("local fast", "What is the boiling point of ethanol?"),
    ("fast", "How do I remove a red wine stain from a wool carpet?"),
    ("fast", "Was ist der Unterschied zwischen einer GmbH und einer AG?"),
    ("fast", "Quelles sont les meilleures façons d'économiser de l'argent en voyage ?"),
    ("fast", "¿Cómo puedo dormir mejor por la noche?"),
    ("local fast", f"Summarise the following article in three bullet points:\n\n{ARTICLE}"),
    ("local fast", f"Fasse den folgenden Text in drei Sätzen zusammen:\n\n{ARTICLE}"),
    ("fast", "Write a short birthday poem for my grandmother who likes gardening."),
    ("fast", "Write a friendly email to my landlord asking to fix the heating."),
    ("fast", "Write a Python function that reverses a string."),
    ("fast", "Escribe una función en Python que sume una lista de números."),
    ("fast frontier", "What does this regex match: ^[a-z]+\\d{2,4}$ ?"),
    (
        "fast frontier",
        "A train leaves at 9:40 and arrives at 12:05, travelling 203 km. What is its average speed in km/h?",
    ),
    (
        "fast frontier",
        "Natalia sold 48 clips in April and half as many in May. How many clips did she sell altogether?",
    ),
    ("frontier", "Prove that there are infinitely many primes of the form 4k+3. Be rigorous."),
    (
        "frontier",
        "Beweise Schritt für Schritt, dass die Wurzel aus 2 irrational ist, und erkläre, warum jeder Schritt gilt.",
    ),
    (
        "frontier",
        "Démontrez que toute suite de Cauchy converge dans R, étape par étape, et expliquez pourquoi c'est nécessaire.",
    ),
    ("frontier", "Demuestra paso a paso que la suma de dos números irracionales puede ser racional y por qué."),
    ("frontier", "请证明根号2是无理数，并分析每一步为什么成立，比较两种不同的证明方法。"),
    (
        "frontier",
        "Design the architecture of a distributed rate limiter in Go for five regions. It must be thread-safe, must "
        "never admit more than 2% above the limit, and must survive the loss of one region without a restart. "
        "Explain the trade-offs between consistency and latency, compare at least two algorithms, and implement the "
        "core with unit tests that cover the race conditions.",
    ),
    (
        "frontier",
        "Debug this: our async job queue deadlocks under load. Analyse the root cause step by step and propose a "
        "fix that must not change the public API and must keep ordering per key.\n```python\nasync def take(self):\n"
        "    async with self.lock:\n        while not self.items:\n            await self.not_empty.wait()\n"
        "        item = self.items.popleft()\n        async with self.stats_lock:\n            self.taken += 1\n"
        "        return item\n```",
    ),
    (
        "frontier",
        "Analyse the causal argument in this study: people who drink tea live longer, because tea lowers blood "
        "pressure. Assess the evidence step by step, consider confounders and reverse causality, compare two study "
        "designs that could settle it, and justify which is optimal given a limited budget.",
    ),
    (
        "frontier",
        "Derive the closed form of the sum of k^2 from 1 to n by induction, then prove that it is optimal to "
        "evaluate it in constant time, and explain why the naive loop overflows.",
    ),
)


# Written after the weights, to see what a stranger's prompts meet: 38 of 40 were right at first sight.
UNSEEN: tuple[tuple[str, str], ...] = (
    ("local", "good evening, nice to meet you"),
    ("local", "Buenas tardes"),
    ("local", "thx!"),
    ("local fast", "Pull out all the phone numbers: call 555-1234 or 555-9876"),
    ("local", "List all person names in this sentence: Maria met John at Lisa's house."),
    ("local", "Label the following ticket as bug, feature or question: The app crashes when I log in."),
    ("local fast", "Is the tone of this email angry or calm? 'I have waited three weeks and nobody answered.'"),
    ("local fast", "Traduis en allemand : je voudrais une table pour deux personnes"),
    ("local fast", "Translate the following sentence into Italian: The book is on the table."),
    ("fast", "What should I cook for dinner with chicken and rice?"),
    ("fast", "Who wrote Don Quixote and when was it published?"),
    ("fast", "Explain photosynthesis to a ten year old."),
    ("fast", "Was kann man in Hamburg am Wochenende unternehmen?"),
    ("fast", "Pourquoi le ciel est-il bleu ?"),
    ("fast", "Give me ideas for a team event in winter"),
    ("fast", "Write a tweet announcing our new coffee flavour"),
    ("fast", "Rewrite this sentence to sound more polite: Send me the report now."),
    ("fast", "Schreibe eine kurze Geschichte über einen Hund, der fliegen kann."),
    ("fast", "How do I center a div in CSS?"),
    ("fast", "Write a SQL query that returns the ten customers with the highest revenue."),
    ("fast", "What's wrong with this? print('hello'"),
    ("fast frontier", "If 3 painters need 6 days for 4 houses, how many days do 2 painters need for 2 houses?"),
    ("fast frontier", "What is the probability of drawing two aces from a deck of 52 cards?"),
    ("frontier", "Prove that every bounded monotone sequence of real numbers converges."),
    (
        "frontier",
        "Show rigorously that the set of real numbers is uncountable and explain each step of the argument.",
    ),
    ("frontier", "Derive the Euler-Lagrange equation from the principle of least action, step by step."),
    (
        "frontier",
        "Implement a lock-free concurrent queue in C++ with hazard pointers. It must be linearizable, "
        "must not leak memory, and must include unit tests. Analyse its complexity and explain the "
        "memory ordering of every atomic operation.",
    ),
    (
        "frontier",
        "Entwirf die Architektur für ein mandantenfähiges Abrechnungssystem. Es muss höchstens 200 ms "
        "Latenz haben, darf niemals doppelt abbuchen und muss den Ausfall eines Rechenzentrums "
        "überleben. Vergleiche zwei Ansätze und erkläre die Kompromisse Schritt für Schritt.",
    ),
    (
        "frontier",
        "Evaluate whether our company should enter the Brazilian market. Consider competition, "
        "regulation, currency risk and logistics, compare three entry strategies, assess the trade-offs "
        "and justify a recommendation under a budget of at most 2M USD.",
    ),
    (
        "frontier",
        "Find a counterexample or prove: every continuous function on a compact metric space that is "
        "injective is a homeomorphism onto its image. Justify each step.",
    ),
    (
        "frontier",
        "Résous ce problème étape par étape : on a 12 billes dont une est plus lourde ou plus légère. "
        "Démontre qu'on peut la trouver en trois pesées et explique pourquoi deux ne suffisent pas.",
    ),
    (
        "frontier",
        "Refactor this service so that it survives partial failures: analyse the race conditions, design "
        "retries with idempotency keys, must not lose events, must keep exactly-once semantics, and "
        "compare the outbox pattern with two-phase commit.",
    ),
    (
        "local fast",
        "Fasse zusammen: Das Unternehmen hat im dritten Quartal mehr verdient als erwartet, vor allem in Asien.",
    ),
    ("local fast", "tl;dr this: the meeting moved to monday because the room is being painted"),
    ("fast", "¿Cuál es la diferencia entre un virus y una bacteria?"),
    ("fast", "Привет! Как приготовить борщ?"),
    ("fast", "日本の首都はどこですか？人口も教えてください。"),
    ("local fast", "把这句话翻译成英文：今天天气很好"),
    ("local", "ciao"),
    ("local", "ok thanks bye"),
)


@pytest.mark.parametrize(("accepted", "prompt"), ROUTES, ids=[f"{i}-{text[:24]}" for i, (_, text) in enumerate(ROUTES)])
def test_a_first_install_sends_each_kind_of_request_to_a_sensible_tier(accepted: str, prompt: str) -> None:
    assert tier_of(prompt) in accepted.split()


def hits(routes: tuple[tuple[str, str], ...]) -> float:
    return sum(tier_of(prompt) in accepted.split() for accepted, prompt in routes) / len(routes)


def test_prompts_that_shaped_no_weight_are_routed_sensibly_too() -> None:
    assert hits(UNSEEN) >= 0.9


def rank(tier: str) -> int:
    return ("local", "fast", "frontier").index(tier)


@pytest.mark.parametrize("prompt", [text for _, text in ROUTES + UNSEEN])
def test_economy_never_climbs_above_balanced_and_quality_never_falls_below_it(prompt: str) -> None:
    economy, balanced, quality = (rank(tier_of(prompt, PRESETS[name])) for name in ("economy", "balanced", "quality"))
    assert economy <= balanced <= quality


def test_the_presets_move_a_part_of_the_traffic() -> None:
    tiers = {name: [rank(tier_of(text, amounts)) for _, text in ROUTES + UNSEEN] for name, amounts in PRESETS.items()}
    assert sum(tiers["economy"]) < sum(tiers["balanced"]) < sum(tiers["quality"])
    assert max(tiers["quality"]) == 2, "quality reaches the frontier"
    assert min(tiers["balanced"]) == 0, "balanced still sends small talk to the local tier"


def test_dear_money_leans_to_cheaper_tiers() -> None:
    now = [rank(tier_of(text)) for _, text in ROUTES]
    dear = [rank(tier_of(text, money=8.0)) for _, text in ROUTES]
    assert all(later <= earlier for later, earlier in zip(dear, now, strict=True))
    assert sum(dear) < sum(now)


def test_the_hardest_request_still_goes_to_the_strongest_model() -> None:
    """If difficulty grew without end, no model could do the hardest requests and the cheapest one would get them."""
    hardest = Features(input_tokens=300, input_bound_tokens=900, complexity=1.0, ambiguity=1.0, task="reasoning")
    found = estimate_all(BUILT_IN, hardest, TIERS)
    prices = [price_nano(hardest, each, guess, BALANCED) for each, guess in zip(TIERS, found, strict=True)]
    assert TIERS[prices.index(min(prices))].tier == "frontier"


# ------------------------------------------------------------------------------------------------ laws

scores = st.floats(0, 1)
features_made = st.builds(
    Features,
    input_tokens=st.integers(0, 2_000_000),
    input_bound_tokens=st.integers(0, 8_000_000),
    turns=st.integers(0, 1000),
    tools=st.integers(0, 50),
    forced_tool=st.booleans(),
    images=st.integers(0, 5),
    documents=st.integers(0, 2),
    code=scores,
    math=scores,
    languages=st.sampled_from([(), ("en",), ("zh",), ("de", "en")]),
    depth=scores,
    constraints=st.integers(0, 50),
    ambiguity=scores,
    complexity=scores,
    task=st.sampled_from(sorted(TASK_WEIGHTS)),
    structured=st.sampled_from(["none", "json", "schema"]),
    max_tokens=st.none() | st.integers(1, 100_000),
    reasoning_tokens=st.integers(0, 50_000),
    n=st.integers(1, 8),
)
models_made = st.builds(
    Model,
    id=st.just("acme/any"),
    provider=st.just("acme"),
    name=st.just("any"),
    tier=st.just("fast"),
    skill=scores,
    skills=st.lists(st.tuples(st.sampled_from(sorted(TASK_WEIGHTS)), scores), max_size=3).map(tuple),
    abilities=st.sampled_from([(), ("reasoning",)]),
    first_token_ms=st.integers(0, 60_000),
    tokens_per_second=st.floats(0, 5_000),
    max_output_tokens=st.integers(1, 200_000),
)


@given(features_made, models_made)
def test_an_estimate_is_a_chance_with_an_interval_around_it(features: Features, any_model: Model) -> None:
    found = estimate(BUILT_IN, features, any_model)
    assert 0.0 <= found.quality.low <= found.quality.mid <= found.quality.high <= 1.0
    assert found.output_tokens >= (0 if features.task == "embedding" else features.n)
    assert found.latency_ms >= any_model.first_token_ms


@given(features_made, models_made, scores, scores)
def test_a_stronger_model_is_never_expected_to_do_worse(
    features: Features, any_model: Model, one: float, other: float
) -> None:
    weak, strong = sorted((one, other))
    bare = msgspec.structs.replace(any_model, skills=())
    below = estimate(BUILT_IN, features, msgspec.structs.replace(bare, skill=weak)).quality
    above = estimate(BUILT_IN, features, msgspec.structs.replace(bare, skill=strong)).quality
    assert below.low <= above.low
    assert below.mid <= above.mid
    assert below.high <= above.high


@given(features_made, models_made, scores, scores)
def test_a_more_complex_request_is_never_expected_to_go_better(
    features: Features, any_model: Model, one: float, other: float
) -> None:
    less, more = sorted((one, other))
    easy = estimate(BUILT_IN, msgspec.structs.replace(features, complexity=less), any_model)
    hard = estimate(BUILT_IN, msgspec.structs.replace(features, complexity=more), any_model)
    assert hard.quality.mid <= easy.quality.mid
    assert hard.output_tokens >= easy.output_tokens


@given(features_made, models_made)
def test_no_more_tokens_are_expected_than_the_ceilings_allow(features: Features, any_model: Model) -> None:
    found = estimate(BUILT_IN, features, any_model)
    assert found.output_tokens <= any_model.max_output_tokens * features.n
    if features.max_tokens is not None:
        assert found.output_tokens <= (features.max_tokens + features.reasoning_tokens) * features.n


@given(features_made, models_made, st.none() | st.integers(1, 300_000) | st.integers(1, 3))
def test_length_and_time_are_what_the_formulas_say(features: Features, any_model: Model, learned: int | None) -> None:
    """With the request's part and the model's part not told apart."""
    view, weights = outlook(features), TASK_WEIGHTS[features.task]
    visible = _visible_tokens(features, weights)
    thinking = 0.0
    if features.reasoning_tokens:
        thinking = THINKING_USED * features.reasoning_tokens
    elif "reasoning" in any_model.abilities:
        thinking = THINKING_SHARE * visible * min(1.0, max(0.0, view.difficulty + 0.3))
    ceiling = any_model.max_output_tokens
    if features.max_tokens is not None:
        ceiling = min(ceiling, features.max_tokens + features.reasoning_tokens)
    tokens = visible + thinking if learned is None else float(learned)
    each = 0 if features.task == "embedding" else max(1, math.ceil(min(tokens, ceiling)))
    rate = max(SLOWEST, any_model.tokens_per_second)
    latency = math.ceil(any_model.first_token_ms + 1_000.0 * (each + PREFILL_PER_TOKEN * features.input_tokens) / rate)
    score = Score(low=0.0, mid=0.5, high=1.0, output_tokens=learned, latency_ms=None)
    found = _one(view, any_model, score if learned is not None else None)
    assert (found.output_tokens, found.latency_ms) == (each * features.n, latency)


@given(features_made, st.lists(models_made, max_size=5))
def test_many_models_at_once_are_the_same_as_one_by_one(features: Features, several: list[Model]) -> None:
    assert estimate_all(BUILT_IN, features, several) == tuple(estimate(BUILT_IN, features, each) for each in several)


def test_the_skill_for_the_task_counts_before_the_general_one() -> None:
    features = extract(asked("Write a Python function that reverses a string."))
    assert features.task == "code"
    coder = msgspec.structs.replace(LOCAL, skills=(("code", 0.9), ("creative", 0.1)))
    assert estimate(BUILT_IN, features, coder).quality == estimate(BUILT_IN, features, FRONTIER).quality


def test_the_interval_is_wider_where_less_is_known() -> None:
    def width(features: Features) -> float:
        middling = msgspec.structs.replace(FAST, skill=0.5)
        found = estimate(BUILT_IN, features, middling).quality
        return found.high - found.low

    plain = Features(input_tokens=100, input_bound_tokens=300, languages=("en",), task="code", complexity=0.3)
    for less_known in (
        msgspec.structs.replace(plain, images=1),
        msgspec.structs.replace(plain, ambiguity=0.9),
        msgspec.structs.replace(plain, languages=()),
        msgspec.structs.replace(plain, input_tokens=120_000),
    ):
        assert width(less_known) > width(plain)


@pytest.mark.parametrize(
    ("change", "more"),
    [({"n": 3}, True), ({"task": "classification"}, False), ({"max_tokens": 5}, False), ({"forced_tool": True}, False)],
)
def test_the_expected_length_follows_what_was_asked(change: dict[str, object], more: bool) -> None:
    plain = Features(input_tokens=100, input_bound_tokens=300, languages=("en",), task="code", complexity=0.3)
    before = estimate(BUILT_IN, plain, FAST).output_tokens
    after = estimate(BUILT_IN, msgspec.structs.replace(plain, **change), FAST).output_tokens
    assert (after > before) is more


def test_thinking_is_output_too() -> None:
    plain = Features(input_tokens=100, input_bound_tokens=300, task="reasoning", complexity=0.5)
    budgeted = msgspec.structs.replace(plain, reasoning_tokens=4_000)
    thinker = msgspec.structs.replace(FAST, abilities=("reasoning",))
    before = estimate(BUILT_IN, plain, FAST)
    assert estimate(BUILT_IN, budgeted, FAST).output_tokens > before.output_tokens
    assert estimate(BUILT_IN, plain, thinker).output_tokens > before.output_tokens
    assert estimate(BUILT_IN, plain, thinker).latency_ms > before.latency_ms
