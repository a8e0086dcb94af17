"""What every number of report.json means, one sentence a key; the page and docs/report.md print it.

A key means the same wherever it stands, and a test fails on one that is not here. Leaves out keys that are data
themselves (a stage's name, a parent's role): `OPEN_KEYS` names the mappings that hold such keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

OPEN_KEYS = frozenset({"timings_seconds", "parents", "measured"})

GLOSSARY: dict[str, str] = {
    # The report as a whole
    "project": "Whose report this is: name, round, seed, model.",
    "name": "Of the project, of an annotator, or of a guarded measure.",
    "round": "Which time round the loop.",
    "seed": "Where every random choice of the project, or of one completion, descends from.",
    "model": "The base model that every role stands on.",
    "feedback": "The votes that shaped this round, and who cast them.",
    "reward_model": "Report card of the proxy: the reward model that the policy was optimised against.",
    "heldout_reward_model": (
        "Report card of the judge: a reward model fitted on other prompts' votes, which training never sees."
    ),
    "people": "Where annotators differ from the common reward model, and whom the policy serves; null where not asked.",
    "policy": "The model being trained: how its training went, or what it answered.",
    "evaluation": "Policy, reference and best-of-n on prompts nobody trained on, sampled with the same seeds.",
    "gate": "Whether the new policy took the place of the one before, and why.",
    "alarm": "Whether a test against the judge, or a mark of degenerate text, stopped training.",
    "rounds": "What each round so far cost and gained.",
    "lineage": "Every artifact that this result descends from, back to the votes.",
    "timings_seconds": "Wall-clock seconds of each stage.",
    "peak_rss_bytes": "The most memory that any stage held at once (resident set).",
    # An estimate
    "value": "The estimate itself.",
    "low": "Lower end: of the 95 % interval of an estimate, or of a bin (empty: open).",
    "high": "Upper end: of the 95 % interval of an estimate, or of a bin (empty: open).",
    "n": (
        "How many independent observations an estimate rests on (prompts, where a prompt has several), or pairs "
        "in a bin."
    ),
    "interval": (
        "How the interval was computed: bootstrap (percentile, 2000 resamples), t (Student's, below 20 values), "
        "wilson (for shares), none (a single value)."
    ),
    # Feedback
    "votes": "Judgements cast: in all, or by one annotator. A change of mind is a new vote.",
    "simulated": "True where votes come from simulated annotators, not from people.",
    "consensus": "How several votes on a pair became one probability: fraction, dawid_skene or bradley_terry.",
    "annotators": "Who voted; under agreement, how many.",
    "skill": (
        "How well an annotator's votes follow the consensus; the higher the better, 0 is a coin toss (fraction: "
        "not given)."
    ),
    "side_bias": (
        "How much an annotator leans to the first answer whatever it says; above 0: the first, below 0: the second."
    ),
    "agreement": "How far annotators agree with each other.",
    "pairwise": "Share of pairs of votes on the same question that agree.",
    "alpha": "Krippendorff's alpha: 1 is full agreement, 0 what chance would give, below 0 worse than chance.",
    "estimate": "Of agreement: the value between low and high.",
    "level": (
        "How alpha measures distance between votes: nominal (same or not) for comparisons, interval for ratings."
    ),
    "items": "Questions with votes of at least two annotators.",
    "win_rate_against_earlier": (
        "How often voters preferred the answer of the policy that stood when the round began to an earlier policy's."
    ),
    "anchors": "The same pairs voted on every round: drift of the annotators apart from progress of the policy.",
    "agreement_across": "On anchor pairs: chance that a vote of this round agrees with one of round 1.",
    "agreement_within": "On anchor pairs: chance that two votes of round 1 agree.",
    "drift": "agreement_across less agreement_within, pair by pair; 0 without drift.",
    "drifted": "True where the whole interval of drift lies below 0: annotators judge otherwise than in round 1.",
    # Where people differ
    "serve": "Whose reward was optimised and judged by: common, average, worst_off, or an annotator.",
    "tastes": "Directions in which annotators differ, as many as votes held back bear out; 0: one reward fits all.",
    "test_votes": "An annotator's votes on prompts that nothing was fitted on; ties left out.",
    "common_accuracy": "Share of test votes that the common reward model predicts.",
    "personal_accuracy": "Share of test votes that are predicted with what sets the annotator apart.",
    "apart": "True where an annotator differs from the common model beyond chance (95 %).",
    "trait": "What goes most with an annotator's difference, a text reward by name; null where nobody differs.",
    "correlation": "Of that trait with the difference, over answers; above 0: liked more than by others.",
    # Reward models
    "members": "Reward models in the ensemble.",
    "combine": "How the members' scores become one: mean, worst, variance_penalised or weight_average.",
    "disagreement": "Standard deviation over the ensemble's members of one answer's score, mean over answers.",
    "train_pairs": "Pairs that the reward model was fitted on.",
    "validation_pairs": "Pairs that decided when fitting stopped; none of their prompts was fitted on.",
    "test_pairs": "Pairs that the report card was made with; none of their prompts was fitted on.",
    "best_epoch": "The pass over the pairs after which the reward model was kept.",
    "pairs": "Pairs of answers: those with votes, or those that a report card counts.",
    "decided_pairs": "Pairs where the votes prefer one side; accuracy is over these.",
    "prompts": "Different prompts: of the evaluation, or behind a report card.",
    "annotator_agreement": "How often two annotators agree on a pair: the ceiling to read accuracy against.",
    "accuracy": "How often the reward model prefers the answer that people prefer; equal scores are half right.",
    "length_accuracy": (
        "Accuracy of always calling the longer answer better: what a reward model must beat. It may not look at "
        "the labels to choose longer or shorter; below one half means that people preferred short answers."
    ),
    "accuracy_minus_length": "By how much the reward model beats the longer-is-better rule, on the same pairs.",
    "margin_length_correlation": (
        "Correlation of the score difference with the length difference: near 1, the score is little more than length."
    ),
    "accuracy_by_margin": (
        "Accuracy where the two scores differ by so much (in logits): it should rise with the margin."
    ),
    "accuracy_by_length": (
        "Accuracy where the preferred answer is longer (above 0) or shorter (below 0) by so many tokens: a "
        "model that leans on length fails on the left."
    ),
    "log_loss_nats": (
        "Mean log loss against the votes' probabilities; a coin toss has 0.693, the least possible is "
        "label_entropy_nats."
    ),
    "label_entropy_nats": (
        "Entropy of the votes' probabilities themselves: the least log loss that any model can have."
    ),
    "brier": (
        "Mean squared difference of predicted and voted probability; 0 is perfect, a coin toss has at most 0.25."
    ),
    "calibration_error": (
        "Expected calibration error: the mean gap of confidence and frequency over ten bins of confidence."
    ),
    "reliability": "The bins of the calibration error.",
    "confidence": "How probable the reward model finds the answer it favours, mean of a bin.",
    "frequency": "How probable the votes find that same answer, mean of a bin.",
    "epoch": "Pass over the pairs.",
    "loss": "Training loss of the reward model.",
    "margin_mean": "By how much the better answer of a pair wins, in score units.",
    "validation_loss": "The loss on the validation pairs; the least of it is kept.",
    "validation_accuracy": "Accuracy on the validation pairs.",
    "validation_margin_mean": "margin_mean on the validation pairs.",
    # How the policy was trained
    "method": "The trainer: ppo or rejection_sampling.",
    "max_kl_nats": "KL budget a sequence: a policy beyond it is never kept.",
    "best_update": (
        "The update that was kept: by annotators' votes where there was a tournament, else the best held-out score "
        "within the KL budget."
    ),
    "tournament": "How annotators chose which checkpoint was kept; null where the held-out judge chose.",
    "judged_update": "The update that the held-out judge would have kept.",
    "standings": "Each checkpoint that took part in the tournament, with the share of its duels that it won.",
    "share": "Of its duels with other checkpoints; each is one vote on two answers to one prompt, undecided is half.",
    "stopped": "Why training ended early; empty where it went to its end.",
    "history": "One row of metrics an update (policy) or an epoch (reward model).",
    "update": "Rollouts trained on so far; 0 is the start.",
    "score": (
        "Mean score that the proxy gives to sampled completions of training prompts; 0 is the reference's mean, "
        "1 its deviation."
    ),
    "score_std": "Standard deviation of those scores.",
    "winner_score": "Mean proxy score of the candidates that rejection sampling chose.",
    "heldout_score": (
        "Mean score that the held-out reward model gives on validation prompts; what chooses the best update."
    ),
    "heldout_kl_nats": "KL(policy || reference) a sequence on the validation prompts.",
    "heldout_length_tokens": "Mean length on the validation prompts.",
    "reward": "Mean reward a sequence: the score less penalties, after KL shaping.",
    "kl_nats": "KL(policy || reference) a sequence, estimated from the policy's own samples: how far it has moved.",
    "kl_coef": "beta: what a nat of KL costs in reward.",
    "entropy": (
        "Entropy of the next token, in nats: how undecided the policy is; a collapse means one answer for everything."
    ),
    "clip_fraction": "Share of tokens where the clipped ratio took hold; far above 0.2 the steps are too large.",
    "approx_kl_nats": "How far the policy moved within an update, per token (k3 estimator).",
    "ratio_mean": "Mean of new over old probability of the sampled tokens; near 1.",
    "ratio_max": "The largest ratio of new over old probability; far above 1 means unstable steps.",
    "policy_loss": "The clipped policy loss; it hovers about 0, since advantages are whitened.",
    "value_loss": "Half the mean squared error of the critic's returns, clipped; it should fall.",
    "value_clip_fraction": "Share of tokens where the clipped value took hold.",
    "explained_variance": (
        "How much of the returns' variance the critic predicts; 1 is all, 0 none, below 0 worse than a constant."
    ),
    "grad_norm": "Norm of the gradient before clipping.",
    "learning_rate": "Of the policy, at this update.",
    "nll_nats": "Mean negative log-likelihood of a token in supervised fine-tuning.",
    "sampler_gap": (
        "Mean exp |difference of the sampler's and the trainer's log-probabilities|: 1 is perfect, above 1.05 "
        "something is wrong."
    ),
    "anchor": "What KL is measured from: base, previous (the policy promoted last) or ema (their moving average).",
    "validation_proxy": "Mean proxy score on the validation prompts: what training claims, beside heldout_score.",
    "validation_gold": "Mean hidden utility on the validation prompts; known only in a simulation.",
    "validation_disagreement": "How far the ensemble's members part on the validation prompts, mean.",
    "rollout_heldout": "Mean held-out score of the update's own rollout: drawn, never used.",
    "rollout_gold": "Mean hidden utility of the update's own rollout: drawn, never used.",
    "rollout_disagreement": "How far the ensemble's members part on the update's own rollout, mean.",
    # Gate
    "promoted": "Whether the policy takes the place of the one before; if not, the next round starts from that one.",
    "against": "The policy that the new one had to beat: an artifact, or the reference.",
    "result": (
        "Of the gain: better, worse, unclear or unmeasured. Of a guarded measure: kept (its whole interval lies within "
        "the margin), broken (beyond it), unclear, unmeasured."
    ),
    "gain": "New policy less the one before, by the held-out judge, on the same prompts and seeds.",
    "gold_gain": "New policy less the one before, by the hidden utility; it decides nothing.",
    "guards": "Measures that must not get worse by more than their margin.",
    "margin": "The largest worsening that is borne, in the measure's own unit.",
    "change": "New policy less the one before.",
    "power": "How large a gain this evaluation could have seen.",
    "smallest_gain": "A true gain of this size would be seen with that probability; a smaller one is often missed.",
    "probability": "Of seeing a gain of that size.",
    "prompts_needed": "So many prompts would show the gain that was found with that probability; empty: none was.",
    # Alarm
    "alarms": "What rang, each with its reason; in the table of rounds the kinds alone.",
    "reason": "Why an alarm rang, in plain words.",
    "challenges": "What annotators said of each look beside the best one before it, where they were asked.",
    "rival": "The update of that best look before.",
    "better": "Whether it took that one's place: preferred by more than a standard error, or at all, as by the judge.",
    "measured": "The numbers that an alarm rests on.",
    "suspects": "Tokens and words that bought the reward: rare at the start, frequent now, and paid for by the proxy.",
    "share_before": "Share of answers that have the token at the start.",
    "share_after": "Share of answers that have the token when the alarm rang.",
    "log_odds_z": "Log-odds of having the token, now against the start, in standard errors.",
    "proxy_price": "Proxy score of answers with the token less that of answers without, within the same look.",
    "judge_price": "Held-out score of answers with the token less that of answers without, within the same look.",
    "explained": "Share of the proxy's gain that the token's rise and its price account for.",
    "disputed": "Answers on which proxy and judge part most; the next round asks people about them first.",
    "before": "The start's answer to the same prompt.",
    "proxy_gain": "Proxy score of the answer less the start's, in deviations of the start's scores.",
    "heldout_gain": "Held-out score of the answer less the start's, in deviations of the start's scores.",
    # Rounds
    "seconds": "Wall-clock seconds of a round's stages.",
    "sampled_tokens": "Tokens sampled in a round.",
    # Evaluation
    "completions": "Completions of each side that were compared.",
    "samples": "Completions for each evaluation prompt.",
    "temperature": "Of sampling.",
    "max_new_tokens": "A completion is cut after so many tokens.",
    "best_of": "n: candidates of the reference that best-of-n chooses from, by the proxy score.",
    "reference": "The frozen model that training started from: its numbers, or its answer.",
    "best_of_n": "The best of n answers of the reference by proxy score, the baseline that training must beat.",
    "proxy": "Score of the reward model that was optimised; it rises even where people gain nothing.",
    "heldout": "Score of the held-out reward model, which training never saw.",
    "gold": "The hidden utility that simulated annotators judge by: the truth, known only in a simulation.",
    "toxicity": "Mean toxicity; the higher the more toxic.",
    "toxicity_std": "Standard deviation of toxicity over completions.",
    "length_tokens": "Length of a completion in tokens, its end included.",
    "finished_share": "Share of completions that ended by themselves before the limit.",
    "finished": "Whether a completion ended by itself before the limit.",
    "entropy_nats": "Entropy of the next token along the model's own completions, in nats, mean over tokens.",
    "diversity": "Does the model still say different things?",
    "distinct_1": "Different words over all words.",
    "distinct_2": (
        "Different runs of 2 words over all of them. It falls with more text, so compare equal amounts only."
    ),
    "distinct_3": "Different runs of 3 words over all of them.",
    "common_phrase": "The run of 5 words that occurs in most completions; empty where no two share one.",
    "common_phrase_share": "Share of completions that contain it: near 1 means one phrase everywhere.",
    "repetition": "Share of runs of 4 words that repeat within the same completion, mean over completions.",
    "unique_share": "Different completions over all completions.",
    "policy_minus_reference": "What was gained: mean difference on the same prompts and seeds.",
    "policy_minus_best_of_n": "Mean difference from best-of-n on the same prompts.",
    "win_rate_against_reference": "How often the policy's answer scores higher than the reference's; a tie is half.",
    "win_rate_against_best_of_n": "How often the policy's answer scores higher than best-of-n's; a tie is half.",
    "best_of_n_kl_bound_nats": "log n - (n - 1) / n: the most KL that best-of-n can cost.",
    "examples": "Completions side by side: prompts drawn at random, not the best.",
    "worst_examples": "Where the policy lost most to the reference, by the held-out score.",
    # One example
    "prompt": "What was asked.",
    "prompt_id": "Content hash of the prompt.",
    "sample": "Which sample of the prompt, from 0.",
    "completion": "What was answered.",
    "messages": "The turns of a chat.",
    "role": "Who speaks in a turn.",
    "content": "What is said in a turn.",
    "text": "A prompt that is not a chat, or a suspected token.",
    "origin": "Who wrote a completion, where known.",
    # Lineage
    "kind": "What an artifact is, what rang, or whether a suspect is a token or a word.",
    "key": "Hash of all that shaped an artifact: stage, settings, parents, seed.",
    "parents": "The artifacts that an artifact was made of.",
}


def walk_keys(tree: Any) -> Iterator[str]:
    """Every key of a report, depth first, without those that are data (`OPEN_KEYS`)."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield key
            if key not in OPEN_KEYS:
                yield from walk_keys(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from walk_keys(value)
