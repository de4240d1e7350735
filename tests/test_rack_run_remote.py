"""Chips in processes of their own: same tokens, and every way of dying gives a named error."""

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from chip.errors import ScheduleViolation
from chip.kernels import Kernels
from chip.kernels import load as load_kernels
from compiler.model.frontend import resolve_model
from compiler.pipeline import CompiledModel, Options, compile_model
from compiler.place.layout import parse_layout
from interconnect.faults import Drop, Duplicate, Resize, Shift
from interconnect.frame import Control
from interconnect.zmq_transport import ZmqTransport
from rack.errors import ChipFailedError, ControlError, OtherCodeError, RackClosedError
from rack.machines.profile import load_hardware
from rack.run import remote
from rack.run.completion import Completion
from rack.run.engine import Engine
from rack.run.launcher import Post
from rack.run.local import LocalRack
from rack.run.processes import ProcessLauncher
from rack.run.remote import RemoteRack
from rack.run.steps import Rack
from rack.system.provenance import running_code
from rack.text.sampler import SamplingParams
from rack.text.tokenizer import load_tokenizer

MODEL = resolve_model("tiny")
GREEDY = SamplingParams(max_tokens=4, ignore_eos=True)


def compiled(layout: str = "2x2+1") -> CompiledModel:
    options = Options(prefill_chunk=4)
    return compile_model(MODEL.config, load_hardware("lesson"), parse_layout(layout), options)


def run(rack: Rack) -> Completion:
    c = MODEL.config
    tokenizer = load_tokenizer(None, c.vocab_size, c.bos_token_id, c.eos_token_ids)
    return Engine(rack, tokenizer).generate([256, 72, 105, 33, 33, 33], GREEDY).run()


def start(timeout_s: float = 60.0, **extra: object) -> RemoteRack:
    return RemoteRack(
        compiled(), MODEL.weights_ref, ProcessLauncher(), step_timeout_s=timeout_s, **extra
    )


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = [c for c in psutil.Process().children(recursive=True) if c.pid not in before]
    names = [" ".join(child.cmdline()) for child in left if child.status() != "zombie"]
    assert not [name for name in names if "resource_tracker" not in name]


def test_experts_in_processes() -> None:
    """A checkpoint of packed experts, of which each process reads its own columns."""
    model = resolve_model(str(Path(__file__).parent / "goldens" / "gpt_oss"))
    options = Options(max_model_len=32, prefill_chunk=4, buckets=(32,))
    made = compile_model(model.config, load_hardware("lesson"), parse_layout("1x2"), options)
    results = []
    for rack in (
        LocalRack(made, model.weights_ref),
        RemoteRack(made, model.weights_ref, ProcessLauncher(), step_timeout_s=60),
    ):
        try:
            rack.reset()
            steps = [rack.run_step("prefill4/32", range(4), [7, 8, 9, 10])]
            steps += [rack.run_step("decode/32", [i], [i]) for i in (4, 5)]
            results.append([(step.cycles, step.hash_share) for step in steps])
        finally:
            rack.close()
    assert results[0] == results[1]
    assert len({share for _, share in results[0][1:]}) == 2


def test_the_reference_executor_in_processes() -> None:
    """Same steps as in one process; lowering in the first run has time of its own."""
    options = Options(max_model_len=8, prefill_chunk=1, buckets=(8,))
    layout = parse_layout("1x2")
    model = compile_model(MODEL.config, load_hardware("lesson"), layout, options, kinds="decode")
    racks: list[Rack] = [
        LocalRack(model, MODEL.weights_ref),
        RemoteRack(
            model, MODEL.weights_ref, ProcessLauncher(), step_timeout_s=30, executor="reference"
        ),
    ]
    results = []
    for rack in racks:
        assert rack.executor in ("fast", "reference")
        try:
            rack.reset()
            steps = [rack.run_step("decode/8", [i], [5 + i]) for i in range(2)]
            results.append([(step.cycles, step.hash_share) for step in steps])
        finally:
            rack.close()
    assert results[0] == results[1]


def pids(rack: RemoteRack) -> dict[int, int]:
    launcher = rack.launcher
    assert isinstance(launcher, ProcessLauncher)
    return {chip: process.pid or 0 for chip, process in launcher.processes.items()}


def test_processes_give_the_local_rack_s_hashes_and_cycles() -> None:
    local = LocalRack(compiled(), MODEL.weights_ref)
    want = run(local)
    rack = start()
    try:
        folder = Path(rack._folder)
        assert folder.exists()
        for _ in range(2):
            got = run(rack)
            assert got.token_ids == want.token_ids
            assert got.data_hash == want.data_hash
            assert got.decode_cycles == want.decode_cycles
            assert got.prompt_cycles == want.prompt_cycles
        assert rack.saturated() == 0
    finally:
        rack.close()
        local.close()
    assert not folder.exists()
    with pytest.raises(RackClosedError, match="cannot be used any more: closed"):
        run(rack)


def test_without_rings_every_frame_takes_a_socket() -> None:
    local = LocalRack(compiled(), MODEL.weights_ref)
    want = run(local)
    local.close()
    rack = start(rings=False)
    try:
        got = run(rack)
        assert (got.data_hash, got.decode_cycles) == (want.data_hash, want.decode_cycles)
        for process in map(psutil.Process, pids(rack).values()):
            assert not [m for m in process.memory_maps() if "lpu-rings" in m.path]
    finally:
        rack.close()


def test_a_dead_chip_is_named_with_step_and_what_the_others_wait_for() -> None:
    rack = start()
    try:
        run(rack)
        os.kill(pids(rack)[2], signal.SIGKILL)
        with pytest.raises(ChipFailedError) as caught:
            run(rack)
        error = caught.value
        assert error.chip == 2
        assert error.step.startswith("step prefill4/")
        assert "its process ended (exit code -9)" in str(error)
        assert "vectors did not come" in error.waiting_for
        with pytest.raises(RackClosedError, match="cannot be used any more: chip 2"):
            run(rack)
    finally:
        rack.close()


def test_a_stalled_chip_is_named_at_the_deadline() -> None:
    rack = start(timeout_s=1.0)
    try:
        run(rack)
        os.kill(pids(rack)[1], signal.SIGSTOP)
        with pytest.raises(
            ChipFailedError, match=r"no answer within 1.0 s; silent chips \[1\]"
        ) as e:
            run(rack)
        assert e.value.chip == 1
    finally:
        rack.close()


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (lambda link: Drop(link, 2), "vectors did not come|wrong .step number, transfer."),
        (lambda link: Duplicate(link, 1), "a frame came again|wrong .step number, transfer."),
        (lambda link: Shift(link, 1, 1), "first vector's arrival"),
        (lambda link: Resize(link, 1, 319), "payload size in bytes"),
    ],
)
def test_a_fault_on_the_wire_stops_the_run_by_name(fault: object, what: str) -> None:
    model = compiled()
    link = next(link for link in model.network.links if (link.src, link.dst) == (0, 1))
    rack = start(timeout_s=1.5, faults=[fault(link.id)])  # type: ignore[operator]
    try:
        with pytest.raises(ScheduleViolation, match=what) as caught:
            run(rack)
        error = caught.value
        assert error.chip == 1
        assert error.link == link.name
        assert error.cycle > 0
        assert error.operation
    finally:
        rack.close()
    rack = start()
    try:
        assert len(run(rack).token_ids) == 4
    finally:
        rack.close()


def test_a_chip_that_cannot_load_fails_the_start(tmp_path: Path) -> None:
    weights = MODEL.weights_ref.from_folder(MODEL.config, tmp_path)
    with pytest.raises(Exception, match="safetensors"):
        RemoteRack(compiled("1x1"), weights, ProcessLauncher(), step_timeout_s=5.0)


def test_chips_are_found_where_the_driver_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the current folder, whatever is called like us there."""
    for package in ("chip", "rack"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise ImportError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    rack = start()
    try:
        assert len(run(rack).token_ids) == 4
    finally:
        rack.close()


@pytest.mark.parametrize("what", ["version", "sources", "kernels", "python"])
def test_a_chip_that_runs_other_code_is_refused(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    real = remote.running_code

    def other(kernels: Kernels) -> dict[str, str]:
        return real(kernels) | {what: "something else"}

    monkeypatch.setattr(remote, "running_code", other)
    wanted = rf"chip \d \(.+ on .+\) runs other code than the driver: {what}: wanted something else"
    with pytest.raises(OtherCodeError, match=wanted) as caught:
        start()
    assert caught.value.got == real(load_kernels())[what]


def test_chips_run_the_driver_s_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "load_kernels", lambda: load_kernels("numpy"))
    rack = start()  # its processes would take the best there are
    try:
        assert len(run(rack).token_ids) == 4
    finally:
        rack.close()
    other = load_kernels("numpy")
    other.name = "native of another machine"
    monkeypatch.setattr(remote, "load_kernels", lambda: other)
    wanted = (
        "unknown implementation 'native of another machine'; wanted numpy.*every chip has to ru"
    )
    with pytest.raises(ChipFailedError, match=wanted):
        start()


def until_lost(rack: RemoteRack) -> None:
    while True:
        rack.check()


@pytest.mark.slow
def test_restarts_leave_nothing_open() -> None:
    def counts() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    model, seen = compiled("2x1"), []
    for number in range(10):
        rack = RemoteRack(model, MODEL.weights_ref, ProcessLauncher(), step_timeout_s=60.0)
        try:
            if number % 5 == 0:
                run(rack)
            os.kill(pids(rack)[number % 2], signal.SIGKILL)
            with pytest.raises(ChipFailedError, match="between steps: its process ended"):
                until_lost(rack)
            with pytest.raises(RackClosedError, match="its process ended"):
                rack.check()
        finally:
            rack.close()
        seen.append(counts())
    assert seen[1:] == [seen[1]] * 9


def test_a_start_has_a_deadline_too() -> None:
    class Nothing(ProcessLauncher):
        def start(self, jobs: object) -> None:
            """Start no process."""

    with pytest.raises(
        ChipFailedError, match=r"5 of 5 chips did not load in time: \[0, 1, 2, 3, 4\]"
    ):
        RemoteRack(
            compiled(), MODEL.weights_ref, Nothing(), step_timeout_s=1.0, start_timeout_s=0.2
        )


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ([(0, "ready")], "chip 0, started: wanted hello or spare or error from the chip, "
         "got ready"),
        ([(0, "hello"), (0, "hello")], "chip 0, loading: wanted ready or error from the chip, "
         "got hello"),
        ([(0, "hello"), (0, "peers")], "chip 0, loading: wanted ready or error from the chip, "
         "got peers"),
        ([(0, "hello"), (0, "ready"), (0, "report")], "chip 0, loaded: wanted error from the chip, "
         "got report"),
        ([(7, "hello")], "chip 7, none of the 5 chips of this rack: wanted nothing from it, got "
         "hello"),
    ],
    ids=lambda value: " ".join(kind for _, kind in value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_a_chip_says_out_of_order_ends_the_start(
    said: list[tuple[int, str]], text: str
) -> None:
    class Talking(ProcessLauncher):
        """One chip, which is only a voice."""

        def start(self, posts: Sequence[Post]) -> None:
            seat = posts[0].seat
            self.voice = ZmqTransport(seat.process, seat.bind, seat.key)
            self.voice.connect({seat.host: seat.host_endpoint})
            for chip, kind in said:
                values = {
                    "chip": chip, "code": running_code(load_kernels()), "rings": None,
                    "endpoint": self.voice.endpoint, "process": chip, "pid": 0,
                }  # fmt: skip
                self.voice.send(seat.host, Control(kind, values))

        def stop(self) -> None:
            self.voice.close()

    with pytest.raises(ControlError) as caught:
        RemoteRack(compiled(), MODEL.weights_ref, Talking(), step_timeout_s=1.0)
    assert str(caught.value) == text


def test_a_frame_may_overtake_the_word_that_its_request_has_begun() -> None:
    """Between different senders there is no order: chip 0's frame may come before the host's."""
    want = run(LocalRack(compiled(), MODEL.weights_ref)).data_hash
    rack = LocalRack(compiled(), MODEL.weights_ref)
    pump = rack.nodes[1].pump

    def late(timeout_s: float) -> bool:
        messages = []
        while (message := rack.nodes[1].transport.receive(0)) is not None:
            messages.append(message)
        for message in sorted(messages, key=lambda m: isinstance(m, Control)):
            rack.nodes[1].handle(message)
        return pump(timeout_s) or bool(messages)

    rack.nodes[1].pump = late  # type: ignore[method-assign]
    assert run(rack).data_hash == want
    assert run(rack).data_hash == want
    rack.close()
