"""What a test bed needs of this computer, and how it comes by it.

Programs of the system come from Debian packages, which root has installed if they are missing and
nothing would be started by that. Python packages come from the usual index, once: the machines
of the bed have no way out, so their pip gets a folder with all that pyproject.toml asks for. It is
kept in the user's cache, by what is in it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {
    "sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync", "ip": "iproute2",
    "unshare": "util-linux", "nsenter": "util-linux", "pivot_root": "util-linux",
    "make": "make", "cc": "gcc",
}  # fmt: skip
"""Program -> the Debian package that has it."""
SYSTEMD = Path("/run/systemd/system")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class UnavailableError(Exception):
    """This computer cannot have a test bed; the text says why."""


def check_programs() -> None:
    """Install the programs that are missing. Raises UnavailableError."""
    if os.geteuid() != 0:
        raise UnavailableError(f"wanted root, for namespaces and mounts; got user {os.geteuid()}")
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if not missing:
        return
    packages = sorted({PROGRAMS[name] for name in missing})
    wanted = f"wanted {', '.join(missing)} (Debian: apt-get install {' '.join(packages)})"
    if shutil.which("apt-get") is None:
        raise UnavailableError(f"{wanted}, and there is no apt-get")
    if SYSTEMD.exists():  # which would start an sshd for this computer
        raise UnavailableError(wanted)
    for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = _attempt(["apt-get", "-qq", *words])
        if done.returncode:
            raise UnavailableError(f"{wanted}; apt-get {words[0]} failed: {_last(done)}")


def check_namespaces() -> None:
    """Raise UnavailableError if this process may not make namespaces and overlays."""
    kinds = ["--pid", "--mount", "--net", "--uts", "--ipc", "--fork", "--kill-child"]
    script = (
        "mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w /mnt/r && "
        "mount -t overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w overlay /mnt/r && "
        "ip link add v0 type veth peer name v1 && ip link add b0 type bridge"
    )
    done = _attempt(["unshare", *kinds, "sh", "-c", script])
    if done.returncode:
        raise UnavailableError(f"namespaces, overlays or links cannot be made: {_last(done)}")


def requirements() -> list[str]:
    """Return what pip needs to build and install the project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [*project["build-system"]["requires"], *project["project"]["dependencies"]]


def wheels() -> Path:
    """Return a folder with every package that the project needs. Raises UnavailableError."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lpu-rack"
    wanted = requirements()
    what = "\n".join([sys.version, sysconfig.get_platform(), *wanted])
    ready = cache / f"wheels-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.is_dir():
            for left in cache.glob("making-*"):  # of a process that was killed
                shutil.rmtree(left)
            _make_wheels(cache, wanted, ready)
    return ready


def _make_wheels(cache: Path, wanted: list[str], ready: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="making-", dir=cache) as making:
        folder = Path(making) / "wheels"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        done = _attempt([*pip, "wheel", "--wheel-dir", str(folder), *wanted])
        if done.returncode:
            raise UnavailableError(f"pip could not get the project's needs: {_last(done)}")
        folder.rename(ready)


def _attempt(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program that asks nothing; return how it ended, and all that it printed."""
    return subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )  # fmt: skip


def _last(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that a program printed."""
    lines = done.stdout.strip().splitlines()
    return lines[-1] if lines else "it said nothing"
