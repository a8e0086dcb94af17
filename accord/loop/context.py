"""What every stage of a run shares: settings, workspace, the one base model, the vote store, progress.

Implements loading each of them once, and only when a stage asks. Leaves out the stages themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from accord import distributed
from accord.config import Config
from accord.feedback.store import VoteStore
from accord.loop.budget import choose_sampling_batch
from accord.models import Base, LoraSettings, load_base
from accord.models.ensemble import name_members
from accord.models.recompute import recompute_layers
from accord.rewards import EnsembleReward, LearnedReward, load_learned_reward
from accord.rewards.learned import AVERAGE
from accord.rollout import Sampler
from accord.rollout.sharded import SharedSampler
from accord.training.memory import return_freed_memory
from accord.types import Generator, Progress
from accord.workspace import Artifact, Workspace, read_lines, replace_lines

if TYPE_CHECKING:
    from accord.loop.graph import Stage

T = TypeVar("T")


class RunContext:
    """One run's shared parts. `base` and `store` are made when first asked for. `wait`: for people's votes."""

    def __init__(self, workspace: Workspace, config: Config, progress: Progress, *, wait: bool = True) -> None:
        self.workspace = workspace
        self.config = config
        self.progress = progress
        self.wait = wait
        self.sampled_tokens = 0
        self._base_name = resolve_model(workspace, config)
        self._base: Base | None = None

    @property
    def base(self) -> Base:
        """The frozen base that every role stands on: the model of the settings, or its fine-tuned self after SFT."""
        if self._base is None:
            model = self.config.model
            split = 0 if model.adapter == "full" else model.split
            self._base = load_base(self._base_name, dtype=model.dtype, split=split, device=self.config.compute.device)
            self._base.shard = self.config.compute.shard == "full"
            self._base.optimizer = model.optimizer
            self._spare_memory()
        return self._base

    def stand_on(self, stage: Stage) -> None:
        """Make `base` the reference that the stage names: its roles were, or will be, trained on top of that one."""
        address = stage.parents.get("reference", "")
        name = resolve_model(self.workspace, self.config)
        if address.startswith("sft/"):
            name = str(self.parent(stage, "reference").folder / "model")
        if name != self._base_name:
            self._base_name, self._base = name, None

    @cached_property
    def store(self) -> VoteStore:
        """The project's votes."""
        return VoteStore(self.workspace.locate_votes(self.config.project.database))

    @property
    def lora(self) -> LoraSettings:
        """LoRA settings of every adapter."""
        return LoraSettings(rank=self.config.model.lora_rank, alpha=self.config.model.lora_alpha)

    @property
    def policy_lora(self) -> LoraSettings | None:
        """LoRA settings of the policy; None where it trains all weights."""
        return None if self.config.model.adapter == "full" else self.lora

    def add_policy(self, role: str, seed: int) -> None:
        """A new policy that equals the base, of the kind that `model.adapter` asks for."""
        every_layer = self.config.model.adapter == "lora_all"
        self.base.add_policy(role, lora=self.policy_lora, seed=seed, every_layer=every_layer)
        self._spare_memory()

    def sampler(self, on_tokens: Callable[[int], None] | None = None, *, keep_trunk: bool = False) -> Generator:
        """A sampler on the base; `on_tokens` hears how many tokens were just drawn, where progress counts them.

        keep_trunk: for rollouts that roles of the base train on or score (see `Sampler`). All tokens are counted in
        `sampled_tokens`, for the ledger.
        """

        def count(tokens: int) -> None:
            everywhere = tokens * distributed.count()  # the others sample about as many
            self.sampled_tokens += everywhere
            if on_tokens:
                on_tokens(everywhere)

        own = Sampler(self.base, choose_sampling_batch(self.base, self.config), count, keep_trunk=keep_trunk)
        if distributed.count() == 1:
            return own
        return SharedSampler(own, pad_id=self.base.tokens.pad_id, device=self.base.device)

    def parent(self, stage: Stage, name: str) -> Artifact:
        """The finished artifact that `stage` calls `name`."""
        kind, _, key = stage.parents[name].partition("/")
        artifact = self.workspace.find(kind, key)
        if artifact is None:
            raise LookupError(f"stage {stage.kind} needs {kind}/{key}, which is not finished")
        return artifact

    def load_reward(self, role: str, artifact: Artifact) -> LearnedReward | EnsembleReward:
        """The reward model of an artifact, one scorer or an ensemble, as a score source under the name `role`."""
        self.forget(role)
        return load_learned_reward(self.base, role, adapter_folder(artifact.folder), self.config.reward_model.combine)

    def load_policy(self, role: str, folder: Path) -> str:
        """The policy of an artifact's folder, or of a look's in it, under the name `role`."""
        self.forget(role)
        self.base.load_policy(role, adapter_folder(folder))
        self._spare_memory()
        return role

    def _spare_memory(self) -> None:
        """Let layers compute again what the backward pass needs, and freed memory go back, where settings say so."""
        if self.config.compute.checkpoint_gradients and self._base is not None:
            recompute_layers(self._base)
        if self.config.compute.memory_gb:
            return_freed_memory()

    def tell_micro_batch(self, size: int) -> int:
        """`size` itself; where a memory budget chose it, a row of metrics says so."""
        if self.config.compute.memory_gb:
            self.progress.log({"micro_batch_size": size})
        return size

    def load_standing(self, role: str, artifact: Artifact) -> str | None:
        """As `load_policy`, for a gate too: the policy that it promoted. None where that is the reference itself."""
        found = self.find_policy(artifact)
        return None if found is None else self.load_policy(role, found.folder)

    def find_policy(self, artifact: Artifact) -> Artifact | None:
        """The artifact whose weights stand for `artifact`; None: the reference's, which has none of its own."""
        if artifact.kind == "gate":
            kind, _, key = str(artifact.summary["promoted_policy"]).partition("/")
            return self.workspace.find(kind, key) if key else None
        return artifact if adapter_folder(artifact.folder).is_dir() else None

    def forget(self, role: str) -> None:
        """Free the role if it exists, and with it the other members of an ensemble that it stands for, and their
        weight average; no other role, whatever its name begins with."""
        own = {f"{role}-{AVERAGE}", *name_members(role, len(self.base.roles()))}
        for name in own.intersection(self.base.roles()):
            self.base.remove(name)

    def in_chunks(
        self,
        stage: Stage,
        items: Sequence[T],
        size: int,
        make: Callable[[Sequence[T]], list[Any]],
        *,
        label: str = "chunk",
    ) -> list[Any]:
        """`make` of each chunk of `items`, joined; chunks that a killed run finished are read, not made again.

        label: apart for each such work of one stage.
        """
        scratch = self.workspace.scratch_folder(stage.kind, stage.key)
        rows: list[Any] = []
        for number, chunk in enumerate(_chunks(items, size)):
            path = scratch / f"{label}-{number:05d}.jsonl"
            if not distributed.agree(path.exists()):
                made = make(chunk)
                if distributed.is_first():
                    replace_lines(path, made)
            rows.extend(distributed.agree(read_lines(path)))
        return rows


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def resolve_model(workspace: Workspace, config: Config) -> str:
    """The model's name for loading: a folder inside the project stands for itself, wherever Accord is run from."""
    inside = workspace.root / config.model.name
    return str(inside) if inside.is_dir() else config.model.name


def adapter_folder(folder: Path) -> Path:
    """Where an artifact keeps a role's weights."""
    return folder / "adapter"


def look_folder(folder: Path, update: int) -> Path:
    """Where an artifact keeps what belongs to its look after so many updates."""
    return folder / "looks" / f"{update:05d}"
