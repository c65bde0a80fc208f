"""The demo's page: it needs nothing else, a browser shows it without complaint, on a phone too, and it answers."""

import io
import json
import re
from html.parser import HTMLParser

import pytest
from matplotlib.image import imread

VOID_TAGS = ("meta", "link", "img", "br", "input")
NUM_CHARTS = 7
LEFT, HOME, DELETE = "\ue012", "\ue011", "\ue017"  # keys, by their numbers in WebDriver


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
        self.num_charts += tag == "svg" and given.get("class") == "chart"
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
    assert page.num_charts == NUM_CHARTS
    assert page.sources
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    text = re.sub(r"(?s)<script.*?</script>", "", text)
    assert not re.search(r"@import|url\((?!data:|#)", text)
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(set(ids)) == len(ids)
    assert "prefers-color-scheme: dark" in text
    assert "None" not in text
    assert "nan" not in re.sub(r"data:[^\"]*", "", text)


LAYOUT = """
const boxes = (chart) => [...chart.querySelectorAll("text")].map(one => one.getBoundingClientRect());
const isOutside = (chart) => {
  const edge = chart.getBoundingClientRect();
  return boxes(chart).some(box => box.left < edge.left - 1 || box.right > edge.right + 1
    || box.top < edge.top - 1 || box.bottom > edge.bottom + 1);
};
const root = document.documentElement, charts = [...document.querySelectorAll("svg.chart")];
return {
  overflow: root.scrollWidth - root.clientWidth,
  missing: [...document.images].filter(one => !one.complete || one.naturalWidth === 0).length,
  charts: charts.map(chart => chart.getBoundingClientRect().height),
  clipped: charts.filter(isOutside).map(chart => chart.getAttribute("aria-label")),
  ground: getComputedStyle(document.body).backgroundColor,
};"""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "theme"), [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")])
def test_a_browser_shows_it_without_complaint(demo_folder, browser, width, theme):
    session = browser((demo_folder / "report.html").as_uri(), width, theme)
    seen = session.execute_script(LAYOUT)
    assert session.get_log("browser") == []
    assert seen["overflow"] <= 0
    assert seen["clipped"] == []
    assert seen["missing"] == 0
    assert len(seen["charts"]) == NUM_CHARTS
    assert min(seen["charts"]) > 100
    is_dark = max(int(value) for value in re.findall(r"\d+", seen["ground"])) < 128
    assert is_dark == (theme == "dark")
    pixels = imread(io.BytesIO(session.get_screenshot_as_png()))
    assert pixels[..., :3].std() > 0.02


@pytest.mark.slow
def test_it_asks_nothing_of_the_network(demo_folder, browser):
    address = (demo_folder / "report.html").as_uri()
    events = [json.loads(entry["message"])["message"] for entry in browser(address).get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {address}


def text(session, name):
    return session.find_element("css selector", f'[data-live="{name}"]').text


@pytest.mark.slow
def test_the_slider_asks_and_the_page_measures(demo_folder, browser):
    session = browser((demo_folder / "report.html").as_uri())
    asked, slider = text(session, "asked"), session.find_element("id", "live-slider")
    slider.send_keys(HOME)
    assert float(text(session, "asked")) < float(asked)
    assert text(session, "asked") in slider.get_attribute("aria-valuetext")
    spoken = session.find_element("css selector", '[data-live="spoken"]').get_attribute("textContent")
    assert f"has {text(session, 'achieved')}" in spoken
    assert len(session.find_elements("css selector", "#live circle")) > 1
    assert not session.find_elements("css selector", "#live circle.past")

    shown = float(text(session, "achieved"))
    recomputed = session.execute_script(
        """
      const file = document.getElementById("live-file").textContent.trim();
      const generator = new Generator(readSafetensors(Uint8Array.from(atob(file), (c) => c.charCodeAt(0))));
      const { start, noise } = generator.draw(1);
      return generator.evaluate(generator.generate(start, arguments[0], noise)).loss;""",
        float(text(session, "asked")),
    )
    assert shown == pytest.approx(recomputed, abs=0.01)

    picture = "return document.querySelector('[data-live=start] canvas').toDataURL()"
    before = session.execute_script(picture)
    session.find_element("css selector", '[data-live="new"]').click()
    assert text(session, "seed") == "2"
    assert session.execute_script(picture) != before
    assert session.find_elements("css selector", "#live circle.past")


@pytest.mark.slow
def test_points_that_are_dragged_move_the_border(demo_folder, browser):
    webdriver = pytest.importorskip("selenium.webdriver")
    session = browser((demo_folder / "report.html").as_uri())

    def border():
        script = "return document.querySelector('[data-border=field]').toDataURL()"
        return session.execute_async_script(f"requestAnimationFrame(() => arguments[0]((() => {{ {script} }})()))")

    def points():
        return session.find_elements("css selector", "#border circle")

    board = session.find_element("css selector", "[data-border=points]")
    session.execute_script("arguments[0].scrollIntoView({block: 'center'})", board)
    before = border()
    webdriver.ActionChains(session).drag_and_drop_by_offset(points()[0], 120, 90).perform()
    dragged = border()
    points()[1].send_keys(LEFT * 5)
    moved = border()
    assert len({before, dragged, moved}) == 3
    count = len(points())
    points()[2].send_keys(DELETE)
    session.find_element("css selector", '#border [value="orange"]').click()
    webdriver.ActionChains(session).move_to_element_with_offset(board, 0, -150).click().perform()
    assert len(points()) == count
    assert points()[-1].get_attribute("class") == "orange"
    assert session.find_element("css selector", "[data-border=right]").text.endswith(f"of {count}")
    assert session.get_log("browser") == []


@pytest.mark.slow
def test_curves_give_their_numbers(demo_folder, browser):
    session = browser((demo_folder / "report.html").as_uri())
    curves = json.loads((demo_folder / "stages" / "optimizer.json").read_text())["result"]["data"]
    chart = session.find_element("css selector", 'svg[data-name="optimizers"]')
    session.execute_script("arguments[0].focus()", chart)
    chart.send_keys(HOME)
    shown = [float(cell.text) for cell in session.find_elements("css selector", ".numbers b")]
    first = [mean[0] for _, mean, _ in curves["curves"].values()]
    assert shown == pytest.approx([round(curves["steps"][0]), *first], rel=1e-2)
    middle = chart.find_element("css selector", "circle.cursor").rect
    webdriver = pytest.importorskip("selenium.webdriver")
    webdriver.ActionChains(session).move_to_element(chart).perform()
    assert chart.find_element("css selector", "circle.cursor").rect != middle
