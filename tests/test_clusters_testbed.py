"""clusters/local.yaml as it is, from `ray up` to `ray down`, on three machines of the test bed.

Each machine says it has so little memory that the model needs all three.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from testbed_kit import bed_or_skip

from interconnect.rings import available
from rack.run.config import RunConfig
from rack.run.session import Session, prepare
from rack.text.sampler import SamplingParams
from tools.testbed.bed import USER, Bed
from tools.testbed.switch import Weather

pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.slow]

FILE = "clusters/local.yaml"
MEMORY = 5 << 28  # two cards of the model fit, beside what Ray sets aside
MODEL, LAYERS, LAYOUT, CONTEXT, TOKENS = "llama-8b", 3, "3x2+4", 256, 4
SMALL, SMALL_TOKENS = "2x4+4", 40  # of the preset `tiny`: five cards fit on a machine
RAY = (sys.executable, "-m", "ray.scripts.scripts")
JOIN_SECONDS = 600.0  # for two machines to be set up, on a computer that does much else


def ray(bed: Bed, *words: str) -> str:
    """Run a command of Ray's on the laptop; return what it printed."""
    return bed.laptop.run(*RAY, *words)


def json_line(printed: str) -> dict[str, Any]:
    """The one line of a command's output that is JSON."""
    (line,) = [line for line in printed.splitlines() if line.startswith("{")]
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Bed]:
    """A bed whose machines are a cluster; `ray up` as the file's first lines say."""
    with bed_or_skip(hosts=3, memory_bytes=MEMORY, weather=Weather()) as bed:
        ray(bed, "up", "-y", FILE)
        until = time.monotonic() + JOIN_SECONDS
        while (seen := ray(bed, "exec", FILE, "ray status")).count("3 local.cluster.node") != 1:
            assert time.monotonic() < until, seen
            time.sleep(2.0)
        yield bed


def test_a_model_over_three_machines_gives_the_tokens_of_one(cluster: Bed) -> None:
    config = {"model": MODEL, "layers": LAYERS, "layout": LAYOUT, "max_model_len": CONTEXT}
    with Session(prepare(RunConfig(transport="local", **config))) as session:  # type: ignore[arg-type]
        params = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
        prompt = session.prepared.tokenizer.encode("Hello")
        wanted = session.engine.generate(prompt, params).run()
    flags = f"--layers {LAYERS} --layout {LAYOUT} --max-model-len {CONTEXT} --tokens {TOKENS}"
    words = ["benchmarks/hosts.py", MODEL, *flags.split(), "--json"]
    got = json_line(ray(cluster, "submit", FILE, *words))
    assert got["token_ids"] == wanted.token_ids
    assert got["data_hash"] == wanted.data_hash
    assert got["decode_cycles"] == wanted.decode_cycles
    assert got["prompt_cycles"] == wanted.prompt_cycles
    addresses = {f"tcp://{host.address}" for host in cluster.hosts}
    assert set(got["placed"]) == addresses
    assert all(len(set(card)) == 1 for card in got["cards"])  # a card is on one machine
    changes = sum(one != other for one, other in pairwise(got["placed"]))
    assert changes == len(addresses) - 1  # chips that follow each other are neighbours
    between = got["traffic"]["between machines"]
    # What the network's cards have sent is what the schedule sends, some headers, and Ray's talk.
    assert 0.5 < got["sent_bytes"] / (got["steps"] * between["bytes"]) < 3
    ways = {kind: how["way"] for kind, how in got["exchange"].items()}
    inside = "rings" if available() else "tcp with CURVE"
    assert ways == {"inside a machine": inside, "between machines": "tcp with CURVE"}


def test_a_verb_on_the_cluster(cluster: Bed) -> None:
    """As the file says: `ray exec` runs it on the head, which joins the cluster."""
    command = "RAY_ADDRESS=auto python -m rack.generate tiny --prompt Hello --max-tokens 4 --json"
    got = json_line(ray(cluster, "exec", FILE, command))
    assert got["transport"] == "ray"
    with Session(prepare(RunConfig(model="tiny", transport="local"))) as session:
        prompt = session.prepared.tokenizer.encode("Hello")
        wanted = session.engine.generate(prompt, SamplingParams(max_tokens=4)).run()
    assert (got["token_ids"], got["data_hash"]) == (wanted.token_ids, wanted.data_hash)


def test_a_machine_with_other_code_is_refused_by_name(cluster: Bed) -> None:
    """As after a change on one machine only: nothing is loaded, and all of it is said."""
    file = f"/home/{USER}/lpu-rack/rack/errors.py"
    last = cluster.hosts[-1]
    last.run("cp", "-p", file, "/tmp/before")
    last.run("sh", "-c", f"echo '# changed' >> {file}")
    flags = f"--layers {LAYERS} --layout {LAYOUT} --max-model-len {CONTEXT}"
    command = f"RAY_ADDRESS=auto python -m rack.generate {MODEL} {flags} --prompt x --max-tokens 1"
    said = ray(cluster, "exec", FILE, f"{command} || echo exit code $?")
    last.run("cp", "-p", "/tmp/before", file)
    assert "exit code 1" in said
    wanted = (
        rf"error: chip \d+ \(/home/{USER}/lpu-rack on {last.name}\) runs other code than the "
        r"driver: sources: wanted [0-9a-f]{64}, got [0-9a-f]{64}"
    )
    assert re.search(wanted, " ".join(said.split()).replace("- ", "-")), said
    assert "chips started" not in said


def test_a_lost_machine_s_chips_move_to_the_others(cluster: Bed) -> None:
    """A machine goes in the middle of an answer: the same tokens, in the same cycles.

    The network is a bad one, too: 2 ms from machine to machine, and a frame in 1,000 is lost.
    """
    cluster.change_weather(Weather(delay_s=0.002, loss=0.001))
    with Session(prepare(RunConfig(model="tiny", layout=SMALL, transport="local"))) as session:
        params = SamplingParams(max_tokens=SMALL_TOKENS, ignore_eos=True)
        prompt = session.prepared.tokenizer.encode("Hello")
        wanted = session.engine.generate(prompt, params).run()
    words = ["tests/lost_machine.py", "tiny", SMALL, "6", str(SMALL_TOKENS), "/tmp/lost"]
    with subprocess.Popen(
        cluster.laptop.command([*RAY, "submit", FILE, *words]), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        said = []
        for line in run.stdout:
            said.append(line)
            if line.startswith("{"):
                break
        here = json_line("".join(said))["placed"]
        lost = next(host for host in cluster.hosts[1:] if host.address in here)
        lost.kill()
        cluster.hosts[0].run("touch", "/tmp/lost")
        rest = run.stdout.read()
    assert run.returncode == 0, rest
    cluster.change_weather(Weather())
    got = json_line(rest)
    assert got["token_ids"] == wanted.token_ids
    assert got["data_hash"] == wanted.data_hash
    assert got["decode_cycles"] == wanted.decode_cycles
    (recovery,) = got["recoveries"]
    assert recovery["chips"] == [chip for chip, at in enumerate(here) if at == lost.address]
    assert recovery["replayed_cycles"] > 0
    left = {host.address for host in cluster.hosts if host is not lost}
    assert set(got["placed"]) <= left


def test_the_cluster_ends(cluster: Bed) -> None:
    """`ray down` ends Ray on the head, though a machine is gone; the others notice."""
    ray(cluster, "down", "-y", FILE)
    processes = cluster.hosts[0].run("ps", "-eo", "args")
    assert "sshd" in processes
    assert "/tmp/lpu-rack/ray/" not in processes
