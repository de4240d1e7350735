"""Scheduled operations, a frozen dataclass each; programs; layouts of KV cache and scratch; costs.

May import: chip, chip.isa.
"""
