"""Defaults and names that the library and the command line share. Imports no torch."""

MODEL = "clipag-mini"
SIDE = 224  # pixels of a drawn picture
PRECISIONS = ("float32", "bfloat16", "float16")

# Randomized smoothing, for pixels in [0, 1]; chosen by benchmarks/pag.py.
SIGMA, SAMPLES = 1.0, 32

# The attacks of `clipag eval robustness`.
ATTACKS = ("clean", "pgd", "autoattack")

# Norms of a threat model.
NORMS = ("linf", "l2")

# Heat maps: methods of pytorch-grad-cam with its class of each, and methods of our own.
CAMS = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
}
HEAT_MAP_METHODS = (*CAMS, "grad", "smoothgrad")
HEAT_MAP_METHOD = "hirescam"

# `clipag bench`.
BENCH_MODELS = ("clipag-mini", "ViT-B-32", "ViT-B-16", "convnext_base")
BENCH_VIEWS = (1, 8, 32, 64)
BENCH_ROUNDS = 3
