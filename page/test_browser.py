"""The page in a real browser, Chromium: what a reader, a writer and a participant does and sees."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from empower import empower_lengths
from support.report import left_to_human
from page.study import analyse, read_study
from support.test_helpers import ROOT, chromium

pytest.importorskip("selenium.webdriver", reason="pip install selenium")

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait


class Served:
    """`empower.py page` in a process of its own."""

    def __init__(self, *arguments, port=0):
        self.arguments = [sys.executable, ROOT / "empower.py", "page", "--no-browser", *arguments]
        self.start(port)

    def start(self, port):
        self.process = subprocess.Popen([*self.arguments, "--port", str(port)], text=True,
                                        stdout=subprocess.PIPE)
        self.address = self.process.stdout.readline().strip()

    def restart_after_kill(self):
        port = self.address.split(":")[-1].strip("/")
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.start(port)

    def stop(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def served():
    server = Served()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("user")) as driver:
        yield Browser(driver)


class Browser:
    """What a person does with a page."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, address, view=""):
        """Opens a view; the editor of Write begins as for a new visitor."""
        self.driver.get(address + "#read")
        self.script("localStorage.removeItem('empower program')")
        self.driver.get("about:blank")
        self.driver.get(address + view)

    def find(self, css):
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def wait(self, condition, seconds=30):
        WebDriverWait(self.driver, seconds, 0.05).until(lambda _: condition())

    def see(self, css, text=""):
        """Waits until an element with this text is visible, and returns it."""
        try:
            self.wait(lambda: any(e.is_displayed() and text in e.text for e in self.all(css)))
        except Exception as error:
            shown = self.find("body").text[:500]
            raise AssertionError(f"no {css} {text!r}, but {shown!r}; {self.errors()}") from error
        return next(e for e in self.all(css) if e.is_displayed() and text in e.text)

    def click(self, css):
        self.see(css).click()

    def text(self, css):
        return self.driver.execute_script(
            "return document.querySelector(arguments[0]).textContent", css)

    def script(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def errors(self):
        return [entry["message"] for entry in self.driver.get_log("browser")
                if entry["level"] == "SEVERE"]


# ------------------------------------------------------------------- Read


def test_the_pages_algorithm_1_is_the_one_in_python(browser, served):
    browser.open(served.address)
    rng = random.Random(0)
    cases = [([rng.choice([0, 0.25, 0.5, rng.random() * 4]) for _ in range(rng.randint(0, 40))],
              rng.choice([0, 0.25, 0.32, 1, 8, rng.random()])) for _ in range(300)]
    cases.append(([3, 0, 0.2, 0.2, 2], 0.32))
    found = browser.script("return arguments[0].map(([nll, eta]) => leftToHuman(nll, eta))", cases)
    assert found == [left_to_human(empower_lengths(nll, eta)) for nll, eta in cases]
    assert found[-1] == [0, 3, 4]


def test_reading_a_program(browser, served):
    browser.open(served.address)
    browser.wait(lambda: browser.all("#empower span"))
    tokens = browser.script("return reader.tokens.map(token => [token.text, token.bits])")
    eta = browser.find("#eta")

    def bars():
        spans = browser.all("#empower span")
        return [k for k, span in enumerate(spans) if "human" in span.get_attribute("class")]

    assert bars() == left_to_human(empower_lengths([bits for _, bits in tokens], 0.32))
    browser.script("arguments[0].value = placeOf(4); arguments[0].dispatchEvent(new Event('input'))", eta)
    assert bars() == left_to_human(empower_lengths([bits for _, bits in tokens], 4))
    assert browser.text("#eta-value") == "4 bits"
    human, costs = len(bars()), [bits for _, bits in tokens]
    spent, sum_of = browser.script("return [...document.querySelectorAll('#empower span')]"
                                   ".map(span => Number(span.style.getPropertyValue('--spent')))"), 0.0
    typed = set(bars())
    for k, cost in enumerate(costs):  # the budget: Algorithm 1's running sum, anew at each bar
        sum_of = 0.0 if k in typed else sum_of + cost
        assert spent[k] == pytest.approx(sum_of / 4, abs=1e-3) and spent[k] <= 1
    said = browser.text("#empower-shares")
    assert f"By the human: {round(100 * human / len(tokens))}% ({human} token" in said
    assert f"of which {sum(bits > 1 and k not in typed for k, (_, bits) in enumerate(tokens))} " in said
    dearest = max(range(len(tokens)), key=lambda k: tokens[k][1])
    ActionChains(browser.driver).move_to_element(
        browser.all("#empower span")[dearest]).perform()
    browser.see("#token", f"costs {tokens[dearest][1]:.2f} bits")
    assert browser.text("#token").count("%") == 6  # its own, and those of five others
    sft = [k for k, span in enumerate(browser.all("#sft span"))
           if "human" in span.get_attribute("class")]
    assert sft == list(range(10, len(tokens), 11))
    picture = browser.find("#empower")

    def at():
        return browser.script("return [...document.querySelectorAll('#empower span')]"
                              ".findIndex(span => span.classList.contains('at'))")
    assert at() == dearest
    for key, right in ((Keys.ARROW_LEFT, dearest - 1), (Keys.END, len(tokens) - 1), (Keys.HOME, 0),
                       (Keys.ARROW_RIGHT, 1)):
        picture.send_keys(key)
        assert at() == right
    line = sum("\n" in text for text, _ in tokens[:at() + 1])
    picture.send_keys(Keys.ARROW_DOWN)
    assert sum("\n" in text for text, _ in tokens[:at() + 1]) == line + 1
    picture.send_keys(Keys.ARROW_UP)
    assert at() <= 2


def test_a_token_is_pinned_and_its_box_stays_in_sight(browser, served):
    browser.open(served.address)
    browser.wait(lambda: browser.all("#empower span"))
    spans = browser.all("#empower span")
    spans[4].click()
    browser.see("#token", "Pinned")
    said = browser.text("#token code")
    ActionChains(browser.driver).move_to_element(spans[9]).perform()
    assert browser.text("#token code") == said
    spans[4].click()
    browser.see("#token", "Point at a token")
    browser.script("document.getElementById('source').value = 'x = 1\\n'.repeat(300);"
                   "document.getElementById('source').dispatchEvent(new Event('input'))")
    browser.wait(lambda: len(browser.all("#empower span")) > 900)
    browser.find("#empower").send_keys(Keys.END)
    boxes = browser.script("return ['#token', '#empower .at'].map(css => document.querySelector(css)"
                           ".getBoundingClientRect()).map(box => [box.top, box.bottom])")
    height = browser.script("return innerHeight")
    assert all(-1 <= top and bottom <= height + 1 for top, bottom in boxes), boxes


def test_the_address_keeps_the_program_and_eta(browser, served):
    browser.open(served.address)
    browser.wait(lambda: browser.all("#empower span"))
    assert browser.find("#goal").is_displayed() and "Read t, then t lines" in browser.text("#goal")
    Select(browser.find("#texts")).select_by_index(2)
    browser.script("document.getElementById('eta').value = placeOf(1.3);"
                   "document.getElementById('eta').dispatchEvent(new Event('input'))")
    browser.wait(lambda: "vowel" in browser.text("#goal"))
    address = browser.driver.current_url
    assert address.endswith("#read&eta=1.3&program=2")
    browser.driver.get("about:blank")
    browser.driver.get(address)
    browser.wait(lambda: browser.all("#empower span"))
    assert browser.text("#eta-value") == "1.3 bits" and "vowel" in browser.text("#goal")
    assert browser.script("return [0, 1, 31, 53, 59].map(etaAt)") == [0, 0.01, 0.32, 4, 8]
    browser.script("document.getElementById('source').value = 'y = 2\\n';"
                   "document.getElementById('source').dispatchEvent(new Event('input'))")
    browser.wait(lambda: browser.driver.current_url.endswith("&text=y+%3D+2%0A"))
    assert not browser.find("#goal").is_displayed() and "only generated" in browser.text("#reader")


def test_what_a_person_pastes_is_text_and_not_html(browser, served):
    browser.open(served.address)
    browser.wait(lambda: browser.all("#empower span"))
    browser.click("#edit")
    evil = "<img src=x onerror=\"document.title='broken'\">\n"
    browser.find("#source").send_keys(Keys.CONTROL, "a", Keys.NULL, evil)
    browser.wait(lambda: browser.text("#empower").strip() == evil.strip())
    assert not browser.all("#empower img") and "broken" not in browser.driver.title
    browser.find("#source").send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.DELETE)
    browser.see("#token", "Give a program")
    browser.find("#source").send_keys("x = 1\n")
    browser.click("#edit")
    browser.see("#empower", "x = 1")
    assert not browser.errors()


# ------------------------------------------------------------------- Write


def test_what_changed_in_an_editor_is_found(browser, served):
    """From the text before, the text after and the caret: applied, the change gives the text."""
    browser.open(served.address)
    rng, cases = random.Random(1), []
    for _ in range(500):
        before = "".join(rng.choice("ab\n😀🨀") for _ in range(rng.randint(0, 8)))
        start = rng.randint(0, len(before))
        end = rng.randint(start, len(before))
        new = "".join(rng.choice("ab😀🨀") for _ in range(rng.randint(0, 3)))
        after = before[:start] + new + before[end:]
        caret = rng.choice([start + len(new), rng.randint(0, len(after))])  # the second: undo
        cases.append([before, after, len(after[:caret].encode("utf-16-le")) // 2])
    applied = browser.script("""return arguments[0].map(([before, after, caret]) => {
        const [start, end, inserted] = difference(before, after, caret);
        return before.slice(0, start) + inserted + before.slice(end); })""", cases)
    assert applied == [after for _, after, _ in cases]
    halves = browser.script("""return arguments[0].map(([before, after, caret]) =>
        difference(before, after, caret)[2].isWellFormed())""", cases)
    assert all(halves)


def test_grey_text_tab_and_escape(browser, served):
    browser.open(served.address, "#write")
    area = browser.see("#editor textarea")
    area.send_keys("items = list(")
    browser.wait(lambda: browser.text("#editor .ghost"))
    ghost = browser.text("#editor .ghost")
    assert ghost.startswith("map(int")
    area.send_keys(Keys.ESCAPE)
    assert browser.text("#editor .ghost") == ""
    area.send_keys("m")
    browser.wait(lambda: browser.text("#editor .ghost").startswith("ap(int"))
    rest = browser.text("#editor .ghost")
    area.send_keys(Keys.TAB)
    assert area.get_attribute("value").endswith("items = list(m" + rest)
    browser.see("#latency", "ms")
    area.send_keys(Keys.CONTROL, "z")  # the browser's undo takes an accepted suggestion back
    assert area.get_attribute("value").endswith("items = list(m")
    assert not browser.errors()


def test_tab_indents_lines_and_still_accepts_after_escape(browser, served):
    browser.open(served.address, "#write")
    area = browser.see("#editor textarea")
    area.send_keys("items = list(", Keys.ESCAPE, Keys.ESCAPE, Keys.ARROW_LEFT)
    time.sleep(0.3)
    area.send_keys(Keys.ARROW_RIGHT)
    browser.wait(lambda: browser.text("#editor .ghost").startswith("map(int"))
    area.send_keys(Keys.SHIFT, Keys.ARROW_LEFT, Keys.NULL)  # a selection: nothing is grey
    browser.wait(lambda: browser.text("#editor .ghost") == "")
    area.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.TAB)
    indented = area.get_attribute("value")
    assert indented.startswith("    n = int(input())\n    items = list(")
    browser.driver.refresh()
    area = browser.see("#editor textarea")
    assert area.get_attribute("value") == indented
    area.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.SHIFT, Keys.TAB, Keys.NULL)
    assert area.get_attribute("value").startswith("n = int(input())\nitems = list(")
    browser.click("#reset")
    assert area.get_attribute("value") == "n = int(input())\n"


def test_when_the_server_is_away_the_page_says_so_and_goes_on_when_it_is_back(browser):
    server = Served()
    try:
        browser.open(server.address, "#write")
        area = browser.see("#editor textarea")
        browser.see("#latency", "ms")
        port = server.address.split(":")[-1].strip("/")
        server.stop()
        area.send_keys("items = list(")
        browser.see("#message", "The server does not answer")
        server.start(port)
        browser.wait(lambda: browser.text("#editor .ghost").startswith("map(int"))
        assert browser.text("#message") == ""
        assert browser.errors()  # the browser's own, of what it could not reach; none is left
    finally:
        server.stop()


@pytest.mark.parametrize("width", [320, 390])
def test_nothing_is_wider_than_a_phone(browser, served, width):
    browser.script("return 0")
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": 700, "deviceScaleFactor": 1, "mobile": True})
    try:
        for view in ("#read", "#write", "#watch"):
            browser.open(served.address, view)
            browser.see(f"{view} .columns")
            time.sleep(0.3)
            assert browser.script("return document.documentElement.scrollWidth") <= width, view
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

def test_a_suggestion_of_white_space_is_seen(browser, served):
    browser.open(served.address, "#write")
    browser.see("#editor textarea")
    assert browser.script("return [visible('\\n  '), visible('a b\\n'), visible('')]") == [
        "⏎\n··", "a b\n", ""]
    browser.script("writer.dismiss(); writer.ghost = '\\n'; writer.draw()")
    assert "⏎" in browser.text("#editor .ghost")


def test_the_page_follows_the_caret(browser, served):
    browser.open(served.address, "#write")
    area = browser.see("#editor textarea")
    area.send_keys("a\n" * 60)
    bottom = browser.script("return document.querySelector('#editor .ghost')"
                            ".getBoundingClientRect().bottom")
    assert 0 < bottom <= browser.script("return window.innerHeight")


def test_assistants_are_compared_at_the_caret(browser, served):
    browser.open(served.address, "#write")
    browser.see("#editor textarea").send_keys("items = list(")
    browser.wait(lambda: len(browser.all("#comparison tr")) == 3
                 and "map(int" in browser.text("#comparison tr:nth-child(2)"))
    Select(browser.find("#assistant")).select_by_visible_text("Base stopped at eta")
    browser.script("""document.getElementById('write-eta').value = 0;
                   document.getElementById('write-eta').dispatchEvent(new Event('input'))""")
    browser.see("#latency", "silent")


# ------------------------------------------------------------------- Watch


def test_an_episode_plays(browser, served):
    browser.open(served.address, "#watch")
    Select(browser.see("#speed")).select_by_visible_text("fast")
    browser.click("#play")
    browser.wait(lambda: int(browser.find("#step").get_attribute("value")) > 2)
    last = browser.find("#step").get_attribute("max")
    browser.script("""document.getElementById('step').value = arguments[0];
                   document.getElementById('step').dispatchEvent(new Event('input'))""", last)
    about = json.loads((ROOT / "page" / "models" / "about.json").read_text())["games"]
    for k, row in enumerate(("Empower (0.32)", "SFT-8")):
        episode = about["rows"][row][0]
        code = "".join(turn["suggestion"] * turn["accepted"] + turn["typed"]
                       for turn in episode["turns"])
        assert browser.script("return document.querySelectorAll('#screens figure')[arguments[0]]"
                              ".lastChild.textContent", k) == code
        assert ("passes every test" in browser.all("#screens .result")[k].text) == episode["passed"]
    assert browser.text("#play") == "Play" and not browser.errors()


# ------------------------------------------------------------------- the study


def take_part(browser, server, folder, program, trouble=lambda: None, late=False):
    """One simulated person, from joining to the thanks; returns the code word.

    late: runs the tests, and lets the time of the last part run out.
    """
    browser.open(server.address)
    browser.see("#join-code").send_keys("1234")
    assert browser.driver.title == browser.text("h1") == "A study"  # not what it is about
    browser.click("#join")
    word = browser.see("#word").text
    browser.click("#word-read")
    for part in (1, 2):
        browser.see("#intro-title", f"Part {part} of 2: with assistant {part}")
        browser.click("#begin")
        area = browser.see("#study-editor textarea")
        order = json.loads((folder / word / "person.json").read_text())["assistants"]
        if order[part - 1] == "Base-10":  # it always has something to say
            browser.wait(lambda: browser.text("#study-editor .ghost"))
        for line in program[part - 1]:
            area.send_keys(line)
            browser.script("arguments[0].blur(); arguments[0].focus()", area)
        trouble()
        area = browser.see("#study-editor textarea")
        area.send_keys("items = list(")
        browser.wait(lambda: browser.text("#study-editor .ghost"))
        area.send_keys(Keys.TAB, Keys.BACK_SPACE, Keys.BACK_SPACE, Keys.ENTER)
        browser.wait(lambda: not browser.script("return study.recorder.queue.length"))
        if late and part == 2:
            browser.click("#test")
            browser.see("#verdict", "test 1 of 2: ")
            area.send_keys(" ", Keys.BACK_SPACE)
            assert browser.text("#verdict") == ""  # it was about another program
            browser.wait(lambda: not browser.script("return study.recorder.queue.length"))
            browser.script("study.used = 1e6")
            browser.see("#message", "The time for this part is over.")
        else:
            browser.script("window.confirm = () => true")
            browser.click("#finish")
    browser.see("#study-questions h2")
    assert ("time for this part" in browser.text("#message")) == late
    for question in browser.all("#questions fieldset"):
        question.find_elements(By.CSS_SELECTOR, "input")[0].click()
    browser.click("#answer")
    browser.see("#study-thanks h2", "Thank you")
    browser.click("#leave")  # the next person uses the same browser
    browser.see("#join-code")
    return word


def test_a_study_with_a_reload_and_a_killed_server(browser, tmp_path):
    from page.plan import CONSENT, EXAMPLE
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps(
        {**EXAMPLE, "join_code": "1234", "delay_ms": 0, "run_programs": True}))
    (folder / "consent.txt").write_text(CONSENT)
    server = Served("--study", folder)
    try:
        def reload():
            browser.driver.refresh()
            browser.see("#clock", ":")
            browser.script("""
                window.running = new Set();
                const [set, clear] = [setInterval, clearInterval];
                window.setInterval = (...given) => { const id = set(...given); running.add(id); return id; };
                window.clearInterval = id => { running.delete(id); clear(id); };
                for (let k = 0; k < 3; k++) enter(study.recorder.word);""")  # as by three clicks
            browser.wait(lambda: browser.script("return study.ticking !== null && running.size"))
            time.sleep(0.3)
            assert browser.script("return running.size") == 1  # else the clock runs too fast
            browser.script("study.recorder.add('deletion', '999', 0)")  # it cannot be
            browser.wait(lambda: not browser.script("return study.recorder.queue.length"))

        def kill():
            server.restart_after_kill()

        def kill_while_typing():
            server.process.send_signal(signal.SIGSTOP)  # nothing is answered
            browser.find("#study-editor textarea").send_keys("# kept\n")
            server.process.send_signal(signal.SIGKILL)
            time.sleep(0.3)
            browser.driver.refresh()  # the page is gone too: the browser has what was not sent
            kill()
            browser.open(server.address)

        program = ["n = int(input())\n"], ["# more\n"]
        words = [take_part(browser, server, folder, program, reload, late=True),
                 take_part(browser, server, folder, program, kill_while_typing)]
        for word, kept in zip(words, (0, 2)):
            events = [json.loads(line) for line in
                      (folder / word / "events.jsonl").read_text().splitlines()]
            assert [event["n"] for event in events] == list(range(1, len(events) + 1))
            code = browser_code(events)
            assert code.startswith("n = int(input())\n") and code.count("# more") == 1
            assert code.count("# kept") == kept and code.count("items = list(") == 2
        late = (folder / words[0] / "late.jsonl").read_text()
        assert late.count('"999"') == 2  # one in each part
        found = analyse(read_study(folder))
        assert found["people"] == found["finished"] == 2 and {row["name"] for row in found["rows"]} == {
            "Empower (0.32)", "Base-10"}
        assert all(row["accepted"] == 2 and row["deleted_per_accepted"] == 2
                   for row in found["rows"])
        assert [vote["people"] for vote in found["votes"]] == [2, 2, 2]
        typed = sum(len(event["info"]) for word in words for event in map(
            json.loads, (folder / word / "events.jsonl").read_text().splitlines())
            if event["type"] == "character_typed")
        assert sum(row["typed"] * row["people"] for row in found["rows"]) == typed
    finally:
        server.stop()


def browser_code(events):
    """The program after all events."""
    from page.person import edited
    code = ""
    for event in events:
        code = edited(code, event["type"], event["info"], event["caret"])
    return code
