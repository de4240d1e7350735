"""Check that operations have the numbers that the model's configuration gives them.

Which tokens a row sees, and which experts there are: an operation with another window, or another
list of experts, takes no address that another would not, and could be as long.
"""

from __future__ import annotations

from chip.ops.attention import Attend
from chip.ops.experts import ExpertsEach, ExpertsSum, Route
from chip.ops.program import Scheduled
from chip.ops.vector import Gate, Gather
from compiler.errors import ScheduleError
from compiler.ir import StepSchedule
from compiler.model.architecture import ARCHITECTURES
from compiler.model.config import ModelConfig
from compiler.verify.sources import place_of


def check_features(schedule: StepSchedule, config: ModelConfig) -> None:
    """Raise ScheduleError for an operation with other numbers than the model's, by name."""
    for program in schedule.programs:
        for operation in program.operations:
            for field, wanted in _wanted(operation, config).items():
                if (got := getattr(operation.op, field)) != wanted:
                    raise ScheduleError(
                        f"chip {program.chip}, {operation.name} ({operation.opcode}): wanted "
                        f"{field} {wanted}, as {config.name} has it, got {got}"
                    )


def _wanted(operation: Scheduled, config: ModelConfig) -> dict[str, object]:
    """Return what the model gives to an operation, by its fields."""
    op, (layer, place) = operation.op, place_of(operation.name)
    if isinstance(op, Attend) and layer is not None:
        window = config.windows[layer] if config.windows else None
        return {"window": window, "cap": config.attention_cap}
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
