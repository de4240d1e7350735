"""Rate limits: the buckets, the file, and what clients see of them."""

import asyncio
from pathlib import Path
from typing import Any

import groq
import httpx
import pytest
from serve_kit import Served, Steps, chat, serving

from chip.errors import ChipError
from rack.errors import ConfigError
from rack.serve.errors import ApiError
from rack.serve.keys import Keys
from rack.serve.limits import WINDOWS, Bucket, Limiter, duration, load_limits

CHAT = "/openai/v1/chat/completions"
KEYS, MODELS = ("alice", "bob"), ("tiny", "other")


class Clock:
    """Time that stands still until told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def limiter(clock: Clock | None = None, **limits: int) -> Limiter:
    return Limiter(lambda key, model: limits, clock or Clock())


def refusal(one: Limiter, tokens: int, key: str = "alice") -> ApiError:
    with pytest.raises(ApiError) as caught:
        one.reserve(key, "tiny", tokens)
    return caught.value


def test_groqclouds_own_example() -> None:
    """Limit 6000, used 5465, requested 1064: GroqCloud says to try again in 5.289 s."""
    clock = Clock()
    one = limiter(clock, tokens_per_minute=6000)
    one.reserve("alice", "tiny", 5465)
    error = refusal(one, 1064)
    assert error.status == 429
    assert error.body()["error"] == {
        "message": "Rate limit reached for model `tiny` in organization `alice` on tokens per "
        "minute (TPM): Limit 6000, Used 5465, Requested 1064. Please try again in 5.29s.",
        "type": "tokens", "code": "rate_limit_exceeded", "param": None,
    }  # fmt: skip
    assert error.headers == {"retry-after": "6"}
    clock.now += 5.28
    refusal(one, 1064)
    clock.now += 0.011
    one.reserve("alice", "tiny", 1064)


def test_requests_of_a_day_come_back_one_by_one() -> None:
    """30 of 14,400 used: GroqCloud's documentation shows a reset in 2m59.56s."""
    clock = Clock()
    one = limiter(clock, requests_per_day=14_400)
    for _ in range(30):
        one.reserve("alice", "tiny", 1)
    clock.now += 0.44
    assert one.headers("alice", "tiny") == {
        "x-ratelimit-limit-requests": "14400",
        "x-ratelimit-remaining-requests": "14370",
        "x-ratelimit-reset-requests": "2m59.56s",
    }


def test_requests_per_minute() -> None:
    clock = Clock()
    one = limiter(clock, requests_per_minute=2, tokens_per_day=10_000)
    one.reserve("alice", "tiny", 10)
    one.reserve("alice", "tiny", 10)
    error = refusal(one, 10)
    assert error.kind == "requests"
    assert "requests per minute (RPM): Limit 2, Used 2, Requested 1. Please try again in 30s." in (
        error.message
    )
    clock.now += 30
    one.reserve("alice", "tiny", 10)


def test_the_longest_wait_is_told_and_nothing_is_taken() -> None:
    one = limiter(requests_per_minute=1, tokens_per_day=86_400)
    one.reserve("alice", "tiny", 86_000)
    error = refusal(one, 500)
    assert (error.kind, error.headers["retry-after"]) == ("tokens", "100")
    assert error == refusal(one, 500) or str(error) == str(refusal(one, 500))


def test_keys_and_models_have_their_own_buckets() -> None:
    one = limiter(requests_per_minute=1)
    for key, model in (("alice", "tiny"), ("bob", "tiny"), ("alice", "other")):
        one.reserve(key, model, 1)
    refusal(one, 1)
    refusal(one, 1, key="bob")


def test_settling() -> None:
    one = limiter(tokens_per_minute=100, requests_per_day=10)
    left = lambda: tuple(  # noqa: E731
        one.headers("alice", "tiny")[f"x-ratelimit-remaining-{what}"]
        for what in ("requests", "tokens")
    )
    used, failed = one.reserve("alice", "tiny", 60), one.reserve("alice", "tiny", 40)
    assert left() == ("8", "0")
    used.settle(30)
    assert left() == ("8", "30")
    failed.settle(None)
    assert left() == ("9", "70")
    failed.settle(50)  # settled already
    assert left() == ("9", "70")
    one.reserve("alice", "tiny", 10).settle(90)  # more than it asked for, without max_tokens
    assert left() == ("8", "0")


def test_what_never_fits_is_too_large() -> None:
    error = refusal(limiter(tokens_per_minute=100), 101)
    assert (error.status, error.kind, error.code) == (413, "tokens", "rate_limit_exceeded")
    assert error.message == (
        "Request too large for model `tiny` in organization `alice` on tokens per minute (TPM): "
        "Limit 100, Requested 101; please reduce your message size or max_tokens"
    )


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (7.66, "7.66s"), (0.0001, "0.001s"), (59.9999, "1m0s"), (179.56, "2m59.56s"),
     (60, "1m0s"), (3600, "1h0m0s"), (86_399.5, "23h59m59.5s"), (5.29, "5.29s")],
)  # fmt: skip
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_a_bucket_never_goes_below_empty() -> None:
    bucket = Bucket(WINDOWS[0], 60)
    bucket.add(5, 0.0)
    assert bucket.used(3.0) == 2
    bucket.add(-10, 3.0)
    assert bucket.used(3.0) == 0
    assert bucket.wait(60, 3.0) == 0
    assert bucket.wait(61, 3.0) == 1


def test_the_file(tmp_path: Path) -> None:
    file = tmp_path / "limits.toml"
    file.write_text(
        "[default]\nrequests_per_minute = 1\ntokens_per_day = 5\n"
        "[models.tiny]\nrequests_per_minute = 2\n[keys.bob]\nrequests_per_minute = 3\n"
    )
    limits = load_limits(file, KEYS, MODELS)
    assert limits("alice", "other") == {"requests_per_minute": 1, "tokens_per_day": 5}
    assert limits("alice", "tiny") == {"requests_per_minute": 2, "tokens_per_day": 5}
    assert limits("bob", "tiny") == {"requests_per_minute": 3, "tokens_per_day": 5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "wanted a TOML file, got "),
        ("[limits]", "limits: wanted default, models or keys"),
        ("default = 1", "default: wanted a table, got 1"),
        ("models = 1", "models: wanted tables, got 1"),
        ("[models.gpt]", "models.gpt: wanted one of tiny, other"),
        ("[keys.eve]", "keys.eve: wanted one of alice, bob"),
        ("[default]\nrpm = 1", "default.rpm: wanted one of requests_per_minute, requests_per_day"),
        ("[keys.bob]\ntokens_per_day = 0", "keys.bob.tokens_per_day: wanted an integer above 0"),
        ("[default]\ntokens_per_day = true", "default.tokens_per_day: wanted an integer above 0"),
    ],
)
def test_a_wrong_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "limits.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_limits(file, KEYS, MODELS)
    assert str(caught.value).startswith(f"{file}: {message}")


def ask(scenario: Any, **options: Any) -> Any:
    async def run() -> Any:
        async with serving(keys=Keys([("alice", "key")]), **options) as served:
            served.client.headers["authorization"] = "Bearer key"
            return await scenario(served)

    return asyncio.run(run())


def remaining(response: httpx.Response) -> tuple[int, int]:
    requests, tokens = (
        int(response.headers[f"x-ratelimit-remaining-{what}"]) for what in ("requests", "tokens")
    )
    return requests, tokens


def test_headers_on_every_answer_and_only_good_ones_count() -> None:
    one = limiter(requests_per_day=100, tokens_per_minute=1000)

    async def scenario(served: Served) -> None:
        listed = await served.client.get("/v1/models")
        assert remaining(listed) == (100, 1000)
        good = await served.client.post(CHAT, json=chat())
        used = good.json()["usage"]["total_tokens"]
        assert remaining(good) == (99, 1000 - used)
        assert good.headers["x-ratelimit-limit-tokens"] == "1000"
        assert good.headers["x-ratelimit-reset-requests"] == "14m24s"
        assert "retry-after" not in good.headers
        for bad in (chat(n=2), chat(model="gpt"), chat("x" * 300)):
            response = await served.client.post(CHAT, json=bad)
            assert response.status_code in (400, 404)
            assert remaining(response) == (99, 1000 - used)
        streamed = await served.client.post(CHAT, json=chat(stream=True))
        asked = streamed.headers["x-ratelimit-remaining-tokens"]  # sent while it was running
        assert int(asked) == 1000 - 2 * used
        nobody = await served.client.get("/v1/models", headers={"authorization": "Bearer no"})
        assert not [name for name in nobody.headers if name.startswith("x-ratelimit")]

    ask(scenario, limiter=one)


def test_a_failed_request_does_not_count() -> None:
    steps = Steps()

    async def scenario(served: Served) -> None:
        steps.fail_next = ChipError("boom")
        failed = await served.client.post(CHAT, json=chat())
        assert failed.status_code == 500
        assert remaining(failed) == (100, 1000)

    ask(scenario, limiter=limiter(requests_per_day=100, tokens_per_minute=1000), steps=steps)


def test_what_the_groq_sdk_makes_of_it() -> None:
    clock = Clock()

    async def scenario(served: Served) -> None:
        async with groq.AsyncGroq(
            base_url="http://rack", api_key="key", http_client=served.client, max_retries=0
        ) as client:
            create = client.chat.completions.with_raw_response.create
            messages: Any = [{"role": "user", "content": "hi"}]
            options: Any = {"model": "tiny", "messages": messages, "max_tokens": 4}
            first = await create(**options)
            assert first.headers["x-ratelimit-remaining-tokens"] == "8"
            with pytest.raises(groq.RateLimitError) as caught:
                await create(**options)
            assert caught.value.response.headers["retry-after"] == "30"
            assert "on tokens per minute (TPM): Limit 32, Used 24, Requested 24" in str(
                caught.value
            )
            clock.now += 30
            await create(**options)

    ask(scenario, limiter=limiter(clock, tokens_per_minute=32))


def test_a_file_of_limits_that_does_not_end() -> None:
    text = "/dev/zero: wanted a TOML file, got it is no regular file"
    with pytest.raises(ConfigError, match=text):
        load_limits(Path("/dev/zero"), ("alice",), ("tiny",))
