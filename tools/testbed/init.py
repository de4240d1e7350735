"""The first process of a machine of the test bed: makes its file system, then stays.

Runs as process 1 of namespaces of its own, where everything it makes ends with it. The root is an
overlay on this computer's, and what is written goes to memory. Over it come a /dev, /proc, /sys,
/tmp, /run and /dev/shm of the machine's own, its name, its user, its keys and what it says of its
memory. A path that is masked is an empty folder there: a bare machine does not have the project.

Reads a description as one line of JSON from standard input and answers with a line once the machine
is up. Ends when standard input does: the driver has its other end, so no machine outlives it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BASE = Path("/mnt")  # only a place to mount on, before the root is changed
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
LINKS = {
    "fd": "/proc/self/fd", "ptmx": "pts/ptmx", "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
}  # fmt: skip
SSH_SECONDS = 20.0
USER_ID = 4000  # nobody's on this computer
SSHD = """\
ListenAddress 0.0.0.0
HostKey /etc/ssh/testbed_host_key
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
X11Forwarding no
MaxStartups 100
MaxSessions 100
"""


def run(*words: str) -> None:
    """Run a command of the system. Raises CalledProcessError."""
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)


def mount(kind: str, at: Path, options: str = "") -> None:
    """Mount a file system of a kind."""
    at.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", kind, *(["-o", options] if options else []), kind, str(at))


def bind(source: Path, at: Path, mode: str = "ro") -> None:
    """Mount a file or folder a second time; the machine cannot change it."""
    if source.is_dir():
        at.mkdir(parents=True, exist_ok=True)
    elif not at.exists():
        at.parent.mkdir(parents=True, exist_ok=True)
        at.touch()
    run("mount", "--bind", str(source), str(at))
    run("mount", "-o", f"remount,bind,{mode}", str(at))


def make_root(masked: list[str], shared: dict[str, str]) -> Path:
    """Make the machine's file system; return its root, on which nothing stands yet."""
    mount("tmpfs", BASE, "mode=755")
    upper, work, root = (BASE / name for name in ("upper", "work", "root"))
    for folder in (upper, work, root):
        folder.mkdir()
    mount("overlay", root, f"lowerdir=/,upperdir={upper},workdir={work}")
    for path in masked:
        mount("tmpfs", root / path.lstrip("/"), "mode=755")
    for path, mode in {"tmp": "1777", "var/tmp": "1777", "run": "755", "dev": "755"}.items():
        mount("tmpfs", root / path, f"mode={mode}")
    for name in DEVICES:
        bind(Path("/dev") / name, root / "dev" / name, "rw")
    for name, target in LINKS.items():
        (root / "dev" / name).symlink_to(target)
    mount("devpts", root / "dev" / "pts", "newinstance,ptmxmode=0666,mode=0620")
    mount("tmpfs", root / "dev" / "shm", "mode=1777")
    mount("proc", root / "proc")
    mount("sysfs", root / "sys", "ro")
    for source, at in shared.items():
        bind(Path(source), root / at.lstrip("/"))
    return root


def enter(root: Path) -> None:
    """Make `root` the root of this machine; the old one is gone from it."""
    os.chdir(root)
    run("pivot_root", ".", ".")
    run("umount", "-l", ".")
    os.chdir("/")


def name_machine(name: str, hosts: dict[str, str]) -> None:
    """Give this machine its name, and the others' addresses."""
    socket.sethostname(name)
    Path("/etc/hostname").write_text(name + "\n")
    lines = ["127.0.0.1 localhost", *(f"{address} {other}" for other, address in hosts.items())]
    for path, text in {"hosts": "\n".join(lines) + "\n", "resolv.conf": ""}.items():
        whole = Path("/etc") / path
        whole.unlink(missing_ok=True)  # it may be a link into /run
        whole.write_text(text)


def tell_memory(total_bytes: int) -> None:
    """Let everything that asks see a computer of that size, nearly all of it free."""
    total, free = total_bytes >> 10, int(0.95 * total_bytes) >> 10
    told = {"MemTotal": total, "MemFree": free, "MemAvailable": free, "Buffers": 0, "Cached": 0,
            "SReclaimable": 0, "Shmem": 0, "Active": 0, "Inactive": 0, "SwapTotal": 0,
            "SwapFree": 0}  # fmt: skip
    file = Path("/etc/testbed-meminfo")
    file.write_text("".join(f"{key + ':':16}{value:8} kB\n" for key, value in told.items()))
    bind(file, Path("/proc/meminfo"))


def add_user(user: str, authorized: str) -> None:
    """Make a user whom the given key lets in."""
    home = Path("/home") / user
    entries = {"passwd": f"{user}:x:{USER_ID}:{USER_ID}::{home}:/bin/bash",
               "group": f"{user}:x:{USER_ID}:",
               "shadow": f"{user}:*:19000:0:99999:7:::"}  # fmt: skip
    for name, line in entries.items():
        file = Path("/etc") / name
        others = [old for old in file.read_text().splitlines() if not old.startswith(f"{user}:")]
        file.write_text("\n".join([*others, line]) + "\n")
    shutil.copytree("/etc/skel", home)
    (home / ".ssh").mkdir(mode=0o700)
    (home / ".ssh" / "authorized_keys").write_text(authorized)
    run("chown", "-R", f"{USER_ID}:{USER_ID}", str(home))


def key(path: Path) -> str:
    """Make a key pair; return its public half."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "testbed", "-f", str(path))
    return Path(f"{path}.pub").read_text()


def serve_ssh() -> None:
    """Start sshd. Raises TimeoutError if it does not answer."""
    Path("/run/sshd").mkdir(mode=0o755)
    Path("/etc/ssh/sshd_config").write_text(SSHD)
    log = Path("/var/log/sshd.log").open("wb")  # noqa: SIM115  (as long as the machine)
    daemon = subprocess.Popen(
        ["/usr/sbin/sshd", "-D", "-e"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )
    until = time.monotonic() + SSH_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", 22), 1.0).close()
            return
        except OSError:
            if daemon.poll() is not None or time.monotonic() > until:
                said = Path("/var/log/sshd.log").read_text()
                raise TimeoutError(f"sshd does not answer: {said.strip()}") from None
            time.sleep(0.02)


def build(wanted: dict[str, Any]) -> dict[str, str]:
    """Make the machine; return what the driver asked to know."""
    # What is imported later would be looked for in the machine's own file system.
    enter(make_root(wanted["masked"], wanted["shared"]))
    name_machine(wanted["name"], wanted["hosts"])
    tell_memory(wanted["memory_bytes"])
    run("ip", "link", "set", "lo", "up")
    for path, text in wanted["files"].items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    if wanted["user"] is None:
        return {"key": key(Path.home() / ".ssh" / "id_ed25519")}
    add_user(wanted["user"], wanted["authorized"])
    public = key(Path("/etc/ssh/testbed_host_key"))
    serve_ssh()
    return {"key": public}


def main() -> int:
    """Be a machine for as long as standard input lasts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver sees to the end
    wanted = json.loads(sys.stdin.readline())
    try:
        answer = build(wanted)
    except (OSError, subprocess.CalledProcessError, TimeoutError) as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so the system buries whoever is left to us
    while sys.stdin.readline():
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
