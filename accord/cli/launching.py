"""Starting one command as several processes of this machine, as `torchrun` would.

Implements `[compute] processes` with torch's elastic launcher: it watches the processes, ends them all where one is
lost, and starts them again as often as `[compute] restarts` says. Several machines are `torchrun`'s own business
(docs/distributed.md); what the processes do together is in `accord/distributed.py`.
"""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Sequence
from typing import NoReturn

from accord.distributed import WorkerLostError, count_cores


def launch(arguments: Sequence[str], *, processes: int, restarts: int) -> None:
    """Run `accord ARGUMENTS` in `processes` processes and wait for their end.

    Ends this process with the exit code of the one that failed first; that one has said why.

    Raises:
        WorkerLostError: one was killed by a signal.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_cores() // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "accord", *arguments)
    except ChildFailedError as error:
        _end(*error.get_first_failure())
    except SignalException:
        sys.exit(130)


def _end(rank: int, failure: object) -> NoReturn:
    """End as the process `rank` ended."""
    code = int(getattr(failure, "exitcode", 1))
    if code > 0:
        sys.exit(code)
    raise WorkerLostError(
        f"process {rank} was killed by signal {-code}",
        where="[compute] processes",
        mend="start accord run again: it goes on from the last checkpoint; signal 9 often means too little memory",
    )
