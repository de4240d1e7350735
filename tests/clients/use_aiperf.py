"""aiperf: a profile of a few streamed chats."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from kit import MODEL, URL, run, wanted

TOKENIZER = Path(__file__).parent.parent / "models" / "stories260K"


def profile() -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(str(Path(sys.executable).parent / "aiperf"), "profile", "--model", MODEL),
            *("--url", URL, "--endpoint-type", "chat", "--streaming"),
            *("--tokenizer", str(TOKENIZER), "--request-count", "5", "--concurrency", "1"),
            *("--synthetic-input-tokens-mean", "64", "--output-tokens-mean", "32"),
            *("--artifact-dir", folder, "--ui", "none"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        wanted(done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:])
        (path,) = Path(folder).rglob("profile_export_aiperf.json")
        report = json.loads(path.read_text())
    wanted(report["request_count"]["avg"] == 5, report["request_count"])
    return f"TTFT {report['time_to_first_token']['avg']:.1f} ms"


run(profile, package="aiperf")
