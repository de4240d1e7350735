"""Run real clients against a server of this checkout: `make clients`, or `run.py NAME ...`.

Each client gets an environment of its own (a venv, or node_modules) under `.clients/`, with the
versions named here, so that what is installed for one does not change another. The server has a
model without weights (`--executor timing`), by its id on GroqCloud: random tokens, and random JSON
where a schema or a tool's parameters constrain it. `--model gemma2-9b-it` takes another than
llama-8b. Prints a table; exits with 1 if a check failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORK = ROOT / ".clients"
sys.path.insert(0, str(HERE.parent))

from server_process import server  # noqa: E402  (beside the tests)

SERVER = ("--executor", "timing", "--transport", "local")
MODEL = "llama-3.1-8b-instant"
CLIENT_SECONDS = 900
START_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A client program: its script, and the packages that its environment holds."""

    script: str
    packages: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name to choose it by."""
        return Path(self.script).stem.removeprefix("use_").replace("_", "-")


PYTHON = (
    Client(script="use_groq.py", packages=("groq==1.7.0",)),
    Client(script="use_openai.py", packages=("openai==3.57.0",)),
    Client(script="use_langchain_groq.py", packages=("langchain-groq==1.1.3",)),
    Client(script="use_langchain_openai.py", packages=("langchain-openai==1.7.4",)),
    Client(script="use_litellm.py", packages=("litellm==1.110.2",)),
    Client(script="use_llama_index.py", packages=("llama-index-llms-groq==0.6.1",)),
    Client(script="use_instructor.py", packages=("instructor==1.17.0", "groq", "openai")),
    Client(script="use_pydantic_ai.py", packages=("pydantic-ai-slim[groq,openai]==2.68.0",)),
    Client(script="use_openai_agents.py", packages=("openai-agents==0.24.0",)),
    Client(
        script="use_autogen.py", packages=("autogen-ext[openai]==0.7.5", "autogen-agentchat==0.7.5")
    ),
    Client(script="use_llm.py", packages=("llm==0.36",)),
    Client(script="use_aisuite.py", packages=("aisuite[groq,openai,mcp]==0.2.0",)),
    Client(script="use_guidellm.py", packages=("guidellm==0.8.1",)),
    Client(script="use_aiperf.py", packages=("aiperf==0.13.0",)),
)
NODE = (
    Client(script="node/use_groq_sdk.mjs", packages=("groq-sdk@1.6.0",)),
    Client(script="node/use_openai.mjs", packages=("openai@7.59.0",)),
    Client(
        script="node/use_ai.mjs",
        packages=(
            "ai@7.0.173", "@ai-sdk/groq@4.0.84", "@ai-sdk/openai@4.0.118",
            "@ai-sdk/openai-compatible@3.0.92", "zod",
        ),
    ),
)  # fmt: skip
CLIENTS = {("node-" if client in NODE else "") + client.name: client for client in PYTHON + NODE}


def prepare(name: str, client: Client) -> list[str]:
    """Install a client's packages once; return the command that runs its script."""
    folder = WORK / name
    stamp = folder / "installed.txt"
    script, wanted = HERE / client.script, "\n".join(client.packages)
    fresh = not (stamp.is_file() and stamp.read_text() == wanted)
    if client in NODE:
        folder.mkdir(parents=True, exist_ok=True)
        if fresh:
            (folder / "package.json").write_text('{"type": "module"}')
            subprocess.run(
                ["npm", "install", "--silent", "--no-audit", "--no-fund", *client.packages],
                cwd=folder, check=True,
            )  # fmt: skip
        for source in (script, script.parent / "kit.mjs"):
            (folder / source.name).write_bytes(source.read_bytes())
        command = ["node", script.name]
    else:
        python = folder / "bin" / "python"
        if fresh:
            venv.create(folder, with_pip=True, clear=True)
            subprocess.run(
                [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check",
                 *client.packages], check=True,
            )  # fmt: skip
        command = [str(python), str(script)]
    stamp.write_text(wanted)
    return command


def run(name: str, command: list[str], url: str, model: str) -> list[dict[str, object]]:
    """Run one client's script; return a row a check."""
    environment = {
        **os.environ,
        "RACK_URL": url, "RACK_MODEL": model,
        "GROQ_BASE_URL": url, "GROQ_API_KEY": "any",
        "OPENAI_BASE_URL": f"{url}/openai/v1", "OPENAI_API_KEY": "any",
        "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    log = WORK / f"{name}.log"
    with log.open("w") as errors:
        done = subprocess.run(
            command, cwd=WORK / name, env=environment, stdout=subprocess.PIPE, stderr=errors,
            text=True, timeout=CLIENT_SECONDS, check=False,
        )  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"package"')]
    if not rows or (done.returncode != 0 and all(row["ok"] for row in rows)):
        shown = f"exit code {done.returncode}; {log.relative_to(ROOT)} has the reason"
        rows.append({"package": name, "version": "", "check": "start", "ok": False, "shown": shown})
    return rows


def main() -> int:
    """Run the clients named, all by default."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CLIENTS))
    parser.add_argument("--model", default=MODEL, help="its id (default %(default)s)")
    parser.add_argument("--url", help="a server that runs already, and knows the model")
    args = parser.parse_args()
    if unknown := set(args.names) - set(CLIENTS):
        parser.error(f"NAME: wanted some of {', '.join(CLIENTS)}, got {', '.join(sorted(unknown))}")
    WORK.mkdir(exist_ok=True)
    names = args.names or list(CLIENTS)
    commands = {name: prepare(name, CLIENTS[name]) for name in names}
    if args.url:
        rows = [row for name in names for row in run(name, commands[name], args.url, args.model)]
    else:
        with server(args.model, *SERVER, start_seconds=START_SECONDS) as running:
            url = running.url
            rows = [row for name in names for row in run(name, commands[name], url, args.model)]
    print("| client | version | check | result |\n|---|---|---|---|")
    for row in rows:
        result = "works" if row["ok"] else f"**fails**: {row['shown']}"
        print(f"| {row['package']} | {row['version']} | {row['check']} | {result} |")
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
