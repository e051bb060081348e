"""The page in one file: what its script computes is what Python does, in a browser, offline."""

import random

import pytest

from page.assistants import Request
from page.offered import find_offer
from page.server import Config, page
from page.test_browser import Browser
from support.test_helpers import chromium

pytest.importorskip("selenium.webdriver", reason="pip install selenium")


@pytest.fixture(scope="module")
def offer():
    return find_offer(Config())


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """The static page, opened from its file by a browser without a network."""
    folder = tmp_path_factory.mktemp("static")
    page(Config(static=str(folder / "page.html")))
    assert (folder / "page.html").stat().st_size < 4_000_000
    with chromium(folder / "user") as driver:
        driver.execute_cdp_cmd("Network.enable", {})
        driver.execute_cdp_cmd("Network.emulateNetworkConditions", {
            "offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0})
        driver.set_script_timeout(60)
        driver.get((folder / "page.html").as_uri())
        yield Browser(driver)


def asked(browser, path, bodies):
    """What the page's script answers."""
    return browser.driver.execute_async_script(
        "const done = arguments[2], found = [];"
        "(async () => { for (const body of arguments[1]) found.push(await api(arguments[0], body));"
        " done(found); })().catch(error => done(String(error)));", path, bodies)


def test_costs_are_those_of_python(browser, offer):
    texts = [text for _, text, _ in offer.texts] + [
        episode["turns"][0]["typed"] + "".join(turn["suggestion"] for turn in episode["turns"])
        for rows in list(offer.games["rows"].values())[1:3] for episode in rows]
    texts += ["s = 'ä€😀'\n\n    x\t= 1.5\r\n", "x" * 200]
    found = asked(browser, "/api/read", [{"client": "a", "text": text} for text in texts])
    assert len(found) > 20 and not isinstance(found, str), found
    for text, answer in zip(texts, found):
        tokens, of = offer.models.read("a", text.replace("\r\n", "\n"))
        assert answer["of"] == of and len(answer["tokens"]) == len(tokens)
        for (token, bits, likeliest), each in zip(tokens, answer["tokens"]):
            assert each["text"] == token and each["bits"] == pytest.approx(bits, abs=1e-3)
            assert [p for _, p in each["likeliest"]] == pytest.approx(
                [p for _, p in likeliest], abs=1e-3)


def test_suggestions_are_those_of_python(browser, offer):
    """At random carets: inside words, at indents, at the ends of lines."""
    rng, cases = random.Random(0), []
    for _ in range(50):
        _, text, _ = rng.choice(offer.texts)
        cases.append((rng.choice(list(offer.models.choices)), text[:rng.randint(1, len(text))]))
    found = asked(browser, "/api/suggest", [
        {"client": "a", "assistant": name, "text": text, "eta": 0.32} for name, text in cases])
    for (name, text), answer in zip(cases, found):
        eta = {"eta": 0.32} if offer.models.choices[name].needs_eta else {}
        right = offer.models.suggest(name, "a", Request(text, **eta))
        assert answer["suggestion"] == right.text, (name, text[-40:])
        assert answer["bits"] == pytest.approx(right.bits, abs=1e-2)
    assert sum(bool(answer["suggestion"]) for answer in found) > 20


def test_the_three_views_work_from_the_file(browser):
    browser.wait(lambda: browser.all("#empower span"))
    assert "What she was asked" in browser.text("#goal")
    browser.click("[data-view=write]")
    browser.see("#editor textarea").send_keys("items = list(")
    browser.wait(lambda: browser.text("#editor .ghost").startswith("map(int"))
    browser.click("[data-view=watch]")
    browser.see("#screens figcaption", "Empower (0.32)")
    assert not browser.errors()
