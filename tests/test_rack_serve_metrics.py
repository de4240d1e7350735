"""/metrics: every documented name, read by Prometheus' own parser, with the right numbers."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serve_kit import Served, Steps, chat, events, serving, tiny

from chip.errors import ChipError
from rack.serve.pacing import Unpaced

CHAT = "/v1/chat/completions"
GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
COUNTERS = ("prompt_tokens", "generation_tokens", "request_success")
TIMES = (
    "time_to_first_token", "inter_token_latency", "time_per_output_token", "e2e_request_latency",
    "request_time_per_output_token",
    "request_queue_time", "request_prefill_time", "request_decode_time",
)  # fmt: skip
SIZES = ("request_prompt_tokens", "request_generation_tokens")


class Scrape:
    """What one scrape says."""

    def __init__(self, response: httpx.Response) -> None:
        assert response.headers["content-type"].startswith("text/plain; version=")
        self.families = {one.name: one for one in text_string_to_metric_families(response.text)}
        self._values = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        labels = {"model_name": "tiny", **labels}
        return self._values[(name, *sorted(labels.items()))]


def ask(scenario: Callable[[Served], Awaitable[Any]], **options: Any) -> Any:
    async def run() -> Any:
        async with serving(**options) as served:
            return await scenario(served)

    return asyncio.run(run())


async def scrape(served: Served) -> Scrape:
    return Scrape(await served.client.get("/metrics"))


def test_every_documented_name_is_there_from_the_start() -> None:
    families = ask(scrape).families
    kinds = {f"vllm:{name}": "gauge" for name in GAUGES}
    kinds |= {f"vllm:{name}": "counter" for name in COUNTERS}
    kinds |= {f"vllm:{name}": "histogram" for name in SIZES}
    kinds |= {
        f"{clock}:{name}_seconds": "histogram" for clock in ("vllm", "rack") for name in TIMES
    }
    assert {name: families[name].type for name in kinds} == kinds
    labels = {key for one in kinds for sample in families[one].samples for key in sample.labels}
    assert labels == {"model_name", "finished_reason", "le"}


def test_corrected_vectors_are_counted_by_link(tmp_path: Path) -> None:
    """A link that makes no errors has no sample."""
    machine = tmp_path / "noisy.toml"
    machine.write_text(
        'name = "noisy"\ninherits = "groqrack"\n[errors]\n'
        'bit_error_rate = { value = 8e-6, source = "assumption: many, for a test" }\n'
        'seed = { value = 4, source = "assumption: one of those without a flagged vector" }\n'
    )
    name = "rack:link_corrected_vectors"

    async def scenario(served: Served) -> list[float]:
        assert (await scrape(served)).families[name].samples == []
        counts = []
        for _ in range(2):
            assert (await served.client.post(CHAT, json=chat(max_tokens=6))).status_code == 200
            samples = (await scrape(served)).families[name].samples
            assert {sample.name for sample in samples} == {f"{name}_total"}
            assert {sample.labels["rack"] for sample in samples} == {"0"}
            assert all(sample.labels["link"].startswith("C2C ") for sample in samples)
            (session,) = served.opened
            found = {sample.labels["link"]: sample.value for sample in samples}
            assert found == session.rack.corrected_vectors()
            counts.append(sum(found.values()))
        return counts

    first, second = ask(scenario, prepared=tiny(layout="1x2", hardware=str(machine)))
    assert 0 < first < second


def test_a_request_is_counted_when_it_ends() -> None:
    async def scenario(served: Served) -> None:
        body = (await served.client.post(CHAT, json=chat(max_tokens=4))).json()
        usage, got = body["usage"], await scrape(served)
        assert got("vllm:prompt_tokens_total") == usage["prompt_tokens"]
        assert got("vllm:generation_tokens_total") == 4
        assert got("vllm:request_success_total", finished_reason="length") == 1
        assert got("vllm:request_success_total", finished_reason="stop") == 0
        assert got("vllm:request_generation_tokens_sum") == 4
        assert got("vllm:request_prompt_tokens_sum") == usage["prompt_tokens"]
        assert got("rack:e2e_request_latency_seconds_sum") == pytest.approx(
            usage["total_time"], abs=1e-9
        )
        assert got("rack:request_queue_time_seconds_sum") == usage["queue_time"] == 0
        for clock in ("vllm", "rack"):
            value = {name: got(f"{clock}:{name}_seconds_sum") for name in TIMES}
            count = {name: got(f"{clock}:{name}_seconds_count") for name in TIMES}
            assert count.pop("inter_token_latency") == 3
            assert count.pop("time_per_output_token") == 3
            assert set(count.values()) == {1}
            first, latency = value["time_to_first_token"], value["e2e_request_latency"]
            assert first == pytest.approx(
                value["request_queue_time"] + value["request_prefill_time"]
            )
            assert value["inter_token_latency"] == pytest.approx(latency - first)
            assert value["time_per_output_token"] == value["inter_token_latency"]
            mean = value["request_time_per_output_token"]
            assert mean == pytest.approx((latency - first) / 3)
            assert value["request_decode_time"] == pytest.approx(latency - first)
            assert value["request_prefill_time"] > 0

    ask(scenario)


def test_emulated_time_to_the_first_token_is_the_prompt_and_one_step() -> None:
    async def scenario(served: Served) -> tuple[float, float]:
        body = (await served.client.post(CHAT, json=chat(max_tokens=1))).json()
        got = await scrape(served)
        assert got("rack:inter_token_latency_seconds_count") == 0
        assert got("rack:time_per_output_token_seconds_count") == 0
        # vLLM counts a request of one token too, as 0
        assert got("rack:request_time_per_output_token_seconds_count") == 1
        assert got("rack:request_time_per_output_token_seconds_sum") == 0
        cycles = body["x_rack"]["emulated_cycles"]
        seconds = (cycles["prompt"] + cycles["completion"]) / tiny().compiled.chip.clock_hz
        return got("rack:time_to_first_token_seconds_sum"), seconds

    counted, wanted = ask(scenario, prepared=tiny("timing"))
    assert counted == pytest.approx(wanted)


def test_gauges_while_requests_run_and_wait() -> None:
    steps = Steps(permits=1)

    async def scenario(served: Served) -> None:
        tasks = [asyncio.create_task(served.client.post(CHAT, json=chat())) for _ in range(3)]
        await asyncio.sleep(0)
        assert await asyncio.to_thread(steps.waiting.wait, 30)
        while served.runner.load < 3:
            await asyncio.sleep(0)
        got = await scrape(served)
        assert got("vllm:num_requests_running") == 1
        assert got("vllm:num_requests_waiting") == 2
        prompt = len(tiny().tokenizer.apply_chat_template(chat()["messages"]))
        assert got("vllm:kv_cache_usage_perc") == pytest.approx((prompt - 1) / 256)
        steps.release(100)
        await asyncio.gather(*tasks)

    ask(scenario, steps=steps)


def test_failed_and_abandoned_requests_are_counted_apart() -> None:
    steps = Steps()

    async def scenario(served: Served) -> None:
        steps.fail_next = ChipError("boom")
        assert (await served.client.post(CHAT, json=chat())).status_code == 500
        await served.until_ready()
        got = await scrape(served)
        assert got("vllm:request_success_total", finished_reason="error") == 1
        assert got("vllm:generation_tokens_total") == 0
        assert got("vllm:e2e_request_latency_seconds_count") == 0

    ask(scenario, steps=steps)


def test_buckets_tell_one_millisecond_tokens_apart() -> None:
    family = ask(scrape).families["rack:inter_token_latency_seconds"]
    edges = [float(s.labels["le"]) for s in family.samples if s.name.endswith("_bucket")]
    near = [edge for edge in edges if 0.0002 <= edge <= 0.004]
    assert len(near) >= 8
    assert all(later / earlier <= 1.51 for earlier, later in pairwise(near))


def test_http_requests_are_counted_by_route_and_class_of_status() -> None:
    steps = Steps()

    async def scenario(served: Served) -> Scrape:
        await served.client.post(CHAT, json=chat())
        for _ in range(2):
            await served.client.post(CHAT, json=chat(n=2))
        steps.fail_next = ChipError("boom")
        await served.client.post(CHAT, json=chat())
        await served.until_ready()
        for path in ("/no/such", "/another", "/v1/models/nope"):
            await served.client.get(path)
        await served.client.request("BREW", "/health")
        return Scrape(await served.client.get("/metrics"))

    got = {
        (s.labels["handler"], s.labels["method"], s.labels["status"]): s.value
        for s in ask(scenario, steps=steps).families["http_requests"].samples
        if s.name == "http_requests_total"
    }
    assert got == {
        (CHAT, "POST", "2xx"): 1, (CHAT, "POST", "4xx"): 2, (CHAT, "POST", "5xx"): 1,
        ("none", "GET", "4xx"): 2, ("/v1/models/{name:path}", "GET", "4xx"): 1,
        ("/health", "other", "4xx"): 1,
    }  # fmt: skip


class Late(Unpaced):
    """A pacer whose steps should have ended some seconds ago."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def wait(self) -> None:
        self.promised_seconds = time.perf_counter() - self.seconds


@pytest.mark.parametrize("stream", [False, True])
def test_lost_pace_is_told_counted_and_warned_of_once(stream: bool) -> None:
    late = Late(2.0)

    async def scenario(served: Served) -> None:
        for lost in (2.0, 3.0):
            late.seconds = lost
            response = await served.client.post(CHAT, json=chat(stream=stream))
            body = events(response.text)[-2] if stream else response.json()
            slipped = body["x_rack"]["slipped_seconds"]
            assert slipped.keys() == {"worst", "total"}
            assert lost <= slipped["total"] <= slipped["worst"]
        got = await scrape(served)
        assert got("rack:pace_slipped_seconds_total") >= 5.0
        assert got("rack:pace_slipped_worst_seconds") >= 3.0
        assert len(served.said) == 1
        assert served.said[0].startswith("WARNING: a token came 2.")
        assert "later than its emulated time" in served.said[0]

    ask(scenario, prepared=tiny("timing"), pacer=late)


def test_pace_that_is_kept_is_no_slip() -> None:
    async def scenario(served: Served) -> None:
        body = (await served.client.post(CHAT, json=chat())).json()
        assert body["x_rack"]["slipped_seconds"] == {"worst": 0.0, "total": 0.0}
        assert (await scrape(served))("rack:pace_slipped_seconds_total") == 0
        assert served.said == []

    ask(scenario, prepared=tiny("timing"), pacer=Late(-60.0))


def test_without_a_pace_nothing_is_lost() -> None:
    async def scenario(served: Served) -> Any:
        return (await served.client.post(CHAT, json=chat())).json()["x_rack"]["slipped_seconds"]

    assert ask(scenario) is None
