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

from rack.config import RunConfig
from rack.engine import Completion
from rack.errors import ChipFailedError, RackError
from rack.remote import RemoteRack
from rack.sampler import SamplingParams
from rack.session import Session, prepare
from rack.worker import Seat

ray = pytest.importorskip("ray")
from rack import cluster  # noqa: E402  (imports ray)

SECOND = "127.0.0.2"
MEMORY = 280 << 20  # of each machine: two chip processes fit, three do not
LAYOUT = "1x2+1"


class FakeRay:
    """Takes the place of `ray.init`: raises what it was given, in order."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors, self.calls = list(errors), []

    def __call__(self, **options: Any) -> None:
        self.calls.append(options)
        if error := self.errors.pop(0):
            raise error


def join(
    monkeypatch: pytest.MonkeyPatch, address: str | None, *errors: Exception | None
) -> FakeRay:
    fake = FakeRay(*errors)
    monkeypatch.setattr(cluster.ray, "init", fake)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.delenv(cluster.STARTUP_VARIABLE, raising=False)
    cluster.join_ray(36)
    return fake


@pytest.mark.parametrize("address", [None, "", "local"])
def test_without_an_address_ray_starts_here(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    (call,) = join(monkeypatch, address, None).calls
    assert call["address"] == (address or None)
    assert os.environ[cluster.STARTUP_VARIABLE] == "36"  # all chips at once
    assert call["object_store_memory"] == cluster.OBJECT_STORE_BYTES


def test_a_named_cluster_is_joined_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    (call,) = join(monkeypatch, "10.0.0.1:6379", None).calls
    assert call["address"] == "10.0.0.1:6379"
    assert "object_store_memory" not in call


def test_a_cluster_that_runs_here_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = ValueError("When connecting to an existing cluster, num_cpus must not be provided.")
    first, second = join(monkeypatch, None, refusal, None).calls
    assert "object_store_memory" in first
    assert "object_store_memory" not in second


def test_addresses_that_cannot_be_used_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RackError, match=r"wanted HOST:PORT or auto, .* got ray://head:10001"):
        join(monkeypatch, "ray://head:10001")
    with pytest.raises(RackError, match=r"^Ray at 10.0.0.1:1: nobody there$"):
        join(monkeypatch, "10.0.0.1:1", ConnectionError("nobody there\nmore"))
    with pytest.raises(RackError, match=r"^Ray at this machine: no port$"):
        join(monkeypatch, None, ValueError("no port"))


@pytest.fixture
def two_machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    # Otherwise every Ray on this computer that is started meanwhile would join this cluster.
    monkeypatch.setattr("ray._private.utils.write_ray_address", lambda *_: None)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    size = {"num_cpus": 4, "memory": MEMORY, "object_store_memory": cluster.OBJECT_STORE_BYTES}
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
        (raylet,) = second.all_processes["raylet"]
        processes = psutil.Process(raylet.process.pid).children()
        two_machines.remove_node(second, allow_graceful=False)
        assert not psutil.wait_procs(processes, timeout=20)[1]  # they notice that it is gone
        lost = {node for node, host in hosts.items() if host.endswith(SECOND)}
        with pytest.raises(ChipFailedError, match="its process ended") as caught:
            complete(session)
        assert caught.value.chip in lost


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
    seats = [Seat(bind=launcher.bind(chip, ""), host_endpoint="", key=None) for chip in range(4)]
    assert {seat.bind for seat in seats} == {"tcp://{node_ip}:*"}


def test_several_racks_share_one_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rack of a process starts Ray, the last one ends it; another's Ray is left alone."""
    calls: list[str] = []
    up = False

    def init(**options: Any) -> None:
        nonlocal up
        calls.append("init")
        up = True

    def shutdown() -> None:
        nonlocal up
        calls.append("shutdown")
        up = False

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster.ray, "init", init)
    monkeypatch.setattr(cluster.ray, "shutdown", shutdown)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: up)
    member = cluster._Membership()
    for _ in range(2):
        member.join(3)
        member.join(3)
        member.leave()
        assert up
        member.leave()
    assert calls == ["init", "shutdown"] * 2
    up = True
    member.join(3)
    member.leave()
    assert calls == ["init", "shutdown"] * 2
