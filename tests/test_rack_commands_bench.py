"""The benchmark's report: keys that others rely on, sums that must hold, and refusals."""

import json

import psutil
import pytest

from compiler.model.presets import PRESETS
from compiler.model.weights import required_tensors
from compiler.pipeline import compile_model
from compiler.place.layout import parse_layout
from rack.commands.bench import main, products
from rack.machines.profile import load_hardware

SHORT = ["--prompt-tokens", "5", "--decode-tokens", "3", "--repeats", "2"]


def test_products_count_every_weight_but_the_embedding() -> None:
    compiled = compile_model(PRESETS["tiny"], load_hardware("lesson"), parse_layout("1x1"))
    shapes = required_tensors(PRESETS["tiny"])
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    embedding = matrices.pop("model.embed_tokens.weight")
    head = matrices.get("lm_head.weight", embedding)
    matrices["lm_head.weight"] = head
    elements = sum(n * k for n, k in matrices.values())
    assert products(compiled) == (elements, elements - head[0] * head[1])


@pytest.mark.parametrize("transport", ["local", "process"])
def test_the_report_has_what_others_rely_on(
    transport: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(psutil.Process().children(recursive=True))  # of other tests' machinery
    argv = ["tiny", "--layout", "2x1", "--transport", transport, "--json", *SHORT]
    assert main(argv) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["read_gb_per_s"] > 0
    assert report["decode"]["tokens_per_s"] > 0
    assert report["decode"]["ratio_to_read_bandwidth"] == pytest.approx(
        report["decode"]["gb_per_s"] / report["read_gb_per_s"]
    )
    assert report["prefill"]["tokens"] == 5
    assert report["prefill"]["gmac_per_s"] > 0
    assert report["startup_s"] > report["startup_stages_s"]["compiled"] > 0
    memory = report["memory"]
    assert memory["total_mb"] == pytest.approx(sum(memory["by_process_mb"].values()))
    assert len(memory["by_process_mb"]) == before + (1 if transport == "local" else 3)
    assert memory["beyond_sram_mb_per_chip"] > 0
    parts = report["chip_seconds_by_part"]
    assert set(parts) == {"kernels", "exchange", "waiting", "python"}
    assert parts["kernels"] > 0
    assert report["emulated"]["decode_cycles"] > 0
    assert report["data_hash"]


def test_sequences_together_stand_beside_one_alone(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["tiny", "--layout", "2x1", "--sequences", "4", "--batch", "2"]
    for flags, where in ((["--transport", "local"], "local"), (["--executor", "timing"], "none")):
        assert main([*argv, *flags, "--json", *SHORT]) == 0
        report = json.loads(capsys.readouterr().out)
        decode = report["decode"]
        assert (report["transport"], decode["sequences"], decode["batch"]) == (where, 4, 2)
        ratio = decode["tokens_per_s"] / decode["one_sequence_tokens_per_s"]
        assert decode["ratio_to_one_sequence"] == pytest.approx(ratio)
        assert decode["one_sequence_tokens_per_s"] == pytest.approx(1e3 / decode["ms_per_token"])
    assert main([*argv, "--transport", "local", *SHORT]) == 0
    text = capsys.readouterr().out
    assert "\n4    sequences    " in text
    assert " tok/s in all, steps of 2: " in text


def test_one_sequence_is_all_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "--layout", "1x1", "--executor", "timing", "--json", *SHORT]) == 0
    decode = json.loads(capsys.readouterr().out)["decode"]
    assert (decode["sequences"], decode["batch"], decode["ratio_to_one_sequence"]) == (1, 1, 1)
    assert decode["tokens_per_s"] == decode["one_sequence_tokens_per_s"]


def test_a_person_gets_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "--layout", "1x1", "--transport", "local", *SHORT]) == 0
    text = capsys.readouterr().out
    for start in ("memory read", "decode", "prefill", "start-up", "chips' time", "emulated"):
        assert f"\n{start}" in text


def test_without_data_there_is_no_bandwidth(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["tiny", "--layout", "2x1", "--executor", "timing", *SHORT]
    assert main([*argv, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["executor"], report["transport"]) == ("timing", "none")
    assert (report["read_gb_per_s"], report["kernels"]) == (None, None)
    assert report["decode"]["gb_per_s"] is report["decode"]["ratio_to_read_bandwidth"] is None
    assert report["prefill"]["gmac_per_s"] is None
    assert report["memory"]["sram_in_use_mb"] == 0
    assert report["emulated"]["decode_cycles"] > 0
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "tiny int8 on lesson 2x1, timing executor: no data, wall figures are the " in text
    for word in ("GB/s", "GMAC", "SRAM", "bandwidth", "kernels"):
        assert word not in text, word


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (
            ["--decode-tokens", "600"],
            "decode_tokens: wanted at most 62 (the context is 64, see --max-model-len), got 600",
        ),
        (
            ["--decode-tokens", "63"],
            "decode_tokens: wanted at most 62 (the context is 64, see --max-model-len), got 63",
        ),
        (
            ["--prompt-tokens", "60", "--decode-tokens", "10"],
            "prompt_tokens: wanted at most 53 beside 10 decode tokens (the context is 64, see "
            "--max-model-len), got 60",
        ),
        (["--executor", "fast"], "executor: fast needs "),
    ],
)  # fmt: skip
def test_a_refusal_names_what_is_wrong(
    flags: list[str], why: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 0 if "--executor" in flags else None
    monkeypatch.setattr("rack.run.host_memory.free_bytes", lambda: free)
    argv = ["tiny", "--layout", "1x1", "--transport", "local", "--max-model-len", "64", *flags]
    assert main(argv) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {why}")


def test_the_largest_runs_fit(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["tiny", "--layout", "1x1", "--executor", "timing", "--max-model-len", "64", "--json"]
    for flags, tokens in (
        (["--decode-tokens", "62"], 1),
        (["--decode-tokens", "10", "--prompt-tokens", "53"], 53),
        ([], 47),  # as many as there is room for, beside 16
    ):
        assert main([*argv, "--repeats", "1", *flags]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["prefill"]["tokens"] == tokens, flags


def test_a_dry_run_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "--layout", "2x1", "--dry-run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [chip["holds"] for chip in report["placement"]] == [
        ["layers 0-0 rank 0"], ["layers 1-2 rank 0", "LM head columns 0-319"]
    ]  # fmt: skip


@pytest.mark.parametrize("flag", ["--prompt-tokens", "--decode-tokens", "--repeats"])
def test_counts_below_one_are_bad_usage(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["tiny", flag, "0"])
    assert f"error: {flag}: wanted at least 1, got 0" in capsys.readouterr().err


def test_what_does_not_compile_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "--layout", "9"]) == 1
    assert capsys.readouterr().err.startswith("error: layout '9'")
