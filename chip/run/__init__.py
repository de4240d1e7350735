"""Running a program: the chip, its unit clocks and its executors.

May import: chip, chip.isa, chip.ops, chip.kernels, chip.machine.
"""
