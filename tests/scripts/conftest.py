"""A demo at tiny sizes, run once for all tests that look at it, and a browser to look with."""

import shutil

import pytest

from scripts import cli, demo
from scripts.bench.all import TINY_DEMO

TINY = ["device=cpu", *TINY_DEMO.split()]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER_FLAGS = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "disable-dev-shm-usage", "hide-scrollbars",
)  # fmt: skip


def compose(folder, *overrides):
    return cli.compose("demo", [f"out='{folder}'", *TINY, *overrides])


@pytest.fixture(scope="session")
def tiny_demo():
    """Overrides that make a demo of seconds."""
    return TINY


@pytest.fixture(scope="session")
def compose_demo():
    """Function from a folder and further overrides to the config of a tiny demo."""
    return compose


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory):
    """A finished demo, in a folder whose name has spaces and signs."""
    folder = tmp_path_factory.mktemp("demos") / "my demo, (first) = 1"
    demo.main(compose(folder))
    return folder


@pytest.fixture(scope="session")
def browser_session(tmp_path_factory):
    """Headless Chromium, which writes downloads into the folder `browser_session.downloads`."""
    selenium = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    found, driver = next(filter(None, map(shutil.which, BROWSERS)), None), shutil.which("chromedriver")
    if found is None or driver is None:
        pytest.skip("needs a browser and its driver: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = found
    for flag in (*BROWSER_FLAGS, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = selenium.Chrome(options, selenium.ChromeService(driver))
    session.downloads = tmp_path_factory.mktemp("downloads")
    session.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(session.downloads)}
    )
    yield session
    session.quit()


@pytest.fixture
def browser(browser_session):
    """Function that shows an address in a window of some width and a theme, and returns the browser's session."""

    def show(address, width=1280, theme="light"):
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        browser_session.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        browser_session.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
        for kind in ("browser", "performance"):
            browser_session.get_log(kind)  # of the page before
        browser_session.get(address)
        return browser_session

    return show
