"""The demo's page: it needs nothing else, and a browser shows it without complaint, on a phone too."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from matplotlib.image import imread

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
VOID_TAGS = ("meta", "link", "img", "br")


class Page(HTMLParser):
    """What a page loads, how many charts it has, and whether its tags match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.num_charts = 0
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.sources += [given[name] for name in ("src", "href", "xlink:href") if name in given]
        self.num_charts += tag == "svg"
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(demo_folder):
    text = (demo_folder / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.num_charts == 5
    assert page.sources
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert "<script" not in text
    assert not re.search(r"@import|url\((?!data:|#)", text)
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(set(ids)) == len(ids)
    assert "prefers-color-scheme: dark" in text
    assert "None" not in text
    assert "nan" not in re.sub(r"data:[^\"]*", "", text)


PROBE = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="page" src="report.html" style="border:0;display:block;width:{width}px;height:{height}px"></iframe>
<script>
addEventListener("load", () => {{
  const inner = document.getElementById("page").contentDocument, root = inner.documentElement;
  const boxes = (chart, what) => [...chart.querySelectorAll(what)].map(one => one.getBoundingClientRect());
  const isOutside = (chart) => {{
    const edge = chart.getBoundingClientRect();
    return boxes(chart, "text").some(box => box.left < edge.left - 1 || box.right > edge.right + 1
      || box.top < edge.top - 1 || box.bottom > edge.bottom + 1);
  }};
  const charts = [...inner.querySelectorAll("svg")];
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify({{
    overflow: root.scrollWidth - root.clientWidth,
    height: root.scrollHeight,
    numImages: inner.images.length,
    missing: [...inner.images].filter(one => !one.complete || one.naturalWidth === 0).length,
    charts: charts.map(chart => chart.getBoundingClientRect().height),
    clipped: charts.filter(isOutside).map(chart => chart.getAttribute("aria-label")),
    ground: getComputedStyle(inner.body).backgroundColor,
  }});
  document.body.append(result);
}});
</script>"""


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"needs a browser: one of {', '.join(BROWSERS)} (apt-get install chromium)")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--hide-scrollbars")
    return [found, *flags, "--enable-logging=stderr", "--virtual-time-budget=10000"]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "theme"), [(380, "light"), (380, "dark"), (1200, "light"), (1200, "dark")])
def test_a_browser_shows_it_without_complaint(demo_folder, browser, tmp_path, width, theme):
    shutil.copy(demo_folder / "report.html", tmp_path)
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(width=width, height=1200))
    command = [*browser, f"--blink-settings=preferredColorScheme={int(theme == 'light')}"]
    done = subprocess.run([*command, "--dump-dom", f"file://{probe}"], capture_output=True, text=True, check=True)
    assert "CONSOLE" not in done.stderr
    seen = json.loads(re.search(r'<pre id="result">(.*?)</pre>', done.stdout).group(1))
    assert seen["overflow"] <= 0
    assert seen["clipped"] == []
    assert seen["numImages"] > 0 == seen["missing"]
    assert len(seen["charts"]) == 5
    assert min(seen["charts"]) > 100
    is_dark = max(int(value) for value in re.findall(r"\d+", seen["ground"])) < 128
    assert is_dark == (theme == "dark")

    picture = tmp_path / f"{theme}-{width}.png"
    probe.write_text(PROBE.format(width=width, height=seen["height"]))
    size = [f"--window-size={max(width, 500)},{seen['height']}", f"--screenshot={picture}"]
    subprocess.run([*command, *size, f"file://{probe}"], capture_output=True, check=True)
    pixels = imread(picture)
    assert pixels.shape[0] > 1000
    assert pixels[..., :3].std() > 0.02
