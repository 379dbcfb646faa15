"""The feature reader: what it finds, what it never does, and how little of a long text it looks at."""

from __future__ import annotations

import random
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_estimate import ROUTES, UNSEEN, tier_of
from tierwise.core import features, lexicon, text
from tierwise.core.features import LAST_READ, SYSTEM_READ, extract
from tierwise.core.request import Features, Prompt, Turn
from tierwise.core.templates import TEMPLATES


def prompt(*turns: str | Turn, **more) -> Prompt:
    made = tuple(Turn("user", turn) if isinstance(turn, str) else turn for turn in turns)
    more.setdefault("size_bytes", 60 + sum(40 + len(turn.text.encode("utf-8", "surrogatepass")) for turn in made))
    return Prompt(turns=made, **more)


def of(*turns: str | Turn, **more) -> Features:
    return extract(prompt(*turns, **more))


# ------------------------------------------------------------------------------------------------ laws

roles = st.sampled_from(["system", "user", "assistant", "tool"])
texts = st.text(max_size=300) | st.sampled_from(
    ["```" * 50, "?" * 500, "\\" * 400, "\ud800", "a\x00b", "()" * 300, " " * 900]
)
prompts = st.builds(
    Prompt,
    turns=st.lists(st.builds(Turn, roles, texts), max_size=6).map(tuple),
    size_bytes=st.integers(0, 1_000_000),
    tools=st.lists(st.text(max_size=10), max_size=3).map(tuple),
    tool_calls=st.integers(0, 5),
    forced_tool=st.booleans(),
    images=st.integers(0, 3),
    audio=st.integers(0, 2),
    documents=st.integers(0, 2),
    embedded_bytes=st.integers(0, 2_000_000),
    structured=st.sampled_from(["none", "json", "schema"]),
    schema_hash=st.sampled_from(["", "abc"]),
    max_tokens=st.none() | st.integers(0, 100_000),
)


@given(prompts, st.lists(st.text(max_size=8), max_size=4))
def test_any_text_gives_bounded_features_and_the_same_again(given_prompt: Prompt, keywords: list[str]) -> None:
    found = extract(given_prompt, tuple(keywords))
    assert found == extract(given_prompt, tuple(keywords))
    for score in (found.code, found.math, found.depth, found.ambiguity, found.complexity):
        assert 0.0 <= score <= 1.0
    assert found.input_tokens >= 0
    assert 0 <= found.constraints <= 50
    assert found.characters == sum(len(turn.text) for turn in given_prompt.turns)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Features) == found


@given(texts, st.permutations(["urgent", "legal", "at once", "c++", "法律"]))
def test_the_order_of_the_keywords_is_irrelevant(own: str, keywords: list[str]) -> None:
    asked = prompt(f"{own} legal At  once C++ 法律问题")
    assert extract(asked, tuple(keywords)).keywords == extract(asked, tuple(sorted(keywords))).keywords


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=400))
def test_no_estimate_is_above_the_bound(own: str) -> None:
    body = msgspec.json.encode({"messages": [{"role": "user", "content": own}]})
    found = of(own, size_bytes=len(body))
    assert found.input_bound_tokens >= len(own.encode()), "a byte-level tokenizer may make a token of every byte"


def test_another_process_with_another_hash_seed_finds_the_same() -> None:
    script = (
        "import msgspec;from tierwise.core.features import extract;from tierwise.core.request import Prompt,Turn;"
        "t='Prove that the tables below must not deadlock, then compare prices and classify each label. '*20;"
        "turns=(Turn('system','You are a judge of titles and tags.'),Turn('user',t));"
        "p=Prompt(turns=turns,size_bytes=99,tools=('b','a'));"
        "print(msgspec.json.encode(extract(p,('deadlock','prices'))).decode())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(seen) == 1


# ------------------------------------------------------------------------------------------------ caps


def test_of_a_long_message_only_the_beginning_and_the_end_are_read() -> None:
    head, tail = LAST_READ
    filler = "lorem ipsum dolor sit amet "
    start, end = (filler * 600)[:head], (filler * 600)[-tail:]
    plain = "x" * 40_000
    loaded = ("Prove step by step, you must not fail! def f(): ```" * 1_000)[:40_000]
    one, other = of(start + plain + end, size_bytes=70_000), of(start + loaded + end, size_bytes=70_000)
    assert one == other
    assert one != of("Prove it. " + start[10:] + plain + end, size_bytes=70_000), "the beginning is read"
    assert one != of(start + plain + end[10:] + "Prove it. ", size_bytes=70_000), "the end is read"


def test_of_a_long_system_prompt_only_the_beginning_and_the_end_are_read_for_meaning() -> None:
    head, tail = SYSTEM_READ
    start, end = "You are kind. " * 1_000, "Be brief. " * 1_000

    def asked(middle: str) -> Features:
        found = of(Turn("system", start[:head] + middle + end[-tail:]), "What now?", size_bytes=50_000)
        return msgspec.structs.replace(found, system_hash="", template_hash="")

    assert asked("a b " * 3_500) == asked("translate the "[:14] * 1_000)


def test_the_work_does_not_grow_with_the_text_that_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[int] = []
    real = text.count
    monkeypatch.setattr("tierwise.core.features.count", lambda part: handed.append(len(part)) or real(part))
    of("word " * 2_000_000)
    of(*(Turn("user" if i % 2 else "assistant", "word " * 100) for i in range(100_000)))
    assert max(handed) <= sum(LAST_READ) + 1
    assert sum(handed) < 60_000


def test_tokens_and_characters_of_what_is_not_read_are_counted_all_the_same() -> None:
    short, long = of("word " * 1_600), of("word " * 160_000)
    assert long.characters == 100 * short.characters
    assert 95 * short.input_tokens < long.input_tokens < 105 * short.input_tokens
    talk = [Turn("user" if i % 2 else "assistant", "word " * 100) for i in range(400)]
    assert 380 * 100 < of(*talk).input_tokens < 420 * 130


# ------------------------------------------------------------------------------------------------ tokens

# (text, tokens that o200k_base makes of it)
COUNTED = (
    ("Hello, world!", 4),
    ("What is the capital of France, and how many people live there today?", 15),
    ("Please summarise the following report in three short bullet points for the board.", 15),
    ("def add(a, b):\n    return a + b\n\nprint(add(1, 2))\n", 20),
    ("SELECT name, SUM(total) FROM orders WHERE year = 2024 GROUP BY name ORDER BY 2 DESC LIMIT 10;", 26),
    ('{"id": 17, "name": "Ada", "tags": ["a", "b"], "active": true}', 26),
    ("Die Bundesregierung hat am Dienstag einen Gesetzentwurf zur Förderung erneuerbarer Energien beschlossen.", 19),
    ("Le conseil municipal a voté hier soir le budget consacré à la rénovation des écoles.", 17),
    ("El ayuntamiento aprobó ayer el presupuesto para la renovación de las escuelas del barrio.", 17),
    ("Il consiglio comunale ha approvato ieri il bilancio per la ristrutturazione delle scuole.", 23),
    ("Правительство приняло новый закон о поддержке возобновляемых источников энергии.", 18),
    ("政府昨天通过了支持可再生能源的新法律，并公布了详细的实施计划。", 19),
    ("政府は昨日、再生可能エネルギーを支援する新しい法律を可決した。", 23),
    ("정부는 어제 재생 에너지를 지원하는 새로운 법을 통과시켰다.", 21),
    ("أقرت الحكومة أمس قانونا جديدا لدعم مصادر الطاقة المتجددة في البلاد.", 19),
    ("1, 22, 333, 4444, 55555 and 3.14159 on 2024-05-17 at 18:45", 34),
    ("A train leaves at 9:40 and arrives at 12:05, travelling 203 km. What is its average speed in km/h?", 30),
    ("for (let i = 0; i < items.length; i++) {\n  if (!items[i].isActive) continue;\n  process(items[i]);\n}\n", 33),
    (
        "- first item\n- second item\n- third item\n\n# Heading\n\nSome **bold** text with a [link](https://example.org/page).",
        31,
    ),
    ("Wow 🎉🎉 that was great 😂 see you tomorrow 🚀", 14),
    (
        "Explain step by step why the following argument is wrong, and name the assumption "
        "that fails: all swans are white because every swan I have ever seen was white.",
        34,
    ),
)


@pytest.mark.parametrize(("own", "tokens"), COUNTED)
def test_the_token_estimate_is_near_a_real_tokenizer(own: str, tokens: int) -> None:
    assert abs(text.count(own).tokens - tokens) <= max(3, 0.3 * tokens)


def test_the_token_estimate_is_near_a_real_tokenizer_over_all() -> None:
    errors = sorted(abs(text.count(own).tokens - tokens) / tokens for own, tokens in COUNTED)
    assert errors[len(errors) // 2] <= 0.10


# ------------------------------------------------------------------------------------------------ what is found

TASKS = (
    ("hello there", "greeting"),
    ("Merci beaucoup !", "greeting"),
    ("Extract all dates from the letter below.", "extraction"),
    ("Extrais les noms des personnes de ce texte.", "extraction"),
    ("Classify this ticket as billing or technical.", "classification"),
    ("Resume este artículo en dos frases: ...", "summarisation"),
    ("Fasse das Protokoll in fünf Punkten zusammen.", "summarisation"),
    ("Translate into German: good night", "translation"),
    ("Traduce al inglés: buenos días", "translation"),
    ("Refactor this class and add unit tests.", "code"),
    ("Schreibe eine Python-Funktion, die eine Liste sortiert.", "code"),
    ("Why?\n```python\nfor i in range(3):\n    print(i)\n```", "code"),
    ("Prove that 7 is prime.", "reasoning"),
    ("Calcule la probabilité d'obtenir deux six.", "reasoning"),
    ("Which is it?\nA. one\nB. two\nC. three\nD. four", "reasoning"),
    ("Write a haiku about rain.", "creative"),
    ("Erzähle mir einen Witz über Beamte.", "creative"),
    ("Is this comment toxic or offensive? 'go away'", "moderation"),
    ("Where do penguins live?", "other"),
    ("", "other"),
)


@pytest.mark.parametrize(("own", "task"), TASKS)
def test_the_task_is_told_by_its_words(own: str, task: str) -> None:
    assert of(own).task == task


def test_tools_make_a_request_a_matter_of_tools_unless_it_says_what_else_it_is() -> None:
    assert of("What is going on in Oslo?", tools=("search",)).task == "tool_use"
    assert of("Refactor the python class and add unit tests", tools=("edit",)).task == "code"
    assert of("hi", forced_tool=True, tools=("x",)).task == "tool_use"
    assert of("look at my house", Turn("assistant", ""), Turn("tool", "sunny"), tools=("weather",)).task == "tool_use"


def test_a_system_prompt_names_the_task_of_bare_data() -> None:
    system = Turn("system", "Classify the sentiment of the user's text. Answer with one label.")
    assert of(system, "the food was cold and the waiter left").task == "classification"
    assert of("the food was cold and the waiter left").task == "other"


def test_a_short_message_goes_on_with_what_was_asked_before() -> None:
    first = (Turn("user", "Write a Python function that sorts a list"), Turn("assistant", "def f(): ..."))
    assert of(*first, "and now for dates please").task == "code"
    assert of("and now for dates please").task == "other"


@pytest.mark.parametrize("template", TEMPLATES, ids=[f"{i}-{each.name}" for i, each in enumerate(TEMPLATES)])
def test_every_known_template_is_found_whatever_its_case_and_spacing(template) -> None:
    marker = template.marker.replace(" ", "\n  ").upper()
    extra = "" if template.trigger in text.words(template.marker) else f" {template.trigger}"
    found = of(f"### Task:\n{marker} and so on{extra}.")
    assert (found.template, found.task) == (template.name, template.task)
    assert of(Turn("system", f"{template.marker}{extra}"), "text").template == template.name


def test_an_ordinary_request_is_no_template() -> None:
    assert not [text for _, text in ROUTES + UNSEEN if of(text).template]


@pytest.mark.parametrize(
    ("own", "language"),
    [
        ("What is the weather like in the mountains?", "en"),
        ("Wie ist das Wetter in den Bergen und was soll ich anziehen?", "de"),
        ("Quel temps fait-il dans les montagnes pour vous ?", "fr"),
        ("¿Qué tiempo hace en las montañas y cuál es la mejor ruta?", "es"),
        ("Che tempo fa e cosa devo mettere nello zaino per la gita?", "it"),
        ("Qual é a melhor rota para você e o que não devo levar?", "pt"),
        ("Wat is het weer in de bergen en hoe kan ik er komen?", "nl"),
        ("Какая сегодня погода?", "ru"),
        ("今天天气怎么样？", "zh"),
        ("今日の天気はどうですか", "ja"),
        ("오늘 날씨 어때요", "ko"),
        ("ما هو الطقس اليوم", "ar"),
        ("Τι καιρό κάνει σήμερα;", "el"),
    ],
)
def test_the_language_is_told_by_script_or_stop_words(own: str, language: str) -> None:
    assert of(own).languages[0] == language


ORDERED = (
    ("complexity", "What is a prime?", "Prove that there are infinitely many primes and explain why each step holds."),
    (
        "depth",
        "Name three rivers.",
        "Compare three rivers step by step, explain why they flood, and analyse the causes.",
    ),
    ("code", "Write about cats.", "Fix `def f(x): return {x: [x]}` please\n```\nx = f(1);\n```"),
    ("math", "Write about cats.", "Solve the equation x^2 + 3x = 10 and find the integral."),
    ("ambiguity", "Summarise the report that I attached for the finance team.", "fix it somehow"),
    (
        "constraints",
        "Write a text.",
        "Write a text. It must have exactly 3 lines, at most 9 words, and do not use commas.",
    ),
    ("input_tokens", "short", "a much longer text than the other one"),
)


@pytest.mark.parametrize(("field", "less", "more"), ORDERED, ids=[row[0] for row in ORDERED])
def test_scores_rise_with_what_they_measure(field: str, less: str, more: str) -> None:
    assert getattr(of(less), field) < getattr(of(more), field)


def test_keywords_are_whole_words_and_phrases_whatever_the_case() -> None:
    asked = prompt(Turn("system", "Internal only."), "This is URGENT: the\n contract-law  case, c++ and 法律问题.")
    wanted = ("urgent", "urge", "gent", "contract", "Law Case", "law case", "internal", "c++", "法律", "case c", "")
    assert extract(asked, wanted).keywords == ("c++", "contract", "internal", "law case", "urgent", "法律")


# ------------------------------------------------------------------------------------------------ hashes


def test_the_intent_is_the_question_whatever_its_case_spacing_and_final_punctuation() -> None:
    same = {of(own).intent_hash for own in ("What is 5-3?", "what  is\n5-3", "  WHAT IS 5-3 ?! ")}
    assert len(same) == 1
    assert len(same.pop()) == 16
    other = {of(own).intent_hash for own in ("What is 5-3?", "What is 5 3?", "What is 5-4?", "What is 5+3?")}
    assert len(other) == 4
    assert of("?!").intent_hash == ""


def test_the_template_is_the_skeleton_and_the_system_hash_the_whole() -> None:
    def asked(system: str, **more) -> Features:
        return of(Turn("system", system), "hello", **more)

    monday, tuesday = asked("Today is 2026-05-04."), asked("Today is 2026-05-05.")
    assert monday.system_hash != tuesday.system_hash
    assert monday.template_hash == tuesday.template_hash
    assert asked("s", tools=("a", "b")).template_hash == asked("s", tools=("b", "a")).template_hash
    different = {
        asked("s").template_hash,
        asked("s", tools=("a",)).template_hash,
        asked("s", schema_hash="x").template_hash,
    }
    assert len(different) == 3
    assert of("hello").template_hash == of("hello").system_hash == ""


def test_what_is_kept_of_system_prompts_is_bounded() -> None:
    """One at its longest is; several of that length together are read anew, and come out the same."""
    long = [Turn("system", letter * 40_000) for letter in "ab"]
    features._system.cache_clear()
    first = of(long[0], Turn("user", "hello"))
    assert features._system.cache_info().currsize == 1
    assert of(long[0], Turn("user", "hello")) == first
    both = of(*long, Turn("user", "hello"))
    assert features._system.cache_info().currsize == 2  # the two by themselves, for their tokens
    assert of(*long, Turn("user", "hello")) == both != first


def test_media_count_in_tokens_and_their_bytes_do_not() -> None:
    plain = of("What is this?", size_bytes=100)
    picture = of("What is this?", size_bytes=900_100, embedded_bytes=900_000, images=1)
    assert plain.input_tokens + 500 < picture.input_tokens < 10_000
    assert plain.input_bound_tokens < picture.input_bound_tokens < 20_000
    document = of("What is this?", size_bytes=900_100, embedded_bytes=900_000, documents=1)
    assert document.input_bound_tokens >= 300_000


def test_tool_schemas_count_in_tokens() -> None:
    assert of("hi", size_bytes=4_000, tools=("a", "b")).input_tokens > of("hi", size_bytes=4_000).input_tokens + 500


# ------------------------------------------------------------------------------------------------ stability


def _slip(dice: random.Random, own: str) -> str:
    """A letter lost, doubled, swapped or replaced, one for every sixty characters."""
    letters = list(own)
    for _ in range(max(1, len(own) // 60)):
        at = dice.randrange(len(letters) - 1)
        if letters[at].isalpha():
            match dice.randrange(4):
                case 0:
                    del letters[at]
                case 1:
                    letters.insert(at, letters[at])
                case 2:
                    letters[at], letters[at + 1] = letters[at + 1], letters[at]
                case _:
                    letters[at] = dice.choice("abcdefghijklmnopqrstuvwxyz")
    return "".join(letters)


PERTURBATIONS = {
    "typos": _slip,
    "case": lambda dice, own: dice.choice((own.upper(), own.lower(), own.title())),
    "white space": lambda dice, own: f" \n{own.replace(' ', dice.choice(('  ', ' ' + chr(9), '   ')))}  \n",
}


@pytest.mark.parametrize("name", sorted(PERTURBATIONS))
def test_small_changes_of_the_text_change_little(name: str) -> None:
    """At least 95 % keep their task, and complexity moves by less than 0.1. A message of one short word is left out:
    after a slip there is nothing left to recognise."""
    dice = random.Random(20_26)
    asked = [own for _, own in ROUTES + UNSEEN if len(own) >= 10]
    same = steady = tier = 0
    for own in asked:
        before, tier_before = of(own), tier_of(own)
        for _ in range(4):
            changed = PERTURBATIONS[name](dice, own)
            after = of(changed)
            same += after.task == before.task
            steady += abs(after.complexity - before.complexity) < 0.1
            tier += tier_of(changed) == tier_before
    total = 4 * len(asked)
    assert same >= 0.95 * total
    assert steady >= 0.95 * total
    assert tier >= 0.95 * total


# ------------------------------------------------------------------------------------------------ the tables


def test_every_row_of_the_tables_names_a_known_slot() -> None:
    known = lexicon.lexicon()
    assert set(lexicon.TASKS) < set(lexicon.SLOTS)
    assert all(word == word.casefold() for word in known.words)
    assert all(len(word.split()) <= 2 for word in known.words)


def test_no_misspelling_hides_a_real_word() -> None:
    known = lexicon.lexicon()
    for word, cue in known.words.items():
        assert known.typos.get(word, cue) == cue


@pytest.mark.parametrize("word", ["translate", "classify", "summarise", "function", "prove"])
def test_one_slip_in_a_telling_word_is_forgiven(word: str) -> None:
    known = lexicon.lexicon()
    for i in range(len(word) - 1):
        assert lexicon.guess(word[:i] + word[i + 1 :], known) == known.words[word] or len(word) == 5
        swapped = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        assert swapped == word or lexicon.guess(swapped, known) == known.words[word]


@pytest.mark.parametrize(
    ("said", "tokens"),
    [
        ("Write a 5000-word essay about Rome.", 7_000),
        ("Write 1,500 words on bees", 2_100),
        ("Schreibe 800 Wörter über Rom", 1_120),
        ("Escribe 300 palabras", 420),
        ("Write a haiku.", 0),
        ("I have 12 words for you and 3 apples", 17),
        ("A word of 2024", 0),
    ],
)
def test_a_length_that_is_asked_for_is_read(said: str, tokens: int) -> None:
    found = extract(Prompt(turns=(Turn("user", said),), size_bytes=len(said.encode())))
    assert found.wanted_tokens == tokens
