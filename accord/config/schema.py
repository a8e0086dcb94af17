"""The sections of accord.toml, frozen and validated: unknown keys, wrong types, impossible combinations are refused.

Implements the schema and its cross-checks; `accord/config/load.py` reads the file and turns a refusal into a line
number and the nearest valid name. Each field's description is the documentation: docs/settings.md is generated from it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from accord.config.computing import ComputeSection
from accord.config.guarding import AlarmSection, GuardSection, RoundsSection, TournamentSection
from accord.config.rewarding import RewardSection
from accord.config.section import Section


class ProjectSection(Section):
    """The project as a whole."""

    name: str = Field("my-project", description="Shown in reports.")
    seed: int = Field(0, ge=0, description="Every random choice descends from it: same seed, same bits on a CPU.")
    rounds: int = Field(1, ge=1, description="How many times round the loop.")
    database: str = Field(
        "",
        description="Where votes are kept. Empty: `feedback.db` in the project's folder. Or a URL of its own, "
        "`postgresql://accord@db.example.org/votes`; the password belongs in PGPASSWORD or ~/.pgpass.",
    )


class ModelSection(Section):
    """The base model that every role stands on."""

    name: str = Field("smollm2", description="`smollm2` (embedded), a folder, or a Hugging Face name.")
    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="Of the frozen base. Adapters and heads are float32."
    )
    split: int = Field(
        -1,
        ge=-1,
        description="Layers computed once and shared by all roles; adapters sit above. -1: two thirds. 0: textbook.",
    )
    adapter: Literal["lora", "lora_all", "full"] = Field(
        "lora",
        description="How the policy learns: LoRA above the split, LoRA on every layer, or all weights.",
    )
    lora_rank: int = Field(16, ge=1, description="LoRA r.")
    lora_alpha: int = Field(32, ge=1, description="LoRA alpha; the update is scaled by alpha / r.")
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw", description="Of all that learns; `adamw_8bit` keeps its moments in a byte each (docs/memory.md)."
    )

    @model_validator(mode="after")
    def _full_needs_no_split(self) -> ModelSection:
        if self.adapter == "full" and self.split > 0:
            raise ValueError('adapter = "full" trains every layer, so split must be 0 or -1')
        return self


class PromptsSection(Section):
    """What the model is asked, and who is kept apart for evaluation."""

    train: str = Field(
        "starter", description="`starter`, or a .jsonl file of prompts, or `votes`: the prompts of imported votes."
    )
    evaluation: str = Field(
        "starter", description="As `train`; `split`: a share of the training prompts, held out by prompt."
    )
    evaluation_fraction: float = Field(0.2, gt=0, lt=1, description='Share held out where evaluation = "split".')
    limit: int = Field(0, ge=0, description="Use at most so many training prompts; 0: all.")
    evaluation_limit: int = Field(0, ge=0, description="Use at most so many evaluation prompts; 0: all.")
    max_tokens: int = Field(256, ge=8, description="Longer prompts are left out, and the count is reported.")
    probes: tuple[Literal["bias", "limits"], ...] = Field(
        (),
        description="Prompts added on both sides, others on each, of which a reward of their own speaks: `bias` "
        "(`even_handed`), `limits` of knowledge (`knows_limits`): docs/mixture.md.",
    )


class SampleSection(Section):
    """How completions are sampled, everywhere: one temperature, no top-p or top-k."""

    completions: int = Field(2, ge=2, description="Completions for each prompt shown to annotators.")
    max_new_tokens: int = Field(48, ge=1, description="A completion is cut after so many tokens.")
    temperature: float = Field(1.0, gt=0, description="Of sampling, and of old, new and reference logprobs.")
    batch_size: int = Field(64, ge=1, description="Sequences decoded side by side; changes speed and memory only.")


class FeedbackSection(Section):
    """Whose judgement counts, and how votes become preferences."""

    source: Literal["simulated", "votes", "people"] = Field(
        "simulated",
        description="`simulated`: annotators of [simulation]; `votes`: those in feedback.db (`accord import`); "
        "`people`: samples are put before people in `accord label`, and the loop waits for their votes.",
    )
    consensus: Literal["fraction", "dawid_skene", "bradley_terry"] = Field(
        "bradley_terry", description="How several votes on a pair become one probability."
    )
    heldout_fraction: float = Field(
        0.3, gt=0, lt=1, description="Share of prompts whose votes fit the held-out reward model, which PPO never sees."
    )
    heldout_annotators: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="Share of annotators whose votes fit the held-out model alone, where pairs have two votes or more "
        "on average and both sides keep two annotators; 0: parted by prompt alone.",
    )


class SelectionSection(Section):
    """Which pairs of a round's samples are put before annotators, people or simulated: docs/queue.md."""

    pairs: int = Field(0, ge=0, description="Pairs that a round asks about; 0: all of them, and nothing is chosen.")
    strategy: str = Field(
        "random",
        description="Which come first, by name: `random`; `uncertain`: the last round's reward models disagree; "
        "`conflict`: they contradict people's votes; `coverage`: prompts with the fewest votes; `taste`: they tell "
        "most of what sets an annotator apart. Round 1 has no reward model yet: there all but `coverage` are `random`.",
    )
    random_share: float = Field(
        0.2, gt=0, le=1, description="Share drawn at random whatever the strategy, so that the choice can be corrected."
    )

    @model_validator(mode="after")
    def _a_strategy_needs_a_number(self) -> SelectionSection:
        if self.strategy != "random" and not self.pairs:
            raise ValueError("selection.strategy chooses nothing while selection.pairs = 0 asks about every pair")
        return self


class AnnotatorSection(Section):
    """One simulated annotator. It votes through the same store as people and is marked as simulated everywhere."""

    name: str = Field(description="Unique.")
    skill: float = Field(4.0, description="P(a) = sigmoid(skill * (u(a) - u(b)) + side_bias); 0 votes at random.")
    side_bias: float = Field(0.0, description="In logits; above 0 prefers the first answer.")
    tie_rate: float = Field(0.0, ge=0, lt=1, description="How often it calls a tie where the answers are close.")
    inconsistency: float = Field(0.0, ge=0, lt=1, description="How often it votes by coin toss.")


class SimulationSection(Section):
    """Simulated annotators and the hidden utility they judge by."""

    utility: str = Field("demo_utility", description="A text reward by name (docs/rewards.md): the gold reward.")
    votes_per_pair: int = Field(3, ge=1, description="Annotators on each pair, in rotation.")
    annotators: tuple[AnnotatorSection, ...] = Field(
        (), description="`[[simulation.annotators]]` tables; none: five of different skill."
    )

    @model_validator(mode="after")
    def _names_differ(self) -> SimulationSection:
        names = [a.name for a in self.annotators]
        if len(set(names)) != len(names):
            raise ValueError("two simulated annotators have the same name")
        return self


class LabelSection(Section):
    """The labelling app, `accord label`: where it listens, who comes in, and how often each item is judged."""

    host: str = Field(
        "127.0.0.1", description="Address to listen on. Loopback opens without an account; any other asks for accounts."
    )
    port: int = Field(8400, ge=1, le=65535, description="Port to listen on.")
    url: str = Field("", description="Where people find it, if not there: `https://label.example.org` behind a proxy.")
    accounts: Literal["auto", "always"] = Field(
        "auto", description="`auto`: only where `host` is not loopback; `always`: on loopback too."
    )
    ask: Literal["comparison", "ranking", "rating"] = Field(
        "comparison", description="What people are asked: each pair of answers, all answers in order, or each answer."
    )
    overlap: int = Field(3, ge=1, description="How many people judge an item of the shared part.")
    overlap_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of items that so many people judge, to see how far they agree; one the rest.",
    )
    repeat_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of comparisons asked again of who judged them, to see who judges alike twice.",
    )
    gold: str = Field(
        "",
        description="A .jsonl file of items with a known answer (docs/queue.md), asked of everybody in each round to "
        "see who reads before they judge.",
    )
    chat: bool = Field(
        False, description="Let annotators write prompts that the newest policy answers; the server loads the model."
    )
    prefetch: int = Field(30, ge=1, le=100, description="Items that a browser holds ahead, so that it can go offline.")
    lease_seconds: int = Field(
        1800, ge=10, description="After so long without a word, an item held by a browser goes to someone else."
    )

    @model_validator(mode="after")
    def _url_is_one(self) -> LabelSection:
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError("label.url must begin with http:// or https://")
        return self


class SftSection(Section):
    """Supervised fine-tuning before PPO, on the preferred completions and people's edits. Off by default."""

    epochs: int = Field(0, ge=0, description="0: no SFT.")
    learning_rate: float = Field(1e-4, gt=0, description="AdamW, cosine to zero.")
    batch_size: int = Field(16, ge=1, description="Sequences an optimiser step.")


class RewardModelSection(Section):
    """The reward models: one that PPO optimises, one fitted on other votes that only judges."""

    objective: str = Field("bradley_terry", description="A preference objective by name (accord/losses).")
    epochs: int = Field(3, ge=1, description="At most; early stopping keeps the best epoch.")
    patience: int = Field(1, ge=1, description="Epochs in a row without a lower validation loss that end the fit.")
    learning_rate: float = Field(3e-4, gt=0, description="AdamW, warm-up then cosine.")
    batch_size: int = Field(16, ge=1, description="Pairs an optimiser step.")
    micro_batch_size: int = Field(8, ge=1, description="Pairs a forward pass; changes memory and speed only.")
    max_tokens: int = Field(256, ge=8, description="Pairs with a longer side are left out, and the count is reported.")
    validation_fraction: float = Field(0.1, gt=0, lt=1, description="Share of its prompts kept for early stopping.")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="Share of its prompts kept for the report card.")
    margin: float = Field(
        0.0, ge=0, description="Strength margin: the loss asks for margin * strength between the scores."
    )
    members: int = Field(
        1, ge=1, description="Reward models in the proxy's ensemble (docs/ensemble.md); the held-out judge is one."
    )
    own_layers: int = Field(
        4, ge=1, description="Upper layers in which an ensemble's members differ; what is below, they share."
    )
    combine: Literal["mean", "worst", "variance_penalised", "weight_average"] = Field(
        "mean", description="How the members' scores become one."
    )


class PolicySection(Section):
    """How the policy is improved."""

    method: str = Field("ppo", description="A trainer by name (accord/training): ppo, rejection_sampling.")
    max_kl_nats: float = Field(8.0, gt=0, description="KL budget a sequence; a checkpoint beyond it is never the best.")


class PpoSection(Section):
    """Proximal policy optimisation with a KL penalty against the reference."""

    updates: int = Field(16, ge=1, description="Rollouts, each followed by `epochs` passes.")
    prompts_per_update: int = Field(32, ge=1, description="Sequences in a rollout.")
    epochs: int = Field(4, ge=1, description="Passes over each rollout.")
    minibatches: int = Field(2, ge=1, description="Optimiser steps a pass.")
    micro_batch_size: int = Field(8, ge=1, description="Sequences a forward pass; changes memory and speed only.")
    objective: str = Field("ppo_clip", description="A policy objective by name (accord/losses).")
    old_logprobs: Literal["trainer", "sampler"] = Field(
        "sampler", description="Of the ratio: computed anew by a pass of training's kernels, or as they were sampled."
    )
    values: Literal["pass", "sampler"] = Field(
        "pass", description="Of the critic: by a pass over the rollout, or by rows that run along while it is sampled."
    )
    learning_rate: float = Field(1e-4, ge=0, description="Of the policy. AdamW, linear to a tenth.")
    critic: Literal["adapter", "head"] = Field(
        "head",
        description="What learns of the critic: all of it, or the head alone on states computed once a rollout.",
    )
    critic_learning_rate: float = Field(1e-4, ge=0, description="Of the critic.")
    clip_range: float = Field(0.2, gt=0, description="epsilon of the clipped ratio.")
    value_clip_range: float = Field(0.2, gt=0, description="epsilon of the clipped value loss.")
    gamma: float = Field(1.0, gt=0, le=1, description="Discount.")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="GAE lambda.")
    vf_coef: float = Field(0.5, ge=0, description="Weight of the value loss.")
    ent_coef: float = Field(0.0, ge=0, description="Weight of the entropy bonus.")
    max_grad_norm: float = Field(1.0, gt=0, description="Global norm to which gradients are clipped.")
    kl_controller: Literal["fixed", "adaptive"] = Field("adaptive", description="Of kl_coef (Ziegler et al. 2019).")
    kl_coef: float = Field(0.05, ge=0, description="beta, at the start.")
    kl_target_nats: float = Field(4.0, gt=0, description="Target KL a sequence of the adaptive controller.")
    kl_horizon: int = Field(2000, ge=1, description="Horizon of the adaptive controller, in sequences.")
    missing_eos_penalty: float = Field(1.0, ge=0, description="Taken from the score of a completion that was cut.")
    evaluate_every: int = Field(4, ge=1, description="Updates between held-out scores on the validation prompts.")
    validation_prompts: int = Field(
        32, ge=1, description="Training prompts kept out of PPO to choose the best checkpoint."
    )
    checkpoint_every: int = Field(
        2, ge=1, description="Updates between checkpoints; changes nothing but what a kill costs."
    )

    @model_validator(mode="after")
    def _divides(self) -> PpoSection:
        if self.prompts_per_update % self.minibatches:
            raise ValueError("prompts_per_update must be a multiple of minibatches")
        if self.kl_controller == "adaptive" and self.kl_horizon <= 0.2 * self.prompts_per_update:
            raise ValueError("kl_horizon must be above a fifth of prompts_per_update, or kl_coef could turn negative")
        return self


class RejectionSamplingSection(Section):
    """Best-of-n under the proxy reward, then supervised fine-tuning on the winners."""

    candidates: int = Field(4, ge=2, description="n: completions sampled for each prompt.")
    epochs: int = Field(2, ge=1, description="Passes over the winners.")
    learning_rate: float = Field(1e-4, gt=0, description="AdamW, cosine to zero.")
    batch_size: int = Field(16, ge=1, description="Sequences an optimiser step.")


class EvaluationSection(Section):
    """Policy against reference on prompts nobody trained on, with the same seeds."""

    samples: int = Field(1, ge=1, description="Completions for each evaluation prompt and policy.")
    best_of: int = Field(4, ge=2, description="n of the best-of-n baseline.")
    toxicity: str = Field("toxicity", description="A text reward by name, the higher the more toxic.")
    examples: int = Field(12, ge=1, description="Completions shown side by side in the report.")


class Config(Section):
    """The whole accord.toml."""

    project: ProjectSection = ProjectSection()
    model: ModelSection = ModelSection()
    prompts: PromptsSection = PromptsSection()
    sample: SampleSection = SampleSection()
    feedback: FeedbackSection = FeedbackSection()
    selection: SelectionSection = SelectionSection()
    simulation: SimulationSection = SimulationSection()
    label: LabelSection = LabelSection()
    sft: SftSection = SftSection()
    reward_model: RewardModelSection = RewardModelSection()
    reward: RewardSection = RewardSection()
    policy: PolicySection = PolicySection()
    ppo: PpoSection = PpoSection()
    rejection_sampling: RejectionSamplingSection = RejectionSamplingSection()
    evaluation: EvaluationSection = EvaluationSection()
    rounds: RoundsSection = RoundsSection()
    alarm: AlarmSection = AlarmSection()
    tournament: TournamentSection = TournamentSection()
    guard: GuardSection = GuardSection()
    compute: ComputeSection = ComputeSection()

    @model_validator(mode="after")
    def _simulation_needs_a_utility(self) -> Config:
        if self.feedback.source == "simulated" and not self.simulation.utility:
            raise ValueError('feedback.source = "simulated" needs simulation.utility')
        if self.feedback.source != "votes" and self.prompts.train == "votes":
            raise ValueError(
                'prompts.train = "votes" needs feedback.source = "votes": other annotators need prompts first'
            )
        return self

    @model_validator(mode="after")
    def _shards_are_whole_floats(self) -> Config:
        if self.compute.shard == "full" and self.model.adapter == "full":
            if self.model.optimizer != "adamw":
                raise ValueError('compute.shard = "full" parts float32 moments: it needs model.optimizer = "adamw"')
            if self.compute.memory_gb:
                raise ValueError(
                    'compute.memory_gb does not measure weights in parts: with compute.shard = "full", set '
                    "ppo.micro_batch_size by hand"
                )
        return self

    @model_validator(mode="after")
    def _votes_on_looks_need_annotators(self) -> Config:
        for name in ("alarm", "tournament"):
            if getattr(self, name).votes and self.feedback.source == "votes":
                raise ValueError(
                    f"{name}.votes asks annotators while the loop runs: it needs feedback.source = "
                    '"people" or "simulated"'
                )
        if self.alarm.votes and not self.alarm.enabled:
            raise ValueError("alarm.votes asks annotators for the alarm: it needs alarm.enabled = true")
        return self

    @model_validator(mode="after")
    def _taste_needs_people(self) -> Config:
        if self.selection.strategy == "taste" and not self.reward.people and self.reward.serve == "common":
            raise ValueError('selection.strategy = "taste" needs reward.people = true')
        return self

    @model_validator(mode="after")
    def _selection_chooses_comparisons_of_samples(self) -> Config:
        asks_pairs = self.feedback.source == "simulated" or (
            self.feedback.source == "people" and self.label.ask == "comparison"
        )
        if self.selection.pairs and not asks_pairs:
            raise ValueError(
                "selection.pairs chooses among sampled pairs: it needs simulated annotators, or people with "
                'label.ask = "comparison"'
            )
        return self
