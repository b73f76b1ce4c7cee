"""The report page in a real browser: however many devices it tells of, only its tables scroll sideways."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.runtimes.test_merge import device, latency
from tests.unit.runtimes.test_tables import joined, of, page, parity

from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.merge import merge

pytest.importorskip("selenium", reason="selenium is not installed: pip install 'flashbulb[test]'")
from selenium import webdriver

BROWSERS = ("chromium", "google-chrome", "chromium-browser", "google-chrome-stable")
OVERFLOW = """
return [...document.querySelectorAll("main > section, header")].every(e => e.scrollWidth <= e.clientWidth + 1)
    && document.documentElement.scrollWidth <= innerWidth && innerWidth == arguments[0];
"""


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
    root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to sandbox the superuser
    for flag in ("--headless=new", "--disable-dev-shm-usage", *root):
        options.add_argument(flag)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_of_four_devices_fits_its_window(
    browser: webdriver.Chrome, bundle: Bundle, tmp_path: Path, width: int
) -> None:
    engines = [f"{name}@SERIAL" for name in ("ort", "executorch", "onnx", "optimum")]
    fourth = of(
        bundle,
        device("A phone with a name of some length", serial="SERIAL"),
        latency=tuple(latency(e, target=t) for e in engines for t in ("generator", "unet")),
        parity=tuple(parity(engine=e, quantity=q) for e in engines for q in ("image", "unet")),
    )
    file = tmp_path / "report.html"
    file.write_text(page(bundle, merge([joined(bundle), fourth])))
    shape = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
    browser.get(file.as_uri())
    assert browser.execute_script(OVERFLOW, width)
    assert browser.execute_script("return document.querySelectorAll('section.latency').length") == 3
