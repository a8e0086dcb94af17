"""The model as a partner in a conversation: several answers of the newest policy to one prompt.

Implements finding the newest finished policy and sampling from it, one request at a time. The base is loaded with the
first prompt and stays. Leaves out who asks, and what people say of the answers (`feedback`).
"""

from __future__ import annotations

import secrets
from threading import Lock

from accord.config import Config
from accord.errors import DataError
from accord.loop.context import RunContext
from accord.loop.graph import Stage, build_stages
from accord.types import Completion, Prompt, Silence
from accord.workspace import Workspace

ATTEMPTS = 4
"""Draws until two answers differ; a policy that has only one thing to say cannot be compared with itself."""


class Chat:
    """The newest policy of a project (the reference, before there is one) behind one lock."""

    def __init__(self, workspace: Workspace, config: Config) -> None:
        self.workspace, self.config = workspace, config
        self._context: RunContext | None = None
        self._stage: Stage | None = None
        self._role: str | None = None
        self._lock = Lock()

    def answer(self, prompt: Prompt) -> tuple[Completion, Completion]:
        """Two different answers to `prompt`, sampled as the settings say, with their origin.

        Raises:
            DataError: the prompt is too long, or the model says the same each time.
        """
        with self._lock:
            context, role, origin = self._prepare()
            section = self.config.sample
            if len(context.base.tokens.encode_prompt(prompt)) > self.config.prompts.max_tokens:
                raise DataError("the conversation is too long", mend="begin a new one, or raise prompts.max_tokens")
            found: dict[str, Completion] = {}
            for _ in range(ATTEMPTS):
                rollout = context.sampler().generate(
                    role,
                    [prompt, prompt],
                    seeds=[secrets.randbits(62), secrets.randbits(62)],
                    max_new_tokens=section.max_new_tokens,
                    temperature=section.temperature,
                )
                for answer in rollout.completions:
                    if answer.text.strip():
                        found.setdefault(answer.text, Completion(answer.messages, answer.finished, origin))
                if len(found) > 1:
                    first, second, *_ = found.values()
                    return first, second
        raise DataError("the model says the same each time", mend="ask something more open")

    def _prepare(self) -> tuple[RunContext, str | None, str]:
        """The loaded base, the role that answers, and its artifact's address."""
        if self._context is None:
            self._context = RunContext(self.workspace, self.config, Silence())
        stage = find_policy(self.workspace, self.config)
        if stage is None:
            return self._context, None, "reference"
        if self._stage is None or stage.address != self._stage.address:
            self._context.stand_on(stage)
            artifact = self.workspace.find(stage.kind, stage.key)
            if artifact is not None:
                self._role = self._context.load_standing("chat", artifact)
            self._stage = stage
        return self._context, self._role, stage.address


def find_policy(workspace: Workspace, config: Config) -> Stage | None:
    """The stage whose policy stands: the last that made or chose one and is finished; None before there is one."""
    try:
        stages = build_stages(workspace, config)
    except DataError:
        return None  # no votes yet, where the loop rests on votes
    made = [stage for stage in stages if stage.kind in ("policy", "tournament", "gate")]
    done = [stage for stage in made if workspace.find(stage.kind, stage.key)]
    return done[-1] if done else None
