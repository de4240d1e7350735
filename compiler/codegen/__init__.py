"""Operations become instructions: templates, what they cost, and the lowering of programs.

May import: chip, chip.isa, chip.ops, chip.kernels, compiler.codegen.core,
compiler.codegen.products, compiler.codegen.attention, compiler.
"""
