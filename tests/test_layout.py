"""Rules for the code: which module may import which, how long a function may be, which errors."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "clipag_plugins": ROOT / "clipag_plugins",
    "clipag_plugins.integrations": ROOT / "integrations",
    "clipag_plugins.finetune": ROOT / "finetune",
}
# From bottom to top. A module may import modules of its own layer and of those before it.
# A package stands for all of its modules but those that are listed themselves.
LAYERS = (
    "errors defaults arguments",
    "files untrusted download packed precision pictures trajectory sheet notebook streams "
    "registry model_config bpe tokenizer quantization",
    "base transformer vit resnet lite two_scales mini checkpoint architecture stages smoothing",
    "embedded publish hub",
    "targets latents prior views graphs guide canvas multiscale mixture starts masks",
    "ascent",
    "sampler inversion unclip",
    "attack pag explain probing evaluation clip bench",
    "clipag_plugins",  # the public names
    "integrations",
    "finetune evaluation.tables",
    "commands studio",
    "cli __main__ finetune.__main__",
)
LAYER_OF = {module: number for number, layer in enumerate(LAYERS) for module in layer.split()}
# `from_pretrained`, `save_pretrained` and `push_to_hub` are methods of a model, as users expect,
# and need what loads and writes models.
EXCEPTIONS = {("base", "hub"), ("base", "publish")}

# A net that catches everything hides our own mistakes. It is allowed where code that is not ours
# may raise anything: the readers of damaged weights, and the scripts and notebooks of users.
MAY_CATCH_EVERYTHING = {"untrusted", "integrations.shims.run", "integrations.shims.notebook"}

LONGEST_FUNCTION = 80
LONGEST_FILE = 400
MOST_PARAMETERS = 10


def short(module):
    """Return a module's name without the package's: clipag_plugins.clip.model is clip.model."""
    return module.removeprefix("clipag_plugins.")


def read_modules():
    """Return the syntax tree and the file of every module by its short name."""
    modules = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if package == "clipag_plugins" and parts[0] in ("integrations", "finetune"):
                continue  # links to the folders at the top level
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            modules[short(name)] = (ast.parse(path.read_text(encoding="utf-8")), path)
    return modules


MODULES = read_modules()


def imported_modules(module):
    """Return the short names of all modules of ours that a module imports, at any depth."""
    tree, path = MODULES[module]
    package = f"clipag_plugins.{module}".removesuffix(".clipag_plugins").split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{source}.{alias.name}"
                names.add(full if short(full) in MODULES else source)
    return {short(name) for name in names if short(name) in MODULES} - {module}


IMPORTS = {module: imported_modules(module) for module in MODULES}


def layer_of(module):
    """Return the number of a module's layer, which may be listed by a package that it is in."""
    while module not in LAYER_OF and "." in module:
        module = module.rpartition(".")[0]
    assert module in LAYER_OF, f"{module} is in no layer: add it to LAYERS"
    return LAYER_OF[module]


def test_nothing_imports_upwards():
    upwards = {
        (module, imported)
        for module, imports in IMPORTS.items()
        for imported in imports
        if layer_of(imported) > layer_of(module)
    }
    assert upwards == EXCEPTIONS


def test_imports_form_no_circle():
    graph = {
        module: {imported for imported in imports if (module, imported) not in EXCEPTIONS}
        for module, imports in IMPORTS.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


@pytest.mark.parametrize(
    "statement",
    [
        "import clipag_plugins",
        "from clipag_plugins import arguments, defaults, errors, files",
        "from clipag_plugins.cli import main; main(['--help'])",
        "from clipag_plugins.cli import main; main(['generate', '--help'])",
    ],
)
def test_what_starts_at_once_imports_no_torch(statement):
    code = f"""
import sys
try:
    {statement}
except SystemExit:  # argparse's, after --help
    pass
slow = ("torch", "torchvision", "kornia", "open_clip", "numpy", "PIL")
print([module for module in slow if module in sys.modules], file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr == "[]\n"


@pytest.mark.slow
def test_a_picture_needs_no_slow_library(tmp_path):
    code = f"""
import sys
from clipag_plugins.cli import main
from clipag_plugins.clip.model import CLIP, build_model
weights = CLIP(16, 32, 1, 64, 8, 77, 300, 64, 1, 1).state_dict()
assert build_model(weights).visual.proj.equal(weights["visual.proj"])
main(["generate", "a fox", "--steps", "1", "--tries", "1", "--out", {str(tmp_path / "fox.png")!r}])
slow = ("torch._dynamo", "torch._inductor", "sympy", "torchvision", "kornia", "scipy", "ftfy")
print([module for module in slow if module in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr


def functions():
    """Yield the module, dotted name and syntax tree of every function and method."""

    def visit(node, name):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{name}.{child.name}"
                if not isinstance(child, ast.ClassDef):
                    yield inner, child, isinstance(node, ast.ClassDef)
                yield from visit(child, inner)
            else:
                yield from visit(child, name)

    for module, (tree, _) in MODULES.items():
        yield from visit(tree, module)


def test_no_function_is_longer_than_a_screen_or_two():
    lengths = {name: node.end_lineno - node.lineno + 1 for name, node, _ in functions()}
    too_long = {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION}
    assert not too_long, too_long


def test_no_public_function_takes_too_many_parameters():
    counts = {}
    for name, node, is_method in functions():
        if any(re.match("_(?!_)", part) for part in name.split(".")):
            continue
        every = node.args
        parameters = [*every.posonlyargs, *every.args, *every.kwonlyargs, every.vararg, every.kwarg]
        counts[name] = sum(parameter is not None for parameter in parameters)
        if is_method and not any(ast.unparse(d) == "staticmethod" for d in node.decorator_list):
            counts[name] -= 1  # self
    too_many = {name: count for name, count in counts.items() if count > MOST_PARAMETERS}
    assert not too_many, too_many


def test_no_file_is_too_long():
    lengths = {module: path.read_bytes().count(b"\n") for module, (_, path) in MODULES.items()}
    too_long = {module: length for module, length in lengths.items() if length > LONGEST_FILE}
    assert not too_long, too_long


def test_no_net_catches_every_exception():
    nets = {
        f"{module}:{node.lineno}"
        for module, (tree, _) in MODULES.items()
        if module not in MAY_CATCH_EVERYTHING
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or re.search(r"\b(Base)?Exception\b", ast.unparse(node.type)))
    }
    assert not nets, nets


def test_library_errors_name_arguments_and_no_options():
    """A caller in Python has no `--max-views`; `cli.main` makes it from `max_views`."""
    errors = {
        f"{module}:{node.lineno}"
        for module, (tree, _) in MODULES.items()
        if layer_of(module) < LAYER_OF["commands"]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ClipagError")
        for text in ast.walk(node)
        if isinstance(text, ast.Constant) and re.search(r"(?<!\w)--[a-z]", str(text.value))
    }
    assert not errors, errors
