"""Models: folders and presets, configuration, weights, and the graph of operations.

May import: chip.ops, chip.kernels, compiler.
"""
