"""Templates of matrix products, with the vector work that is fused with them.

May import: chip, chip.isa, chip.ops, compiler.codegen.core, compiler.codegen.
"""
