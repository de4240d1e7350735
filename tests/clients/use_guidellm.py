"""guidellm: a synchronous benchmark of a few requests."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from kit import MODEL, URL, run, wanted

TOKENIZER = Path(__file__).parent.parent / "models" / "stories260K"


def benchmark() -> str:
    command = [
        *(str(Path(sys.executable).parent / "guidellm"), "run"),
        *("--backend", f"kind=openai_http,target={URL},model={MODEL}"),
        *("--profile", "kind=synchronous", "--constraint", "kind=max_requests,count=5"),
        *("--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=32"),
        *("--tokenizer", f"kind=huggingface_auto,model={TOKENIZER}"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=600, check=False,
            env={**os.environ, "COLUMNS": "200"},
        )  # fmt: skip
        wanted(done.returncode == 0, done.stderr[-2000:])
        report = json.loads(next(Path(folder).glob("*.json")).read_text())
    requests = report["benchmarks"][0]["requests"]
    counts = {key: len(value) for key, value in requests.items() if isinstance(value, list)}
    wanted(counts["successful"] == 5, counts)
    return str(counts)


run(benchmark, package="guidellm")
