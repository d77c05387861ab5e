"""Traced and exported models: the same numbers as eager ones, for other batches too."""

import copy
import io

import numpy as np
import open_clip
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clipag_plugins import architecture, clip

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}
CONVNEXT = {
    "timm_model_name": "convnext_atto", "image_size": 64, "timm_pool": "", "timm_proj": "linear",
}  # fmt: skip
CONFIGS = {
    "vit": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True},
    "resnet": {"embed_dim": 64, "vision_cfg": RESNET, "text_cfg": TEXT},
    "convnext": {"embed_dim": 16, "vision_cfg": CONVNEXT, "text_cfg": TEXT},
    "own text tower": {
        "embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT, "custom_text": True,
    },
}  # fmt: skip
KINDS = ["clipag-mini", *CONFIGS]
# torch warns of its own modules, and of values in them that a trace keeps.
pytestmark = pytest.mark.filterwarnings("ignore")
CAPTIONS = ["x", "a very old castle on a green hill by the sea", "", "a red apple"]


class Encoder(nn.Module):
    """Unit embeddings of images and texts, as one module."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, texts):
        z_images, z_texts = self.model.encode_image(images), self.model.encode_text(texts)
        return F.normalize(z_images, dim=-1), F.normalize(z_texts, dim=-1)


@pytest.fixture(params=KINDS)
def encoder(request):
    return make(request.param)


def make(kind):
    if kind == "clipag-mini":
        return Encoder(clip.load("clipag-mini", "cpu")[0]).eval()
    config = CONFIGS[kind]
    settings = {key: value for key, value in config.items() if key != "custom_text"}
    build = open_clip.CustomTextCLIP if "custom_text" in config else open_clip.CLIP
    state = build(**settings).state_dict()
    return Encoder(architecture.from_config(config, state, "x", "x")).eval()


def inputs(images, texts, side=224):
    return torch.randn(images, 3, side, side), clip.tokenize(CAPTIONS[:texts])


def assert_same(recorded, encoder):
    """Compare for fewer and more images and texts than the two of each that were recorded."""
    for images, texts in ((1, 1), (3, 4)):
        batch = inputs(images, texts)
        with torch.no_grad():
            for ours, eager in zip(recorded(*batch), encoder(*batch), strict=True):
                assert torch.allclose(torch.as_tensor(ours), eager, atol=1e-5)


def test_a_trace_holds_for_other_batches(encoder):
    example = inputs(1, 1)
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(encoder, example, check_trace=False), file)
    file.seek(0)
    assert_same(torch.jit.load(file), encoder)


def test_a_trace_of_images_that_require_gradients_can_be_saved(encoder):
    images, texts = inputs(1, 1)
    traced = torch.jit.trace(encoder, (images.requires_grad_(), texts), check_trace=False)
    torch.jit.save(traced, io.BytesIO())


FREE_BATCHES = {"images": {0: torch.export.Dim("images")}, "texts": {0: torch.export.Dim("texts")}}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clipag-mini", "vit", "resnet"])
def test_an_export_holds_for_other_batches(kind):
    encoder = make(kind)
    exported = torch.export.export(encoder, inputs(2, 2), dynamic_shapes=FREE_BATCHES)
    assert_same(exported.module(), encoder)
    # The export leaves nothing of its own in the model.
    double = copy.deepcopy(encoder).double()
    images, texts = inputs(2, 2)
    torch.export.export(double, (images.double(), texts))
    assert double(images.double(), texts)[1].dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clipag-mini", "vit", "resnet"])
def test_onnx_runtime_gives_the_same(kind):
    encoder = make(kind)
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    file = io.BytesIO()
    torch.onnx.export(
        encoder, inputs(2, 2), dynamo=True, dynamic_shapes=FREE_BATCHES, verbose=False
    ).save(file)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])

    def recorded(images, texts):
        feeds = {"images": images.numpy(), "texts": texts.numpy()}
        return [np.asarray(output) for output in session.run(None, feeds)]

    assert_same(recorded, encoder)
