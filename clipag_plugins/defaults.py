"""Defaults and names that the library and the command line share. Imports no torch."""

MODEL = "clipag-mini"
SIDE = 224  # pixels of a drawn picture
PRECISIONS = ("float32", "bfloat16", "float16")

# Randomized smoothing, for pixels in [0, 1]; chosen by benchmarks/pag.py.
SIGMA, SAMPLES = 1.0, 32

# The attacks of `clipag eval robustness`.
ATTACKS = ("clean", "pgd", "autoattack")
