"""What templates are built with: blocks, reservations, ALU registers, reductions over lanes.

May import: chip, chip.isa, chip.ops, chip.machine.
"""
