"""The studio without its page: settings to commands and back, and jobs that run one at a time."""

import argparse
import random
import shlex
import time

import pytest
from PIL import Image

from clipag_plugins.cli import parser
from clipag_plugins.commands.canvas_options import join_sizes
from clipag_plugins.errors import ClipagError
from clipag_plugins.registry import MODELS
from clipag_plugins.studio.jobs import MOST_JOBS, TWINS, Studio
from clipag_plugins.studio.tools import TOOLS, read_settings, shown_command

BY_COMMAND = {tool.command: tool for tool in TOOLS}


@pytest.fixture(scope="module")
def parsers():
    (commands,) = (
        action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    return commands.choices


@pytest.fixture
def studio(parsers):
    studio = Studio(parsers)
    yield studio
    studio.close()


def parse(parsers, tool, values):
    """Return the options of the command that the settings become."""
    options, arguments = tool.words(values)
    words = [word for option in options for word in option]
    return parsers[tool.command].parse_args(
        join_sizes([tool.command, *words, "--", *arguments])[1:]
    )


def defaults(tool, **values):
    return {control.label: control.default for control in tool.controls} | values


def small(prompt="a red apple", **values):
    return defaults(BY_COMMAND["generate"], Prompt=prompt, Width=32, Height=32, Tries=1) | values


def wait_for_preview(job):
    deadline = time.monotonic() + 60
    while job.preview is None:
        assert time.monotonic() < deadline and not job.future.done()
        time.sleep(0.01)


@pytest.mark.parametrize("tool", TOOLS, ids=str)
def test_the_settings_start_as_those_of_the_command(parsers, tool):
    pictures = {control.label: "photo.png" for control in tool.controls if control.option == ""}
    texts = {label: "a cat" for label in pictures if label != "Photo"}
    values = defaults(tool, **{**pictures, **texts})
    arguments = tool.words(values)[1]
    by_default = vars(parsers[tool.command].parse_args(arguments))
    studios = vars(parse(parsers, tool, values))
    changed = {name for name in by_default if by_default[name] != studios[name]}
    # What the command would choose is written out, or in another type. style has half the side.
    other = {"generate": {"size"}, "draw": {"width"}, "vqgan": {"init", "size"},
             "style": {"size", "steps", "network"}}  # fmt: skip
    assert changed <= other.get(tool.command, set())


@pytest.mark.parametrize("tool", TOOLS, ids=str)
def test_the_model_of_a_tab_is_that_of_the_command(parsers, tool):
    models = parsers[tool.command].get_default(tool.model_option.removeprefix("--"))
    assert tool.model in ([models] if isinstance(models, str) else models)
    assert TWINS[tool.model] in MODELS


@pytest.mark.parametrize("text", ["--out=/tmp/x", "-h", "@file", "a=b", "$(id)", "' \" \\"])
def test_a_text_is_never_an_option(parsers, text):
    for tool in TOOLS:
        labels = [each.label for each in tool.controls if each.kind == "text" and not each.option]
        if not labels:
            continue
        (label,) = labels
        options = parse(parsers, tool, defaults(tool, **{label: text, "Photo": "p.png"}))
        assert text in (getattr(options, "prompts", None) or getattr(options, "inputs", None) or [
            options.text
        ])  # fmt: skip
    options = parse(parsers, BY_COMMAND["draw"], {"Not like": text, "Prompt": "a cat"})
    assert options.negative == [text] and options.out is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("generate", "-- --seed 7 --steps 2 --size 32 48 --tries 2 --views 3 --canvas pyramid"),
        ("draw", "--seed 5 --steps 2 --size 64 --strokes 9 --shapes fill --palette red,blue "
                 "--negative fog --background none --no-augment --width 1.5 30"),
        ("vqgan", "--seed 4 --steps 2 --size 32 48 --views 5 --rate 0.07 --init noise"),
        ("style", "--seed 3 --steps 2 --size 48 --strength 2 --patches 4 --no-network --tv 0.5"),
        ("invert", "--seed 6 --steps 2 --size 32 --closeness 0.5 --tries 2 --views 3"),
        ("attack", "--seed 2 --steps 3 --eps 0.05 --norm l2 --towards 'a dog'"),
    ],
)  # fmt: skip
def test_settings_come_back_from_the_picture_of_a_command(run, tmp_path, parsers, command, words):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (48, 40), "teal").save(photo)
    tool = BY_COMMAND[command]
    has_photo = any(control.label == "Photo" for control in tool.controls)
    arguments = [str(photo)] if has_photo else []
    arguments += ["a red apple"] if command != "invert" else []
    options = [word for word in shlex.split(words) if word != "--"]
    out = tmp_path / f"out{tool.endings[0]}"
    result = run(command, *arguments, *options, "--out", out)
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "out.png") as file:
        restored, values = read_settings(file.text)
    assert restored is tool
    if has_photo:
        values["Photo"] = str(photo)
    given = vars(parsers[command].parse_args(join_sizes([command, *options, "--", *arguments])[1:]))
    again = vars(parse(parsers, tool, values))
    different = {name: (given[name], again[name]) for name in given if given[name] != again[name]}
    assert not different


def test_metadata_of_anybody_give_settings_in_range():
    generator = random.Random(0)
    texts = ["", "nan", "-1", "1e999", "9" * 5000, "'; rm -rf /", "none", "../../etc", "\0", "½"]
    for tool in TOOLS:
        for _ in range(50):
            metadata = {control.key: generator.choice(texts) for control in tool.controls}
            metadata |= {"prompt": "x", tool.mark: generator.choice(texts)}
            restored, values = read_settings(metadata)
            for control in restored.controls:
                value = values[control.label]
                if control.kind in ("whole", "number") and value is not None:
                    assert control.limits[0] <= value <= control.limits[1]
                if control.kind == "choice":
                    assert value in [choice for _, choice in control.choices]
                if control.kind == "picture":
                    assert value is None


def test_a_picture_of_somebody_else_is_refused():
    with pytest.raises(ClipagError, match="does not say how it was made"):
        read_settings({"Software": "GIMP", "prompt": "a cat"})


def test_the_command_for_a_terminal_leaves_out_what_is_default(parsers):
    tool = BY_COMMAND["generate"]
    values = defaults(tool, Prompt="it's", Seed=3, Steps=0)
    command = shown_command(tool, "clipag-lite", values, parsers["generate"])
    assert command == """clipag generate 'it'"'"'s' --seed=3 --size=224"""
    values |= {"Prompt": "-x", "Start from a picture": "/tmp/secret/cat.png"}
    command = shown_command(tool, "clip-mini", values, parsers["generate"])
    assert command.endswith("--init=cat.png --model=clip-mini -- -x")


@pytest.mark.slow
def test_jobs_run_one_after_another(studio):
    sessions = [studio.new_session() for _ in range(3)]
    tool = BY_COMMAND["generate"]
    jobs = [studio.start(each, tool, ["clipag-mini"], small(Steps=2)) for each in sessions]
    assert [studio.ahead_of(job) for job in jobs] == [0, 1, 2]
    for job, session in zip(jobs, sessions, strict=True):
        assert job.future.result(60) is None
        session.collect(job)
        assert len(session.pictures) == 1 and session.pictures[0].parent.parent == session.folder
    pictures = [Image.open(session.pictures[0]).tobytes() for session in sessions]
    assert len(set(pictures)) == 1, "the same settings give the same picture"


@pytest.mark.slow
def test_stop_keeps_the_best_so_far(studio):
    session = studio.new_session()
    values = small(Steps=1000)
    job = studio.start(session, BY_COMMAND["generate"], ["clipag-mini", "clip-mini"], values)
    with pytest.raises(ClipagError, match="still at work"):
        studio.start(session, BY_COMMAND["generate"], ["clipag-mini"], values)
    waiting = studio.start(studio.new_session(), BY_COMMAND["generate"], ["clipag-mini"], values)
    wait_for_preview(job)
    waiting.stop.set()
    job.stop.set()
    assert job.future.result(60) is None and waiting.future.result(60) is None
    assert [path.name for path in job.files()] == ["a-red-apple-clipag-mini.png"]
    with Image.open(job.files()[0]) as file:
        assert int(file.text["steps"]) < 1000
    assert waiting.files() == []


@pytest.mark.slow
def test_an_attack_is_watched_and_stopped(studio, tmp_path):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), "teal").save(photo)
    tool = BY_COMMAND["attack"]
    values = defaults(tool, **{"Photo": str(photo), "What it shows": "a cat"})
    values |= {"Steps of the attack": 1000}
    job = studio.start(studio.new_session(), tool, ["clipag-mini"], values)
    wait_for_preview(job)
    job.stop.set()
    job.future.result(60)
    assert job.preview.step < 999 and len(job.files()) == 1


def test_what_cannot_be_drawn_is_one_sentence(studio):
    session = studio.new_session()
    job = studio.start(session, BY_COMMAND["generate"], ["clipag-mini"], small("x " * 100))
    assert isinstance(job.future.exception(60), ClipagError)
    job = studio.start(session, BY_COMMAND["generate"], ["clipag-mini"], small(Canvas="oil"))
    with pytest.raises(ClipagError, match="do not go together"):
        job.future.result(60)
    with pytest.raises(ClipagError, match="say it in words"):  # argparse would drop this text
        studio.start(session, BY_COMMAND["generate"], ["clipag-mini"], small("--"))


def test_a_line_has_an_end_and_a_shared_studio_fetches_nothing(parsers):
    studio = Studio(parsers, downloads=False)
    tool = BY_COMMAND["generate"]
    with pytest.raises(ClipagError, match="clipag pull ViT-B/32"):
        studio.start(studio.new_session(), tool, ["ViT-B/32"], small())
    jobs = [
        studio.start(studio.new_session(), tool, ["clipag-mini"], small(Steps=1000))
        for _ in range(MOST_JOBS)
    ]
    with pytest.raises(ClipagError, match="try again later"):
        studio.start(studio.new_session(), tool, ["clipag-mini"], small())
    studio.close()
    assert all(job.future.done() for job in jobs) and not studio.folder.exists()
