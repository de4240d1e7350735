"""Which Ray is joined, which is started, and what a user is told where neither can be done."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rack.errors import RackError

ray = pytest.importorskip("ray")
from rack.run import membership  # noqa: E402  (imports ray)

AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


class FakeConfig:
    """Ray's own would have this whole process use tokens."""

    @staticmethod
    def initialize(text: str) -> None:
        """Do nothing."""


class FakeLoader:
    """Says whether this user has a token."""

    here = False

    @classmethod
    def instance(cls) -> type[FakeLoader]:
        return cls

    @classmethod
    def has_token(cls, *, ignore_auth_mode: bool) -> bool:
        return cls.here

    @staticmethod
    def reset_cache() -> None:
        """Do nothing."""


class FakeRay:
    """Takes the place of `ray.init`: raises what it was given, in order."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors, self.calls = list(errors) or [None], []

    def __call__(self, **options: Any) -> None:
        self.calls.append(options)
        self.loopback = not membership.ray_constants.ENABLE_RAY_CLUSTER
        if error := self.errors.pop(0):
            raise error


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No address, no token, no Ray that was started here."""
    for name in ("RAY_ADDRESS", membership.STARTUP_VARIABLE, "TMPDIR", *AUTH):
        monkeypatch.setenv(name, "")  # so that whatever the test leaves is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(membership, "Config", FakeConfig)
    monkeypatch.setattr(membership, "AuthenticationTokenLoader", FakeLoader)


def join(monkeypatch: pytest.MonkeyPatch, address: str | None, *errors: Exception) -> FakeRay:
    fake = FakeRay(*errors)
    monkeypatch.setattr(membership.ray, "init", fake)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    membership.join_ray(36)
    return fake


@pytest.fixture
def listener() -> Iterator[str]:
    """An address where somebody listens, who never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def nobody() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def found(tmp_path: Path, address: str) -> None:
    """As `ray start` leaves it."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(address)


@pytest.mark.parametrize("address", [None, "", "local"])
def test_without_an_address_ray_starts_here(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    fake = join(monkeypatch, address)
    (call,) = fake.calls
    assert call["address"] == "local"
    assert fake.loopback
    assert membership.ray_constants.ENABLE_RAY_CLUSTER  # only for that start
    assert not membership._LOOPBACK_ONLY.keys() & os.environ.keys()
    assert os.environ[membership.STARTUP_VARIABLE] == "36"  # all chips at once
    assert call["object_store_memory"] == membership.OBJECT_STORE_BYTES
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64  # of its own, in no file
    monkeypatch.setattr(membership.ray, "shutdown", lambda: None)
    membership.leave_ray()
    assert not set(AUTH) & os.environ.keys()


@pytest.mark.parametrize("variable", AUTH)
def test_a_user_s_own_choice_of_tokens_stays(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "disabled")
    join(monkeypatch, None)
    monkeypatch.setattr(membership.ray, "shutdown", lambda: None)
    membership.leave_ray()
    assert {name: os.environ[name] for name in AUTH if name in os.environ} == {variable: "disabled"}


def test_a_named_cluster_is_joined_as_it_is(monkeypatch: pytest.MonkeyPatch, listener: str) -> None:
    monkeypatch.setattr(membership, "canonicalize_bootstrap_address", lambda address: listener)
    asked: list[str] = []
    monkeypatch.setattr(membership, "_ask", asked.append)
    fake = join(monkeypatch, "head:6379")
    (call,) = fake.calls
    assert (call["address"], asked) == (listener, [listener])
    assert "object_store_memory" not in call
    assert not fake.loopback


@pytest.mark.parametrize("address", [None, "auto"])
def test_a_cluster_that_runs_here_is_joined(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listener: str, address: str | None
) -> None:
    found(tmp_path, listener)
    monkeypatch.setattr(membership, "_ask", lambda address: None)
    (call,) = join(monkeypatch, address).calls
    assert call["address"] == listener


def test_one_that_has_ended_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found(tmp_path, nobody())
    (call,) = join(monkeypatch, None).calls
    assert call["address"] == "local"
    with pytest.raises(RackError, match=r"^Ray at auto: nobody answers at 127.0.0.1:\d+ \("):
        join(monkeypatch, "auto")
    (tmp_path / "ray" / "ray_current_cluster").unlink()
    with pytest.raises(RackError, match=r"^Ray at auto: no Ray was started here: start one"):
        join(monkeypatch, "auto")


def test_addresses_that_cannot_be_used_are_refused(
    monkeypatch: pytest.MonkeyPatch, listener: str
) -> None:
    with pytest.raises(RackError, match=r"wanted HOST:PORT or auto, .* got ray://head:10001"):
        join(monkeypatch, "ray://head:10001")
    dead = nobody()
    monkeypatch.setattr(membership, "canonicalize_bootstrap_address", lambda address: address)
    wanted = rf"^Ray at {dead}: nobody answers at {dead} \(Connection refused\): start it there "
    with pytest.raises(RackError, match=wanted):
        join(monkeypatch, dead)
    with pytest.raises(RackError, match=r"nobody answers at no.such.host.invalid:1 "):
        join(monkeypatch, "no.such.host.invalid:1")
    monkeypatch.setattr(membership, "_ask", lambda address: None)
    with pytest.raises(RackError, match=rf"^Ray at {listener}: Version mismatch: a b$"):
        join(monkeypatch, listener, RuntimeError("Version mismatch:\n  a\n  b"))
    failure = ConnectionError("Failed to connect to Ray cluster at x")
    failure.__cause__ = RuntimeError("No node info found")
    with pytest.raises(RackError, match=rf"^Ray at {listener}: No node info found$"):
        join(monkeypatch, listener, failure)
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(RackError, match=r"^Ray at this machine: no port$"):
        join(monkeypatch, None, ValueError("no port"))
    with pytest.raises(RackError, match=r"^Ray cannot be started here: .*; set RAY_TMPDIR to a fo"):
        join(monkeypatch, None, PermissionError(13, "Permission denied", "/x"))


def test_a_cluster_that_asks_for_a_token_gets_it_or_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, listener: str
) -> None:
    monkeypatch.setattr(membership, "canonicalize_bootstrap_address", lambda address: address)

    def ask(address: str) -> None:
        if os.environ.get("RAY_AUTH_MODE") != "token" or not right:
            raise ray.exceptions.AuthenticationError("no")

    monkeypatch.setattr(membership, "_ask", ask)
    right = False
    with pytest.raises(RackError, match=r"asks for a token and there is none here: .*RAY_AUTH_TOK"):
        join(monkeypatch, listener)
    monkeypatch.setattr(FakeLoader, "here", True)
    with pytest.raises(RackError, match="it asks for another token than the one here"):
        join(monkeypatch, listener)
    monkeypatch.delenv("RAY_AUTH_MODE")
    right = True
    assert join(monkeypatch, listener).calls


def test_a_deep_temporary_folder_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (call,) = join(monkeypatch, None).calls
    shallow = len(str(tmp_path)) + membership.SESSION_BYTES <= membership.SOCKET_PATH_BYTES
    assert call["_temp_dir"] == (None if shallow else "/tmp/ray")
    for variable in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.setenv(variable, "/" + "d" * 60)
        (call,) = join(monkeypatch, None).calls
        assert call["_temp_dir"] == "/tmp/ray"


def test_a_folder_of_somebody_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os\n"
        "from rack.run import membership\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: membership._place()\n"
        "except membership.RackError as error: print(error)\n"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        os.chmod(place, 0o755)
        theirs = Path(place) / "ray"
        theirs.mkdir(mode=0o500)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "RAY_TMPDIR": place},
        )  # fmt: skip
    assert done.stdout.startswith(f"{theirs}: wanted a folder that this user can write, got one of")
    assert done.stdout.rstrip().endswith(": set RAY_TMPDIR to a short path of a folder of your own")


def test_ray_sets_no_handler_of_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: Any) -> None:
        assert membership.ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER  # those in C
        membership.utils.set_sigterm_handler(signal.SIG_IGN)  # as it does from the main thread

    before, setter = signal.getsignal(signal.SIGTERM), membership.utils.set_sigterm_handler
    monkeypatch.setattr(membership.ray, "init", init)
    membership.join_ray(1)
    assert signal.getsignal(signal.SIGTERM) == before
    assert membership.utils.set_sigterm_handler is setter
    assert not membership.ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER


def test_ray_is_started_by_a_thread_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    starters: list[threading.Thread] = []
    monkeypatch.setattr(
        membership.ray, "init", lambda **options: starters.append(threading.current_thread())
    )
    rack = threading.Thread(target=membership.join_ray, args=(1,))
    rack.start()
    rack.join()
    (starter,) = starters
    assert starter.is_alive()  # Linux kills Ray's processes with it


class Calls:
    """A Ray that is up or not, and what was asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
        self.calls: list[str] = []
        self.up, self.gcs_address = False, address
        monkeypatch.setattr(membership.ray, "init", self.init)
        monkeypatch.setattr(membership.ray, "shutdown", self.shutdown)
        monkeypatch.setattr(membership.ray, "is_initialized", lambda: self.up)
        monkeypatch.setattr(membership.ray, "get_runtime_context", lambda: self)

    def init(self, **options: Any) -> None:
        self.calls.append("init")
        self.up = True

    def shutdown(self) -> None:
        self.calls.append("shutdown")
        self.up = False


def test_several_racks_share_one_ray(monkeypatch: pytest.MonkeyPatch, listener: str) -> None:
    """The first rack of a process starts Ray, the last one ends it; another's Ray is left alone."""
    fake = Calls(monkeypatch, listener)
    member = membership.Membership()
    for _ in range(2):
        member.join(3)
        member.join(3)
        member.leave()
        assert fake.up
        member.leave()
    assert fake.calls == ["init", "shutdown"] * 2
    fake.up = True
    member.join(3)
    member.leave()
    assert fake.calls == ["init", "shutdown"] * 2


def test_a_held_cluster_outlives_its_racks(monkeypatch: pytest.MonkeyPatch, listener: str) -> None:
    fake = Calls(monkeypatch, listener)
    member = membership.Membership()
    with member.held():
        assert fake.calls == []
        for _ in range(3):
            member.join(3)
            member.leave()
        assert fake.calls == ["init"]
        member._address = nobody()
        member.join(3)  # it was lost meanwhile
        assert fake.calls == ["init", "shutdown", "init"]
    assert fake.up  # for the rack that is left
    member.leave()
    assert not fake.up


def test_a_cluster_that_is_gone_is_noticed(monkeypatch: pytest.MonkeyPatch, listener: str) -> None:
    fake = Calls(monkeypatch, listener)
    member = membership.Membership()
    member.join(3)
    member.check()
    member._address = nobody()
    assert not member.answers()
    member.check()  # it may come back
    monkeypatch.setattr(membership, "SILENT_SECONDS", 0.0)
    with pytest.raises(RackError, match=r"\(GCS\) at 127.0.0.1:\d+ has not answered for 0 s"):
        member.check()
    with pytest.raises(RackError, match="has not answered; other racks of this process still lea"):
        member.join(3)
    member.leave()
    member.join(3)  # a new one
    member.check()
    member.leave()
    assert fake.calls == ["init", "shutdown"] * 2
