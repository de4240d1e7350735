"""API keys: from a file, never shown, and what a server with keys refuses."""

import asyncio
import hmac
import io
from pathlib import Path
from typing import Any

import pytest
from serve_kit import Served, chat, serving

from rack.errors import ConfigError
from rack.serve.errors import ApiError
from rack.serve.keys import ANYONE, Keys, load_keys
from rack.serve.logs import RequestLog

SECRET = "gsk_do_not_show"


def test_any_key_will_do_without_keys() -> None:
    keys = Keys()
    assert keys.names == (ANYONE,)
    assert keys.check(None) == keys.check("Bearer x") == ANYONE


def test_a_key_goes_by_its_name() -> None:
    keys = Keys([("alice", "a"), ("bob", "b")])
    assert keys.names == ("alice", "bob")
    assert keys.check("Bearer a") == "alice"
    assert keys.check("bearer  b ") == "bob"
    for wrong in (None, "", "Bearer", "Bearer c", "Basic a", "a", "Bearer \udce4"):
        with pytest.raises(ApiError, match="Invalid API Key") as caught:
            keys.check(wrong)
        assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    Keys([("first", SECRET), ("second", "b"), ("third", "c")]).check(f"Bearer {SECRET}")
    assert len(compared) == 3
    assert {len(value) for pair in compared for value in pair} == {32}


def test_the_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"\ufeff# who may ask\n\nalice {SECRET}\n  other_key\n")
    named = load_keys(file)
    assert named == [("alice", SECRET), ("key-4", "other_key")]
    keys = Keys(named)
    assert keys.check(f"Bearer {SECRET}") == "alice"
    assert SECRET not in repr(vars(keys))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a b c", "{file}: line 1: wanted NAME KEY, got 3 words"),
        (b"# nobody\n", "{file}: wanted at least one API key, got none"),
        (b"alice \n", "{file}: line 1: wanted NAME KEY or KEY, got a space at its end"),
        (b"\xff", "{file}: wanted a file of API keys: not UTF-8"),
        (None, "{file}: wanted a file of API keys: No such file or directory"),
    ],
)
def test_a_wrong_file(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_keys(file)
    assert str(caught.value) == message.format(file=file)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ([("a b", SECRET)], "key name: wanted up to 64 of A-Z a-z 0-9 _ . -, got 'a b'"),
        ([("a", "x"), ("a", SECRET)], "key name 'a': given twice"),
        ([("a", "")], "key 'a': wanted a key, got an empty one"),
        ([("a", " ")], "key 'a': wanted a key, got an empty one"),
        ([("a", "''")], "key 'a': wanted a key, got an empty one"),
        ([("a", SECRET + " ")], "key 'a': wanted no space around it, got some"),
        ([("a", SECRET), ("b", SECRET)], "key 'b': another name has the same key"),
    ],
)
def test_wrong_keys(named: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Keys(named)
    assert str(caught.value) == message


def test_without_a_key_only_health_version_and_metrics_are_answered() -> None:
    out = io.StringIO()

    async def run() -> None:
        log = RequestLog(out)
        async with serving(keys=Keys([("alice", SECRET)]), log=log) as served:
            await scenario(served)
            log.flush()

    async def scenario(served: Served) -> None:
        posted: Any = [("/v1/chat/completions", chat()), ("/openai/v1/completions", {}),
                       ("/tokenize", {}), ("/detokenize", {})]  # fmt: skip
        for headers in ({}, {"authorization": "Bearer wrong"}):
            for path, body in posted:
                refused = await served.client.post(path, json=body, headers=headers)
                assert refused.status_code == 401
            assert (await served.client.get("/v1/models", headers=headers)).status_code == 401
        for path in ("/health", "/health/ready", "/version", "/metrics", "/openapi.json"):
            assert (await served.client.get(path)).status_code == 200
        good = {"authorization": f"Bearer {SECRET}"}
        answer = await served.client.post(posted[0][0], json=chat(), headers=good)
        assert answer.status_code == 200
        document = (await served.client.get("/openapi.json")).json()
        assert document["paths"]["/v1/models"]["get"]["security"] == [{"key": []}]
        assert "401" in document["paths"]["/tokenize"]["post"]["responses"]

    asyncio.run(run())
    assert '"key": "alice"' in out.getvalue()
    assert SECRET not in out.getvalue()
    assert "wrong" not in out.getvalue()


def test_a_file_of_keys_that_does_not_end() -> None:
    with pytest.raises(ConfigError, match="/dev/zero: wanted a file of API keys: it has more than"):
        load_keys(Path("/dev/zero"))
