"""Old scripts run under `clipag run`; every shim is needed; `uninstall` reverts all of them."""

import importlib.util
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


@pytest.fixture(autouse=True)
def uninstalled():
    yield
    shims.uninstall()


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
    "import torch; s = torch.optim.SGD([torch.ones(1)], lr=1); "
    "torch.optim.lr_scheduler.ReduceLROnPlateau(s, verbose=True)",
    "from IPython.core.display import display",
    "from scipy.signal import gaussian",
    "import yaml; assert yaml.load('a: 1') == {'a': 1}",
}
if sys.version_info >= (3, 11):  # Python 3.10, and the last matplotlib for it, still have these
    REMOVED |= {
        "import inspect; assert inspect.getargspec(lambda a, b=1: 0)[0] == ['a', 'b']",
        "from matplotlib.cm import get_cmap",
    }


@pytest.mark.parametrize("code", sorted(REMOVED))
def test_what_was_removed_is_back_until_uninstalled(code, capsys):
    package = re.split(r"[ .,;]", code)[1]
    if package != "main" and is_missing(package):
        pytest.skip(f"{package} is not installed")
    with pytest.raises((ImportError, AttributeError, TypeError)):
        exec(code, {})
    shims.install()
    assert capsys.readouterr().err == ""  # installing alone reports nothing
    exec(code, {})
    report = capsys.readouterr().err
    assert report.startswith("clipag: ") and report.count("\n") == len(set(report.splitlines()))
    exec(code, {})
    assert capsys.readouterr().err == ""  # nothing is reported twice
    shims.uninstall()
    with pytest.raises((ImportError, AttributeError, TypeError)):
        exec(code, {})


SLOW_IMPORTS = ("transformers", "torch_optimizer")  # have tests of their own


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


def test_pkg_resources_without_packaging(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "pkg_resources", raising=False)
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
    "torch.nn.Linear(2, 2, device='cuda').weight",
    "torch.nn.DataParallel(torch.nn.Linear(2, 2)).cuda().module.weight",
    "torch.cuda.FloatTensor([1.0])",
    "torch.rand(2, generator=torch.Generator(device='cuda').manual_seed(1), device='cuda')",
    "torch.rand(2, device=torch.device('cuda', 1))",
    "torch.zeros(2, device=torch.device(type='cuda'))",
    "torch.load(saved, map_location='cuda:0')",
    "torch.load(saved)",
]


@pytest.mark.parametrize("code", CUDA)
def test_cuda_is_the_cpu(code, tmp_path):
    saved = tmp_path / "saved.pt"
    torch.save(torch.zeros(2), saved)
    shims.install(device="cpu")
    assert eval(code, {"torch": torch, "saved": saved}).device == torch.device("cpu")
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
    assert "cell 1 installs software and failed; continuing: ModuleNotFoundError" in result.stderr
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
