"""The machines of a test bed, and the network between them.

A machine is a process with namespaces of its own (tools/testbed/init.py); its file system is in its
own memory. All end when their standard input does, and this process has its other end. So nothing
is left of a bed however this process ends: no process, mount, link or file.

The network is a switch in a namespace of its own that has no way out: a bridge of the kernel's, or,
where the bed is asked for weather, a process that every frame passes (tools/testbed/switch.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.testbed.needs import PATH, ROOT, check_namespaces, check_programs, wheels
from tools.testbed.switch import Weather

HERE = Path(__file__).resolve().parent
USER = "ubuntu"  # as in clusters/local.yaml
NETWORK = "10.0.0"
FIRST = 11
LAPTOP = "laptop"
WHEELS = "/srv/wheels"
MACHINE_BYTES = 4 << 30
PIP = (
    f"[global]\nno-index = true\nfind-links = {WHEELS}\ndisable-pip-version-check = true\n"
    "[install]\nno-compile = true\n"  # half of what an installation takes
)
KINDS = ("--pid", "--mount", "--net", "--uts", "--ipc")


class BedError(Exception):
    """A machine could not be made, or a command in it failed."""


@dataclass(slots=True, kw_only=True)
class Machine:
    """One machine: its name, its address, and its first process as this computer numbers it."""

    name: str
    address: str
    process: subprocess.Popen[str]
    pid: int
    environment: Mapping[str, str]

    def command(self, words: Sequence[str]) -> list[str]:
        """Return the command line that runs `words` in this machine, in the project's folder."""
        inside = ["nsenter", f"--target={self.pid}", *KINDS, "env", "-i", f"--chdir={ROOT}"]
        return [*inside, *(f"{name}={value}" for name, value in self.environment.items()), *words]

    def run(
        self, *words: str, check: bool = True, timeout_s: float | None = None, text: str = ""
    ) -> str:
        """Run a command to its end; return what it printed. Raises BedError if it fails."""
        done = subprocess.run(
            self.command(words), input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        if check and done.returncode:
            said = f"{self.name}: {' '.join(words)}: exit code {done.returncode}"
            raise BedError(f"{said}\n{done.stdout}")
        return done.stdout

    def kill(self) -> None:
        """Let this machine go at once, as if its power had failed."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class Bed:
    """Machines `host1`, `host2`, ... and a laptop with the project, on one network.

    Entering raises UnavailableError where this computer cannot have one. With `weather` the network
    can be made worse at any time (`change_weather`); it is slower then even in fine weather.
    """

    def __init__(
        self, hosts: int = 3, memory_bytes: int = MACHINE_BYTES, weather: Weather | None = None
    ) -> None:
        self._count, self._memory_bytes, self._weather = hosts, memory_bytes, weather
        self._ends = contextlib.ExitStack()
        self.hosts: list[Machine] = []
        self.laptop: Machine
        self._switch: subprocess.Popen[str]

    def __enter__(self) -> Bed:
        check_programs()
        check_namespaces()
        packages = wheels()
        with contextlib.ExitStack() as ends:
            self._switch = self._started(ends, self._switch_words())
            self._answer(self._switch)
            if self._weather is None:
                self._link(self._switch.pid, "link", "add", "hub", "type", "bridge")
                self._link(self._switch.pid, "link", "set", "hub", "up")
            names = [f"host{number + 1}" for number in range(self._count)]
            places = {name: f"{NETWORK}.{FIRST + i}" for i, name in enumerate(names)}
            places[LAPTOP] = f"{NETWORK}.{FIRST - 1}"
            self.laptop, key = self._machine(ends, LAPTOP, places, self._laptop())
            known = []
            for name in names:
                wanted = self._host(packages, key)
                machine, public = self._machine(ends, name, places, wanted)
                self.hosts.append(machine)
                known.append(f"{name},{machine.address} {public}")
            self.laptop.run("tee", str(Path.home() / ".ssh" / "known_hosts"), text="".join(known))
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def change_weather(self, weather: Weather) -> None:
        """Change the weather of a bed that was made with some."""
        assert self._weather is not None
        assert self._switch.stdin is not None
        self._switch.stdin.write(json.dumps(weather.values()) + "\n")
        self._switch.stdin.flush()
        self._answer(self._switch)

    def _laptop(self) -> dict[str, Any]:
        places = {str(ROOT), sys.prefix, sys.base_prefix}
        return {"user": None, "masked": [], "shared": {place: place for place in sorted(places)},
                "files": {}}  # fmt: skip

    def _host(self, packages: Path, authorized: str) -> dict[str, Any]:
        """Describe a bare machine: without the project, and with the Python that this one has."""
        path = f'PATH="{sys.base_prefix}/bin:$PATH"\n'
        return {
            "user": USER, "authorized": authorized, "masked": [str(Path.home()), str(ROOT)],
            "shared": {sys.base_prefix: sys.base_prefix, str(packages): WHEELS},
            "files": {"/etc/pip.conf": PIP, "/etc/profile.d/testbed.sh": path},
        }  # fmt: skip

    def _machine(
        self, ends: contextlib.ExitStack, name: str, places: Mapping[str, str],
        wanted: Mapping[str, Any],
    ) -> tuple[Machine, str]:  # fmt: skip
        """Start a machine, connect it, and return it with its public key."""
        init = [sys.executable, "-P", str(HERE / "init.py")]
        process = self._started(ends, ["unshare", *KINDS, "--fork", "--kill-child", *init])
        whole = {**wanted, "name": name, "hosts": dict(places), "memory_bytes": self._memory_bytes}
        assert process.stdin is not None
        process.stdin.write(json.dumps(whole) + "\n")
        process.stdin.flush()
        answer = self._answer(process)
        # Its first process is the only child of unshare, once that has made the namespaces.
        (pid,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        home = str(Path.home())
        environment = {
            "HOME": home, "USER": "root", "TERM": "dumb", "LANG": "C.UTF-8", "COLUMNS": "200",
            "PATH": f"{Path(sys.executable).parent}:{PATH}", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        machine = Machine(name=name, address=places[name], process=process, pid=int(pid),
                          environment=environment)  # fmt: skip
        self._connect(machine)
        return machine, answer["key"]

    def _connect(self, machine: Machine) -> None:
        """Give a machine its network interface, `eth0`."""
        if self._weather is None:
            port, end = f"p-{machine.name}", ["peer", "name", "eth0", "netns", str(machine.pid)]
            self._link(self._switch.pid, "link", "add", port, "type", "veth", *end)
            self._link(self._switch.pid, "link", "set", port, "master", "hub", "up")
        else:
            port = f"t-{machine.name}"
            self._link(self._switch.pid, "link", "set", port, "netns", str(machine.pid))
            self._link(machine.pid, "link", "set", port, "name", "eth0")
        self._link(machine.pid, "address", "add", f"{machine.address}/24", "dev", "eth0")
        self._link(machine.pid, "link", "set", "eth0", "up")

    def _switch_words(self) -> list[str]:
        """Return the command that holds the network's namespace."""
        if self._weather is None:
            return ["unshare", "--net", "sh", "-c", "echo '{}'; exec cat >/dev/null"]
        names = [LAPTOP, *(f"host{number + 1}" for number in range(self._count))]
        words = [sys.executable, "-P", str(HERE / "switch.py"), json.dumps(self._weather.values())]
        return ["unshare", "--net", *words, *(f"t-{name}" for name in names)]

    def _started(self, ends: contextlib.ExitStack, words: Sequence[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
        )
        ends.callback(self._end, process)
        return process

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        """End a machine or the switch, if it has not ended yet."""
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        process.wait()

    @staticmethod
    def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
        """Read a line that a process of the bed answers with. Raises BedError."""
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise BedError(f"{process.args!r}: ended with exit code {process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BedError(answer["error"])
        return answer

    @staticmethod
    def _link(pid: int, *words: str) -> None:
        """Run `ip` in the network of a process. Raises BedError."""
        done = subprocess.run(
            ["nsenter", f"--target={pid}", "--net", "ip", *words], capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise BedError(f"ip {' '.join(words)}: {done.stderr.strip()}")
