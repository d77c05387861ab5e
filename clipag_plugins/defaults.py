"""Defaults and names that the library and the command line share. Imports no torch."""

# What draws gets the model that knows more and sees more detail. All else gets the faster one, and
# so does CLIPStyler, whose every step looks at dozens of crops.
DRAWING_MODEL, MODEL = "clipag-lite", "clipag-mini"
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

# CLIPDraw (integrations/clipdraw.py): the authors' notebook.
STROKE_STEPS, STROKES = 250, 256
STROKE_WIDTH = (2.0, 100.0)  # least and most, in pixels of a canvas of 224
SHAPES = ("stroke", "fill", "pixel")

# VQGAN+CLIP (integrations/vqgan/): nerdyrodent's generate.py.
VQGAN, VQGAN_STEPS = "vqgan-mini", 200
PUBLIC_VQGANS = (
    "vqgan_imagenet_f16_16384",
    "vqgan_imagenet_f16_1024",
    "gumbel_8192",
    "wikiart",
    "coco",
    "faceshq",
)
CUT_METHODS = ("latest", "original", "updated", "nrupdated", "updatedpooling")
CUT_AUGMENTS = ("Ji", "Sh", "Gn", "Pe", "Ro", "Af", "Et", "Ts", "Cr", "Er", "Re")
CUT_POWER = 1.0

# CLIPStyler (integrations/clipstyler/).
STYLE_STEPS, STYLE_SIZE = 40, 512  # the size is that of the longer side
STYLE_NETWORK_STEPS = 100
STYLE_TRAINING_STEPS, STYLE_TRAINING_SIZE = 400, 224  # photos as in CLIPStyler's fast variant
STYLE_STRENGTH, STYLE_PATCHES, STYLE_THRESHOLD = 1.0, 8, 0.0
STYLE_WHOLE = 500 / 9000  # the paper's weights
STYLE_CONTENT, STYLE_CONTENT_WEIGHT = "clip", 0.05
STYLE_TV = 0.0

# What `generate` draws on; "auto" is what suits the model.
CANVASES = ("auto", "pixels", "pyramid", "fft")

# Pictures of image embeddings: `clipag invert`, `interpolate` and `edit`.
INVERSION_CLOSENESS, PATH_CLOSENESS = 0.0, 1.0  # shares of the source picture in the start
BLUR = 0.07  # standard deviation, as a share of the side
BETWEEN = 7  # pictures between two neighbours
STRENGTHS = (0.0, 0.2, 0.4, 0.6)
COMPONENTS = (1, 4, 16, 64, 256)  # principal components of `clipag pca`

# `clipag unclip`: steps of the decoder's diffusion, and of the ascent after it.
DECODER_STEPS, REFINEMENT_STEPS = 30, 6

# Guided diffusion (integrations/denoising.py): a step's move, as a share of the latents' deviation.
# For about 25 steps: the best of three for a tiny model of 12 steps was 0.4
# (benchmarks/results/train/comfyui_judge.json), and the moves of all steps add up.
GUIDANCE_STRENGTH = 0.2
