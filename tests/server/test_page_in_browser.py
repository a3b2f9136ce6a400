"""The page at `/` in Chromium: jobs while they run, hostile data, keyboard, screen readers, small and dark screens."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from synapse_runtime.executors.remote.embedded_server import serve_embedded
from tests.patience import patience, within
from tests.server.conftest import Client, client_of, served_on_terminal, write_plugin

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None and "CI" not in os.environ:
    pytest.skip("there is no chromium: apt-get install chromium", allow_module_level=True)

CONFIG = """
code: gated
name: Gated
version: 1.0.0
actions:
  train: {entrypoint: "plugin.main:train"}
  fail: {entrypoint: "plugin.main:fail"}
  echo: {entrypoint: "plugin.main:echo"}
  hostile: {entrypoint: "plugin.main:hostile"}
  lines: {entrypoint: "plugin.main:lines"}
"""
MAIN = '''
import sys
import time
from pathlib import Path

from synapse_runtime.decorators import action


def wait_for(params, name):
    """Wait until the test lets the action go on."""
    while not Path(params["gates"], str(name)).exists():
        time.sleep(0.01)


@action
def train(params, context):
    context.log_message("training starts")
    for epoch in range(3):
        wait_for(params, epoch)
        print("epoch", epoch, flush=True)
        print("warming up", file=sys.stderr, flush=True)
        context.set_progress(epoch + 1, 3, "train")
        context.set_metrics({"loss": 1 / (epoch + 1), "name": "not a number"}, "train")
    wait_for(params, "end")
    return {"loss": 1 / 3, "shape": (2, 3), "large": 2**63 + 1, "best": float("inf")}


def load(path):
    raise FileNotFoundError(f"no weights in {path}")


@action
def fail(params, context):
    try:
        load("<models>")
    except OSError as error:
        raise ValueError("the model cannot be restored") from error


@action
def echo(params, context):
    return params


@action
def hostile(params, context):
    text = params["text"]
    print(text)
    print(text, file=sys.stderr)
    print("\\x1b[31mred\\x1b[0m", "10 %\\r20 %\\r30 %")
    context.log_message(text)
    context.log(text, {text: text})
    context.set_progress(1, 2, text)
    context.set_metrics({text: 1.0, "__proto__": 2.0}, text)
    wait_for(params, "end")
    if params["fails"]:
        raise ValueError(text)
    return {text: [text], "__proto__": 1}


@action
def lines(params, context):
    for number in range(5000):
        print("line", number)
    wait_for(params, "more")
    print("one more", flush=True)
    wait_for(params, "end")
    print("the last")
'''
HOSTILE = "<img src=x onerror='window.attacked = 1'><script>window.attacked = 2</script>\"'&amp;`${1}`"


@pytest.fixture(scope="module", autouse=True)
def deadlines() -> Iterator[None]:
    """Wait for the page as long as other tests wait."""
    expect.set_options(timeout=patience(15) * 1000)
    yield
    expect.set_options(timeout=None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None, "there is no chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        # Chromium's own sandbox cannot be used by root.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Client]]:
    """The address that a server has printed on its terminal, and a client of that server."""
    state = tmp_path_factory.mktemp("state")
    plugin = write_plugin(tmp_path_factory.mktemp("gated"), config=CONFIG, main=MAIN)
    with served_on_terminal(plugin, "--concurrency", "2", env={**os.environ, "XDG_STATE_HOME": str(state)}) as url:
        (file,) = Path(state, "synapse", "servers").glob("*.json")
        login = json.loads(file.read_text())
        client = client_of(login["host"], login["token"])
        yield url, client
        client.close()


@pytest.fixture(scope="module")
def context(browser: Browser, address: tuple[str, Client]) -> Iterator[BrowserContext]:
    """A browser that has logged in by the code."""
    url, _ = address
    with browser.new_context(locale="en-GB", permissions=["clipboard-read", "clipboard-write"]) as context:
        page = context.new_page()
        page.goto(url)
        expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
        assert page.url == url.split("#")[0] + "#/"
        assert page.evaluate("document.cookie") == ""
        page.close()
        yield context


@pytest.fixture
def api(address: tuple[str, Client]) -> Client:
    return address[1]


@pytest.fixture
def page(context: BrowserContext, api: Client) -> Iterator[Page]:
    """The list of jobs. Nothing that the test does there may write an error to the browser's console."""
    page = context.new_page()
    problems = problems_of(page)
    page.goto(api.host)
    yield page
    page.close()
    assert problems == []


def problems_of(page: Page) -> list[str]:
    """Return a list of the errors that the browser's console gets, violations of the security policy included."""
    problems: list[str] = []
    page.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}") or dialog.dismiss())
    return problems


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """A function that lets the test's job go on; at the test's end, it goes on to its end."""

    def open_gates(*names: object) -> None:
        for name in names:
            (tmp_path / str(name)).touch()

    yield open_gates
    open_gates(0, 1, 2, "more", "end")


@pytest.fixture
def start(api: Client, tmp_path: Path, gates: Callable[..., None]) -> Callable[..., str]:
    def start(action: str, **params: Any) -> str:
        return api.start(action, {"gates": str(tmp_path), **params}, plugin="gated")

    return start


def open_job(page: Page, api: Client, job_id: str) -> None:
    page.goto(f"{api.host}/#/jobs/{job_id}")
    expect(page.get_by_text(job_id)).to_be_visible()


def section(page: Page, name: str) -> Locator:
    return page.get_by_role("region", name=name)


def status(page: Page) -> Locator:
    return page.get_by_role("main").get_by_role("status")


def is_at_end(log: Locator) -> bool:
    return bool(log.evaluate("log => log.scrollHeight - log.scrollTop - log.clientHeight < 24"))


def test_job_is_shown_while_it_runs(
    page: Page, api: Client, start: Callable[..., str], gates: Callable[..., None]
) -> None:
    job_id = start("train", note="x")
    row = page.get_by_role("row").filter(has=page.locator(f"a[href='#/jobs/{job_id}']"))
    expect(row).to_contain_text("running")
    expect(row).to_contain_text("gated@1.0.0")
    row.get_by_role("link", name="train").click()
    expect(page.get_by_role("heading", name="train", level=1)).to_be_focused()
    expect(status(page)).to_have_text("running")
    expect(section(page, "Params")).to_contain_text('"note": "x"')
    log = page.get_by_role("log", name="Log")
    expect(log).to_have_text("info: training starts")
    expect(section(page, "Metrics")).to_have_count(0)

    bar, curve = page.get_by_role("progressbar", name="train"), page.get_by_role("img", name="train: loss")
    for epoch, points in enumerate([r"^M[\d. ]+h0$", r"^M[\d. ]+h0L[\d. ]+$", r"^M[\d. ]+h0L[\d. ]+L[\d. ]+$"]):
        gates(epoch)
        expect(bar).to_have_js_property("value", 100 * (epoch + 1) / 3)
        expect(section(page, "Progress")).to_contain_text(f"{epoch + 1} of 3")
        expect(curve.locator("path")).to_have_attribute("d", re.compile(points))
        expect(log.locator(".stdout").last).to_have_text(f"epoch {epoch}")
        expect(log.locator(".stderr")).to_have_count(epoch + 1)
    expect(page.get_by_role("img")).to_have_count(1)
    assert curve.get_attribute("aria-label") == "train: loss: 3 values between 0.3333 and 1, the last 0.3333"
    xs = [float(x) for x in re.findall(r"[ML]([\d.]+)", curve.locator("path").get_attribute("d") or "")]
    assert xs == [0, 150, 300]

    expect(section(page, "Result")).to_have_count(0)
    gates("end")
    expect(status(page)).to_have_text("succeeded")
    result = section(page, "Result").locator("pre").inner_text()
    assert result == '{\n  "loss": 0.3333333333333333,\n  "shape": [2, 3],\n  "large": 9223372036854775809,\n' + (
        '  "best": Infinity\n}'
    )
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    assert page.title() == "train succeeded – Synapse"
    page.go_back()
    expect(row).to_contain_text("succeeded")


def test_ended_job_is_shown_as_a_running_one(page: Page, api: Client, start: Callable[..., str], gates: Any) -> None:
    gates(0, 1, 2, "end")
    job_id = start("train")
    api.finish(job_id)
    open_job(page, api, job_id)
    expect(status(page)).to_have_text("succeeded")
    expect(page.get_by_role("log").locator("div")).to_have_count(7)
    expect(page.get_by_role("progressbar", name="train")).to_have_js_property("value", 100)
    expect(page.get_by_role("img", name="3 values")).to_be_visible()
    expect(section(page, "Result")).to_be_visible()


def set_hidden(page: Page, hidden: bool) -> None:
    """Let the page believe that its tab is hidden, or visible again."""
    page.evaluate(
        "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
        " document.dispatchEvent(new Event('visibilitychange')) }",
        hidden,
    )


def test_hidden_page_catches_up_once_it_is_visible(
    page: Page, api: Client, start: Callable[..., str], gates: Callable[..., None]
) -> None:
    job_id = start("train")
    open_job(page, api, job_id)
    gates(0)
    bar = page.get_by_role("progressbar", name="train")
    expect(bar).to_have_js_property("value", 100 / 3)
    set_hidden(page, True)
    gates(1, 2, "end")
    assert api.finish(job_id)["status"] == "SUCCEEDED"
    expect(bar).to_have_js_property("value", 100 / 3)
    expect(status(page)).to_have_text("running")
    set_hidden(page, False)
    expect(status(page)).to_have_text("succeeded")
    expect(bar).to_have_js_property("value", 100)
    expect(page.get_by_role("img", name="3 values")).to_be_visible()
    lines = page.get_by_role("log").locator("div").all_inner_texts()
    assert sorted(lines) == sorted(["info: training starts", *["warming up"] * 3, "epoch 0", "epoch 1", "epoch 2"])


def test_failed_job_shows_its_traceback(page: Page, api: Client, start: Callable[..., str]) -> None:
    job_id = start("fail")
    open_job(page, api, job_id)
    expect(status(page)).to_have_text("failed")
    shown = section(page, "Error").locator("pre").inner_text()
    assert re.sub(r'"[^"]*/(main.py", line )\d+', r'"…/\1N', shown).splitlines() == [
        "Traceback (most recent call last):",
        '  File "…/main.py", line N, in fail',
        '    load("<models>")',
        '  File "…/main.py", line N, in load',
        '    raise FileNotFoundError(f"no weights in {path}")',
        "FileNotFoundError: no weights in <models>",
        "",
        "The above exception was the direct cause of the following exception:",
        "",
        "Traceback (most recent call last):",
        '  File "…/main.py", line N, in fail',
        '    raise ValueError("the model cannot be restored") from error',
        "ValueError: the model cannot be restored",
    ]
    expect(section(page, "Result")).to_have_count(0)


def test_job_is_stopped_after_confirmation(page: Page, api: Client, start: Callable[..., str]) -> None:
    job_id = start("train")
    open_job(page, api, job_id)
    expect(status(page)).to_have_text("running")
    page.get_by_role("button", name="Stop").click()
    dialog = page.get_by_role("dialog", name="Stop train (gated@1.0.0)?")
    expect(dialog.get_by_role("button", name="Keep it running")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert api.json(f"/runtime/jobs/{job_id}/")["status"] == "RUNNING"
    page.get_by_role("button", name="Stop").click()
    dialog.get_by_role("button", name="Stop the job").click()
    expect(status(page)).to_have_text("stopped")
    assert api.json(f"/runtime/jobs/{job_id}/")["status"] == "STOPPED"
    expect(section(page, "Error")).to_contain_text("was stopped")


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "fails"])
def test_hostile_data_are_shown_as_text(
    page: Page, api: Client, start: Callable[..., str], gates: Callable[..., None], fails: bool
) -> None:
    job_id = start("hostile", text=HOSTILE, fails=fails)
    open_job(page, api, job_id)
    log = page.get_by_role("log")
    expect(log.locator("div")).to_have_count(5)
    lines = log.locator("div").all_inner_texts()
    assert lines.count(HOSTILE) == 2
    assert f"info: {HOSTILE}" in lines
    assert [line for line in lines if line.startswith(f"info: {HOSTILE} {{")]
    assert "30 %" in lines
    expect(section(page, "Progress").locator("label")).to_have_text(HOSTILE)
    expect(section(page, "Metrics")).to_contain_text(f"{HOSTILE}: {HOSTILE}")
    expect(section(page, "Metrics").locator("figure")).to_have_count(2)
    gates("end")
    expect(section(page, "Error" if fails else "Result")).to_contain_text("<img src=x")
    expect(section(page, "Params")).to_contain_text("<img src=x")
    expect(section(page, "Run it again")).to_contain_text("<img src=x")
    assert page.locator("main :is(img, script, iframe)").count() == 0
    assert page.evaluate("window.attacked") is None


@pytest.mark.parametrize("name", ["nothing", "<img src=x onerror=alert(1)>", "%E0%A4", "..%2F..%2Fhealth"])
def test_unknown_job_is_reported(context: BrowserContext, api: Client, name: str) -> None:
    page = context.new_page()
    problems = problems_of(page)
    page.goto(f"{api.host}/#/jobs/{name}")
    expect(page.get_by_role("heading", name="No such job")).to_be_visible()
    expect(page.get_by_text("there is no ")).to_be_visible()
    assert page.locator("main :is(img, script, iframe)").count() == 0
    assert len(problems) == 1
    assert "404" in problems[0]
    page.close()


def test_policy_forbids_inline_scripts(context: BrowserContext, api: Client) -> None:
    page = context.new_page()
    problems = problems_of(page)
    page.goto(api.host)
    page.evaluate(
        "() => { const script = document.createElement('script'); script.textContent = 'window.attacked = 1';"
        " document.body.append(script); }"
    )
    assert page.evaluate("window.attacked") is None
    assert "Content Security Policy" in problems[0]
    page.close()


def test_log_is_bounded_and_follows_its_end_unless_the_user_scrolls_up(
    page: Page, api: Client, start: Callable[..., str], gates: Callable[..., None]
) -> None:
    open_job(page, api, start("lines"))
    log = page.get_by_role("log")
    expect(log.locator("div").last).to_have_text("line 4999")
    expect(log.locator("div")).to_have_count(2000)
    expect(section(page, "Log")).to_contain_text("3000 earlier lines are not shown.")
    assert within(5, lambda: is_at_end(log))
    log.evaluate("log => { log.scrollTop = 100 }")
    gates("more")
    expect(log.locator("div").last).to_have_text("one more")
    assert not is_at_end(log)
    log.evaluate("log => { log.scrollTop = log.scrollHeight }")
    gates("end")
    expect(log.locator("div").last).to_have_text("the last")
    assert within(5, lambda: is_at_end(log))


def test_command_is_copied(page: Page, api: Client, start: Callable[..., str], gates: Callable[..., None]) -> None:
    job_id = start("train", text="it's")
    open_job(page, api, job_id)
    page.get_by_role("button", name="Copy command").click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    command = api.json(f"/runtime/jobs/{job_id}/")["command"]
    assert page.evaluate("navigator.clipboard.readText()") == command
    assert command.startswith("synapse plugin run train --path ")
    gates(0, 1, 2, "end")
    expect(status(page)).to_have_text("succeeded")
    expect(page.get_by_text("Copied.")).to_be_visible()


def test_list_is_filtered_and_has_older_jobs(page: Page, api: Client, start: Callable[..., str]) -> None:
    failed = api.finish(start("fail"))["id"]
    ids = [start("echo") for _ in range(51)]
    for job_id in ids:
        api.finish(job_id)
    rows = page.locator("tbody tr")
    newest = page.locator("tbody tr a").first
    expect(newest).to_have_attribute("href", f"#/jobs/{ids[-1]}")
    expect(rows).to_have_count(50)
    page.get_by_role("button", name="Older jobs").click()
    expect(newest).to_have_attribute("href", f"#/jobs/{ids[0]}")
    page.get_by_role("button", name="Newest jobs").click()
    expect(newest).to_have_attribute("href", f"#/jobs/{ids[-1]}")
    page.get_by_label("Status").select_option("failed")
    expect(newest).to_have_attribute("href", f"#/jobs/{failed}")
    expect(rows.filter(has_not_text="failed")).to_have_count(0)
    page.get_by_label("Status").select_option("pending")
    expect(page.get_by_text("No job has this status.")).to_be_visible()


def test_page_can_be_used_by_keyboard(page: Page, api: Client, start: Callable[..., str]) -> None:
    job_id = start("train")
    expect(page.locator("tbody tr a").first).to_have_attribute("href", f"#/jobs/{job_id}")
    reached = []
    for _ in range(5):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        reached.append(focused.evaluate("element => element.id || element.name || element.textContent"))
        assert focused.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
        if reached[-1] == "train":
            break
    assert reached[-2:] == ["status", "train"]
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="train", level=1)).to_be_focused()
    expect(status(page)).to_have_text("running")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Stop")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(status(page)).to_have_text("stopped")


def test_page_has_landmarks_and_names(page: Page, api: Client, start: Callable[..., str], gates: Any) -> None:
    gates(0)
    job_id = start("train")
    for landmark in ("banner", "main"):
        expect(page.get_by_role(landmark)).to_be_visible()
    table = page.get_by_role("table", name="Jobs, the newest first")
    headers = table.get_by_role("columnheader").all_inner_texts()
    assert headers == ["Status", "Action", "Started", "Duration"]
    open_job(page, api, job_id)
    expect(page.get_by_role("progressbar", name="train")).to_be_visible()
    for name in ("Progress", "Metrics", "Log", "Params", "Run it again"):
        expect(section(page, name)).to_be_visible()
    assert status(page).get_attribute("aria-live") == "polite"
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, a, input, select')].filter(element => "
        "!element.textContent.trim() && !element.labels?.length).length"
    )
    assert unnamed == 0


def luminance(color: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_legible_on_a_small_screen(
    page: Page, api: Client, start: Callable[..., str], gates: Any, scheme: Any, tmp_path: Path
) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 400, "height": 800})
    gates(0, 1)
    job_id = start("train", long="x" * 300)
    expect(page.locator("tbody tr a").first).to_have_attribute("href", f"#/jobs/{job_id}")
    for address in ("#/", f"#/jobs/{job_id}"):
        page.goto(f"{api.host}/{address}")
        if address != "#/":
            expect(page.get_by_role("img", name="2 values")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        colors = page.evaluate(
            "[...document.querySelectorAll('h1, td, th, dd, dt, a, button, .badge, pre div, .axis')].map(element => {"
            " let behind = element; while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)')"
            " behind = behind.parentElement;"
            " return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor] })"
        )
        assert colors
        for text, background in colors:
            low, high = sorted([luminance(text), luminance(background)])
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, background)
        assert (luminance(colors[0][1]) < 0.1) == (scheme == "dark")
        page.screenshot(path=tmp_path / f"{scheme}-{len(address)}.png", full_page=True)


def test_token_logs_in_and_log_out_ends_the_session(browser: Browser, api: Client, start: Callable[..., str]) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        job_id = start("echo")
        page.goto(f"{api.host}/#/jobs/{job_id}")
        field = page.get_by_label("Access token")
        expect(field).to_be_focused()
        field.fill("syn_0")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("the access token is not valid")
        field.fill(api.token)
        page.keyboard.press("Enter")
        expect(page.get_by_text(job_id)).to_be_visible()
        (cookie,) = context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        page.get_by_role("button", name="Log out").click()
        expect(field).to_be_visible()
        assert context.cookies() == []
        page.reload()
        expect(field).to_be_visible()


def test_used_code_says_what_to_do(browser: Browser, context: BrowserContext, address: tuple[str, Client]) -> None:
    with browser.new_context() as other:
        page = other.new_page()
        page.goto(address[0])  # `context` has used it
        expect(page.get_by_role("alert")).to_contain_text("paste an access token")
        assert "code" not in page.url


def test_page_says_that_the_server_has_stopped(browser: Browser, lab: Path) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        with serve_embedded([lab]) as server:
            page.goto(server.host)
            page.get_by_label("Access token").fill(server.token)
            page.keyboard.press("Enter")
            expect(page.get_by_text("There are no jobs yet.")).to_be_visible()
        expect(page.get_by_text("The server does not answer.")).to_be_visible()
