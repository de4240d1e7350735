"""The binary form of instructions: fields, and what makes queues shorter.

May import: chip, chip.isa.
"""
