"""The verifier: a second opinion on a schedule, which shares no code with the passes.

May import: chip, chip.ops, interconnect, compiler.model, compiler.
"""
