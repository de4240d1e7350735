"""Machines: profiles in TOML, and the hardware that is read from them.

May import: chip.*, interconnect.*, compiler.*, rack.
"""
