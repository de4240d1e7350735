"""Results name the code that made them."""

import subprocess

import pytest

from rack.system import provenance


def test_a_checkout_names_its_commit() -> None:
    provenance.code_version.cache_clear()
    code = provenance.code_version()
    if not (provenance.ROOT / ".git").exists():
        assert code["commit"] == "unknown"
        return
    command = ["git", "-C", str(provenance.ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert code["commit"].removesuffix("-dirty") == head


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance._commit() == "unknown"
