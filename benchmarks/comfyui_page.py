"""ComfyUI's page in a headless Chromium: open a workflow, and run it by mouse.

`benchmarks.comfyui --page` calls it. It needs `pip install playwright` and a Chromium.
"""

import io
import shutil
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

SECONDS = 300
WIDTH, HEIGHT = 1480, 760  # of the screenshot
COLOURS = 256  # of the screenshot, whose file is then a third as large


def screenshot(address: str, workflow: Path, outputs: Path, file: Path) -> list[str]:
    """Open a workflow, press Run, wait for its picture, and write a screenshot.

    Args:
        address: of a running ComfyUI.
        workflow: a file that is opened as a user opens it.
        outputs: where ComfyUI saves the picture.
        file: the screenshot.

    Returns:
        What the page says is wrong with the workflow; empty if nothing is.
    """
    before = {*outputs.glob("*.png")}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(SECONDS * 1000)
        page.goto(f"http://{address}")
        page.wait_for_function("window.app && window.app.graph && window.app.canvas")
        # The templates of the first visit cover the page; a click beside them closes them.
        page.locator("[role=dialog]").first.wait_for()
        page.wait_for_timeout(1000)
        page.mouse.click(WIDTH - 5, HEIGHT / 2)
        page.locator("[role=dialog]").first.wait_for(state="hidden")
        page.set_input_files("#comfy-file-input", workflow)
        page.wait_for_function("window.app.graph._nodes.some(n => n.type.startsWith('Clipag'))")
        page.wait_for_timeout(2000)
        _click(page, "Run")
        deadline = time.monotonic() + SECONDS
        while {*outputs.glob("*.png")} == before and time.monotonic() < deadline:
            page.wait_for_timeout(500)
        page.wait_for_timeout(5000)  # until the picture is shown
        page.mouse.move(WIDTH / 2, HEIGHT - 20)
        page.wait_for_timeout(1000)
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        picture.quantize(COLOURS).save(file, optimize=True)
        wrong = page.locator("[role=dialog], .p-toast-message-error").all_inner_texts()
        browser.close()
    return wrong if {*outputs.glob("*.png")} != before else [*wrong, "no picture"]


def _click(page: Page, name: str) -> None:
    """Click into the middle of a button with the mouse."""
    box = page.get_by_role("button", name=name, exact=True).first.bounding_box()
    if box is None:
        raise RuntimeError(f"The page has no button {name}.")
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
