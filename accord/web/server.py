"""Running the app: the port, the link that is printed, and the file that tells `accord run` where people label.

Implements `accord label`'s work. Leaves out the app itself (`app`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import uvicorn

from accord.config import Config
from accord.errors import WorkspaceError
from accord.web.app import create_app
from accord.web.people import make_invitation
from accord.web.site import SERVER, Site, open_site
from accord.workspace import LINK_FILE, Workspace, replace_file

GRACE_SECONDS = 5


def serve(workspace: Workspace, config: Config, say: Callable[[str], None]) -> None:
    """Serve the project until Ctrl-C or SIGTERM; `say` hears the link, and how the first owner gets in.

    Raises:
        WorkspaceError: the address is taken, or not this machine's.
    """
    site = open_site(workspace, config)
    listener = bind(config.label.host, config.label.port)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(site),
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )
    say(f"label at {site.link}")
    for line in tell_owner(site):
        say(line)
    # uvicorn ends in peace at the first signal, then raises it again: here that is the end of the command, not a crash
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    with listener, tell_link(workspace, site.link):
        server.run(sockets=[listener])


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def bind(host: str, port: int) -> socket.socket:
    """The listening socket, bound before anything is printed, so that a printed link works.

    Raises:
        WorkspaceError: the address is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        mend = "choose another with --port, or stop what uses it"
        raise WorkspaceError(f"cannot listen: {error.strerror}", where=f"{host}:{port}", mend=mend) from error
    return listener


def tell_owner(site: Site) -> Iterator[str]:
    """How the owner comes in where accounts are asked for and nobody is owner yet: an invitation, shown once."""
    if not site.accounts:
        yield "open to this machine alone, without an account"
    elif not any(person.role == "owner" and site.people.password_hash(person.name) for person in site.people.list()):
        yield f"make yourself the owner: {site.link}/invitations/{make_invitation(site, 'owner', SERVER)}"


@contextmanager
def tell_link(workspace: Workspace, link: str) -> Iterator[None]:
    """While the block runs, the project's folder says where people label."""
    path = workspace.root / LINK_FILE
    replace_file(path, json.dumps({"link": link, "pid": os.getpid()}) + "\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
