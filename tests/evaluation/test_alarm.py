"""The alarm: false alarms on simulated honest runs, power on gamed ones, marks of degenerate text, the suspects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from accord.config.guarding import AlarmSection
from accord.evaluation import check_looks, find_suspects
from accord.evaluation.alarm import check_scores, compute_exchange_rate, compute_p_below
from accord.evaluation.degeneration import find_degeneration
from accord.evaluation.suspects import compute_log_odds_z, compute_price
from accord.looks import Alarm, Challenge, Look, takes_lead
from accord.types import Completion, Prompt

PROMPTS, LOOKS = 32, 6
TESTS = ("reversal", "shortfall", "disagreement")
SENTENCES = (
    "the cat sat on a mat and looked at the moon",
    "you could call them today and say that you are sorry",
    "rain is water that falls from the clouds in drops",
    "my neighbour likes to walk in the woods on sundays",
    "a good soup needs time and salt and a little patience",
    "it is best to ask the doctor before you take more",
    "trains run twice an hour to the old harbour town",
    "she painted the door green because he liked trees",
)
Values = NDArray[np.float64]


def make_look(
    update: int,
    proxy: Sequence[float] | Values,
    heldout: Sequence[float] | Values,
    *,
    texts: Sequence[str] = (),
    tokens: Sequence[Sequence[int]] = (),
    kl_nats: float = 1.0,
    disagreement: Sequence[float] | Values | None = None,
) -> Look:
    n = len(proxy)
    said = texts or [f"{SENTENCES[i % 8]} {SENTENCES[(i * 3 + 1) % 8]}" for i in range(n)]
    return Look(
        update=update,
        prompts=tuple(Prompt.from_user(f"question {i}") for i in range(n)),
        completions=tuple(Completion.from_text(text) for text in said),
        token_ids=tuple(tuple(t) for t in tokens) or ((1, 2),) * n,
        length_tokens=tuple(float(len(text.split())) for text in said),
        kl_nats=(kl_nats,) * n,
        proxy=tuple(map(float, proxy)),
        heldout=tuple(map(float, heldout)),
        disagreement=None if disagreement is None else tuple(map(float, disagreement)),
    )


def listen(looks: Sequence[Look], *, cfg: AlarmSection | None = None, planned: int = LOOKS) -> list[Alarm]:
    """The alarms of a run that stops at the first."""
    for count in range(2, len(looks) + 1):
        found = check_looks(looks[:count], cfg or AlarmSection(), planned=planned, max_kl_nats=8.0)
        if found:
            return found
    return []


def simulate_run(rng: np.random.Generator, gains: Sequence[tuple[float, float]], heavy: bool = False) -> list[Look]:
    """A run whose looks gain (proxy, judge) on average: prompts differ, judge and proxy share half of their noise."""

    def noise() -> Values:
        return rng.standard_t(3, PROMPTS) / np.sqrt(3) if heavy else rng.normal(size=PROMPTS)

    prompt_effect = noise()
    looks = []
    for update, (proxy, judge) in enumerate([(0.0, 0.0), *gains]):
        truth = 0.6 * prompt_effect + 0.5 * noise()
        looks.append(make_look(update, truth + 0.6 * noise() + proxy, 0.8 * truth + 0.6 * noise() + judge))
    return looks


def slope(looks: int = 20000) -> float:
    """The true exchange rate of `simulate_run`: covariance 0.8 Var(truth) over Var(proxy)."""
    return 0.8 * (0.36 + 0.25) / (0.36 + 0.25 + 0.36)


@pytest.mark.parametrize("heavy", [False, True], ids=["normal noise", "heavy tails"])
@pytest.mark.parametrize("rise", [0.0, 2.0], ids=["nothing gained", "judge gains its due"])
def test_honest_runs_ring_no_more_often_than_stated(rise: float, heavy: bool) -> None:
    """The hardest honest runs: the judge gains the least share that counts as confirmed, of no claim or a large one."""
    rng, runs, cfg = np.random.default_rng(int(rise) + 10 * heavy), 400, AlarmSection()
    gains = [(rise * k / LOOKS, cfg.confirmed_share * slope() * rise * k / LOOKS) for k in range(1, LOOKS + 1)]
    false_alarms = 0
    for _ in range(runs):
        looks = simulate_run(rng, gains, heavy)
        false_alarms += any(check_scores(looks[:k], cfg, planned=LOOKS) for k in range(2, LOOKS + 2))
    # At a true rate of 5 % the binomial's 99.9 % quantile is 35 of 400.
    assert false_alarms <= stats.binom.ppf(0.999, runs, cfg.false_alarm_rate)


def test_gamed_runs_ring() -> None:
    """The proxy soars; the judge gains a little and then falls."""
    rng = np.random.default_rng(0)
    gains = [(0.8, 0.3), (1.6, 0.3), (2.4, 0.1), (3.2, -0.2), (4.0, -0.6), (4.8, -1.0)]
    found = [listen(simulate_run(rng, gains)) for _ in range(100)]
    assert sum(map(bool, found)) >= 98
    assert {alarm.kind for alarms in found for alarm in alarms} <= {"reversal", "shortfall"}
    reasons = [alarm.reason for alarms in found for alarm in alarms]
    assert all("independent judge" in reason for reason in reasons)


def test_a_judge_that_falls_while_the_proxy_rises_is_a_reversal() -> None:
    rng = np.random.default_rng(1)
    gains = [(1.0, 1.0), (2.0, 1.6), (3.0, 1.4), (4.0, 0.2)]
    kinds = [{alarm.kind for alarm in listen(simulate_run(rng, gains))} for _ in range(40)]
    assert sum("reversal" in kind for kind in kinds) >= 36


def test_an_ensemble_that_parts_rings_and_one_that_does_not_is_silent() -> None:
    rng = np.random.default_rng(2)
    calm = [
        make_look(k, rng.normal(size=32), rng.normal(size=32), disagreement=rng.uniform(0.1, 0.3, 32)) for k in (0, 1)
    ]
    parted = make_look(2, rng.normal(size=32), rng.normal(size=32), disagreement=rng.uniform(0.6, 1.2, 32))
    assert listen(calm) == []
    assert [alarm.kind for alarm in listen([*calm, parted])] == ["disagreement"]


def hear(won: int, lost: int, *, ties: int = 0, proxy: float = 1.0, planned: int = 1) -> list[Alarm]:
    """The alarms of the look after update 8, whose proxy is at `proxy`; the best before is update 4, where it is 0.5.
    The judge says nothing."""
    flat = [0.0] * 32
    looks = [make_look(update, [score] * 32, flat) for update, score in ((0, 0.0), (4, 0.5), (8, proxy))]
    challenge = Challenge(8, 4, (1.0,) * won + (0.0,) * lost + (0.5,) * ties)
    return check_looks(looks, AlarmSection(), planned=planned, max_kl_nats=8.0, challenge=challenge)


def test_annotators_who_prefer_an_earlier_policy_ring_by_the_sign_test() -> None:
    """With one look planned the level is 5 % over four tests: 0.0125. Of 40 votes 12 or fewer (p = 0.0083), not 13
    (p = 0.0192), are below it; with 3 looks, at 0.0042, it takes 11 (p = 0.0032)."""
    for planned, most in ((1, 12), (3, 11)):
        assert [alarm.kind for alarm in hear(most, 40 - most, planned=planned)] == ["votes"]
        assert hear(most + 1, 39 - most, planned=planned) == []
    (alarm,) = hear(12, 28, ties=500)
    assert alarm.measured["p"] == pytest.approx(stats.binomtest(12, 40, alternative="less").pvalue)
    assert (alarm.update, alarm.measured["won"], alarm.measured["lost"]) == (8, 12, 28)
    assert "risen by 0.50 since update 4" in alarm.reason and "in 28 of 40 pairs" in alarm.reason


def test_votes_ring_neither_where_the_reward_claims_nothing_nor_without_a_decision() -> None:
    assert hear(0, 40, proxy=0.5) == hear(0, 40, proxy=0.2) == hear(0, 0, ties=40) == hear(40, 0) == []
    assert hear(0, 40) != []


def test_a_judge_is_heard_only_where_annotators_side_with_it() -> None:
    """The judge has fallen by two while the reward rose. It rings where annotators prefer the start by more than a
    standard error: of 41 votes 23 are 5 more than 18, and 24 are 7 more than 17; sqrt(41) = 6.4."""
    rng = np.random.default_rng(7)
    looks = [make_look(0, [0.0] * 32, rng.normal(size=32)), make_look(8, [1.0] * 32, rng.normal(size=32) - 2)]

    def ring(won: int, lost: int) -> set[str]:
        challenge = Challenge(8, 0, (1.0,) * won + (0.0,) * lost)
        return {alarm.kind for alarm in check_scores(looks, AlarmSection(), planned=1, challenge=challenge)}

    assert ring(41, 0) == ring(18, 23) == ring(0, 0) == set()
    assert ring(17, 24) == {"reversal"}
    assert ring(0, 41) == {"votes", "reversal"}


@pytest.mark.parametrize(
    ("won", "lost", "judged", "taken"),
    [
        (30, 19, -1.0, True),
        (28, 21, -1.0, False),
        (25, 24, 0.1, True),
        (25, 24, -0.1, False),
        (25, 24, 1e-6, False),
        (24, 25, 9.0, False),
    ],
    ids=[
        "by eleven of 49",
        "by seven",
        "by one, as the judge",
        "by one, not as the judge",
        "a judge's rounding",
        "lost, whatever the judge",
    ],
)
def test_a_look_takes_the_lead_clearly_or_with_the_judge(won: int, lost: int, judged: float, taken: bool) -> None:
    """The rival is not the look just before, of which the judge thinks highly."""
    flat = [0.0] * 8
    looks = [make_look(0, flat, flat), make_look(4, flat, [5.0] * 8), make_look(8, flat, [judged] * 8)]
    assert takes_lead(looks, Challenge(8, 0, (1.0,) * won + (0.0,) * lost)) is taken


def test_the_votes_part_of_the_false_alarm_rate_is_kept() -> None:
    """Annotators toss coins at each of six looks."""
    rng, runs, cfg = np.random.default_rng(6), 2000, AlarmSection(false_alarm_rate=0.2)
    flat = [0.0] * 32
    looks = [make_look(0, flat, flat), make_look(1, [1.0] * 32, flat)]
    rang = sum(
        any(
            check_scores(looks, cfg, planned=6, challenge=Challenge(1, 0, tuple(map(float, rng.integers(0, 2, 60)))))
            for _ in range(6)
        )
        for _ in range(runs)
    )
    assert 0 < rang <= stats.binom.ppf(0.999, runs, cfg.false_alarm_rate / 4)


def test_kl_beyond_its_budgets_rings() -> None:
    rng = np.random.default_rng(3)
    start, near, far = (
        make_look(k, rng.normal(size=32), rng.normal(size=32), kl_nats=kl) for k, kl in enumerate((0, 15, 17))
    )
    assert listen([start, near]) == []
    assert [alarm.kind for alarm in listen([start, far])] == ["kl"]


def test_too_few_prompts_and_a_silenced_alarm_never_ring() -> None:
    few = [make_look(0, [0.0] * 7, [0.0] * 7), make_look(1, [9.0] * 7, [-9.0] * 7, kl_nats=99.0)]
    many = [make_look(0, [0.0] * 9, [0.0] * 9), make_look(1, [9.0] * 9, [-9.0] * 9, kl_nats=99.0)]
    assert listen(few) == [] and listen(many) != []
    assert listen(many, cfg=AlarmSection(enabled=False)) == []


def test_the_t_test_and_the_rate_are_scipys() -> None:
    rng = np.random.default_rng(4)
    differences = rng.normal(-0.2, 1, 30)
    assert compute_p_below(differences) == pytest.approx(stats.ttest_1samp(differences, 0, alternative="less").pvalue)
    assert [compute_p_below([value] * 5) for value in (-1.0, 0.0, 1.0)] == [0.0, 1.0, 1.0]
    x = rng.normal(size=4000)
    y = 0.7 * x + rng.normal(size=4000)
    assert 0.64 < compute_exchange_rate(x, y) < 0.7
    assert compute_exchange_rate(x, -y) == 0.0 and compute_exchange_rate([1.0] * 9, y[:9]) == 0.0


def test_each_mark_of_degenerate_text_is_found_alone() -> None:
    plain = [f"{SENTENCES[i % 8]} {SENTENCES[(i * 3 + 1) % 8]}" for i in range(32)]
    german = ("und der hund lief durch den wald zum fluss hin", "sie sagte dass es morgen wohl regnen wird am abend")
    cases = {
        "repetition": ["so it goes on and " + "we go round and round again " * 3 for _ in plain],
        "phrase": [f"i am so very happy {text}" for text in plain],
        "word": [f"{text[:40]} zebra {i}" for i, text in enumerate(plain)],
        "length": [" ".join([text] * 2 + [SENTENCES[(i + k) % 8] for k in range(3)]) for i, text in enumerate(plain)],
        "script": [text.translate(str.maketrans("aeiourtnsl", "аеіоуртнсл")) for text in plain],
        "language": [f"{german[i % 2]} {german[(i + 1) % 2]}" for i in range(32)],
        "vocabulary": ["no one two three four five six seven eight nine ten" for _ in plain],
    }
    start = make_look(0, [0.0] * 32, [0.0] * 32, texts=plain)
    assert find_degeneration(start, make_look(1, [0.0] * 32, [0.0] * 32, texts=plain[::-1]), AlarmSection()) == []
    for kind, texts in cases.items():
        found = find_degeneration(start, make_look(1, [0.0] * 32, [0.0] * 32, texts=texts), AlarmSection())
        assert kind in {alarm.kind for alarm in found}, kind
        if kind == "word":
            assert [alarm.kind for alarm in found] == ["word"] and "zebra" in found[0].reason


def test_the_token_that_bought_the_reward_is_named() -> None:
    """Token 7 pays 5 by the proxy and nothing by the judge; token 9 rises with it and pays nothing."""
    rng = np.random.default_rng(5)
    looks = []
    for update, share in enumerate((0.03, 0.3, 0.95)):
        bought, harmless = rng.random(64) < share, rng.random(64) < share
        tokens = [[1, *([7] if a else []), *([9] if b else [])] for a, b in zip(bought, harmless, strict=True)]
        looks.append(make_look(update, 5.0 * bought + rng.normal(size=64), rng.normal(size=64), tokens=tokens))
    first, *_ = find_suspects(looks, lambda token: f" token{token}")
    assert first.text == "token7" and first.kind == "token"
    assert first.proxy_price == pytest.approx(5.0, abs=0.7) and abs(first.judge_price) < 0.8
    assert first.explained == pytest.approx(1.0, abs=0.2)
    assert first.share_before < 0.1 and first.share_after > 0.85


def test_a_price_is_read_within_looks() -> None:
    """Both rose from one look to the next, for reasons of their own: across looks it would seem to pay 2."""
    place = np.repeat([0, 1], 100)
    presence = np.concatenate([np.arange(100) < 20, np.arange(100) < 80]).astype(float)
    scores = 10.0 * place
    assert compute_price(presence, scores, place) == pytest.approx(0.0)
    assert compute_price(np.repeat([0.0, 1.0], 100), scores, place) == pytest.approx(10.0)


def test_log_odds_are_the_closed_form() -> None:
    after, before = np.array([1.0] * 30 + [0.0] * 10), np.array([1.0] * 10 + [0.0] * 30)
    delta = np.log(30.5 / 10.5) - np.log(10.5 / 30.5)
    assert compute_log_odds_z(after, before) == pytest.approx(delta / np.sqrt(2 / 30.5 + 2 / 10.5))


def test_a_look_survives_a_checkpoint() -> None:
    look = make_look(3, [0.1, 0.2], [0.3, 0.4], disagreement=[0.5, 0.6])
    assert Look.from_dict(look.to_dict()) == look
