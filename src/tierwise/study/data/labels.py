"""What a label is worth: how far each kind of thing that is said of a reply may be believed, and how several combine.

A label says good or bad and is wrong with some chance e. An average of labels that are wrong with chance e is pulled
towards one half by the factor 1 − 2e, and in a weighted mean the square of that factor is the weight that loses least
(inverse-variance weighting of the corrected labels, for labels of equal spread): weight = (1 − 2e)². The chances are
assumptions, set down here to be argued with, and rounded to what is known:

- A person who was asked to review: wrong one time in forty.
- Whoever uses the product: people click without reading, and say more when they are cross. One time in seven.
- A grader: strong models agree with people on four verdicts of five (Zheng et al. 2023, "Judging LLM-as-a-judge").
- A check that failed tells of a real fault (a schema broken, a call of no tool that there is); one that passed tells
  little: the form was right.
- Two models with the same final answer are seldom both wrong, but whether they are is what an agreement's promise has
  to find out: believed less than that, so that no promise is its own proof. Of two that differ, the one that was passed
  over is wrong more often than not, and no more is said of it.

A label that anybody with a key may give is bounded for each key as well, see `shares`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

HUMAN, USER, GRADER, CHECK, AGREEMENT = "human", "user", "grader", "check", "agreement"
# The chance that a label is wrong: when it says bad, and when it says good.
ERRORS: dict[str, tuple[float, float]] = {
    HUMAN: (0.025, 0.025),
    "review": (0.025, 0.025),
    USER: (0.15, 0.15),
    GRADER: (0.2, 0.2),
    CHECK: (0.05, 0.42),
    AGREEMENT: (0.35, 0.28),
}
# From this weight on a reply counts as labelled where a promise is made: what only forms and cheap models say of it
# (a passed check, an agreement, a disagreement) may train an estimator, and certifies nothing.
SOUND_WEIGHT = 0.3
# The labels that came with one key weigh at most this part of all labels of their workload, and of all together.
KEY_SHARE = 0.05


def weight(source: str, score: float) -> float:
    """Of a label with this score 0..1; above zero. `check:NAME` is a check, and a source that we do not know a user."""
    bad, good = errors(source)
    return (1.0 - 2.0 * (good * score + bad * (1.0 - score))) ** 2


def errors(source: str) -> tuple[float, float]:
    """The chances that a label of this source is wrong, when it says bad and when it says good."""
    return ERRORS.get(source.partition(":")[0], ERRORS[USER])


def shares(weights: Mapping[str, float], uncapped: float, share: float = KEY_SHARE) -> dict[str, float]:
    """By what to multiply the labels of each key, so that none weighs more than `share` of all: 1, or less for those
    above it. `uncapped` is the weight of labels that came with no key.

    Where keys are few, nobody can weigh so little: among n keys the bound is 2/n, so that with one or two there is
    none. All that exceed it are brought to the same weight c = share × (rest + many × c).
    """
    share = max(share, 2.0 / max(len(weights), 1))
    found = dict.fromkeys(weights, 1.0)
    if share >= 1.0:
        return found
    rest = uncapped + sum(weights.values())
    capped: list[str] = []
    for key in sorted(weights, key=lambda key: (-weights[key], key)):
        # Nobody weighs more than all the rest, so the divisor stays above zero.
        if weights[key] <= share * rest / (1.0 - share * len(capped)):
            break
        rest -= weights[key]
        capped.append(key)
    limit = share * rest / (1.0 - share * len(capped))
    return found | {key: limit / weights[key] for key in capped}


def combined(labels: Iterable[tuple[float, float]]) -> tuple[float | None, float]:
    """(quality, weight) of a reply from the (score, weight) of its labels: the weighted mean, and the sum of the
    weights, at most 1, which is a label beyond doubt. None where there are no labels."""
    pairs = list(labels)
    total = sum(each for _, each in pairs)
    if total <= 0.0:
        return None, 0.0
    return sum(score * each for score, each in pairs) / total, min(total, 1.0)
