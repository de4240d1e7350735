"""Rows about whole machines: counted on the topology, played on clocks that stray."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from interconnect.clock import start_cycles
from interconnect.topology import free_cabling, paths_from
from rack.errors import MachineError
from rack.machines.profile import load_hardware
from rack.reports.accuracy import Row, behind, published
from rack.reports.accuracy_rows import ROW_SOURCES
from rack.reports.accuracy_system import (
    across_halves,
    bandwidth_rows,
    clock_rows,
    machine_rows,
    out_of_node,
    path_rows,
    worst_hops,
)
from rack.reports.link_table import measured_links, started_epochs, sync_paths

GROQ, DRIFT = load_hardware("groqrack"), load_hardware("groqrack-drift")


def by_figure(rows: list[Row]) -> dict[str, Row]:
    return {row.figure: row for row in rows}


def test_the_longest_way() -> None:
    line = free_cabling(4, [(0, 1), (1, 2), (2, 3)], 2)
    assert [worst_hops(line, sources) for sources in (1, 4)] == [3, 3]
    assert worst_hops(free_cabling(4, [(0, 1), (1, 2), (2, 3)], 3), 1) == 3
    assert worst_hops(GROQ.topology(8), 72) == 3
    ways = paths_from(GROQ.topology(576), 5).values()
    assert worst_hops(GROQ.topology(576), 72) >= max(map(len, ways))
    rows = by_figure(path_rows(GROQ))
    assert rows["longest way in a rack"].error_percent == 0
    most = rows["longest way in 10,440 chips"].ours
    assert rows["end to end on that way"].ours == pytest.approx(
        (most * 240 + (most - 1) * 360) / 900
    )


def test_bandwidth_is_counted_in_cables() -> None:
    """A node has 32 global ports; eight racks have 144 cables each, 328 of them across halves."""
    assert out_of_node(GROQ, 72) == 12.5 * 32 / 8
    assert across_halves(GROQ, 576) == 12.5 * 328 / 288
    twice = replace(GROQ, chip_link=replace(GROQ.chip_link, lanes=8))
    assert out_of_node(twice, 72) == 2 * out_of_node(GROQ, 72)
    rows = by_figure(bandwidth_rows(GROQ))
    for chips in (72, 144, 216):
        assert rows[f"bandwidth of a chip out of its node, {chips} chips"].error_percent == 0
    assert abs(rows["bandwidth of a chip into the other half, 576 chips"].error_percent) < 2


def test_machines_by_their_sheets() -> None:
    rows = by_figure(machine_rows(GROQ))
    assert rows["connectors of a rack, 64 chips active"].error_percent == 0
    big = rows["SRAM of 10,440 chips"]
    assert (published(big), big.error_percent) == ("> 2", 0)
    assert replace(big, ours=1.0).error_percent == -50
    assert all(abs(row.error_percent) < 6 for row in rows.values())


def test_links_are_measured_as_they_were() -> None:
    """A reflected counter, modulo 252, twice the latency: two flights and the wait for an edge."""
    links = measured_links(DRIFT, 20_000)
    assert len(links) == 7
    for link in links:
        assert link.mean == pytest.approx(216.5, abs=0.1)
        assert 205 <= link.least < 212 < 221 < link.most <= 228
        assert link.deviation == pytest.approx(11 * 0.258 / 2**0.5, abs=0.1)
    longer = replace(DRIFT, chip_link=replace(DRIFT.chip_link, latency_cycles=400))
    assert measured_links(longer, 2000)[0].mean == pytest.approx(400.5, abs=0.2)  # 3 periods more
    assert links == measured_links(DRIFT, 20_000)
    assert pickle.loads(pickle.dumps(links)) == links


@pytest.mark.parametrize("chips", [8, 72])
@pytest.mark.parametrize("latency", [100, 216, 300, 520])
def test_a_program_starts_as_the_formula_has_it(chips: int, latency: int) -> None:
    machine = replace(DRIFT, chip_link=replace(DRIFT.chip_link, latency_cycles=latency))
    paths = sync_paths(machine, chips)
    assert started_epochs(machine, chips) * 252 == start_cycles(machine.clock, paths)


def test_exact_clocks_have_nothing_to_play() -> None:
    text = "^groqrack: clocks and links to play: wanted some that stray, got exact ones$"
    for play in (lambda: measured_links(GROQ), lambda: started_epochs(GROQ, 8)):
        with pytest.raises(MachineError, match=text):
            play()


def test_rows_name_the_machine_that_they_were_played_on() -> None:
    rows = clock_rows(GROQ)
    assert {row.to_dict(GROQ)["hardware"] for row in rows} == {"groqrack-drift"}
    assert "clock.seed" in behind(rows[0], GROQ)
    assert rows[-1].error_percent == 0
    assert {row.to_dict(GROQ)["hardware"] for row in machine_rows(GROQ)} == {"groqrack"}


def test_every_row_of_a_machine_rests_on_constants() -> None:
    for source in (path_rows, bandwidth_rows, clock_rows, machine_rows):
        assert source in ROW_SOURCES
        for entry in source(GROQ):
            for pattern in entry.constants:
                alone = replace(entry, constants=(pattern,)).behind(GROQ)["constants"]
                assert alone, f"{entry.figure}: no key {pattern}"
