"""Configuration: flag over environment over file over default; everything else is refused."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path

import pytest

from rack.commands.flags import arguments, count, model_flags, parse
from rack.errors import ConfigError
from rack.run.config import (
    EXECUTORS,
    TRANSPORTS,
    RunConfig,
    resolve,
)


def parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog="verb", parents=[model_flags()])


def resolved(*argv: str, **environ: str) -> RunConfig:
    return resolve(parser().parse_args(["tiny", *argv]), environ)


def refusal(*argv: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(*argv, **environ)
    return str(caught.value)


def file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_defaults_are_the_design_s() -> None:
    config = resolved()
    assert config == RunConfig(model="tiny")
    assert (config.hardware, config.dtype, config.layout) == ("lesson", "int8", "auto")
    assert (config.executor, config.transport, config.returns) == ("fast", "ray", "logits")
    assert (config.max_model_len, config.seed, config.weights) == (None, 0, None)


def test_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    path = file(tmp_path, 'dtype = "fp16"\nseed = 3\nlayout = "1x1"\nstep_timeout_s = 7\n')
    environ = {"LPU_RACK_SEED": "4", "LPU_RACK_LAYOUT": "2x1", "OTHER": "x"}
    config = resolved("--config", path, "--layout", "5x1", **environ)
    assert config.layout == "5x1"  # flag
    assert config.seed == 4  # environment
    assert config.dtype == "fp16"  # file
    assert config.step_timeout_s == 7.0
    assert isinstance(config.step_timeout_s, float)
    assert config.hardware == "lesson"  # default


def test_every_key_has_a_flag_a_variable_and_a_place_in_the_file(tmp_path: Path) -> None:
    given = {
        "layers": 3, "weights": "w", "dtype": "fp16", "hardware": "groqrack", "layout": "1x1",
        "executor": "timing", "transport": "local", "max_model_len": 64, "prefill_chunk": 8,
        "seed": 5, "int4_group": 64, "returns": "topk:4", "step_timeout_s": 2.5,
        "tokenizer": "folder", "answer_tokens": "fixed:3",
        "sequences": 6, "batch": 2, "spares": 0,
    }  # fmt: skip
    wanted = RunConfig(model="tiny", **given)
    assert {field.name for field in fields(RunConfig)} == {"model", "given", *given}
    flags = {**{key: "--" + key.replace("_", "-") for key in given}, "returns": "--return"}
    assert resolved(*(part for k, v in given.items() for part in (flags[k], str(v)))) == wanted
    assert resolved(**{f"LPU_RACK_{k.upper()}": str(v) for k, v in given.items()}) == wanted
    lines = [f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v}" for k, v in given.items()]
    assert resolved("--config", file(tmp_path, "\n".join(lines))) == wanted
    assert wanted.to_dict() == {"model": "tiny", **given}


def test_help_explains_every_flag() -> None:
    text = parser().format_help()
    for word in ("--return", "--prefill-chunk", "--config FILE.toml", "(default lesson)"):
        assert word in text


SERVICE = {
    "LPU_RACK_SERVICE_HOST": "10.0.0.1", "LPU_RACK_SERVICE_PORT": "8000",
    "LPU_RACK_SERVICE_PORT_HTTP_API": "8000", "LPU_RACK_PORT": "tcp://10.0.0.1:8000",
    "LPU_RACK_PORT_8000_TCP": "tcp://10.0.0.1:8000", "LPU_RACK_PORT_8000_TCP_PROTO": "tcp",
    "LPU_RACK_PORT_8000_TCP_PORT": "8000", "LPU_RACK_PORT_8000_TCP_ADDR": "10.0.0.1",
    "LPU_RACK_MODEL_SERVICE_HOST": "fd00::1", "LPU_RACK_MODEL_PORT": "udp://[fd00::1]:53",
    "LPU_RACK_SEED_2_PORT_53_UDP_ADDR": "fd00::1",
}  # fmt: skip


def test_the_variables_of_a_kubernetes_service_are_no_keys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resolved(**SERVICE, LPU_RACK_SEED="3") == RunConfig(model="tiny", seed=3)
    assert parse(parser(), ["tiny"])[1] == RunConfig(model="tiny")
    assert capsys.readouterr().err == ""
    for name, value in SERVICE.items():
        monkeypatch.setenv(name, value)
    assert parse(parser(), ["tiny"])[1] == RunConfig(model="tiny")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("NOTE: LPU_RACK_")
    assert line.endswith(
        ": ignored, as Kubernetes sets them for a service; a pod's enableServiceLinks: false "
        "leaves them out"
    )
    assert all(name in line for name in SERVICE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LPU_RACK_PORT", "8000"), ("LPU_RACK_SERVICE_HOST", "localhost"),
        ("LPU_RACK_SERVICE_PORT", ""), ("LPU_RACK_PORT_8000_TCP", "10.0.0.1:8000"),
        ("LPU_RACK_HOST", "10.0.0.1"), ("LPU_RACKS_PORT", "tcp://10.0.0.1:8000"),
        ("LPU_RACK_PORT", "tcp://10.0.0.1:8000\n"),
    ],
)  # fmt: skip
def test_what_only_looks_like_one_is_an_error(name: str, value: str) -> None:
    if name.startswith("LPU_RACKS"):
        assert resolved(**{name: value}) == RunConfig(model="tiny")  # not ours at all
    else:
        assert refusal(**{name: value}).startswith(f"{name}: unknown; known: LPU_RACK_MODEL")


def test_unknown_keys_and_variables_are_errors(tmp_path: Path) -> None:
    path = file(tmp_path, 'colour = "red"')
    assert refusal("--config", path).startswith(f"{path}: unknown key colour; known: model, ")
    text = refusal(LPU_RACK_COLOUR="red")
    assert text.startswith("LPU_RACK_COLOUR: unknown; known: LPU_RACK_MODEL, LPU_RACK_WEIGHTS")
    assert resolved(LPU_RACK_TEST_MODELS="/x") == RunConfig(model="tiny")  # the tests' own


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"dtype = ", "wanted a TOML file, got Invalid value"),
        (b"dtype = '\xff'", "wanted a TOML file, got 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, text: bytes, wanted: str) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(text)
    assert wanted in refusal("--config", str(path))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "none.toml")
    assert refusal("--config", path).startswith(f"{path}: wanted a TOML file, got [Errno 2]")
    assert "wanted a TOML file" in refusal("--config", str(tmp_path))


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("seed = 1.5", "seed: wanted int, got 1.5"),
        ("seed = true", "seed: wanted int, got True"),
        ("seed = inf", "seed: wanted int, got inf"),
        ("dtype = 8", "dtype: wanted str, got 8"),
        ('layout = ["1x1"]', "layout: wanted str, got ['1x1']"),
        ("step_timeout_s = false", "step_timeout_s: wanted float, got False"),
    ],
)
def test_a_file_s_values_have_types(tmp_path: Path, line: str, wanted: str) -> None:
    assert refusal("--config", file(tmp_path, line)) == wanted


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (("--seed", "x"), "seed: wanted int, got 'x'"),
        (("--seed=-1",), "seed: wanted an integer in 0..2^64-1, got -1"),
        (("--seed", str(1 << 64)), f"seed: wanted an integer in 0..2^64-1, got {1 << 64}"),
        (("--max-model-len", "many"), "max_model_len: wanted int, got 'many'"),
        (("--spares=-1",), "spares: wanted an integer in 0..4096, got -1"),
        (("--spares", "4097"), "spares: wanted an integer in 0..4096, got 4097"),
        (
            ("--spares", "1", "--executor", "timing"),
            "spares: wanted chips in processes that can be lost, got --executor timing",
        ),
        (
            ("--spares", "1", "--transport", "local"),
            "spares: wanted chips in processes that can be lost, got --transport local",
        ),
        (("--step-timeout-s", "0"), "step_timeout_s: wanted more than 0, got 0.0"),
        (("--step-timeout-s", "nan"), "step_timeout_s: wanted more than 0, got nan"),
        (("--step-timeout-s", "inf"), "step_timeout_s: wanted more than 0, got inf"),
        (("--executor", "slow"), f"executor: wanted one of {', '.join(EXECUTORS)}, got 'slow'"),
        (("--transport", "x"), f"transport: wanted one of {', '.join(TRANSPORTS)}, got 'x'"),
        (("--return", "topk"), "return: wanted logits or topk:K, got 'topk'"),
        (("--return", "topk:0"), "return: wanted logits or topk:K, got 'topk:0'"),
        (("--return", "topk:-1"), "return: wanted logits or topk:K, got 'topk:-1'"),
        (("--return", "best:3"), "return: wanted logits or topk:K, got 'best:3'"),
    ],
)
def test_values_out_of_range_are_refused(argv: tuple[str, ...], wanted: str) -> None:
    assert refusal(*argv) == wanted


def test_k_of_the_largest_logits() -> None:
    assert RunConfig(model="x").top_k == 0
    assert RunConfig(model="x", returns="topk:40").top_k == 40


def test_parse_exits_with_2_and_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args, config = parse(parser(), ["tiny", "--dtype", "fp16"])
    assert (args.model, config.dtype) == ("tiny", "fp16")
    with pytest.raises(SystemExit) as caught:
        parse(parser(), ["tiny", "--seed", "x"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith("verb: error: seed: wanted int, got 'x'\n")
    monkeypatch.setenv("LPU_RACK_SPEED", "1")
    with pytest.raises(SystemExit):
        parse(parser(), ["tiny"])
    assert "LPU_RACK_SPEED: unknown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "text", "wanted"),
    [
        ("LPU_RACK_SEED", "x", "LPU_RACK_SEED: wanted int, got 'x'"),
        ("LPU_RACK_SEED", "-1", "LPU_RACK_SEED: wanted an integer in 0..2^64-1, got -1"),
        ("LPU_RACK_RETURNS", "best", "LPU_RACK_RETURNS: wanted logits or topk:K, got 'best'"),
        ("LPU_RACK_EXECUTOR", "slow", "LPU_RACK_EXECUTOR: wanted one of fast, reference, timing,"),
        ("LPU_RACK_STEP_TIMEOUT_S", "nan", "LPU_RACK_STEP_TIMEOUT_S: wanted more than 0, got nan"),
        ("LPU_RACK_HARDWARE", "", "LPU_RACK_HARDWARE: wanted 1 to 4096 characters"),
    ],
)
def test_a_variable_that_is_wrong_is_named(variable: str, text: str, wanted: str) -> None:
    assert refusal(**{variable: text}).startswith(wanted)
    assert resolved("--executor", "timing", **{"LPU_RACK_SEED": "3"}).seed == 3


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (("--weights", ""), "weights: wanted 1 to 4096 characters, none of them zero, got ''"),
        (("--hardware", "a\0b"), "hardware: wanted 1 to 4096 characters, none of them zero, got"),
        (("--layout", "x" * 5000), "layout: wanted 1 to 4096 characters, none of them zero, got"),
        (("--max-model-len", str(1 << 63)), f"max_model_len: wanted an integer up to {1 << 62}"),
        (("--prefill-chunk", str(-(1 << 63))), f"prefill_chunk: wanted an integer up to {1 << 62}"),
        (("--seed", "9" * 5000), "seed: wanted int, got '9999999999"),
        (("--return", "topk:1025"), "return: wanted topk:K with K up to 1024, got 'topk:1025'"),
        (("--return", "topk:" + "9" * 4000), "return: wanted logits or topk:K, got 'topk:99"),
        (("--return", "topk:\u0663"), "return: wanted logits or topk:K, got 'topk:\u0663'"),
    ],
)
def test_values_without_sense(argv: tuple[str, ...], wanted: str) -> None:
    assert refusal(*argv).startswith(wanted)
    assert len(refusal(*argv)) < 300


def test_a_file_without_end(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    os.mkfifo(path)
    got = "wanted a TOML file, got it is no regular file"
    assert refusal("--config", str(path)) == f"{path}: {got}"
    assert refusal("--config", "/dev/zero") == f"/dev/zero: {got}"
    deep = file(tmp_path / "..", "seed = " + "[" * 100_000)
    assert "wanted a TOML file, got " in refusal("--config", deep)
    assert len(refusal("--config", "x" * 9000)) < 1200


def test_what_was_given_is_known() -> None:
    config = resolved("--dtype", "int8", LPU_RACK_LAYOUT="auto")
    assert config.given == {"model", "dtype", "layout"}
    assert [config.asked(key) for key in ("dtype", "layout", "hardware")] == [True, True, False]
    assert RunConfig(model="x", hardware="groqrack").asked("hardware")
    assert config == RunConfig(model="tiny")


def test_counts_have_a_most(capsys: pytest.CaptureFixture[str]) -> None:
    made = parser()
    made.add_argument("--n", type=count(9))
    assert made.parse_args(["tiny", "--n", "9"]).n == 9
    for text, wanted in (
        ("10", "wanted an integer up to 9, got '10'"),
        ("-10", "wanted an integer up to 9, got '-10'"),
        ("9" * 5000, "wanted an integer up to 9, got '9999"),
        ("x", "invalid int value: 'x'"),
    ):
        with pytest.raises(SystemExit):
            made.parse_args(["tiny", f"--n={text}"])
        assert f"argument --n: {wanted}" in capsys.readouterr().err


def test_no_value_has_a_zero_byte(capsys: pytest.CaptureFixture[str]) -> None:
    made = parser()
    made.add_argument("--png")
    with pytest.raises(SystemExit):
        arguments(made, ["tiny", "--png", "a\0b"])
    text = "error: --png: wanted a text without zero bytes, got 'a\\x00b'"
    assert text in capsys.readouterr().err


def test_two_dashes_are_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    made = parser()
    made.add_argument("--stop", action="append", default=[])
    assert arguments(made, ["tiny", "--stop", "x"]).stop == ["x"]
    for flag in ("--config", "--stop"):
        with pytest.raises(SystemExit):
            arguments(made, ["tiny", f"{flag}=--"])
        assert f"error: {flag}: wanted a value, got '--'" in capsys.readouterr().err
