"""The command line, as a user meets it: pictures, and one clear sentence for bad input."""

import json
import struct
import zlib

import pytest
import torch
from PIL import Image

from clipag_plugins.trajectory import FRAMES, Trajectory

FAST = ("--steps", "2", "--size", "64", "--views", "1")


@pytest.mark.slow
def test_a_picture_with_its_facts(run_process, tmp_path):
    result = run_process("generate", "a red apple", *FAST, "--seed", 3, "--out", "apple.png")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "apple.png"
    picture = Image.open(tmp_path / "apple.png")
    assert picture.size == (64, 64)
    assert picture.text["prompt"] == "a red apple"
    assert picture.text["seed"] == "3" and picture.text["model"] == "clipag-mini"
    assert picture.text["views"] == "1" and picture.text["size"] == "64"
    assert picture.text["precision"] in ("float32", "bfloat16", "float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["apple.png"]


@pytest.mark.slow
def test_several_prompts_and_a_trajectory(run, tmp_path):
    result = run(
        "generate", "a castle", "a castle", *FAST, "--out", "pictures/", "--trajectory", "steps"
    )
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
    code, says = interrupt("similarity", "generate", "a castle", "--steps", "100000", *small)
    assert code == 130
    assert "the best so far is kept" in says
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
    ("arguments", "says"),
    [
        (["", *FAST], "empty"),
        (["   ", *FAST], "empty"),
        (["apple " * 90, *FAST], "--truncate"),
        (["apple", "--model", "clipag-maxi"], "clipag-mini"),
        (["apple", "--model", "cut.safetensors"], "cut.safetensors"),
        (["apple", "--out", "missing/apple.png"], "missing"),
        (["apple", "--out", "missing/deeper/"], "no folder missing"),
        (["apple", "--out", "new/", "--steps", "0"], "steps is 0"),
        (["apple", "--out", "photo.png", "--init", "photo.png"], "would replace"),
        (["apple", "--out", ".", "--seed", "1", "--init", "apple-1.png"], "would replace"),
        (["apple", "--out", "apple.xyz"], ".xyz"),
        (["apple", "pear", "--out", "both.png"], "both.png"),
        (["apple", "--trajectory", "missing/steps"], "missing"),
        (["apple", "--init", "text.png"], "text.png"),
        (["apple", "--init", "bomb.png"], "bomb.png"),
        (["apple", "--init", "absent.png"], "absent.png"),
        (["apple", "--steps", "0"], "steps is 0"),
        (["apple", "--steps", "many"], "many"),
        (["apple", "--size", "100000"], "100000"),
        (["apple", "--views", "-1"], "-1"),
        (["apple", "--seed", "-1"], "-1"),
        (["apple", "--seed", "5"], "apple-5.png"),
        (["apple", "--out", "x" * 300 + ".png"], "File name too long"),
        (["apple", "--model", "text.png"], "text.png"),
    ],
)
def test_bad_input_is_one_sentence(run, tmp_path, arguments, says):
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    bomb(tmp_path / "bomb.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    (tmp_path / "apple-1.png").symlink_to("photo.png")
    (tmp_path / "apple-5.png").mkdir()
    before = sorted(tmp_path.iterdir())
    result = run("generate", *arguments)
    assert result.returncode == 2, result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_read_only_folder(run, locked):
    result = run("generate", "apple", *FAST, "--out", locked / "apple.png")
    assert result.returncode == 2 and f"{locked} cannot be written to" in result.stderr


def test_an_existing_picture_survives_bad_input(run, tmp_path):
    (tmp_path / "apple.png").write_bytes(b"precious")
    assert run("generate", "apple", "--steps", "0", "--out", "apple.png").returncode == 2
    assert (tmp_path / "apple.png").read_bytes() == b"precious"


def test_help_shows_examples(run):
    assert "clipag generate" in run("generate", "--help").stdout


def test_several_seeds_of_a_prompt(run, tmp_path):
    result = run("generate", "apple", *FAST, "--tries", "1", "--seed", "4", "--count", "2")
    assert result.returncode == 0, result.stderr
    pictures = [Image.open(tmp_path / f"apple-{seed}.png") for seed in (4, 5)]
    assert [picture.text["seed"] for picture in pictures] == ["4", "5"]
    assert pictures[0].tobytes() != pictures[1].tobytes()


@pytest.mark.slow
def test_bench_writes_what_it_prints(run, tmp_path):
    result = run(
        "bench", "--models", "clipag-mini", "--views", "1", "--rounds", "1", "--out", "bench.json"
    )
    assert result.returncode == 0, result.stderr
    row, *faster = json.loads((tmp_path / "bench.json").read_text())["looks"]
    assert f"| clipag-mini | 1 | clipag | float32 | {row['seconds']:.3f} |" in result.stdout
    assert [row["precision"] for row in faster] in ([], ["bfloat16"])  # where it is worthwhile


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--models", "ViT-Z-1"], "ViT-Z-1"),
        (["--views", "0"], "--views is 0"),
        (["--device", "nowhere"], "nowhere"),
        (["--out", "missing/bench.json"], "missing"),
    ],
)
def test_bench_refuses_in_one_sentence(run, arguments, says):
    result = run("bench", *arguments)
    assert result.returncode == 2 and says in result.stderr and "Traceback" not in result.stderr
