"""Ray as users have it: one of our own in any folder, one started by hand, one that dies."""

from __future__ import annotations

import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from verb_process import DEADLINE_SECONDS, ROOT, Verb, wait_for

from rack.errors import RackError
from rack.run.config import RunConfig
from rack.run.session import Session, prepare
from rack.text.sampler import SamplingParams

ray = pytest.importorskip("ray")
from rack.run import membership  # noqa: E402  (imports ray)

pytestmark = [pytest.mark.ray, pytest.mark.slow]
TINY = ("tiny", "--transport", "ray", "--layout", "2x1")
GENERATE = ("-m", "rack.generate", *TINY, "--prompt", "hi", "--max-tokens", "2")
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short path, for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="rt-", dir="/tmp") as folder:
        yield Path(folder)


def listening(process: psutil.Process) -> list[str]:
    try:
        found = process.net_connections("inet")
    except psutil.Error:
        return []
    return [one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN]


def actors(verb: Verb) -> list[psutil.Process]:
    return [one for one in verb.others() if any("ChipActor" in word for word in one.cmdline())]


def test_a_ray_of_our_own(place: Path, tmp_path: Path) -> None:
    """From a folder with other code in it, a deep TMPDIR, an empty HOME; then it is killed."""
    decoy, deep, home = tmp_path / "checkout", tmp_path / ("d" * 100), tmp_path / "home"
    for folder in (decoy, deep, home):
        folder.mkdir()
    for package in ("rack", "chip"):
        (decoy / package).mkdir()
        (decoy / package / "__init__.py").write_text("raise ImportError('the wrong one')")
    words = ("-P", "-m", "rack.serve", *TINY, "--port", "0")
    environment = {"HOME": str(home), "PYTHONPATH": str(ROOT)}
    running = Verb(deep, *words, cwd=decoy, **environment)
    try:
        url = running.said("ready: ").split()[-1]
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=DEADLINE_SECONDS)
        assert answer.status_code == 200, answer.text
        everyone = [psutil.Process(running.process.pid), *running.others()]
        addresses = {ip for one in everyone for ip in listening(one)}
        assert len(everyone) > 5
        assert addresses
        assert addresses <= set(LOOPBACK), addresses
        assert list(home.iterdir()) == []  # no token that a later `ray start` would ask for
        first, *_ = actors(running)
        first.kill()
        line = running.said("error: rack 0: chip ")
        assert "between steps: its process ended" in line
        assert "starting it again now" in line
        running.said("rack 0 is ready again")
        again = httpx.post(f"{url}/v1/completions", json=body, timeout=DEADLINE_SECONDS)
        assert again.json()["choices"] == answer.json()["choices"]
        running.process.kill()
        wait_for(lambda: not running.others())
        assert running.process.wait(DEADLINE_SECONDS) == -signal.SIGKILL
    finally:
        running.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def by_hand(place: Path) -> Iterator[str]:
    """A Ray started as a user does who has a token; gives its address, HOME is `place`."""
    (place / ".ray").mkdir()
    (place / ".ray" / "auth_token").write_text("5" * 32)
    port = free_port()
    command = "from ray.scripts.scripts import main; main()"
    words = (
        "start", "--head", "--block", f"--port={port}", "--include-dashboard=false",
        "--object-store-memory=80000000", "--num-cpus=4", "--disable-usage-stats",
    )  # fmt: skip
    running = Verb(place, "-c", command, *words, HOME=str(place), RAY_TMPDIR=str(place))
    try:
        running.until(lambda: (place / "ray" / "ray_current_cluster").exists())
        yield f"127.0.0.1:{port}"
    finally:
        running.kill()
        wait_for(lambda: not running.others())


def test_a_ray_that_was_started_by_hand(by_hand: str, place: Path, tmp_path: Path) -> None:
    def run(home: Path, address: str) -> tuple[int, str]:
        verb = Verb(tmp_path, *GENERATE, HOME=str(home), RAY_ADDRESS=address, RAY_TMPDIR=str(place))
        try:
            _, told = verb.process.communicate(timeout=2 * DEADLINE_SECONDS)
        finally:
            verb.kill()
        return verb.process.returncode, told

    code, told = run(place, by_hand)
    assert code == 0, told
    code, told = run(tmp_path, by_hand)
    assert code == 1
    wanted = (
        f"error: Ray at {by_hand}: it asks for a token and there is none here: copy its machine"
    )
    assert told.splitlines()[-1].startswith(wanted)
    assert "Traceback" not in told
    dead = f"127.0.0.1:{free_port()}"
    code, told = run(place, dead)
    assert code == 1
    assert told.splitlines()[-1].startswith(f"error: Ray at {dead}: nobody answers at ")


def test_a_lost_control_service_ends_the_rack_and_the_next_one_starts(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "SILENT_SECONDS", 0.2)
    monkeypatch.setenv("RAY_TMPDIR", str(place))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    prepared = prepare(RunConfig(model="tiny", layout="2x1", transport="ray"))
    hashes = []
    for _ in range(2):
        with Session(prepared) as session:
            completion = session.engine.generate([1, 2, 3], SamplingParams(max_tokens=2)).run()
            hashes.append(completion.data_hash)
            session.rack.check()
            (gcs,) = (
                child
                for child in psutil.Process().children()
                if Path(child.cmdline()[0]).name == "gcs_server"
            )
            gcs.kill()
            gcs.wait(DEADLINE_SECONDS)
            with pytest.raises(RackError, match="GCS"):
                wait_for(lambda: session.rack.check())
    assert hashes[0] == hashes[1]
    assert not ray.is_initialized()
