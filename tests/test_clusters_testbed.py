"""clusters/local.yaml as it is, from `ray up` to `ray down`, on three machines of the test bed.

Each machine says it has so little memory that the model needs all three.
"""

from __future__ import annotations

import json
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
from tools.testbed.bed import Bed

pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.slow]

FILE = "clusters/local.yaml"
MEMORY = 5 << 28  # two cards of the model fit, beside what Ray sets aside
MODEL, LAYERS, LAYOUT, CONTEXT, TOKENS = "llama-8b", 3, "3x2+4", 256, 4
JOIN_SECONDS = 600.0  # for two machines to be set up, on a computer that does much else


def ray(bed: Bed, *words: str) -> str:
    """Run a command of Ray's on the laptop; return what it printed."""
    return bed.laptop.run(sys.executable, "-m", "ray.scripts.scripts", *words)


def json_line(printed: str) -> dict[str, Any]:
    """The one line of a command's output that is JSON."""
    (line,) = [line for line in printed.splitlines() if line.startswith("{")]
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Bed]:
    """A bed whose machines are a cluster; `ray up` as the file's first lines say."""
    with bed_or_skip(hosts=3, memory_bytes=MEMORY) as bed:
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


def test_the_cluster_ends(cluster: Bed) -> None:
    """The last test of this file: `ray down` ends Ray on the head; the others notice."""
    ray(cluster, "down", "-y", FILE)
    processes = cluster.hosts[0].run("ps", "-eo", "args")
    assert "sshd" in processes
    assert "/tmp/lpu-rack/ray/" not in processes
