"""Both transports against one suite, and what only sockets have: endpoints, keys, folders."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import socket
import stat
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from transport_suite import FRAME, WAIT_S, check_transport
from zmq.utils.monitor import recv_monitor_message

from interconnect.errors import FrameError, TransportError
from interconnect.frame import Control
from interconnect.rings import available
from interconnect.transport import LocalHub, Transport
from interconnect.zmq_transport import RunKey, ZmqTransport

TCP = "tcp://127.0.0.1:*"


def make_local(nodes: Sequence[int]) -> dict[int, Transport]:
    hub = LocalHub()
    return {node: hub.transport(node) for node in nodes}


def connected(
    nodes: Sequence[int], bind: str, key: RunKey | None, senders: Sequence[int] = ()
) -> dict[int, ZmqTransport]:
    made = {node: ZmqTransport(node, bind, key, senders) for node in nodes}
    rings = {node: other.rings for node, other in made.items() if other.rings is not None}
    for transport in made.values():
        transport.connect({node: other.endpoint for node, other in made.items()}, rings)
    return made


def test_local() -> None:
    check_transport(make_local)


def test_ipc() -> None:
    check_transport(lambda nodes: dict(connected(nodes, "ipc://*", None)))


@pytest.mark.skipif(not available(), reason="needs the native part and Linux")
def test_ipc_with_rings() -> None:
    check_transport(lambda nodes: dict(connected(nodes, "ipc://*", None, nodes)))


def test_tcp_with_curve() -> None:
    key = RunKey.generate()
    check_transport(lambda nodes: dict(connected(nodes, TCP, key)))


@pytest.mark.skipif(not available(), reason="needs the native part and Linux")
def test_tcp_with_rings() -> None:
    key = RunKey.generate()
    check_transport(lambda nodes: dict(connected(nodes, TCP, key, nodes)))


@pytest.mark.skipif(not available(), reason="needs the native part and Linux")
def test_frames_take_rings_on_a_host_and_sockets_between_hosts() -> None:
    """Two nodes at one address, one at another: each pair of one host has rings, no other has."""
    key = RunKey.generate()
    addresses = ["127.0.0.1", "127.0.0.1", "127.0.0.2"]
    nodes = [
        ZmqTransport(node, f"tcp://{address}:*", key, senders=[0, 1, 2])
        for node, address in enumerate(addresses)
    ]
    rings = {node.node: node.rings for node in nodes if node.rings is not None}
    for node in nodes:
        node.connect({other.node: other.endpoint for other in nodes}, rings)
    assert [sorted(node._outboxes) for node in nodes] == [[0, 1], [0, 1], [2]]
    for src in nodes:
        for dst in nodes:
            src.send(dst.node, FRAME)
            assert dst.receive(WAIT_S) == FRAME
    assert [sorted(node._pushes) for node in nodes] == [[2], [2], [0, 1]]
    for node in nodes:
        node.close()


def tapped(there: str, heard: bytearray) -> tuple[str, threading.Thread]:
    """An endpoint that passes everything on to `there`, and keeps what it hears of the sender."""
    host, port = there.removeprefix("tcp://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket, keep: bytearray) -> None:
        with contextlib.suppress(OSError):  # the other direction has ended both
            while data := source.recv(1 << 16):
                keep += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def relay() -> None:
        with listener, listener.accept()[0] as near, socket.create_connection((host, port)) as far:
            back = threading.Thread(target=pump, args=(far, near, bytearray()))
            back.start()
            pump(near, far, heard)
            back.join(WAIT_S)

    thread = threading.Thread(target=relay)
    thread.start()
    return f"tcp://127.0.0.1:{listener.getsockname()[1]}", thread


def test_what_the_wire_carries_is_encrypted() -> None:
    """Who listens between two hosts hears neither a frame nor a control message."""
    key, heard = RunKey.generate(), bytearray()
    near, far = ZmqTransport(0, TCP, key), ZmqTransport(1, TCP, key)
    endpoint, relay = tapped(far.endpoint, heard)
    near.connect({1: endpoint})
    frame = replace(FRAME, payload=b"activations of a layer. " * 400)
    near.send(1, frame)
    near.send(1, Control("step", {"said": "which step to run"}))
    assert far.receive(WAIT_S) == frame
    assert far.receive(WAIT_S) == Control("step", {"said": "which step to run"})
    for node in (near, far):
        node.close()
    relay.join(WAIT_S)
    assert not relay.is_alive()
    assert bytes(heard[12:17]) == b"CURVE"  # the mechanism of a ZMTP greeting
    assert len(heard) > len(frame.payload)
    for plain in (b"activations", b"which step", b"step"):
        assert plain not in heard


def test_a_node_joins_a_hub_once() -> None:
    hub = LocalHub()
    hub.transport(3)
    with pytest.raises(TransportError) as caught:
        hub.transport(3)
    assert str(caught.value) == "node 3: has joined this hub already"


def test_ipc_folder_is_private_short_and_removed() -> None:
    transport = ZmqTransport(575)
    path = Path(transport.endpoint.removeprefix("ipc://"))
    assert path.is_socket()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert len(os.fsencode(path)) <= 107
    transport.close()
    assert not path.parent.exists()


def test_deep_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    transport = ZmqTransport(0)
    assert transport.endpoint.startswith("ipc:///tmp/lpu-")
    transport.close()
    assert list(deep.iterdir()) == []


def test_given_ipc_path(tmp_path: Path) -> None:
    transport = ZmqTransport(0, f"ipc://{tmp_path}/n0")
    assert transport.endpoint == f"ipc://{tmp_path}/n0"
    transport.close()
    assert tmp_path.is_dir()  # not ours to remove


@pytest.mark.parametrize(
    ("bind", "text"),
    [
        (
            "tcp://0.0.0.0:*",
            "cannot bind tcp://0.0.0.0:*: wanted an address that peers can reach",
        ),
        ("tcp://*:5000", "cannot bind tcp://*:5000: wanted an address that peers can reach"),
        (
            "udp://x",
            "cannot bind 'udp://x': wanted ipc://* or ipc://PATH or tcp://HOST:PORT",
        ),
        (
            f"ipc:///tmp/{'x' * 103}",
            f"cannot bind ipc:///tmp/{'x' * 103}: 108 bytes of path, at most 107 allowed",
        ),
        ("ipc:///no/such/folder/n0", "cannot bind ipc:///no/such/folder/n0: "),
    ],
)
def test_cannot_bind(bind: str, text: str) -> None:
    with pytest.raises(TransportError) as caught:
        ZmqTransport(7, bind, RunKey.generate())
    assert str(caught.value).startswith(f"node 7: {text}")


def test_tcp_needs_a_key() -> None:
    with pytest.raises(TransportError) as caught:
        ZmqTransport(0, TCP)
    assert str(caught.value) == f"node 0: {TCP} needs the run's key"
    transport = ZmqTransport(0)
    with pytest.raises(TransportError) as caught:
        transport.connect({1: "tcp://10.0.0.1:5000"})
    transport.close()
    assert str(caught.value) == "node 0: tcp://10.0.0.1:5000 needs the run's key"


def test_a_node_has_one_endpoint() -> None:
    transport = ZmqTransport(0)
    transport.connect({1: "ipc:///a"})
    transport.connect({1: "ipc:///a"})
    with pytest.raises(TransportError) as caught:
        transport.connect({1: "ipc:///b"})
    transport.close()
    assert str(caught.value) == "node 0: node 1 is at ipc:///a, not at ipc:///b as well"


def test_run_key_is_secret_and_picklable() -> None:
    key = RunKey.generate()
    assert pickle.loads(pickle.dumps(key)) == key
    assert key.secret.decode() not in repr(key)
    assert key != RunKey.generate()


@pytest.mark.parametrize("stranger", ["plain", "another run's key"])
def test_strangers_are_kept_out(stranger: str) -> None:
    ours = connected([0, 1], TCP, RunKey.generate())
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.linger = 0
        if stranger != "plain":
            key = RunKey.generate()
            push.curve_publickey, push.curve_secretkey = key.public, key.secret
            push.curve_serverkey = key.public
        events = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        monitor = push.get_monitor_socket(events | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        push.connect(ours[0].endpoint)
        push.send(b"C" + b"\x92\xa4stop\x80")
        assert monitor.poll(WAIT_S * 1000)  # the server has hung up on the stranger
        assert recv_monitor_message(monitor)["event"] != zmq.EVENT_HANDSHAKE_SUCCEEDED
        push.disable_monitor()
        monitor.close()
    ours[1].send(0, FRAME)
    assert ours[0].receive(WAIT_S) == FRAME
    assert ours[0].receive(0) is None
    for transport in ours.values():
        transport.close()


@pytest.mark.parametrize("data", [b"X", b"F", b""])
def test_what_is_not_a_message(data: bytes) -> None:
    transport = ZmqTransport(0)
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.connect(transport.endpoint)
        push.send(data)
        with pytest.raises(FrameError) as caught:
            transport.receive(WAIT_S)
    transport.close()
    assert str(caught.value) == (
        f"frame: message: wanted a frame or a control message, got {data!r}"
    )


def echo(endpoint: str, key: RunKey) -> None:
    """Run node 1 in another process: say where it is, return one message, end."""
    transport = ZmqTransport(1, TCP, key)
    transport.connect({0: endpoint})
    transport.send(0, Control("hello", {"endpoint": transport.endpoint}))
    message = transport.receive(WAIT_S)
    assert message is not None
    transport.send(0, message)
    transport.close()


def test_between_processes() -> None:
    key = RunKey.generate()
    transport = ZmqTransport(0, TCP, key)
    process = multiprocessing.get_context("spawn").Process(
        target=echo, args=(transport.endpoint, key)
    )
    process.start()
    hello = transport.receive(WAIT_S)
    assert isinstance(hello, Control)
    transport.connect({1: hello.values["endpoint"]})
    transport.send(1, FRAME)
    assert transport.receive(WAIT_S) == FRAME
    process.join(WAIT_S)
    assert process.exitcode == 0
    process.close()
    transport.close()
