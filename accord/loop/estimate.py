"""What a stage is expected to cost on this machine, before it starts: tokens, seconds, memory.

Implements a count of what each stage reads, trains on and samples, in tokens through one layer and in rows of logits,
turned into seconds by what `calibration` has timed. Leaves out what cannot be known beforehand: a completion is taken
to be as long as allowed, a reward model to be best after `BEST_EPOCH`, and the machine to have no other users.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from transformers import AutoTokenizer

from accord.config import Config
from accord.loop.calibration import Speed, measure_speed
from accord.loop.context import resolve_model
from accord.loop.fitting import NORMALIZE_PROMPTS
from accord.loop.preparing import find_prompt_file, read_prompt_file
from accord.loop.watching import count_looks
from accord.models.loading import find_source
from accord.models.size import measure_size
from accord.models.tokenizer import ChatTokenizer
from accord.starter import load_starter_prompts
from accord.types import Prompt
from accord.workspace import Workspace

if TYPE_CHECKING:
    from accord.loop.graph import Stage

PROMPT_TOKENS = 64
"""Tokens of a prompt under its chat template, where the prompts are those of votes and were not read yet."""
PROMPTS_MEASURED = 64
"""Prompts whose tokens are counted; the others are taken to be as long on average."""
BEST_EPOCH = 2
"""The epoch after which a reward model is expected to stop improving; `patience` epochs more are run."""
OVERHEAD = 1.25
"""What stages take beside the passes counted here: adapters, padding, batches that run empty. Fitted to the demo."""
OVERHEAD_SECONDS = 1.0
"""What a stage costs however small it is: loading, hashing, writing."""
DOCTOR_TOKENS = 4096
"""What the doctor's checks read, all in all."""


class Estimate(NamedTuple):
    """Tokens read and written, expected seconds, expected peak bytes."""

    tokens: int
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Machine:
    """What is known of machine, model and prompts. split: layers of the trunk, 0 where all weights are trained.

    policy_split: layers below the policy's adapters; split, or 0 where it adapts every layer. prompt_tokens: mean
    tokens of a prompt under its chat template.
    """

    speed: Speed
    parameters: int
    layers: int
    split: int
    policy_split: int
    vocabulary: int
    train_prompts: int
    evaluation_prompts: int
    pairs: int
    prompt_tokens: float


@dataclass
class Work:
    """What a stage does. read, trained: tokens times layers; read_rows, trained_rows: rows of logits; decoded: tokens.

    tokens: the sum that a person is shown, each token once a pass.
    """

    read: float = 0.0
    read_rows: float = 0.0
    trained: float = 0.0
    trained_rows: float = 0.0
    decoded: float = 0.0
    tokens: float = 0.0

    def add_reading(self, tokens: float, layers: int, rows: float = 0.0) -> None:
        """Read `tokens` through `layers` layers, and `rows` rows of logits."""
        self.read += tokens * layers
        self.read_rows += rows
        self.tokens += tokens

    def add_training(self, tokens: float, layers: int, rows: float = 0.0) -> None:
        """As `add_reading`, with the backward pass."""
        self.trained += tokens * layers
        self.trained_rows += rows
        self.tokens += tokens

    def add_sampling(self, sequences: float, prompts: float, machine: Machine, new_tokens: int) -> None:
        """Read `prompts` different prompts and sample `sequences` completions of them."""
        self.add_reading(prompts * machine.prompt_tokens, machine.layers, prompts)
        self.decoded += sequences * new_tokens
        self.tokens += sequences * new_tokens


def measure_machine(workspace: Workspace, config: Config, votes: int) -> Machine:
    """Time one layer of the model (about a second), read its size, count and measure the prompts. Loads no weights."""
    name, compute = resolve_model(workspace, config), config.compute
    size = measure_size(name)
    train, evaluation, prompts = _count_prompts(workspace, config, votes)
    own = config.sample.completions * (config.sample.completions - 1) // 2
    split = round(2 / 3 * size.layers) if config.model.split == -1 else config.model.split
    split = 0 if config.model.adapter == "full" else min(split, size.layers - 1)
    return Machine(
        speed=measure_speed(name, dtype=config.model.dtype, device=compute.device, threads=compute.threads),
        parameters=size.parameters,
        layers=size.layers,
        split=split,
        policy_split=split if config.model.adapter == "lora" else 0,
        vocabulary=size.vocabulary,
        train_prompts=train,
        evaluation_prompts=evaluation,
        pairs=votes if config.feedback.source == "votes" else min(train * own, config.selection.pairs or train * own),
        prompt_tokens=_measure_prompts(name, prompts),
    )


def _count_prompts(workspace: Workspace, config: Config, votes: int) -> tuple[int, int, list[Prompt]]:
    """(training, evaluation) prompts that the settings ask for, and the prompts themselves where they lie in a file."""
    section = config.prompts
    found: list[Prompt] = []

    def count(source: str, part: str) -> int:
        if source == "votes":
            return votes
        if source == "starter":
            prompts = load_starter_prompts("train" if part == "train" else "evaluation")
        else:
            prompts = read_prompt_file(find_prompt_file(workspace, source))
        found.extend(prompts)
        return len(prompts)

    train = count(section.train, "train")
    if section.evaluation == "split":
        evaluation = round(train * section.evaluation_fraction)
        train -= evaluation
    else:
        evaluation = count(section.evaluation, "evaluation")
    return min(train, section.limit or train), min(evaluation, section.evaluation_limit or evaluation), found


def _measure_prompts(name: str, prompts: list[Prompt]) -> float:
    """Mean tokens of a prompt as the model reads it; `PROMPT_TOKENS` where there is none to read."""
    if not prompts:
        return PROMPT_TOKENS
    tokenizer = AutoTokenizer.from_pretrained(find_source(name))
    tokens = ChatTokenizer(tokenizer, eos_candidates=(0,), where=f"model {name!r}")  # which EOS it is adds no token
    chosen = prompts[:: max(1, len(prompts) // PROMPTS_MEASURED)]
    return fmean(len(tokens.encode_prompt(prompt)) for prompt in chosen)


def estimate_stage(stage: Stage, config: Config, machine: Machine) -> Estimate:
    """Expected cost of a stage that is not done."""
    work = Work()
    if stage.kind in COUNTS:
        COUNTS[stage.kind](work, config, machine)
    return Estimate(round(work.tokens), OVERHEAD_SECONDS + _time(work, config, machine), _weigh(work, config, machine))


def _count_doctor(work: Work, config: Config, machine: Machine) -> None:
    work.add_reading(DOCTOR_TOKENS, machine.layers, DOCTOR_TOKENS)


def _count_samples(work: Work, config: Config, machine: Machine) -> None:
    sample, prompts = config.sample, machine.train_prompts
    work.add_sampling(prompts * sample.completions, prompts, machine, sample.max_new_tokens)


def _count_sft(work: Work, config: Config, machine: Machine) -> None:
    new = config.sample.max_new_tokens
    _count_fit(work, machine, machine.pairs, machine.prompt_tokens + new, new, config.sft.epochs)


def _count_proxy(work: Work, config: Config, machine: Machine) -> None:
    _count_reward_model(work, config, machine, 1 - config.feedback.heldout_fraction)


def _count_heldout(work: Work, config: Config, machine: Machine) -> None:
    _count_reward_model(work, config, machine, config.feedback.heldout_fraction)


def _count_reward_model(work: Work, config: Config, machine: Machine, share: float) -> None:
    """Both answers of a pair stand behind one prompt, the trunk is computed once, early stopping ends the fit."""
    rm, sample = config.reward_model, config.sample
    pair = machine.prompt_tokens + 2 * sample.max_new_tokens
    own = machine.pairs * (1 - rm.test_fraction) * share
    epochs = min(rm.epochs, BEST_EPOCH + rm.patience)
    _count_fit(work, machine, own * (1 - rm.validation_fraction), pair, 0, epochs)
    seen_again = own * rm.validation_fraction * epochs
    work.add_reading(seen_again * pair, machine.layers - machine.split)
    work.add_reading(machine.pairs * rm.test_fraction * pair, machine.layers)
    work.add_sampling(NORMALIZE_PROMPTS, NORMALIZE_PROMPTS, machine, sample.max_new_tokens)


def _count_fit(work: Work, machine: Machine, examples: float, tokens: float, rows: float, epochs: int) -> None:
    """A fit on `examples` sequences of `tokens` tokens, of which `rows` have a row of logits; the trunk once."""
    work.add_reading(examples * tokens, machine.split)
    work.add_training(epochs * examples * tokens, machine.layers - machine.split, epochs * examples * rows)


def _count_people(work: Work, config: Config, machine: Machine) -> None:
    """The proxy's people: both answers of its pairs read by the reward model, and by the trunk for their features."""
    _count_answers(work, config, machine, 1 - config.feedback.heldout_fraction)


def _count_heldout_people(work: Work, config: Config, machine: Machine) -> None:
    _count_answers(work, config, machine, config.feedback.heldout_fraction)


def _count_answers(work: Work, config: Config, machine: Machine, share: float) -> None:
    test = config.reward_model.test_fraction
    answers = 2 * machine.pairs * (test + (1 - test) * share)
    work.add_reading(answers * (machine.prompt_tokens + config.sample.max_new_tokens), machine.layers + machine.split)


def _count_policy(work: Work, config: Config, machine: Machine) -> None:
    """Where annotators are asked at each look, it and the best one before answer too."""
    asked = 2 * config.alarm.votes * count_looks(config)
    work.add_sampling(asked, asked, machine, config.sample.max_new_tokens)
    if config.policy.method == "rejection_sampling":
        rejection, new = config.rejection_sampling, config.sample.max_new_tokens
        candidates = machine.train_prompts * rejection.candidates
        work.add_sampling(candidates, candidates, machine, new)
        work.add_reading(candidates * (machine.prompt_tokens + new), machine.layers)
        row = machine.prompt_tokens + new
        _count_fit(work, machine, machine.train_prompts, row, new, rejection.epochs)
        _count_validations(work, config, machine, rejection.epochs + 1)
    else:
        _count_ppo(work, config, machine)


def _count_ppo(work: Work, config: Config, machine: Machine) -> None:
    """A rollout: sampled with its trunk, reference, critic, score on top; policy, and maybe critic, trained.

    A trunk that sampling did not keep (a policy on every layer) is a pass of its own, as are old logprobs made anew.
    """
    ppo, new = config.ppo, config.sample.max_new_tokens
    above, own = machine.layers - machine.split, machine.layers - machine.policy_split
    row = machine.prompt_tokens + new
    sequences = ppo.updates * ppo.prompts_per_update
    work.add_sampling(sequences, sequences, machine, new)
    if own > above:
        work.add_reading(sequences * row, machine.split)
    work.add_reading(2 * sequences * row, above, sequences * new)
    if ppo.old_logprobs == "trainer":
        work.add_reading(sequences * row, own, sequences * new)
    if ppo.critic == "adapter" or config.reward_model.members > 1:
        work.add_reading(sequences * row, above)  # scores; a critic's head alone reads the same states
    work.add_reading(sequences * row, above)  # the held-out judge, for the curve alone
    if ppo.critic == "adapter":
        work.add_training(ppo.epochs * sequences * row, above)
    work.add_training(ppo.epochs * sequences * row, own, ppo.epochs * sequences * new)
    _count_validations(work, config, machine, ppo.updates // ppo.evaluate_every + 1)


def _count_validations(work: Work, config: Config, machine: Machine, times: int) -> None:
    """Looks: sampled, read by policy, reference and both reward models on one trunk."""
    new = config.sample.max_new_tokens
    sequences = times * min(config.ppo.validation_prompts, machine.train_prompts // 4)
    row = machine.prompt_tokens + new
    work.add_sampling(sequences, sequences, machine, new)
    work.add_reading(sequences * row, machine.split)
    work.add_reading(2 * sequences * row, machine.layers - machine.split, 2 * sequences * new)
    work.add_reading(2 * sequences * row, machine.layers - machine.split)


def _count_tournament(work: Work, config: Config, machine: Machine) -> None:
    """A question has one answer and one vote of each look; two looks have one vote between them."""
    answers = config.tournament.votes * (2 if count_looks(config) == 1 else 1)
    work.add_sampling(answers, answers, machine, config.sample.max_new_tokens)


def _count_gate(work: Work, config: Config, machine: Machine) -> None:
    """From round 2 on the policy before is sampled, and two reward models read it; round 1 has it already."""
    if config.project.rounds > 1:
        items, new = machine.evaluation_prompts * config.evaluation.samples, config.sample.max_new_tokens
        work.add_sampling(items, items, machine, new)
        work.add_reading(2 * items * (machine.prompt_tokens + new), machine.layers)


def _count_evaluation(work: Work, config: Config, machine: Machine) -> None:
    """Policy and `best_of` candidates of the reference are sampled; two reward models read all; likelihoods of two."""
    cfg, new = config.evaluation, config.sample.max_new_tokens
    items = machine.evaluation_prompts * cfg.samples
    row = machine.prompt_tokens + new
    work.add_sampling(items * (cfg.best_of + 1), items * (cfg.best_of + 1), machine, new)
    work.add_reading(items * row * (cfg.best_of + 3), machine.layers)
    work.add_reading(2 * items * row, machine.split)
    work.add_reading(3 * items * row, machine.layers - machine.split, 3 * items * new)


def _count_selection(work: Work, config: Config, machine: Machine) -> None:
    """The samples read twice, where the strategy goes by reward models or tastes; in round 1 nothing after all."""
    if config.selection.strategy in ("uncertain", "conflict", "taste"):
        row = machine.prompt_tokens + config.sample.max_new_tokens
        work.add_reading(2 * machine.train_prompts * config.sample.completions * row, machine.layers)


COUNTS: dict[str, Callable[[Work, Config, Machine], None]] = {
    "doctor": _count_doctor,
    "samples": _count_samples,
    "selection": _count_selection,
    "sft": _count_sft,
    "reward_model": _count_proxy,
    "heldout_reward_model": _count_heldout,
    "people": _count_people,
    "heldout_people": _count_heldout_people,
    "policy": _count_policy,
    "tournament": _count_tournament,
    "evaluation": _count_evaluation,
    "gate": _count_gate,
}
"""What each stage that runs the model does; the others take no time worth counting."""


def _time(work: Work, config: Config, machine: Machine) -> float:
    """Seconds of the passes, and what comes beside them; training all weights costs half as much again."""
    speed = machine.speed
    seconds = (
        work.read * speed.read_layer
        + work.read_rows * speed.read_head
        + (work.trained * speed.trained_layer + work.trained_rows * speed.trained_head)
        * (1.5 if config.model.adapter == "full" else 1.0)
        + work.decoded * (machine.layers * speed.decoded_layer + speed.decoded_head)
    )
    return OVERHEAD * seconds


def _weigh(work: Work, config: Config, machine: Machine) -> int:
    """Expected peak bytes: torch, the weights, what training keeps of a micro-batch, and logits; or the budget."""
    trains = bool(work.trained)
    weights = machine.parameters * (2 if config.model.dtype == "bfloat16" else 4)
    if config.model.adapter == "full" and trains:
        moments = 2 if config.model.optimizer == "adamw_8bit" else 8
        weights += (8 + moments) * machine.parameters  # float32 copy, gradient and two moments
    batch = (
        max(config.ppo.micro_batch_size, config.reward_model.micro_batch_size) if trains else config.sample.batch_size
    )
    logits = 4 * 3 * batch * (config.sample.max_new_tokens if trains else 1) * machine.vocabulary
    expected = 500_000_000 + 2 * weights + logits
    budget = round(config.compute.memory_gb * 1e9)
    return min(expected, budget) if budget else expected
