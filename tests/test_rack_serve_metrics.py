"""/metrics: every documented name, read by Prometheus' own parser, with the right numbers."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serve_kit import Served, Steps, chat, serving, tiny

from chip.errors import ChipError

CHAT = "/v1/chat/completions"
GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
COUNTERS = ("prompt_tokens", "generation_tokens", "request_success")
TIMES = (
    "time_to_first_token", "inter_token_latency", "time_per_output_token", "e2e_request_latency",
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
            assert set(count.values()) == {1}
            first, latency = value["time_to_first_token"], value["e2e_request_latency"]
            assert first == pytest.approx(
                value["request_queue_time"] + value["request_prefill_time"]
            )
            assert value["inter_token_latency"] == pytest.approx(latency - first)
            assert value["time_per_output_token"] == pytest.approx((latency - first) / 3)
            assert value["request_decode_time"] == pytest.approx(latency - first)
            assert value["request_prefill_time"] > 0

    ask(scenario)


def test_emulated_time_to_the_first_token_is_the_prompt_and_one_step() -> None:
    async def scenario(served: Served) -> tuple[float, float]:
        body = (await served.client.post(CHAT, json=chat(max_tokens=1))).json()
        got = await scrape(served)
        assert got("rack:inter_token_latency_seconds_count") == 0
        assert got("rack:time_per_output_token_seconds_count") == 0
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
