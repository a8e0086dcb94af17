"""A small client of the HTTP API, so that a product's thumbs up and down come in as votes.

Implements sending with retries: a vote has its id before it is sent, so a call that broke off is repeated without
counting twice. Leaves out reading what the votes are worth.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from accord.errors import AccordError, DataError, RefusedError

RETRIES = 5
FIRST_WAIT_SECONDS = 0.5
TIMEOUT_SECONDS = 30.0


class VoteClient:
    """Sends votes to the app at `link` under `token` (the owner makes one on the page of people).

    client = VoteClient("http://localhost:8400", token)
    client.rate("What is tea?", "A drink made from leaves.", 1.0, user="u-17")
    """

    def __init__(self, link: str, token: str, *, name: str = "", retries: int = RETRIES) -> None:
        """`name`: whose token it is; votes of users come in as `name/user`."""
        self.link, self.token, self.name, self.retries = link.rstrip("/"), token, name, retries

    def rate(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        answer: str,
        rating: float,
        *,
        user: str = "",
        vote_id: str = "",
    ) -> bool:
        """One rating in [0, 1]: 1 for a thumb up, 0 for a thumb down. True where it was new."""
        row = {"kind": "rating", "prompt": _chat(prompt), "completions": [answer], "rating": rating}
        return self.send([self._own(row, user, vote_id)]) == 1

    def compare(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        a: str,
        b: str,
        choice: str,
        *,
        strength: int | None = None,
        user: str = "",
        vote_id: str = "",
    ) -> bool:
        """One comparison: `choice` is a, b, tie or both_bad. True where it was new."""
        row = {"kind": "comparison", "prompt": _chat(prompt), "completions": [a, b], "choice": choice}
        if strength is not None:
            row["strength"] = strength
        return self.send([self._own(row, user, vote_id)]) == 1

    def send(self, votes: Sequence[Mapping[str, Any]]) -> int:
        """Votes as docs/formats.md has them, all or none; returns how many were new.

        Raises:
            DataError: the server cannot use one of them; it says which, and why.
            RefusedError: the token is unknown, or may not vote under that name.
            AccordError: the server could not be reached in all attempts; nothing is known to be stored.
        """
        rows = [{"id": str(uuid4()), **vote} for vote in votes]
        return int(self._call("/api/votes", {"votes": rows})["added"])

    def status(self) -> dict[str, int]:
        """How far the labelling is: items, votes_wanted, votes_missing, leased, votes."""
        return dict(self._call("/api/status", None))

    def _own(self, row: dict[str, Any], user: str, vote_id: str) -> dict[str, Any]:
        if user:
            row["annotator"] = f"{self.name}/{user}" if self.name else user
        return row | ({"id": vote_id} if vote_id else {})

    def _call(self, path: str, body: Any) -> Any:
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.link + path, data=data, headers=headers)
        problem = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                problem = _read_problem(error)
                if error.code in (401, 403):
                    raise RefusedError(problem, where=self.link, mend="ask the owner for a token") from error
                if error.code < 500 and error.code != 429:
                    raise DataError(problem, where=self.link, mend="see docs/http-api.md") from error
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                problem = f"the server cannot be reached: {error}"
        raise AccordError(problem, where=self.link, mend="start it with: accord label")


def _chat(prompt: str | Sequence[Mapping[str, str]]) -> Any:
    """A text is one turn of a person; a list of messages stays whole."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]


def _read_problem(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the server answers {error.code}"
