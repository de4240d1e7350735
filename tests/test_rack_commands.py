"""The verbs as one program, their shared flags, and what README promises of all of them."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from rack_kit import refused

from compiler.pipeline import DTYPES
from rack.__main__ import main
from rack.commands import validate_encoder, validate_lstm
from rack.commands.command import UsageError, at_least, command
from rack.commands.verbs import VERBS, called_as
from rack.machines.profile import profile_names
from rack.reports import accuracy_rows
from rack.run.config import EXECUTORS, TRANSPORTS

ROOT = Path(__file__).resolve().parent.parent
CHEAP = ("tiny", "--layout", "1x1", "--max-model-len", "64", "--prefill-chunk", "4")
RUN = (*CHEAP, "--executor", "timing")
ENCODER = ("tiny-bert", "--layout", "1x1", "--max-model-len", "64", "--executor", "timing")
LINES: dict[str, list[str]] = {
    "plan": [*CHEAP],
    "generate": [*RUN, "--prompt", "hi", "--max-tokens", "2"],
    "encode": [*ENCODER, "--tokens", "1,2"],
    "serve": [*RUN],
    "bench": [*RUN, "--decode-tokens", "2", "--repeats", "1"],
    "compare": [*CHEAP, "--batch", "1,4", "--gpu", "h200"],
    "replay": [*CHEAP, "--trace", str(ROOT / "tests/traces/vidur.csv")],
    "sweep": [*CHEAP, "--grid", "context=16"],
    "report": [],
    "trace": [*CHEAP, "-o", "{folder}/trace.json"],
    "validate": [],
    "compile": [*CHEAP, "-o", "{folder}/artifact"],
}
MODEL_VERBS = [verb for verb, line in LINES.items() if line]


def verb_module(verb: str) -> Any:
    return import_module(f"rack.commands.{verb}")


def line(verb: str, folder: Path) -> list[str]:
    return [verb, *(word.format(folder=folder) for word in LINES[verb])]


def promised(flag: str) -> str:
    """What README says of a flag."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{flag}` \| (.*) \|$", text, re.MULTILINE)
    return str(row)


def parsers() -> list[tuple[str, argparse.ArgumentParser]]:
    named = [(verb, verb_module(verb).build_parser()) for verb in VERBS]
    own = [("lstm", validate_lstm), ("encoder", validate_encoder)]
    return [*named, *((name, module.build_parser()) for name, module in own)]


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_lists_the_verbs_in_order(capsys: pytest.CaptureFixture[str], word: str) -> None:
    assert main([word]) == 0
    said = capsys.readouterr().out
    found = re.findall(r"^  ([a-z]+) +([A-Z].*\.)$", said, re.MULTILINE)
    assert found == list(VERBS.items())
    assert next(iter(VERBS)) == "plan"  # what a newcomer can do with nothing at hand


@pytest.mark.parametrize(("words", "got"), [([], "none"), (["plam"], "'plam'"), (["-x"], "'-x'")])
def test_no_such_verb(capsys: pytest.CaptureFixture[str], words: list[str], got: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage == "usage: python -m rack VERB ..."
    known = (
        "known: plan, generate, encode, serve, bench, compare, replay, sweep, report, trace, "
        "validate, compile, disasm"
    )
    assert error == f"python -m rack: error: wanted a verb, got {got}; {known}"


def test_the_whole_program_is_its_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*CHEAP, "--dry-run", "--json"]
    assert main(["plan", *words]) == 0
    whole = capsys.readouterr().out
    assert verb_module("plan").main(words) == 0
    assert capsys.readouterr().out == whole
    assert refused(capsys, 1, main, "plan", "no-such-model").startswith("model 'no-such-model'")


def test_every_verb_has_its_two_lines() -> None:
    for verb in VERBS:
        assert import_module(f"rack.{verb}" if verb != "serve" else "rack.serve.__main__").main is (
            verb_module(verb).main
        )


def test_the_installed_script(tmp_path: Path) -> None:
    """It is made from the entry in pyproject.toml, as below."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["lpu-rack"].partition(":")
    script = tmp_path / "lpu-rack"
    script.write_text(f"import sys\nfrom {module} import {name}\nsys.exit({name}())\n")
    for words, said in (
        (["--help"], "usage: lpu-rack VERB ..."),
        (["disasm", "--help"], "usage: lpu-rack disasm [-h]"),
    ):
        done = subprocess.run(
            [sys.executable, str(script), *words], env={"PYTHONPATH": str(ROOT)}, text=True,
            capture_output=True, check=True,
        )  # fmt: skip
        assert done.stdout.startswith(said)
        assert done.stderr == ""


@pytest.mark.parametrize(
    ("argv0", "shown"),
    [
        ("/venv/bin/lpu-rack", "lpu-rack plan"),
        ("/project/rack/__main__.py", "python -m rack plan"),
        ("/project/rack/plan.py", "python -m rack.plan"),
        ("/project/rack/serve/__main__.py", "python -m rack.plan"),
        ("/venv/bin/pytest", "python -m rack.plan"),
    ],
)
def test_usage_names_the_program_that_was_called(
    monkeypatch: pytest.MonkeyPatch, argv0: str, shown: str
) -> None:
    monkeypatch.setattr(sys, "argv", [argv0, "plan"])
    assert called_as("plan") == shown
    assert verb_module("plan").build_parser().prog == shown


@pytest.mark.parametrize(
    "verb", ["plan", "generate", "encode", "bench", "compare", "replay", "compile", "validate"]
)
def test_json_is_one_object(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All figures of `validate` are worked out once: test_rack_commands_validate.
    monkeypatch.setattr(accuracy_rows, "ROW_SOURCES", (accuracy_rows.chip_rows,))
    assert f"`{verb}`" in promised("--json")
    assert main([*line(verb, tmp_path), "--json"]) == 0
    (text,) = capsys.readouterr().out.splitlines()
    assert type(json.loads(text)) is dict


def test_json_is_promised_of_the_verbs_that_have_it() -> None:
    having = {verb for verb, made in parsers() if "--json" in made._option_string_actions}
    assert having - {"lstm", "encoder"} == set(re.findall(r"`(\w+)`", promised("--json")))


@pytest.mark.parametrize("verb", MODEL_VERBS)
def test_a_dry_run_shows_places_and_starts_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str
) -> None:
    assert "on every verb that takes MODEL" in promised("--dry-run")
    assert main([*line(verb, tmp_path), "--dry-run"]) == 0
    head, chip = capsys.readouterr().out.splitlines()
    about, held = "tiny int8", "LM head columns"
    rows = "prefill chunk 4"
    if verb == "encode":
        about, held, rows = "tiny-bert int8", "last norm", "whole sequences"
    assert head == f"{about} on lesson: layout 1x1, 1 chips, 1 racks, context 64, {rows}"
    assert chip.startswith(f"chip   0: rack 0 card 0 slot 0: layers 0-2 rank 0, {held}")
    assert list(tmp_path.iterdir()) == []
    if "--json" in verb_module(verb).build_parser()._option_string_actions:
        assert main([*line(verb, tmp_path), "--dry-run", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["placement"][0]["chip"] == 0


def test_the_verbs_that_take_a_model_are_those() -> None:
    taking = {
        verb for verb, made in parsers()
        if verb != "encoder" and any(action.dest == "model" for action in made._actions)
    }  # fmt: skip
    assert taking == set(MODEL_VERBS)


@pytest.mark.parametrize(("verb", "made"), parsers(), ids=lambda value: str(value)[:12])
def test_flags_stand_in_titled_groups_and_say_what_they_take(
    verb: str, made: argparse.ArgumentParser
) -> None:
    (plain,) = [group for group in made._action_groups if group.title == "options"]
    assert [action.dest for action in plain._group_actions] == ["help"]
    for action in made._actions:
        assert action.help, f"{verb} {action.dest}"
        if action.nargs != 0 and action.choices is None:
            assert action.metavar, f"{verb} {action.dest}: a value without a name"


@pytest.mark.parametrize("verb", MODEL_VERBS)
def test_choices_are_listed(verb: str) -> None:
    said = " ".join(verb_module(verb).build_parser().format_help().split())
    for flag, values in (("dtype", DTYPES), ("executor", EXECUTORS), ("transport", TRANSPORTS)):
        assert f"--{flag} {{{','.join(values)}}} " in said
    assert f"--hardware {'|'.join(profile_names())}|FILE.toml " in said
    assert "--layout auto|PxT|PxT+H " in said
    assert "--return logits|topk:K " in said


def test_a_flag_that_the_verb_cannot_take(capsys: pytest.CaptureFixture[str]) -> None:
    def build() -> argparse.ArgumentParser:
        made = argparse.ArgumentParser(prog="verb")
        made.add_argument("--so-many", type=int)
        made.add_argument("--others", type=int)
        return made

    @command(build)
    def work(args: argparse.Namespace) -> int | None:
        at_least(args, 2, "so_many", "others")
        return args.so_many if args.so_many == 3 else None

    assert work(["--so-many", "2"]) == 0
    assert work(["--so-many", "3"]) == 3
    assert work([]) == 0
    with pytest.raises(SystemExit) as caught:
        work(["--so-many", "1"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith("verb: error: --so-many: wanted at least 2, got 1\n")
    with pytest.raises(UsageError, match=r"^--others: wanted at least 2, got -1$"):
        at_least(argparse.Namespace(so_many=None, others=-1), 2, "so_many", "others")
