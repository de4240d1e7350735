"""Join a Ray cluster: the one that is named, one that runs here, or one of our own.

Rules. An address at which nobody answers is given up within a minute. A Ray of our own listens on
loopback only and has its own token, which ends with it. Start a Ray that other machines should
reach with `ray start`. A cluster that asks for a token gets the user's (`~/.ray/auth_token`,
RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH), even without RAY_AUTH_MODE. Ray does not replace this
process's signal handlers.

This module needs private parts of Ray; it is tested with the versions that pyproject.toml allows.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._common.utils import get_default_system_temp_dir
from ray._private import ray_constants, utils, worker
from ray._private.services import canonicalize_bootstrap_address, find_bootstrap_address
from ray._raylet import (  # type: ignore[attr-defined]
    AuthenticationTokenLoader,
    Config,
    GcsClient,
)

from rack.errors import RackError

OBJECT_STORE_BYTES = 80 << 20  # Ray's least: nothing of ours goes through it
CONNECT_SECONDS = 10.0
SILENT_SECONDS = 10.0
"""How long a cluster's control service may be silent before its racks are given up."""
STARTUP_VARIABLE = "RAY_worker_maximum_startup_concurrency"
SOCKET_PATH_BYTES = 103  # of the shortest system
SESSION_BYTES = len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
_MODE, _TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
_OWN_TOKEN = secrets.token_hex(32)  # of the Rays that this process starts
_STARTER = ThreadPoolExecutor(1, thread_name_prefix="ray")
_LOOPBACK_ONLY = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}


def join_ray(chips: int) -> None:
    """Connect to the cluster that is named or running here, or start a local one.

    Raises RackError for an address that cannot be used. `leave_ray` undoes it.
    """
    address = os.environ.get("RAY_ADDRESS") or None
    if address and address.startswith("ray://"):
        raise RackError(
            f"RAY_ADDRESS: wanted HOST:PORT or auto, on a machine of the cluster, got {address}: "
            "chips send to this process, which a Ray client's machine does not let them"
        )
    # Ray starts as many processes at once as it has CPUs, and warns of more: every chip needs one.
    os.environ.setdefault(STARTUP_VARIABLE, str(chips))
    try:
        with _without_handlers():
            if (running := _running(address)) is None:
                _start()
            else:
                _join(running)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise RackError(f"Ray at {address or 'this machine'}: {_reason(error)}") from error
    except OSError as error:
        raise RackError(
            f"Ray cannot be started here: {error}; set RAY_TMPDIR to a folder of your own"
        ) from error


def leave_ray() -> None:
    """Leave the cluster, or end it, with every process of it, if it is our own.

    Ray's agents would stay for a minute: they report the end of their raylet to a control service
    that has ended as well.
    """
    started = _own_processes()
    ray.shutdown()
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    if os.environ.get(_TOKEN) == _OWN_TOKEN:
        del os.environ[_TOKEN], os.environ[_MODE]
        _read_again()


def _own_processes() -> list[psutil.Process]:
    """Return the processes, with theirs, of the cluster that this process has started."""
    node: Any = worker._global_node
    found: list[psutil.Process] = []
    for infos in node.all_processes.values() if node is not None else ():
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in (psutil.Process(info.process.pid) for info in infos):
                found += [process, *process.children(recursive=True)]
    return found


def _running(address: str | None) -> str | None:
    """Return HOST:PORT of the cluster to join; None to start one."""
    if address == "local":
        return None
    if address not in (None, "auto"):
        running = str(canonicalize_bootstrap_address(address))
        _check_answers(running)
        return running
    found = find_bootstrap_address(None)  # as `ray start` left it
    if address is None and found:
        try:
            _check_answers(found)
        except ConnectionError:  # it has ended
            found = None
    if address == "auto":
        if not found:
            raise ConnectionError("no Ray was started here: start one (`ray start --head`)")
        _check_answers(found)
    return found or None


def _check_answers(address: str) -> None:
    """Raise ConnectionError if nobody listens; Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS):
            pass
    except OSError as error:
        raise ConnectionError(
            f"nobody answers at {address} ({error.strerror or error}): start it there "
            "(`ray start --head`), correct RAY_ADDRESS, or unset it to have a Ray of our own"
        ) from error


def _join(address: str) -> None:
    """Connect to a cluster that listens. Raises ConnectionError if it refuses our token."""
    try:
        _ask(address)
    except ray.exceptions.AuthenticationError:
        if not AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
            raise ConnectionError(
                "it asks for a token and there is none here: copy its machine's "
                "~/.ray/auth_token, or set RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN "
                "(or start it with RAY_AUTH_MODE=disabled)"
            ) from None
        _use_tokens()  # as Ray does for a cluster that it finds by itself
        try:
            _ask(address)
        except ray.exceptions.AuthenticationError:
            raise ConnectionError(
                "it asks for another token than the one here: take its machine's "
                "~/.ray/auth_token, or set RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"
            ) from None
    ray.init(address=address, **_QUIET)


def _ask(address: str) -> None:
    """Ask a cluster for its session. Raises RayError, within 45 s."""
    GcsClient(address=address).internal_kv_get(b"session_name", b"session", timeout=CONNECT_SECONDS)


_QUIET: dict[str, Any] = {
    "include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR,
}  # fmt: skip


def _start() -> None:
    """Start a Ray of our own, which ends with this process.

    Linux ends Ray's processes with the *thread* that has started them. Racks start in threads that
    may end before them, so one thread of ours, which stays, starts Ray.
    """
    place = _place()
    if not {_MODE, _TOKEN, "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        # Ray would write one for this user, which every `ray start` then asks for.
        os.environ[_TOKEN] = _OWN_TOKEN
        _use_tokens()
    start = partial(ray.init, address="local", object_store_memory=OBJECT_STORE_BYTES, **_QUIET)
    with _loopback():
        _STARTER.submit(start, _temp_dir=place).result()


def _use_tokens() -> None:
    os.environ[_MODE] = "token"
    _read_again()


def _read_again() -> None:
    """Let Ray read its environment variables again; they changed since its import."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _place() -> str | None:
    """Return the folder for Ray's files; None for Ray's own choice. Raises RackError."""
    parent = get_default_system_temp_dir()
    short = len(os.fsencode(parent)) + SESSION_BYTES <= SOCKET_PATH_BYTES
    folder = Path(parent if short else "/tmp") / "ray"
    for path in (folder, folder.parent):
        if path.exists():
            if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
                raise RackError(
                    f"{path}: wanted a folder that this user can write, got one of "
                    f"{_owner(path)}: set RAY_TMPDIR to a short path of a folder of your own"
                )
            break
    return None if short else str(folder)


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except (KeyError, OSError):
        return f"user {path.stat().st_uid}"


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Let Ray use loopback as this machine's address, as on systems without clusters."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ.update(_LOOPBACK_ONLY)  # for the processes that Ray starts
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        for name in _LOOPBACK_ONLY:
            del os.environ[name]


@contextlib.contextmanager
def _without_handlers() -> Iterator[None]:
    """Keep this process's signal handlers, which Ray would replace.

    Ray sets one for SIGTERM, and some in C. Those print a trace, and can corrupt the heap if the
    signal comes during an allocation.
    """
    disabled = ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER
    setter = utils.set_sigterm_handler
    ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = disabled
        utils.set_sigterm_handler = setter


def _reason(error: Exception) -> str:
    """Return the reason of an error in one line; "Failed to connect" has it in its cause."""
    told = error.__cause__ if str(error).startswith("Failed to connect") else None
    return " ".join(str(told or error).split())


class Membership:
    """This process in a cluster: joined for its first rack, left after its last.

    A Ray that ran before is left running. Several racks may start at once. A server restarts
    racks, so it holds its membership meanwhile: every start and end of Ray leaves sockets open.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._racks, self._holds = 0, 0
        self._ours = False
        self._address = ""  # of the cluster's control service, GCS
        self._silent_since: float | None = None

    def join(self, chips: int) -> None:
        """Join for one more rack. Raises RackError."""
        with self._lock:
            if self._racks and not self.answers():
                raise RackError(f"{self._lost}; other racks of this process still leave it")
            if not self._racks and not self._still_there():
                self._ours = not ray.is_initialized()
                if self._ours:
                    join_ray(chips)
                self._address = ray.get_runtime_context().gcs_address
                self._silent_since = None
            self._racks += 1

    def leave(self) -> None:
        """Leave for one rack; the last one leaves the cluster."""
        with self._lock:
            self._racks -= 1
            self._leave_if_unused()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Stay in the cluster, once joined, even while there is no rack."""
        with self._lock:
            self._holds += 1
        try:
            yield
        finally:
            with self._lock:
                self._holds -= 1
                self._leave_if_unused()

    def _leave_if_unused(self) -> None:
        if not self._racks and not self._holds and self._ours and ray.is_initialized():
            leave_ray()

    def _still_there(self) -> bool:
        """Say whether the held cluster still answers; leave it if not."""
        if not self._holds or not self._ours or not ray.is_initialized():
            return False
        if self.answers():
            return True
        leave_ray()
        return False

    def answers(self) -> bool:
        """Say whether the cluster's GCS answers: without it every call to Ray hangs."""
        try:
            _check_answers(self._address)
        except ConnectionError:
            return False
        return True

    def check(self) -> None:
        """Raise RackError if the cluster has not answered for a while.

        Steps do not need the cluster, but a minute later Ray would end this process at once.
        """
        now = time.monotonic()
        if self.answers():
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now
        elif now - self._silent_since >= SILENT_SECONDS:
            raise RackError(f"{self._lost} for {SILENT_SECONDS:.0f} s")

    @property
    def _lost(self) -> str:
        return f"Ray's control service (GCS) at {self._address} has not answered"


MEMBERSHIP = Membership()
