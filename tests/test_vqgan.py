"""VQGAN+CLIP: taming's own models as a canvas, its prompts, views and files, and the command."""

import math
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch
import yaml
from hub_server import HubServer
from PIL import Image
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins import base, embedded
from clipag_plugins.arguments import RunOptions
from clipag_plugins.cli import main
from clipag_plugins.defaults import CUT_AUGMENTS, CUT_METHODS, PUBLIC_VQGANS

pytest.importorskip("taming")

from clipag_plugins.integrations import vqgan
from clipag_plugins.integrations.vqgan.canvas import GENERATE_PY_SETTINGS, _Clamp
from clipag_plugins.integrations.vqgan.cutouts import AUGMENTS, Cutouts
from clipag_plugins.integrations.vqgan.prompts import (
    Prompt,
    ambiguities,
    parse_pictures,
    parse_scenes,
    with_prefix,
)
from clipag_plugins.integrations.vqgan.taming import taming
from clipag_plugins.integrations.vqgan.weights import VQGANS, Address, load_vqgan, write_embedded

QUIET = RunOptions(progress=False)
SHAPE = {
    "double_z": False, "z_channels": 8, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32,
    "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8], "dropout": 0.0,
}  # fmt: skip


def config(kind="VQModel", n_embed=16, **changed):
    params = {"n_embed": n_embed, "embed_dim": 8, "ddconfig": {**SHAPE, **changed}}
    # As taming's yamls: what trains the model is named there too, and must never be imported.
    params["lossconfig"] = {"target": "os.abort"}
    return {"model": {"target": f"taming.models.vqgan.{kind}", "params": params}}


def tensors(kind="VQModel"):
    torch.manual_seed(1)
    unused = {"target": "torch.nn.Identity"}
    more = {"temperature_scheduler_config": unused} if kind == "GumbelVQ" else {}
    model = getattr(taming("models.vqgan"), kind)(SHAPE, unused, 16, 8, **more)
    book = model.quantize.embed if kind == "GumbelVQ" else model.quantize.embedding
    torch.nn.init.normal_(book.weight)  # as made, its codes lie too close to tell apart
    return model.state_dict()


def pair(folder, kind="VQModel", state=None, described=None):
    """Write a yaml and a checkpoint, and return the checkpoint's path."""
    (folder / "m.yaml").write_text(yaml.safe_dump(described or config(kind)))
    torch.save({"state_dict": tensors(kind) if state is None else state}, folder / "m.ckpt")
    return folder / "m.ckpt"


@pytest.fixture(scope="module", params=["VQModel", "GumbelVQ"])
def either(request, tmp_path_factory):
    return load_vqgan(pair(tmp_path_factory.mktemp("vqgan"), request.param))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load_vqgan(pair(tmp_path_factory.mktemp("vqgan")))


def theirs(state, z, kind):
    """Decode z by taming's own parts, imported as they are."""
    from taming.modules.diffusionmodules.model import Decoder
    from taming.modules.vqvae.quantize import VectorQuantizer2

    decoder, after = Decoder(**SHAPE), torch.nn.Conv2d(8, 8, 1)
    decoder.load_state_dict({k[8:]: v for k, v in state.items() if k.startswith("decoder.")})
    after.load_state_dict({k[16:]: v for k, v in state.items() if k.startswith("post_quant_conv")})
    quantize = VectorQuantizer2(16, 8, beta=0.25)
    name = "quantize.embed.weight" if kind == "GumbelVQ" else "quantize.embedding.weight"
    quantize.embedding.weight.data = state[name]
    with torch.no_grad():
        return (decoder(after(quantize(z)[0])) + 1) / 2


# The canvas


def test_decodes_as_taming_does(either):
    z = torch.randn(2, 8, 5, 9)
    canvas = vqgan.VqganCanvas(either, z)
    expected = theirs(either.state_dict(), z, type(either).__name__)
    assert torch.allclose(canvas.render(), expected.clamp(0, 1), atol=1e-5)
    assert expected.std() > 0.1 and canvas.render().shape == (2, 3, 10, 18)


def test_the_gradient_passes_the_choice_of_codes(either):
    z = torch.randn(1, 8, 4, 4)
    canvas = vqgan.VqganCanvas(either, z)
    canvas.render().square().sum().backward()
    codes = vqgan.nearest_codes(z, vqgan.codebook(either)).requires_grad_(True)
    _Clamp.apply((either.decode(codes) + 1) / 2).square().sum().backward()
    assert codes.grad.abs().sum() > 0
    assert torch.allclose(canvas.latent.grad, codes.grad, atol=1e-5)


def test_saturated_pixels_come_back_but_go_no_further():
    x = torch.tensor([-0.5, -0.5, 0.5, 1.5, 1.5], requires_grad=True)
    y = _Clamp.apply(x)
    assert y.tolist() == [0, 0, 0.5, 1, 1]
    y.backward(torch.tensor([1.0, -1.0, 3.0, 1.0, -1.0]))
    assert x.grad.tolist() == [0, -1, 3, 1, 0]


def test_the_latent_stays_in_the_codebooks_range(tiny):
    canvas = vqgan.VqganCanvas(tiny, 100 * torch.randn(1, 8, 4, 4))
    canvas.constrain()
    codes = vqgan.codebook(tiny)
    for channel in range(8):
        assert canvas.latent[0, channel].max() == codes[:, channel].max()
        assert canvas.latent[0, channel].min() == codes[:, channel].min()


@pytest.mark.parametrize("init", ["noise", "pixels", "gradient", "picture"])
def test_starts(either, init, tmp_path):
    if init == "picture":
        init = tmp_path / "photo.png"
        Image.new("RGB", (40, 20), "orange").save(init)
    latent = vqgan.starting_latent(either, (37, 20), init, seed=3)
    assert latent.shape == (1, 8, 10, 19)
    codes = vqgan.codebook(either)
    places = latent.movedim(1, -1).flatten(0, 2)
    assert (places[:, None] == codes).all(dim=2).any(dim=1).all()  # codes, all of them
    assert torch.equal(latent, vqgan.starting_latent(either, (37, 20), init, seed=3))
    other = vqgan.starting_latent(either, (37, 20), init, seed=4)
    assert torch.equal(latent, other) == (init == tmp_path / "photo.png")
    assert vqgan.VqganCanvas(either, latent, (37, 20)).render().shape == (1, 3, 20, 37)


def test_encodes_as_taming_does(tiny):
    images = torch.rand(1, 3, 24, 16)
    assert torch.allclose(vqgan.encode(tiny, images), tiny.encode(images * 2 - 1)[0], atol=1e-5)


@pytest.mark.parametrize("size", [(8, 64), (64, 0), (-3, 64), (64, 10**6)])
def test_impossible_sizes(tiny, size):
    with pytest.raises(clip.ClipagError, match="choose sides from 16 to 2048"):
        vqgan.starting_latent(tiny, size)


# Prompts, and the distance that they stop at


def test_prompts():
    assert parse_scenes("a frog") == [[Prompt("a frog")]]
    assert parse_scenes(" a frog:2 | Alien: a poster:1:.5|x:-1 ^ a toad : 1e-1 ") == [
        [Prompt("a frog", 2), Prompt("Alien: a poster", 1, 0.5), Prompt("x", -1)],
        [Prompt("a toad", 0.1)],
    ]
    assert parse_scenes("2001: a film:1") == [[Prompt("2001: a film")]]


def test_a_prefix_is_put_before_every_text():
    scenes = with_prefix(parse_scenes("a frog:2 | Alien: a poster:1 ^ a toad"), "oil painting of")
    texts = [[prompt.text for prompt in scene] for scene in scenes]
    assert texts == [
        ["oil painting of a frog", "oil painting of Alien: a poster"], ["oil painting of a toad"]
    ]  # fmt: skip
    assert scenes[0][0].weight == 2


@pytest.mark.parametrize(
    ("part", "text", "weight", "stop"),
    [
        ("Star Wars: Return of the Jedi", "Star Wars: Return of the Jedi", 1, -math.inf),
        ("Star Wars: Return of the Jedi:2", "Star Wars: Return of the Jedi", 2, -math.inf),
        ("Toy Story: Infinity", "Toy Story: Infinity", 1, -math.inf),
        (r"C:\pics\a.png", r"C:\pics\a.png", 1, -math.inf),
        (r"C:\pics\a.png:-1:.5", r"C:\pics\a.png", -1, 0.5),
        ("a:b", "a:b", 1, -math.inf),
        ("a:1:b", "a:1:b", 1, -math.inf),
        ("a:nan", "a:nan", 1, -math.inf),
        ("a:inf", "a:inf", 1, -math.inf),
        ("a:1:-inf", "a", 1, -math.inf),
        ("a fox:1,5", "a fox:1,5", 1, -math.inf),
        ("a clock that shows 12:30", "a clock that shows 12:30", 1, -math.inf),
        ("a clock that shows 12:30:45", "a clock that shows 12:30:45", 1, -math.inf),
        ("a clock that shows 12:30:2", "a clock that shows 12:30", 2, -math.inf),
        ("a clock that shows 12:30:2:.5", "a clock that shows 12:30", 2, 0.5),
        ("the numbers 1 to 12 :30", "the numbers 1 to 12", 30, -math.inf),
        ("Area 51:2", "Area 51", 2, -math.inf),
        ("Area 51:2:", "Area 51:2", 1, -math.inf),
        ("a frog:12:30", "a frog", 12, 30),
        ("a:", "a", 1, -math.inf),
    ],
)
def test_colons_in_texts(part, text, weight, stop):
    assert parse_scenes(part) == [[Prompt(text, weight, stop)]]


def test_the_reading_that_was_taken_is_said():
    assert ambiguities("a frog:2 | Star Wars: Return of the Jedi ^ 2001: a film:1:0.5") == []
    (time,) = ambiguities("a frog:2 | a clock that shows 12:30")
    assert "In the prompt 'a clock that shows 12:30', 12:30 is taken as text" in time
    (weight,) = ambiguities("Area 51:2")
    assert "2 is taken as a weight" in weight and not ambiguities("Area 51:2:")
    (number,) = ambiguities("a fox:1,5")
    assert "'1,5' is no number" in number


def test_colons_in_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("red:2", "blue", "blue:3"):
        (tmp_path / name).touch()
    names = "red:2 | red:2:-1 | blue:3 | blue:3:1 | missing:4"
    assert parse_pictures(names) == [
        Prompt("red:2"), Prompt("red:2", -1), Prompt("blue", 3), Prompt("blue", 3, 1),
        Prompt("missing", 4),
    ]  # fmt: skip
    assert ambiguities("", names) == ["Of the pictures blue and blue:3, the first is taken."] * 2


@pytest.mark.parametrize("text", ["", "|", "a|", "a^", "^a", ":1", ":", "a:0"])
def test_malformed_prompts(text):
    with pytest.raises(clip.ClipagError, match="write text:weight:stop"):
        parse_scenes(text)


ONE_VIEW = replace(GENERATE_PY_SETTINGS, views=clip.one_view)


def target(model, text, weight, stop=-math.inf):
    return clip.Target(clip.text_target(model, text).embedding, weight, stop)


def test_the_spherical_distance_is_half_the_squared_angle(model):
    images = torch.rand(2, 3, 64, 64)
    targets = [[target(model, "apple", 1)], [target(model, "apple", 2), target(model, "cat", -0.5)]]
    losses = clip.Guide(model, targets, spherical=True, options=clip.RunOptions("float32")).loss(
        images
    )
    z = F.normalize(model.encode_image(base.normalize(images)), dim=-1)
    for loss, image, wanted in zip(losses, z, targets, strict=True):
        angles = [torch.acos(image @ t.embedding) for t in wanted]
        expected = sum(t.weight * a**2 / 2 for t, a in zip(wanted, angles, strict=True))
        assert loss.item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("weight", [1, -1])
def test_a_prompt_stops_leading_at_its_stop(model, weight):
    images = torch.rand(1, 3, 64, 64)
    reached = clip.Guide(model, [[target(model, "apple", weight)]], spherical=True).loss(images)
    for difference, leads in ((0.01, False), (-0.01, True)):
        images.requires_grad_(True).grad = None
        stopped = target(model, "apple", weight, reached.item() + difference)
        loss = clip.Guide(model, [[stopped]], spherical=True).loss(images)
        loss.sum().backward()
        assert loss.item() == pytest.approx(reached.item(), abs=1e-5)
        assert bool(images.grad.abs().sum() > 0) == leads


def test_a_stop_needs_the_spherical_distance(model):
    with pytest.raises(clip.ClipagError, match="spherical=True"):
        clip.Guide(model, [[target(model, "apple", 1, 0.5)]])


# Views


@pytest.mark.parametrize("method", CUT_METHODS)
def test_cutouts(method):
    images = torch.rand(2, 3, 60, 90, requires_grad=True)
    cutouts = Cutouts(4, method)
    torch.manual_seed(5)
    views, weights = cutouts(images, 48)
    assert views.shape == (2, 4, 3, 48, 48)
    assert weights.tolist() == [0.25] * 4
    assert not torch.allclose(views[0, 0], views[0, 1], atol=1e-3)
    views.sum().backward()
    assert (images.grad.abs().sum(dim=(1, 2, 3)) > 0).all()
    torch.manual_seed(5)
    assert torch.equal(views[1:], cutouts(images[1:], 48)[0])  # whatever its neighbours


def test_the_help_names_all_augmentations():
    assert tuple(AUGMENTS) == CUT_AUGMENTS


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize("method", ["latest", "nrupdated"])
def test_augmentations_by_name(method, name):
    views, _ = Cutouts(6, method, [name])(torch.rand(1, 3, 60, 60), 32)
    assert views.shape == (1, 6, 3, 32, 32) and views.isfinite().all()


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"method": "newest"}, {"augments": ["Zz"]}, {"power": 0.0}]
)
def test_cutouts_that_are_none(wrong):
    with pytest.raises(clip.ClipagError, match="choose"):
        Cutouts(**wrong)


# Drawing


@pytest.mark.slow
def test_a_story_in_scenes(model, tiny):
    seen = []

    def callback(step, images, losses):
        seen.append((step, losses.item()))

    settings = replace(GENERATE_PY_SETTINGS, views=Cutouts(2, "original"))
    draw = {"steps": 7, "size": (20, 16), "callback": callback, "options": QUIET}
    ascent = vqgan.draw("a cat ^ a dog:-1", model, tiny, settings=settings, **draw)
    assert ascent.steps == 7 and ascent.images.shape == (1, 3, 16, 20)
    # A loss of a negative weight is negative: the scenes are told apart.
    assert [(s, x < 0) for s, x in seen] == [
        *((s, False) for s in range(4)), *((s, True) for s in range(3, 8))
    ]  # fmt: skip
    seen.clear()
    settings = replace(settings, change_every=3)
    vqgan.draw("a cat ^ a dog:-1", model, tiny, settings=settings, **draw)
    assert [x < 0 for _, x in seen] == [False] * 4 + [True] * 4 + [False] * 2


@pytest.mark.slow
def test_it_comes_nearer_and_again_the_same(model, tiny):
    reached = []

    def callback(step, images, losses):
        reached.append(losses.item())

    draw = {"steps": 20, "size": (32, 32), "options": QUIET}
    vqgan.draw("a cat", model, tiny, callback=callback, settings=ONE_VIEW, **draw)
    assert min(reached[-5:]) < reached[0] - 0.01
    draw["steps"] = 3
    first, second = (vqgan.draw("a cat", model, tiny, seed=7, **draw) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, vqgan.draw("a cat", model, tiny, seed=8, **draw).images)


def test_image_prompts(model, tiny, tmp_path):
    Image.new("RGB", (30, 50), "green").save(tmp_path / "green.png")
    losses = []
    for prompt, pictures in (("", "green.png"), ("", "green.png:2"), ("a cat", "green.png")):
        ascent = vqgan.draw(
            prompt, model, tiny, image_prompts=str(tmp_path / pictures), steps=1, size=(16, 16),
            settings=ONE_VIEW, options=QUIET,
        )  # fmt: skip
        losses.append(ascent.losses.item())
    assert losses[1] == pytest.approx(2 * losses[0], rel=0.2) and losses[2] > losses[0]
    with pytest.raises(clip.ClipagError, match="no picture at"):
        vqgan.draw("", model, tiny, image_prompts="none.png")


# Files


def refused(path, match, **options):
    with pytest.raises(clip.ClipagError, match=match):
        load_vqgan(path, **options)


def test_a_yaml_of_another_model(tmp_path):
    refused(
        pair(tmp_path, described=config(n_embed=32)), r"m.yaml describes.*\(16, 8\), not \(32, 8\)"
    )
    refused(pair(tmp_path, described=config(ch_mult=[1, 2, 2])), "another architecture")
    refused(pair(tmp_path, described=config("GumbelVQ")), "another architecture")
    path = pair(tmp_path)
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(config(z_channels=16)))
    refused(path, "other.yaml describes", config=tmp_path / "other.yaml")
    refused(path, "no config", config=tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "described",
    [
        config(num_res_blocks=10**9), config(ch=10**12), config(ch=33), config(ch_mult=[1] * 10**4),
        config(ch_mult="12"), config(in_channels=1), config(resolution=None), config(n_embed=-1),
        config("VQNoDiscModel"), {"model": {"target": "os.abort", "params": {}}}, {"model": 3}, [],
        {"model": {"target": "taming.models.vqgan.VQModel", "params": {"ddconfig": 3}}},
    ],
)  # fmt: skip
def test_yamls_that_are_no_vqgans(tmp_path, described):
    path = pair(tmp_path)
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(described))
    refused(path, r"m\.yaml")


@pytest.mark.parametrize(
    "text", [b"\xff\xfe\xff", b"a: [", b"!!python/object:os.abort {}", b"[" * 5000]
)
def test_yamls_that_are_none(tmp_path, text):
    path = pair(tmp_path)
    (tmp_path / "m.yaml").write_bytes(text)
    refused(path, "not a yaml file")


def test_damaged_checkpoints(tmp_path):
    path = pair(tmp_path)
    whole = path.read_bytes()
    for share in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:share])
        refused(path, "fetch it again")
    path = pair(tmp_path, state={**tensors(), "decoder.conv_in.bias": torch.full((64,), math.nan)})
    refused(path, "not finite")
    refused(pair(tmp_path, state={"model.weight": torch.zeros(3)}), "holds no VQGAN")


class Hostile:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    mark, path = tmp_path / "ran", pair(tmp_path)
    torch.save({"state_dict": tensors(), "callbacks": Hostile(mark)}, path)
    refused(path, "holds Python objects")
    path.write_bytes(pickle.dumps({"state_dict": Hostile(mark)}, protocol=2))
    refused(path, "holds Python objects")
    assert not mark.exists()


def test_what_lightning_leaves_in_a_checkpoint(tmp_path, monkeypatch):
    path, name = pair(tmp_path), "pytorch_lightning"
    module = type(sys)(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, name, module)
        left = {"callbacks": {module.ModelCheckpoint: {"best": 1}}, "x": module.ModelCheckpoint()}
        torch.save({"state_dict": {**tensors(), "loss.weight": torch.ones(1)}, **left}, path)
    assert load_vqgan(path).quantize.n_e == 16


def test_the_vqgan_of_a_transformers_checkpoint(tmp_path):
    first = config()["model"]
    whole = {
        "target": "taming.models.cond_transformer.Net2NetTransformer",
        "params": {"first_stage_config": first, "transformer_config": {"target": "os.abort"}},
    }
    state = {f"first_stage_model.{k}": v for k, v in tensors().items()}
    state["transformer.tok_emb.weight"] = torch.zeros(2, 2)
    model = load_vqgan(pair(tmp_path, state=state, described={"model": whole}))
    assert torch.equal(vqgan.codebook(model), tensors()["quantize.embedding.weight"])


def test_names_that_are_none(tmp_path):
    refused("vqgan_imagenet_f16_99", "There is no VQGAN called")
    refused(tmp_path, "has none of config.yaml")
    refused("vqgan-mini", "no checkpoint", config="m.yaml")


# Addresses and the Hub


@pytest.fixture
def server(tmp_path, monkeypatch):
    from huggingface_hub import constants

    server = HubServer()
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # What is cut within a chunk is fetched again; 10 MB would be more than these files.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**14)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    path = pair(tmp_path)
    for name in ("1/model.yaml", "me/vqgan/configs/model.yaml"):
        server.files[name] = path.with_suffix(".yaml").read_bytes()
    for name in ("1/last.ckpt", "me/vqgan/ckpts/last.ckpt"):
        server.files[name] = path.read_bytes()
    home = f"{server.address}/records/1/files"
    address = Address(f"{home}/model.yaml?download=1", f"{home}/last.ckpt?download=1", 1)
    monkeypatch.setitem(VQGANS, "vqgan_imagenet_f16_16384", address)
    yield server
    server.shutdown()


def test_a_public_checkpoint_is_fetched_once(server, tmp_path):
    server.fault = "cut"
    model = load_vqgan("vqgan_imagenet_f16_16384")
    resumed = [
        header for _, _, header in server.requests if header not in (None, "bytes=0-0", "bytes=0-")
    ]
    assert len(resumed) == 1
    folder = tmp_path / "xdg" / "clipag" / "vqgan" / "vqgan_imagenet_f16_16384"
    names = {path.name for path in folder.iterdir() if path.suffix != ".lock"}
    assert names == {"config.yaml", "model.safetensors"}
    asked = len(server.requests)
    again = load_vqgan("vqgan_imagenet_f16_16384")
    assert len(server.requests) == asked
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_a_public_checkpoint_that_is_not_what_it_should_be(server):
    server.files["1/last.ckpt"] = server.files["1/last.ckpt"][:-100]
    refused("vqgan_imagenet_f16_16384", "fetch it again")


def test_an_address_that_does_not_answer(server):
    server.fault = "500"
    refused("vqgan_imagenet_f16_16384", r"put it at .*config\.yaml")


def test_a_repository_of_the_hub(server):
    assert load_vqgan("me/vqgan").quantize.n_e == 16
    refused("me/nothing", "is no VQGAN")


def test_every_name_has_an_address():
    assert len(VQGANS) == 6 and tuple(VQGANS) == PUBLIC_VQGANS
    for address in VQGANS.values():
        assert address.config.startswith("https://") and address.weights.startswith("https://")


# taming itself


def test_nobody_else_sees_our_taming():
    before, finders = dict(sys.modules), list(sys.meta_path)
    taming.cache_clear()
    taming("models.vqgan")
    gone = {name for name in before if sys.modules.get(name) is not before[name]}
    come = {name for name in sys.modules if name.split(".")[0] in ("taming", "main")} - set(before)
    assert not gone and not come and sys.meta_path == finders
    assert not any(name.startswith("pytorch_lightning") for name in set(sys.modules) - set(before))


@pytest.mark.slow
def test_without_taming(tmp_path):
    code = """
import sys
class Blind:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "taming":
            raise ModuleNotFoundError("No module named 'taming'", name="taming")
sys.meta_path.insert(0, Blind())
from clipag_plugins.arguments import RunOptions
from clipag_plugins.cli import main
from clipag_plugins.defaults import CUT_AUGMENTS, CUT_METHODS, PUBLIC_VQGANS
sys.exit(main(["vqgan", "a frog", "--vqgan", "m.ckpt"]))
"""
    pair(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert result.returncode == 2 and "pip install" in result.stderr, result.stderr
    assert "Traceback" not in result.stderr


# The command


def test_a_picture_with_its_metadata(run, tmp_path):
    pair(tmp_path)
    command = "--steps 2 --size 30 20 --seed 3 --views 2 --vqgan m.ckpt --out frog.png"
    folders = "--trajectory t --frames f"
    result = run("vqgan", "a frog:1 | red:-0.1", *command.split(), *folders.split())
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == "frog.png"
    picture = Image.open(tmp_path / "frog.png")
    assert picture.size == (30, 20)
    metadata = {
        "prompt": "a frog:1 | red:-0.1",
        "seed": "3",
        "model": "clipag-lite",
        "vqgan": "m.ckpt",
    }
    assert metadata.items() <= picture.text.items()
    assert {path.name for path in (tmp_path / "f").iterdir()} == {
        f"frog-0000{n}.png" for n in range(3)
    }
    assert metadata.items() <= Image.open(tmp_path / "f" / "frog-00001.png").text.items()
    assert (tmp_path / "t" / "frog.gif").is_file()


def test_generate_pys_own_options(tmp_path, monkeypatch, capsys):
    pair(tmp_path).rename(tmp_path / "c.ckpt")
    monkeypatch.chdir(tmp_path)
    command = "-i 1 -s 32 16 -cuts 2 -cutm original -sd 1 -conf m.yaml -ckpt c.ckpt -lr 0.2"
    more = "-m clip-mini -vid -in gradient -aug Af -o o.png"
    assert main(["vqgan", "-p", "a frog", *command.split(), *more.split()]) == 0
    assert Image.open(tmp_path / "o.png").text["model"] == "clip-mini"
    assert (tmp_path / "steps" / "o-00001.png").is_file()
    assert "ffmpeg -framerate 30 -i steps/o-%05d.png" in capsys.readouterr().err


def test_a_time_is_text_and_said_to_be(tmp_path, monkeypatch, capsys):
    pair(tmp_path)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8), "red").save("red:2.png")
    clock = "a clock that shows 12:30"
    options = ["--vqgan", "m.ckpt", "-i", "1", "-s", "32", "--views", "2", "-o", "o.png"]
    assert main(["vqgan", clock, "-ip", "red:2.png", *options]) == 0
    assert "12:30 is taken as text" in capsys.readouterr().err


def test_a_film_or_the_frames_of_one(tmp_path, monkeypatch, capsys):
    pair(tmp_path)
    monkeypatch.chdir(tmp_path)
    options = "--vqgan m.ckpt -i 1 -s 32 17 --views 2"
    assert main(["vqgan", "a frog", *options.split(), "--video", "frog.mp4"]) == 0
    with av.open("frog.mp4") as film:
        assert sum(1 for _ in film.decode(video=0)) == 2 + 5
    # generate.py's --video takes no name.
    assert main(["vqgan", "-p", "50% frog", *options.split(), "--video"]) == 0
    assert (tmp_path / "steps" / "50-frog-0-00001.png").is_file()
    capsys.readouterr()
    assert main(["vqgan", *options.split(), "--video", "a frog"]) == 2
    assert "'a frog' was taken for the name of a film" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["a:0"], "write text:weight:stop"),
        ([], "no prompt"),
        (["a", "--size", "8", "8"], "choose a side"),
        (["a", "--size", "8", "8", "8"], "width and height"),
        (["a", "--steps", "0"], "at least 1"),
        (["a", "--change-every", "0"], "--change-every is 0"),
        (["a", "--views", "0"], "--views is 0"),
        (["a", "--cut-method", "newest"], "--cut-method is"),
        (["a", "--rate", "nan"], "learning rate"),
        (["a", "--vqgan", "none.ckpt"], "no VQGAN called"),
        (["a", "--init", "none.png"], "no picture at"),
        (["a", "--frames", "no/where"], "There is no folder"),
        (["a", "--init", "photo.png", "--out", "photo.png"], "would replace"),
        (["a", "-ip", "red.png:2 | photo.png:1", "--out", "photo.png"], "would replace"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, says):
    pair(tmp_path)
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    chosen = [] if "--vqgan" in arguments else ["--vqgan", "m.ckpt"]
    assert main(["vqgan", *arguments, *chosen]) == 2
    said = capsys.readouterr().err
    assert said.startswith("clipag: ") and says in said and said.count("\n") == 1


def test_at_once_and_offline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = "-p frog --steps 1 --size 64 --init gmm"
    assert main(["vqgan", *command.split()]) == 0
    picture = Image.open(tmp_path / "frog-0.png")
    assert picture.size == (64, 64) and picture.text["vqgan"] == "vqgan-mini"


@pytest.mark.slow
def test_the_example(tmp_path):
    example = Path(__file__).parent.parent / "examples" / "vqgan_clip.py"
    assert len(example.read_text().splitlines()) < 60
    result = subprocess.run(
        [sys.executable, example, "a fox", "2", "64"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert Image.open(tmp_path / "vqgan_clip.png").size == (64, 64)


def test_settings_are_those_of_the_loaded_vqgan(tiny):
    assert vqgan.settings_for(load_vqgan()).init == "gmm"
    assert vqgan.settings_for(tiny) == GENERATE_PY_SETTINGS


def test_old_names_can_be_imported():
    from clipag_plugins.integrations import cutouts, vqgan_weights

    assert cutouts.Cutouts is Cutouts and vqgan_weights.load_vqgan is load_vqgan


def test_the_embedded_one_as_taming_wants_it(tmp_path):
    write_embedded(tmp_path / "mini.ckpt")
    back, inside = load_vqgan(tmp_path / "mini.ckpt"), load_vqgan()
    for key, value in inside.state_dict().items():
        assert torch.equal(back.state_dict()[key], value)
    weights = embedded.checked_path(embedded.read_config()["vqgan"]["weights"])
    assert weights.stat().st_size < 12e6


def test_the_embedded_one_knows_pictures():
    # A drawing comes back nearer than any single colour is to it.
    image = torch.ones(1, 3, 96, 96)
    rows, columns = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    disc = (rows - 48) ** 2 + (columns - 48) ** 2 < 30**2
    image[0, :, disc] = torch.tensor([0.9, 0.2, 0.2])[:, None]
    embedded = load_vqgan()
    back = vqgan.VqganCanvas(embedded, vqgan.encode(embedded, image)).render()
    best = image.mean(dim=(2, 3), keepdim=True)
    assert (back - image).pow(2).mean() < 0.2 * (best - image).pow(2).mean()


@pytest.mark.slow
def test_ctrl_c_keeps_the_best(interrupt, tmp_path):
    pair(tmp_path)
    small = ("--size", "32", "--views", "2", "--vqgan", "m.ckpt", "--out", "frog.png")
    code, says = interrupt("distance", "vqgan", "a frog", "--steps", "100000", *small)
    assert code == 130 and "the best so far is kept" in says
    assert Image.open(tmp_path / "frog.png").size == (32, 32)
