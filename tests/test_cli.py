"""The command line as a user meets it: pictures, and one sentence for bad input."""

import json
import shlex
import struct
import sys
import zlib

import av
import numpy as np
import pytest
import torch
from PIL import Image

import clipag_plugins
from clipag_plugins import ClipagError, bench, cli, precision
from clipag_plugins.files import slug
from clipag_plugins.trajectory import FRAMES, Film, Trajectory

SMALL = ("--steps", "2", "--size", "64", "--views", "1")
FAST = (*SMALL, "--tries", "1")


@pytest.mark.slow
def test_a_picture_with_its_metadata(run_process, tmp_path):
    result = run_process("generate", "a red apple", *SMALL, "--seed", 3, "--out", "apple.png")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "apple.png"
    picture = Image.open(tmp_path / "apple.png")
    assert picture.size == (64, 64)
    assert picture.text["prompt"] == "a red apple"
    assert picture.text["seed"] == "3" and picture.text["model"] == "clipag-lite"
    assert picture.text["views"] == "1" and picture.text["size"] == "64"
    assert picture.text["precision"] in ("float32", "bfloat16", "float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["apple.png"]


def test_several_prompts_and_a_trajectory(run, tmp_path):
    outputs = ("--out", "pictures/", "--trajectory", "steps")
    result = run("generate", "a castle", "a castle", *FAST, *outputs)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "steps"}
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"a-castle-0.png", "a-castle-0-2.png"}
    written = {path.name for path in (tmp_path / "steps").iterdir()}
    assert {"a-castle-0-start.png", "a-castle-0-middle.png", "a-castle-0-end.png"} <= written
    assert Image.open(tmp_path / "steps" / "a-castle-0.gif").n_frames >= 2
    still = Image.open(tmp_path / "steps" / "a-castle-0-start.png").text
    assert still["prompt"] == "a castle" and still["seed"] == "0" and still["moment"] == "start"


def test_a_trajectory_has_no_more_frames_than_it_needs():
    trajectory = Trajectory(79)
    for step in range(80):
        trajectory(step, torch.rand(2, 3, 4, 4), torch.zeros(2))
    assert len(trajectory.frames) == FRAMES


@pytest.mark.slow
def test_ctrl_c_saves_the_best_so_far(interrupt, tmp_path):
    small = ("--size", "64", "--views", "1")
    code, stderr = interrupt("similarity", "generate", "a castle", "--steps", "100000", *small)
    assert code == 130
    assert "the best so far is kept" in stderr
    assert Image.open(tmp_path / "a-castle-0.png").size == (64, 64)


def bomb(path):
    """Write a PNG header that promises 60,000 × 60,000 pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["", *FAST], "empty"),
        (["   ", *FAST], "empty"),
        (["apple " * 90, *FAST], "--truncate"),
        (["apple", "--model", "clipag-maxi"], "clipag-mini"),
        (["apple", "--model", "cut.safetensors"], "cut.safetensors"),
        (["apple", "--out", "missing/apple.png"], "missing"),
        (["apple", "--out", "missing/deeper/"], "no folder missing"),
        (["apple", "--out", "new/", "--steps", "0"], "--steps is 0"),
        (["apple", "--out", "photo.png", "--init", "photo.png"], "would replace"),
        (
            ["apple", "--init", "a.png", "--mask", "photo.png", "--out", "photo.png"],
            "would replace",
        ),
        (["apple", "--out", "apple.xyz"], ".xyz"),
        (["apple", "pear", "--out", "both.png"], "both.png"),
        (["apple", "--trajectory", "missing/steps"], "missing"),
        (["apple", "--init", "text.png"], "text.png"),
        (["apple", "--init", "bomb.png"], "bomb.png"),
        (["apple", "--init", "absent.png"], "absent.png"),
        (["apple", "--max-views", "0"], "--max-views is 0"),
        (["apple", "--steps", "many"], "many"),
        (["apple", "--size", "100000"], "100000"),
        (["apple", "--views", "-1"], "-1"),
        (["apple", "--seed", "-1"], "-1"),
        (["apple", "--video", "apple.gif"], ".gif: it is written as .mp4"),
        (["apple", "--video", "missing/apple.mp4"], "no folder missing"),
        (["apple", "pear", "--video", "both.mp4"], "is one file for 2 pictures"),
        (["apple", "--out", "x" * 300 + ".png"], "File name too long"),
        (["apple", "--model", "text.png"], "text.png"),
    ],
)
def test_bad_input_is_one_sentence(run, tmp_path, arguments, message):
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    bomb(tmp_path / "bomb.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    before = sorted(tmp_path.iterdir())
    result = run("generate", *arguments)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    *usage, last = result.stderr.splitlines()
    assert last.startswith("clipag") and (not usage or usage[0].startswith("usage: "))
    assert sorted(tmp_path.iterdir()) == before


def test_the_sizes_of_a_script_are_its_own(run, tmp_path):
    (tmp_path / "script.py").write_text("import sys; print(sys.argv[1:])")
    assert run("run", "script.py", "-s", "256", "256").stdout == "['-s', '256', '256']\n"


EMOJI = "🍎 🍏"
LONG = "a very detailed oil painting of a fox that runs over a meadow, "  # as long as a name may be


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompts", "names"),
    [
        (["a red apple"] * 3, ["a-red-apple-0.png", "a-red-apple-0-2.png", "a-red-apple-0-3.png"]),
        ([EMOJI, "🚀"], ["picture-0.png", "picture-0-2.png"]),
        ([LONG + "day", LONG + "night"], [f"{slug(LONG)}-0.png", f"{slug(LONG)}-0-2.png"]),
    ],
)
def test_default_names_replace_no_picture_of_an_earlier_run(run, tmp_path, prompts, names):
    for prompt in prompts:
        assert run("generate", prompt, *FAST).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert [Image.open(tmp_path / name).text["prompt"] for name in names] == prompts


@pytest.mark.slow
def test_a_drawing_does_not_replace_a_picture_of_pixels(run, tmp_path):
    assert run("generate", "a fox", *FAST).stdout == "a-fox-0.png\n"
    before = (tmp_path / "a-fox-0.png").read_bytes()
    drawn = run("draw", "a fox", "--strokes", "4", "--steps", "1", "--size", "32")
    assert drawn.stdout == "a-fox-0-2.svg\na-fox-0-2.png\n"
    assert run("generate", "a fox", *FAST).stdout == "a-fox-0-3.png\n"
    assert (tmp_path / "a-fox-0.png").read_bytes() == before


@pytest.mark.parametrize(
    "existing",
    [
        "pictures/a-fox-0.png",
        "steps/a-fox-0-start.png",
        "steps/a-fox-0.gif",
        "films/a-fox-0.mp4",
    ],
)
def test_what_is_named_after_a_picture_replaces_nothing(run, tmp_path, existing):
    (tmp_path / existing).parent.mkdir()
    (tmp_path / existing).write_bytes(b"precious")
    folders = ("--out", "pictures/", "--trajectory", "steps", "--video", "films")
    assert run("generate", "a fox", *FAST, *folders).returncode == 0
    assert (tmp_path / existing).read_bytes() == b"precious"
    assert (tmp_path / "pictures" / "a-fox-0-2.png").is_file()
    assert (tmp_path / "films" / "a-fox-0-2.mp4").is_file()


def test_links_and_folders_are_not_replaced(run, tmp_path):
    (tmp_path / "apple-1.png").symlink_to("elsewhere.png")
    (tmp_path / "apple-1-2.png").mkdir()
    assert run("generate", "apple", *FAST, "--seed", "1").stdout == "apple-1-3.png\n"
    assert (tmp_path / "apple-1.png").is_symlink() and not (tmp_path / "elsewhere.png").exists()


@pytest.mark.slow
def test_a_file_that_out_names_is_replaced(run, tmp_path):
    for prompt in ("a fox", "a bus"):
        assert run("generate", prompt, *FAST, "--out", "o.png").stdout == "o.png\n"
    assert Image.open(tmp_path / "o.png").text["prompt"] == "a bus"
    drawn = run("draw", "a fox", "--strokes", "4", "--steps", "1", "--size", "32", "--out", "o.svg")
    assert "o.png is replaced, as well as o.svg" in drawn.stderr


def frames_of(path):
    """Return the frames of a film as (N, H, W, 3), and how many are shown in a second."""
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(stream)]
        return np.stack(frames), stream.average_rate


@pytest.mark.slow
def test_a_film_has_a_frame_for_each_step(run, tmp_path):
    small = ("--steps", "3", "--size", "64", "--tries", "2", "--views", "1")
    result = run("generate", "a fox", *small, "--video", "fox.mp4")
    assert result.stdout == "a-fox-0.png\nfox.mp4\n"
    frames, rate = frames_of(tmp_path / "fox.mp4")
    assert rate == 5 and len(frames) == 4 + 5  # the start, three steps, and the picture for 1 s
    picture = np.asarray(Image.open(tmp_path / "a-fox-0.png")).astype(float)
    differences = abs(frames - picture).mean((1, 2, 3))
    assert (differences[4:] < 4).all() and differences[0] > 2 * differences[4]


def test_films_of_a_batch_and_of_odd_sides(run, tmp_path):
    tiny = ("--strokes", "8", "--steps", "2", "--size", "33", "47")
    result = run("draw", "a fox", "a bus", *tiny, "--video", "films")
    assert result.returncode == 0, result.stderr
    for name in ("a-fox-0", "a-bus-0"):
        frames, _ = frames_of(tmp_path / "films" / f"{name}.mp4")
        assert frames.shape == (3 + 5, 48, 34, 3)
        picture = np.asarray(Image.open(tmp_path / f"{name}.png")).astype(float)
        assert abs(frames[-1, :47, :33] - picture).mean() < 4


def test_a_film_lasts_some_seconds_and_needs_no_step(tmp_path):
    assert [Film(steps).rate for steps in (1, 100, 500)] == [5, 12, 30]
    Film(9).save(torch.rand(1, 3, 16, 16), [tmp_path / "at-once.mp4"])  # Ctrl-C came first
    assert len(frames_of(tmp_path / "at-once.mp4")[0]) == 5


def test_without_pyav(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    result = run("generate", "a fox", *FAST, "--video", "fox.mp4")
    assert result.returncode == 2 and "clipag-plugins[video]" in result.stderr
    assert not list(tmp_path.iterdir())


def test_read_only_folder(run, locked):
    result = run("generate", "apple", *FAST, "--out", locked / "apple.png")
    assert result.returncode == 2 and f"{locked} cannot be written to" in result.stderr


def test_an_existing_picture_survives_bad_input(run, tmp_path):
    (tmp_path / "apple.png").write_bytes(b"precious")
    assert run("generate", "apple", "--steps", "0", "--out", "apple.png").returncode == 2
    assert (tmp_path / "apple.png").read_bytes() == b"precious"


@pytest.mark.slow
def test_bad_input_ends_a_process_without_a_traceback(run_process):
    result = run_process("generate", "apple", "--out", "missing/apple.png")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "clipag: There is no folder missing: make it first, or name another.\n"


def test_help_shows_examples_and_the_environment_variable(run):
    assert "clipag generate" in run("generate", "--help").stdout
    assert "CLIPAG_TRACEBACK=1" in run("--help").stdout


def test_the_version(run):
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"clipag {clipag_plugins.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [(["--steps", "0"], ClipagError), (["--out", "x" * 300 + ".png"], OSError)],
)
def test_an_error_is_raised_where_the_environment_asks_for_its_traceback(
    run, monkeypatch, arguments, error
):
    assert run("generate", "apple", *arguments).returncode == 2
    monkeypatch.setenv("CLIPAG_TRACEBACK", "1")
    with pytest.raises(error):
        run("generate", "apple", *arguments)
    monkeypatch.setenv("CLIPAG_TRACEBACK", "0")
    assert run("generate", "apple", *arguments).returncode == 2


def test_several_seeds_of_a_prompt(run, tmp_path):
    result = run("generate", "apple", *FAST, "--seed", "4", "--count", "2")
    assert result.returncode == 0, result.stderr
    pictures = [Image.open(tmp_path / f"apple-{seed}.png") for seed in (4, 5)]
    assert [picture.text["seed"] for picture in pictures] == ["4", "5"]
    assert pictures[0].tobytes() != pictures[1].tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("worthwhile", [[], ["bfloat16"], ["bfloat16", "float16"]])
def test_bench_writes_what_it_prints(run, tmp_path, monkeypatch, worthwhile):
    # Which precisions are worthwhile depends on the processor, so the test sets their GFLOP/s.
    rates = dict.fromkeys(precision.DTYPES, 40.0) | {"float32": 100.0}
    rates |= dict.fromkeys(worthwhile, 60.0)
    monkeypatch.setattr(bench, "product_rates", lambda device: rates)
    # Timed by `test_bench_times_generate`.
    monkeypatch.setattr(bench, "time_generate", lambda rounds, device: {"one prompt": 0.5})
    result = run(
        "bench", "--models", "clipag-mini", "--views", "1", "--rounds", "1", "--out", "bench.json"
    )
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert figures["GFLOP/s of matrix products"] == rates
    assert figures["generate(), s"] == {"one prompt": 0.5}
    assert [look["precision"] for look in figures["looks"]] == ["float32", *worthwhile]
    for look in figures["looks"]:
        name, seconds = look["precision"], look["seconds"]
        assert f"| clipag-mini | 1 | clipag | {name} | {seconds:.3f} |" in result.stdout
        assert look["share of the limit"] == look["GFLOP"] / rates[name] / seconds
        # bfloat16 rounds each product by up to 2⁻⁸, which changes the gradient's direction little.
        assert look["cosine"] > 0.9


def test_bench_measures_every_precision():
    rates = bench.product_rates(torch.device("cpu"))
    assert rates.keys() == precision.DTYPES.keys() and min(rates.values()) > 0


@pytest.mark.slow
def test_bench_times_generate(monkeypatch):
    def generate_small(prompts, model, **arguments):
        return clipag_plugins.generate(prompts, model, **{**arguments, "steps": 1, "size": 32})

    monkeypatch.setattr(bench, "generate", generate_small)
    assert min(bench.time_generate(1, torch.device("cpu")).values()) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "ViT-Z-1"], "ViT-Z-1"),
        (["--views", "0"], "--views is 0"),
        (["--device", "nowhere"], "nowhere"),
        (["--out", "missing/bench.json"], "missing"),
    ],
)
def test_bench_refuses_in_one_sentence(run, arguments, message):
    result = run("bench", *arguments)
    assert result.returncode == 2 and message in result.stderr
    assert result.stderr.startswith("clipag: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        (["--size", "32", "a red apple"], (32, 32)),
        (["a red apple", "--size", "48", "32"], (48, 32)),
        (["--size", "48", "32", "a red apple"], (48, 32)),
        (["a red apple", "--size", "48x32"], (48, 32)),
    ],
)
def test_a_size_is_one_number_or_two_and_leaves_the_prompt_alone(run, tmp_path, arguments, size):
    result = run("generate", *arguments, "--steps", "1", "--tries", "1", "--out", "apple.png")
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "apple.png") as file:
        assert file.size == size
        assert file.text["prompt"] == "a red apple"


def test_the_command_alone_says_what_to_type_first(run):
    result = run()
    assert result.returncode == 0 and result.stdout.startswith("clipag draws")
    for line in result.stdout.splitlines():
        if line.startswith("  clipag ") and "--help" not in line:
            cli.parser().parse_args(shlex.split(line.partition("   ")[0])[1:])


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_shells_complete_commands_and_options(run, shell):
    pytest.importorskip("shtab")
    script = run("completion", shell).stdout
    assert "generate" in script and "--canvas" in script
