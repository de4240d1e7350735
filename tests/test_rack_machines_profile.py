"""Profiles: the shipped machines' published figures, and every way to write one wrong."""

from __future__ import annotations

import pickle
import re
from fractions import Fraction
from pathlib import Path

import pytest

from chip.spec import USES, ChipSpec
from compiler.model.graph import build_graph
from compiler.model.presets import PRESETS
from compiler.place.layout import parse_layout
from compiler.place.network import build_network
from compiler.place.partition import partition
from interconnect.errors import PortsExhaustedError
from interconnect.spec import LinkSpec
from interconnect.topology import LinkKind
from rack.errors import MachineError, ProfileError, RackError
from rack.machines import profile
from rack.machines.hardware import Cabling, SharedEgress
from rack.machines.profile import GRADES, load_hardware, profile_names

GROQ = load_hardware("groqrack")
LESSON = load_hardware("lesson")


def test_shipped_profiles() -> None:
    assert {"groqrack", "lesson"} <= set(profile_names())
    assert [load_hardware(name).name for name in profile_names()] == list(profile_names())


def test_groqrack_is_as_published() -> None:
    chip = GROQ.chip
    assert chip.sram_bytes == 220 * 2**20
    assert chip.words_per_bank == 4096
    assert chip.stream_bytes_per_cycle == 20_480
    assert chip.weight_load_cycles == 20
    link = GROQ.link_spec(11)
    assert (chip.clock_hz, GROQ.sources["chip.clock_hz"].fitted) == (900_000_000, "")
    three, five = (hops * (24 + 216) + (hops - 1) * chip.forward_cycles for hops in (3, 5))
    assert Fraction(three, chip.clock_hz) == Fraction(16, 10**7)  # 1.6 us in a rack
    assert Fraction(five, chip.clock_hz) < Fraction(3, 10**6)
    assert {name: func for name, func, _ in chip.delays}["NOTIFY"] == 35
    assert (GROQ.clock.hac_period_cycles, GROQ.clock.hac_exchange_cycles) == (252, 256)
    assert (link.payload_bps, link.slot_cycles(chip.clock_hz)) == (100_000_000_000, 24)
    assert GROQ.host_link.slot_cycles(chip.clock_hz) == 12
    assert Fraction(GROQ.host_link.latency_cycles, chip.clock_hz) == Fraction(10, 10**6)
    assert (GROQ.chips_per_node, GROQ.chips_per_rack, GROQ.max_chips) == (8, 72, 10_440)
    assert (GROQ.local_ports, GROQ.global_ports, GROQ.ports_per_chip) == (7, 4, 11)
    assert GROQ.link_spec(1) == link  # does not depend on the layout


def test_another_clock_leaves_links_and_the_host_as_fast(tmp_path: Path) -> None:
    """Their times are in nanoseconds; the chip's cycles of them are whole, rounded up."""
    text = value("chip", clock_hz=1_800_000_000)
    assert (GROQ.host_link.latency_cycles, GROQ.host_turnaround_cycles) == (9_000, 9_000)
    for name, strayed in (("groqrack", (0, 0)), ("groqrack-drift", (22_000, 600))):
        fast = load_hardware(write(tmp_path, f'name = "fast"\ninherits = "{name}"\n{text}'))
        assert fast.link_spec(1).latency_cycles == 2 * 216
        assert (fast.host_link.latency_cycles, fast.host_turnaround_cycles) == (18_000, 18_000)
        assert (fast.clock.jitter_mcycles, fast.clock.latency_sigma_mcycles) == strayed
        assert fast.link_spec(1).slot_cycles(fast.chip.clock_hz) == 48  # 47.23
    odd = write(tmp_path, f"{HEAD}{value('chip', clock_hz=901_000_000)}")
    assert load_hardware(odd).link_spec(1).latency_cycles == 217  # 216.24
    drift = load_hardware("groqrack-drift").clock
    assert (drift.jitter_mcycles, drift.latency_sigma_mcycles) == (11_000, 300)


def test_each_kind_of_link_has_its_latency(tmp_path: Path) -> None:
    """A schedule's links take the latency of where their cables run."""
    path = tmp_path / "far.toml"
    path.write_text(
        'name = "far"\ninherits = "groqrack"\n[link]\n'
        'global_latency_ns = { value = 250, source = "assumption: 2 m" }\n'
        'optical_latency_ns = { value = 300, source = "assumption: 12 m" }\n'
    )
    far = load_hardware(path)
    kinds = (LinkKind.LOCAL, LinkKind.GLOBAL, LinkKind.OPTICAL)
    assert [far.latency_cycles(kind) for kind in kinds] == [216, 225, 270]
    assert [GROQ.latency_cycles(kind) for kind in kinds] == [216] * 3
    assert {GROQ.sources[f"link.{kind}_latency_ns"].grade for kind in kinds[1:]} == {"assumption"}
    assert LESSON.latency_cycles(LinkKind.FREE) == 216
    chips = partition(build_graph(PRESETS["llama-8b"]), parse_layout("20x8"))
    network = build_network(chips, far)
    wired = {(link.src, link.src_port): link.kind for link in far.topology(160).links}
    for link in network.links:
        if not link.is_host:
            port = int(link.name.split(".")[1].split("->")[0])
            kind = wired[network.binding[link.src], port]
            assert link.latency_cycles == far.latency_cycles(kind)
    assert {link.latency_cycles for link in network.links if not link.is_host} == {216, 225, 270}


def test_a_rack_with_a_spare_node() -> None:
    spare = load_hardware("groqrack-64")
    assert (spare.chips_per_node, spare.chips_per_rack) == (8, 64)
    assert (spare.racks(64), spare.racks(65), GROQ.racks(65)) == (1, 2, 1)


def test_lesson_is_as_in_the_course_text() -> None:
    assert (LESSON.chips_per_card, LESSON.cards_per_rack, LESSON.chips_per_rack) == (2, 9, 18)
    assert LESSON.chip.sram_bytes == 230_686_720
    assert round(LESSON.chips_per_rack * 0.23, 2) == 4.14  # GB a rack
    assert isinstance(LESSON.chip_link, SharedEgress)
    assert LESSON.chip_link.egress_bps == Fraction(4_100_000_000_000, 2 * 18)
    assert (LESSON.cabling, LESSON.ports_per_chip, LESSON.max_chips) == (Cabling.FREE, 11, None)
    assert LESSON.chip == GROQ.chip  # what the text leaves open
    assert LESSON.host_link == GROQ.host_link


@pytest.mark.parametrize("ports", range(1, 12))
def test_lesson_shares_its_egress_over_the_ports(ports: int) -> None:
    assert LESSON.link_spec(ports).payload_bps * ports * 36 == 4_100_000_000_000


@pytest.mark.parametrize("ports", [0, 12])
def test_ports_out_of_range(ports: int) -> None:
    for hardware in (GROQ, LESSON):
        with pytest.raises(MachineError) as caught:
            hardware.link_spec(ports)
        assert str(caught.value) == f"{hardware.name}: ports in use: wanted 1 to 11, got {ports}"


@pytest.mark.parametrize(("chips", "racks"), [(1, 1), (72, 1), (73, 2), (576, 8)])
def test_groqrack_is_built_of_whole_racks(chips: int, racks: int) -> None:
    assert GROQ.racks(chips) == racks
    topology = GROQ.topology(chips, [(0, chips - 1)])
    assert topology.n_chips == 72 * racks
    assert topology.max_ports_used <= 11


def test_lesson_is_cabled_by_the_layout() -> None:
    topology = LESSON.topology(20, [(0, 19), (0, 1)])
    assert (topology.n_chips, topology.n_cables, topology.max_ports_used) == (20, 2, 2)
    assert LESSON.racks(20) == 2
    with pytest.raises(PortsExhaustedError, match=r"^topology: chip 0: wanted at most 11 ports"):
        LESSON.topology(13, [(0, chip) for chip in range(1, 13)])


def test_machines_that_cannot_be() -> None:
    with pytest.raises(MachineError) as caught:
        GROQ.topology(10_441)
    assert str(caught.value) == "groqrack: chips: wanted 1 to 10440, got 10441"
    with pytest.raises(MachineError) as caught:
        LESSON.topology(0)
    assert str(caught.value) == "lesson: chips: wanted at least 1, got 0"
    with pytest.raises(MachineError) as caught:
        LESSON.dragonfly()
    assert str(caught.value) == "lesson: cabling: wanted dragonfly, got free"


def test_places() -> None:
    assert [LESSON.card_of(slot) for slot in (0, 1, 2, 35)] == [0, 0, 1, 17]
    assert [LESSON.rack_of(slot) for slot in (0, 17, 18)] == [0, 0, 1]
    assert [GROQ.rack_of(slot) for slot in (71, 72)] == [0, 1]


def test_every_number_has_its_source() -> None:
    for hardware in (GROQ, LESSON):
        for key, (value, grade, source, _) in hardware.sources.items():
            assert value is not None, key
            assert source, key
            assert (grade == "assumption") == source.startswith("assumption:"), key
            assert grade in (*GRADES, "assumption"), key
    assert set(ChipSpec.__slots__) - {"delays", *USES} == {
        key.removeprefix("chip.") for key in GROQ.sources if key.startswith("chip.")
    }
    assert GROQ.sources["link.latency_ns"].grade == "A"
    assert GROQ.sources["chip.forward_cycles"].fitted == "1.6 us end to end in a rack"
    assert "link.lanes" not in LESSON.sources  # inherited, but not used
    assert "link.rack_bps" not in GROQ.sources


def test_digest_is_of_the_values(tmp_path: Path) -> None:
    assert re.fullmatch("[0-9a-f]{64}", GROQ.digest())
    assert GROQ.digest() == load_hardware("groqrack").digest() != LESSON.digest()
    same = write(tmp_path, 'name = "mine"\ninherits = "groqrack"\n')
    assert load_hardware(same).digest() == GROQ.digest()
    assert load_hardware(same).to_dict() == GROQ.to_dict() | {"name": "mine"}
    copy = pickle.loads(pickle.dumps(LESSON))
    assert (copy, copy.digest()) == (LESSON, LESSON.digest())
    assert hash(copy) == hash(LESSON)


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


FAST = '[link]\nlanes = { value = 8, source = "assumption: twice the lanes" }\n'


def test_a_user_adds_a_machine(tmp_path: Path) -> None:
    path = write(tmp_path, f'name = "fast"\ninherits = "groqrack"\n{FAST}')
    fast = load_hardware(str(path))
    assert isinstance(fast.chip_link, LinkSpec)
    assert fast.link_spec(11).slot_cycles(fast.chip.clock_hz) == 12
    assert fast.sources["link.lanes"].source == "assumption: twice the lanes"
    heir = write(tmp_path, 'name = "heir"\ninherits = "mine.toml"\n', "heir.toml")
    assert load_hardware(heir).chip_link == fast.chip_link  # a path beside the file


HEAD = 'name = "mine"\ninherits = "groqrack"\n'
SOURCED = 'source = "assumption: a try"'
SHAPE = '{ value, grade, source } or { value, source = "assumption: ..." }'
TABLES = (
    "one of name, inherits, [chip], [delays], [system], [link], [clock], [errors], [host], "
    "[economics]"
)
GRADED = "a grade (A, B, C, D, M) or a source that starts with 'assumption:'"
CHOICES = "no such key with system.cabling = 'dragonfly', link.rate = 'per_link'"
FIT = "numbers that fit together"


@pytest.mark.parametrize(
    ("text", "key", "wanted", "got"),
    [
        ("name = ", "file", "TOML", "Invalid value (at end of document)"),
        ('inherits = "groqrack"', "name", "a text", "nothing"),
        ("name = 3", "name", "a text", "3"),
        ('name = "x"\ninherits = 3', "inherits", "a text", "3"),
        ('name = "x"', "system.cabling", "a value", "nothing"),
        (f"{HEAD}clock = 3", "clock", TABLES, "an unknown key"),
        (f"{HEAD}[chips]\nlanes = 3", "chips", TABLES, "an unknown key"),
        (
            f"{HEAD}[host]\nlanes = 3",
            "host.lanes",
            "one of latency_ns, overhead_bytes, payload_bps, turnaround_ns",
            "an unknown key",
        ),
        (f"{HEAD}[chip]\nlanes = 320", "chip.lanes", SHAPE, "320"),
        (
            f'{HEAD}[chip]\nlanes = {{ value = 320, grade = "A" }}',
            "chip.lanes",
            SHAPE,
            "{'grade': 'A', 'value': 320}",
        ),
        (
            f"{HEAD}[chip]\nlanes = {{ value = 320, {SOURCED}, note = 1 }}",
            "chip.lanes",
            SHAPE,
            "also note",
        ),
        (
            f'{HEAD}[chip]\nlanes = {{ value = 320, {SOURCED}, fitted = " " }}',
            "chip.lanes",
            "the figure it was fitted to, in words",
            "' '",
        ),
        (
            f'{HEAD}[chip]\nlanes = {{ value = 320, source = "a page" }}',
            "chip.lanes",
            GRADED,
            "neither",
        ),
        (
            f'{HEAD}[chip]\nlanes = {{ value = 320, grade = "Z", source = "a page" }}',
            "chip.lanes",
            GRADED,
            "'Z'",
        ),
        (
            f'{HEAD}[chip]\nlanes = {{ value = 320, grade = "A", {SOURCED} }}',
            "chip.lanes",
            "no grade on an assumption",
            "'A'",
        ),
        (
            f'{HEAD}[chip]\nlanes = {{ value = 320, source = "assumption: " }}',
            "chip.lanes",
            "a source in words",
            "'assumption: '",
        ),
        (
            f"{HEAD}[chip]\nclock_hz = {{ value = 9e8, {SOURCED} }}",
            "chip.clock_hz",
            "an integer >= 1",
            "900000000.0",
        ),
        (
            f"{HEAD}[link]\nlatency_ns = {{ value = 0, {SOURCED} }}",
            "link.latency_ns",
            "an integer >= 1",
            "0",
        ),
        (
            f"{HEAD}[link]\noverhead_bytes = {{ value = -1, {SOURCED} }}",
            "link.overhead_bytes",
            "an integer >= 0",
            "-1",
        ),
        (
            f'{HEAD}[system]\ncabling = {{ value = "ring", {SOURCED} }}',
            "system.cabling",
            "'free' or 'dragonfly'",
            "'ring'",
        ),
        (
            f"{HEAD}[link]\nrack_bps = {{ value = 1, {SOURCED} }}",
            "link.rack_bps",
            f"{CHOICES} and exact clocks and links without errors",
            "one",
        ),
        (
            f"{HEAD}[system]\nchips_per_node = {{ value = 7, {SOURCED} }}",
            "system.chips_per_node",
            "a divisor of the 72 chips of a rack",
            "7",
        ),
        (
            f"{HEAD}[system]\nports_per_chip = {{ value = 16, {SOURCED} }}",
            "system.ports_per_chip",
            "local_ports + global_ports = 11",
            "16",
        ),
        (
            f"{HEAD}[chip]\nsuperlanes = {{ value = 3, {SOURCED} }}",
            "chip.superlanes",
            "20 (only that is modelled)",
            "3",
        ),
        (
            f"{HEAD}[link]\nencoding_payload = {{ value = 67, {SOURCED} }}",
            "link",
            FIT,
            "link.encoding_payload: wanted at most encoding_total (66), got 67",
        ),
        (
            f"{HEAD}[delays]\nREAD = {{ value = 5, {SOURCED} }}",
            "delays.READ",
            "[d_func, d_skew], integers >= 0",
            "5",
        ),
        (
            f"{HEAD}[system]\nchips_per_node = {{ value = 9, {SOURCED} }}",
            "system",
            FIT,
            "topology: local_ports: wanted 8, one to every other chip of a node, got 7",
        ),
    ],
)
def test_refused(tmp_path: Path, text: str, key: str, wanted: str, got: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ProfileError) as caught:
        load_hardware(path)
    assert str(caught.value) == f"{path}: {key}: wanted {wanted}, got {got}"
    error = caught.value
    assert (error.file, error.key, error.wanted, error.got) == (str(path), key, wanted, got)


def test_unknown_names(tmp_path: Path) -> None:
    names = ", ".join(profile_names())
    with pytest.raises(ProfileError) as caught:
        load_hardware("groq-rack")
    assert str(caught.value) == (
        f"groq-rack: profile: wanted {names} or the path of a .toml file, got no such profile"
    )
    path = write(tmp_path, 'name = "x"\ninherits = "nothing.toml"')
    with pytest.raises(ProfileError, match=f"inherits in {re.escape(str(path))}: wanted {names}"):
        load_hardware(path)


def test_inheritance_ends(tmp_path: Path) -> None:
    a = write(tmp_path, 'name = "a"\ninherits = "b.toml"', "a.toml")
    b = write(tmp_path, 'name = "b"\ninherits = "a.toml"', "b.toml")
    with pytest.raises(ProfileError) as caught:
        load_hardware(a)
    assert str(caught.value) == f"{a}: inherits: wanted an end, got {a} -> {b} -> {a}"


@pytest.mark.parametrize(
    "error",
    [
        ProfileError(file="f", key="k", wanted="w", got="g"),
        MachineError(machine="m", what="chips", wanted="1", got=0),
    ],
)
def test_errors_survive_pickle(error: RackError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def value(table: str, **keys: object) -> str:
    lines = [f"{key} = {{ value = {new}, {SOURCED} }}" for key, new in keys.items()]
    return f"[{table}]\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "key", "wanted", "got"),
    [
        (value("chip", clock_hz=10**30), "chip.clock_hz", "at most 1000000000000", "1"),
        (value("chip", clock_hz="true"), "chip.clock_hz", "an integer >= 1", "True"),
        (value("chip", clock_hz="1979-05-27"), "chip.clock_hz", "an integer >= 1", "datetime.date"),
        (value("chip", clock_hz="nan"), "chip.clock_hz", "an integer >= 1", "nan"),
        (value("chip", clock_hz="0x" + "f" * 9000), "chip.clock_hz", "at most", "a very long"),
        (value("chip", sram_bytes=1 << 40), "chip.sram_bytes", "at most 4294967296", "1099"),
        (value("chip", sram_bytes=56_321), "chip", FIT, "chip.sram_bytes: 56321 is not"),
        (value("chip", slices=10**6), "chip.slices", "88 (only that is modelled)", "1000000"),
        (value("chip", banks=10**9), "chip.banks", "2 (only that is modelled)", "1000000000"),
        (value("delays", ADD=[65, 0]), "delays.ADD", "a d_func of at most 64", "[65, 0]"),
        (value("delays", ADD=[4, 1]), "delays.ADD", "a d_skew of 0 (only that is", "[4, 1]"),
        (value("delays", GATHER=[7, 0]), "delays.GATHER", "[6, 0] (only that is", "[7, 0]"),
        (value("delays", TRANSPOSE=[5, 0]), "chip", FIT, "chip.delays.TRANSPOSE: wanted d_func >="),
        (value("system", global_ports=10**6), "system.global_ports", "at most 64", "1000000"),
        (
            value("system", chips_per_card=64, cards_per_rack=64), "system.cards_per_rack",
            "at most 1024 chips a rack", "4096",
        ),
        (value("system", cards_per_rack=10**12), "system.cards_per_rack", "at most 1024", "10000"),
        (value("link", line_rate_bps=1), "link", "at most 1000000 cycles for a vector", "6088"),
        (value("link", latency_ns=10**7), "link.latency_ns", "at most 1000000", "10000000"),
        (value("clock", jitter_ps=10**7), "clock.jitter_ps", "at most 1000000", "10000000"),
        (
            value("chip", clock_hz=10**11) + value("link", latency_ns=10_001), "link.latency_ns",
            "at most 1000000 cycles of chip.clock_hz", "1000100",
        ),
        (
            value("chip", clock_hz=10**11) + value("clock", jitter_ps=10_001), "clock.jitter_ps",
            "at most 1000000 thousandths of a cycle of chip.clock_hz", "1000100",
        ),
        (value("host", payload_bps=1), "host", "at most 1000000 cycles for a vector", "2304"),
    ],
)  # fmt: skip
def test_bounds(tmp_path: Path, text: str, key: str, wanted: str, got: str) -> None:
    path = write(tmp_path, HEAD + text)
    with pytest.raises(ProfileError) as caught:
        load_hardware(path)
    assert caught.value.key == key
    assert caught.value.wanted.startswith(wanted)
    assert caught.value.got.startswith(got)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('name = "a\\u001b[31m"', "name"),
        (f'name = "{"x" * 2000}"', "name"),
        (f'name = "x"\ninherits = "{"x" * 2000}"', "inherits"),
        (f'{HEAD}[chip]\nclock_hz = {{ value = 1, source = "{"x" * 2000}" }}', "chip.clock_hz"),
        ("x = " + "[" * 100_000, "file"),
    ],
)
def test_texts_are_short_and_plain(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load_hardware(write(tmp_path, text))
    assert caught.value.key == key
    assert str(caught.value).isprintable()


def test_a_long_line_of_files(tmp_path: Path) -> None:
    for n in range(9):
        parent = "groqrack" if n == 8 else f"m{n + 1}.toml"
        write(tmp_path, f'name = "m"\ninherits = "{parent}"\n', f"m{n}.toml")
    assert load_hardware(tmp_path / "m2.toml").chip == GROQ.chip
    with pytest.raises(ProfileError, match="inherits: wanted at most 8 files, got"):
        load_hardware(tmp_path / "m0.toml")


def test_power_and_price_are_the_data_sheet_s_or_assumed() -> None:
    """HARDWARE: 185 W average, 215 TDP, 300 maximum; nobody publishes what a chip costs today."""
    for name in profile_names():
        found = load_hardware(name).economics
        assert [found.watts(key) for key in ("average_w", "tdp_w", "max_w")] == [185, 215, 300]
        assert {found.average_w.grade, found.tdp_w.grade, found.max_w.grade} == {"A"}
        assert (found.unit_usd.grade, found.life_years.grade) == ("assumption", "assumption")
        assert (found.price, found.life) == ((5_000, 20_000, 20_000), (3, 5, 7))
        assert found.to_dict()["tdp_w"]["value"] == 215


def test_a_price_moves_no_cycle(tmp_path: Path) -> None:
    path = tmp_path / "dear.toml"
    path.write_text(
        'name = "dear"\ninherits = "lesson"\n[economics]\n'
        f"unit_usd = {{ value = [1, 2, 3], {SOURCED} }}\n"
    )
    dear, lesson = load_hardware(path), load_hardware("lesson")
    assert dear.economics.price == (1, 2, 3)
    assert dear.economics.life == lesson.economics.life
    assert dear.digest() == lesson.digest()


@pytest.mark.parametrize(
    ("line", "key", "wanted", "got"),
    [
        ("tdp_w = {{ value = 1.5, {} }}", "economics.tdp_w", "watts, 1 to 100000", "1.5"),
        (
            "max_w = {{ value = 200, {} }}",
            "economics", "average_w <= tdp_w <= max_w", "185, 215, 200",
        ),
        (
            "unit_usd = {{ value = 20_000, {} }}",
            "economics.unit_usd", "[low, usual, high], integers of 1 to 1000000000", "20000",
        ),
        (
            "life_years = {{ value = [5, 4, 6], {} }}",
            "economics.life_years", "[low, usual, high], rising", "[5, 4, 6]",
        ),
        (
            "watts = {{ value = 5, {} }}",
            "economics.watts", "one of average_w, life_years, max_w, tdp_w, unit_usd",
            "an unknown key",
        ),
    ],
)  # fmt: skip
def test_power_and_price_that_cannot_be(
    tmp_path: Path, line: str, key: str, wanted: str, got: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'name = "x"\ninherits = "lesson"\n[economics]\n{line.format(SOURCED)}\n')
    with pytest.raises(ProfileError) as caught:
        load_hardware(path)
    assert str(caught.value) == f"{path}: {key}: wanted {wanted}, got {got}"


def test_a_profile_of_its_own_needs_power_and_price(tmp_path: Path) -> None:
    shipped = Path(profile.__file__).parent / "profiles" / "groqrack.toml"
    text = shipped.read_text(encoding="utf-8").partition("[economics]")[0]
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ProfileError) as caught:
        load_hardware(path)
    assert str(caught.value) == f"{path}: economics.average_w: wanted a value, got nothing"
