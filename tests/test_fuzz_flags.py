"""Odd command lines and variables: every verb ends with 0, 1 and a line, or 2 and its usage.

A case is a verb with a few of its flags, taken from its own parser, and values that nobody would
give. What would start a server, Ray or minutes of work is left out. `--fuzz-examples N` asks for
more.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fuzz_kit import MOST_SECONDS, ends, examples

from rack.commands import (
    bench,
    compare,
    compile,
    disasm,
    encode,
    generate,
    plan,
    replay,
    report,
    serve,
    sweep,
    trace,
    validate,
    validate_conv,
    validate_encoder,
    validate_lstm,
    validate_matmul,
)
from rack.run.config import ENV_PREFIX, KEYS

Main = Callable[[Sequence[str]], int]
LSTM, MATMUL = validate_lstm.build_parser, validate_matmul.build_parser
VERBS: dict[str, tuple[Main, Callable[[], argparse.ArgumentParser], list[str]]] = {
    "serve": (serve.main, serve.build_parser, ["--dry-run"]),
    "generate": (generate.main, generate.build_parser, ["--max-tokens", "2"]),
    "encode": (encode.main, encode.build_parser, ["--executor", "timing"]),
    "plan": (plan.main, plan.build_parser, []),
    "bench": (bench.main, bench.build_parser, ["--decode-tokens", "1", "--repeats", "1"]),
    "compare": (compare.main, compare.build_parser, ["--dry-run"]),
    "replay": (replay.main, replay.build_parser, []),
    "sweep": (sweep.main, sweep.build_parser, ["--grid", "context=16", "--jobs", "1"]),
    "report": (report.main, report.build_parser, []),
    "compile": (compile.main, compile.build_parser, ["--dry-run"]),
    "trace": (trace.main, trace.build_parser, ["--dry-run"]),
    "disasm": (disasm.main, disasm.build_parser, []),
    "conv": (lambda argv: validate.main(["conv", *argv]), validate_conv.build_parser, []),
    "encoder": (
        lambda argv: validate.main(["encoder", "tiny-bert", *argv]),
        validate_encoder.build_parser,
        ["--tokens", "16", "--runs", "100", "--layout", "1x1"],
    ),
    "lstm": (lambda argv: validate.main(["lstm", *argv]), LSTM, []),
    "matmul": (lambda argv: validate.main(["matmul", *argv]), MATMUL, []),
    "validate": (validate.main, validate.build_parser, ["--hardware", "none.toml"]),
}
"""Each verb's main, its parser, and flags that keep a case short."""

NUMBERS = (
    "0", "1", "2", "4", "7", "-1", "-0", "1.0", "0.5", "1e3", "nan", "inf", "-inf", "1e309", "0x10",
    "1_0", "\u0663", " 3 ", "65535", "65536", str(1 << 31), str(1 << 63), str(1 << 64), "9" * 30,
    "9" * 5000, "-" + "9" * 5000, "true",
)  # fmt: skip
TEXTS = ("", " ", "x", "a\0b", "\udcff", "x" * 5000, "\u2603", "\n", "--", "-", "../..", "%s{0}")
FILES = ("/", "/dev/null", "/dev/zero", "/dev/full", "{fifo}", "{folder}", "{text}", "{missing}")
LAYOUTS = (
    "1x1", "2x1", "1x2+1", "auto", "0x0", "1x1+0", "0x1+1", "9999999x9999999", "1x99999",
    "3x1+9999", "4x1", "1x", "x", "1x1+1+1", "\u0661x1", "1x1 ", "-1x1",
)  # fmt: skip
SPECIAL: dict[str, tuple[str, ...]] = {
    "model": ("tiny", "tiny", "tiny", "tiny-bert", "llama-9b", "tiny/", "{folder}", *FILES, *TEXTS),
    "layout": LAYOUTS,
    "hardware": ("lesson", "groqrack", "groqrack-drift", "{toml}", *FILES, *TEXTS, "lesson.toml"),
    "dtype": ("int8", "fp16", "int4", "INT8", *TEXTS),
    "executor": ("timing", "fast", "Fast", "all", *TEXTS),
    "transport": ("local", "Ray", "zmq", *TEXTS),
    "returns": (
        "logits", "topk:1", "topk:0", "topk:1024", "topk:1025", "topk:-1", "topk:",
        "topk:1.5", "topk", "topk:" + "9" * 5000, "topk:\u0663", "best:3", *TEXTS,
    ),
    "config": ("{toml}", *FILES, *TEXTS),
    "grid": (
        "context=16,32", "layout=1x1,2x1", "link.gb_per_s=12.5", "contxt=1", "context", "=",
        "context=", "delays.READ=[5,0]", "chip.clock_hz=1e9", "link.lanes=" + "9" * 40, *TEXTS,
    ),
    "file": ("{toml}", *FILES, *TEXTS),
    "plot": ("context,decode.cycles", "context,cycles,layout", ",", "x,y", *TEXTS),
    "trace": ("{trace}", "{trace}", "{trace}", *FILES, *TEXTS),
    "rate_scale": ("1", "0.5,2", "1,1", "0", "1e6", "nan", *TEXTS),
    "slo": ("server", "interactive", "ttft=1ms", "e2e=2s,tpot=1", "ttft=-1", "ttft", *TEXTS),
    "against": ("http://127.0.0.1:1", "http://", "ftp://x", "http://[", "http://a:b", *TEXTS),
    "run": ("plan", "bench", *TEXTS),
    "n": ("1", "64,320", ",", "1,-1", "0", "9" * 9, *TEXTS),
    "batch": ("1", "1,2", ",", "1,,2", "1,-1", "1," + "9" * 5000, "9" * 9, *TEXTS),
}  # fmt: skip
TRACE = Path(__file__).resolve().parent / "traces" / "vidur.csv"
KNOWN_CHEAP = {
    "model": "tiny", "transport": "local", "executor": "timing", "layout": "1x1",
    "max_model_len": "32", "prefill_chunk": "4", "trace": str(TRACE),
}  # fmt: skip


@pytest.fixture
def names(tmp_path: Path) -> dict[str, str]:
    """Things that a path may lead to."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("text")
    (tmp_path / "odd.toml").write_text('seed = "3"\nlayout = 7\n')
    files = [("fifo", "fifo"), ("folder", "folder"), ("text", "text"), ("toml", "odd.toml")]
    return {
        **{key: str(tmp_path / name) for key, name in [*files, ("missing", "no")]},
        "trace": str(TRACE),
    }


def value(rng: random.Random, action: argparse.Action, names: dict[str, str]) -> str:
    """Give a value for a flag: a likely one, or any."""
    if action.dest in SPECIAL and rng.random() < 0.8:
        text = rng.choice(SPECIAL[action.dest])
    else:
        text = rng.choice((*NUMBERS, *NUMBERS, *TEXTS, *FILES))
    for name, path in names.items():
        text = text.replace(f"{{{name}}}", path)
    return text


def command(rng: random.Random, verb: str, names: dict[str, str]) -> list[str]:
    """Make a command line of a verb: some flags odd, the costly ones cheap."""
    _, build, fixed = VERBS[verb]
    argv, given = list[str](), set[str]()
    actions = [action for action in build()._actions if action.dest != "help"]
    flags = [action for action in actions if action.option_strings]
    for action in rng.sample(flags, rng.randint(0, min(4, len(flags)))):
        flag = rng.choice(action.option_strings)
        given.add(action.dest)
        if action.nargs == 0:
            argv.append(flag)
        elif rng.random() < 0.5 and flag.startswith("--"):
            argv.append(f"{flag}={value(rng, action, names)}")
        else:
            argv += [flag, value(rng, action, names)]
    for action in actions:
        odd = rng.random() < 0.25
        if not action.option_strings:
            argv.append(value(rng, action, names) if odd else KNOWN_CHEAP.get(action.dest, "x"))
        elif action.dest not in given and (action.required or action.dest in KNOWN_CHEAP):
            cheap = KNOWN_CHEAP.get(action.dest, "1")
            argv += [action.option_strings[-1], cheap]
    return [*argv, *fixed]


def variables(rng: random.Random, names: dict[str, str]) -> dict[str, str]:
    """Give a variable or two in some cases; none that an environment cannot hold."""
    out = {}
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        key = rng.choice((*KEYS, "colour"))
        text = value(rng, argparse.Action([], key), names)
        if "\0" not in text and key not in ("transport", "executor"):
            out[ENV_PREFIX + key.upper()] = text
    return out


def outcome(verb: str, argv: list[str]) -> int | str:
    """Run a verb: its exit code; AssertionError for what no verb may do."""
    try:
        with ends():
            return VERBS[verb][0](argv)
    except SystemExit as error:
        return int(error.code or 0) if isinstance(error.code, int | None) else str(error.code)
    except BaseException as error:
        raise AssertionError(f"{verb} {argv!r:.400}: {type(error).__name__}: {error}") from error


def test_odd_command_lines(
    names: dict[str, str], pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    came = Counter[str]()
    monkeypatch.chdir(tmp_path)  # a name may be taken for a file to write
    assert MOST_SECONDS >= 60
    assert isinstance(sys.stderr, io.TextIOWrapper)
    sys.stderr.reconfigure(errors="backslashreplace")  # as a process's own is
    for number in range(examples(pytestconfig, 0.2)):
        rng = random.Random(number)
        verb = rng.choice(list(VERBS))
        argv, environ = command(rng, verb, names), variables(rng, names)
        with monkeypatch.context() as patch:
            for name, text in environ.items():
                patch.setenv(name, text)
            code = outcome(verb, argv)
        err = capsys.readouterr().err
        case = f"case {number}: {environ} {verb} {argv!r:.400}"
        assert code in (0, 1, 2), f"{case}: ended with {code!r}"
        assert "Traceback" not in err, f"{case}: {err[-2000:]}"
        last = err.splitlines()[-1] if err.strip() else ""
        assert not code or "error: " in last, f"{case}: {last!r}"
        assert len(last) < 12_000, f"{case}: {last[:300]}"  # argparse repeats what it was given
        came[f"{verb} {code}"] += 1
    print(dict(sorted(came.items())))
