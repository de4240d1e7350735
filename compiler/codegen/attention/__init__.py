"""Templates of attention, in int8 and in fp16.

May import: chip, chip.isa, chip.ops, chip.kernels, compiler.codegen.core,
compiler.codegen.products, compiler.codegen.
"""
