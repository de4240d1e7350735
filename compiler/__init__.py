"""The compiler makes a schedule of a model. This folder joins the passes and has their shared data.

May import: chip, chip.ops, compiler.model, compiler.place, compiler.schedule, compiler.codegen,
compiler.verify.
"""
