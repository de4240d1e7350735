"""Check that operations have the numbers that the model's configuration gives them.

Which tokens a row sees, where they are kept, and which experts there are: an operation with another
window, or another list of experts, takes no address that another would not, and could be as long.
"""

from __future__ import annotations

import math

from chip.ops.attention import Attend, Rope
from chip.ops.experts import ExpertsEach, ExpertsSum, Route
from chip.ops.program import Scheduled
from chip.ops.vector import Gate, Gather
from chip.spec import VECTOR_BYTES
from compiler.errors import ScheduleError
from compiler.ir import StepSchedule
from compiler.model.architecture import ARCHITECTURES
from compiler.model.config import ModelConfig
from compiler.verify.sources import place_of


def check_features(schedule: StepSchedule, config: ModelConfig) -> None:
    """Raise ScheduleError for an operation with other numbers than the model's, by name."""
    for program in schedule.programs:
        for operation in program.operations:
            for field, wanted in _wanted(operation, config, schedule.kind.bucket).items():
                if (got := getattr(operation.op, field)) != wanted:
                    raise ScheduleError(
                        f"chip {program.chip}, {operation.name} ({operation.opcode}): wanted "
                        f"{field} {wanted}, as {config.name} has it, got {got}"
                    )
            _check_rows(operation, config, f"chip {program.chip}")


def _check_rows(operation: Scheduled, config: ModelConfig, chip: str) -> None:
    """Check that the last row of a step writes over no token that the first one sees."""
    op, layer = operation.op, place_of(operation.name)[0]
    window = config.windows[layer] if config.windows and layer is not None else None
    if not isinstance(op, Rope) or window is None or op.ring is None:
        return
    if op.rows > (most := op.ring - window + 1):
        raise ScheduleError(
            f"{chip}, {operation.name} ({operation.opcode}): wanted at most {most} rows, which "
            f"leave a window of {window} in a ring of {op.ring}, got {op.rows}"
        )


def _ring(window: int | None, context: int) -> int | None:
    """Return the slots in which a window and 127 tokens more have room, in whole vectors of tokens.

    None where they are no fewer than the context has tokens.
    """
    if window is None:
        return None
    slots = math.ceil((window + 127) / VECTOR_BYTES) * VECTOR_BYTES
    return slots if slots < context else None


def _wanted(operation: Scheduled, config: ModelConfig, bucket: int) -> dict[str, object]:
    """Return what the model gives to an operation, by its fields. `bucket`: of the step."""
    op, (layer, place) = operation.op, place_of(operation.name)
    if isinstance(op, Rope | Attend) and layer is not None:
        window = config.windows[layer] if config.windows else None
        ring = _ring(window, op.context)
        if isinstance(op, Rope):
            return {"ring": ring}
        read = min(bucket, ring or op.context)
        return {"window": window, "ring": ring, "bucket": read, "cap": config.attention_cap}
    if config.experts is None:
        return {}
    count, chosen = config.experts.count, config.experts.chosen
    if isinstance(op, Route):
        features = ARCHITECTURES[config.architecture].mixture
        assert features is not None  # ModelConfig has experts only for a mixture
        return {"experts": count, "chosen": chosen, "after": features.after}
    if isinstance(op, ExpertsEach | ExpertsSum):
        return {"experts": count, "chosen": chosen}
    if isinstance(op, Gate | Gather) and place.startswith("mlp."):
        return {"each": chosen if chosen > 1 else None}
    return {}
