"""Kill fine-tuning runs at random moments, and check that they end as undisturbed ones do.

python -m benchmarks.chaos --work build/weights --out build/chaos --kills 20

One process is killed (SIGKILL) again and again, while it starts, computes or writes a
checkpoint, and its weights are compared bit by bit with those of an undisturbed run. Then one of
two processes under torchrun is killed, and a single process finishes the run. If a run does not
resume from its newest checkpoint, the benchmark stops. Figures: benchmarks/results/chaos.json.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

import clipag_plugins as clip

from . import keep

MODULE = "clipag_plugins.finetune"
SETTINGS = ("steps=60", "batch=16", "micro_batch=8", "threat.attack_steps=1", "save_every=1",
            "picture_every=0", "evaluate_samples=16", "warmup=5")  # fmt: skip


def arguments(work: Path, out: Path) -> list[str]:
    """Return the arguments of a mini run."""
    settings = [*SETTINGS, f"data.0.path={work}", f"validation.path={work}"]
    return ["mini", "--out", str(out), *(a for s in settings for a in ("--set", s))]


def wait_for_checkpoint(process: subprocess.Popen[bytes], out: Path) -> None:
    """Wait until a run has written one more checkpoint, or has ended."""
    before = {path.name for path in out.glob("0*.pt")}
    while process.poll() is None and not {path.name for path in out.glob("0*.pt")} - before:
        time.sleep(0.01)


def newest(out: Path) -> int:
    """Return the step of a run's newest checkpoint, or 0."""
    return max((int(path.stem) for path in out.glob("0*.pt")), default=0)


def check_start(words: str, step: int) -> None:
    """Stop unless a run's progress bar, if there was one, began at a step."""
    match = re.search(r"(\d+)/60 \[", words)
    if match and int(match[1]) != step:
        raise SystemExit(
            f"A run resumed from step {match[1]}, but its newest checkpoint is of {step}."
        )


def kill_again_and_again(work: Path, out: Path, kills: int, draw: random.Random) -> int:
    """Run to the end through a number of kills; return how many there were."""
    done, log = 0, out.parent / "killed.log"
    while True:
        start = newest(out)
        with log.open("wb") as file:
            command = [sys.executable, "-m", MODULE, *arguments(work, out)]
            process = subprocess.Popen(command, stdout=file, stderr=file)
            if done < kills:
                if draw.random() < 0.8:  # else it is killed while it starts
                    wait_for_checkpoint(process, out)
                    time.sleep(draw.uniform(0, 0.5))
                else:
                    time.sleep(draw.uniform(0, 4))
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    done += 1
            code = process.wait()
        check_start(log.read_text(), start)
        if code == 0:
            return done
        print(f"killed {done} times, the newest checkpoint is of {newest(out)}", flush=True)


def kill_one_of_two(work: Path, out: Path) -> tuple[float, int, str]:
    """Kill one of two processes; return the seconds until both ended, exit code and message."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node", "2", "-m", MODULE, *arguments(work, out)]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    out.mkdir(exist_ok=True)
    wait_for_checkpoint(process, out)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", MODULE], capture_output=True, text=True
    )
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    began = time.monotonic()
    _, words = process.communicate(timeout=300)
    reason = next((x for x in words.decode().splitlines() if "SIGKILL" in x or "Signal 9" in x), "")
    seconds = time.monotonic() - began
    start = newest(out)
    alone = [sys.executable, "-m", MODULE, *arguments(work, out)]
    done = subprocess.run(alone, check=True, stderr=subprocess.PIPE, text=True)
    check_start(done.stderr, start)
    return seconds, process.returncode, reason.strip()


def largest_difference(one: Path, other: Path) -> float:
    """Return the largest difference between the weights of two runs' results."""
    a, b = (clip.load_model(out / "model").visual.state_dict() for out in (one, other))
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def main(work: Path, out: Path, kills: int, seed: int) -> None:
    """Kill runs, and write the figures."""
    out.mkdir(parents=True, exist_ok=True)
    undisturbed = [sys.executable, "-m", MODULE, *arguments(work, out / "whole")]
    subprocess.run(undisturbed, check=True, stderr=subprocess.DEVNULL)
    done = kill_again_and_again(work, out / "killed", kills, random.Random(seed))
    killed = largest_difference(out / "whole", out / "killed")
    print(f"{done} kills, largest difference {killed}", flush=True)
    seconds, code, reason = kill_one_of_two(work, out / "two")
    figures = {
        "settings": SETTINGS,
        "kills": done,
        "largest difference from an undisturbed run": killed,
        "one of two processes killed": {
            "exit code": code,
            "after seconds": round(seconds, 1),
            "says": reason,
            "largest difference from one process, finished by one": largest_difference(
                out / "whole", out / "two"
            ),
        },
    }
    keep("chaos", figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--out", type=Path, default=Path("build/chaos"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    main(options.work, options.out, options.kills, options.seed)
