"""Over-optimisation on purpose: policies optimised against rewards learnt from ever fewer votes, beside the truth.

Implements the experiment of Gao et al. 2022 in a world with a hidden utility (`world`): proxies from n noisy votes, one
model or an ensemble; best-of-n and PPO (the loop's own `train_ppo`), with and without a KL penalty; an independent
judge fitted on other prompts' votes; and, on every run, where the alarm would have rung and which checkpoint would have
been kept. Runs are independent of one another and are kept as files, so that a stopped experiment goes on. Leaves out
fitting the laws (`evaluation.overoptimization`) and drawing (`page`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from accord.config.guarding import AlarmSection
from accord.config.schema import AnnotatorSection, PpoSection, RewardModelSection, SampleSection
from accord.evaluation.alarm import check_looks
from accord.evaluation.overoptimization import compute_best_of_n
from accord.feedback.consensus import compute_consensus
from accord.feedback.simulate import simulate_votes
from accord.functional import compute_best_of_n_kl
from accord.laboratory.world import World, build_toy_world
from accord.looks import Look
from accord.models.ensemble import Ensemble, add_ensemble
from accord.rewards import EnsembleReward, as_source
from accord.rollout import Sampler
from accord.training import normalize_reward_model, train_ppo, train_reward_model
from accord.types import Preference, Progress, Prompt, RewardSource, derive_seed
from accord.workspace import dump_json, replace_file

JUDGE_PAIRS, VALIDATION, NORMALIZE, CANDIDATE_PROMPTS = 2000, 128, 128, 64
"""Prompts of the judge's pairs, of the looks, of normalisation, and of best-of-n."""
COOL = 0.25
"""Temperature of half the answers that the judge's annotators see, so that it knows what repetitive text is worth; the
proxies' annotators see the reference's own answers alone."""
SURE = 200.0
"""Skill of a simulated annotator who is never wrong by itself: all noise comes from `flips`."""


@dataclass(frozen=True)
class LabSettings:
    """What is tried. votes: how many votes a proxy is fitted on, each on a pair of its own, `flips` of them a coin's.

    seeds: independent worlds. judge_votes: votes on each of the judge's pairs. members: of the ensemble, fitted on the
    fewest votes. kl_coef: of the run with a KL penalty. updates, looks: of each PPO run, and how often it is looked at.
    candidates: N of best-of-n. false_alarm_rate: of the alarm.
    """

    seeds: int = 5
    votes: tuple[int, ...] = (50, 200, 1000, 5000)
    flips: float = 0.25
    judge_votes: int = 5
    members: int = 4
    kl_coef: float = 0.3
    updates: int = 60
    looks: int = 20
    candidates: int = 256
    false_alarm_rate: float = 0.05


QUICK = LabSettings(seeds=1, votes=(50, 500), updates=12, looks=6, candidates=32)
"""Seconds: for a first impression, and for tests."""


@dataclass(frozen=True)
class Arm:
    """One run of a seed. votes 0: the reward is the truth itself."""

    name: str
    votes: int
    members: int = 1
    kl_coef: float = 0.0


def list_arms(settings: LabSettings) -> list[Arm]:
    """The runs of one seed: the truth, each number of votes, and for the fewest votes also an ensemble and KL."""
    few = settings.votes[0]
    return [
        Arm("truth", 0),
        *(Arm(f"votes-{votes}", votes) for votes in settings.votes),
        Arm(f"votes-{few}-ensemble", few, members=settings.members),
        Arm(f"votes-{few}-kl", few, kl_coef=settings.kl_coef),
    ]


def run_lab(settings: LabSettings, folder: Path, progress: Progress) -> list[dict[str, Any]]:
    """Every run of every seed, one dictionary each (docs/lab.md); those that `folder/runs` holds already are read.

    Raises:
        TrainingError: a fit or a PPO run has gone wrong.
    """
    runs = folder / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    arms = list_arms(settings)
    progress.begin("laboratory", settings.seeds * len(arms), "runs")
    found = []
    for seed in range(settings.seeds):
        bench: Bench | None = None
        for arm in arms:
            key = f"{seed:03d}-{arm.name}"
            path = runs / f"{key}.json"
            wanted = {"settings": asdict(settings) | {"seeds": 0}, "arm": asdict(arm), "seed": seed}
            row = json.loads(path.read_text()) if path.exists() else None
            if row is None or row["wanted"] != _plain(wanted):
                bench = bench or Bench(build_toy_world(seed), settings, seed)
                row = {"wanted": _plain(wanted), "seed": seed, **asdict(arm), **bench.run(arm)}
                replace_file(path, dump_json(row))
                progress.log({"run": key, "gold_end": row["looks"][-1]["gold"]})
            found.append(row)
            progress.advance()
    return found


class Bench:
    """One world with its independent judge, on which runs are made one after the other."""

    def __init__(self, world: World, settings: LabSettings, seed: int) -> None:
        self.world, self.settings, self.seed = world, settings, seed
        self.sampler = Sampler(world.base, 512)
        prompts = list(world.prompts)
        self.validation, self.normal, prompts = prompts[:VALIDATION], prompts[VALIDATION : VALIDATION + NORMALIZE], \
            prompts[VALIDATION + NORMALIZE :]  # fmt: skip
        self.judged, self.voted = prompts[:JUDGE_PAIRS], prompts[JUDGE_PAIRS:]
        judge = self._fit("judge", self.judged, settings.judge_votes, 1)
        self.judge: RewardSource = EnsembleReward(judge, batch_size=256)
        self.gold = as_source(world.utility)

    def run(self, arm: Arm) -> dict[str, Any]:
        """Fit the arm's proxy, take best-of-n and PPO to their ends, and say what the alarm would have done."""
        base = self.world.base
        proxy, disagreement, best_of = self.gold, None, []
        if arm.votes:
            ensemble = self._fit("proxy", self.voted[: arm.votes], 1, arm.members)
            learned = EnsembleReward(ensemble, batch_size=256)
            proxy, disagreement = learned, learned.disagreement if arm.members > 1 else None
        if not arm.kl_coef:
            best_of = self._choose_best(proxy)
        looks = self._optimise(arm, proxy, disagreement)
        for role in base.roles():
            if role != "judge":
                base.remove(role)
        return {"looks": [describe_look(look) for look in looks], "best_of_n": best_of, **self._guard(looks)}

    def _fit(self, role: str, prompts: Sequence[Prompt], votes: int, members: int) -> Ensemble:
        """A reward model of simulated votes on one pair of the reference's samples for each prompt, normalised."""
        world, base = self.world, self.world.base
        seed = derive_seed(self.seed, role, len(prompts), members)
        preferences = self._vote(prompts, votes, derive_seed(self.seed, role, len(prompts)), broad=role == "judge")
        kept = max(8, len(preferences) // 10)
        ensemble = add_ensemble(base, role, members, own_layers=base.layers, lora=world.lora, seed=seed)
        size = 64 if len(preferences) >= 1000 else 16
        cfg = RewardModelSection(
            epochs=8, patience=2, learning_rate=1e-2 if size == 64 else 5e-3, batch_size=size, micro_batch_size=256
        )
        train_reward_model(
            base, ensemble, preferences[kept:], preferences[:kept], cfg, seed=seed, progress=Silence(),
            checkpoint=Forgetful(),
        )  # fmt: skip
        normalize_reward_model(base, ensemble, [self._sample(self.normal, derive_seed(self.seed, "normalize"))])
        return ensemble

    def _vote(self, prompts: Sequence[Prompt], votes: int, seed: int, *, broad: bool) -> list[Preference]:
        """Preferences of `votes` annotators on each pair; each vote is a coin toss with probability 2 * flips.

        broad: half of the answers are sampled at the temperature `COOL`: in a third of the pairs one, in another both.
        """
        doubled = [prompt for prompt in prompts for _ in range(2)]
        answers = list(self._sample(doubled, seed).completions)
        if broad:
            cool = self._sample(doubled, derive_seed(seed, "cool"), temperature=COOL).completions
            answers = [cool[i] if i % 6 in (3, 4, 5) else answers[i] for i in range(len(answers))]
        pairs = [
            (prompt, answers[2 * i], answers[2 * i + 1])
            for i, prompt in enumerate(prompts)
            if answers[2 * i].id != answers[2 * i + 1].id
        ]
        annotators = [
            AnnotatorSection(name=f"annotator {i}", skill=SURE, inconsistency=2 * self.settings.flips)
            for i in range(votes)
        ]
        cast = simulate_votes(pairs, self.world.utility, annotators, votes_per_pair=votes, seed=seed, source="lab")
        return compute_consensus(cast, "fraction")[0]

    def _sample(self, prompts: Sequence[Prompt], seed: int, *, temperature: float | None = None) -> Any:
        world = self.world
        return self.sampler.generate(
            None, prompts, seeds=[derive_seed(seed, i) for i in range(len(prompts))],
            max_new_tokens=world.max_new_tokens, temperature=temperature or world.temperature,
        )  # fmt: skip

    def _choose_best(self, proxy: RewardSource) -> list[dict[str, float]]:
        """Gold, proxy and KL of the best of n = 1, 2, 4, ..., N by proxy score, the mean over prompts."""
        count = self.settings.candidates
        prompts = [prompt for prompt in self.normal[:CANDIDATE_PROMPTS] for _ in range(count)]
        rollout = self._sample(prompts, derive_seed(self.seed, "candidates"))
        scores, gold = (source(rollout).double().view(-1, count).cpu().numpy() for source in (proxy, self.gold))
        rows = []
        for n in [2**k for k in range(int(math.log2(count)) + 1)]:
            kl = compute_best_of_n_kl(n)
            means = {
                name: sum(compute_best_of_n(s, v, n) for s, v in zip(scores, values, strict=True)) / len(scores)
                for name, values in (("gold", gold), ("proxy", scores))
            }
            rows.append({"n": n, "kl_nats": kl, "distance": math.sqrt(kl), **means})
        return rows

    def _optimise(self, arm: Arm, proxy: RewardSource, disagreement: RewardSource | None) -> Sequence[Look]:
        """PPO to its end whatever rings, so that what a guard would have saved can be seen."""
        world, settings = self.world, self.settings
        base = world.base
        base.add_policy("policy", lora=world.lora, seed=self.seed)
        base.add_scorer("critic", lora=world.lora, seed=self.seed)
        cfg = PpoSection(
            updates=settings.updates, prompts_per_update=64, epochs=2, minibatches=2, micro_batch_size=64,
            learning_rate=5e-3, critic_learning_rate=1e-2, kl_controller="fixed", kl_coef=arm.kl_coef,
            missing_eos_penalty=0.0, evaluate_every=max(1, settings.updates // settings.looks),
            checkpoint_every=settings.updates,
        )  # fmt: skip
        result = train_ppo(
            base, self.voted[-1024:], self.sampler, proxy, cfg,
            sample=SampleSection(max_new_tokens=world.max_new_tokens, temperature=world.temperature),
            max_kl_nats=math.inf, seed=derive_seed(self.seed, "ppo"), progress=Silence(), checkpoint=Forgetful(),
            heldout=self.judge, validation_prompts=self.validation, gold=self.gold, disagreement=disagreement,
        )  # fmt: skip
        return result.looks

    def _guard(self, looks: Sequence[Look]) -> dict[str, Any]:
        """What the alarm and the choice of the best checkpoint would have made of this run."""
        alarm = AlarmSection(false_alarm_rate=self.settings.false_alarm_rate, **TEXT_MARKS_OFF)
        planned = len(looks) - 1
        rang = next(
            (
                (count - 1, alarms[0])
                for count in range(2, len(looks) + 1)
                if (alarms := check_looks(looks[:count], alarm, planned=planned, max_kl_nats=math.inf))
            ),
            None,
        )
        seen = looks if rang is None else looks[: rang[0] + 1]
        kept = max(range(len(seen)), key=lambda i: sum(seen[i].heldout))
        golds = [sum(look.gold or ()) / len(look.prompts) for look in looks]
        gain = max(golds) - golds[0]
        return {
            "alarm": None if rang is None else {"look": rang[0], **rang[1].to_dict()},
            "kept_look": kept,
            "peak_look": max(range(len(golds)), key=golds.__getitem__),
            "kept_gold": golds[kept],
            "kept_share": (golds[kept] - golds[0]) / gain if gain > 0 else 1.0,
            "end_share": (golds[-1] - golds[0]) / gain if gain > 0 else 1.0,
        }


TEXT_MARKS_OFF: dict[str, Any] = {
    "repetition_rise": 1.0, "phrase_share": 1.0, "word_share": 1.0, "length_ratio": 1e9, "vocabulary_share": 1e-9,
    "script_loss": 1.0,
}  # fmt: skip
"""A toy's letters are no words, and its best texts use few of them: marks of degenerate text say nothing there."""


def describe_look(look: Look) -> dict[str, Any]:
    """The means of a look: update, KL and its root, proxy, held-out judge, gold, disagreement."""

    def mean(values: Sequence[float] | None) -> float | None:
        return None if values is None else sum(values) / len(values)

    kl = mean(look.kl_nats) or 0.0
    return {
        "update": look.update,
        "kl_nats": kl,
        "distance": math.sqrt(max(0.0, kl)),
        "proxy": mean(look.proxy),
        "heldout": mean(look.heldout),
        "gold": mean(look.gold),
        "disagreement": mean(look.disagreement),
    }


class Silence:
    """`types.Progress` for the steps of a run: the experiment counts runs."""

    def stage(self, name: str, state: str, seconds: float = 0.0) -> None:
        """Nothing."""

    def begin(self, task: str, total: int, unit: str) -> None:
        """Nothing."""

    def advance(self, amount: int = 1) -> None:
        """Nothing."""

    def log(self, metrics: Mapping[str, float | int | str]) -> None:
        """Nothing."""


class Forgetful:
    """`types.Checkpoint` of a run that takes seconds: a stopped one is made again."""

    def save(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Nothing."""

    def load(self) -> None:
        """Never anything."""


def _plain(value: Any) -> Any:
    """`value` as JSON gives it back."""
    return json.loads(json.dumps(value))
