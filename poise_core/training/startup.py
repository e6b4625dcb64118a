"""Starting the processes of one training: this process alone, or torchrun's agent with its workers forked from it.

The ``torchrun`` command starts every worker as a new interpreter, which imports torch again. Here the only process of a
training is this process itself; several processes are forked by the agent, which has imported their libraries. Where there is
CUDA, whose state does not survive a fork, several processes are spawned.

The module runs as ``python -I -m poise_core.training.startup PROCESSES JOB_FILE [MEETING]``, or in a fork of a process that has
called ``warm_up``.
"""

from __future__ import annotations

import math
import signal
import sys
import traceback
import uuid
from collections.abc import Sequence

from poise_core.policies.libraries import leave, load_libraries
from poise_core.training.job import NO_RENDEZVOUS, Meeting


def warm_up() -> None:
    """Import the libraries of a training."""
    load_libraries()
    import poise_core.training.worker  # noqa: F401
    from poise_core.environments import prompts

    prompts.warm_up()


def run(arguments: Sequence[str]) -> int:
    """Train with the number of processes in the first argument; the second is the job file, others tell where nodes meet."""
    return main(int(arguments[0]), arguments[1], Meeting.parse(list(arguments[2:])) if arguments[2:] else None)


def work(job_file: str) -> None:
    """Train in this process, alone or as one of several processes, whose environment torchrun's agent has set."""
    from poise_core.training import worker

    try:
        status = worker.main(job_file)
    except Exception:
        traceback.print_exc()  # so that it is in the log; the agent writes it to another file
        status = 1
    if status:
        sys.exit(status)


def main(processes: int, job_file: str, meeting: Meeting | None = None) -> int:
    """Train with this number of processes on this machine, and with as many on every other node of the meeting.

    Returns:
        0 when all of this machine have succeeded, 128 + SIGXCPU when one has reached its limit of processor time, NO_RENDEZVOUS
        when the nodes have not met, else 1.
    """
    if processes == 1 and meeting is None:
        load_libraries()
        from poise_core.training import worker

        return worker.main(job_file)
    import torch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    fork = not torch.cuda.is_available()
    if fork:
        load_libraries()
    # without a meeting, the configuration of ``torchrun --standalone``
    nodes = meeting.nodes if meeting else 1
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=processes,
        run_id=meeting.name if meeting else str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint=meeting.endpoint if meeting else "localhost:0",
        rdzv_configs={"is_host": meeting.hosts, "join_timeout": math.ceil(meeting.seconds)} if meeting else {},
        local_addr=meeting.endpoint.rpartition(":")[0] if meeting and meeting.hosts else None,
        max_restarts=0,
        start_method="fork" if fork else "spawn",
    )
    try:
        elastic_launch(config, work)(job_file)
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        over = any(failure.exitcode == -signal.SIGXCPU for failure in error.failures.values())
        return 128 + signal.SIGXCPU if over else 1
    except RendezvousError as error:
        print(f"the nodes have not met: {error.__cause__ or error}", file=sys.stderr)
        return NO_RENDEZVOUS
    return 0


if __name__ == "__main__":
    leave(run(sys.argv[1:]))
