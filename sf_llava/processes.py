"""One command in several processes of this machine, as torchrun starts them, without torchrun's words at its end."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher import LaunchConfig, elastic_launch

from sf_llava.data.loading import count_cores


def run_in_processes(count: int, command: Sequence[str]) -> int:
    """Run ``sf-llava COMMAND ...`` in ``count`` processes that share its work; when one fails, the others are ended.

    They say themselves what they did and what went wrong. Each computes with its share of the cores, unless
    ``OMP_NUM_THREADS`` says otherwise.

    Returns:
        Exit status: that of the first process that failed, 128 and the signal's number where a signal ended it or this
        process.
    """
    logging.disable(logging.ERROR)  # of this process alone, which only waits
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_cores() // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        max_restarts=0,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
    )
    try:
        elastic_launch(config, sys.executable)("-m", "sf_llava", *command)
    except SignalException as end:
        return 128 + end.sigval
    except ChildFailedError as failure:
        rank, first = failure.get_first_failure()
        if first.exitcode >= 0:
            return first.exitcode
        name = signal.Signals(-first.exitcode).name
        print(f"error: process {rank} of {count} was ended by {name}, perhaps for want of memory", file=sys.stderr)
        return 128 - first.exitcode
    return 0
