"""How vectors get from chip to chip: topology, links, clocks, frames and transports.

May import: nothing of ours.
"""
