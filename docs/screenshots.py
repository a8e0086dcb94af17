"""Pictures of every page of the labelling app for docs/label.md: desktop and phone, light and dark, on one sheet each.

    python docs/screenshots.py DEMO    # the folder that `accord demo` made; it is copied, never changed

Implements a copy of the demo with items, people and votes put in through the same queue as a browser's, a server, and
Chromium driven by playwright. Leaves out any judgement of the pictures: look at them.
"""

from __future__ import annotations

import argparse
import base64
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from playwright.sync_api import Browser, Page, sync_playwright

from accord.config import load_config
from accord.feedback.answering import Answer
from accord.feedback.items import NewItem, Overlap
from accord.types import Completion, Message, Prompt
from accord.web.people import make_invitation
from accord.web.samples import list_sample_sources, read_samples
from accord.web.site import Site, hash_secret, open_site
from accord.workspace import Workspace

OUT = Path(__file__).parent / "images" / "label"
PORT = 8477
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
ROUNDS = {"comparison": 5, "ranking": 6, "rating": 7}
QUALITY = 78
FOUND = "/samples?who=Change&number=gold&order=high"
SESSION = "the session of the pictures"
GUIDELINES = """\
Prefer the answer that a thoughtful colleague would rather send.

1. **True** before everything: a wrong fact loses against no fact.
2. **Helpful**: it answers what was asked, at the length the question deserves.
3. **Harmless**: no contempt, no private data, no help to hurt anyone.

If both fail, say *both bad*. If you cannot tell, skip: that helps more than a guess.

> Do not prefer an answer for being longer, or for standing on the left.
"""
CHAT = Prompt(
    messages=(
        Message("user", "I'd like to learn to bake bread. Where do I begin?"),
        Message("assistant", "With four things: flour, water, salt and yeast. Which oven do you have?"),
        Message("user", "A plain electric one. How do I get a crisp crust?"),
    )
)
GOOD = """\
Steam in the first ten minutes, and heat from below:

- Put an empty tray on the oven's floor and **preheat to 240 °C** for half an hour.
- Slide the loaf in, pour a cup of hot water onto the tray, and close the door at once.
- After ten minutes take the tray out and bake on at 210 °C until the crust is deep brown.

Let it cool on a rack; in a bag the crust turns soft again."""
PLAIN = """\
You can get a crisp crust by baking the bread in the oven until it is crisp. Make sure that the oven is hot. You can \
also brush it with milk, which makes it soft and shiny."""
HEBREW = "אפשר לשים תבנית עם מים רותחים בתחתית התנור, כך שהאדים ישמרו על הקרום גמיש בדקות הראשונות."


def build_site(demo: Path, folder: Path) -> Site:
    """A copy of the demo's project with people, guidelines, and comparisons of its own samples, half of them judged."""
    shutil.copytree(demo, folder)
    config = load_config(folder, ["label.accounts=always"])
    site = open_site(Workspace(folder), config)
    site.people.add("Olga", role="owner", actor="docs")
    site.people.open_session(hash_secret("web", SESSION), "Olga", expires_at=datetime.now(UTC) + timedelta(days=1))
    site.guidelines.publish(GUIDELINES, author="Olga")
    sources = list_sample_sources(site.workspace)
    shown = next(path for name, path in sources.items() if "annotators" in name)
    pairs = [
        NewItem("comparison", sample.prompt, tuple(answer.completion for answer in sample.answers[:2]))
        for sample in read_samples(shown)
        if len({answer.completion.id for answer in sample.answers[:2]}) == 2
    ]
    site.queue.add_items(pairs[:90], round=1, seed=0, overlap=Overlap(share=0.4, high=3, low=1))
    for name, skill in (("Amina", 0.95), ("Bruno", 0.85), ("Chloe", 0.6)):
        site.people.add(name, actor="Olga")
        _judge(site, name, skill)
    site.people.pause("Chloe", actor="Olga")
    return site


def _judge(site: Site, name: str, skill: float) -> None:
    """Votes of one person: the longer finished answer, as often as `skill` says."""
    draw = random.Random(name)
    for item in site.queue.lease(name, 36):
        left, right = item.completions
        better = "a" if (left.finished, len(left.text)) > (right.finished, len(right.text)) else "b"
        choice = better if draw.random() < skill else draw.choice(["a", "b", "tie"])
        answer = Answer(
            str(uuid4()), name, item.lease_id, choice, None if choice == "tie" else draw.choice([1, 4, 7]),
            seconds=draw.lognormvariate(2.3, 0.5), guideline_version="1",
        )  # fmt: skip
        site.queue.submit(answer)


def add_shown(site: Site, kind: str) -> None:
    """The item that the pictures show: closed again are all others."""
    for number in range(9):
        site.queue.close_round(number, "docs")
    texts = {"comparison": (GOOD, PLAIN), "ranking": (PLAIN, GOOD, HEBREW), "rating": (GOOD,)}[kind]
    answers = tuple(Completion.from_text(text) for text in texts)
    site.queue.add_items([NewItem(kind, CHAT, answers)], round=ROUNDS[kind], seed=1)


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """`accord label` on the copy."""
    command = [sys.executable, "-m", "accord", "label", str(folder), "--port", str(PORT)]
    command += ["--set", "label.accounts=always", "--set", "label.chat=true"]
    process = subprocess.Popen(command)
    link = f"http://localhost:{PORT}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{link}/static/icon.svg", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield link
    finally:
        process.terminate()
        process.wait()


def picture(
    browser: Browser, link: str, name: str, path: str, prepare: str = "", *, write: str = "", known: bool = True
) -> None:
    """One sheet: `path` after the keys in `prepare` and the text `write`, on two screens, light and dark."""
    pages: dict[str, Page] = {}
    for size, (width, height) in SIZES.items():
        for scheme in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme=scheme,
                device_scale_factor=1.5,
                locale="en-GB",
            )
            if known:
                context.add_cookies([{"name": "accord_session", "value": SESSION, "url": link}])
            page = pages[f"{size}-{scheme}"] = context.new_page()
            page.add_init_script("localStorage.setItem('accord-guidelines-Olga', '\"1\"')")
            page.goto(link + path)
            if path == "/label":
                page.wait_for_selector("#label[data-ready]")
            for key in prepare.split():
                page.keyboard.press(key)
            page.keyboard.type(write)
    page.wait_for_timeout(2600 if path == "/label" and prepare else 400)  # until a note has faded
    shots = {name: page.screenshot() for name, page in pages.items()}
    for page in pages.values():
        page.context.close()
    save_sheet(browser.new_page(viewport={"width": 1290, "height": 640}, device_scale_factor=1), name, shots)


def save_sheet(page: Page, name: str, shots: dict[str, bytes]) -> None:
    """The four pictures of a page side by side."""
    order = ("desktop-light", "phone-light", "desktop-dark", "phone-dark")
    pictures = "".join(
        f'<img class="{shot.partition("-")[0]}" src="data:image/png;base64,{base64.b64encode(shots[shot]).decode()}">'
        for shot in order
    )
    style = (
        "body{margin:0;display:grid;grid-template-columns:auto auto;gap:10px;padding:10px;"
        "width:max-content;background:#888}"
        "img{display:block;border-radius:6px}.desktop{width:800px}.phone{height:500px}"
    )
    page.set_content(f"<style>{style}</style>{pictures}")
    page.locator("body").screenshot(path=OUT / f"{name}.jpg", type="jpeg", quality=QUALITY)
    page.close()


def take_pictures(site: Site, browser: Browser, link: str) -> None:
    """Every page."""
    invitation = make_invitation(site, "annotator", "docs")
    for name, path in (
        ("dashboard", "/dashboard"), ("report", "/dashboard/1/report"), ("samples", FOUND), ("worth", "/worth"),
        ("people", "/people"), ("guidelines", "/guidelines"), ("password", "/password"), ("api", "/api"),
        ("error", "/dashboard?round=9"),
    ):  # fmt: skip
        picture(browser, link, name, path)
    picture(browser, link, "sign-in", "/sign-in", known=False)
    picture(browser, link, "invitation", f"/invitations/{invitation}", known=False)
    add_shown(site, "comparison")
    for name, keys, text in (
        ("comparison", "", ""),
        ("flag", "f b", ""),
        ("skip", "s", ""),
        ("edit", "e", "With steam in the first ten minutes."),
        ("keys", "?", ""),
        ("rules", "g", ""),
        ("chat", "c", "Why does my basil die in winter?"),
    ):
        picture(browser, link, name, "/label", keys, write=text)
    add_shown(site, "rating")
    picture(browser, link, "rating", "/label")
    add_shown(site, "ranking")
    picture(browser, link, "ranking", "/label", "2 1")
    for number in range(9):
        site.queue.close_round(number, "docs")
    site.queue.release("Olga", [item.lease_id for item in site.queue.held("Olga")])
    picture(browser, link, "done", "/label")


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("demo", type=Path, help="the folder that accord demo made")
    demo: Path = parser.parse_args().demo
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        site = build_site(demo, Path(scratch) / "demo")
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        with serve(Path(scratch) / "demo") as link:
            take_pictures(site, browser, link)
        browser.close()


if __name__ == "__main__":
    main()
