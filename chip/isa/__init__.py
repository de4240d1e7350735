"""The instruction set: instructions, operands, control, queues, and their text form.

May import: chip.
"""
