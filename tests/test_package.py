"""The wheel: everything is in it once, and every module of it imports where it is installed."""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
# Folders of the tree, and where the wheel has them.
FOLDERS = {
    "clipag_plugins": "clipag_plugins",
    "integrations": "clipag_plugins/integrations",
    "finetune": "clipag_plugins/finetune",
}
LINKS = ("clipag_plugins/integrations", "clipag_plugins/finetune")
DATA = ("py.typed", "weights/*", "comfyui/workflows/*", "configs/*.toml", "embedded/splits/*/*.txt")


def copied_tree(folder, links=True):
    """Copy what a build reads; without links as a checkout on Windows has it."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for link in () if links else LINKS:
        (folder / link).unlink()
    return folder


def build(kind, tree, out):
    """Build a "wheel" or an "sdist" by the back end of pyproject.toml, and return its path."""
    code = f"import sys; from setuptools import build_meta as b; print(b.build_{kind}(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(out)]
    result = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True)
    return out / result.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return copied_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    return build("wheel", tree, tmp_path_factory.mktemp("wheel"))


def names_in(wheel):
    """Return the names in a wheel, in order, but for those of its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return sorted(name for name in archive.namelist() if ".dist-info/" not in name)


def names_on_disk():
    """Return the names that the wheel should have, in order."""
    names = []
    for folder, place in FOLDERS.items():
        home = ROOT / folder
        paths = [*home.rglob("*.py"), *(path for pattern in DATA for path in home.glob(pattern))]
        for path in paths:
            name = path.relative_to(home).as_posix()
            if folder != "clipag_plugins" or not name.startswith(("integrations/", "finetune/")):
                names.append(f"{place}/{name}")
    return sorted(names)


def test_a_wheel_has_every_module_and_data_file_once(wheel):
    names = names_in(wheel)
    assert names == names_on_disk()
    for name in (
        "clipag_plugins/py.typed",
        "clipag_plugins/weights/clipag-mini.safetensors",
        "clipag_plugins/integrations/vqgan/__init__.py",
        "clipag_plugins/finetune/configs/mini.toml",
        "clipag_plugins/finetune/embedded/splits/v2/seen.txt",
    ):
        assert name in names


def test_the_wheel_is_small_enough_for_the_registry(wheel):
    assert wheel.stat().st_size <= 45_000_000


def test_a_checkout_without_links_gives_the_same_wheel(wheel, tmp_path):
    (tmp_path / "tree").mkdir()
    other = build("wheel", copied_tree(tmp_path / "tree", links=False), tmp_path)
    with zipfile.ZipFile(wheel) as ours, zipfile.ZipFile(other) as theirs:
        assert [(each.filename, each.CRC) for each in ours.infolist()] == [
            (each.filename, each.CRC) for each in theirs.infolist()
        ]


def test_a_source_archive_gives_the_same_wheel(wheel, tree, tmp_path):
    with tarfile.open(build("sdist", tree, tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert names_in(build("wheel", unpacked, tmp_path)) == names_in(wheel)


IMPORT_ALL = """
import pathlib, pkgutil, sys
import clipag_plugins
from clipag_plugins.integrations import shims
print(pathlib.Path(clipag_plugins.__file__).parent)
for module in pkgutil.walk_packages(clipag_plugins.__path__, "clipag_plugins."):
    if module.name.endswith(".vqgan.gumbel"):
        shims.install()  # It imports taming-transformers, which needs the libraries of 2021.
    if not module.name.endswith("__main__"):
        try:
            __import__(module.name)
        except ModuleNotFoundError as error:  # the studio's page is made of Gradio's parts
            if error.name != "gradio" or ".studio" not in module.name:
                raise
        print(module.name)
"""


def test_every_module_of_an_installed_wheel_imports(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    home = {"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")}
    site = Path(sysconfig.get_path("purelib", "venv", home))
    scripts = Path(sysconfig.get_path("scripts", "venv", home))
    # The libraries of this environment, but not its clipag_plugins: an editable installation's
    # .pth file counts only in a folder that Python itself takes for site-packages.
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "libraries.pth").write_text("\n".join(libraries))
    install = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), "install"]
    subprocess.run([*install, "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)

    # -I: neither PYTHONPATH nor the working directory may lead to the checkout.
    isolated = [str(scripts / "python"), "-I"]
    result = subprocess.run([*isolated, "-c", IMPORT_ALL], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    place, *modules = result.stdout.splitlines()
    assert Path(place) == site / "clipag_plugins"
    expected = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in names_on_disk()
        if name.endswith(".py") and not name.endswith("__main__.py")
    }
    assert len(modules) == len(set(modules)) and {"clipag_plugins", *modules} == expected

    command = [*isolated, str(scripts / "clipag"), "generate", "an apple", "--steps", "1"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and (tmp_path / "an-apple-0.png").is_file(), result.stderr
