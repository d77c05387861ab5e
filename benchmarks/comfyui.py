"""The nodes in the real ComfyUI, started without a GPU.

    python -m benchmarks.comfyui COMFYUI_DIR --out FOLDER

Run it with the Python that runs ComfyUI. It starts ComfyUI in an empty folder with the nodes in its
`custom_nodes`, submits the example workflows through the HTTP API, listens on the websocket, and
checks: progress and previews arrive; the seed of the command line gives its picture; Cancel stops
within two steps; a second run comes from the cache; bad input marks the node with one sentence.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image

from clipag_plugins.defaults import DRAWING_MODEL
from clipag_plugins.integrations.comfyui.install import WORKFLOWS, install

from . import ROOT

SECONDS_TO_START = 1800
SECONDS_OF_A_RUN = 3600
LATEST_STEP_AFTER_CANCEL = 2
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
Prompt = dict[str, dict[str, Any]]


@contextlib.contextmanager
def running(comfyui: Path, base: Path, log: Path) -> Iterator[str]:
    """Run ComfyUI in a process of its own; yield its address.

    Args:
        comfyui: its folder, with main.py.
        base: an empty folder for its models, inputs, outputs and custom nodes.
        log: where its messages are written.
    """
    for folder in ("custom_nodes", "input", "output", "models/clip_vision", "user"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(comfyui / "nodes.py", base)  # by which `install` knows a ComfyUI
    install(base)
    shutil.copy(ROOT / "benchmarks" / "comfyui_tiny.py", base / "custom_nodes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "main.py", "--cpu", "--port", str(port), "--base-directory", str(base),
        "--database-url", "sqlite:///:memory:", "--disable-auto-launch", "--disable-api-nodes",
    ]  # fmt: skip
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with log.open("wb") as messages:
        process = subprocess.Popen(
            command, cwd=comfyui, stdout=messages, stderr=messages,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while b"To see the GUI go to" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"ComfyUI does not start: see {log}.")
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


@dataclass
class Run:
    """What ComfyUI said about one run of a workflow.

    Attributes:
        prompt_id: its number in ComfyUI.
        steps: the numbers (value, max) of the progress bar, by node.
        previews: the preview pictures.
        executed: the nodes that were executed.
        cached: the nodes that came from the cache.
        end: "success", "interrupted" or "error".
        error: what the page shows of an error.
        seconds: how long it took.
    """

    prompt_id: str
    steps: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    previews: list[Image.Image] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    end: str = ""
    error: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class Client:
    """A client of a running ComfyUI."""

    def __init__(self, session: aiohttp.ClientSession, address: str):
        self.session = session
        self.address = address
        self.name = uuid.uuid4().hex

    async def get(self, path: str) -> Any:
        """Return the JSON at a path."""
        async with self.session.get(f"http://{self.address}/{path}") as response:
            return await response.json()

    async def post(self, path: str, value: object) -> tuple[int, Any]:
        """Post JSON; return the status and the answer."""
        async with self.session.post(f"http://{self.address}/{path}", json=value) as response:
            text = await response.text()
            return response.status, json.loads(text) if text else None

    async def run(
        self,
        prompt: Prompt,
        workflow: Mapping[str, Any] | None = None,
        cancel_at: int | None = None,
    ) -> Run:
        """Submit a prompt, and listen until it has ended.

        Args:
            prompt: in the format of the API.
            workflow: in the format of the page; Save Image writes it into the PNG.
            cancel_at: the step of the progress bar at which Cancel is pressed.
        """
        address = f"ws://{self.address}/ws?clientId={self.name}"
        start = time.perf_counter()
        async with self.session.ws_connect(address, max_msg_size=0) as stream:
            more = {"extra_pnginfo": {"workflow": workflow}} if workflow else {}
            request = {"prompt": prompt, "client_id": self.name, "extra_data": more}
            status, answer = await self.post("prompt", request)
            if status != 200:
                return Run("", end="error", error=answer)
            run = Run(answer["prompt_id"])
            async for message in stream:
                if message.type == aiohttp.WSMsgType.BINARY:
                    # Four bytes of the kind of message, four of the format, and the picture.
                    run.previews.append(Image.open(io.BytesIO(message.data[8:])))
                elif message.type == aiohttp.WSMsgType.TEXT:
                    _read(run, json.loads(message.data))
                    reached = max((steps[-1][0] for steps in run.steps.values()), default=0)
                    if cancel_at is not None and reached >= cancel_at:
                        await self.post("interrupt", {})
                        cancel_at = None
                if run.end:
                    break
        run.seconds = time.perf_counter() - start
        return run

    async def files(self, run: Run) -> dict[str, bytes]:
        """Return the PNGs that a run saved, by name."""
        # ComfyUI says that a run has ended before it notes the run.
        while not (history := await self.get(f"history/{run.prompt_id}")):
            await asyncio.sleep(0.1)
        contents = {}
        for output in history[run.prompt_id]["outputs"].values():
            for image in output.get("images", []):
                query = "&".join(f"{key}={value}" for key, value in image.items())
                if image["type"] == "output" and image["filename"].endswith(".png"):
                    async with self.session.get(f"http://{self.address}/view?{query}") as response:
                        contents[image["filename"]] = await response.read()
        return contents

    async def pictures(self, run: Run) -> list[Image.Image]:
        """Return the PNGs that a run saved, as pictures."""
        files = await self.files(run)
        return [Image.open(io.BytesIO(content)) for content in files.values()]


def _read(run: Run, message: Mapping[str, Any]) -> None:
    """Note what a message says about a run."""
    kind, data = message["type"], message.get("data", {})
    if data.get("prompt_id") != run.prompt_id:
        return
    if kind == "progress":
        run.steps.setdefault(data["node"], []).append((data["value"], data["max"]))
    elif kind == "executing" and data["node"] is not None:
        run.executed.append(data["node"])
    elif kind == "execution_cached":
        run.cached = data["nodes"]
    elif kind in ("execution_success", "execution_interrupted", "execution_error"):
        run.end = kind.removeprefix("execution_")
        run.error = dict(data)


def prompt_of(workflow: Mapping[str, Any], nodes: Mapping[str, Any]) -> Prompt:
    """Return the prompt that the page makes of a workflow.

    Args:
        workflow: as the page saves it.
        nodes: what `/object_info` says.
    """
    origins = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] not in nodes:  # a note
            continue
        linked = {each["name"]: origins[each["link"]] for each in node.get("inputs", [])
                  if each.get("link") is not None}  # fmt: skip
        values, inputs = iter(node.get("widgets_values", [])), {}
        described = nodes[node["type"]]["input"]
        for name, (kind, *options) in (
            *described.get("required", {}).items(), *described.get("optional", {}).items()
        ):  # fmt: skip
            if isinstance(kind, list) or kind in WIDGETS:
                inputs[name] = next(values)
                if options and options[0].get("control_after_generate"):
                    next(values)
            if name in linked:
                inputs[name] = linked[name]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def node_of(prompt: Prompt, kind: str) -> str:
    """Return the number of the first node of a kind."""
    return next(number for number, node in prompt.items() if node["class_type"] == kind)


def changed(prompt: Prompt, kind: str, **inputs: Any) -> Prompt:
    """Return a prompt in which the first node of a kind has other inputs."""
    other = deepcopy(prompt)
    other[node_of(prompt, kind)]["inputs"] |= inputs
    return other


class Checks:
    """Prints each check, and counts those that failed."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, name: str, is_good: bool, *details: object) -> None:
        """Print one check."""
        self.failed += not is_good
        print("ok  " if is_good else "FAIL", name, *details, flush=True)


SHORT = {"ClipagSample": {"steps": 4, "tries": 1}, "ClipagDraw": {"steps": 6, "strokes": 24},
         "ClipagStyle": {"steps": 4, "patches": 4}}  # fmt: skip
# In place of the checkpoint that a user would choose.
RANDOM = {
    "class_type": "ClipagRandomDiffusion",
    "inputs": {"size": "small", "precision": "float32"},
}


def shortened(prompt: Prompt) -> Prompt:
    """Return a prompt with few steps, and with random weights in place of a checkpoint."""
    for kind, inputs in SHORT.items():
        if any(node["class_type"] == kind for node in prompt.values()):
            prompt = changed(prompt, kind, **inputs)
    prompt = without_checkpoint(prompt, RANDOM, side=64)
    for node in prompt.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 3
    return prompt


def whole(prompt: Prompt, weights: Path | None) -> Prompt:
    """Return a prompt with all its steps; `comfyui_train`'s weights stand in for a checkpoint."""
    if weights is None:
        return prompt
    loader = {"class_type": "ClipagTinyDiffusion", "inputs": {"file": str(weights.resolve())}}
    return without_checkpoint(prompt, loader, side=96)


def without_checkpoint(prompt: Prompt, loader: dict[str, Any], side: int) -> Prompt:
    """Return a prompt in which another node gives the diffusion model, the VAE and the conditions.

    Args:
        prompt: with or without Load Checkpoint; without it, an equal prompt is returned.
        loader: a node of `comfyui_tiny.py`.
        side: of the pictures, in pixels.
    """
    prompt = deepcopy(prompt)
    loaders = [n for n, node in prompt.items() if node["class_type"] == "CheckpointLoaderSimple"]
    if not loaders:
        return prompt
    conditions = [n for n, node in prompt.items() if node["class_type"] == "CLIPTextEncode"]
    slots = {(loaders[0], 0): 0, (loaders[0], 2): 1}  # the model and the VAE
    slots |= {(number, 0): 2 + index for index, number in enumerate(conditions)}
    others = {n: node for n, node in prompt.items() if n not in (*loaders, *conditions)}
    for node in others.values():
        inputs = node["inputs"]
        for name, value in inputs.items():
            if isinstance(value, list) and tuple(value) in slots:
                inputs[name] = ["loader", slots[value[0], value[1]]]
        if node["class_type"] == "EmptyLatentImage":
            inputs |= {"width": side, "height": side}
    return {**others, "loader": loader}


async def check_workflows(
    client: Client,
    check: Checks,
    out: Path,
    make: Callable[[Prompt], Prompt],
    names: Sequence[str] = (),
) -> None:
    """Run each example workflow; write the pictures that it saves, with the workflow inside.

    Args:
        client: of a running ComfyUI.
        check: prints the checks.
        out: where the pictures go.
        make: makes the prompt that is run of the workflow's own.
        names: of the workflows; by default all.
    """
    nodes = await client.get("object_info")
    for path in sorted(WORKFLOWS.glob("*.json")):
        if names and path.stem not in names:
            continue
        workflow = json.loads(path.read_text(encoding="utf-8"))
        prompt = make(prompt_of(workflow, nodes))
        run = await client.run(prompt, workflow)
        files = await client.files(run)
        is_good = run.end == "success" and bool(files)
        check(f"{path.stem}: a picture", is_good, f"{run.seconds:.1f} s", run.error.get(
            "exception_message", run.error.get("node_errors", "")))  # fmt: skip
        bars = [steps for steps in run.steps.values() if len(steps) > 1]
        rises = all(steps == sorted(steps) and steps[-1][0] == steps[-1][1] for steps in bars)
        check(f"{path.stem}: progress", bool(bars) and rises, [steps[-1] for steps in bars])
        is_ours = any(node.startswith("Clipag") for node in _kinds(workflow, run))
        check(f"{path.stem}: previews", len(run.previews) > 2 or not is_ours, len(run.previews))
        for number, content in enumerate(files.values()):
            with Image.open(io.BytesIO(content)) as picture:
                inside = json.loads(picture.info["workflow"])
            check(f"{path.stem}: the workflow is in the PNG", inside == workflow)
            end = f"-{number + 1}" if number else ""
            (out / f"{path.stem}{end}.png").write_bytes(content)


def _kinds(workflow: Mapping[str, Any], run: Run) -> list[str]:
    """Return the kinds of the nodes that moved a progress bar."""
    return [node["type"] for node in workflow["nodes"] if str(node["id"]) in run.steps]


SAMPLE: Prompt = {
    "1": {"class_type": "ClipagLoadModel",
          "inputs": {"model_name": DRAWING_MODEL, "precision": "auto", "max_views": 64}},
    "2": {"class_type": "ClipagTextTarget", "inputs": {"text": "a red apple", "weight": 1.0}},
    "3": {"class_type": "ClipagSample",
          "inputs": {"model": ["1", 0], "target": ["2", 0], "seed": 3, "width": 96, "height": 96,
                     "batch_size": 1, "steps": 6, "views": 0, "tries": 0, "canvas": "pixels",
                     "start": "gmm"}},
    "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "sample"}},
}  # fmt: skip
ASTRONAUT = {"class_type": "EmptyImage",
             "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0x808080}}  # fmt: skip


async def check_seed_and_cache(client: Client, check: Checks, folder: Path) -> None:
    """The seed gives the command line's picture; a second run is answered from the cache."""
    run = await client.run(SAMPLE)
    (picture,) = await client.pictures(run)
    file = folder / "apple.png"
    command = ["generate", "a red apple", "--seed", "3", "--size", "96", "--steps", "6"]
    subprocess.run(
        [sys.executable, "-m", "clipag_plugins", *command, "--out", str(file)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True,
    )  # fmt: skip
    with Image.open(file) as expected:
        is_same = picture.convert("RGB").tobytes() == expected.tobytes()
    check("the command line's picture", is_same)
    again = await client.run(SAMPLE)
    check("a second run comes from the cache", {*again.cached} == {*SAMPLE} and not again.executed,
          f"{run.seconds:.2f} s, then {again.seconds:.2f} s")  # fmt: skip
    # Without its cache ComfyUI draws again, and has to load the model again.
    await client.post("free", {"unload_models": True, "free_memory": True})
    await asyncio.sleep(2)
    other = await client.run(SAMPLE)
    (redrawn,) = await client.pictures(other)
    check("after ComfyUI has unloaded the models",
          bool(other.executed) and redrawn.tobytes() == picture.tobytes())  # fmt: skip


async def check_cancel(client: Client, check: Checks) -> None:
    """Cancel ends a long run within two steps."""
    image = {"image": ["5", 0], "tries": 1, "steps": 500}
    prompt = {**changed(SAMPLE, "ClipagSample", **image), "5": ASTRONAUT}
    run = await client.run(prompt, cancel_at=5)
    last = max((steps[-1][0] for steps in run.steps.values()), default=-1)
    is_soon = 5 <= last <= 5 + LATEST_STEP_AFTER_CANCEL
    check("Cancel", run.end == "interrupted" and is_soon, f"at step 5, last step {last}")


def bad_prompts() -> dict[str, tuple[Prompt, str]]:
    """Return prompts with bad input, each with a part of the message."""
    small = {"5": ASTRONAUT}
    mask = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 32, "height": 32}}
    transparent = {"class_type": "JoinImageWithAlpha",
                   "inputs": {"image": ["5", 0], "alpha": ["6", 0]}}  # fmt: skip
    no_model = deepcopy(SAMPLE)
    del no_model["3"]["inputs"]["model"]
    guided: Prompt = {
        **SAMPLE, "7": RANDOM,
        "4": {"class_type": "ModelSave",
              "inputs": {"model": ["3", 0], "filename_prefix": "guided"}},
        "3": {"class_type": "ClipagGuideDiffusion",
              "inputs": {"diffusion": ["7", 0], "model": ["1", 0], "target": ["2", 0],
                         "strength": 0.1, "start_percent": 0.0, "end_percent": 1.0, "every": 1,
                         "views": 0, "view_seed": 0}},
    }  # fmt: skip
    return {
        "no model": (no_model, "Required input is missing"),
        "no VAE": (guided, "Required input is missing"),
        "an empty text": (changed(SAMPLE, "ClipagTextTarget", text=" "), "`text` is empty"),
        "a mask of another size": (
            {**changed(SAMPLE, "ClipagSample", image=["5", 0], mask=["6", 0]), **small, "6": mask},
            "`mask` has 32 × 32 pixels and the picture 64 × 64",
        ),
        "4 channels": (
            {**changed(SAMPLE, "ClipagSample", image=["8", 0]), **small, "6": mask,
             "8": transparent},
            "`image` has 4 channels",
        ),
        "a batch of 0": (
            changed(SAMPLE, "ClipagSample", batch_size=0), "Value 0 smaller than min of 1",
        ),
    }  # fmt: skip


async def check_bad_input(client: Client, check: Checks) -> None:
    """Bad input marks the node, with one sentence."""
    for name, (prompt, message) in bad_prompts().items():
        run = await client.run(prompt)
        node = run.error.get("node_id") or ", ".join(run.error.get("node_errors", {}))
        text = run.error.get("exception_message", "").strip() or json.dumps(
            run.error.get("node_errors", {})
        )
        sentence = text if len(text) < 200 else message
        is_good = run.end == "error" and message in text and "\n" not in text and node in "23"
        check(f"{name}: one sentence", is_good, f"node {node}: {sentence}")


async def checked(address: str, check: Checks, folder: Path, options: argparse.Namespace) -> None:
    """Do all checks with a running ComfyUI; with `--full`, those of whole workflows alone."""
    timeout = aiohttp.ClientTimeout(total=SECONDS_OF_A_RUN)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        client, out = Client(session, address), options.out or folder
        if options.full:
            make = partial(whole, weights=options.weights)
            await check_workflows(client, check, out, make, options.full)
            return
        described = await client.get("object_info")
        from clipag_plugins.integrations.comfyui import NODE_CLASS_MAPPINGS

        check("all nodes are there", {*NODE_CLASS_MAPPINGS} <= {*described})
        await check_seed_and_cache(client, check, folder)
        await check_cancel(client, check)
        await check_bad_input(client, check)
        await check_workflows(client, check, out, shortened)


def main() -> int:
    """Check the nodes in a ComfyUI, and return 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comfyui", description=__doc__)
    parser.add_argument("comfyui", type=Path, help="the folder of a ComfyUI, with main.py")
    parser.add_argument("--out", type=Path, help="keep the pictures and ComfyUI's messages here")
    parser.add_argument(
        "--page", type=Path, metavar="PNG",
        help="also run a workflow by mouse in a headless Chromium, and write a screenshot",
    )  # fmt: skip
    parser.add_argument(
        "--full", nargs="+", metavar="NAME",
        help="only run these workflows, with all of their steps, and keep their PNGs in --out; "
        "guide_diffusion needs --weights",
    )  # fmt: skip
    parser.add_argument(
        "--weights", type=Path, metavar="FILE",
        help="by benchmarks.comfyui_train, in place of a checkpoint of Stable Diffusion",
    )  # fmt: skip
    options = parser.parse_args()
    check = Checks()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        out = folder if options.out is None else options.out
        out.mkdir(exist_ok=True)
        (folder / "base").mkdir()
        for picture in (ROOT / "examples").glob("*.png"):
            (folder / "base" / "input").mkdir(exist_ok=True)
            shutil.copy(picture, folder / "base" / "input")
        with running(options.comfyui, folder / "base", out / "comfyui.log") as address:
            if options.page is not None:
                from .comfyui_page import screenshot

                outputs = folder / "base" / "output"
                wrong = screenshot(address, WORKFLOWS / "sample.json", outputs, options.page)
                check("the page", not wrong, *wrong)
            asyncio.run(checked(address, check, folder, options))
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
