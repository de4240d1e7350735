"""Placement: layers to stages, columns to chips, chips to slots and cables, tensors to addresses.

May import: chip, chip.ops, interconnect, compiler.model, compiler.
"""
