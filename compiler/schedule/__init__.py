"""The schedule: the steps of a model, with every operation and transfer on its cycle.

May import: chip, chip.ops, compiler.model, compiler.place, compiler.
"""
