"""`rack.encode`: hidden states by shape and hash, a file of them, refusals in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rack_kit import refused
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from rack.commands import bench, compile, generate, plan, serve, trace
from rack.commands.command import Main
from rack.commands.encode import main

BERT = Path(__file__).parent / "goldens" / "bert"
SMALL = ("--transport", "local", "--layout", "1x2", "--max-model-len", "30")
KEYS = {
    "token_ids", "hidden", "emulated", "wall", "schedule_hash", "saturated", "executor", "layout",
    "max_model_len", "weights", "config", "notices", "code", "recoveries",
}  # fmt: skip


def as_json(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main([*argv, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def golden() -> tuple[str, str, Any]:
    with np.load(BERT / "golden.npz") as found:
        ids, types = (",".join(map(str, found[key])) for key in ("token_ids", "types"))
        return ids, types, found["hidden"]


def test_hidden_states_of_a_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ids, types, wanted = golden()
    file = tmp_path / "hidden.npy"
    argv = [str(BERT), *SMALL, "--dtype", "fp16", "--tokens", ids, "--types", types]
    report = as_json(capsys, *argv, "-o", str(file))
    assert set(report) == KEYS
    assert report["hidden"]["shape"] == [24, 48]
    assert np.abs(np.load(file) - wanted).max() < 0.01
    assert report["emulated"]["step"] == "encode30/30"
    assert report["emulated"]["seconds"] == report["emulated"]["cycles"] / 900e6
    assert main(argv) == 0
    first, second, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("24 tokens, step encode30/30, layout 1x2: ")
    assert second.endswith(f"data_hash {report['hidden']['data_hash']}")
    assert len(rows) == 24
    assert rows[0].split()[1] == f"{np.load(file)[0, 0]:.5f}"


def test_types_count(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (
        as_json(capsys, str(BERT), *SMALL, "--tokens", "5,6", *types)["hidden"]["data_hash"]
        for types in ((), ("--types", "0,1"))
    )
    assert one != two


def test_text_goes_through_the_folders_tokenizer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(BERT, folder)
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    words.save(str(folder / "tokenizer.json"))
    text = as_json(capsys, str(folder), *SMALL, "--text", "a b a")
    assert text["token_ids"] == [1, 3, 0, 3, 2]
    ids = as_json(capsys, str(BERT), *SMALL, "--tokens", "1,3,0,3,2")
    assert text["hidden"] == ids["hidden"]


def test_an_artifact_is_encoded_with(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = str(tmp_path / "artifact")
    assert compile.main([str(BERT), *SMALL, "-o", made]) == 0
    capsys.readouterr()
    stored = as_json(capsys, made, "--transport", "local", "--tokens", "5,6")
    assert stored["hidden"] == as_json(capsys, str(BERT), *SMALL, "--tokens", "5,6")["hidden"]


def test_processes_give_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [str(BERT), *SMALL, "--tokens", "5,6"]
    here = as_json(capsys, *argv)["hidden"]
    assert as_json(capsys, *argv, "--transport", "process")["hidden"] == here


def test_without_data_there_are_cycles(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["tiny-bert", "--layout", "1x1", "--max-model-len", "30", "--executor", "timing"]
    report = as_json(capsys, *argv, "--tokens", "5,6")
    assert report["hidden"]["data_hash"] is None
    assert report["emulated"]["cycles"] > 0
    line = refused(capsys, 1, main, *argv, "--tokens", "5", "-o", "x.npy")
    assert line == "output: wanted an executor with data, got timing, which has no hidden states"
    assert not Path("x.npy").exists()


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["tiny-bert", "--tokens", "1,b"], 2, "--tokens: wanted numbers with commas between, got "
                                              "'1,b'"),
        (["tiny-bert", "--tokens", "1", "--types", ""], 2, "--types: wanted numbers with commas "
                                                           "between, got ''"),
        (["tiny-bert", *SMALL, "--tokens", "320"], 1, "tokens: wanted ids below 320, got 320"),
        (["tiny", "--tokens", "1"], 1, "model: wanted an encoder (BertModel or BertForMaskedLM), "
         "got tiny (LlamaForCausalLM): rack.generate continues a text with it"),
    ],
)  # fmt: skip
def test_refusals(
    capsys: pytest.CaptureFixture[str], argv: list[str], code: int, message: str
) -> None:
    assert refused(capsys, code, main, *argv).removeprefix("python -m rack.encode: error: ") == (
        message
    )


@pytest.mark.parametrize(
    ("verb", "argv"),
    [
        (generate.main, ["--prompt", "hi"]),
        (generate.main, ["--prompt", "hi", "--dry-run"]),
        (serve.main, ["--port", "0", "--executor", "timing"]),
        (serve.main, ["--dry-run"]),
        (bench.main, []),
        (trace.main, ["-o", "/dev/null", "--prompt-tokens", "4"]),
    ],
)
def test_verbs_that_generate_refuse_an_encoder(
    capsys: pytest.CaptureFixture[str], verb: Main, argv: list[str]
) -> None:
    line = refused(capsys, 1, verb, "tiny-bert", *argv)
    assert line == (
        "model: wanted one that generates text, got tiny-bert, an encoder (BertModel): rack.encode "
        "gives its hidden states"
    )


def test_a_plan_is_of_a_sequence(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["tiny-bert", "--layout", "2x1", "--max-model-len", "64", "--hardware", "groqrack"]
    assert plan.main([*argv, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    step = report["encode"]
    assert "decode" not in report
    assert (step["step"], step["tokens"]) == ("encode64/64", 64)
    assert step["interval"]["cycles"] < step["cycles"]
    assert step["sequences_per_second"] == 900e6 / step["interval"]["cycles"]
    assert step["parts"]["turnaround"]["cycles"] == 0
    assert plan.main([*argv, "--context", "16"]) == 0
    said = capsys.readouterr().out
    assert "per sequence of 16 tokens, encode16/16" in said
    assert "another sequence every " in said


def test_a_trace_of_a_sequence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["tiny-bert", "--layout", "1x1", "--max-model-len", "16", "-o"]
    assert trace.main([*argv, str(tmp_path / "trace.json")]) == 0
    assert "encode16/16" in (tmp_path / "trace.json").read_text()


def test_links_that_make_errors_and_a_fault_that_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "noisy.toml"
    file.write_text("""
        name = "noisy"
        inherits = "lesson"
        [errors]
        bit_error_rate = { value = 1e-6, source = "assumption: a test" }
        burst_rate = { value = 1e-6, source = "assumption: a test" }
        burst_bits = { value = 16, source = "assumption: a test" }
        seed = { value = 1, source = "assumption: a test" }
    """)
    argv = [str(BERT), *SMALL, "--layout", "2x2", "--tokens", ",".join(map(str, range(5, 25)))]
    good = as_json(capsys, *argv)
    assert good["recoveries"] == []
    noisy = as_json(capsys, *argv, "--hardware", str(file))
    assert noisy["hidden"] == good["hidden"]
    assert noisy["recoveries"]
    assert {one["replayed_cycles"] for one in noisy["recoveries"]} == {noisy["emulated"]["cycles"]}
    assert main([*argv, "--hardware", str(file)]) == 0
    assert "went on after a fault: chip " in capsys.readouterr().err
