"""Chips as Ray actors: one placement group per rack, one bundle per card.

A bundle lies on one machine, so the chips of a card share a machine. A rack's bundles are packed
on as few machines as possible, neighbours together (rack/run/placing.py). Memory is declared, so
Ray refuses a rack that does not fit. If no cluster is named (`RAY_ADDRESS`) and none runs on this
machine, a local one is started, and ended with this process; `RAY_ADDRESS=local` always starts one
(rack/run/membership.py).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rack.errors import OtherCodeError, RackError
from rack.machines.hardware import Hardware
from rack.run.actor import ask_what_runs, node_address, start_actor, start_task
from rack.run.launcher import Post
from rack.run.membership import MEMBERSHIP
from rack.run.placing import machines_of_cards
from rack.run.worker import kernels_like, one_blas_thread
from rack.system.progress import Progress
from rack.system.provenance import ROOT, running_code, source_digest

PLACE_TIMEOUT_S = 60.0
END_TIMEOUT_S = 5.0
PIN = 0.001  # of a machine's own resource, `node:ADDRESS`, which what asks for it binds there
_MACHINE = re.compile(r"node:(?!__)[^_]+")  # the head has a second one, placement groups their own


def in_groups(chips: range, size: int) -> list[range]:
    """Return chips in groups of that size; the last one may be smaller."""
    return [chips[at : at + size] for at in range(0, len(chips), size)]


def free_memory() -> dict[str, int]:
    """Return the bytes that each machine has left, by the name of its own resource."""
    found = {}
    for resources in available_resources_per_node().values():
        (name,) = (key for key in resources if _MACHINE.fullmatch(key))
        found[name] = int(resources.get("memory", 0))
    return dict(sorted(found.items()))


class RayLauncher:
    """Implements `rack.run.launcher.Launcher`."""

    name = "ray"

    def __init__(self, hardware: Hardware, chips: int, progress: Progress | None = None) -> None:
        self.hardware = hardware
        self._host = chips  # the host's node id comes after the chips'
        self._progress = progress or (lambda stage, done, total: None)
        self._groups: list[Any] = []
        self._wanted = 0  # bytes of memory, in all
        self._actors: dict[int, Any] = {}
        self._loops: dict[int, Any] = {}
        one_blas_thread()
        MEMBERSHIP.join(chips)
        self._joined = True
        self._machines = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        self._one_machine = len(self._machines) == 1

    def bind(self, node: int, folder: str) -> str:
        """See `Launcher.bind`; with several machines every node binds tcp on its own address."""
        if self._one_machine:
            return f"ipc://{os.path.join(folder, str(node))}"
        return (
            f"tcp://{node_address()}:*"
            if node in (self._host, self._host + 1)
            else "tcp://{node_ip}:*"
        )

    def start(self, posts: Sequence[Post]) -> None:
        """See `Launcher.start`. Raises RackError if the cluster has no room."""
        chips = [post for post in posts if post.job is not None]
        spares = [post for post in posts if post.job is None]
        self._wanted = sum(post.memory_bytes for post in posts)
        places = self._place([post.memory_bytes for post in chips])
        places |= self._place_spares(spares)
        self._check_code(places, posts[0].seat.kernels)
        for post in posts:
            group, bundle = places[post.seat.process]
            strategy = PlacementGroupSchedulingStrategy(
                placement_group=group, placement_group_bundle_index=bundle
            )
            actor, loop = start_actor(str(ROOT), post.job, post.seat, strategy, post.memory_bytes)
            self._actors[post.seat.process], self._loops[post.seat.process] = actor, loop

    def _place_spares(self, spares: Sequence[Post]) -> dict[int, tuple[Any, int]]:
        """Reserve memory on as many machines as there are: one that is lost takes few spares."""
        if not spares:
            return {}
        bundles: list[dict[str, float]] = [{"memory": post.memory_bytes} for post in spares]
        group = self._group(bundles, "SPREAD", "spares")
        return {post.seat.process: (group, bundle) for bundle, post in enumerate(spares)}

    def _group(self, bundles: list[dict[str, float]], strategy: str, what: str) -> Any:
        """Reserve a placement group. Raises RackError if there is no room for it."""
        group = placement_group(bundles, strategy=strategy)
        self._groups.append(group)
        if not group.wait(timeout_seconds=PLACE_TIMEOUT_S):
            have = int(ray.cluster_resources().get("memory", 0))
            raise RackError(
                f"{what}: Ray found no room within {PLACE_TIMEOUT_S:.0f} s: the layout "
                f"wants {self._wanted:,} bytes of memory, the cluster has {have:,} "
                f"(also in use: {have - int(ray.available_resources().get('memory', 0)):,})"
            )
        self._check_joined(group)
        return group

    def _place(self, memory: list[int]) -> dict[int, tuple[Any, int]]:
        """Reserve memory card by card, rack by rack: chip -> (placement group, bundle)."""
        per_card, per_rack = self.hardware.chips_per_card, self.hardware.chips_per_rack
        places: dict[int, tuple[Any, int]] = {}
        chips = range(len(memory))
        racks = [in_groups(rack, per_card) for rack in in_groups(chips, per_rack)]
        sizes = [[sum(memory[chip] for chip in card) for card in cards] for cards in racks]
        machines = machines_of_cards(sizes, free_memory())
        for number, cards in enumerate(racks):
            bundles: list[dict[str, float]] = [{"memory": size} for size in sizes[number]]
            if machines is not None:  # else Ray may see another way, or wait for room
                for reserved, machine in zip(bundles, machines[number], strict=True):
                    reserved[machine] = PIN
            self._progress("racks placed", number, len(racks))
            group = self._group(bundles, "PACK", f"rack {number}")
            for bundle, card in enumerate(cards):
                places |= dict.fromkeys(card, (group, bundle))
        self._progress("racks placed", len(racks), len(racks))
        return places

    def _check_joined(self, group: Any) -> None:
        """Refuse a machine that joined after the addresses were chosen: ipc does not reach it."""
        used = set(ray.util.placement_group_table(group)["bundles_to_node_id"].values())
        if self._one_machine and not used <= self._machines:
            raise RackError("a machine joined the cluster while this run started: start it again")

    def _check_code(self, places: Mapping[int, tuple[Any, int]], kernels: str | None) -> None:
        """Refuse machines that run other code than this one, before a process starts there.

        What is sent to a process may mean another thing there. Raises OtherCodeError, or RackError.
        """
        tables = {group: ray.util.placement_group_table(group) for group in self._groups}
        nodes = {
            process: str(tables[group]["bundles_to_node_id"][bundle])
            for process, (group, bundle) in sorted(places.items(), reverse=True)
        }
        first = {node: process for process, node in nodes.items()}  # the lowest, as the last one
        first.pop(ray.get_runtime_context().get_node_id(), None)
        asked = {node: ask_what_runs(str(ROOT), kernels, node) for node in first}
        wanted = running_code(kernels_like(kernels))
        for node, answer in asked.items():
            got = _answered(answer, first[node])
            for what, value in wanted.items():
                if got[what] != value:
                    raise OtherCodeError(
                        chip=first[node], where=got["where"], what=what, wanted=value,
                        got=got[what],
                    )  # fmt: skip

    def dead(self) -> dict[int, str]:
        """See `Launcher.dead`. Raises RackError when the cluster itself is gone."""
        MEMBERSHIP.check()
        loops = {loop: process for process, loop in self._loops.items()}
        ended, _ = ray.wait(list(loops), num_returns=len(loops), timeout=0)
        out = {}
        for loop in ended:
            try:
                ray.get(loop)
                out[loops[loop]] = "its loop returned"
            except ray.exceptions.RayTaskError as error:  # its first line only says where
                out[loops[loop]] = f"{type(error.cause).__name__}: {error.cause}"
            except ray.exceptions.RayError as error:
                out[loops[loop]] = str(error).strip().splitlines()[0]
        return out

    def end(self, process: int) -> None:
        """See `Launcher.end`."""
        loop = self._loops.pop(process)
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(self._actors.pop(process), no_restart=True)
        ray.wait([loop], timeout=END_TIMEOUT_S)  # in vain where its machine is gone

    def stop(self) -> None:
        """See `Launcher.stop`. Actors of a cluster that is gone end without us."""
        if self._joined and MEMBERSHIP.answers():
            for actor in self._actors.values():
                with contextlib.suppress(ray.exceptions.RayError, ValueError):
                    ray.kill(actor, no_restart=True)
            for group in self._groups:
                with contextlib.suppress(ray.exceptions.RayError):
                    remove_placement_group(group)
        self._actors.clear()
        self._loops.clear()
        self._groups.clear()
        if self._joined:
            self._joined = False
            MEMBERSHIP.leave()


def _answered(answer: Any, chip: int) -> Mapping[str, str]:
    """Return what a machine has answered. Raises RackError if it cannot."""
    try:
        return dict(ray.get(answer, timeout=PLACE_TIMEOUT_S))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RackError):
            raise error.cause from None
        said = f"{type(error.cause).__name__}: {error.cause}"
    except ray.exceptions.RayError as error:
        said = str(error).strip().splitlines()[0]
    raise RackError(f"the machine of chip {chip} cannot run the driver's code: {said}")


class RayTasks:
    """Lanes of a sweep that are tasks of a Ray cluster, as many as it has CPUs."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work, self.count = work, 0

    def __enter__(self) -> RayTasks:
        MEMBERSHIP.join(1)
        self.count = max(1, int(ray.cluster_resources().get("CPU", 1)))
        return self

    def __exit__(self, *_: object) -> None:
        MEMBERSHIP.leave()

    def submit(self, lane: int, task: object) -> Future[Any]:
        """Begin a task. Its future raises RackError where the cluster or its code is at fault."""
        reference = start_task(str(ROOT), source_digest(), pickle.dumps((self._work, task)))
        done: Future[Any] = Future()
        reference.future().add_done_callback(lambda found: _settle(done, found))
        return done


def _settle(done: Future[Any], found: Future[Any]) -> None:
    """Give a task's outcome on; errors of Ray become ours."""
    error = found.exception()
    if isinstance(error, ray.exceptions.RayTaskError):
        error = error.cause if isinstance(error.cause, Exception) else RackError(str(error))
    elif isinstance(error, ray.exceptions.RayError):
        error = RackError(f"Ray: {str(error).strip().splitlines()[0]}")
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(found.result())
