"""`rack.replay`: its report, its files, what is refused, and a running server's own times."""

from __future__ import annotations

import csv
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rack_kit import refused
from schedules import compiled
from server_process import ROOT, server

from rack.commands.replay import main
from rack.errors import ConfigError
from rack.run.config import RunConfig
from rack.run.session import prepare
from rack.traffic import against
from rack.traffic.request import Request
from rack.traffic.rows import COLUMNS
from rack.traffic.slo import PRESETS

TRACES = Path(__file__).resolve().parent / "traces"
MODEL = ("--layout", "1x1", "--max-model-len", "128", "--prefill-chunk", "8")
SLOTS = ("--sequences", "4", "--batch", "2")
HEADS = {"png": b"\x89PNG\r\n", "svg": b"<?xml"}


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trace of 60 requests that come faster than one slot serves them."""
    path = tmp_path_factory.mktemp("trace") / "busy.csv"
    rows = [f"{n * 100e-6:.7f},{1 + n * 7 % 50},{1 + n * 5 % 23}\n" for n in range(60)]
    path.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" + "".join(rows))
    return str(path)


def report_of(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["tiny", *MODEL, *argv, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


@pytest.mark.parametrize("path", sorted(TRACES.iterdir()), ids=lambda path: path.name)
def test_every_sample_is_replayed_twice_alike(
    capsys: pytest.CaptureFixture[str], path: Path
) -> None:
    report = report_of(capsys, "--trace", str(path), *SLOTS)
    (run,) = report["runs"]
    assert run["completed"] + sum(run["refused"].values()) == run["requests"] > 0
    assert run["ttft_ms"]["mean"] > 0
    assert [slo["name"] for slo in run["slo"]] == [*PRESETS]
    assert report_of(capsys, "--trace", str(path), *SLOTS) == report
    long = 1 if path.name == "mooncake.jsonl" else 0
    assert run["refused"] == {"prompt_beyond_context": long, "queue_full": 0}


def test_rates_slots_and_queues(capsys: pytest.CaptureFixture[str], busy: str) -> None:
    report = report_of(
        capsys, "--trace", busy, "--rate-scale", "0.1,1,10", "--slo", "ttft=300us",
        "--slo", "server", *SLOTS,
    )  # fmt: skip
    assert [run["rate_scale"] for run in report["runs"]] == [0.1, 1, 10]
    for slow, fast in pairwise(report["runs"]):
        assert fast["offered_requests_per_s"] == pytest.approx(10 * slow["offered_requests_per_s"])
        assert fast["slo"][0]["attainment"] <= slow["slo"][0]["attainment"]
        assert fast["ttft_ms"]["p99"] >= slow["ttft_ms"]["p99"]
        assert fast["slots"]["occupancy"] >= slow["slots"]["occupancy"]
    calm, _, full = report["runs"]
    assert calm["saturation"]["verdict"] == "not saturated"
    assert full["saturation"]["verdict"] == "saturated"
    (short,) = report_of(
        capsys, "--trace", busy, "--rate-scale", "10", "--max-queue", "2", *SLOTS
    )["runs"]  # fmt: skip
    assert short["refused"]["queue_full"] > 0
    (more,) = report_of(
        capsys, "--trace", busy, "--rate-scale", "10", "--max-queue", "2", "--replicas", "3", *SLOTS
    )["runs"]  # fmt: skip
    assert more["completed"] > short["completed"]
    assert more["slots"]["capacity"] == 3 * short["slots"]["capacity"]
    (few,) = report_of(capsys, "--trace", busy, "--limit", "7")["runs"]
    assert few["requests"] == 7


def test_an_answer_ends_where_the_context_does(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,100,500\n0,127,1\n0,128,1")
    (run,) = report_of(capsys, "--trace", str(path))["runs"]
    assert run["output_tokens"] == 28 + 1
    assert run["passed_over"] == {"answers_cut_by_context": 1}
    assert run["refused"] == {"prompt_beyond_context": 1, "queue_full": 0}


def test_rows_of_requests(capsys: pytest.CaptureFixture[str], busy: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    report = report_of(
        capsys, "--trace", busy, "--csv", str(path), "--max-queue", "3", "--rate-scale", "1,10",
        *SLOTS,
    )  # fmt: skip
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    for run in report["runs"]:
        mine = [row for row in rows if float(row["rate_scale"]) == run["rate_scale"]]
        assert sorted(int(row["number"]) for row in mine) == list(range(60))
        done = [row for row in mine if not row["refused"]]
        assert len(done) == run["completed"]
        for key in ("ttft", "e2e", "tpot"):
            values = [1000 * float(row[f"{key}_s"]) for row in done if row[f"{key}_s"]]
            assert sum(values) / len(values) == pytest.approx(run[f"{key}_ms"]["mean"])
        for row in done:
            cycles = int(row["end_cycles"]) - int(row["arrival_cycles"])
            assert float(row["e2e_s"]) == pytest.approx(cycles / compiled().chip.clock_hz)
        for row in mine:
            assert bool(row["refused"]) == (row["end_cycles"] == "")


@pytest.mark.parametrize("scales", ["1", "0.5,4"])
def test_pictures(
    capsys: pytest.CaptureFixture[str], busy: str, tmp_path: Path, scales: str
) -> None:
    paths = [tmp_path / f"replay.{kind}" for kind in HEADS]
    flags = [word for path in paths for word in ("--plot", str(path))]
    report_of(capsys, "--trace", busy, "--rate-scale", scales, *flags)
    for path, head in zip(paths, HEADS.values(), strict=True):
        assert path.read_bytes().startswith(head)
    before = paths[0].read_bytes()
    report_of(capsys, "--trace", busy, "--rate-scale", scales, "--plot", str(paths[0]))
    assert paths[0].read_bytes() == before


def test_a_picture_of_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, picture = tmp_path / "trace.csv", tmp_path / "replay.png"
    head = "arrived_at,num_prefill_tokens,num_decode_tokens\n"
    for body in ("", "1,500,3\n", "1,5,1\n"):
        path.write_text(head + body)
        report_of(capsys, "--trace", str(path), "--plot", str(picture), "--rate-scale", "1,2")
        assert picture.read_bytes().startswith(HEADS["png"])


def test_the_text(capsys: pytest.CaptureFixture[str], busy: str) -> None:
    assert main(["tiny", *MODEL, "--trace", busy, *SLOTS]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[0] == (
        "tiny int8 on lesson 1x1, 1 x 1 chips, 4 slots each, context 128: Vidur"
    )  # fmt: skip
    assert lines[1].startswith("rate x 1: 60 requests in 0.0059 s, 1e+04 requests offered/s; 60 ")
    for word in ("time to first token", "p99.9", "goodput", "tokens in flight", "interactive"):
        assert word in said
    assert main(["tiny", *MODEL, "--trace", str(TRACES / "sharegpt.json")]) == 0
    assert "NOTE: a byte counts as a token: no tokenizer.json" in capsys.readouterr().err


BAD = [
    (("--rate-scale", "0"), "rate-scale: wanted numbers from 1e-06 to 1e+06 with commas, got '0'"),
    (("--rate-scale", "nan"),
     "rate-scale: wanted numbers from 1e-06 to 1e+06 with commas, got 'nan'"),
    (("--rate-scale", "1,x"),
     "rate-scale: wanted numbers from 1e-06 to 1e+06 with commas, got '1,x'"),
    (("--rate-scale", "2,2.0"), "rate-scale: wanted each once, got '2,2.0'"),
    (("--rate", "nan"), "rate: wanted 1e-06 to 1e+06 requests a second, got nan"),
    (("--rate", "3"), "rate: wanted none for a trace that has times (Vidur), got 3; "
     "--rate-scale makes it faster"),
    (("--slo", "fast"), "slo: wanted server, interactive, or ttft, tpot, e2e as KIND=TIME,… "
     "(450ms, 2s; seconds), got 'fast'"),
    (("--plot", "x.gif"), "x.gif: wanted a picture to write, got a name that ends in .gif; "
     "known: png, svg, pdf"),
    (("--csv", "no/rows.csv"), "no/rows.csv: wanted rows to write, got no folder {here}/no"),
    (("--against", "host:80"),
     "against: wanted the URL of a server (http://127.0.0.1:8000), got 'host:80'"),
    (("--against", "http://[1"),
     "against: wanted the URL of a server (http://127.0.0.1:8000), got 'http://[1'"),
    (("--against", "http://h:99999"),
     "against: wanted the URL of a server (http://127.0.0.1:8000), got 'http://h:99999'"),
    (("--trace", "no.csv"),
     "no.csv: wanted a trace to read, got No such file or directory"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "said"), BAD, ids=range(len(BAD)))
def test_what_is_refused(
    capsys: pytest.CaptureFixture[str], busy: str, tmp_path: Path, flags: tuple[str, ...],
    said: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, 1, main, "tiny", *MODEL, "--trace", busy, *flags)
    assert line == said.format(here=tmp_path)


def test_usage(capsys: pytest.CaptureFixture[str], busy: str) -> None:
    for flag, value, said in (
        ("--limit", "0", "--limit: wanted at least 1, got 0"),
        ("--replicas", "0", "--replicas: wanted at least 1, got 0"),
        ("--max-queue", "-1", "--max-queue: wanted at least 0, got -1"),
        ("--csv", "-", "--csv: wanted a file beside the report, got -, standard output"),
        ("--plot", "-", "--plot: wanted a file beside the report, got -, standard output"),
    ):
        assert refused(capsys, 2, main, "tiny", "--trace", busy, flag, value) == said


def test_files_that_are_the_same(
    capsys: pytest.CaptureFixture[str], busy: str, tmp_path: Path
) -> None:
    before, new = Path(busy).read_bytes(), tmp_path / "new.svg"
    link = tmp_path / "link.csv"
    link.symlink_to(busy)
    for flags, path, other in (
        (("--csv", str(link)), link, busy),
        (("--csv", str(new), "--plot", f"{tmp_path}/./new.svg"), f"{tmp_path}/./new.svg", new),
    ):
        said = refused(capsys, 2, main, "tiny", *MODEL, "--trace", busy, *flags)
        assert said == f"--csv, --plot: wanted files beside {other}, got {path}"
    assert Path(busy).read_bytes() == before


def test_a_malformed_line_leaves_no_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace, rows = tmp_path / "trace.csv", tmp_path / "rows.csv"
    trace.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,5,5\n1,5,five\n")
    assert main(["tiny", *MODEL, "--trace", str(trace), "--csv", str(rows)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {trace}: line 3: num_decode_tokens: wanted a whole number up to 1,073,741,824, "
        "got 'five'"
    )
    assert not rows.exists()


def test_it_is_a_program(busy: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rack.replay", "tiny", *MODEL, "--trace", busy, "--json"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["runs"][0]["completed"] == 60
    assert "replaying x 1: " in done.stderr


# -- against a running server


@pytest.fixture(scope="module", params=["none", "emulated"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    flags = (*MODEL, *SLOTS, "--executor", "timing", "--transport", "local")
    with server("tiny", *flags, "--pace", request.param, "--api-key", "k") as running:
        yield running.url
        assert running.end(signal.SIGTERM) == 0


def test_a_server_takes_the_same_cycles(
    capsys: pytest.CaptureFixture[str], busy: str, url: str
) -> None:
    argv = ["--trace", busy, "--against", url, "--api-key", "k", "--limit", "25", *SLOTS]
    report = report_of(capsys, *argv)
    assert report["against"] == {"requests": 25, "equal": 25, "different": []}
    assert main(["tiny", *MODEL, *argv]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "server: 25 of 25 requests took the same cycles"
    both = report_of(
        capsys, "--trace", str(TRACES / "mooncake.jsonl"), "--against", f"{url}/openai/v1/",
        "--api-key", "k", *SLOTS,
    )  # fmt: skip
    assert both["against"]["equal"] == 3  # one of them refused by both
    other = ("--trace", busy, "--against", url, "--api-key", "k")
    assert main(["tiny", *MODEL, *other]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: against: wanted a server with the schedules ")
    assert line.endswith(": start it with the same model, machine and flags")
    assert main(["tiny", *MODEL, "--trace", busy, "--against", url]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: against: wanted the server's models, got 401: ")


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str], busy: str) -> None:
    assert main(["tiny", *MODEL, "--trace", busy, "--against", "http://127.0.0.1:1"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        "error: against: http://127.0.0.1:1: wanted an answer, got [Errno 111] Connection refused"
    )


def answering(cycles: int, status: int = 200) -> against.Ask:
    """A server that gives any request so many cycles."""
    model = prepared()

    def ask(path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        if body is None:
            return 200, {"data": [{"id": "tiny"}]}
        used = {"queue": 7, "prompt": 0, "completion": cycles}
        marks = {"schedule_hash": model.schedule_hash, "emulated_cycles": used}
        return status, {"x_rack": marks, "error": {"message": "full"}}

    return ask


NO_MODELS = "against: wanted the server's models (data[0].id), got "
NO_MARK = "against: wanted an answer of rack.serve with x_rack."
OTHERS: list[tuple[Any, Any, str]] = [
    ({}, None, f"{NO_MODELS}{{}}"),
    ([], None, f"{NO_MODELS}[]"),
    ({"data": []}, None, f"{NO_MODELS}{{'data': []}}"),
    ({"data": [{"id": 5}]}, None, f"{NO_MODELS}{{'data': [{{'id': 5}}]}}"),
    (None, {"choices": []}, f"{NO_MARK}schedule_hash, got None"),
    (None, None, f"{NO_MARK}schedule_hash, got None"),
    (None, {"x_rack": {"schedule_hash": 5}}, f"{NO_MARK}schedule_hash, got 5"),
    (None, {"x_rack": {"schedule_hash": "SAME"}}, f"{NO_MARK}emulated_cycles.prompt, got None"),
    (None, {"x_rack": {"schedule_hash": "SAME", "emulated_cycles": {"prompt": 1}}},
     f"{NO_MARK}emulated_cycles.completion, got None"),
]  # fmt: skip


@pytest.mark.parametrize(("models", "body", "said"), OTHERS, ids=range(len(OTHERS)))
def test_a_server_of_another_kind(models: Any, body: Any, said: str) -> None:
    model = prepared()
    if body and (marks := body.get("x_rack")) and marks["schedule_hash"] == "SAME":
        body = {"x_rack": {**marks, "schedule_hash": model.schedule_hash}}

    def ask(path: str, asked: dict[str, Any] | None) -> tuple[int, Any]:
        known = {"data": [{"id": "tiny"}]} if models is None else models
        return 200, known if asked is None else body

    asked = Request(number=0, id="", arrival_s=0.0, prompt_tokens=3, output_tokens=2)
    with pytest.raises(ConfigError) as refusal:
        list(against.compare(model, [asked], ask))
    assert str(refusal.value) == said


ANSWERS = [
    (b"garbage\r\n\r\n", "wanted an answer, got garbage"),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
     "wanted an answer, got IncompleteRead(0 bytes read)"),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>", "wanted JSON, got b'<html>'"),
    (b"HTTP/1.1 500 no\r\ncontent-length: 1\r\n\r\n{", "wanted JSON, got b'{'"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "said"), ANSWERS, ids=range(len(ANSWERS)))
def test_an_answer_that_is_no_http_or_json(data: bytes, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"

        def answer() -> None:
            peer, _ = listening.accept()
            with peer:
                while not peer.recv(1 << 16).endswith(b"\r\n\r\n"):
                    pass
                peer.sendall(data)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConfigError) as refusal:
            against.server(url, None)("models", None)
        thread.join()
    assert str(refusal.value) == f"against: {url}: {said}"


def prepared() -> Any:
    config = RunConfig(model="tiny", layout="1x1", max_model_len=128, prefill_chunk=8)
    return prepare(config, runs=False).compiled


def test_other_times_are_told(
    capsys: pytest.CaptureFixture[str], busy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rack.commands.replay.server", lambda url, key: answering(5))
    assert main(["tiny", *MODEL, "--trace", busy, "--against", "x", "--limit", "2"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("server: 0 of 2 requests took the same cycles; request 0 ('0') took 5, ")


def test_an_answer_that_is_none() -> None:
    asked = Request(number=4, id="", arrival_s=0.0, prompt_tokens=3, output_tokens=2)
    with pytest.raises(ConfigError, match=r"^against: request 4: wanted an answer, got 503: 'f"):
        list(against.compare(prepared(), [asked], answering(5, status=503)))
    with pytest.raises(ConfigError, match=r"^against: http://h: wanted JSON, got b'<html>'$"):
        against._json("http://h", b"<html>")
