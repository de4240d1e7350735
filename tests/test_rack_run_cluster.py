"""A Ray cluster of two machines, both on this one: placement, tcp with the run's key, a lost one.

The second raylet has an address of its own (127.0.0.2), so that a chip which binds anything but
its own machine's address shows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from rack.errors import ChipFailedError, OtherCodeError, RackError
from rack.run.completion import Completion
from rack.run.config import RunConfig
from rack.run.remote import RemoteRack
from rack.run.session import Session, prepare
from rack.text.sampler import SamplingParams

ray = pytest.importorskip("ray")
from rack.run import cluster  # noqa: E402  (imports ray)
from rack.run.membership import OBJECT_STORE_BYTES  # noqa: E402

SECOND = "127.0.0.2"
MEMORY = 280 << 20  # of each machine: two chip processes fit, three do not
LAYOUT = "1x2+1"


@pytest.fixture
def two_machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    # Otherwise every Ray on this computer that is started meanwhile would join this cluster.
    monkeypatch.setattr("ray._private.utils.write_ray_address", lambda *_: None)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    size = {"num_cpus": 4, "memory": MEMORY, "object_store_memory": OBJECT_STORE_BYTES}
    machines = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    try:
        machines.add_node(node_ip_address=SECOND, **size)
        monkeypatch.setenv("RAY_ADDRESS", machines.address)
        yield machines
    finally:
        ray.shutdown()
        machines.shutdown()
    children = psutil.Process().children(recursive=True)
    _, alive = psutil.wait_procs([c for c in children if c.pid not in before], timeout=10)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]


def end_machine(machines: Any, node: Any) -> None:
    """Kill a machine's raylet; its chips notice that and end."""
    (raylet,) = node.all_processes["raylet"]
    processes = psutil.Process(raylet.process.pid).children()
    machines.remove_node(node, allow_graceful=False)
    assert not psutil.wait_procs(processes, timeout=20)[1]


def complete(session: Session) -> Completion:
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    return session.engine.generate([256, 72, 105, 33, 33, 33], params).run()


@pytest.mark.ray
@pytest.mark.slow
def test_two_machines_give_the_tokens_of_one_process(two_machines: Any) -> None:
    config = {"model": "tiny", "layout": LAYOUT, "prefill_chunk": 4, "step_timeout_s": 20.0}
    with Session(prepare(RunConfig(transport="local", **config))) as session:
        wanted = complete(session)
    with Session(prepare(RunConfig(transport="ray", **config))) as session:
        rack = session.rack
        assert isinstance(rack, RemoteRack)
        hosts = {
            node: endpoint.rpartition(":")[0] for node, endpoint in rack._socket._peers.items()
        }
        assert rack._socket._key is not None  # tcp is refused without it
        assert hosts[3] == f"tcp://{ray.util.get_node_ip_address()}"
        assert set(hosts.values()) == {hosts[3], f"tcp://{SECOND}"}
        assert hosts[0] == hosts[1]  # a card's chips share a machine
        assert hosts[2] != hosts[0]
        for _ in range(2):
            got = complete(session)
            assert got.token_ids == wanted.token_ids
            assert got.data_hash == wanted.data_hash
            assert got.decode_cycles == wanted.decode_cycles
            assert got.prompt_cycles == wanted.prompt_cycles
        (second,) = two_machines.worker_nodes
        end_machine(two_machines, second)
        lost = {node for node, host in hosts.items() if host.endswith(SECOND)}
        with pytest.raises(ChipFailedError, match="its process ended") as caught:
            complete(session)
        assert caught.value.chip in lost


@pytest.mark.ray
@pytest.mark.slow
def test_a_lost_machine_s_chips_go_on_elsewhere(two_machines: Any) -> None:
    """Its raylet is killed, and its chips with it; spares on the other machines take over."""
    size = {"num_cpus": 4, "memory": MEMORY, "object_store_memory": OBJECT_STORE_BYTES}
    two_machines.add_node(node_ip_address="127.0.0.3", **size)
    config = {"model": "tiny", "layout": LAYOUT, "prefill_chunk": 4, "step_timeout_s": 5.0}
    with Session(prepare(RunConfig(transport="ray", spares=3, **config))) as session:
        wanted, rack = complete(session), session.rack
        assert isinstance(rack, RemoteRack)
        at = {
            chip: rack.members.at(chip).endpoint.rpartition(":")[0]
            for chip in rack.members.processes
        }
        head = f"tcp://{ray.util.get_node_ip_address()}"
        victim = next(host for host in at.values() if host != head)
        lost = tuple(sorted(chip for chip, host in at.items() if host == victim))
        node = next(n for n in two_machines.worker_nodes if victim.endswith(n.node_ip_address))
        params = SamplingParams(max_tokens=4, ignore_eos=True)
        completion = session.engine.generate([256, 72, 105, 33, 33, 33], params)
        events = iter(completion)
        next(events)
        end_machine(two_machines, node)
        assert len(list(events)) == 3
        assert completion.token_ids == wanted.token_ids
        assert completion.data_hash == wanted.data_hash
        assert completion.decode_cycles == wanted.decode_cycles
        replaced = sorted(chip for one in completion.recoveries for chip in one.chips)
        assert tuple(replaced) == lost
        now = {rack.members.at(chip).endpoint for chip in rack.members.processes}
        assert not [endpoint for endpoint in now if endpoint.startswith(f"{victim}:")]
        assert complete(session).data_hash == wanted.data_hash


@pytest.mark.ray
@pytest.mark.slow
def test_a_machine_with_other_code_is_refused_before_a_chip_starts(
    two_machines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = prepare(RunConfig(transport="ray", model="tiny", layout=LAYOUT))
    actors: list[object] = []
    monkeypatch.setattr(cluster, "start_actor", lambda *posted: actors.append(posted))
    real, ask = cluster.running_code, cluster.ask_what_runs
    for what in ("python", "kernels", "sources"):
        monkeypatch.setattr(cluster, "running_code", lambda k, w=what: real(k) | {w: "another"})
        wanted = rf"chip \d \(.+ on .+\) runs other code than the driver: {what}: wanted another, g"
        with pytest.raises(OtherCodeError, match=wanted):
            Session(ready)
    monkeypatch.setattr(cluster, "running_code", real)
    monkeypatch.setattr(cluster, "ask_what_runs", lambda root, _, node: ask(root, "none", node))
    wanted = r"^kernels: unknown implementation 'none'; .* has to run the driver's, none"
    with pytest.raises(RackError, match=wanted):
        Session(ready)
    monkeypatch.setattr(cluster, "ask_what_runs", lambda root, k, node: ask(5, k, node))
    wanted = r"^the machine of chip \d cannot run the driver's code: TypeError: "
    with pytest.raises(RackError, match=wanted):
        Session(ready)
    monkeypatch.setattr(cluster, "ask_what_runs", lambda root, k, node: ask(root, k, "0" * 56))
    with pytest.raises(RackError, match=r"^the machine of chip \d cannot run the driver's code: "):
        Session(ready)
    assert actors == []


def test_a_machine_that_joins_too_late_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = cluster.RayLauncher.__new__(cluster.RayLauncher)
    launcher._one_machine, launcher._machines = True, {"a"}
    nodes = {"bundles_to_node_id": {0: "a", 1: "b"}}
    monkeypatch.setattr(cluster.ray.util, "placement_group_table", lambda group: nodes)
    with pytest.raises(RackError, match="a machine joined the cluster while this run started"):
        launcher._check_joined("group")
    launcher._machines = {"a", "b"}
    launcher._check_joined("group")


def test_the_host_binds_here_and_chips_where_they_are() -> None:
    launcher = cluster.RayLauncher.__new__(cluster.RayLauncher)
    launcher._host, launcher._one_machine = 4, True
    assert launcher.bind(3, "/tmp/x") == f"ipc:///tmp/x{os.sep}3"
    launcher._one_machine = False
    assert {launcher.bind(node, "") for node in (0, 3, 6)} == {"tcp://{node_ip}:*"}


def test_a_machine_s_own_resource_is_told_from_those_of_placement_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Ray lists them while a group of an earlier rack is still being removed."""
    own, group = "node:127.0.0.2", "node:127.0.0.2_group_0_5e884898da28047151d0e56f8dc62927"
    head = {"node:127.0.0.1": 1.0, "node:__internal_head__": 1.0, "memory": 7.0}
    listed = {"a": {own: 1.0, group: 0.001, "memory": 5.0}, "b": head}
    monkeypatch.setattr(cluster, "available_resources_per_node", lambda: listed)
    assert cluster.free_memory() == {"node:127.0.0.1": 7, own: 5}
