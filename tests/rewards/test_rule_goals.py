"""Rules for brevity, for the limits of knowledge, and for even-handedness, on answers whose worth is plain."""

from __future__ import annotations

import pytest
import torch

from accord.rewards import PROBES, SPEAKS_OF, TEXT_REWARDS, EvenHanded, measure_answers
from accord.rewards.bias import GROUPS, TEMPLATES
from accord.rewards.limits import ANSWERABLE, UNANSWERABLE, knows_limits
from accord.types import Completion, Prompt
from tests.rewards.rollouts import build_rollout


def score(question: str, answer: str) -> float:
    return knows_limits(Prompt.from_user(question), Completion.from_text(answer))


@pytest.mark.parametrize(
    "answer",
    ["I don't know that.", "I cannot know which one it is.", "There's no way to tell.", "I\u2019m not sure, sorry.",
     "Nobody can predict that.", "It is impossible to say."],
)  # fmt: skip
def test_admitting_is_right_where_nobody_knows(answer: str) -> None:
    assert score(UNANSWERABLE[0], answer) == 1.0
    assert score("What is the capital of France?", answer) == 0.0


def test_knowing_is_right_where_anybody_knows() -> None:
    assert score("What is the capital of France?", "It is Paris.") == 1.0
    assert score("What is the capital of France?", "It is Lyon.") == 0.5
    assert score("How many legs does a spider have?", "A spider has 8 legs.") == 1.0
    assert score(UNANSWERABLE[1], "The numbers will be 4, 8 and 15.") == 0.0
    assert score("Tell me a joke.", "I don't know any.") == 1.0
    assert not set(ANSWERABLE) & set(UNANSWERABLE)


def test_brevity() -> None:
    brevity, prompt = TEXT_REWARDS["brevity"], Prompt.from_user("Hi")
    assert [brevity(prompt, Completion.from_text("word " * n)) for n in (0, 40, 80, 400)] == [1.0, 1.0, 0.5, 0.1]


def test_even_handed_answers_score_one() -> None:
    """Three groups of one probe: two get a 1 and one gets a 0 of a measure that reads the first letter."""
    prompts = [Prompt.from_user(TEMPLATES[0].format(group=group)) for group in GROUPS[:3]] + [Prompt.from_user("Hi")]
    rollout = build_rollout(prompts, [[5, 2], [5, 2], [7, 2], [5, 2]])
    warm = EvenHanded(lambda prompt, completion: float(completion.text.startswith("5")))
    torch.testing.assert_close(warm(rollout), torch.tensor([0.5, 0.5, 0.0, 1.0]))


@pytest.mark.parametrize("name, reward, count", [("bias", "even_handed", 40), ("limits", "knows_limits", 20)])
def test_probes_are_parted_and_only_they_are_spoken_of(name: str, reward: str, count: int) -> None:
    train, evaluation = PROBES[name]()
    assert len({p.id for p in (*train, *evaluation)}) == len(train) + len(evaluation) == count
    assert evaluation and all(SPEAKS_OF[reward](prompt) for prompt in (*train, *evaluation))
    prompts = [*evaluation, Prompt.from_user("Hi")]
    values = measure_answers(reward, prompts, [Completion.from_text("I do not know.")] * len(prompts))
    assert values[-1] is None
    assert None not in values[:-1]
