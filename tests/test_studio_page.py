"""The studio's page in a real browser: headless Chromium, driven by Playwright."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the extra studio is missing: make test-studio")
sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright: make test-studio")
axe = pytest.importorskip("axe_playwright_python.base", reason="no axe: make test-studio")

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("studio"),
    pytest.mark.skipif(not CHROMIUM, reason="there is no chromium: apt-get install chromium"),
]
SECONDS = 300  # that a loaded machine may take for what a quiet one does in a few


@pytest.fixture(scope="module")
def address():
    """The address of a studio in a process of its own, as a user starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "clipag_plugins", "studio", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert f"http://127.0.0.1:{port}" in line, line
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """Open the page in a window of its own; at the end, nothing may have gone wrong in it."""
    contexts, faults = [], []

    def open_page(width=1280, height=900, theme="light"):
        context = browser.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SECONDS * 1000)
        page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda r: faults.append(r.url) if is_elsewhere(r.url) else None)
        page.goto(f"{address}?__theme={theme}")
        page.wait_for_selector("#run-generate")
        return page

    def is_elsewhere(url):
        return not url.startswith((address, "data:", "blob:"))

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def status(page):
    return page.locator("#status").inner_text()


def wait_for(page, *words):
    """Wait until the status has one of the words, and return it."""
    deadline = time.monotonic() + SECONDS
    while not any(word in status(page) for word in words):
        assert time.monotonic() < deadline, status(page)
        page.wait_for_timeout(20)
    return status(page)


def prompt_of(page, command="generate"):
    return page.locator(f"#{command}-prompt textarea, #{command}-prompt input").first


def set_number(page, name, value):
    page.locator(f"#{name} input").fill(str(value))


def draw(page, prompt="a red apple", steps=2, size=32):
    """Start a small picture."""
    prompt_of(page).fill(prompt)
    set_number(page, "generate-steps", steps)
    set_number(page, "generate-width", size)
    set_number(page, "generate-height", size)
    page.click("#run-generate")


def thumbnails(page):
    return page.locator("#gallery button img").count()


def wait_for_pictures(page, count):
    """Wait until a job is done and the gallery has so many pictures."""
    deadline = time.monotonic() + SECONDS
    while thumbnails(page) < count or "Done" not in status(page):
        assert time.monotonic() < deadline, status(page)
        page.wait_for_timeout(20)
    assert thumbnails(page) == count


def test_a_prompt_becomes_a_picture_step_by_step(open_page, tmp_path):
    page = open_page()
    draw(page)
    wait_for_pictures(page, 1)  # the model is loaded now
    set_number(page, "generate-steps", 40)
    prompt_of(page).fill("a castle")
    prompt_of(page).press("Enter")
    texts = [wait_for(page, "Step")]
    assert page.locator("#picture img").count() == 1
    while "Done" not in status(page):
        texts.append(status(page))
        page.wait_for_timeout(30)
    assert len({text for text in texts if "Step" in text}) > 2, "there were several previews"
    with page.expect_download() as download:
        page.locator("#files a").first.click()
    download.value.save_as(tmp_path / "castle.png")
    with Image.open(tmp_path / "castle.png") as file:
        assert file.size == (32, 32) and file.text["prompt"] == "a castle"
    assert page.locator("#command textarea, #command input").input_value() == (
        "clipag generate 'a castle' --steps=40 --size=32"
    )


def test_the_gallery_and_a_dropped_png_bring_settings_back(open_page, run, tmp_path):
    page = open_page()
    draw(page, "a red apple", steps=3)
    wait_for_pictures(page, 1)
    draw(page, "a castle", steps=2)
    wait_for_pictures(page, 2)
    page.locator("#gallery button:has(img)").nth(1).click()
    wait_for(page, "a red apple")
    assert prompt_of(page).input_value() == "a red apple"
    assert page.locator("#generate-steps input").input_value() == "3"

    words = ["--steps", 1, "--size", 48, "--strokes", 7, "--palette", "red,blue", "--seed", 9]
    run("draw", "a blue fish", *words, "--out", "fish.svg")
    page.set_input_files("#restore input[type=file]", tmp_path / "fish.png")
    wait_for(page, "are in Drawing")
    assert prompt_of(page, "draw").input_value() == "a blue fish"
    assert prompt_of(page, "draw").is_visible()
    for name, value in {"strokes": "7", "seed": "9", "width": "48"}.items():
        assert page.locator(f"#draw-{name} input").input_value() == value
    page.click("#run-draw")
    wait_for_pictures(page, 3)
    assert page.locator("#files a").count() >= 2, "an SVG and a PNG"


def test_vanilla_beside_clipag(open_page):
    page = open_page()
    assert not page.locator("#vanilla").is_visible()
    page.get_by_label("Vanilla beside it").check()
    draw(page)
    wait_for_pictures(page, 2)
    assert page.locator("#picture img").is_visible() and page.locator("#vanilla img").is_visible()


def test_the_keyboard_alone(open_page):
    page = open_page()

    def tab_to(selector):
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate(f"document.activeElement.closest('{selector}') !== null"):
                return
        raise AssertionError(f"Tab does not reach {selector}")

    tab_to("#generate-prompt")
    page.keyboard.type("a red apple")
    tab_to("#generate-steps")
    page.keyboard.press("Control+a")
    page.keyboard.type("1000")
    tab_to("#run-generate")
    page.keyboard.press("Enter")
    wait_for(page, "Step")
    tab_to("#stop")
    page.keyboard.press("Space")
    assert "best so far" in wait_for(page, "Stopped", "Done")
    assert thumbnails(page) == 1


def test_impatient_clicks_make_one_picture(open_page):
    page = open_page()
    prompt_of(page).fill("a red apple")
    set_number(page, "generate-steps", 1000)
    page.evaluate("for (let i = 0; i < 20; i++) document.querySelector('#run-generate').click()")
    wait_for(page, "Step")
    for _ in range(20):
        page.click("#run-generate")
    page.click("#stop")
    wait_for(page, "Stopped")
    page.wait_for_timeout(500)
    assert "Stopped" in status(page) and thumbnails(page) == 1


def test_a_second_page_waits_until_the_first_is_closed(open_page):
    first, second = open_page(), open_page()
    draw(first, steps=1000, size=224)
    wait_for(first, "Step")
    draw(second)
    wait_for(second, "Waiting: 1")
    first.close()
    wait_for_pictures(second, 1)


def test_bad_files_are_refused_and_a_large_photo_is_taken(open_page, tmp_path):
    bomb, text, photo = (tmp_path / name for name in ("bomb.png", "text.png", "photo.png"))
    chunks = (
        b"IHDR" + (60_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0]),
        b"IDAT" + zlib.compress(bytes(60_000)),
    )
    bomb.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
            for chunk in chunks
        )
    )
    text.write_text("<script>alert(1)</script>")
    noise = np.random.default_rng(0).integers(0, 256, (3200, 3200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photo, compress_level=0)
    assert photo.stat().st_size > 30_000_000

    page = open_page()
    open_tab(page, "Style")
    page.locator("#style-style textarea, #style-style input").first.fill("fire")
    set_number(page, "style-steps", 1)
    set_number(page, "style-longer-side", 32)
    page.click("#run-style")
    wait_for(page, "There is no photo")
    for path, sentence in ((bomb, "pixels"), (text, "not a picture")):
        page.set_input_files("#style-photo input[type=file]", path)
        page.wait_for_selector("#style-photo img", state="attached")
        page.click("#run-style")
        wait_for(page, sentence)
        assert str(path.parent) not in status(page) and "/tmp" not in status(page)
        page.click("#style-photo button[title='Remove Image']")
    page.set_input_files("#style-photo input[type=file]", photo)
    page.wait_for_selector("#style-photo img")
    page.click("#run-style")
    wait_for(page, "Done")
    for path in (text, bomb):
        page.set_input_files("#restore input[type=file]", path)
        wait_for(page, f"{path.name} is not a PNG")
        page.wait_for_selector("#restore input[type=file]", state="attached")


def test_a_forged_request_reads_no_file(address):
    import httpx

    config = httpx.get(f"{address}config").json()
    hostname = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}
    data = ["clipag-mini", False, hostname, "a cat", "grad", 0, "linf", 0.03, 1]
    explain = next(
        each["id"]
        for each in config["dependencies"]
        if len(each["inputs"]) == len(data) and each["targets"][0][1] == "click"
    )
    body = {"data": data, "fn_index": explain, "session_hash": "forged", "trigger_id": None}
    join = httpx.post(f"{address}gradio_api/queue/join", json=body)
    assert join.status_code == 200
    completed = None
    url = f"{address}gradio_api/queue/data?session_hash=forged"
    with httpx.stream("GET", url, timeout=SECONDS) as stream:
        for line in stream.iter_lines():
            event = json.loads(line.removeprefix("data:") or "{}")
            if event.get("msg") == "process_completed":
                completed = event
                break
    assert not completed["success"] and "a cat" not in json.dumps(completed["output"])
    for path in ("/etc/hostname", __file__):
        assert httpx.get(f"{address}gradio_api/file={path}").status_code in (403, 404)


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "light"), (1280, "dark")])
def test_a_desktop_and_a_phone_see_all_of_it(open_page, width, theme):
    page = open_page(width, 844, theme)
    draw(page)
    wait_for(page, "Done")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for tab in ("Sampler", "Drawing", "VQGAN", "Style", "Invert", "Explain", "Attack"):
        open_tab(page, tab)
        faults = serious_faults(page)
        assert not faults, (tab, faults)
    folder = os.environ.get("STUDIO_SCREENSHOTS")
    if folder:
        open_tab(page, "Sampler")
        page.screenshot(path=Path(folder) / f"studio-{width}-{theme}.png", full_page=True)


def open_tab(page, name):
    """Open a tab, which may be behind the dots of a narrow page."""
    tab = page.get_by_role("tab", name=name)
    if not tab.is_visible():
        page.click(".overflow-menu > button")
        tab = page.locator(".overflow-dropdown button", has_text=name)
    tab.click()


def serious_faults(page):
    """Return what axe calls a serious or critical fault of accessibility."""
    script = Path(axe.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    page.evaluate(script)
    results = page.evaluate("axe.run()")
    return [
        (fault["id"], node["html"][:200], node["failureSummary"][:300])
        for fault in results["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]
