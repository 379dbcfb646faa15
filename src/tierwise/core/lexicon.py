"""The words that give a request away: what is asked, how deep, under which constraints, in which language. Data first.

Each row is (slot, weight, words). A word may stand in several rows; `two_words` are found as neighbours. Weights are
whole numbers, so that sums do not depend on any order: 2 is a hint, 3 names the task, 6 is a plain order. They were
reasoned from what such words mean, not trained. Casefolded, with and without accents where people leave them out.
"""

from __future__ import annotations

import functools
import struct

import msgspec

from tierwise.core import templates

TASKS = (
    *("greeting", "extraction", "classification", "summarisation", "translation", "code"),
    *("reasoning", "creative", "moderation", "tool_use"),
)
LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "nl")
# `given`: phrases that announce the text to work on, so that a request which points at it is not without an object.
SLOTS = (*TASKS, "depth", "limits", "vague", "pronoun", "math", "program", "given", *LANGUAGES)

ROWS: tuple[tuple[str, int, str], ...] = (
    # ------------------------------------------------------------------------------------------ what is asked
    ("greeting", 6, "guten morgen buenos buenas tardes noches evening morning moin salve beaucoup thank"),
    ("greeting", 6, "hi hello hey hiya howdy yo greetings thanks thx cheers bye goodbye goodnight welcome"),
    ("greeting", 6, "hallo servus moin tschüss danke hola gracias adiós adios bonjour bonsoir salut merci coucou ciao"),
    ("greeting", 6, "grazie buongiorno olá ola obrigado obrigada hoi dank bedankt dag ok okay great perfect"),
    ("greeting", 6, "good_morning good_evening good_night good_afternoon thank_you how_are guten_tag guten_morgen"),
    ("greeting", 6, "wie_geht buenos_días buenos_dias buenas_tardes qué_tal que_tal ça_va goede_morgen bom_dia"),
    ("extraction", 6, "extract extracts extrahiere extrahieren extraire"),
    ("extraction", 6, "extrais extrayez extraer extrae estrai extraia"),
    ("extraction", 6, "pull_out key_value named_entities find_all list_all wandle_um"),
    ("extraction", 3, "entities fields parse mentioned invoice receipt ner entnimm entnehme relevé champs campos"),
    ("extraction", 2, "json csv names dates emails addresses amounts phone according_to"),
    ("classification", 6, "classify classifies klassifiziere klassifizieren categorize categorise kategorisiere"),
    ("classification", 6, "classer classifie classifiez clasifica clasificar classifica classifique sentiment"),
    ("classification", 5, "true_or yes_or positive_or positive_negative spam_or stimmung label_the which_category"),
    ("classification", 3, "category categories label labels positive"),
    ("classification", 3, "negative neutral spam kategorie kategorien intent"),
    ("classification", 3, "catégorie categoría rate_the score_the"),
    ("summarisation", 6, "summarize summarise summarizes summary summarization"),
    ("summarisation", 6, "tldr tl_dr condense recap zusammenfassung"),
    ("summarisation", 6, "zusammenfassen résume résumer résumez resumir resumen resuma riassumi riassunto"),
    ("summarisation", 6, "samenvatting samenvatten fasse_den fasse_die fasse_das fasse_diesen fass_den key_points"),
    ("summarisation", 6, "main_points key_takeaways sum_up points_clés puntos_clave in_brief"),
    ("summarisation", 3, "resume fasse zusammen takeaways bullet_points highlights shorten kürze headline title"),
    ("translation", 7, "translate translates translation übersetze übersetzen übersetzung uebersetze traduire traduis"),
    ("translation", 7, "traduisez traduction traduce traducir traducción traduzca traduci traduzir traduza vertaal"),
    ("translation", 4, "into_english into_german into_french into_spanish into_italian into_chinese into_japanese"),
    ("translation", 4, "ins_deutsche ins_englische ins_französische auf_englisch auf_deutsch en_anglais en_français"),
    ("translation", 4, "al_inglés al_español al_francés en_inglés from_english from_german from_french from_spanish"),
    ("translation", 4, "say_in wie_sagt comment_dit cómo_dice to_english to_german to_french to_spanish"),
    ("code", 6, "refactor debug unittest unittests pytest implement implementiere implementieren implémente"),
    ("code", 6, "implementa segfault traceback stacktrace dockerfile regex sql programmiere unit_tests"),
    ("code", 6, "python_function python_script pull_request code_review"),
    ("code", 6, "stack_trace write_code bash_script shell_script"),
    ("code", 5, "python javascript typescript java golang kotlin haskell html css bash kubernetes django"),
    ("code", 5, "flask postgres postgresql sqlite numpy pandas fonction_python función_python funktion_die"),
    ("code", 4, "function functions compiler funktion fonction función função funzione algorithm algorithmus código"),
    ("code", 3, "code script bug api endpoint klasse codice skript compile variable async database repository rust"),
    (
        "code",
        2,
        "class method methods programm programme programa repo query array struct commit loop string table test",
    ),
    ("reasoning", 7, "prove proof beweise beweis démontre démontrer démontrez demuestra demostrar prouver prouve"),
    ("reasoning", 7, "derive derivation dimostra demonstre"),
    ("reasoning", 5, "solve calculate compute berechne löse résous"),
    ("reasoning", 5, "calcule calculer calcula calcular resuelve resolver"),
    ("reasoning", 5, "evaluate deduce infer minimize maximize minimise maximise how_many how_much wie_viele wie_viel"),
    ("reasoning", 5, "wieviel wieviele combien cuántos cuántas cuánto"),
    ("reasoning", 5, "quanti quante step_by schritt_für étape_par paso_a"),
    ("reasoning", 5, "trade_offs trade_off root_cause thought_experiment logic_puzzle"),
    ("reasoning", 4, "probability theorem integral equation puzzle"),
    ("reasoning", 4, "riddle analyse analyze analysiere analizar analyser"),
    ("reasoning", 4, "analiza tradeoffs diagnose strategy strategie stratégie estrategia contradiction"),
    ("reasoning", 3, "compare contrast vergleiche compara comparer"),
    ("reasoning", 3, "comparez assess critique argue implications explain_why"),
    ("reasoning", 2, "reason justify rigorous optimal optimize design architect plan evidence"),
    ("reasoning", 1, "why warum weshalb pourquoi"),
    ("reasoning", 2, "erkläre explique explica porque which_of following_is"),
    ("creative", 6, "poem haiku sonnet limerick lyrics novel fairytale gedicht geschichte märchen poème poema cuento"),
    ("creative", 6, "histoire historia poesia storia rap screenplay slogan slogans brainstorm short_story love_letter"),
    ("creative", 5, "story song joke jokes witz"),
    ("creative", 5, "blague chiste cover_letter blog_post birthday_wishes product_description"),
    ("creative", 4, "email letter essay tweet caption invitation brief speech rede anschreiben lettre courriel correo"),
    ("creative", 4, "carta discours discurso tagline post rewrite rephrase reword paraphrase umformulieren reformule"),
    ("creative", 2, "write draft compose imagine create schreibe"),
    ("creative", 2, "schreib verfasse écris écrivez rédige escribe redacta"),
    ("creative", 2, "scrivi escreva ideas names_for ideen idées"),
    ("moderation", 7, "moderation nsfw hate_speech content_policy self_harm safe_or policy_violation"),
    ("moderation", 4, "toxic toxicity unsafe harmful offensive harassment violates violation abusive jugendgefährdend"),
    ("tool_use", 4, "search_for look_up send_an book_a call_the use_the set_a turn_on turn_off schedule_a remind_me"),
    ("tool_use", 3, "browse fetch weather calendar schedule reservation"),
    # ------------------------------------------------------------------------------------------ how deep
    ("depth", 6, "prove proof derive beweise beweis démontre démontrer démontrez demuestra demostrar rigorous"),
    ("depth", 4, "trade_offs trade_off tradeoffs step_by schritt_für étape_par paso_a root_cause counterexample"),
    ("depth", 4, "architecture architektur contradiction irrational concurrency concurrent distributed deadlock race"),
    ("depth", 3, "analyse analyze analysiere analizar analyser design"),
    ("depth", 3, "entwirf conçois diseña optimize optimise optimal"),
    ("depth", 3, "evaluate critique strategy strategie stratégie"),
    ("depth", 3, "estrategia justify complexity assess diagnose scalable"),
    ("depth", 3, "implications theorem induction consistency invariant asymptotic causal hypothesis fault_tolerant"),
    ("depth", 2, "why compare contrast explain_why warum vergleiche"),
    ("depth", 2, "erkläre pourquoi compara explique porqué implement"),
    ("depth", 2, "refactor debug evidence considering assuming suppose angenommen supposons supongamos given_that"),
    ("depth", 2, "probability minimize maximize integral solve constraints thread_safe edge_cases migrate migration"),
    ("depth", 1, "if unless otherwise then after before while whereas because therefore how_many how_much calculate"),
    ("depth", 1, "compute both wenn falls nachdem bevor weil"),
    ("depth", 1, "dann si sinon alors après avant puis cuando entonces"),
    ("depth", 1, "después antes luego explain pros_and cons remaining total twice finally"),
    # ------------------------------------------------------------------------------------------ constraints
    ("limits", 1, "must exactly only never always ensure without required requirement should_not do_not don_t at_most"),
    ("limits", 1, "at_least no_more no_less fewer_than less_than more_than up_to maximum minimum limit strictly avoid"),
    ("limits", 1, "include format valid between muss müssen genau nur niemals höchstens mindestens ohne maximal"),
    ("limits", 1, "doit doivent exactement seulement jamais maximum sans au_plus au_moins debe deben exactamente"),
    ("limits", 1, "solo nunca máximo mínimo sin al_menos como_máximo deve devono esattamente"),
    # ------------------------------------------------------------------------------------------ how vague
    ("vague", 2, "stuff thing things something somehow whatever anything etc zeug irgendwas irgendwie truc machin"),
    ("vague", 2, "algo cosa cosas help fix improve better hilf aide ayuda ayúdame maybe kinda sort_of"),
    ("vague", 1, "some various good nice best interesting vielleicht peut_être"),
    ("pronoun", 2, "it this these they them das dies diese dieses ihn es cela ceci ça esto eso esta"),
    ("given", 1, "following below above text article document passage paragraph email context code message review"),
    ("given", 1, "folgenden folgende folgendes text artikel suivant"),
    ("given", 1, "suivante ci_dessous texte siguiente texto artículo"),
    # ------------------------------------------------------------------------------------------ mathematics, programs
    ("math", 3, "theorem integral derivative equation polynomial matrix eigenvalue probability modulo prime sqrt frac"),
    ("math", 3, "gleichung wahrscheinlichkeit équation probabilité ecuación probabilidad lemma logarithm hypotenuse"),
    ("math", 3, "irrational integers vector triangle sum_of quadratic"),
    ("math", 3, "cosine sine calculus algebra geometry infinitely"),
    ("math", 1, "solve calculate compute percent percentage ratio average total sum area angle times number numbers"),
    ("math", 1, "how_many how_much wie_viele combien cuántos cuántas primes square root"),
    ("program", 3, "def elif lambda const async await func fn"),
    ("program", 3, "struct enum printf println console traceback nullptr void"),
    ("program", 2, "function class import return public private static select where python javascript typescript java"),
    ("program", 2, "rust golang sql regex bash dockerfile kubernetes api"),
    ("program", 2, "endpoint json yaml html css pytest numpy pandas"),
    ("program", 1, "code script bug compile debug refactor method algorithm funktion fonction función test"),
    # ------------------------------------------------------------------------------------------ languages
    ("en", 1, "the a of and to in is it does do would should could will i that for are with this from have what"),
    ("en", 1, "you can which how your my please an or be not"),
    ("de", 1, "der die das und ist nicht ein eine mit für auf den von zu wie ich sie wir dem des im was bitte"),
    ("de", 1, "mir kann uns um als sich auch dass wird sind zwischen einer"),
    ("fr", 1, "le la les l des et est pas une un pour dans que qui sur avec vous je nous du au ce d de en qu"),
    ("fr", 1, "est_ce quelle quel quelles moi sont toute se si cette plus par"),
    ("es", 1, "el la los las de y es no una un para en que por con como mi qué cuál del se lo más por_favor está"),
    ("es", 1, "este esta puedo ser sus al"),
    ("it", 1, "il la gli di e è non una un per che con sono come mi del della cosa quale perché più questo"),
    ("pt", 1, "o a os as de e é não uma um para que com como por do da no na você meu qual são este"),
    ("nl", 1, "de het een en is niet van voor met dat op zijn ik je wat hoe deze naar ook er maar kun mij"),
)

# The same for scripts that set no spaces: looked for as substrings. Also what the first table cannot hold as words.
WIDE_ROWS: tuple[tuple[str, int, str], ...] = (
    ("greeting", 6, "你好 您好 谢谢 こんにちは ありがとう おはよう สวัสดี"),
    ("translation", 7, "翻译 翻譯 翻訳 訳して แปล"),
    ("summarisation", 6, "总结 總結 摘要 概括 要約 まとめて สรุป"),
    ("extraction", 6, "提取 抽取 抽出"),
    ("classification", 6, "分类 分類 情感"),
    ("code", 5, "代码 代碼 函数 函數 编程 コード 関数 プログラム"),
    ("reasoning", 7, "证明 證明 証明 พิสูจน์"),
    ("reasoning", 5, "计算 計算 求解 多少 分析 解いて คำนวณ"),
    ("creative", 6, "写一首 故事 诗 詩 物語 小説"),
    ("depth", 5, "证明 證明 証明 推导"),
    ("depth", 3, "为什么 為什麼 比较 比較 分析 设计 なぜ 設計 ทำไม"),
    ("limits", 1, "必须 不要 至少 最多 不超过 以内 必ず"),
    ("math", 3, "方程 概率 积分 质数 素数 無理数 无理数"),
)
# Cyrillic and Korean have spaces but inflect: their beginnings are looked for the same way.
STEM_ROWS: tuple[tuple[str, int, str], ...] = (
    ("greeting", 6, "привет здравствуй спасибо 안녕 감사"),
    ("translation", 7, "переведи перевод переклад 번역"),
    ("summarisation", 6, "резюмируй кратко перескажи 요약"),
    ("code", 5, "функци код скрипт 함수 코드"),
    ("reasoning", 7, "докажи доказат доведи 증명"),
    ("reasoning", 5, "вычисли реши сколько посчитай 계산"),
    ("creative", 6, "стих рассказ сказк 이야기"),
    ("depth", 5, "докажи доказат 증명"),
    ("depth", 3, "почему сравни проанализируй 왜 비교 분석"),
)

# Words without which something of `tasks` or `features` need not be looked for: a choice that the reader is left with,
# the unit of a length that is asked for.
CHOICES = frozenset(("or", "oder", "ou"))
UNITS = ("word", "wörter", "worte", "mots", "palabras", "parole")
UNIT_WORDS = frozenset((*UNITS, "words"))

Cue = tuple[tuple[int, int], ...]  # (index in SLOTS, weight)
ORDER = 6  # the least weight of an order; what is lighter is a noun that may stand anywhere
GUESSED_LETTERS = 5  # shorter words have too many honest neighbours to guess at
LONGEST_GUESS = 16


class More(msgspec.Struct, frozen=True):
    """Of a single word: the tasks that it names, those of them that it orders, and by the word after it what the pair
    tells and what it orders. All packed."""

    aims: int
    orders: int
    pairs: dict[str, tuple[int, int]]
    watched: bool


class Lexicon(msgspec.Struct, frozen=True):
    """The tables. Some hold cues packed into one number, so that `sum` and `map` add up what many words say: a third of
    the time that it takes to go through them one by one.

    Most words need two of them. Among other work, tables of this size are no longer near the processor when the next
    request comes, and each one that is looked into for each word costs a wait."""

    words: dict[str, Cue]  # one word, or two with a space between
    marks: dict[str, int]  # what single words tell but tasks
    more: dict[str, More]  # those that tell more than that: few, so that their table is small
    watched: frozenset[str]
    typos: dict[str, Cue]  # words that name something, and what is left of them after one slip
    heads: frozenset[str]  # first and second halves of the typos, by which `guess` sees early that a word is none
    tails: frozenset[str]
    parts: tuple[tuple[str, Cue], ...]  # of scripts without spaces
    stems: tuple[tuple[str, Cue], ...]  # of scripts with many endings


def _gather(rows: tuple[tuple[str, int, str], ...]) -> dict[str, Cue]:
    found: dict[str, dict[int, int]] = {}
    for slot, weight, words in rows:
        index = SLOTS.index(slot)
        for word in words.split():
            found.setdefault(word.replace("_", " ").casefold(), {}).setdefault(index, weight)
    return {word: tuple(cue.items()) for word, cue in found.items()}


def _slips(word: str) -> set[str]:
    """The word, the word without one letter, and the word with two neighbours swapped."""
    found = {word[:i] + word[i + 1 :] for i in range(len(word))}
    found |= {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)}
    return {word, *found}


# Sixteen bits a slot, the languages' lowest: a sum over all rows of the tables stays below.
_PACKED = struct.Struct(f">{len(SLOTS)}H")
MOST = (1 << 16) - 1
LANGUAGE_BITS = (1 << 16 * len(LANGUAGES)) - 1
GUESSES_KEPT = 4_096


def shift(slot: int) -> int:
    return 16 * (len(SLOTS) - 1 - slot)


def unpacked(number: int) -> list[int]:
    """The weights by slot of a sum of packed cues."""
    return list(_PACKED.unpack(number.to_bytes(_PACKED.size)))


def _packed(words: dict[str, Cue], *, tasks: bool, least: int = 1) -> dict[str, int]:
    """The cues of tasks, or those of all else, of at least this weight."""
    found: dict[str, int] = {}
    for word, cue in words.items():
        for slot, weight in cue:
            if (slot < len(TASKS)) == tasks and weight >= least:
                found[word] = found.get(word, 0) + (weight << shift(slot))
    return found


@functools.cache
def lexicon() -> Lexicon:
    """The tables, made once, at the first request."""
    words = _gather(ROWS)
    aims, orders = _packed(words, tasks=True), _packed(words, tasks=True, least=ORDER)
    marks = _packed(words, tasks=False)
    pairs: dict[str, dict[str, tuple[int, int]]] = {}
    for word in words:
        first, _, second = word.partition(" ")
        if second:
            tells = marks.get(word, 0) + aims.get(word, 0)
            pairs.setdefault(first, {})[second] = (tells, orders.get(word, 0))
    watched = templates.TRIGGERS | CHOICES | UNIT_WORDS
    telling = {*(word for word in aims if " " not in word), *pairs, *watched}
    first_language = len(SLOTS) - len(LANGUAGES)
    typos: dict[str, Cue] = {}
    for word, cue in words.items():
        if len(word) >= GUESSED_LETTERS and " " not in word and cue[0][0] < first_language:
            for slip in _slips(word):
                if slip == word or slip not in words:
                    typos.setdefault(slip, cue)
    return Lexicon(
        words=words,
        marks={word: number for word, number in marks.items() if " " not in word},
        more={
            word: More(aims.get(word, 0), orders.get(word, 0), pairs.get(word, {}), word in watched) for word in telling
        },
        watched=watched,
        typos=typos,
        heads=frozenset(slip[: (len(slip) + 1) // 2] for slip in typos if len(slip) >= GUESSED_LETTERS),
        tails=frozenset(slip[(len(slip) - 1) // 2 :] for slip in typos if len(slip) >= GUESSED_LETTERS),
        parts=tuple(_gather(WIDE_ROWS).items()),
        stems=tuple(_gather(STEM_ROWS).items()),
    )


def suspects(words: list[str], known: Lexicon) -> list[str]:
    """Those of the words that are unknown and may be a slip: all that `guess` knows, and some more.

    A letter too many is in one half of a word and leaves the other as it was, and most words share no half."""
    table, heads, tails = known.words, known.heads, known.tails
    return [
        word
        for word in words
        if GUESSED_LETTERS <= len(word) <= LONGEST_GUESS
        and (word[(half := len(word) // 2) :] in tails or word[:half] in heads)
        and word not in table
    ]


def guess(word: str, known: Lexicon) -> Cue | None:
    """The cue that an unknown word of five letters or more was probably meant to be.

    Taking a letter out of both the word and the table's word meets every single slip: one missing, one too many, one
    replaced, two swapped. Words of five letters are too close to each other for the last step.
    """
    typos, letters = known.typos, len(word)
    if (cue := typos.get(word)) is not None or letters <= GUESSED_LETTERS:
        return cue
    half = letters // 2
    first, last = word[half:] in known.tails, word[:half] in known.heads
    for i in range(0 if first else half, letters if last else half):
        if (cue := typos.get(word[:i] + word[i + 1 :])) is not None:
            return cue
    return None


@functools.lru_cache(maxsize=GUESSES_KEPT)
def meant(word: str) -> Cue | None:
    """What `guess` says of an unknown word. Most unknown words are plain English that every other prompt brings, and to
    try each with a letter less costs twenty times as much as to remember it."""
    known = lexicon()
    return guess(word, known) if suspects([word], known) else None
