"""README and docs/: no dead link, commands that parse, code that compiles, current tables."""

import re
from importlib.util import find_spec

import pytest
from test_layout import LAYER_OF, MODULES

import clipag_plugins as clip
from benchmarks import ROOT, report
from benchmarks.documents import FENCE, TEXTS, blocks, shell_lines
from clipag_plugins import cli, registry


def headings(text):
    """Return the anchors that GitHub gives a document's headings."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_is_short_and_names_the_tests_command():
    assert len(TEXTS["README.md"].split()) <= 900
    assert "make test" in TEXTS["README.md"]


@pytest.mark.parametrize("path", report.DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_current(path):
    text = path.read_text("utf-8")
    message = "run python -m benchmarks.report"
    assert report.rendered(text, path).splitlines() == text.splitlines(), message


def test_every_table_is_shown():
    shown = {name for text in TEXTS.values() for _, name, _ in report.PLACE.findall(text)}
    assert shown == {*report.TABLES, report.UNLISTED}


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    prose = FENCE.sub("", TEXTS[name])
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / name).parent / file if file else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in headings(target.read_text("utf-8")), link


@pytest.mark.parametrize("name", TEXTS)
def test_commands_are_commands(name):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for words in shell_lines(TEXTS[name]):
        if words[0] == "clipag":
            cli.parser().parse_args(words[1:])  # exits with a message if it is wrong
        elif words[0] == "make":
            assert words[1] in targets
        elif "-m" in words:
            module = words[words.index("-m") + 1]
            assert find_spec(module), module


@pytest.mark.parametrize("name", TEXTS)
def test_python_compiles(name):
    for code in blocks(TEXTS[name], "python"):
        # A line of a table is shown as it stands there.
        is_entry = code.lstrip().startswith('"') and code.rstrip().endswith(",")
        compile(f"({{{code}}})" if is_entry and '": ' in code else code, name, "exec")


def test_the_model_name_of_the_guide_is_an_entry():
    (entry,) = (c for c in blocks(TEXTS["docs/design.md"], "python") if "laion/CLIP" in c)
    ((name, source),) = eval(f"{{{entry}}}", vars(registry)).items()
    assert name not in registry.MODELS and source.place == "hub"


def test_the_import_rule_is_the_one_that_is_checked():
    rule = TEXTS["docs/design.md"].partition("## The import rule")[2].partition("Inside `clipag")[0]
    named = [name for name in re.findall(r"`([\w.]+)`", rule) if name in LAYER_OF]
    assert named == sorted(named, key=LAYER_OF.get)  # from bottom to top
    unnamed = {"clipag_plugins", "__main__", "finetune.__main__"}
    assert {*named, *unnamed} == {name for name in LAYER_OF if name in MODULES}


def test_the_api_reference_is_of_modules_that_there_are():
    source = (ROOT / "docs" / "api.py").read_text("utf-8")
    names = re.findall(r'^    "([\w.]+)",$', source, re.MULTILINE)
    assert names and set(names) <= set(MODULES)


def test_versions_agree():
    citation = (ROOT / "docs" / "CITATION.cff").read_text("utf-8")
    assert f"version: {clip.__version__}\n" in citation
    assert re.search(r"## \[?([\d.]+)", TEXTS["docs/CHANGELOG.md"])[1] == clip.__version__
