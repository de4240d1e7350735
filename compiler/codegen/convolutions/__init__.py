"""Residual blocks of a convolutional network as one program: places, passes, instructions.

The four planes work as two pairs, each a western and an eastern plane side by side. An image is cut
into four quarters of neighbouring pixels, in reading order: pair 0 has the first and the third,
pair 1 the others. A pass is one tile of weights: it is loaded into both planes of a pair, and each
streams the pixels of its quarter through it, one a cycle. A tap of a kernel is the same pixels,
read from other addresses.

May import: chip, chip.isa, chip.ops, compiler.codegen.core.
"""
