"""Every file of examples/ as a user runs it, against a local server."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import ROOT, server

pytestmark = pytest.mark.slow
EXAMPLES = ROOT / "examples"
DEADLINE_SECONDS = 60.0
TINY = (
    *("tiny", "--executor", "timing", "--pace", "emulated", "--layout", "1x1", "--log", "none"),
    *("--served-model-name", "llama-3.1-8b-instant"),
)
NUMBER = r"(\d+\.\d+)"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server(*TINY) as running:
        yield running.url


def run(name: str, url: str, *arguments: str, **variables: str) -> str:
    """Run an example; gives what it printed."""
    environment = os.environ | {
        "GROQ_BASE_URL": url, "GROQ_API_KEY": "any",
        "OPENAI_BASE_URL": f"{url}/openai/v1", "OPENAI_API_KEY": "any",
    } | variables  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env=environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested_and_described() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    described = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f'run("{path.name}"' in source
        assert f"`{path.name}`" in described


def test_benchmark(url: str) -> None:
    out = run("benchmark.py", url, "--requests", "5", "--max-tokens", "8")
    client, rack, total = out.splitlines()
    form = rf" +mean +{NUMBER} ms  p50 +{NUMBER} ms  p95 +{NUMBER} ms  CV {NUMBER}"
    waited, took = re.fullmatch("client" + form, client), re.fullmatch("rack" + form, rack)
    assert waited is not None
    assert took is not None
    mean, p50, p95, variation = map(float, took.groups())
    assert mean == p50 == p95 > 0
    assert variation == 0
    assert float(waited[2]) > p50  # the server may be slower than its rack, never faster
    assert re.fullmatch(rf"{NUMBER} requests/s, {NUMBER} tokens/s", total)


def test_time_to_first_token(url: str) -> None:
    out = run("time_to_first_token.py", url, "--requests", "2", "--max-tokens", "8")
    found = re.findall(
        rf"first token after {NUMBER} ms, of which the rack spent {NUMBER} ms .* (\d+) tokens", out
    )
    assert len(found) == 2
    for first, prompt, tokens in found:
        assert float(first) > float(prompt) > 0
        assert 0 < int(tokens) <= 8
    assert re.search(rf"time to first token, median: {NUMBER} ms\nbetween tokens, median: ", out)


def test_backoff(tmp_path: Path) -> None:
    limits = tmp_path / "limits.toml"
    limits.write_text("[default]\nrequests_per_minute = 60\n", encoding="utf-8")
    out = ""
    with server(*TINY, "--limits", str(limits)) as limited:
        out = run("backoff.py", limited.url, "--requests", "62")
    assert "62 of 62 answered" in out
    waits = re.findall(rf"^429: .*waiting {NUMBER} s$", out, re.MULTILINE)
    assert waits
    assert all(float(wait) <= 2 for wait in waits)


def test_async_batch(url: str) -> None:
    out = run("async_batch.py", url, "--prompts", "16", "--at-once", "4", "--max-tokens", "4")
    assert re.match(rf"16 answers in {NUMBER} s, {NUMBER} a second\nfirst: '.+'\n", out)


def test_latency_monitor(url: str) -> None:
    out = run("latency_monitor.py", url, "--requests", "12", "--window", "5")
    assert re.search(rf"after +10: p50 +{NUMBER} ms  p99 +{NUMBER} ms  ok\nafter +12: ", out)
    assert "0 of 12 requests with p99 above 1000 ms" in out
    out = run("latency_monitor.py", url, "--requests", "3", "--budget-ms", "0.001")
    assert "OVER BUDGET" in out
    assert "3 of 3 requests" in out


def test_migrate_from_openai(url: str) -> None:
    out = run("migrate_from_openai.py", url)
    assert "models: tiny, llama-3.1-8b-instant" in out
    assert "same seed, same text: True" in out
    source = (EXAMPLES / "migrate_from_openai.py").read_text(encoding="utf-8")
    code = source.partition('"""\n')[2].partition('"""\n')[2]
    assert "base_url" not in code
    assert "127.0.0.1" not in code


def test_routing(url: str) -> None:
    with server(*TINY) as other:
        out = run("routing.py", url, LATENCY_URL=url, BATCH_URL=other.url)
    routes = re.findall(rf"^(\w+) +-> (\w+) +{NUMBER} ms$", out, re.MULTILINE)
    assert [route[:2] for route in routes] == [
        ("interactive", "latency"), ("batch", "batch"),
    ] * 2  # fmt: skip


def test_routing_around_a_backend_that_is_away(url: str) -> None:
    out = run("routing.py", url, LATENCY_URL="http://127.0.0.1:9", BATCH_URL=url)
    assert out.count("the latency backend cannot: Connection error.; trying the batch backend") == 2
    assert len(re.findall("interactive -> batch", out)) == 2
