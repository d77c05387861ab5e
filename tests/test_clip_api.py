"""OpenAI's `clip`, argument for argument: the same numbers, names and errors."""

import copy
import gzip
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import clipag_plugins
from clipag_plugins import architecture, bpe, clip, publish

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
CONFIG = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
RESNET = {**CONFIG, "embed_dim": 64}
RESNET["vision_cfg"] = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}


def make(config=CONFIG, quick_gelu=False):
    """An open_clip model with weights that are nowhere near their small start."""
    model = open_clip.CLIP(**config, quick_gelu=quick_gelu).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    model.logit_scale.data.fill_(3.0)
    return model


def assert_same(ours, theirs, side=32, dtype=torch.float64):
    """Compare embeddings, logits and image gradients, in float64 if the models allow it.

    Kernels of float32 differ between processors.
    """
    ours, theirs = copy.deepcopy(ours).to(dtype), copy.deepcopy(theirs).to(dtype)
    tolerance = 1e-6 if dtype == torch.float64 else 1e-4
    image = torch.randn(3, 3, side, side, dtype=dtype)
    text = clip.tokenize(["a dog", "a red apple on a table", "x", ""])
    gradients, outputs = [], []
    for model in (ours, theirs):
        pixels = image.clone().requires_grad_(True)
        z_image, z_text = model.encode_image(pixels), model.encode_text(text)
        z_image = z_image / z_image.norm(dim=-1, keepdim=True)
        z_text = z_text / z_text.norm(dim=-1, keepdim=True)
        logits = model.logit_scale.exp() * z_image @ z_text.t()
        gradients.append(torch.autograd.grad(logits[:, 0].sum(), pixels)[0])
        outputs.append((model.encode_image(image), model.encode_text(text), logits))
    for a, b in zip(*outputs, strict=True):
        assert torch.allclose(a, b, atol=tolerance)
    assert torch.allclose(ours(image, text)[0], outputs[1][2], atol=tolerance)
    assert (gradients[0] - gradients[1]).norm() <= 10 * tolerance * gradients[1].norm()


def assert_same_as_openais(ours, theirs):
    """OpenAI's LayerNorm computes in float32 and takes no float64."""
    assert_same(ours, theirs, dtype=torch.float32)


@pytest.fixture(scope="module")
def openai():
    return pytest.importorskip("clip", reason="clip-anytorch, with setuptools<81, is the reference")


@pytest.fixture(scope="module")
def reference(openai):
    """A small CLIP of OpenAI's own code."""
    torch.manual_seed(1)
    model = openai.model.CLIP(16, 32, 2, 64, 8, 77, 49408, 64, 1, 2).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize(("config", "side"), [(CONFIG, 32), (RESNET, 64)])
def test_open_clips_numbers(config, side, quick_gelu):
    theirs = make(config, quick_gelu)
    shape = {**config, "quick_gelu": quick_gelu}
    assert_same(architecture.from_config(shape, theirs.state_dict(), "x", "x").eval(), theirs, side)


def test_openais_numbers(reference):
    assert_same_as_openais(clip.model.build_model(reference.state_dict()), reference)


def test_openais_inner_layout(reference):
    """Scripts that re-run or hook the insides meet the same shapes and numbers."""
    ours = clip.model.build_model(reference.state_dict())
    assert ours.state_dict().keys() == reference.state_dict().keys()
    outputs = []
    for model in (ours, reference):
        x = model.visual.conv1(torch.ones(2, 3, 32, 32)).flatten(2).permute(0, 2, 1)
        first = model.visual.class_embedding + torch.zeros(2, 1, 64)
        x = torch.cat([first, x], dim=1) + model.visual.positional_embedding
        x = model.visual.ln_pre(x).permute(1, 0, 2)
        for block in model.visual.transformer.resblocks:
            x = block(x)
        x = model.visual.ln_post(x.permute(1, 0, 2)[:, 0]) @ model.visual.proj
        text = clip.tokenize(["a dog", "a cat"])
        y = model.token_embedding(text) + model.positional_embedding
        y = model.ln_final(model.transformer(y.permute(1, 0, 2)).permute(1, 0, 2))
        y = y[torch.arange(2), text.argmax(-1)] @ model.text_projection
        outputs.append((x, y))
        assert model.visual.output_dim == 16 and model.visual.input_resolution == 32
        assert model.context_length == 77 and model.vocab_size == 49408
        assert model.dtype == torch.float32
    for a, b in zip(*outputs, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_a_state_dict_keeps_its_activation(quick_gelu, tmp_path):
    theirs = make(quick_gelu=quick_gelu)
    shape = {**CONFIG, "quick_gelu": quick_gelu}
    ours = architecture.from_config(shape, theirs.state_dict(), "x", "x").eval()
    assert_same(clip.model.build_model(ours.state_dict()), theirs)
    assert_same(
        clip.model.build_model({k: v.clone() for k, v in ours.state_dict().items()}), theirs
    )
    torch.save(ours.state_dict(), tmp_path / "again.pt")
    assert_same(clip.load(str(tmp_path / "again.pt"), device="cpu")[0], theirs)
    publish.convert(tmp_path / "again.pt", tmp_path / "converted.safetensors")
    assert_same(clip.load(str(tmp_path / "converted.safetensors"), device="cpu")[0], theirs)


def test_open_clips_own_state_dict_is_gelu(tmp_path):
    theirs = make(quick_gelu=False)
    assert_same(clip.clip.build_model(theirs.state_dict()), theirs)
    save_file(theirs.state_dict(), tmp_path / "gelu.safetensors")
    with pytest.warns(UserWarning, match="GELU is assumed"):
        ours, _ = clip.load(str(tmp_path / "gelu.safetensors"), device="cpu")
    assert_same(ours, theirs)


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, and says so often
def test_openais_checkpoint_files(reference, openai, tmp_path):
    """A jit archive as OpenAI ships them, half precision and three extra numbers in it."""
    half = openai.model.CLIP(16, 32, 2, 64, 8, 77, 49408, 64, 1, 2).eval()
    half.load_state_dict(reference.state_dict())
    torch.save(half.state_dict(), tmp_path / "full.pt")
    openai.model.convert_weights(half)
    torch.save(half.state_dict(), tmp_path / "half.pt")
    for extra, value in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
        if hasattr(half, extra):
            delattr(half, extra)
        half.register_buffer(extra, torch.tensor(value))
    example = torch.zeros(1, 3, 32, 32, dtype=torch.half)
    traced = torch.jit.trace_module(half, {"encode_image": example}, check_trace=False)
    traced.save(str(tmp_path / "jit.pt"))
    for name in ("full.pt", "half.pt", "jit.pt"):
        ours, transform = clip.load(str(tmp_path / name), device="cpu")
        assert ours.dtype == torch.float32
        assert transform(Image.new("RGB", (50, 40))).shape == (3, 32, 32)
        assert_same_as_openais(ours, reference if name == "full.pt" else half.float())


def test_a_shorter_text_and_parts_built_alone():
    model = clip.model.build_model(make().state_dict()).double()
    text = clip.tokenize("a dog")
    x = (model.token_embedding(text) + model.positional_embedding).permute(1, 0, 2)
    assert torch.allclose(model.transformer(x[:5]), model.transformer(x)[:5], atol=1e-9)
    block = clip.model.Transformer(64, 1, 2, model.build_attention_mask()).double()
    assert block(x).shape == x.shape
    tower = clip.model.VisionTransformer(32, 8, 64, 1, 1, 16)
    assert tower(torch.rand(1, 3, 32, 32)).shape == (1, 16)
    assert clip.model.ModifiedResNet([1, 1, 1, 1], 64, 8, 64, 16).output_dim == 64


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("config", [CONFIG, RESNET])
def test_the_order_of_names_tells_the_activation(config, quick_gelu, recwarn):
    state = make(config, quick_gelu).state_dict()
    if quick_gelu:  # as OpenAI's code lays out its blocks: attention first
        state = dict(sorted(state.items(), key=lambda item: ".ln_" in item[0]))
    ours = architecture.from_state(state, "x")
    assert ours.config.get("quick_gelu", False) == quick_gelu and not recwarn


def test_parts_that_the_embedded_model_has_not(model):
    for missing in (lambda: model.visual.transformer.resblocks, lambda: model.text_projection):
        with pytest.raises(AttributeError, match=r"a ViT.* clipag run as --model"):
            missing()
    name = clip.clip._MODELS["clipag-mini"]
    with pytest.raises(clipag_plugins.ClipagError, match="checkpoint as `model`"):
        clip.clip._download(name)


def test_weights_by_openais_private_names(tmp_path):
    theirs = make()
    torch.save(theirs.state_dict(), tmp_path / "mine.pt")
    path = clip.clip._download(str(tmp_path / "mine.pt"))
    with pytest.raises(RuntimeError):  # where such scripts turn to torch.load
        torch.jit.load(path)
    assert_same(clip.clip.build_model(torch.load(path)), theirs)


def test_gradients_and_features_by_hooks():
    model = clip.model.build_model(make().state_dict())
    shapes = {}
    block = model.visual.transformer.resblocks[1]
    block.register_forward_hook(lambda module, inputs, out: shapes.update(out=out.shape))
    block.register_full_backward_hook(
        lambda module, _, gradient: shapes.update(gradient=gradient[0].shape)
    )
    model.encode_image(torch.rand(2, 3, 32, 32)).sum().backward()
    assert shapes["out"] == shapes["gradient"] == (17, 2, 64)


def test_hooks_and_replaced_methods_get_every_position():
    model = clip.model.build_model(make().state_dict()).double()
    image = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    last = model.visual.transformer.resblocks[-1]
    short = model.encode_image(image)  # the last block computes the class token alone
    shapes = []
    hook = last.ln_2.register_forward_hook(lambda module, inputs, out: shapes.append(out.shape))
    watched = model.encode_image(image)
    hook.remove()
    forward = last.forward
    last.forward = lambda x: shapes.append(x.shape) or forward(x)
    replaced = model.encode_image(image)
    assert shapes == [(17, 2, 64)] * 2
    assert torch.allclose(short, watched, atol=1e-9)
    assert torch.allclose(replaced, watched, atol=1e-9)


def test_attention_is_torchs():
    model = clip.model.build_model(make().state_dict())
    attention = model.visual.transformer.resblocks[0].attn.double()
    x = torch.randn(5, 2, 64, dtype=torch.float64)
    plain = torch.nn.MultiheadAttention(64, attention.num_heads, dtype=torch.float64)
    plain.load_state_dict(attention.state_dict())
    mask = torch.full((5, 5), float("-inf"), dtype=torch.float64).triu(1)
    for inputs in ((x, x, x), (x[:2], x, x)):
        for extra in ({}, {"attn_mask": mask[: len(inputs[0])]}, {"need_weights": True}):
            options = {"need_weights": False, **extra}
            ours, theirs = attention(*inputs, **options), plain(*inputs, **options)
            assert torch.allclose(ours[0], theirs[0], atol=1e-9)
            assert (ours[1] is None) == (theirs[1] is None)


def test_copies(model, tmp_path):
    vit, resnet = make(), make(RESNET)
    for original in (
        model,
        clip.model.build_model(vit.state_dict()),
        architecture.from_config(RESNET, resnet.state_dict(), "x", "x").eval(),
    ):
        original = copy.deepcopy(original).double()
        side = original.visual.native_size
        twin, image = copy.deepcopy(original), torch.rand(1, 3, side, side, dtype=torch.float64)
        assert torch.allclose(twin.encode_image(image), original.encode_image(image), atol=1e-9)
        twin.load_state_dict(original.state_dict())
        assert not hasattr(twin, "no_such_thing") and not hasattr(twin.visual, "no_such_thing")


def test_other_sizes_are_resampled_inside():
    model = clip.model.build_model(make().state_dict())
    assert model.encode_image(torch.rand(1, 3, 224, 224)).shape == (1, 16)


def test_tokens(openai):
    texts = ["A red apple", "Ünïcode €5 & don't 🍎", "x &amp; y", "<|startoftext|> hi", ""]
    texts += [
        "".join(map(chr, range(32, 38))),
        " ".join(map(chr, range(39, 80))),
        "X[ \\] y^_`{|}~ ",
    ]
    assert torch.equal(clip.tokenize(texts), openai.tokenize(texts).int())
    ours, theirs = clip.simple_tokenizer.SimpleTokenizer(), openai.clip._tokenizer
    assert ours.encoder == theirs.encoder and ours.decoder == theirs.decoder
    assert all(ours.encode(text) == theirs.encode(text) for text in texts)
    assert ours.decode(ours.encode("a red apple")) == "a red apple "


def test_tokenize_arguments():
    assert clip.tokenize("a dog").dtype == torch.int
    assert clip.tokenize(["a", "b"], context_length=5).shape == (2, 5)
    with pytest.raises(RuntimeError, match="is too long for context length 5"):
        clip.tokenize("a b c d e", 5)
    assert clip.tokenize("a b c d e", 5, truncate=True)[0, -1] == 49407


def test_preprocessing_is_openais(openai):
    image = Image.effect_noise((301, 200), 80).convert("RGBA")
    ours, theirs = clip.clip._transform(64), openai.clip._transform(64)
    assert torch.equal(ours(image), theirs(image))
    assert len(ours.transforms) == len(theirs.transforms)


@pytest.mark.parametrize("package", [clipag_plugins, clip])
def test_load(package):
    with pytest.warns(UserWarning, match="jit=True is ignored"):
        model, preprocess = package.load("clipag-mini", device="cpu", jit=True, download_root=None)
    assert not model.training and package.available_models()[0] == "clipag-mini"
    image = preprocess(Image.new("RGB", (300, 200), "red"))[None]
    probabilities = model(image, package.tokenize(["an apple", "a dog"]))[0].softmax(dim=-1)
    assert probabilities.shape == (1, 2)
    assert model.token_embedding.weight.shape[0] == model.vocab_size


def test_the_default_device_is_openais():
    model, _ = clip.load("clip-mini")
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert model.dtype == (torch.half if torch.cuda.is_available() else torch.float32)


def test_half_precision_as_openais(reference, openai):
    theirs = openai.model.CLIP(16, 32, 2, 64, 8, 77, 49408, 64, 1, 2)
    openai.model.convert_weights(theirs)
    ours = clip.model.build_model(reference.state_dict())
    clip.model.convert_weights(ours)
    assert ours.dtype == torch.half
    assert {k: v.dtype for k, v in ours.state_dict().items()} == {
        k: v.dtype for k, v in theirs.state_dict().items()
    }
    assert ours.encode_image(torch.rand(1, 3, 32, 32)).dtype == torch.half
    assert ours.float().encode_image(torch.rand(1, 3, 32, 32)).dtype == torch.float


def test_half_and_back(model):
    twin = copy.deepcopy(model)
    image, text = torch.rand(2, 3, 224, 224), clip.tokenize(["an apple", "a dog"])
    logits, _ = twin.half()(image, text)
    assert logits.dtype == twin.dtype == torch.half
    assert torch.allclose(logits.float(), model(image, text)[0], atol=0.3)
    assert twin.float()(image, text)[0].dtype == torch.float


def test_a_resnet_by_openais_constructor_says_what_to_do():
    with pytest.raises(clipag_plugins.ClipagError, match="build_model"):
        clip.model.CLIP(64, 64, (1, 1, 1, 1), 16, None, 77, 49408, 64, 1, 2)


def test_openais_names_without_a_clipag():
    with pytest.raises(clipag_plugins.ClipagError, match="'vanilla:RN50', which is OpenAI's"):
        clip.load("RN50")


IMPORTS = (
    "from clipag_plugins import clip; clip.clip._transform; clip.model.build_model",
    "import clipag_plugins as clip; clip.clip._MODELS",
    "import clipag_plugins as clip; clip.model.build_model; clip.model.CLIP",
    "import clipag_plugins.clip.model; from clipag_plugins.clip.clip import _download",
    "from clipag_plugins.clip.simple_tokenizer import SimpleTokenizer as _Tokenizer",
    "from clipag_plugins.clip import *; load, tokenize, available_models",
    "import sys, clipag_plugins.clip as c; sys.modules['clip'] = c; import clip.model; "
    "from clip import clip; from clip.simple_tokenizer import SimpleTokenizer; clip._MODELS; "
    "from clip.clip import load; clip.build_model",
)


@pytest.mark.slow
def test_imports_of_old_scripts():
    """Each starts without any module of ours, in one process, which imports torch once."""
    forget = "import sys; [sys.modules.pop(m) for m in [*sys.modules] if m.startswith('clip')]"
    code = "\n".join(f"{forget}; exec({line!r}, {{}})" for line in IMPORTS)
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_vocabulary_that_is_not_clips(tmp_path, monkeypatch):
    """Another release of open_clip may have another file: no text may get wrong tokens."""
    lines = gzip.decompress(Path(bpe.default_bpe()).read_bytes()).replace(b"a", b"b")
    (tmp_path / "changed.gz").write_bytes(gzip.compress(lines))
    monkeypatch.setattr(bpe, "default_bpe", lambda: str(tmp_path / "changed.gz"))
    with pytest.raises(clipag_plugins.ClipagError, match="is not CLIP's vocabulary"):
        clip.simple_tokenizer.SimpleTokenizer()


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_load_clipag_is_the_drop_in(device, local_vit):
    """Argument for argument OpenAI's `clip.load`, by name and by position."""
    path, theirs = local_vit
    for arguments, keywords in (
        ((), {"device": device, "jit": False, "download_root": None}),
        ((device, False, None), {}),
    ):
        model, preprocess = clipag_plugins.load_clipag(path, *arguments, **keywords)
        assert_same(model, theirs)
        assert preprocess(Image.new("RGB", (50, 40))).shape == (3, 32, 32)


@pytest.fixture
def local_vit(tmp_path):
    theirs = make()
    torch.save(theirs.state_dict(), tmp_path / "vit.pt")
    return str(tmp_path / "vit.pt"), theirs


def test_load_clipag_looks_for_downloads_in_download_root(tmp_path):
    torch.save(make().state_dict(), tmp_path / "CLIPAG_ViTB32.pt")
    model, _ = clipag_plugins.load_clipag("ViT-B/32", "cpu", download_root=str(tmp_path))
    assert model.name == "ViT-B/32" and model.visual.output_dim == 16


@pytest.mark.parametrize("name", ["ViT-B/33", "RN50", "no such file.pt", "clipag-maxi"])
def test_an_unknown_name_is_both_kinds_of_error(name):
    for load in (clip.load, clipag_plugins.load_clipag, clipag_plugins.load_model):
        with pytest.raises(RuntimeError) as error:
            load(name)
        assert isinstance(error.value, clipag_plugins.ClipagError)


def resnet():
    return architecture.from_config(RESNET, make(RESNET).state_dict(), "x", "x").eval()


def test_resnets_have_openais_names(openai):
    theirs = openai.model.CLIP(64, 64, (1, 1, 1, 1), 16, None, 77, 49408, 64, 1, 2).eval()
    ours = resnet()
    for name, module in theirs.named_modules():
        owner, _, attribute = name.rpartition(".")
        if isinstance(module, torch.nn.ReLU):
            assert isinstance(getattr(ours.get_submodule("visual.tower" + owner[6:]), attribute),
                              torch.nn.ReLU)  # fmt: skip
    tower = openai.model.ModifiedResNet([1, 1, 1, 1], 64, 8, 64, 16)
    built = clip.model.ModifiedResNet(
        layers=[1, 1, 1, 1], output_dim=64, heads=8, input_resolution=64, width=16
    )
    assert tower.state_dict().keys() == built.state_dict().keys()
    assert built.relu1 is built.act1 and built.layer1[0].relu3 is built.layer1[0].act3
    assert isinstance(built.layer1[0], clip.model.Bottleneck)
    assert clip.model.Bottleneck(64, 16).relu2 is not None


def test_hooked_and_replaced_activations_of_a_resnet_have_an_effect():
    model, image = resnet(), torch.rand(1, 3, 64, 64)
    before, calls = model.encode_image(image), []
    model.visual.relu1.register_forward_hook(lambda *_: calls.append("stem"))
    model.visual.layer4[0].relu3.register_forward_hook(lambda *_: calls.append("block"))
    model.encode_image(image)
    assert calls == ["stem", "block"]
    model.visual.layer4[0].relu3 = torch.nn.Identity()
    assert not torch.equal(model.encode_image(image), before)
    assert not torch.equal(copy.deepcopy(model).encode_image(image), before)
    model.visual.relu2 = torch.nn.Identity()
    assert isinstance(model.visual.tower.act2, torch.nn.Identity)
    model.visual.attnpool = torch.nn.Identity()
    assert model.encode_image(image).shape == (1, 512, 2, 2)


def test_methods_of_openais_class(reference, model):
    vit = clip.model.build_model(reference.state_dict())
    for ours in (vit, resnet(), model):
        assert torch.equal(ours.build_attention_mask(), reference.build_attention_mask())
    for ours in (vit, resnet()):
        torch.manual_seed(3)
        ours.initialize_parameters()
        torch.manual_seed(3)
        reference.initialize_parameters()
        for name in ("token_embedding.weight", "positional_embedding", "text_projection"):
            expected = dict(reference.named_parameters())[name].std()
            assert torch.allclose(getattr_of(ours, name).std(), expected, rtol=0.1)
    drawn, expected = vit.state_dict(), reference.state_dict()
    assert all(torch.equal(drawn[key], expected[key]) for key in expected)


def getattr_of(model, name):
    for part in name.split("."):
        model = getattr(model, part)
    return model


def test_private_names_of_openais_module():
    from clipag_plugins.clip.clip import _convert_image_to_rgb

    assert _convert_image_to_rgb(Image.new("RGBA", (2, 2))).mode == "RGB"
    assert clip._convert_image_to_rgb is _convert_image_to_rgb
    assert _convert_image_to_rgb in clip.clip._transform(32).transforms


def test_an_empty_batch_of_texts(model):
    assert clip.tokenize([]).shape == (0, 77)
    for ours in (model, resnet(), clip.model.build_model(make().state_dict())):
        assert ours.encode_text(clip.tokenize([])).shape == (0, ours.visual.output_dim)
