"""Kill fine-tuning runs at random moments, and see whether they end as if undisturbed.

python -m benchmarks.chaos --work build/weights --out build/chaos --kills 20

One process is killed (SIGKILL) again and again, while it starts, computes or writes a
checkpoint, and its weights are compared bit by bit with those of an undisturbed run. Then, of
two processes under torchrun, one is killed. The figures go to benchmarks/results/chaos.json.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

import clipag_plugins as clip
from clipag_plugins.files import write_json

from . import RESULTS

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


def kill_again_and_again(work: Path, out: Path, kills: int, draw: random.Random) -> int:
    """Run to the end in spite of so many kills; return how many there were."""
    done = 0
    with (out.parent / "killed.log").open("ab") as log:
        while True:
            command = [sys.executable, "-m", MODULE, *arguments(work, out)]
            process = subprocess.Popen(command, stdout=log, stderr=log)
            if done < kills:
                if draw.random() < 0.8:  # else while it starts
                    wait_for_checkpoint(process, out)
                    time.sleep(draw.uniform(0, 0.5))
                else:
                    time.sleep(draw.uniform(0, 4))
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    done += 1
            if process.wait() == 0:
                return done
            print(f"killed {done} times, {len([*out.glob('0*.pt')])} checkpoints", flush=True)


def kill_one_of_two(work: Path, out: Path) -> tuple[float, int, str]:
    """Kill one of two processes; return seconds until all is over, exit code and last words."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node", "2", "-m", MODULE, *arguments(work, out)]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    out.mkdir(exist_ok=True)
    wait_for_checkpoint(process, out)
    found = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", MODULE], capture_output=True, text=True
    )
    os.kill(int(found.stdout.split()[-1]), signal.SIGKILL)
    began = time.monotonic()
    _, words = process.communicate(timeout=300)
    reason = next((x for x in words.decode().splitlines() if "SIGKILL" in x or "Signal 9" in x), "")
    seconds = time.monotonic() - began
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return seconds, process.returncode, reason.strip()


def largest_difference(one: Path, other: Path) -> float:
    """Return the largest difference between the weights of two runs' results."""
    a, b = (clip.load_clipag(out / "model").visual.state_dict() for out in (one, other))
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def main(work: Path, out: Path, kills: int, seed: int) -> None:
    """Disturb runs, and write down what came of it."""
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
            "largest difference from one process, resumed": largest_difference(
                out / "whole", out / "two"
            ),
        },
    }
    print(json.dumps(figures, indent=1))
    write_json(RESULTS / "chaos.json", figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--out", type=Path, default=Path("build/chaos"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    main(options.work, options.out, options.kills, options.seed)
