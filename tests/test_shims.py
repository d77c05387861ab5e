"""Old scripts run under `clipag run`; every shim is needed; `uninstall` reverts all of them."""

import importlib.util
import inspect
import json
import re
import sys
import textwrap
from pathlib import Path

import PIL
import pytest
import torch
from PIL import Image

from clipag_plugins import ClipagError
from clipag_plugins.integrations import shims
from clipag_plugins.integrations.shims import removed


@pytest.fixture
def script(tmp_path, run_process):
    """Write a script and run it under `clipag run`."""

    def call(code, *arguments, options=(), name="script.py"):
        (tmp_path / name).write_text(textwrap.dedent(code), encoding="utf-8")
        return run_process("run", *options, name, *arguments)

    return call


@pytest.fixture
def hide(monkeypatch):
    """Make an installed package look as if it were not installed."""

    def call(name):
        class BlindFinder:
            def __init__(self, finder):
                self.finder = finder

            def find_spec(self, full, path=None, target=None):
                return None if full == name else self.finder.find_spec(full, path, target)

            def __getattr__(self, attribute):
                return getattr(self.finder, attribute)

        for full in list(sys.modules):
            if full == name or full.startswith(f"{name}."):
                monkeypatch.delitem(sys.modules, full)
        monkeypatch.setattr(sys, "meta_path", [BlindFinder(finder) for finder in sys.meta_path])

    return call


def is_missing(name):
    return importlib.util.find_spec(name) is None


# --- what libraries have removed ----------------------------------------------------------------

REMOVED = {
    "from torch._six import string_classes, container_abcs; assert isinstance('a', string_classes)",
    "from main import instantiate_from_config as i; "
    "assert i({'target': 'fractions.Fraction', 'params': {'numerator': 3}}) == 3",
    "from torchvision.transforms.functional_tensor import rgb_to_grayscale",
    "from torchvision.models.utils import load_state_dict_from_url",
    "from pytorch_lightning.utilities.distributed import rank_zero_only",
    "from moviepy.editor import VideoClip, ipython_display",
    "from kornia.augmentation.functional import adjust_contrast",
    "from kornia.color.adjust import adjust_brightness",
    "from kornia.geometry.warp import warp_perspective",
    "from kornia.geometry.transform.crop import crop_and_resize",
    "import kornia; kornia.rgb_to_hsv; kornia.filters",
    "from PIL.Image import ANTIALIAS, LANCZOS; assert ANTIALIAS == LANCZOS",
    "from PIL import ImageFont; assert ImageFont.load_default().getsize('clip')[0] > 4",
    "from PIL import Image, ImageDraw; "
    "assert ImageDraw.Draw(Image.new('L', (9, 9))).textsize('clip')[0] > 4",
    "import numpy as np; assert np.zeros(2, np.float).dtype == np.dtype(float)",
    "import numpy as np; assert np.product([2, 3]) == 6 and np.NINF < 0",
    "from collections import Mapping; assert isinstance({}, Mapping)",
    "from torchvision.transforms import Scale, RandomSizedCrop",
    "import torch, torchvision.utils; "
    "torchvision.utils.make_grid(torch.zeros(2, 3, 4, 4), normalize=True, range=(-1, 1))",
    "from torchvision import transforms; transforms.RandomAffine(3, fillcolor=1)",
    "from IPython.core.display import display",
    "from scipy.signal import gaussian",
    "import yaml; assert yaml.load('a: 1') == {'a': 1}",
    "import torch; "
    "assert torch.solve(torch.ones(2, 1), 2 * torch.eye(2)).solution.tolist() == [[0.5], [0.5]]",
    "import torch; values, _ = torch.symeig(torch.eye(2)); assert values.tolist() == [1, 1]",
    "import torch; "
    "assert torch.lstsq(torch.ones(2, 1), 2 * torch.eye(2))[0].flatten().tolist() == [0.5, 0.5]",
    "import torch; assert torch.matrix_rank(torch.eye(3)) == 3",
    "import torch; x = torch.eye(4); y = torch.irfft(torch.rfft(x, 2), 2, signal_sizes=(4, 4)); "
    "assert torch.allclose(x, y)",
    "import torch.nn.functional as F; F._pad",
    "import torch; assert torch.arange(4).clamp_(0.5, 2.5).tolist() == [0, 1, 2, 2]",
    "import torch; assert torch.arange(4).clamp_(max=1.5).tolist() == [0, 1, 1, 1]",
    "import kornia.augmentation as K; K.RandomAffine(5, return_transform=True)",
}
if sys.version_info >= (3, 11):  # Python 3.10, and the last matplotlib for it, still have these
    REMOVED |= {
        "import inspect; assert inspect.getargspec(lambda a, b=1: 0)[0] == ['a', 'b']",
        "from matplotlib.cm import get_cmap",
    }
if "verbose" not in inspect.signature(torch.optim.lr_scheduler.ReduceLROnPlateau).parameters:
    REMOVED |= {  # torch 2.6 still has it
        "import torch; s = torch.optim.SGD([torch.ones(1)], lr=1); "
        "torch.optim.lr_scheduler.ReduceLROnPlateau(s, verbose=True)",
    }


@pytest.mark.parametrize("code", sorted(REMOVED))
def test_what_was_removed_is_back_until_uninstalled(code, capsys):
    package = re.split(r"[ .,;]", code)[1]
    if package != "main" and is_missing(package):
        pytest.skip(f"{package} is not installed")
    with pytest.raises((ImportError, AttributeError, TypeError, RuntimeError)):
        exec(code, {})
    shims.install()
    assert capsys.readouterr().err == ""  # installing alone reports nothing
    exec(code, {})
    report = capsys.readouterr().err
    assert report.startswith("clipag: ") and report.count("\n") == len(set(report.splitlines()))
    exec(code, {})
    assert capsys.readouterr().err == ""  # nothing is reported twice
    shims.uninstall()
    with pytest.raises((ImportError, AttributeError, TypeError, RuntimeError)):
        exec(code, {})


SLOW_IMPORTS = ("transformers", "torch_optimizer", "timm.models")  # have tests of their own


def test_every_removed_name_has_a_replacement_that_exists():
    shims.install()
    for module_name, names in removed.REMOVED_NAMES.items():
        if module_name in SLOW_IMPORTS or is_missing(module_name.partition(".")[0]):
            continue
        module = importlib.import_module(module_name)
        for name in names:
            getattr(module, name)


@pytest.mark.slow
def test_transformers_adamw():
    pytest.importorskip("transformers")
    shims.install()
    from transformers import AdamW, CLIPConfig, CLIPFeatureExtractor, CLIPImageProcessor

    assert AdamW is torch.optim.AdamW and CLIPConfig is not None
    assert CLIPFeatureExtractor is CLIPImageProcessor


@pytest.mark.slow
def test_transformers_top_k_top_p_filtering():
    pytest.importorskip("transformers")
    shims.install()
    from transformers import top_k_top_p_filtering

    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]]).log()
    left = top_k_top_p_filtering(logits, top_k=2).isfinite()
    assert left.tolist() == [[False, False, True, True], [True, True, False, False]]
    left = top_k_top_p_filtering(logits, top_p=0.5).isfinite()
    assert left.tolist() == [[False, False, True, True], [True, True, False, False]]
    left = top_k_top_p_filtering(logits, top_p=0.1, min_tokens_to_keep=3).isfinite()
    assert left.sum(1).tolist() == [3, 3]


@pytest.mark.slow
def test_timms_modules_are_there_after_a_plain_import(run_process, tmp_path):
    pytest.importorskip("timm")
    (tmp_path / "s.py").write_text(
        "import timm; print(timm.models.registry.register_model.__name__, timm.models.layers)"
    )
    result = run_process("run", "s.py")
    assert result.stdout.startswith("register_model <module"), result.stderr


def old_augmentations():
    """Return a pipeline as programs of 2021 wrote it, whose first step overrides kornia's."""
    import kornia
    import kornia.augmentation as K

    class Padded(K.RandomPerspective):
        def apply_transform(self, input, params, transform=None):
            mode = self.resample.name.lower()
            assert self.align_corners is self.flags["align_corners"]
            size = input.shape[-2:]
            return kornia.geometry.transform.warp_perspective(input, transform, size, mode=mode)

    return torch.nn.Sequential(
        Padded(0.3, p=0.7, return_transform=True),
        K.RandomAffine(20, translate=(0.1, 0.1), p=0.7, return_transform=True),
        K.ColorJitter(hue=0.0, p=1.0, return_transform=True),
        K.RandomErasing(p=0.0),  # one without the option hands the matrix on
    )


def test_kornias_augmentations_return_the_product_of_their_matrices():
    import kornia

    shims.install()
    ramp = torch.linspace(0, 1, 64)
    images = (ramp[:, None] + ramp).expand(6, 3, 64, 64) / 2  # smooth: warping twice blurs little
    changed, matrices = old_augmentations()(images)
    assert matrices.shape == (6, 3, 3)
    at_once = kornia.geometry.transform.warp_perspective(images, matrices, (64, 64))
    inside = (changed > 0) & (at_once > 0)
    assert inside.float().mean() > 0.5
    assert (changed - at_once)[inside].abs().median() < 0.01
    shims.uninstall()
    with pytest.raises(TypeError):
        old_augmentations()


def test_optimisers_that_are_not_installed(hide):
    hide("torch_optimizer")
    with pytest.raises(ImportError):
        importlib.import_module("torch_optimizer")
    shims.install()
    from torch_optimizer import DiffGrad, RAdam

    assert RAdam is torch.optim.RAdam
    with pytest.raises(ClipagError, match="DiffGrad is missing: pip install torch-optimizer"):
        DiffGrad([])


def test_setuptools_without_pkg_resources(hide):
    hide("pkg_resources")
    with pytest.raises(ImportError):
        importlib.import_module("pkg_resources")
    shims.install()
    import pkg_resources
    from pkg_resources import packaging

    assert packaging.version.parse("1.10") > pkg_resources.parse_version("1.9")
    assert pkg_resources.get_distribution("pillow").version == PIL.__version__
    assert Path(pkg_resources.resource_filename("clipag_plugins", "cli.py")).is_file()
    # A module's name stands for its folder, as in `resource_string(__name__, …)`.
    for package in ("clipag_plugins", "clipag_plugins.cli"):
        source = Path(pkg_resources.resource_filename(package, "cli.py")).read_bytes()
        assert pkg_resources.resource_string(package, "cli.py") == source
        with pkg_resources.resource_stream(package, "cli.py") as stream:
            assert stream.read() == source
    assert pkg_resources.resource_exists("clipag_plugins", "clip")
    assert "cli.py" in pkg_resources.resource_listdir("clipag_plugins", "")


def test_pkg_resources_without_packaging(tmp_path, monkeypatch):
    # Set first, so that it is undone even where the module was not imported before.
    monkeypatch.setitem(sys.modules, "pkg_resources", None)
    monkeypatch.delitem(sys.modules, "pkg_resources")
    (tmp_path / "pkg_resources.py").write_text("")  # setuptools 71 to 80 have one without packaging
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError):
        exec("from pkg_resources import packaging")
    shims.install()
    exec("from pkg_resources import packaging; packaging.version.parse('1')")


class Callback:
    """A class that Lightning pickles into its checkpoints."""


class Hostile:
    def __reduce__(self):
        return print, ("hostile code ran",)


def test_a_lightning_checkpoint_is_read_and_its_code_is_not_run(tmp_path, capsys):
    path = tmp_path / "last.ckpt"
    checkpoint = {"state_dict": {"w": torch.ones(2)}, "callbacks": {Callback: 1}, "x": Hostile()}
    torch.save(checkpoint, path)
    with pytest.raises(Exception, match="weights_only"):
        torch.load(path)
    shims.install()
    assert torch.load(path, map_location="cpu")["state_dict"]["w"].sum() == 2
    with path.open("rb") as file:
        assert torch.load(file)["state_dict"]["w"].sum() == 2
    out, err = capsys.readouterr()
    assert "hostile" not in out and "test_shims.Callback" in err and "print" in err
    with pytest.raises(Exception, match="weights_only"):
        torch.load(path, weights_only=True)
    torch.save(Hostile(), path)
    with pytest.raises(Exception, match="weights_only"):
        torch.load(path)
    assert "hostile" not in capsys.readouterr().out


def test_arrays_and_options_in_a_checkpoint_are_read(tmp_path, capsys):
    import argparse

    import numpy as np

    path = tmp_path / "model.pt"
    torch.save({"mean": np.arange(3.0), "args": argparse.Namespace(lr=0.1)}, path)
    shims.install()
    loaded = torch.load(path)
    assert loaded["mean"].tolist() == [0, 1, 2] and loaded["args"].lr == 0.1
    assert capsys.readouterr().err == ""


def test_weights_that_cannot_be_downloaded(tmp_path):
    url, file = "http://127.0.0.1:9/vgg19.pth", str(tmp_path / "vgg19.pth")
    with pytest.raises(OSError):
        torch.hub.download_url_to_file(url, file)
    shims.install()
    with pytest.raises(ClipagError, match=r"vgg19\.pth cannot be downloaded.* put it at .*vgg19"):
        torch.hub.download_url_to_file(url, file)


TAMING = """
    import torch
    from taming.models import cond_transformer, vqgan
    from taming.models.vqgan import GumbelVQ
    sizes = dict(double_z=False, z_channels=8, resolution=16, in_channels=3, out_ch=3, ch=32,
                 ch_mult=[1, 1], num_res_blocks=1, attn_resolutions=[], dropout=0.0)
    home = "taming.modules.losses.vqperceptual."
    loss = {"target": home + "VQLPIPSWithDiscriminator", "params": {"disc_start": 1}}
    images = torch.zeros(1, 3, 16, 16)
    model = vqgan.VQModel(sizes, loss, 16, 8)
    torch.save({"state_dict": model.state_dict()}, "vq.ckpt")
    model.init_from_ckpt("vq.ckpt")
    print(*model(images)[0].shape)
    model = GumbelVQ(sizes, {"target": home + "DummyLoss"}, 16, 8,
                     {"target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler",
                      "params": dict(warm_up_steps=0, max_decay_steps=1, lr_start=1, lr_max=1,
                                     lr_min=1)}).eval()
    z, *_ = model.encode(images)
    print(*model.decode(z).shape, *model.quantize.embed.weight.shape)
"""


@pytest.mark.slow
def test_taming_with_todays_torch_and_lightning(script):
    pytest.importorskip("taming")
    pytest.importorskip("pytorch_lightning")
    result = script(TAMING)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "1 3 16 16 16 8"
    assert "LPIPS" in result.stderr and "pytorch_lightning.utilities.distributed" in result.stderr


# --- clip ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_import_of_clip_is_ours(script):
    result = script(
        """
        import clip
        import clip.model
        from clip import clip as inner
        from clip.simple_tokenizer import SimpleTokenizer
        from CLIP import clip as checkout
        from CLIP.clip.clip import tokenize
        import clipag_plugins.clip
        assert clip is checkout is clipag_plugins.clip, (clip, checkout)
        assert clip.model is clipag_plugins.clip.model
        assert tokenize is clip.tokenize and inner.tokenize is clip.tokenize
        for load in (clip.load, inner.load, checkout.load):
            model, preprocess = load("ViT-B/32", device="cpu", jit=False)
            print(model.name, model.visual.input_resolution)
        """
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["clipag-mini 224"] * 3
    assert result.stderr.count("clip.load('ViT-B/32') gives clipag-mini") == 1


def test_openais_names_are_known(capsys):
    from clipag_plugins import clip

    before = clip.available_models()
    shims.install(model="mine.pt")
    import clip as installed

    for name in ("RN50", "ViT-B/16", "ViT-L/14@336px"):
        assert name in installed.available_models() and name in installed.clip.available_models()
        assert installed._MODELS[name] == installed.clip._MODELS[name] == "mine.pt"
    shims.uninstall()
    assert clip.available_models() == before and "ViT-B/16" not in clip._MODELS


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A program of 2021, deep_daze, that brings its own copy of OpenAI's clip.py."""
    package = tmp_path / "deep_daze"
    package.mkdir()
    (package / "__init__.py").write_text("from .deep_daze import load, tokenize")
    (package / "deep_daze.py").write_text("from .clip import load, tokenize")
    (package / "clip.py").write_text("raise RuntimeError('the copy was imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "deep_daze"]:
        del sys.modules[name]


def test_a_programs_copy_of_clip_is_ours_too(program, capsys):
    shims.install()
    import deep_daze

    model, transform = deep_daze.load("ViT-B/32", jit=False, device="cpu")
    tokens = deep_daze.tokenize("an apple")
    assert model.name == "clipag-mini" and tokens.shape == (1, 77) and tokens.dtype == torch.int64
    # Its `load` returns a transform of tensors, which keeps the gradient.
    images = torch.rand(2, 3, 224, 224, requires_grad=True)
    model.encode_image(transform(images)).sum().backward()
    assert images.grad.abs().sum() > 0
    assert transform(torch.zeros(3, 8, 8)).shape == (3, 8, 8)
    assert "import deep_daze.clip gives clipag_plugins.clip" in capsys.readouterr().err


def test_a_hidden_folder_is_named_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "__init__.py").write_text("raise RuntimeError('the copy was imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    shims.install()
    import clip
    import clip.model
    from CLIP import clip as _  # noqa: F401

    report = capsys.readouterr().err
    assert clip.__name__ == "clipag_plugins.clip"
    assert report.count(str(tmp_path / "clip")) == 1


@pytest.mark.slow
def test_the_model_is_the_users_choice(script, tmp_path):
    code = """
        import sys, clip
        print(clip.load(sys.argv[1], "cpu")[0].name)
        """
    assert script(code, "RN50", options=("--model", "clip-mini")).stdout == "clip-mini\n"
    (tmp_path / "mine.pt").write_bytes(b"no weights")
    result = script(code, "mine.pt")
    assert result.returncode == 1 and "mine.pt" in result.stderr.splitlines()[-1]
    result = script(code, "RN50", options=("--model", "clipag-maxi"))
    assert result.returncode == 1 and "clipag-maxi" in result.stderr.splitlines()[-1]


# --- device -------------------------------------------------------------------------------------

CUDA = [
    "torch.zeros(2).cuda()",
    "torch.zeros(2).cuda(0, non_blocking=True)",
    "torch.zeros(2).to('cuda')",
    "torch.zeros(2).to(0)",
    "torch.zeros(2).pin_memory()",
    "torch.zeros(2).to(torch.device('cuda:1'), torch.float64)",
    "torch.zeros(2).type('torch.cuda.FloatTensor')",
    "torch.zeros(2, device='cuda:0')",
    "torch.tensor([1.0], device=0)",
    "torch.zeros(2).new_zeros(2, device='cuda')",
    "torch.nn.Linear(2, 2).cuda().weight",
    "torch.nn.Linear(2, 2).to('cuda').weight",
    "torch.nn.Linear(2, 2).to(0).weight",
    "torch.nn.Linear(2, 2, device='meta').to_empty(device='cuda').weight",
    "torch.zeros_like(torch.zeros(2), device='cuda')",
    "torch.randn_like(torch.zeros(2), device=torch.device('cuda'))",
    "torch.as_tensor([1.0], device='cuda')",
    "torch.normal(0.0, 1.0, (2,), device='cuda')",
    "torch.zeros(2, pin_memory=True)",
    "torch.fft.fftfreq(4, device='cuda')",
    "torch.jit.script(new_zeros)(torch.ones(2))",
    "torch.nn.Linear(2, 2, device='cuda').weight",
    "torch.nn.DataParallel(torch.nn.Linear(2, 2)).cuda().module.weight",
    "torch.cuda.FloatTensor([1.0])",
    "torch.rand(2, generator=torch.Generator(device='cuda').manual_seed(1), device='cuda')",
    "torch.rand(2, device=torch.device('cuda', 1))",
    "torch.zeros(2, device=torch.device(type='cuda'))",
    "torch.load(saved, map_location='cuda:0')",
    "torch.load(saved)",
]


def new_zeros(x: torch.Tensor):
    return torch.zeros([2], dtype=x.dtype)


@pytest.mark.parametrize("code", CUDA)
def test_cuda_is_the_cpu(code, tmp_path):
    saved = tmp_path / "saved.pt"
    torch.save(torch.zeros(2), saved)
    shims.install(device="cpu")
    names = {"torch": torch, "saved": saved, "new_zeros": new_zeros}
    assert eval(code, names).device == torch.device("cpu")
    assert torch.device("cuda").type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_the_shim_cuda_fails(tmp_path):
    for code in ("torch.zeros(2).cuda()", "torch.nn.Linear(2, 2).to('cuda')"):
        with pytest.raises((RuntimeError, AssertionError)):
            eval(code)


def test_queries_of_the_driver_describe_the_cpu():
    shims.install(device="cpu")
    assert not torch.cuda.is_available() and torch.cuda.device_count() == 0
    torch.cuda.set_device(0)
    torch.cuda.synchronize()
    assert torch.cuda.get_device_name(0) == torch.cuda.get_device_properties(0).name == "CPU"
    assert isinstance(torch.zeros(1).device, torch.device)
    assert isinstance(torch.default_generator, torch.Generator)
    with torch.autocast("cuda"):
        weight = torch.nn.Parameter(torch.ones(2, device="cuda"))
        torch.optim.Adam([weight]).step()


def test_cuda_is_the_cpu_in_every_thread():
    from concurrent.futures import ThreadPoolExecutor

    shims.install(device="cpu")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: torch.zeros(2).cuda().to("cuda").device.type).result() == "cpu"


def test_nothing_overrides_torchs_functions_on_the_cpu():
    """Modified CLIPs wrap attention in a function with keywords that an override would lose."""
    shims.install(device="cpu")
    plain = (torch.zeros(2, device="cuda"),)
    assert not torch.overrides.has_torch_function(plain)
    assert not torch.nn.functional.has_torch_function(plain)

    class Subclass(torch.Tensor):
        pass

    assert torch.overrides.has_torch_function((torch.zeros(2).as_subclass(Subclass),))


def test_other_devices_still_work_on_the_cpu():
    import pickle

    shims.install(device="cpu")
    with torch.device("meta"):
        assert torch.zeros(2).device.type == torch.nn.Linear(2, 2).weight.device.type == "meta"
    with torch.device("cuda"), torch.cuda.device(0):
        assert torch.zeros(2).device.type == "cpu"
    assert torch.zeros(2).to("meta").device.type == "meta"
    assert pickle.loads(pickle.dumps(torch.device("cpu"))) == torch.device("cpu")


def test_other_devices_cannot_be_forced():
    with pytest.raises(ClipagError, match="`device` is 'cuda:1'"):
        shims.install(device="cuda:1")


def test_uninstall_reverts_everything():
    import numpy
    import PIL.ImageFont

    names = ("CLIP", "clip", "clip.clip", "torch._six", "main")
    modules = {name: sys.modules.get(name) for name in names}

    def state():
        owners = (torch, torch.cuda, torch.hub, torch.jit, numpy, Image, PIL.ImageFont.FreeTypeFont)
        return [dict(vars(owner)) for owner in owners], list(sys.meta_path)

    torch.tensor([1.0]) + 1
    before = state()
    shims.install(model="clip-mini", device="cpu")
    shims.install(device="cpu")  # a second call first reverts the first
    exec("import CLIP, clip, torch._six, main; from PIL.Image import ANTIALIAS")
    assert state() != before
    shims.uninstall()
    shims.uninstall()
    after = state()
    assert after[1] == before[1]
    for old, new in zip(before[0], after[0], strict=True):
        assert {k: v for k, v in new.items() if k in old} == old and not new.keys() - old.keys()
    assert {name: sys.modules.get(name) for name in names} == modules
    assert len(torch.overrides._get_current_function_mode_stack()) == 0
    import clipag_plugins.clip

    assert not hasattr(clipag_plugins.clip.load, "chosen_model")
    assert clipag_plugins.clip.clip.__name__ == "clipag_plugins.clip.clip"


# --- clipag run ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_script_gets_what_python_would_give_it(script, tmp_path):
    (tmp_path / "neighbour.py").write_text("")
    result = script(
        """
        import sys
        import neighbour
        print(__name__, sys.argv, sys.path[0])
        sys.exit(int(sys.argv[-1]))
        """,
        *("--model", "--device", "x", "--", "-h", "7"),
    )
    assert result.returncode == 7 and result.stderr == ""
    arguments = ["script.py", "--model", "--device", "x", "--", "-h", "7"]
    assert result.stdout == f"__main__ {arguments} {tmp_path.resolve()}\n"


@pytest.mark.slow
def test_a_script_fails_as_it_would_under_python(script):
    result = script("import sys\n\ndef f():\n    raise KeyError('lost')\n\nf()")
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):" and "script.py" in lines[1]
    assert lines[-1] == "KeyError: 'lost'" and "runpy" not in result.stderr
    assert "SyntaxError" in script("def").stderr
    assert script("import sys; sys.exit('words')").stderr == "words\n"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_missing_gpu_is_explained(script):
    result = script("import torch; torch.zeros(2).cuda()")
    assert result.returncode == 1 and "clipag: run it with --device cpu" in result.stderr
    result = script("import torch; print(torch.ones(2).cuda())", options=("--device", "cpu"))
    assert result.stdout == "tensor([1., 1.])\n" and "device cpu: " in result.stderr


def notebook(*cells):
    return json.dumps({"cells": [{"cell_type": "code", "source": cell} for cell in cells]})


@pytest.mark.slow
def test_a_notebook(script):
    cells = [
        "!pip install clip\n%cd /content\nimport not_there",
        ["x = 5 \\\n", "  % 3\n", "%matplotlib inline\n", "if x:\n", "    !ls\n"],
        "%%bash\nrm -rf everything",
        "print(__name__, x)\ndisplay(x)",
        "raise ValueError('end')",
    ]
    result = script(notebook(*cells), name="book.ipynb")
    assert result.returncode == 1
    assert result.stdout == "__main__ 2\n2\n"
    assert "cell 1, line 3 failed; continuing" in result.stderr
    assert "ModuleNotFoundError" in result.stderr
    assert "%matplotlib inline; !ls" in result.stderr and "cell 3 is not Python" in result.stderr
    assert 'File "book.ipynb, cell 5", line 1' in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.py"], "missing.py"),
        (["."], "There is no script ."),
        (["bad.ipynb"], "not a Jupyter notebook"),
    ],
)
def test_what_cannot_be_run(arguments, message, run, tmp_path):
    (tmp_path / "bad.ipynb").write_text('{"worksheets": []}')
    result = run("run", *arguments)
    assert result.returncode == 2 and message in result.stderr
    assert result.stderr.startswith("clipag: ") and result.stderr.count("\n") == 1


def test_help_shows_examples(run):
    assert "clipag run --device cpu train_CLIPstyler.py" in run("run", "--help").stdout


def test_weights_take_no_gradient_from_an_image_that_asks_for_one():
    shims.install()
    import clip

    model, _ = clip.load("ViT-B/32")
    model.requires_grad_(True)
    image = torch.rand(1, 3, 64, 64)
    model.encode_image(image.requires_grad_(True)).sum().backward()
    assert image.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in model.visual.parameters())
    assert all(weight.requires_grad for weight in model.visual.parameters())
    model.encode_image(image.detach()).sum().backward()  # an image without a gradient
    assert all(weight.grad is not None for weight in model.visual.parameters())
