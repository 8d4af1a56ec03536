"""The page in headless Chromium: search, frames, play at the moment; what goes wrong is said."""

import os
import shutil

import pytest

import stan_infer as si
from stan_infer.video.windows import Windows
from tests.examples.chromium import PROGRAM, Page
from tests.library.server.conftest import MOTION, TEXT, serving
from tests.video.broken_videos import make_clip

NASTY = '<img src=x onerror="document.title=1">.mp4'


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not PROGRAM:
        if os.environ.get("STAN_INFER_REQUIRE_BROWSER"):
            pytest.fail("needs a headless browser: apt install chromium")
        pytest.skip("needs a headless browser: apt install chromium")
    profile = tmp_path_factory.mktemp("browser")
    with Page(profile, "--autoplay-policy=no-user-gesture-required") as found:
        yield found


@pytest.fixture
def page(browser, server):
    open_at(browser, server.address)
    return browser


def open_at(page, address, **more):
    page.events.clear()
    page.open(address, **more)
    page.wait("document.getElementById('facts').textContent")


def look_for(page, text, key="Enter"):
    """Type a text and press Enter; the answer is waited for."""
    page.js(f"text.value = {text!r}; text.focus(); 1")
    page.press(key, "\r")
    settle(page)


def settle(page):
    page.wait("document.querySelector('#status:not(.busy)')?.textContent")


def value(page, code):
    """Of an expression, in which all(SELECTOR) are elements."""
    return page.js(f"(all => ({code}))(s => [...document.querySelectorAll(s)])")


def said(page):
    return page.js("document.getElementById('status').textContent")


def faults(page):
    """What the browser complained of: errors of scripts, the policy, addresses elsewhere."""
    found = [e["params"] for e in page.events if e["method"] == "Runtime.exceptionThrown"]
    entries = [e["params"]["entry"] for e in page.events if e["method"] == "Log.entryAdded"]
    return found + [e["text"] for e in entries if e["level"] == "error"]


def test_it_searches_and_shows_frames(page, server):
    facts = page.js("document.getElementById('facts').textContent")
    assert "10 videos · 30 rows · motion.safetensors · engine eager" in facts
    look_for(page, TEXT)
    wanted = server.search(TEXT)["hits"]
    names = [f"{hit['rank']}. {hit['name']}" for hit in wanted]
    assert value(page, "all('.card b').map(e => e.textContent)") == names
    scores = value(page, "all('.card .score').map(e => e.textContent)")
    assert scores == [f"{hit['score']:.4f}" for hit in wanted]
    status = said(page)
    assert status.startswith("10 of 30 rows in ") and "model" in status and "search" in status
    page.wait("document.querySelector('.card img').naturalWidth === 768")
    assert value(page, "document.title") == "Search moments" and not faults(page)
    host = server.address
    asked = [a for a in page.addresses() if not a.startswith("data:")]  # icons of the browser
    assert all(address.startswith(host) for address in asked), asked


@pytest.mark.parametrize("place", [0, 3])
def test_it_plays_at_the_moment(page, server, place):
    look_for(page, "a shape")
    page.js(f"document.querySelectorAll('.card')[{place}].querySelector('button').click(); 1")
    page.wait("document.querySelector('video')?.readyState >= 2")
    page.js("document.querySelector('video').pause(); 1")
    hit = server.search("a shape")["hits"][place]
    now, length, wide = page.js(
        "(v => [v.currentTime, v.duration, v.videoWidth])(document.querySelector('video'))"
    )
    assert hit["start_s"] <= now <= hit["end_s"] + 0.1 and wide and length > 1
    page.js("document.querySelector('video').currentTime = 0.25; 1")  # and elsewhere
    page.wait("!document.querySelector('video').seeking")
    assert page.js("document.querySelector('video').currentTime") == pytest.approx(0.25)
    assert not faults(page)


def test_a_moment_that_is_late_is_played_there(browser, tmp_path, session):
    """Two minutes, of which the last second is found: the browser asks for that part."""
    video = tmp_path / "clips" / "long.mp4"
    video.parent.mkdir()
    make_clip(video, frames=600, size=(96, 96))
    parts = Windows(seconds=4.0, stride=4.0)
    si.embed_library(session, [video.parent], tmp_path / "library", workers=1, windows=parts)
    with serving(tmp_path / "library", session) as server:
        open_at(browser, f"{server.address}?like=5")
        settle(browser)
        browser.js("document.querySelector('.card button').click(); 1")
        browser.wait("document.querySelector('video')?.readyState >= 2")
        now = browser.js("document.querySelector('video').currentTime")
        assert 20 <= now < 24 and value(browser, "all('.card p')[0].textContent") == "20 s to 24 s"


def test_more_like_this_and_back(page):
    look_for(page, TEXT)
    first = value(page, "all('.card b').map(e => e.textContent)")
    page.js("document.querySelectorAll('.card')[2].querySelector('.doing').lastChild.click(); 1")
    page.wait("like.innerText.startsWith('Like')")
    settle(page)
    name = first[2].partition(" ")[2]
    assert value(page, "document.getElementById('like').textContent").startswith(f"Like {name}.")
    assert value(page, "all('.card b')[0].textContent") == f"1. {name}"
    assert value(page, "all('.score')[0].textContent") == "1.0000"
    page.js("history.back()")
    page.wait(f"document.getElementById('text').value === {TEXT!r}")
    settle(page)
    page.wait("document.querySelectorAll('.card').length === 10")
    assert value(page, "all('.card b').map(e => e.textContent)") == first


def test_an_address_is_a_search(browser, server):
    query = "text=a+shape%3A%3A2&text=a+cross&not=a+bar%3A%3A0.5&path=*cross*&top=20"
    open_at(browser, f"{server.address}?{query}")
    settle(browser)
    wanted = server.json(f"/search?{query}")["hits"]
    assert value(browser, "all('.card b').map(e => e.textContent)") == [
        f"{hit['rank']}. {hit['name']}" for hit in wanted
    ]
    fields = "['text', 'texts', 'not', 'path', 'top'].map(id => document.getElementById(id).value)"
    assert browser.js(fields) == ["a shape::2", "a cross", "a bar::0.5", "*cross*", "20"]
    assert browser.js("document.getElementById('more').open")


def test_nothing_and_errors_are_said(page):
    page.js("document.getElementById('path').value = 'nowhere/*'; 1")
    look_for(page, TEXT)
    assert said(page).startswith("Nothing fits")
    page.js("document.getElementById('path').value = ''; 1")
    look_for(page, "a::b")
    assert value(page, "document.getElementById('status').className") == "error"
    assert "behind :: stands a weight" in said(page)
    page.js("text.value = ''; document.getElementById('form').requestSubmit(); 1")
    assert said(page) == "" and value(page, "all('.card').length") == 0


def test_files_that_do_not_play_or_are_gone_are_said(browser, tmp_path, session):
    clips = tmp_path / "clips"
    clips.mkdir()
    make_clip(clips / "old.avi", frames=30, size=(96, 96), codec="mpeg4")
    shutil.copy(MOTION / "clips" / "green_bar_grows.mp4", clips / NASTY)
    shutil.copy(MOTION / "clips" / "cyan_bar_blinks.mp4", clips / "gone.mp4")
    si.embed_library(session, [clips], tmp_path / "library", workers=1)
    (clips / "gone.mp4").unlink()
    with serving(tmp_path / "library", session) as server:
        open_at(browser, f"{server.address}?text=a")
        settle(browser)
        names = value(browser, "all('.card b').map(e => e.textContent.slice(3))")
        assert sorted(names) == sorted(["old.avi", NASTY, "gone.mp4"])
        assert value(browser, "document.title") == "Search library", "its name is no script"
        cards = "document.querySelectorAll('.card')"
        gone = f"{cards}[{names.index('gone.mp4')}].querySelector('.missing')"
        browser.wait(f"{gone}?.textContent.includes('not there')")
        card = f"{cards}[{names.index('old.avi')}]"
        browser.js(f"{card}.querySelector('button').click(); 1")
        browser.wait(f"{card}.querySelector('.missing')?.textContent.includes('cannot play')")
        browser.wait(f"{card}.querySelector('img').naturalWidth > 0")


def test_a_server_that_has_ended_is_said(browser, made, session):
    with serving(made / "moments", session) as server:
        open_at(browser, server.address)
    look_for(browser, TEXT)
    assert "was it ended?" in said(browser)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1000])
def test_it_fits_a_phone_and_a_desk_light_and_dark(browser, server, width, dark, tmp_path):
    browser.dark(dark=dark)
    open_at(browser, f"{server.address}?text=a&path=*", width=width)
    settle(browser)
    assert browser.js("document.documentElement.scrollWidth") <= width
    paper = browser.js("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 20, 20)" if dark else "rgb(255, 255, 255)")
    heights = value(browser, "all('button, input, select').map(e => e.offsetHeight)")
    assert min(filter(None, heights)) >= 24, "a finger finds it"
    browser.dark(dark=False)


def test_everything_is_reached_by_keyboard_and_named(page):
    look_for(page, TEXT)
    page.js("document.activeElement.blur(); 1")
    page.press("/", "/")
    assert page.js("document.activeElement.id") == "text"
    seen = []
    for _ in range(12):
        page.press("Tab")
        seen.append(page.js("(e => e.ariaLabel ?? e.textContent)(document.activeElement)"))
    assert any(s.startswith("Play at ") and ".mp4" in s for s in seen), seen
    assert any(s.startswith("More like ") for s in seen), seen
    unnamed = "all('input, textarea, select, img').filter(e => !e.labels?.length && !e.alt)"
    assert value(page, f"{unnamed}.map(e => e.id)") == []
    assert value(page, "document.querySelector('[role=status]').ariaLive") == "polite"
    assert value(page, "document.documentElement.lang") == "en"
