"""llm: the command-line program, with the server as one of its extra OpenAI models."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from kit import MODEL, QUESTION, URL, run, wanted

home = Path(tempfile.mkdtemp())
os.environ["LLM_USER_PATH"] = str(home)
entry = f"""\
- model_id: rack
  model_name: {MODEL}
  api_base: "{URL}/openai/v1"
  supports_schema: true
  supports_tools: true
"""
(home / "extra-openai-models.yaml").write_text(entry)


def llm(*arguments: str) -> str:
    command = [sys.executable, "-m", "llm", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    wanted(done.returncode == 0, done.stderr)
    return done.stdout


def chat() -> str:
    text = llm("-m", "rack", "--no-stream", "-o", "max_tokens", "16", QUESTION)
    wanted(text.strip(), text)
    return text


def stream() -> str:
    text = llm("-m", "rack", "-o", "max_tokens", "16", QUESTION)
    wanted(text.strip(), text)
    return text


def structured() -> str:
    text = llm("-m", "rack", "--no-stream", "--schema", "city, celsius int", QUESTION)
    wanted(set(json.loads(text)) == {"city", "celsius"}, text)
    return text


def tools() -> str:
    return llm("-m", "rack", "-T", "llm_version", "--chain-limit", "5", QUESTION) or "no text"


run(chat, stream, structured, tools, package="llm")
