"""The voting page in a real browser: keys, mouse, a phone's screen, light and dark, a lost server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flashbulb.apps.vote.folders import open_folders, read_prompts
from flashbulb.apps.vote.ledger import Ledger
from flashbulb.apps.vote.plan import plan
from flashbulb.apps.vote.server import Server
from flashbulb.apps.vote.session import Session

pytest.importorskip("selenium", reason="selenium is not installed: pip install 'flashbulb[test]'")
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

BROWSERS = ("chromium", "google-chrome", "chromium-browser", "google-chrome-stable")
PROMPTS = [
    "a red apple",
    "<img src=x onerror=document.title='broken'>",
    "a very long prompt, " * 30,
    "häßlich 😀",
]
PATIENCE_S = 60

Wait = Callable[[str], Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """A headless Chromium, its driver from the same packages; none is ever downloaded."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver") or shutil.which(
        "chromedriver", path=os.getenv("CHROMEWEBDRIVER", "")
    )
    if program is None or driver is None:
        pytest.skip("no Chromium with its chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to sandbox the superuser
    for flag in ("--headless=new", "--disable-dev-shm-usage", "--force-color-profile=srgb", *root):
        options.add_argument(flag)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chrome.set_script_timeout(PATIENCE_S)
    yield chrome
    chrome.quit()


class Stoppable(Server):
    """A server that can hang up on its callers, as a kill does."""

    def __init__(self, session: Session, port: int) -> None:
        self.callers: list[socket.socket] = []
        super().__init__(session, port)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.callers.append(request)
        super().process_request(request, client_address)

    def hang_up(self) -> None:
        for caller in self.callers:
            with contextlib.suppress(OSError):
                caller.shutdown(socket.SHUT_RDWR)


class Site:
    """A server that can be stopped and started again on its port, and its votes."""

    def __init__(self, folder: Path, pictures: int, **options: Any) -> None:
        self.file, self.options, self.port = folder / "votes.jsonl", options, 0
        for model, colour in (("student", (250, 90, 70)), ("teacher", (40, 130, 130))):
            (folder / model).mkdir()
            for i in range(pictures):
                Image.new("RGB", (64, 64), colour).save(folder / model / f"{i}.png")
        self.folders = open_folders([folder / "student", folder / "teacher"])
        (folder / "prompts.json").write_text(json.dumps(dict(enumerate(PROMPTS))))
        self.prompts = read_prompts(folder / "prompts.json", self.folders)
        self.start()

    def start(self) -> None:
        pairs = plan(self.folders, self.prompts, seed=0, voter="anna")
        session = Session(pairs, Ledger(self.file), voter="anna", question="quality", **self.options)
        self.server = Stoppable(session, self.port)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.server.hang_up()

    @property
    def choices(self) -> list[str]:
        return [json.loads(line)["choice"] for line in self.file.read_text().splitlines()]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path, len(PROMPTS))
    yield site
    site.stop()


@pytest.fixture
def until(browser: webdriver.Chrome) -> Wait:
    """Wait until an expression of JavaScript holds, and return it."""

    def wait(expression: str) -> Any:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if value := browser.execute_script(f"return ({expression})"):
                return value
            time.sleep(0.05)
        raise AssertionError(f"waited in vain for {expression}: {browser.get_log('browser')}")

    return wait


@pytest.fixture
def page(browser: webdriver.Chrome, site: Site, until: Wait) -> Iterator[webdriver.Chrome]:
    screen(browser, 1280, 800)
    browser.get(site.server.address)
    until("ready")
    browser.get_log("browser")
    yield browser
    assert browser.get_log("browser") == []


def screen(
    browser: webdriver.Chrome, width: int, height: int, *, phone: bool = False, dark: bool = False
) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def press(page: webdriver.Chrome, key: str) -> None:
    page.switch_to.active_element.send_keys(key)


def test_keys_vote_undo_and_reach_the_end(page: webdriver.Chrome, site: Site, until: Wait):
    steps = [(Keys.ARROW_RIGHT, 1), ("1", 2), ("u", 1), ("=", 2), (Keys.ARROW_DOWN, 3), (Keys.ARROW_LEFT, 4)]
    for key, done in steps:
        press(page, key)
        until(f"ready && state.done === {done}")
    assert site.choices == ["right", "left", "undo", "equal", "equal", "left"]
    assert until("document.querySelector('#end h1').checkVisibility()")
    assert page.execute_script("return document.activeElement.tagName") == "H1"
    assert (
        page.execute_script("return document.getElementById('command').textContent")
        == f"flashbulb elo {site.file}"
    )
    assert page.execute_script("return document.getElementById('equal').checkVisibility()") is False
    press(page, "u")
    until("ready && state.done === 3 && document.getElementById('ask').checkVisibility()")


def test_what_is_shown_is_what_is_written(page: webdriver.Chrome, site: Site, until: Wait):
    """The colour on the left of the screen is that of the model that the file names as the left one."""
    colour = """(() => { const c = document.createElement('canvas').getContext('2d');
        c.drawImage(document.querySelector('#left img'), 0, 0);
        return c.getImageData(5, 5, 1, 1).data[0]; })()"""
    for done in range(1, 5):
        shown = "student" if until(f"ready && {colour}") > 128 else "teacher"
        prompt = page.execute_script("return document.getElementById('prompt').textContent")
        press(page, "1")
        until(f"ready && state.done === {done}")
        line = json.loads(site.file.read_text().splitlines()[-1])
        assert (line["left"], line["prompt"]) == (shown, prompt)
        assert 0.0 < line["seconds"] < PATIENCE_S * 4


def test_mouse_focus_and_enter(page: webdriver.Chrome, site: Site, until: Wait):
    page.find_element("id", "right").click()
    until("ready && state.done === 1")
    page.find_element("id", "undo").click()
    until("ready && state.done === 0")
    page.refresh()
    until("typeof ready !== 'undefined' && ready")
    press(page, Keys.TAB)
    assert page.execute_script("return document.activeElement.id") == "left"
    outline = "getComputedStyle(document.activeElement).outlineStyle === 'solid'"
    assert page.execute_script(f"return {outline}")
    press(page, Keys.ENTER)
    until("ready && state.done === 1")
    assert page.execute_script("return document.activeElement.id") == "left"  # focus stays for the next one
    press(page, Keys.TAB + Keys.TAB)
    assert page.execute_script("return document.activeElement.id") == "undo"
    assert site.choices == ["right", "undo", "left"]


def test_a_held_key_and_keys_of_the_browser_do_not_vote(page: webdriver.Chrome, site: Site, until: Wait):
    send = "document.dispatchEvent(new KeyboardEvent('keydown', {key: '1', cancelable: true, %s: true}))"
    for held in ("repeat", "ctrlKey", "altKey", "metaKey"):
        page.execute_script(send % held)
    press(page, "2")  # would be passed over while another vote is under way
    until("ready && state.done === 1")
    assert site.choices == ["right"]
    enter = "new KeyboardEvent('keydown', {key: 'Enter', repeat: true, cancelable: true, bubbles: true})"
    assert page.execute_script(f"return document.getElementById('left').dispatchEvent({enter})") is False
    twice = f"{send % 'bubbles'}; {send % 'bubbles'}"  # the second falls into the answer to the first
    page.execute_script(twice)
    until("ready && state.done > 1")
    press(page, "2")
    until("ready && state.done > 2")
    assert site.choices == ["right", "left", "right"]


def test_help_opens_and_no_key_votes_behind_it(page: webdriver.Chrome, site: Site, until: Wait):
    page.find_element("id", "help").click()
    until("document.getElementById('keys').open")
    press(page, "1")
    press(page, "u")
    press(page, Keys.ESCAPE)
    until("!document.getElementById('keys').open")
    assert page.execute_script("return document.activeElement.id") == "help"
    press(page, "?")
    until("document.getElementById('keys').open")
    press(page, "?")
    until("!document.getElementById('keys').open")
    assert site.choices == []


def test_prompts_are_text_and_pictures_have_alternatives(page: webdriver.Chrome, until: Wait):
    seen = set()
    for done in range(1, 5):
        until("ready")
        seen.add(page.execute_script("return document.getElementById('prompt').textContent"))
        alternatives = [image.get_attribute("alt") for image in page.find_elements("css selector", "img")]
        assert len(alternatives) == 2 and all(
            text.startswith(f"Picture {i}") for i, text in enumerate(alternatives, 1)
        )
        press(page, "2")
        until(f"ready && state.done === {done}")
    assert seen == set(PROMPTS)
    assert "broken" not in page.title


def test_nothing_is_asked_of_anybody_else(page: webdriver.Chrome, site: Site, until: Wait):
    press(page, "1")
    until("ready && state.done === 1")
    asked = page.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert len(asked) >= 6 and all(name.startswith(site.server.address) for name in asked)
    blocked = page.execute_async_script(
        "const say = arguments[0]; fetch('http://127.0.0.2:1/').then(() => say(''), (e) => say(e.name))"
    )
    assert blocked == "TypeError"
    assert any("Content Security Policy" in entry["message"] for entry in page.get_log("browser"))


def test_a_lost_server_loses_no_vote(page: webdriver.Chrome, site: Site, until: Wait):
    press(page, "1")
    until("ready && state.done === 1")
    site.stop()
    press(page, "2")
    until("!document.getElementById('trouble').hidden")
    assert "votes so far are saved" in page.find_element("id", "trouble").text
    site.start()
    page.find_element("id", "reload").click()
    until("typeof ready !== 'undefined' && ready && state.done === 1")
    press(page, "2")
    until("ready && state.done === 2")
    assert site.choices == ["left", "right"]
    page.get_log("browser")  # the refused connection is in it


def test_a_server_started_anew_is_noticed(page: webdriver.Chrome, site: Site, until: Wait):
    site.stop()
    site.start()
    press(page, "1")
    until("!document.getElementById('trouble').hidden")
    assert "Reload to go on" in page.find_element("id", "trouble").text
    assert site.choices == []
    page.get_log("browser")  # the refusal is in it


@pytest.mark.parametrize(
    ("width", "height", "phone"), [(1280, 800, False), (390, 844, True), (360, 640, True), (844, 390, True)]
)
def test_everything_fits_the_screen(
    page: webdriver.Chrome, until: Wait, width: int, height: int, phone: bool
):
    screen(page, width, height, phone=phone)
    page.refresh()
    boxes = """['left', 'right', 'undo', 'equal', 'help'].map((id) => {
        const r = document.getElementById(id).getBoundingClientRect();
        return [r.left, r.top, r.right, r.bottom, r.width, r.height]; })"""
    images = "[...document.images].map((i) => [i.clientWidth, i.clientHeight])"
    for done in range(1, 5):  # one of the prompts is six hundred letters long
        until("typeof ready !== 'undefined' && ready")
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        for left, top, right, bottom, wide, high in page.execute_script(f"return {boxes}"):
            assert left >= 0 and top >= 0 and right <= width and bottom <= height
            assert wide >= 44 and high >= 44
        (w1, h1), (w2, h2) = page.execute_script(f"return {images}")
        assert w1 == h1 == w2 == h2 and w1 >= 100
        press(page, "2")
        until(f"ready && state.done === {done}")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out(page: webdriver.Chrome, until: Wait, dark: bool):
    """WCAG 2 AA: 4.5 for text, 3 for the edges of buttons and the focus."""
    screen(page, 1280, 800, dark=dark)
    page.refresh()
    until("typeof ready !== 'undefined' && ready")
    names = ("page", "card", "text", "soft", "line", "accent", "warn")
    script = """const style = getComputedStyle(document.documentElement);
        return arguments[0].map((name) => style.getPropertyValue(name));"""
    values = page.execute_script(script, [f"--{name}" for name in names])
    colours = dict(zip(names, values, strict=True))
    assert (luminance(colours["page"]) < 0.1) is dark
    for back in ("page", "card"):
        for front, least in (("text", 4.5), ("soft", 4.5), ("warn", 3), ("line", 3), ("accent", 3)):
            assert contrast(colours[front], colours[back]) >= least, (front, back)


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2 of a colour written as #rrggbb."""
    parts = [int(colour.strip()[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_without_draws_there_is_no_way_to_one(browser: webdriver.Chrome, tmp_path: Path, until: Wait):
    site = Site(tmp_path, 2, equal=False)
    try:
        screen(browser, 1280, 800)
        browser.get(site.server.address)
        until("typeof ready !== 'undefined' && ready")
        assert not browser.find_element("id", "equal").is_displayed()
        press(browser, "=")
        press(browser, "2")
        until("ready && state.done === 1")
        assert site.choices == ["right"]
    finally:
        site.stop()
