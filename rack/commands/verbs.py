"""The verbs: what each is for, in the order in which a newcomer needs them, and its name.

Data only: `lpu-rack --help` imports no verb.
"""

from __future__ import annotations

import sys
from pathlib import Path

VERBS = {
    "plan": "Compile a model for a machine and show chips, memory and cycles per token.",
    "generate": "Run one completion on an emulated rack; tokens as they come, then the timing.",
    "encode": "Run one sequence through an encoder; hidden states, their hash, the timing.",
    "serve": "Serve an emulated rack with the API of GroqCloud and OpenAI.",
    "bench": "Measure decode, prefill, start-up and memory in one run.",
    "compare": "Set a rack beside GPUs: speed, cost and energy by batch, and verdicts.",
    "replay": "Replay a trace of requests in virtual time: what users of a rack would see.",
    "sweep": "Plan or measure every point of a grid of flags and hardware; a row a point.",
    "report": "Make one page of tables and pictures of a sweep's rows.",
    "trace": "Write a compiled model's schedule as Chrome trace events, or draw it.",
    "validate": "Hold the emulator against published figures.",
    "compile": "Compile a model and write it with one SRAM image per chip.",
    "disasm": "Show an operation of a compiled model as TSP instructions.",
}
"""Verb -> what it does, in a line."""

PROGRAM = "lpu-rack"


def program() -> str:
    """Return what this process was started as: `lpu-rack`, else `python -m rack`."""
    return PROGRAM if Path(sys.argv[0]).name == PROGRAM else "python -m rack"


def called_as(verb: str) -> str:
    """Return how a verb was called, for its usage."""
    path = Path(sys.argv[0])
    whole = path.name == PROGRAM or (path.parent.name, path.name) == ("rack", "__main__.py")
    return f"{program()} {verb}" if whole else f"python -m rack.{verb}"
