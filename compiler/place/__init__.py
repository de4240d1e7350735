"""What goes where: stages and shares, cables and slots, and addresses in SRAM.

May import: chip, chip.ops, interconnect, compiler.model, compiler.
"""
