"""Stages that fit reward models: the proxy that the policy is optimised against, and the held-out judge it never sees.

Implements the split of the preferences by prompt, the fit, normalisation on the reference's own samples, and the report
card. Leaves out the objective (`losses`), the training loop (`training.reward_model`) and the card's numbers
(`evaluation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from accord.errors import DataError
from accord.evaluation import compute_reward_card
from accord.feedback.splits import split_by_prompt
from accord.loop.budget import choose_pair_batch
from accord.loop.context import RunContext, adapter_folder
from accord.loop.preparing import load_preferences, load_prompts
from accord.models.ensemble import Ensemble, add_ensemble, add_weight_average
from accord.rewards import COMBINATIONS, WEIGHT_AVERAGE
from accord.rewards.combine import compute_disagreement
from accord.rewards.learned import AVERAGE
from accord.training import fits_in, normalize_reward_model, score_preferences, train_reward_model
from accord.training.reward_model import score_preferences_by_member
from accord.types import Preference, Rollout, derive_seed
from accord.workspace import Draft, FolderCheckpoint

if TYPE_CHECKING:
    from accord.loop.graph import Stage

NORMALIZE_PROMPTS = 48
"""Prompts whose reference samples set a reward model's mean 0 and variance 1."""


def fit_proxy(context: RunContext, stage: Stage, draft: Draft) -> None:
    """The reward model that the policy is optimised against."""
    _fit(context, stage, draft, part="proxy")


def fit_heldout(context: RunContext, stage: Stage, draft: Draft) -> None:
    """The reward model of other prompts' votes, which only judges."""
    _fit(context, stage, draft, part="heldout")


def split_preferences(
    context: RunContext, stage: Stage, part: str
) -> tuple[list[Preference], list[Preference], list[Preference]]:
    """(train, validation, test) of the `proxy` or `heldout` reward model, by `split_prompts`.

    Test pairs have everyone's votes; those that are fitted on only the part's own annotators'.
    """
    fitted, everyone = load_preferences(context, stage, part), load_preferences(context, stage)
    train, validation, test = split_prompts(context, stage, part)

    def choose(found: list[Preference], ids: set[str]) -> list[Preference]:
        return [p for p in found if p.prompt.id in ids]

    return choose(fitted, train), choose(fitted, validation), choose(everyone, test)


def split_prompts(context: RunContext, stage: Stage, part: str) -> tuple[set[str], set[str], set[str]]:
    """Ids of the (train, validation, test) prompts of the `proxy` or `heldout` reward model; none is in two of them.

    Test prompts are the evaluation prompts where people voted on any, else a share of the voted prompts. The rest is
    parted into the proxy's and the held-out model's prompts, the same in every round, and each keeps a share of its own
    for early stopping.
    """
    cfg = context.config
    preferences = load_preferences(context, stage)
    voted = dict.fromkeys(p.prompt.id for p in preferences)
    apart = {p.id for p in load_prompts(context, stage, "evaluation")} & set(voted)
    seed = cfg.project.seed
    known = list(voted | dict.fromkeys(p.id for p in load_prompts(context, stage, "train")))
    test = apart or split_by_prompt(known, cfg.reward_model.test_fraction, seed=seed, label="test")
    rest = [i for i in known if i not in test]
    heldout = split_by_prompt(rest, cfg.feedback.heldout_fraction, seed=seed, label="heldout")
    own = [i for i in rest if (i in heldout) == (part == "heldout")]
    validation = split_by_prompt(own, cfg.reward_model.validation_fraction, seed=seed, label=f"{part}-validation")
    return set(own) - validation, validation, set(test)


def _fit(context: RunContext, stage: Stage, draft: Draft, part: str) -> None:
    cfg, base = context.config, context.base
    limit = cfg.reward_model.max_tokens
    splits = split_preferences(context, stage, part)
    train, validation, test = ([p for p in pairs if fits_in(base, p, limit)] for pairs in splits)
    for name, pairs in (("train", train), ("validation", validation), ("test", test)):
        if not pairs:
            raise DataError(
                f"no {name} pairs for the {part} reward model",
                where="[reward_model]",
                mend="cast more votes, or raise reward_model.max_tokens",
            )
    context.forget(part)
    ensemble = add_ensemble(
        base,
        part,
        cfg.reward_model.members if part == "proxy" else 1,
        own_layers=cfg.reward_model.own_layers,
        lora=context.lora,
        seed=stage.seed,
    )
    checkpoint = FolderCheckpoint(context.workspace.scratch_folder(stage.kind, stage.key))
    micro_batch_size = context.tell_micro_batch(choose_pair_batch(ensemble, [*train, *validation], cfg))
    result = train_reward_model(
        base,
        ensemble,
        train,
        validation,
        cfg.reward_model.model_copy(update={"micro_batch_size": micro_batch_size}),
        seed=stage.seed,
        progress=context.progress,
        checkpoint=checkpoint,
    )
    context.progress.begin("scoring test pairs", len(test), "pairs")
    adapter = adapter_folder(draft.folder)
    std = _normalize(context, stage, ensemble, adapter)
    scores, disagreement = _score_test(ensemble, test, cfg.reward_model.combine)
    card = compute_reward_card(
        scores[:, 0],
        scores[:, 1],
        test,
        lengths_a=[len(base.tokens.encode_completion(p.a)) for p in test],
        lengths_b=[len(base.tokens.encode_completion(p.b)) for p in test],
        annotator_agreement=_read_agreement(context, stage),
        score_std=std,
        seed=derive_seed(stage.seed, "card"),
    )
    if len(ensemble) > 1:
        card |= {"members": len(ensemble), "combine": cfg.reward_model.combine, "disagreement": disagreement}
    for role in base.roles():
        context.forget(role)
    draft.write_jsonl("history.jsonl", result.history)
    draft.write_json("card.json", card)
    draft.summary.update(
        base_fingerprint=base.fingerprint,
        train_pairs=len(train),
        validation_pairs=len(validation),
        test_pairs=len(test),
        left_out_too_long=sum(map(len, splits)) - len(train) - len(validation) - len(test),
        best_epoch=result.best_epoch,
    )


def _normalize(context: RunContext, stage: Stage, ensemble: Ensemble, folder: Path) -> float:
    """Mean 0, variance 1 on the reference's own samples, for each member and for their weight average; then save them.

    Returns the standard deviation that was divided out of what is optimised, the members' mean.
    """
    sample = context.config.sample
    prompts = load_prompts(context, stage, "train")[:NORMALIZE_PROMPTS]
    rollout: Rollout = context.sampler().generate(
        None,
        prompts,
        seeds=[derive_seed(stage.seed, "normalize", p.id) for p in prompts],
        max_new_tokens=sample.max_new_tokens,
        temperature=sample.temperature,
    )
    base, role = ensemble.base, ensemble.roles[0]
    average = f"{role}-{AVERAGE}"
    averaged = len(ensemble) > 1 and context.config.reward_model.combine == WEIGHT_AVERAGE
    if averaged:
        add_weight_average(ensemble, average)
    _, std = normalize_reward_model(base, ensemble, [rollout])
    ensemble.save(folder)
    if averaged:
        _, std = normalize_reward_model(base, average, [rollout])
        base.save_role(average, folder / AVERAGE)
    return std


def _score_test(ensemble: Ensemble, test: Sequence[Preference], combine: str) -> tuple[Tensor, float]:
    """Combined scores of both sides of the test pairs, (N, 2), and the members' mean disagreement over all sides."""
    members = score_preferences_by_member(ensemble, test)
    if combine == WEIGHT_AVERAGE and len(ensemble) > 1:
        scores = torch.stack(score_preferences(ensemble.base, f"{ensemble.roles[0]}-{AVERAGE}", test), dim=1)
    else:
        flat = members.flatten(1)
        scores = (flat[0] if len(ensemble) == 1 else COMBINATIONS[combine](flat)).view(-1, 2)
    return scores, float(compute_disagreement(members.flatten(1)).mean())


def _read_agreement(context: RunContext, stage: Stage) -> float | None:
    pairwise = context.parent(stage, "preferences").read_json("consensus.json")["agreement"]["pairwise"]
    return float(pairwise["estimate"]) if pairwise else None
