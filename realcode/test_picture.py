"""The picture of `show --svg` as Chromium draws it."""

import base64
from xml.etree import ElementTree

import numpy as np
import pytest

from realcode.show import svg
from support.test_helpers import ROOT, chromium

README = (ROOT / "figures" / "program.svg").read_text(encoding="utf-8")
TOKENS = ["def", " f", "(", "a", "):", "\n    ", "if", " a", " <", " b", ":", "\n\t\t", "return",
          "  ", "a", "\n"]
OWN = svg(TOKENS, [k % 9 for k in range(len(TOKENS))], {0: "┃", 9: "▸"}, "the caption of a picture")
INK = """
const picture = new Image(), done = arguments[1];
picture.onload = () => {
    const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
    canvas.width = picture.width; canvas.height = picture.height;
    context.drawImage(picture, 0, 0);
    const cells = [];
    for (let y = 6; y + 18 <= canvas.height; y += 18) {
        const row = [];
        for (let x = 8; x + 8 <= canvas.width; x += 8) {
            const pixels = context.getImageData(x + 1, y + 2, 7, 15).data;
            let dark = false;
            for (let k = 0; k < pixels.length; k += 4) dark ||= pixels[k] + pixels[k + 1] < 200;
            row.push(dark);
        }
        cells.push(row);
    }
    done(cells);
};
picture.src = arguments[0];
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("user")) as driver:
        yield driver


def texts_of(picture):
    """[(column, row, text)] of a picture."""
    return [(int(each.attrib["x"]) // 8, (int(each.attrib["y"]) - 13) // 18, each.text)
            for each in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("picture", [README, OWN], ids=["README", "own"])
def test_each_character_is_drawn_where_it_belongs(driver, tmp_path, picture):
    """Opened directly: browsers may drop spaces, and then stretch the rest over the same width."""
    path = tmp_path / "picture.svg"
    path.write_text(picture, encoding="utf-8")
    driver.get(path.as_uri())
    found = driver.execute_script("""return [...document.querySelectorAll("text")].map(text => [
        ...Array(text.getNumberOfChars()).keys()].map(k => text.getStartPositionOfChar(k).x))""")
    wanted = texts_of(picture)
    assert len(found) == len(wanted) > 10
    for places, (column, _, text) in zip(found, wanted):
        assert places == pytest.approx([8 * (column + k) for k in range(len(text))], abs=1), text
    right = driver.execute_script("""const box = document.documentElement.viewBox.baseVal;
        return [...document.querySelectorAll("text, rect + rect")].map(
            shape => box.x + box.width - shape.getBBox().x - shape.getBBox().width)""")
    assert min(right) >= 0
    beyond = driver.execute_script("""const ends = shape => {
            const {x, width} = shape.getBBox();
            return [x, x + width];
        };
        return [...document.querySelectorAll("rect[height='18']:not([width='2'])")].flatMap(box => {
            const [x, y] = [box.getAttribute("x"), +box.getAttribute("y") + 13];
            const text = document.querySelector(`text[x="${x}"][y="${y}"]`);
            return text ? [ends(text).map((end, k) => end - ends(box)[k])] : [];
        })""")
    assert len(beyond) > 5 and np.abs(beyond).max() <= 1  # each shade is as wide as its token


@pytest.mark.parametrize("picture", [README, OWN], ids=["README", "own"])
def test_as_an_image_there_is_ink_where_a_character_is_and_nowhere_else(driver, picture):
    """As a site shows it, in <img>: the cells of 8 x 18 points that have dark pixels."""
    driver.get("data:text/html,<title>picture</title>")
    source = "data:image/svg+xml;base64," + base64.b64encode(picture.encode()).decode()
    ink = driver.execute_async_script(INK, source)
    wanted = {(row, column + k) for column, row, text in texts_of(picture)
              for k, letter in enumerate(text) if not letter.isspace()}
    found = {(row, column) for row, cells in enumerate(ink) for column, dark in enumerate(cells)
             if dark}
    assert len(wanted) > 20 and wanted - found == set() and len(found - wanted) <= len(wanted) / 20
