"""Hypothesis strategies: any vote that the store takes, and small fixed ones for examples."""

from typing import Any

from hypothesis import strategies as st

from accord.feedback.records import build_vote
from accord.types import Completion, Message, Prompt, Vote

# No halves of surrogate pairs (UTF-8 has no bytes for them); everything else, NUL and markers included.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["\n\nHuman: hi", "a\n\nAssistant:", "\x00", "\u2028", "é\r\n", '"\\', "\ufeff", "👩‍👩‍👧", " ", "Human:"]
)
answers = texts.filter(lambda text: text.strip())
names = st.sampled_from(["ann", "bob", "zoë"])
messages = st.builds(Message, st.sampled_from(["system", "user", "assistant", "tool"]), texts)
prompts = st.builds(lambda m: Prompt(messages=tuple(m)), st.lists(messages, min_size=1, max_size=4)) | st.builds(
    lambda text: Prompt(text=text), texts
)
completions = st.builds(
    lambda turns, last, finished, origin: Completion((*turns, Message("assistant", last)), finished, origin),
    st.lists(messages, max_size=2),
    answers,
    st.booleans(),
    texts,
)
times = st.sampled_from(["", "2026-01-31T12:00:00Z", "2026-01-31T12:00:00.5Z"])


@st.composite
def votes(draw: st.DrawFn) -> Vote:
    kind = draw(st.sampled_from(["comparison", "ranking", "rating", "flag"]))
    size = {"comparison": 2, "ranking": draw(st.integers(2, 4))}.get(kind, 1)
    shown = draw(st.lists(completions, min_size=size, max_size=size, unique_by=lambda c: c.messages))
    judgement: dict[str, Any] = {}
    if kind == "comparison":
        judgement["choice"] = draw(st.sampled_from(["a", "b", "tie", "both_bad"]))
        judgement["strength"] = draw(st.none() | st.integers(1, 7))
    elif kind == "ranking":
        judgement["ranks"] = tuple(draw(st.lists(st.integers(1, 9), min_size=size, max_size=size)))
    elif kind == "rating":
        judgement["rating"] = draw(st.floats(0, 1))
    else:
        judgement["flag"] = draw(texts)
    return build_vote(
        kind=kind,
        prompt=draw(prompts),
        completions=tuple(shown),
        annotator=draw(names),
        created_at=draw(times),
        guideline_version=draw(st.none() | texts),
        simulated=draw(st.booleans()),
        source=draw(texts),
        **judgement,
    )


def compare(question: str = "why?", a: str = "yes", b: str = "no", choice: str = "a", **fields: Any) -> Vote:
    """A comparison of two short answers."""
    return build_vote(
        kind="comparison",
        prompt=Prompt.from_user(question),
        completions=(Completion.from_text(a), Completion.from_text(b)),
        choice=choice,
        **{"annotator": "ann", **fields},
    )
