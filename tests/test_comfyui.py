"""The nodes for ComfyUI as it calls them, in this process: types, shapes, defaults, errors.

`test_comfyui_server.py` runs them in the real ComfyUI.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import clipag_plugins as clip
from clipag_plugins.integrations.comfyui import NODE_CLASS_MAPPINGS as NODES
from clipag_plugins.integrations.comfyui import NODE_DISPLAY_NAME_MAPPINGS
from clipag_plugins.integrations.comfyui.goals import Part
from clipag_plugins.integrations.comfyui.guidance import noise_level
from clipag_plugins.integrations.comfyui.host import Managed, thaw
from clipag_plugins.integrations.comfyui.images import image_of, pictures_of
from clipag_plugins.integrations.comfyui.install import WORKFLOWS
from clipag_plugins.pictures import to_pil

ROOT = Path(__file__).parent.parent
SOCKETS = {
    "IMAGE", "MASK", "SVG", "MODEL", "VAE", "CLIP_VISION_OUTPUT", "CLIPAG_MODEL", "CLIPAG_TARGET",
    "CLIPAG_VQGAN",
}  # fmt: skip


def defaults(name):
    """Return the widgets of a node with the values that ComfyUI shows first."""
    return {
        input_name: options["default"]
        for inputs in NODES[name].INPUT_TYPES().values()
        for input_name, (_, options) in inputs.items()
        if "default" in options
    }


def run_node(name, **inputs):
    """Run a node as ComfyUI does: in inference mode, with all widgets."""
    node = NODES[name]
    with torch.inference_mode():
        outputs = getattr(node(), node.FUNCTION)(**{**defaults(name), **inputs})
    assert len(outputs) == len(node.RETURN_TYPES)
    return outputs


@pytest.fixture(scope="module")
def loaded():
    return run_node("ClipagLoadModel", model_name="clipag-mini")[0]


@pytest.fixture(scope="module")
def apple():
    return run_node("ClipagTextTarget", text="a red apple")[0]


@pytest.fixture
def photo():
    """An IMAGE of 40 × 32 pixels, made in inference mode as those of ComfyUI are."""
    with torch.inference_mode():
        return torch.linspace(0, 1, 32 * 40 * 3).view(1, 32, 40, 3)


SMALL = {"width": 32, "height": 48, "steps": 2}


@pytest.mark.parametrize("name", NODES)
def test_nodes_describe_themselves(name):
    node = NODES[name]
    assert node.CATEGORY.split("/")[0] == "CLIPAG" and node.DESCRIPTION
    assert NODE_DISPLAY_NAME_MAPPINGS[name].startswith("CLIPAG ")
    assert {*node.RETURN_TYPES} <= {*SOCKETS, "FLOAT"}
    assert len(node.OUTPUT_TOOLTIPS) == len(node.RETURN_TYPES)
    for inputs in node.INPUT_TYPES().values():
        for kind, options in inputs.values():
            assert options["tooltip"].endswith((".", "auto")), options
            if isinstance(kind, list):
                assert options["default"] in kind
            elif kind in ("INT", "FLOAT"):
                assert options["min"] <= options["default"] <= options["max"]
            else:
                assert kind in {*SOCKETS, "STRING", "BOOLEAN"}
    seeds = node.INPUT_TYPES()["required"].get("seed")
    assert seeds is None or seeds[1]["control_after_generate"]


def test_every_node_has_a_name():
    assert NODES.keys() == NODE_DISPLAY_NAME_MAPPINGS.keys()


@pytest.mark.slow
def test_the_pack_imports_at_once_and_without_torch():
    code = (
        "import sys, time; start = time.perf_counter(); import clipag_plugins.integrations.comfyui;"
        "print(time.perf_counter() - start, 'torch' in sys.modules, 'PIL' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    seconds, *slow = result.stdout.split()
    assert float(seconds) < 1 and slow == ["False", "False"], result.stderr


@pytest.mark.slow
def test_a_sample_is_the_picture_of_the_library(loaded, apple):
    (image,) = run_node("ClipagSample", model=loaded, target=apple, seed=3, batch_size=2, **SMALL)
    assert image.shape == (2, 48, 32, 3) and image.dtype == torch.float32
    expected = clip.generate("a red apple", "clipag-mini", seed=[3, 4], size=(32, 48), steps=2)
    for picture, other in zip(pictures_of(image), expected, strict=True):
        assert picture.tobytes() == other.tobytes()
    # Save Image cuts off what is behind the point.
    saved = (255 * image[0].numpy()).astype(np.uint8)
    assert saved.tobytes() == expected[0].tobytes()


@pytest.mark.slow
def test_the_default_model_draws_the_default_picture_of_the_sampler(apple):
    (loaded,) = run_node("ClipagLoadModel")
    (image,) = run_node("ClipagSample", model=loaded, target=apple, seed=3, tries=1, **SMALL)
    (picture,) = clip.generate("a red apple", seed=[3], size=(32, 48), steps=2, tries=1)
    assert pictures_of(image)[0].tobytes() == picture.tobytes()


@pytest.mark.slow
def test_a_sample_starts_from_each_picture_of_a_batch(loaded, apple, photo):
    batch = torch.cat([photo, photo.flip(2)])
    (image,) = run_node("ClipagSample", model=loaded, target=apple, steps=2, image=batch)
    expected = [
        clip.generate("a red apple", "clipag-mini", init=picture, size=picture.size, steps=2)
        for picture in pictures_of(batch)
    ]
    assert image.shape == (2, 32, 40, 3)
    assert [p.tobytes() for p in pictures_of(image)] == [p.tobytes() for p in expected]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ClipagSample", "ClipagVqgan", "ClipagStyle"])
def test_only_the_white_part_of_a_mask_changes(name, loaded, apple, photo):
    mask = torch.zeros(1, 32, 40)
    mask[:, 8:24, 8:32] = 1
    more = {"target": apple} if name != "ClipagStyle" else {}
    if name == "ClipagVqgan":
        more["vqgan"] = run_node("ClipagLoadVqgan")[0]
    (image,) = run_node(name, model=loaded, image=photo, mask=mask, steps=3, **more)
    is_changed = (image != image_of(pictures_of(photo))).any(dim=-1)
    assert is_changed.any() and not (is_changed & (mask == 0)).any()


def test_targets_are_combined_with_the_products_of_their_weights(loaded, photo, model):
    (text,) = run_node("ClipagTextTarget", text="a snail", weight=2.0)
    (images,) = run_node("ClipagImageTarget", image=torch.cat([photo, photo.flip(1)]), weight=-1.0)
    output = SimpleNamespace(image_embeds=torch.ones(1, model.visual.output_dim))
    (embedding,) = run_node("ClipagEmbeddingTarget", clip_vision_output=output)
    (both,) = run_node("ClipagCombineTargets", target_a=text, target_b=images, weight_b=0.5)
    (every,) = run_node("ClipagCombineTargets", target_a=both, target_b=embedding, weight_b=3.0)
    assert [part.weight for part in every] == [2, -0.25, -0.25, 3]
    (alone,) = run_node("ClipagCombineTargets", target_a=both, target_b=embedding, weight_a=0.0)
    assert alone == embedding  # a weight of 0 leaves a target out
    targets = [part.encoded(model) for part in every]
    assert all(abs(target.embedding.norm() - 1) < 1e-5 for target in targets)
    expected = clip.text_target(model, "a snail").embedding
    assert torch.allclose(targets[0].embedding, expected)
    (image,) = run_node("ClipagSample", model=loaded, target=every, tries=1, views=1, **SMALL)
    assert image.shape == (1, 48, 32, 3)


def test_a_negative_target_pushes_away(loaded, model):
    (text,) = run_node("ClipagTextTarget", text="a red apple", weight=-1.0)
    start = torch.full((1, 64, 64, 3), 0.5)
    (image,) = run_node("ClipagSample", model=loaded, target=text, image=start, steps=8)
    guide = clip.Guide(model, [[clip.text_target(model, "a red apple")]])
    before, after = (guide.loss(each.movedim(-1, 1)).item() for each in (start, image))
    assert after > before  # the loss of the apple


def test_drawings_are_svg_as_save_svg_takes_it(loaded, apple):
    widgets = {**SMALL, "strokes": 8, "background": "none", "palette": "black, e63946"}
    image, svg, mask = run_node(
        "ClipagDraw", model=loaded, target=apple, seed=5, batch_size=2, **widgets
    )
    assert image.shape == (2, 48, 32, 3) and mask.shape == (2, 48, 32)
    assert mask.min() < 1 and mask.max() == 1
    files = [data.read().decode() for data in svg.data]
    assert len(files) == 2 and files[0] != files[1]
    for seed, file in zip((5, 6), files, strict=True):
        assert re.match(r"<svg [^>]*width=\"32\"", file) and f"seed: {seed}\n" in file
        assert "prompt: a red apple" in file
        assert {*re.findall(r'stroke="(#\w+)"', file)} <= {"#000000", "#e63946"}


def test_a_drawing_takes_its_colours_from_a_picture(loaded, apple):
    red = torch.tensor([1.0, 0, 0]).expand(1, 32, 32, 3)
    image, _, mask = run_node(
        "ClipagDraw", model=loaded, target=apple, image=red, steps=1, strokes=16
    )
    assert image.shape == (1, 32, 32, 3) and not mask.any()
    assert (image[..., 0] > 0.9).all() and image[..., 1].mean() < 0.3


@pytest.mark.slow
def test_vqgan_draws_what_the_library_draws(loaded, apple, model):
    from clipag_plugins.integrations import vqgan

    (generator,) = run_node("ClipagLoadVqgan")
    (image,) = run_node("ClipagVqgan", model=loaded, vqgan=generator, target=apple, seed=1, **SMALL)
    ascent = vqgan.draw("a red apple", model, vqgan.load_vqgan(), steps=2, seed=1, size=(32, 48))
    assert pictures_of(image)[0].tobytes() == to_pil(ascent.images[0]).tobytes()


def test_an_inversion_is_that_of_the_library(loaded, photo, model):
    from clipag_plugins.inversion import Inversion, invert

    (image,) = run_node(
        "ClipagInvert", model=loaded, image=photo, seed=2, batch_size=2, side=32, steps=1, tries=1
    )
    how = Inversion(seed=[2, 3], size=32, steps=1, tries=1)
    ascent = invert(pictures_of(photo)[0], model, how)
    assert torch.equal(image, image_of([*ascent.images])) and image.shape == (2, 32, 32, 3)


@pytest.mark.slow
def test_photos_are_styled_one_by_one(loaded, photo):
    batch = torch.cat([photo, 1 - photo])
    (image,) = run_node("ClipagStyle", model=loaded, image=batch, steps=2, patches=2)
    assert image.shape == batch.shape and not torch.equal(image[0], image[1])


def test_scores_are_cosines_and_a_strip(loaded, model):
    with Image.open(ROOT / "examples" / "cat-face.png") as file:
        cat = image_of([file.convert("RGB")])
    texts = "cat face\n\n a bus \na very long text " + "that no strip has room for " * 3
    similarity, strip = run_node(
        "ClipagScore", model=loaded, image=torch.cat([cat, 1 - cat]), texts=texts
    )
    assert len(similarity) == 6 and similarity[0] > similarity[1]
    assert NODES["ClipagScore"].OUTPUT_IS_LIST == (True, False)
    z = nn.functional.normalize(
        model.encode_image(clip.load()[1](pictures_of(cat)[0])[None].to(model.device)), dim=-1
    )
    cosine = (z @ clip.text_target(model, "a bus").embedding).item()
    assert abs(similarity[1] - cosine) < 1e-4
    assert strip.shape[0] == 1 and strip.shape[2] > 2 * 224


@pytest.mark.slow
def test_heat_maps_are_masks(loaded, photo):
    image, mask = run_node(
        "ClipagExplain", model=loaded, image=torch.cat([photo, photo]), method="grad"
    )
    assert image.shape == (2, 32, 40, 3) and mask.shape == (2, 32, 40)
    assert mask.min() >= 0 and mask.max() == 1


class Diffusion:
    """What the guide calls of ComfyUI's MODEL; the real one is in `benchmarks/comfyui.py`."""

    model_sampling = SimpleNamespace(
        percent_to_sigma=lambda share: 10 * (1 - share), sigma_max=10
    )  # fmt: skip

    latent_format = SimpleNamespace(latent_channels=64, latent_dimensions=2)

    def clone(self):
        return type(self)()

    def get_model_object(self, name):
        return getattr(self, name)

    def set_model_sampler_post_cfg_function(self, function):
        self.function = function

    def process_latent_out(self, latents):
        return latents / 2

    def denoised(self, latents, step):
        """Return what a sampler of ten steps gets for a prediction of clean latents."""
        sigmas = torch.arange(10.0, -1, -1)
        options = {"transformer_options": {"sample_sigmas": sigmas}}
        return self.function(
            {"denoised": latents, "sigma": sigmas[step].expand(len(latents)), "model": self,
             "model_options": options}
        )  # fmt: skip


@pytest.fixture(scope="module")
def vae():
    """The embedded VQGAN's decoder as ComfyUI's VAE, in inference mode as its loader makes it."""
    from clipag_plugins.integrations import vqgan

    with torch.inference_mode():
        module = vqgan.load_vqgan()
    codes = vqgan.codebook(module)
    return SimpleNamespace(
        first_stage_model=module, latent_channels=codes.shape[1], device=torch.device("cpu"),
        vae_dtype=torch.float32, process_output=lambda image: ((image + 1) / 2).clamp(0, 1),
    )  # fmt: skip


def test_guided_latents_come_nearer_to_the_target(loaded, apple, vae, model):
    with torch.inference_mode():
        latents = torch.randn(2, vae.latent_channels, 6, 8, generator=torch.Generator()) * 2
    (guided,) = run_node(
        "ClipagGuideDiffusion", diffusion=Diffusion(), vae=vae, model=loaded, target=apple,
        strength=0.02, end_percent=0.55, every=2, views=4,
    )  # fmt: skip
    guide = clip.Guide(model, [[clip.text_target(model, "a red apple")]] * 2)

    def loss(latents):
        with torch.no_grad():
            decoded = vae.first_stage_model.decode(latents.clone() / 2)
            return guide.loss(vae.process_output(decoded)).sum().item()

    with torch.inference_mode():
        moved = guided.denoised(latents, step=2)
        again = guided.denoised(latents, step=2)
        is_same = [torch.equal(guided.denoised(latents, step), latents) for step in (1, 6, 9)]
    assert all(is_same)  # each second step only, and none after 55 %
    assert torch.equal(moved, again) and moved.shape == latents.shape
    assert loss(moved) < loss(latents)
    length = (moved - latents).square().mean(dim=(1, 2, 3)).sqrt()
    # Eight times as long as without noise, since the noise of this step is 8.
    assert torch.allclose(length, 0.02 * 8 * latents.std(dim=(1, 2, 3)), rtol=1e-3)


def test_flow_models_tell_noise_as_a_share():
    stable, flow = SimpleNamespace(sigma_max=14.6), SimpleNamespace(sigma_max=torch.tensor(1.0))
    assert noise_level(stable, 3.0) == (1, 3) and noise_level(flow, 0.75) == (0.25, 0.75)


def test_weights_of_the_inference_mode_are_thawed():
    with torch.inference_mode():
        layer = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).eval()
    weight = layer[0].weight.clone()
    thaw(layer)
    assert torch.equal(layer[0].weight, weight)
    image = torch.rand(1, 3, 2, 2, requires_grad=True)
    layer(image).sum().backward()
    assert image.grad is not None and not layer[0].weight.requires_grad


class Videos(Diffusion):
    """A diffusion model of videos."""

    latent_format = SimpleNamespace(latent_channels=16, latent_dimensions=3)


NO_MODEL = {"model": None}
BAD = {
    "no model": ("ClipagSample", NO_MODEL, "Nothing is connected to `model`: connect CLIPAG Load"),
    "no target": ("ClipagSample", {"target": None}, "Nothing is connected to `target`"),
    "empty text": ("ClipagTextTarget", {"text": "  "}, "`text` is empty"),
    "weight of 0": ("ClipagTextTarget", {"weight": 0.0}, "`weight` is 0"),
    "empty style": ("ClipagStyle", {"text": ""}, "is empty"),
    "no texts": ("ClipagScore", {"texts": "\n \n"}, "`texts` is empty"),
    "long text": ("ClipagTextTarget", {"text": "cat " * 99}, "a text of 101 tokens"),
    "long style": ("ClipagStyle", {"text": "cat " * 99}, "a text of 101 tokens"),
    "long texts": ("ClipagScore", {"texts": "cat\n" + "cat " * 99}, "a text of 101 tokens"),
    "no weight": (
        "ClipagCombineTargets",
        {"target_a": (Part("a"),), "target_b": (Part("b"),), "weight_a": 0.0, "weight_b": 0.0},
        "`weight_a` and `weight_b` are 0",
    ),
    "small": ("ClipagSample", {"image": torch.ones(1, 8, 40, 3)}, "40 × 8 pixels: scale it to"),
    "large": ("ClipagDraw", {"image": torch.ones(1, 32, 4096, 3)}, "4096 × 32 pixels: scale it"),
    "another size": ("ClipagSample", {"mask": torch.ones(1, 64, 64)}, "64 × 64 pixels and the"),
    "black mask": ("ClipagSample", {"mask": torch.zeros(1, 32, 40)}, "no white part"),
    "more masks": ("ClipagSample", {"mask": torch.ones(2, 32, 40)}, "2 masks for 1 pictures"),
    "mask alone": ("ClipagVqgan", {"mask": torch.ones(1, 8, 8), "image": None}, "needs a picture"),
    "4 channels": ("ClipagSample", {"image": torch.ones(1, 32, 40, 4)}, "4 channels: give it 3"),
    "batch of 0": ("ClipagStyle", {"image": torch.ones(0, 32, 40, 3)}, "an empty batch"),
    "many tries": ("ClipagSample", {"tries": 3}, "`tries` is 3, but a picture is only one start"),
    "a colour": ("ClipagDraw", {"palette": "black, mud"}, "names 'mud', which is not a colour"),
    "widths": ("ClipagDraw", {"least_width": 9.0, "most_width": 1.0}, "`width` is 9 to 1"),
    "no such model": ("ClipagLoadModel", {"model_name": "ViT-B/23"}, "no model or weights file"),
    "no name": ("ClipagLoadModel", {"model_name": ""}, "`model_name` is empty"),
    "embedding": ("ClipagSample", {"target": (Part(torch.ones(7)),)}, "7 numbers, but those of"),
    "no VAE": ("ClipagGuideDiffusion", {"vae": None}, "Nothing is connected to `vae`"),
    "no diffusion": ("ClipagGuideDiffusion", {"diffusion": None, "vae": 1}, "to `diffusion`"),
    "late start": (
        "ClipagGuideDiffusion",
        {"vae": 1, "start_percent": 0.8, "end_percent": 0.2},
        "the start must come first",
    ),
    "another VAE": (
        "ClipagGuideDiffusion",
        {"diffusion": Diffusion(), "vae": SimpleNamespace(latent_channels=16)},
        "latents of 16 channels, and those of `diffusion` have",
    ),
    "videos": (
        "ClipagGuideDiffusion",
        {"diffusion": Videos(), "vae": SimpleNamespace(latent_channels=16)},
        "draws no pictures but videos or sound",
    ),
    "NaN": ("ClipagImageTarget", {"image": torch.full((1, 9, 9, 3), torch.nan)}, "holds NaN"),
    "NaN start": ("ClipagSample", {"image": torch.full((1, 32, 40, 3), torch.nan)}, "holds NaN"),
}  # fmt: skip


@pytest.mark.parametrize("name, inputs, message", BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence(name, inputs, message, loaded, apple, photo):
    required = NODES[name].INPUT_TYPES()["required"]
    optional = NODES[name].INPUT_TYPES().get("optional", {})
    good = {"model": loaded, "target": apple, "image": photo, "vqgan": None, "diffusion": 1}
    if name == "ClipagVqgan":
        good["vqgan"] = run_node("ClipagLoadVqgan")[0]
    given = {key: value for key, value in good.items() if key in (*required, *optional)}
    with pytest.raises(clip.ClipagError, match=re.escape(message)) as error:
        run_node(name, **{**given, "steps": 1, **inputs} if "steps" in required else
                 {**given, **inputs})  # fmt: skip
    assert str(error.value).count("\n") == 0


def test_a_misspelt_widget_is_an_error(loaded, apple):
    with pytest.raises(TypeError, match="stepps"):
        run_node("ClipagSample", model=loaded, target=apple, stepps=3)


def test_the_loader_sees_that_a_file_was_replaced(tmp_path, monkeypatch, model):
    """`folder_paths` is ComfyUI's module of this name; everything else is real."""
    file = tmp_path / "mine.safetensors"
    model.save_pretrained(tmp_path / "saved")
    file.write_bytes((tmp_path / "saved" / "model.safetensors").read_bytes())
    folders = SimpleNamespace(
        get_filename_list=lambda kind: [file.name],
        get_full_path=lambda kind, name: str(file) if name == file.name else None,
    )
    monkeypatch.setitem(sys.modules, "comfy.model_management", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "folder_paths", folders)
    node = NODES["ClipagLoadModel"]
    names, _ = node.INPUT_TYPES()["required"]["model_name"]
    assert names[0] == "clipag-mini" and names[-1] == file.name
    before = node.IS_CHANGED(model_name=file.name)
    assert before == node.IS_CHANGED(model_name=file.name)
    (loaded,) = run_node("ClipagLoadModel", model_name=file.name)
    assert isinstance(loaded, Managed) and torch.equal(
        loaded.ready().logit_scale, model.logit_scale
    )
    file.write_bytes(b"something else")
    assert node.IS_CHANGED(model_name=file.name) != before
    assert node.IS_CHANGED(model_name="clipag-mini") == "clipag-mini"


def test_one_command_installs_the_nodes(run, tmp_path):
    comfyui = tmp_path / "ComfyUI"
    (comfyui / "custom_nodes").mkdir(parents=True)
    (comfyui / "nodes.py").touch()
    for _ in range(2):  # again, after an update
        result = run("comfyui", "--install", comfyui)
        assert result.returncode == 0, result.stderr
    pack = comfyui / "custom_nodes" / "clipag-plugins" / "__init__.py"
    assert result.stdout.strip() == str(pack)
    assert json.loads((pack.parent / "example_workflows" / "sample.json").read_text("utf-8"))
    names = {}
    exec(pack.read_text("utf-8"), names)
    assert names["NODE_CLASS_MAPPINGS"] is NODES

    (pack.parent / "pyproject.toml").touch()
    assert "is a clone" in run("comfyui", "--install", comfyui).stderr
    result = run("comfyui", "--install", tmp_path)
    assert result.returncode == 2 and "is no ComfyUI: name the folder" in result.stderr


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.json")), ids=lambda path: path.stem)
def test_the_workflows_fit_the_nodes(path):
    workflow = json.loads(path.read_text("utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for node in nodes.values():
        if node["type"] not in NODES:
            continue
        inputs = {}
        for described in NODES[node["type"]].INPUT_TYPES().values():
            inputs |= described
        values = iter(node["widgets_values"])
        for kind, options in inputs.values():
            if "default" not in options:
                continue
            value = next(values)
            assert value in kind if isinstance(kind, list) else type(value) is type(
                options["default"])  # fmt: skip
            if options.get("control_after_generate"):
                assert next(values) == "fixed"
        assert not [*values]
        sockets = [name for name, (_, options) in inputs.items() if "default" not in options]
        assert [each["name"] for each in node["inputs"]] == sockets
    for number, origin, output, goal, socket, kind in workflow["links"]:
        assert nodes[origin]["outputs"][output]["type"] == kind
        assert nodes[goal]["inputs"][socket] == {
            "name": nodes[goal]["inputs"][socket]["name"], "type": kind, "link": number
        }  # fmt: skip


def test_a_clone_in_custom_nodes_gives_the_nodes():
    """As ComfyUI imports a folder of `custom_nodes`."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("/custom_nodes/clipag-plugins", ROOT / "__init__.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS is NODES
    assert module.NODE_DISPLAY_NAME_MAPPINGS is NODE_DISPLAY_NAME_MAPPINGS


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.png")), ids=lambda path: path.stem)
def test_the_pictures_hold_their_workflows(path):
    workflow = json.loads(path.with_suffix(".json").read_text("utf-8"))
    with Image.open(path) as picture:
        assert json.loads(picture.info["workflow"]) == workflow
