"""What public training code saves: containers, prefixes, towers alone."""

import copy
import functools
from collections import OrderedDict
from pathlib import PurePosixPath

import open_clip
import pytest
import torch
from torch import nn

import clipag_plugins
from clipag_plugins import architecture, clip, publish

TEXT = {"context_length": 77, "vocab_size": 500, "width": 64, "heads": 1, "layers": 1}
VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8}
CONFIG = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True}
RESNET = {
    **CONFIG, "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
}  # fmt: skip
CONVNEXT = {
    **CONFIG, "custom_text": True,
    "vision_cfg": {"timm_model_name": "convnext_atto", "image_size": 64, "timm_pool": "",
                   "timm_proj": "linear"},
}  # fmt: skip
TOKENS = torch.randint(1, 499, (2, 77))


@functools.cache
def make(kind):
    """A small model of this package, with weights that are nowhere near their small start."""
    if kind == "mini":
        return clip.load("clipag-mini", "cpu")[0]
    config = {"vit": CONFIG, "resnet": RESNET, "convnext": CONVNEXT}[kind]
    settings = {key: value for key, value in config.items() if key != "custom_text"}
    build = open_clip.CustomTextCLIP if "custom_text" in config else open_clip.CLIP
    state = {key: value + 0.05 for key, value in build(**settings).state_dict().items()}
    return architecture.from_config(config, state, kind, kind).eval()


def assert_same(ours, theirs):
    """Compare embeddings in float64: kernels of float32 differ between processors."""
    ours, theirs = copy.deepcopy(ours).double(), copy.deepcopy(theirs).double()
    side = theirs.visual.native_size
    image = torch.randn(2, 3, side, side, dtype=torch.float64)
    assert torch.allclose(ours.encode_image(image), theirs.encode_image(image), atol=1e-6)
    assert torch.allclose(ours.encode_text(TOKENS), theirs.encode_text(TOKENS), atol=1e-6)


class Trained(nn.Module):
    """A module that a trainer keeps a CLIP in, beside a classifier."""

    def __init__(self, model):
        super().__init__()
        self.clip_model = model
        self.classifier = nn.Linear(16, 3)


def prefixed(prefix, state):
    return OrderedDict((prefix + key, value) for key, value in state.items())


CONTAINERS = {
    "model_state_dict": lambda state: {"epoch": 3, "model_state_dict": state, "loss": 0.5},
    "model": lambda state: {"model": state, "optimizer": {"state": {0: {"exp_avg": TOKENS}}}},
    "state_dict": lambda state: {"state_dict": state, "config": {"eps": 4 / 255}},
    "nested": lambda state: {"checkpoint": {"model": {"state_dict": state}}, "epoch": 3},
    "a path beside": lambda state: {"net": state, "folder": PurePosixPath("runs")},
    "module.": lambda state: {"state_dict": prefixed("module.", state)},
    "_orig_mod.": lambda state: prefixed("_orig_mod.", state),
    "module._orig_mod.": lambda state: {"model": prefixed("module._orig_mod.", state)},
    "model.": lambda state: {"state_dict": prefixed("model.", state)},
    "model.module.": lambda state: prefixed("model.module.", state),
    "inside": lambda state: {
        key.replace("visual.", "visual._orig_mod."): value for key, value in state.items()
    },
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("kind", "container"),
    [*(("vit", container) for container in CONTAINERS), ("mini", "nested"), ("mini", "model.")],
)
def test_checkpoints_of_training_code(kind, container, tmp_path):
    theirs = make(kind)
    torch.save(CONTAINERS[container](theirs.state_dict()), tmp_path / "epoch_3.pt")
    ours, _ = clip.load(str(tmp_path / "epoch_3.pt"), device="cpu")
    assert_same(ours, theirs)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["vit", "mini", "resnet"])
def test_a_models_own_state_dict(kind, tmp_path):
    """The activation too: QuickGELU, which no tensor tells."""
    theirs = make(kind)
    torch.save(theirs.state_dict(), tmp_path / "own.pt")
    assert_same(clip.load(str(tmp_path / "own.pt"), device="cpu")[0], theirs)
    assert_same(clip.clip.build_model(theirs.state_dict()), theirs)
    wrapped = nn.DataParallel(Trained(theirs)).state_dict()
    torch.save({"state_dict": wrapped}, tmp_path / "wrapped.pt")
    assert_same(clip.load(str(tmp_path / "wrapped.pt"), device="cpu")[0], theirs)


def test_a_safetensors_file_under_another_name(tmp_path):
    theirs = make("vit")
    publish.save_pretrained(theirs, tmp_path)
    (tmp_path / "open_clip_model.safetensors").rename(tmp_path / "pytorch_model.bin")
    ours = clip.load(tmp_path / "pytorch_model.bin", device="cpu")[0]
    assert torch.equal(ours.visual.proj, theirs.visual.proj)


def test_several_clips_in_one_checkpoint(tmp_path):
    state = make("vit").state_dict()
    torch.save({**prefixed("student.", state), **prefixed("teacher.", state)}, tmp_path / "two.pt")
    with pytest.raises(clipag_plugins.ClipagError, match=r"several CLIPs, student\. and teacher\."):
        clip.load(str(tmp_path / "two.pt"))
    torch.save({"one": state, "other": state | {"logit_scale": torch.ones(())}}, tmp_path / "2.pt")
    with pytest.raises(clipag_plugins.ClipagError, match="something other than a state dict"):
        clip.load(str(tmp_path / "2.pt"))


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [
        ("mini", ""),
        ("resnet", "visual."),
        ("vit", "module."),
        ("vit", "model.visual."),
        ("vit", ""),
    ],
)
def test_an_image_tower_alone(kind, prefix, tmp_path, run):
    """As robust CLIPs are published: the text tower is that of the CLIP that they come from."""
    origin, tuned = make(kind), copy.deepcopy(make(kind))
    for parameter in tuned.visual.parameters():
        parameter.data.add_(0.02)
    torch.save(prefixed(prefix, tuned.visual.state_dict()), tmp_path / "tower.pt")
    with pytest.raises(clipag_plugins.ClipagError, match=r"without a text tower.*`text_from`"):
        clip.load(str(tmp_path / "tower.pt"))
    torch.save(origin.state_dict(), tmp_path / "origin.pt")
    result = run("convert", "tower.pt", "--text-from", tmp_path / "origin.pt")
    assert result.returncode == 0, result.stderr
    assert_same(clip.load(str(tmp_path / "tower.safetensors"), device="cpu")[0], tuned)


def test_an_image_tower_names_the_models_it_may_come_from(tmp_path):
    with torch.device("meta"):
        tower = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32")).visual
    state = {key: torch.zeros(1).expand(value.shape) for key, value in tower.state_dict().items()}
    with pytest.raises(
        clipag_plugins.ClipagError, match="vanilla:ViT-B-32-laion2B, vanilla:ViT-B/32"
    ):
        clip.clip.build_model(state)
    tower = make("vit").visual.state_dict()
    torch.save(tower, tmp_path / "tower.pt")
    torch.save(make("vit").state_dict(), tmp_path / "whole.pt")
    for path, text_from, message in (
        (tmp_path / "tower.pt", "clipag-mini", "another architecture"),
        (tmp_path / "whole.pt", "clipag-mini", "leave `text_from` out"),
    ):
        with pytest.raises(clipag_plugins.ClipagError, match=message):
            publish.convert(path, tmp_path / "x.safetensors", text_from)


def test_what_is_no_clip_of_ours_says_what_it_is(tmp_path):
    state = make("vit").state_dict()
    convnext = make("convnext").state_dict()
    for content, message in (
        ({"text_model.embeddings.token_embedding.weight": TOKENS}, "layout of transformers"),
        (convnext, "folder with its open_clip_config"),
        ({k: v for k, v in state.items() if "visual" not in k}, "text tower without"),
        ({k: v for k, v in state.items() if k != "ln_final.bias"}, "incomplete.*'ln_final.bias'"),
        ({**state, "head.weight": TOKENS}, "more than a model.*'head.weight'"),
        (make("vit"), r"Python objects .*save the tensors alone"),
        ({"model": make("vit")}, r"Python objects .*save the tensors alone"),
        ({"conv1.weight": TOKENS, "fc.weight": TOKENS}, "another architecture than CLIP"),
    ):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(clipag_plugins.ClipagError, match=message) as refused:
            clip.load(str(tmp_path / "x.pt"))
        assert "fetch it again" not in str(refused.value)
    torch.save(make("vit"), tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(clipag_plugins.ClipagError, match="save the tensors alone"):
        clip.load(str(tmp_path / "x.pt"))


def test_containers_that_contain_each_other_end():
    from clipag_plugins.untrusted import MOST_CONTAINERS, _state_dict_in

    layer = {"weights": 3}
    for _ in range(50):
        layer = {f"part{i}": layer for i in range(200)}
    layer["self"] = layer
    assert _state_dict_in(layer, MOST_CONTAINERS, set()) is None
