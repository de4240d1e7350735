"""`rack.generate`: what it prints where, exit codes, refusals in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rack_kit import known, refused

from compiler.model.presets import PRESETS
from rack.commands.generate import main
from rack.errors import FaultError
from rack.run.config import RunConfig
from rack.run.local import LocalRack
from rack.run.session import Session
from rack.run.steps import StepResult

TINY = ["tiny", "--transport", "local", "--layout", "1x2", "--prefill-chunk", "4"]
HI = [*TINY, "--prompt", "Hi there", "--max-tokens", "3", "--ignore-eos"]
EMULATED = {"prompt_cycles", "decode_cycles", "prompt_seconds", "completion_seconds", "clock_hz"}
WALL = {"ready_seconds", "prefill_seconds", "decode_seconds", "total_seconds"}
KEYS = {
    "text", "token_ids", "prompt_token_ids", "finish_reason", "emulated", "wall",
    "recoveries", "schedule_hash", "data_hash",
    # and where the numbers come from (law 6)
    "saturated", "corrected_vectors", "executor", "transport", "layout", "max_model_len", "weights",
    "config",
    "notices",
    "code",
}  # fmt: skip


def as_json(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main([*argv, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    report: dict[str, Any] = json.loads(out)
    return report


def test_json_has_exactly_these_keys(capsys: pytest.CaptureFixture[str]) -> None:
    report = as_json(capsys, *HI)
    assert set(report) == KEYS
    assert set(report["emulated"]) == EMULATED
    assert set(report["wall"]) == WALL
    emulated = report["emulated"]
    assert report["prompt_token_ids"] == [256, *b"Hi there"]
    assert len(emulated["decode_cycles"]) == len(report["token_ids"]) == 3
    assert emulated["prompt_cycles"] > 0
    assert emulated["prompt_seconds"] == emulated["prompt_cycles"] / emulated["clock_hz"]
    decode_seconds = sum(emulated["decode_cycles"]) / emulated["clock_hz"]
    assert emulated["completion_seconds"] == decode_seconds
    assert report["finish_reason"] == "length"
    for name in ("schedule_hash", "data_hash"):
        assert re.fullmatch("[0-9a-f]{64}", report[name])
    assert all(isinstance(seconds, float) and seconds >= 0 for seconds in report["wall"].values())
    assert (report["layout"], report["executor"], report["transport"]) == ("1x2", "fast", "local")
    assert report["config"]["hardware"] == "lesson"
    assert report["weights"].startswith("SYNTHETIC weights of tiny (seed 0)")
    assert report["weights"] in report["notices"]


def test_faults_after_which_it_went_on_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = as_json(capsys, *HI)
    assert good["recoveries"] == []
    finish, ended = LocalRack.finish, list[int]()

    def losing(rack: LocalRack) -> list[StepResult]:
        ended.append(1)
        if len(ended) == 3:
            raise FaultError(chip=1, step="step x", what="lost", waiting_for="nothing")
        return finish(rack)

    monkeypatch.setattr(LocalRack, "finish", losing)
    again = as_json(capsys, *HI)
    (told,) = again["recoveries"]
    assert (told["chip"], told["chips"], told["step"]) == (None, [], "step x")
    cycles = told["replayed_cycles"]
    for name in ("text", "emulated", "data_hash"):
        assert again[name] == good[name]
    ended.clear()
    assert main(HI) == 0
    wanted = f"went on after a fault: chip 1, step x: lost; waiting for nothing; replayed {cycles} "
    assert wanted in capsys.readouterr().err


def test_a_run_repeats_itself(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = as_json(capsys, *HI), as_json(capsys, *HI)
    for report in (one, two):
        del report["wall"]
    assert one == two
    other = as_json(capsys, *HI, "--seed", "1")  # of the synthetic weights, too
    assert other["data_hash"] != one["data_hash"]
    assert other["emulated"] == one["emulated"]  # cycles do not depend on data


def test_text_goes_to_stdout_and_timing_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    report = as_json(capsys, *HI)
    assert main(HI) == 0
    out, err = capsys.readouterr()
    assert out == report["text"] + "\n"
    decode = sum(report["emulated"]["decode_cycles"])
    for text in (
        "SYNTHETIC weights of tiny", "no tokenizer.json: a byte tokenizer is used",
        "tiny int8 on lesson 1x2, context 256: 9 prompt tokens, 3 completion tokens (length)",
        f"emulated: prompt {report['emulated']['prompt_cycles']} cycles = ",
        f"completion {decode} cycles = ", "wall: ",
        f"schedule_hash {report['schedule_hash']}\ndata_hash {report['data_hash']}",
    ):  # fmt: skip
        assert text in err


def test_text_comes_as_it_is_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[tuple[str, str]] = []

    def put(text: str, end: str = "\n") -> None:  # the real one flushes: test_rack_system_shell.py
        pieces.append((text, end))

    monkeypatch.setattr("rack.commands.generate.put", put)
    assert main([*HI]) == 0
    assert [end for _, end in pieces] == ["", "", "", "\n"]  # three tokens, then the line's end
    assert pieces[-1] == ("", "\n")
    assert capsys.readouterr().out == ""


def test_sampling_flags_reach_the_sampler(capsys: pytest.CaptureFixture[str]) -> None:
    hot = [*HI[:-1], "--ignore-eos", "--temperature", "2", "--top-p", "0.9", "--top-k", "40"]
    one, two = as_json(capsys, *hot), as_json(capsys, *hot)
    assert one["token_ids"] == two["token_ids"] != as_json(capsys, *HI)["token_ids"]
    few = as_json(capsys, *hot, "--return", "topk:40")
    assert few["token_ids"] == one["token_ids"]
    assert few["data_hash"] == one["data_hash"]


def test_chat_and_stop(capsys: pytest.CaptureFixture[str]) -> None:
    report = as_json(capsys, *HI, "--chat")
    text = bytes(token for token in report["prompt_token_ids"] if token < 256).decode()
    assert "user: Hi there" in text
    plain = as_json(capsys, *HI)
    stopped = as_json(capsys, *HI, "--stop", plain["text"][:1], "--stop", "zzz")
    assert (stopped["text"], stopped["finish_reason"]) == ("", "stop")


def test_dry_run_shows_the_placement_and_starts_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rack.commands.generate.Session", None)
    argv = ["tiny", "--layout", "2x2+1", "--prompt", "x", "--dry-run"]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny int8 on lesson: layout 2x2+1, 5 chips, 1 racks, context 256")
    assert len(lines) == 6
    assert lines[1].startswith("chip   0: rack 0 card 0 slot 0: layers 0-0 rank 0; ")
    assert re.search(r"LM head columns 0-319; [\d,]+ of 230,686,720 bytes$", lines[5])
    spares = [*argv, "--transport", "process", "--spares", "2"]
    assert main(spares) == 0
    with_spares = capsys.readouterr().out.splitlines()
    assert with_spares[:6] == lines
    assert with_spares[6:] == ["spare: rack 0 card 2 slot 5", "spare: rack 0 card 3 slot 6"]
    report = as_json(capsys, *spares)
    assert report["spares"] == [
        {"rack": 0, "card": 2, "slot": 5}, {"rack": 0, "card": 3, "slot": 6}
    ]  # fmt: skip


def test_the_trained_model_continues_as_it_should(
    stories260k: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = [str(stories260k), "--dtype", "fp16", "--transport", "local", "--ignore-eos"]
    hashes = set()
    for entry, layout in zip(known(stories260k)[:2], ("1x1", "2x3+1"), strict=True):
        prompt = entry["prompt_token_ids"]
        argv = [*base, "--prompt", entry["prompt"], "--layout", layout, "--max-tokens", "40"]
        report = as_json(capsys, *argv)
        assert report["prompt_token_ids"] == prompt
        assert report["token_ids"] == entry["token_ids"][len(prompt) : len(prompt) + 40]
        assert entry["text"].startswith(entry["prompt"] + report["text"])
        hashes.add(report["schedule_hash"])
    assert len(hashes) == 2


# -- what is refused


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["none"], f"model 'none': wanted a preset ({', '.join(PRESETS)}) or a folder with "
         "config.json, got neither"),
        (["tiny", "--dtype", "int3"], "dtype: wanted one of int8, int4, fp16, got 'int3'"),
        (["tiny", "--hardware", "tpu"],
         "tpu: profile: wanted groqrack, groqrack-64, groqrack-drift, groqrack-errors, lesson or"),
        (["tiny", "--layout", "2by2"], "layout '2by2': wanted PxT or PxT+H, such as 8x4+4"),
        (["tiny", "--layout", "0x2"], "layout '0x2': wanted at least one stage of one chip"),
        (["tiny", "--layout", "4x1"], "layout 4x1: 4 stages, but tiny has 3 layers"),
        (["tiny", "--max-tokens=-1"], "max_tokens: wanted 1 or more, got -1"),
        (["tiny", "--max-tokens=0"], "max_tokens: wanted 1 or more, got 0"),
        (["tiny", "--temperature=-1"], "temperature: wanted a number from 0 to 2, got -1.0"),
        (["tiny", "--max-model-len", "0"], "max_model_len: wanted at least 1, got 0"),
        (["tiny", "--max-model-len", "999"], "max_model_len: tiny has 256 positions, got 999"),
        (["tiny", "--prefill-chunk=-2"], "prefill_chunk: wanted at least 1, got -2"),
        (["tiny", "--weights", "/nonexistent"], "/nonexistent/config.json: wanted a file, got "),
        ([*TINY, "--return", "topk:4", "--temperature", "1"], "top_k: wanted 1 to 4: this rack"),
        ([*TINY, "--prompt", "x" * 256], "prompt: wanted fewer tokens than the context of 256"),
        ([*TINY, "--stop", ""], "stop: wanted up to 4 strings, none empty, got ('',)"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], argv: list[str], wanted: str
) -> None:
    prompt = [] if "--prompt" in argv else ["--prompt", "x"]
    code = main([*argv, *prompt])
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out, len(lines)) == (1, "", 1)
    assert lines[0].startswith(f"error: {wanted}")
    assert err.splitlines()[-1] == lines[0]


def test_bad_usage_is_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("dtype = ")
    cases = {
        (): "the following arguments are required: MODEL, --prompt",
        ("tiny",): "the following arguments are required: --prompt",
        ("tiny", "--prompt", "x", "--speed", "9"): "unrecognized arguments: --speed 9",
        ("tiny", "--prompt", "x", "--max-tokens", "few"): "argument --max-tokens: invalid int",
        ("tiny", "--prompt", "x", "--executor", "slow"): "executor: wanted one of fast, ref",
        ("tiny", "--prompt", "x", "--config", str(bad)): f"{bad}: wanted a TOML file, got Invalid",
    }
    for argv, wanted in cases.items():
        assert refused(capsys, 2, main, *argv).startswith(wanted)


def damaged(stories260k: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in stories260k.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_missing_and_truncated_weights_are_refused(
    stories260k: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = damaged(stories260k, tmp_path)
    weights = folder / "model.safetensors"
    argv = [str(folder), "--prompt", "x", "--transport", "local", "--layout", "1x1"]
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-1000])
    text = refused(capsys, 1, main, *argv)
    assert text.startswith(f"{weights}: wanted a whole safetensors file of {size} bytes, got ")
    weights.unlink()
    wanted = "wanted model.safetensors or model.safetensors.index.json, got neither"
    assert refused(capsys, 1, main, *argv) == f"{folder}: {wanted}"
    (folder / "config.json").write_text("{")
    assert refused(capsys, 1, main, *argv).startswith(f"{folder}/config.json: wanted valid JSON")


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: RunConfig) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("rack.commands.generate.prepare", broken)
    with pytest.raises(ZeroDivisionError):
        main(HI)


def test_an_interrupt_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed: list[Session] = []

    class Interrupted(Session):
        @property
        def engine(self) -> Any:
            raise KeyboardInterrupt

        @engine.setter
        def engine(self, value: object) -> None:
            """Take it and forget it."""

        def close(self) -> None:
            closed.append(self)
            super().close()

    monkeypatch.setattr("rack.commands.generate.Session", Interrupted)
    assert main(HI) == 1
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert len(closed) == 1


def test_the_prompt_may_fill_the_context_but_for_one_token(
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = [*TINY[:-2], "--max-model-len", "16", "--ignore-eos", "--prompt", "x" * 14]
    report = as_json(capsys, *argv)
    assert len(report["prompt_token_ids"]) == 15
    assert len(report["token_ids"]) == 1
    assert report["max_model_len"] == 16


def test_an_empty_prompt_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "--layout", "1x1", "--transport", "local", "--prompt", ""]) == 1
    assert "error: prompt: wanted some text, got none" in capsys.readouterr().err
