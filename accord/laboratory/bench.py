"""One world on the bench: votes, an independent judge, and policies optimised to the end against learnt rewards.

Implements what a run of the laboratory consists of, on the reward models and the PPO that the loop uses. Leaves out
which runs are made and kept (`experiment`), what the alarm would have said of them and which look is kept (`outcome`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import cycle, islice
from typing import Any

from torch import Tensor

from accord.config.schema import AnnotatorSection, PpoSection, RewardModelSection, SampleSection
from accord.evaluation.overoptimization import compute_best_of_n
from accord.evaluation.tournament import compute_standings, draw_duels, find_winner
from accord.feedback.consensus import compute_consensus
from accord.feedback.simulate import simulate_votes
from accord.functional import compute_best_of_n_kl
from accord.laboratory.world import World
from accord.looks import Challenge, Look
from accord.models import Base
from accord.models.ensemble import Ensemble, add_ensemble
from accord.rewards import EnsembleReward, as_source
from accord.rollout import Sampler
from accord.training import normalize_reward_model, train_ppo, train_reward_model
from accord.types import Completion, Forgetful, Preference, Prompt, RewardSource, Rollout, Silence, Vote, derive_seed

VALIDATION, NORMALIZE, CANDIDATE_PROMPTS, ROLLOUT_PROMPTS = 128, 128, 64, 1024
"""Prompts of the looks, of normalisation, of best-of-n, of PPO."""
ASKED_PROMPTS = 2048
"""Prompts on which people compare looks."""
GOLD_PROMPTS = 1024
"""Prompts on which the truth of every look is measured. They choose nothing."""
WINS: dict[str | None, float] = {"a": 1.0, "b": 0.0, "tie": 0.5}
"""What a vote is to the first answer."""
SURE = 200.0
"""Skill of a simulated annotator who is never wrong by itself: all noise comes from `flips`."""
Pair = tuple[Prompt, Completion, Completion]


@dataclass(frozen=True)
class BenchSettings:
    """flips: share of votes that are wrong. judge_pairs: of the reference's answers, that the judge is first fitted on.

    judge_votes: on each of its pairs. updates, looks: of each PPO run, and how often it is looked at, which divides
    them. candidates: N of best-of-n. look_votes: on each look beside the best before. tournament_votes: with which
    people choose among a run's looks.
    """

    flips: float = 0.25
    judge_pairs: int = 1500
    judge_votes: int = 5
    updates: int = 60
    looks: int = 12
    candidates: int = 256
    look_votes: int = 256
    tournament_votes: int = 20_000


@dataclass(frozen=True)
class Arm:
    """One run of a world. votes: what its proxy is fitted on, one on each pair; 0: the reward is the truth itself.

    members: of the proxy's ensemble. kl_coef: of the KL penalty.
    """

    name: str
    votes: int
    members: int = 1
    kl_coef: float = 0.0


@dataclass(frozen=True)
class BenchRun:
    """What `Bench.run` found.

    looks: on the validation prompts. gold: a row a look, the truth of its answers to other prompts. ask(i, j): what
    people say of look i beside look j (`Bench.ask`). choose(n): which of the first n looks they choose
    (`Bench.choose`). best_of_n: empty with a KL penalty.
    """

    looks: Sequence[Look]
    gold: Sequence[Sequence[float]]
    ask: Callable[[int, int], Challenge]
    choose: Callable[[int], int]
    best_of_n: Sequence[dict[str, float]]


class Snapshots(Forgetful):
    """`Checkpoint` of a run that keeps the policy's weights of each, the start's first."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.weights = [base.state("policy")]

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Keep the policy as it is now."""
        self.weights.append(self.base.state("policy"))


class Bench:
    """One world with its judge, on which runs are made one after the other. Prompts are parted by their use."""

    def __init__(self, world: World, settings: BenchSettings, seed: int) -> None:
        self.world, self.settings, self.seed = world, settings, seed
        self.sampler = Sampler(world.base, 512)
        self.gold = as_source(world.utility)
        prompts = iter(world.prompts)
        self.validation, self.normal, self.rollout, self.judged = (
            list(islice(prompts, count)) for count in (VALIDATION, NORMALIZE, ROLLOUT_PROMPTS, settings.judge_pairs)
        )
        self.voted = list(prompts)
        self.asked, self.golden = (take_last(self.voted, n) for n in (ASKED_PROMPTS, GOLD_PROMPTS))

    @cached_property
    def judge_preferences(self) -> list[Preference]:
        """What the judge's annotators say of pairs of the reference's answers."""
        pairs = self._pair_reference(self.judged, self._derive("judge"))
        return self._vote(pairs, self.settings.judge_votes, self._derive("judge"))

    @cached_property
    def judge(self) -> EnsembleReward:
        """The independent judge, of other prompts' votes than any proxy."""
        return self._fit("judge", self.judge_preferences, self._derive("judge"))

    def run(self, arm: Arm) -> BenchRun:
        """Fit the arm's proxy and take PPO to its end."""
        proxy, disagreement = self.gold, None
        if arm.votes:
            learned = self.fit_proxy(arm.votes, arm.members)
            proxy, disagreement = learned, learned.disagreement if arm.members > 1 else None
        best_of = [] if arm.kl_coef else self._choose_best(proxy)
        looks, weights = self.optimise(proxy, arm.kl_coef, disagreement)
        for role in self.world.base.roles():
            if role != "judge":
                self.world.base.remove(role)
        gold = [self.gold(self._answer(state, self.golden, "gold")).tolist() for state in weights]

        def ask(now: int, best: int) -> Challenge:
            outcomes = self.ask(weights[now], weights[best], now, self._derive("look", now, arm.name))
            return Challenge(looks[now].update, looks[best].update, tuple(outcomes))

        @cache
        def choose(count: int) -> int:
            return self.choose(weights[:count], self._derive("tournament", arm.name))

        return BenchRun(looks, gold, ask, choose, best_of)

    def fit_proxy(self, votes: int, members: int = 1) -> EnsembleReward:
        """The reward model of single votes on so many pairs of the reference's answers."""
        seed = self._derive("proxy", votes)
        preferences = self._vote(self._pair_reference(self.voted[:votes], seed), 1, seed)
        return self._fit("proxy", preferences, seed, members)

    def optimise(
        self, proxy: RewardSource, kl_coef: float = 0.0, disagreement: RewardSource | None = None
    ) -> tuple[Sequence[Look], list[dict[str, Tensor]]]:
        """PPO to its end whatever rings, so that what a guard would have saved can be seen.

        Returns the looks, and the policy's weights at each.
        """
        world, settings, seed = self.world, self.settings, self._derive("ppo")
        base = world.base
        base.add_policy("policy", lora=world.lora, seed=seed)
        base.add_scorer("critic", lora=world.lora, seed=seed)
        every, snapshots = settings.updates // settings.looks, Snapshots(base)
        cfg = PpoSection(
            updates=settings.updates, prompts_per_update=64, epochs=2, minibatches=2, micro_batch_size=64,
            learning_rate=5e-3, critic_learning_rate=1e-2, kl_controller="fixed", kl_coef=kl_coef,
            missing_eos_penalty=0.0, evaluate_every=every, checkpoint_every=every, critic="adapter",
            old_logprobs="trainer",
        )  # fmt: skip
        result = train_ppo(
            base, self.rollout, self.sampler, proxy, cfg,
            sample=SampleSection(max_new_tokens=world.max_new_tokens, temperature=world.temperature),
            max_kl_nats=math.inf, seed=seed, progress=Silence(), checkpoint=snapshots,
            heldout=self.judge, validation_prompts=self.validation, gold=self.gold, disagreement=disagreement,
        )  # fmt: skip
        return result.looks, snapshots.weights

    def ask(self, now: Mapping[str, Tensor], best: Mapping[str, Tensor], number: int, seed: int) -> list[float]:
        """What the policy `now`, at look `number`, wins against the `best` before, on questions that no other look has.

        As in the loop (`loop.challenging`).
        """
        votes = self.settings.look_votes
        questions = list(islice(cycle(self.asked), (number - 1) * votes, number * votes))
        answers = [self._answer(state, questions, f"look-{number}").completions for state in (now, best)]
        return self._judge_pairs(list(zip(questions, *answers, strict=True)), seed)

    def choose(self, weights: Sequence[Mapping[str, Tensor]], seed: int) -> int:
        """Which of these policies people keep, by the tournament that the loop holds (`loop.choosing`)."""
        duels = draw_duels(len(weights), self.settings.tournament_votes, seed=seed)
        asked = list(islice(cycle(self.asked), 1 + max((duel.question for duel in duels), default=0)))
        answers = [self._answer(state, asked, "tournament").completions for state in weights if duels]
        pairs = [(asked[d.question], answers[d.first][d.question], answers[d.second][d.question]) for d in duels]
        return find_winner(compute_standings(len(weights), duels, self._judge_pairs(pairs, seed)))

    def _judge_pairs(self, pairs: Sequence[Pair], seed: int) -> list[float]:
        """One vote on each pair: 1 where it prefers the first answer, 0 the second, 0.5 where they are the same."""
        cast = iter(self._cast(pairs, 1, seed))
        return [0.5 if a.id == b.id else WINS[next(cast).choice] for _, a, b in pairs]

    def _pair_reference(self, prompts: Sequence[Prompt], seed: int) -> list[Pair]:
        """Two answers of the reference to each prompt."""
        answers = self._sample([prompt for prompt in prompts for _ in range(2)], seed).completions
        return [(prompt, answers[2 * i], answers[2 * i + 1]) for i, prompt in enumerate(prompts)]

    def _fit(self, role: str, preferences: Sequence[Preference], seed: int, members: int = 1) -> EnsembleReward:
        """A new reward model of these votes, normalised on the reference's answers."""
        world, base = self.world, self.world.base
        ensemble = add_ensemble(base, role, members, own_layers=base.layers, lora=world.lora, seed=seed)
        rate, size = (1e-2, 64) if len(preferences) >= 1000 else (5e-3, 16)
        self._train(ensemble, preferences, seed, epochs=8, learning_rate=rate, batch_size=size)
        return EnsembleReward(ensemble, batch_size=512)

    def _train(
        self, ensemble: Ensemble, preferences: Sequence[Preference], seed: int, *, epochs: int, learning_rate: float,
        batch_size: int,
    ) -> None:  # fmt: skip
        """Fit an ensemble further, a tenth of the votes apart to stop it early, and normalise it."""
        base, kept = self.world.base, max(8, len(preferences) // 10)
        cfg = RewardModelSection(
            epochs=epochs, patience=2, learning_rate=learning_rate, batch_size=batch_size, micro_batch_size=256
        )
        train_reward_model(
            base, ensemble, preferences[kept:], preferences[:kept], cfg, seed=seed, progress=Silence(),
            checkpoint=Forgetful(),
        )  # fmt: skip
        normalize_reward_model(base, ensemble, [self.normal_answers])

    @cached_property
    def normal_answers(self) -> Rollout:
        """The reference's answers on which scores have mean 0 and variance 1."""
        return self._sample(self.normal, self._derive("normalize"))

    def _vote(self, pairs: Sequence[Pair], votes: int, seed: int) -> list[Preference]:
        """What `votes` annotators say of each pair whose answers differ."""
        return compute_consensus(self._cast(pairs, votes, seed), "fraction")[0]

    def _cast(self, pairs: Sequence[Pair], votes: int, seed: int) -> list[Vote]:
        """A vote of each of `votes` annotators on each such pair; a coin toss with probability 2 * flips."""
        annotators = [
            AnnotatorSection(name=f"annotator {i}", skill=SURE, inconsistency=2 * self.settings.flips)
            for i in range(votes)
        ]
        different = [(prompt, a, b) for prompt, a, b in pairs if a.id != b.id]
        return simulate_votes(different, self.world.utility, annotators, votes_per_pair=votes, seed=seed, source="lab")

    def _sample(self, prompts: Sequence[Prompt], seed: int, role: str | None = None) -> Rollout:
        """One answer to each prompt, the reference's or that of `role`."""
        return self.sampler.generate(
            role, prompts, seeds=[derive_seed(seed, i) for i in range(len(prompts))],
            max_new_tokens=self.world.max_new_tokens, temperature=self.world.temperature,
        )  # fmt: skip

    def _answer(self, weights: Mapping[str, Tensor], prompts: Sequence[Prompt], use: str) -> Rollout:
        """One answer to each prompt by the policy of these weights; all policies draw with the same seeds."""
        base = self.world.base
        base.add_policy("policy", lora=self.world.lora, seed=0)
        base.load_state("policy", weights)
        rollout = self._sample(prompts, self._derive(use), "policy")
        base.remove("policy")
        return rollout

    @cached_property
    def candidates(self) -> Rollout:
        """N answers of the reference to each prompt of best-of-n, side by side."""
        prompts = [prompt for prompt in self.normal[:CANDIDATE_PROMPTS] for _ in range(self.settings.candidates)]
        return self._sample(prompts, self._derive("candidates"))

    def _choose_best(self, proxy: RewardSource) -> list[dict[str, float]]:
        """Gold, proxy and KL of the best of n = 1, 2, 4, ..., N by proxy score, the mean over prompts."""
        count = self.settings.candidates
        scores, gold = (source(self.candidates).double().view(-1, count).cpu().numpy() for source in (proxy, self.gold))
        rows = []
        for n in [2**k for k in range(int(math.log2(count)) + 1)]:
            kl = compute_best_of_n_kl(n)
            means = {
                name: sum(compute_best_of_n(s, v, n) for s, v in zip(scores, values, strict=True)) / len(scores)
                for name, values in (("gold", gold), ("proxy", scores))
            }
            rows.append({"n": n, "kl_nats": kl, "distance": math.sqrt(kl), **means})
        return rows

    def _derive(self, *labels: str | int) -> int:
        return derive_seed(self.seed, *labels)


def take_last(prompts: list[Prompt], count: int) -> list[Prompt]:
    """Take the last `count` prompts out of the list."""
    taken = prompts[len(prompts) - count :]
    del prompts[len(prompts) - count :]
    return taken
