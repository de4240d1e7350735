"""Clients that are light to install, each in its default way; the others run by `make clients`."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import DEADLINE_SECONDS, ServerProcess, server

pytestmark = pytest.mark.slow
SCRIPTS = Path(__file__).resolve().parent / "clients"
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 4096,
    "bos_token_id": 256, "eos_token_id": 257, "hidden_act": "silu",
}  # fmt: skip
"""A model whose context holds what agents say about their tools."""


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("double")
    (folder / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
    with server(
        str(folder), "--executor", "timing", "--transport", "local", "--layout", "1x1",
        "--served-model-name", "double",
    ) as running:  # fmt: skip
        yield running
        assert running.end(signal.SIGTERM) == 0


CHECKS = {
    "use_groq.py": 5, "use_openai.py": 8, "use_pydantic_ai.py": 5, "use_openai_agents.py": 5,
}  # fmt: skip


@pytest.mark.parametrize("script", CHECKS)
def test_a_client_works_in_its_default_way(double: ServerProcess, script: str) -> None:
    environment = {
        **os.environ, "RACK_URL": double.url, "RACK_MODEL": "double",
        "GROQ_BASE_URL": double.url, "GROQ_API_KEY": "any",
        "OPENAI_BASE_URL": f"{double.url}/openai/v1", "OPENAI_API_KEY": "any",
        "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script)], env=environment, capture_output=True, text=True,
        timeout=5 * DEADLINE_SECONDS, check=False,
    )  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"package"')]
    assert [row for row in rows if not row["ok"]] == [], done.stderr
    assert len(rows) == CHECKS[script], done.stderr
