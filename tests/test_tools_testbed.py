"""The test bed: machines that are apart, a network with weather, and nothing left of either."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from testbed_kit import bed_or_skip

from tools.testbed import needs
from tools.testbed.bed import Bed, BedError
from tools.testbed.needs import UnavailableError
from tools.testbed.switch import Cables, Weather

ROOT = Path(__file__).resolve().parent.parent
EVERYONE = b"\xff" * 6


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with bed_or_skip(hosts=2, memory_bytes=3 << 30) as made:
        yield made


def on(bed: Bed, number: int, command: str) -> str:
    """What a command prints that the laptop's user runs on a machine over ssh."""
    address = bed.hosts[number - 1].address
    return bed.laptop.run("ssh", "-o", "BatchMode=yes", f"ubuntu@{address}", command)


def command_lines(processes: list[psutil.Process]) -> list[str]:
    """What processes were started with, also those on their way to another program."""
    return [" ".join(process.cmdline()) for process in processes]


@pytest.mark.slow
def test_machines_are_apart(bed: Bed) -> None:
    here = socket.gethostname()
    for number in (1, 2):
        said = on(bed, number, f"hostname; id -un; echo mark{number} | tee /tmp/a /dev/shm/a ~/a")
        assert said.split() == [f"host{number}", "ubuntu", f"mark{number}"]
    assert on(bed, 1, "cat /tmp/a /dev/shm/a ~/a").split() == ["mark1"] * 3
    assert on(bed, 1, "hostname").strip() != here == socket.gethostname()
    numbers = [set(on(bed, n, "ps -eo pid=").split()) for n in (1, 2)]
    assert all("1" in seen and len(seen) < 20 for seen in numbers)
    assert on(bed, 1, f"ls -A {ROOT}") == ""  # a bare machine does not have the project


@pytest.mark.slow
def test_machines_have_keys_of_their_own(bed: Bed) -> None:
    keys = {on(bed, number, "cat /etc/ssh/testbed_host_key.pub") for number in (1, 2)}
    assert len(keys) == 2
    strict = ["ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"]
    assert bed.laptop.run(*strict, "ubuntu@host2", "hostname").strip() == "host2"
    with pytest.raises(
        BedError, match=r"laptop: ssh .*: exit code 255\n.*Permission denied \(publickey\)"
    ):
        bed.laptop.run(*strict, "-o", "IdentityFile=none", "ubuntu@host1", "true")


@pytest.mark.slow
def test_machines_say_the_memory_that_they_are_told_and_have_no_way_out(bed: Bed) -> None:
    told = "import psutil; print(psutil.virtual_memory().total)"
    assert int(bed.laptop.run(sys.executable, "-c", told)) == 3 << 30
    assert f"MemTotal: {(3 << 30) >> 10} kB" in " ".join(on(bed, 1, "cat /proc/meminfo").split())
    assert on(bed, 1, "ip route").split()[:3] == ["10.0.0.0/24", "dev", "eth0"]
    assert "default" not in on(bed, 1, "ip route; ip -6 route")
    assert "unreachable" in on(bed, 1, "ip route get 192.0.2.1 2>&1 || true")


@pytest.mark.slow
def test_a_killed_machine_is_gone_with_all_that_it_ran() -> None:
    with bed_or_skip(hosts=2) as bed:
        on(bed, 1, "nohup sleep 1000 >/dev/null 2>&1 &")
        there = psutil.Process(bed.hosts[0].pid).children(recursive=True)
        assert any("sleep 1000" in line for line in command_lines(there))
        bed.hosts[0].kill()
        assert not psutil.wait_procs(there, timeout=20)[1]
        assert on(bed, 2, "hostname").strip() == "host2"
        refused = bed.laptop.run(
            "ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "ubuntu@host1", "true",
            check=False,
        )  # fmt: skip
        assert "host1" in refused


def traces(marks: set[int]) -> list[str]:
    """What is left of processes, mounts and links of a bed."""
    mounts = Path("/proc/self/mountinfo").read_text()
    links = os.listdir("/sys/class/net")
    left = [str(pid) for pid in marks if psutil.pid_exists(pid)]
    return left + [m for m in ("/upper", "/srv/wheels") if m in mounts] + [
        link for link in links if link.startswith(("p-", "t-", "hub"))
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("weather", ["None", "Weather(delay_s=0.001)"])
def test_nothing_is_left_of_a_bed_whose_process_was_killed(weather: str, tmp_path: Path) -> None:
    with bed_or_skip(hosts=1):
        pass  # or skipped with the reason
    script = (
        "import os, sys\n"
        "from tools.testbed.bed import Bed\n"
        "from tools.testbed.switch import Weather\n"
        f"with Bed(1, weather={weather}) as bed:\n"
        "    bed.laptop.run('sh', '-c', 'setsid sleep 1000 >/dev/null 2>&1 &')\n"
        "    print('up', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    before = set(os.listdir(tmp_path))
    driver = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert driver.stdout is not None
    assert driver.stdin is not None
    assert driver.stdout.readline() == b"up\n"
    processes = psutil.Process(driver.pid).children(recursive=True)
    assert any("sleep 1000" in line for line in command_lines(processes))
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stdin.close()
    driver.stdout.close()
    assert not psutil.wait_procs(processes, timeout=20)[1]
    assert traces({process.pid for process in processes}) == []
    assert set(os.listdir(tmp_path)) == before


@pytest.mark.slow
def test_weather_reaches_the_machines() -> None:
    """A connection takes two delays, on a slow computer more."""
    with bed_or_skip(hosts=1, weather=Weather()) as bed:
        probe = (
            "import socket, time; t = time.monotonic(); "
            "s = socket.create_connection(('10.0.0.11', 22)); print(time.monotonic() - t); "
            "print(s.recv(4))"
        )
        assert bed.laptop.run(sys.executable, "-c", probe).endswith("b'SSH-'\n")
        bed.change_weather(Weather(delay_s=0.2))
        assert float(bed.laptop.run(sys.executable, "-c", probe).split()[0]) >= 0.4
        bed.change_weather(Weather(loss=0.05, seed=1))
        assert on(bed, 1, "head -c 300000 /dev/zero | tr '\\0' x | wc -c").strip() == "300000"


def frame(to: bytes, source: bytes, length: int = 100) -> bytes:
    return (to + source).ljust(length, b".")


def address(number: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, number])


def given(cables: Cables, now_s: float) -> list[int]:
    return [due[0] for due in iter(lambda: cables.give(now_s), None)]


def test_a_frame_goes_to_whom_it_is_for_once_that_is_known() -> None:
    cables = Cables(3, Weather())
    cables.take(0, frame(EVERYONE, address(0)), 0.0)
    assert given(cables, 0.0) == [1, 2]
    cables.take(1, frame(address(2), address(1)), 0.0)
    assert given(cables, 0.0) == [0, 2]  # nobody knows where 2 is
    cables.take(2, frame(address(0), address(2)), 0.0)
    cables.take(1, frame(address(2), address(1)), 0.0)
    assert given(cables, 0.0) == [0, 2]
    cables.take(2, frame(address(2), address(2)), 0.0)
    assert given(cables, 0.0) == []


def test_delay_and_rate() -> None:
    cables = Cables(2, Weather(delay_s=1.0, rate_bytes_s=100.0))
    cables.take(0, frame(EVERYONE, address(0), 200), 0.0)
    cables.take(0, frame(EVERYONE, address(0), 100), 0.0)
    assert cables.wait_s(0.5) == 2.5
    assert given(cables, 2.9) == []
    assert given(cables, 3.0) == [1]
    assert given(cables, 3.9) == []
    assert given(cables, 4.0) == [1]  # it waited for the first one
    assert cables.wait_s(4.0) is None
    cables.change(Weather(delay_s=0.5))
    cables.take(1, frame(EVERYONE, address(1)), 9.0)
    assert given(cables, 9.5) == [0]


def test_losses_are_those_of_the_seed() -> None:
    def lost(seed: int) -> list[int]:
        cables = Cables(2, Weather(loss=0.25, seed=seed))
        out = []
        for number in range(4000):
            cables.take(0, frame(EVERYONE, address(0)), 0.0)
            out += [number] if not given(cables, 0.0) else []
        return out

    assert lost(3) == lost(3) != lost(4)
    assert 900 < len(lost(3)) < 1100


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"delay_s": -1.0}, "delay: wanted 0 or more seconds, got -1.0"),
        ({"loss": 1.0}, "loss: wanted a share of 0 to less than 1, got 1.0"),
        ({"rate_bytes_s": 0.0}, "rate: wanted more than 0 bytes a second, got 0.0"),
    ],
)
def test_a_weather_that_there_is_not(wrong: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        Weather(**wrong)  # type: ignore[arg-type]
    assert str(caught.value) == text


def script(folder: Path, name: str, text: str) -> None:
    """A program for PATH."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UnavailableError, match=r"wanted root, for namespaces .*; got user 1000"):
        needs.check_programs()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in needs.PROGRAMS.keys() - {"sshd", "rsync"}:
        script(tmp_path, name, "")
    monkeypatch.setattr(needs, "PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    wanted = r"wanted sshd, rsync \(Debian: apt-get install openssh-server rsync\)"
    with pytest.raises(UnavailableError, match=f"^{wanted}, and there is no apt-get$"):
        needs.check_programs()
    script(tmp_path, "apt-get", "echo more; echo no network; exit 100")
    monkeypatch.setattr(needs, "SYSTEMD", tmp_path / "none")
    with pytest.raises(UnavailableError, match=f"^{wanted}; apt-get update failed: no network$"):
        needs.check_programs()
    monkeypatch.setattr(needs, "SYSTEMD", tmp_path)
    with pytest.raises(UnavailableError, match=f"^{wanted}$"):
        needs.check_programs()
    script(tmp_path, "unshare", "echo Operation not permitted >&2; exit 1")
    with pytest.raises(
        UnavailableError, match="namespaces, overlays or links cannot be made: Operation not perm"
    ):
        needs.check_namespaces()


@pytest.mark.slow
def test_packages_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(needs, "requirements", lambda: ["no-such-package-of-ours"])
    (tmp_path / "lpu-rack" / "making-left" / "wheels").mkdir(parents=True)  # by one that was killed
    with pytest.raises(UnavailableError, match="pip could not get the project's needs: ERROR: "):
        needs.wheels()
    assert os.listdir(tmp_path / "lpu-rack") == ["lock"]
    monkeypatch.setattr(needs, "requirements", list)
    with pytest.raises(UnavailableError, match="pip could not get"):  # of nothing
        needs.wheels()


@pytest.mark.slow
def test_the_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "tools.testbed"]
    help_text = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert "ray up -y clusters/local.yaml" in help_text.stdout
    wrong = subprocess.run([*command, "--loss", "2"], cwd=ROOT, capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr) == (
        1, "testbed: loss: wanted a share of 0 to less than 1, got 2.0\n",
    )  # fmt: skip
