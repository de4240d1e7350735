"""The Ray actor of one chip: a shell around `ChipWorker`, whose loop runs in the actor's thread.

Ray places, watches and ends it; no step and no vector goes through Ray.

Ray would make the actor import this project from the driver's working directory, whatever lies
there. So the shell is pickled by value and imports nothing of ours. Before any import it puts the
folder of the driver's code first on the path.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:
    from rack.run.job import ChipJob
    from rack.run.worker import Seat

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def node_address() -> str:
    """Return this machine's address in the cluster; it may have others in other networks."""
    here = ray.get_runtime_context().get_node_id()
    (address,) = (n["NodeManagerAddress"] for n in ray.nodes() if n["NodeID"] == here)
    return str(address)


@ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)
class ChipActor:
    """One chip. `run` returns when the chip has been stopped."""

    def __init__(self, root: str) -> None:
        if os.path.isdir(os.path.join(root, "rack")):  # another machine may have it elsewhere
            sys.path.insert(0, root)

    def run(self, job: ChipJob | None, seat: Seat) -> int:
        """Run the process's part in the rack; return the process id when it ends."""
        from dataclasses import replace

        from rack.run.worker import serve

        serve(job, replace(seat, bind=seat.bind.format(node_ip=node_address())))
        return os.getpid()


def start_actor(
    root: str, job: ChipJob | None, seat: Seat, strategy: Any, memory_bytes: int
) -> tuple[Any, Any]:
    """Start an actor by `strategy`; return its handle and the reference of its running loop."""
    actor = ChipActor.options(  # type: ignore[attr-defined]
        scheduling_strategy=strategy, memory=memory_bytes, name=None
    ).remote(root)
    return actor, actor.run.remote(job, seat)


@ray.remote(num_cpus=0, max_retries=0)
def _running(root: str, kernels: str | None) -> dict[str, str]:
    if os.path.isdir(os.path.join(root, "rack")) and root not in sys.path:
        sys.path.insert(0, root)
    import platform

    from rack.run.worker import kernels_like
    from rack.system.provenance import ROOT, running_code

    return {"where": f"{ROOT} on {platform.node()}", **running_code(kernels_like(kernels))}


def ask_what_runs(root: str, kernels: str | None, node: str) -> Any:
    """Ask a machine, by its id, where and what code its chips would run; return the reference.
    It raises RackError where the kernels are not there."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return _running.options(scheduling_strategy=there).remote(root, kernels)


@ray.remote(num_cpus=1, max_retries=0)
def _task(root: str, sources: str, pickled: bytes) -> Any:
    if os.path.isdir(os.path.join(root, "rack")) and root not in sys.path:
        sys.path.insert(0, root)
    import pickle

    from rack.errors import RackError
    from rack.system.provenance import source_digest

    if source_digest() != sources:
        raise RackError(
            f"{node_address()}: wanted the driver's code, got other: copy it to this machine"
        )
    work, given = pickle.loads(pickled)
    return work(given)


def start_task(root: str, sources: str, pickled: bytes) -> Any:
    """Start a pickled function on its pickled argument, in code like the driver's; return its
    reference. It raises RackError where the code differs."""
    return _task.remote(root, sources, pickled)
