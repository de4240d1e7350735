"""What each chip holds: the `--dry-run` of every verb. Starts nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rack.machines.hardware import Hardware
from rack.run.rebinding import spare_slots
from rack.run.session import Prepared


def placement(prepared: Prepared, *, as_json: bool = False) -> str:
    """Return the placement: a line for each chip and each spare, or one JSON object."""
    report = placement_report(prepared)
    if as_json:
        return json.dumps(report)
    head = (
        f"{prepared.model.weights_ref.title} {report['dtype']} on {report['hardware']}: "
        f"layout {report['layout']}, "
        f"{report['chips']} chips, {report['racks']} racks, context {report['max_model_len']}, "
        f"{_rows(prepared)}"
    )
    lines = [
        f"chip {chip['chip']:>3}: rack {chip['rack']} card {chip['card']} slot {chip['slot']}: "
        f"{', '.join(chip['holds'])}; {chip['used_bytes']:,} of {chip['sram_bytes']:,} bytes"
        for chip in report["placement"]
    ]
    lines += [
        f"spare: rack {spare['rack']} card {spare['card']} slot {spare['slot']}"
        for spare in report["spares"]
    ]
    return "\n".join([head, *lines])


def placement_report(prepared: Prepared) -> dict[str, Any]:
    """Return the placement as plain data."""
    compiled, hardware = prepared.compiled, prepared.hardware
    spares, placed = spare_slots(compiled, hardware, prepared.config.spares), []
    for chip, memory in enumerate(compiled.memories):
        slot = compiled.network.binding[chip]
        placed.append({
            "chip": chip,
            **_place(hardware, slot),
            "holds": list(_holds(prepared, chip)),
            "used_bytes": memory.sram_bytes - memory.free_bytes,
            "sram_bytes": memory.sram_bytes,
        })  # fmt: skip
    return {
        "model": compiled.config.name,
        "weights": prepared.model.weights_ref.describe(),
        "dtype": compiled.dtype,
        "hardware": hardware.name,
        "layout": str(compiled.layout),
        "chips": compiled.layout.chips,
        "racks": hardware.racks(compiled.layout.chips),
        "max_model_len": compiled.max_model_len,
        "prefill_chunk": compiled.prefill_chunk,
        "placement": placed,
        "spares": [_place(hardware, slot) for slot in spares],
        "config": prepared.config.to_dict(),
    }


def _place(hardware: Hardware, slot: int) -> dict[str, int]:
    """Say where a slot is."""
    return {"rack": hardware.rack_of(slot), "card": hardware.card_of(slot), "slot": slot}


def _rows(prepared: Prepared) -> str:
    """Say what a step with many rows is for."""
    compiled = prepared.compiled
    return (
        "whole sequences" if compiled.config.encoder else f"prefill chunk {compiled.prefill_chunk}"
    )


def _holds(prepared: Prepared, chip: int) -> Iterator[str]:
    for group, rank in prepared.compiled.partition.groups_of(chip):
        if len(group.layers):
            yield f"layers {group.layers[0]}-{group.layers[-1]} rank {rank}"
        if group.has_head and prepared.compiled.config.encoder is not None:
            yield "last norm"
        elif group.has_head:
            first, last = group.vocab[rank]
            yield f"LM head columns {first}-{last - 1}" if last > first else "LM head"
