"""The page: keys explained, hostile text inert, missing parts said to be missing, nothing fetched."""

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nh3
import pytest
from evaluation.example_report import make_report, make_rows
from markdown_it import MarkdownIt

from accord.evaluation import render_report, summarise_report, summarise_rows
from accord.evaluation.defence import judge_tournament, list_alarms, list_challenges, list_checkpoints
from accord.evaluation.glossary import GLOSSARY, walk_keys
from accord.evaluation.report import _hash_script, _plotly
from accord.evaluation.wording import _MARKDOWN, _TAGS, clean_markdown, say_bytes, say_number, say_percent, say_seconds

PAGE = Path(__file__).parents[2] / "docs/report.md"
HOSTILE = (
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 1</script>",
    '<img src=x onerror="window.hacked = 1">',
    "[click](javascript:alert(1)) <javascript:alert(1)> ![x](https://evil.example/x.png)",
    '<svg onload="window.hacked = 1"><style>body{display:none}</style></svg>',
    '"><style>*{display:none}</style><link rel=stylesheet href=//evil.example/a.css>',
    '<a href="https://evil.example" onmouseover="hacked()">x</a><iframe srcdoc="<script>1</script>"></iframe>',
    "[ref]: javascript:alert(1)\n\n[ref]\n\n# a heading of mine\n\nfoo\n===\n",
    "{{ 7 * 7 }} {% raw %} {# no #}",
    "</textarea></title></div></article><base href=//evil.example><meta http-equiv=refresh content='0;url=//x.y'>",
)
EVENTS = re.compile(r"^on[a-z]+$")


class Tags(HTMLParser):
    """Every start tag with its attributes, and the text of the page outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.texts.append(data)


def parse(report: dict[str, Any]) -> Tags:
    return Tags(render_report(report).replace(_plotly(), ""))


def poison(tree: Any, text: str) -> Any:
    """`tree` with `text` in place of every string that people or models wrote."""
    if isinstance(tree, dict):
        words = {"content", "text", "name", "stopped", "common_phrase", "origin", "model", "consensus", "kind"}
        return {
            key: text if key in words and (isinstance(value, str) or key == "stopped") else poison(value, text)
            for key, value in tree.items()
        }
    return [poison(item, text) for item in tree] if isinstance(tree, list) else tree


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return make_report()


def test_every_key_is_explained(report: dict[str, Any]) -> None:
    assert sorted(set(walk_keys(report)) - set(GLOSSARY)) == []


def test_a_key_without_a_word_is_found() -> None:
    assert set(walk_keys({"policy": {"history": [{"brand_new": 1}]}, "timings_seconds": {"a stage": 1}})) - set(
        GLOSSARY
    ) == {"brand_new"}


def test_docs_and_page_say_what_the_glossary_says(report: dict[str, Any]) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    expected = {key: meaning.replace("|", "\\|") for key, meaning in GLOSSARY.items()}
    table = "\n".join(f"| `{key}` | {meaning} |" for key, meaning in expected.items())
    assert rows == expected, f"the table of docs/report.md should be:\n{table}"
    texts = parse(report).texts
    assert set(GLOSSARY.values()) <= set(texts)


def test_the_page_is_whole_and_asks_no_network(report: dict[str, Any]) -> None:
    tags = parse(report).tags
    for tag, attributes in tags:
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
    policy = next(a["content"] for t, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "'unsafe-inline'" not in policy.split("style-src")[0]
    assert "unsafe-eval" not in policy


def test_plotly_is_there_once_and_its_hash_is_allowed(report: dict[str, Any]) -> None:
    page = render_report(report)
    assert page.count(_plotly()) == 1
    assert f"'sha256-{_hash_script(_plotly())}'" in page
    scripts = re.findall(r"<script>(.*?)</script>", page.replace(_plotly(), ""), re.DOTALL)
    assert [s for s in scripts if s and f"'sha256-{_hash_script(s)}'" not in page] == []


def test_ids_are_unique_and_links_lead_somewhere(report: dict[str, Any]) -> None:
    tags = parse(report).tags
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for t, a in tags if t == "a" and a["href"]} <= set(ids)


def test_headings_descend_without_gaps_and_plots_are_described(report: dict[str, Any]) -> None:
    tags = parse(report).tags
    levels = [int(t[1]) for t, _ in tags if re.match(r"h[1-6]$", t)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    plots = [a for _, a in tags if a.get("class") == "plot"]
    assert len(plots) == 13
    assert all(a["role"] == "img" and a["aria-label"] for a in plots)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_inert(report: dict[str, Any], text: str) -> None:
    poisoned = poison(copy.deepcopy(report), text)
    calm = [tag for tag, _ in parse(poison(copy.deepcopy(report), "calm")).tags]
    found = parse(poisoned).tags
    new = {tag for tag, _ in found} - set(calm)
    assert new <= {"p", "em", "strong", "code", "pre", "blockquote", "ul", "ol", "li", "hr", "br"}
    for tag in ("script", "style", "link", "meta", "base", "svg", "a", "h1", "h2"):
        assert [t for t, _ in found].count(tag) == calm.count(tag), tag
    for _, attributes in found:
        assert not [name for name in attributes if EVENTS.match(name)]
        assert "javascript:" not in (attributes.get("href") or "")


@pytest.mark.parametrize("text", HOSTILE)
def test_each_lock_holds_alone(text: str) -> None:
    risky = re.compile(r"<(?!/?(?:p|em|strong|code|pre|blockquote|ul|ol|li|hr|br)\b)[a-z!/]", re.IGNORECASE)
    assert not risky.search(_MARKDOWN.render(text))
    with_html = MarkdownIt("commonmark").render(text)
    assert not risky.search(nh3.clean(with_html, tags=_TAGS, attributes={}, link_rel=None))


def test_template_signs_of_a_model_are_only_text(report: dict[str, Any]) -> None:
    assert "{{ 7 * 7 }}" in " ".join(parse(poison(copy.deepcopy(report), "{{ 7 * 7 }}")).texts)


def test_markdown_keeps_what_reads_well() -> None:
    html = clean_markdown("**bold** and `code`\n\n1. one\n2. two\n\n```\nx < 1\n```\n")
    assert "<strong>bold</strong>" in html
    assert html.count("<li>") == 2
    assert "x &lt; 1" in html
    assert clean_markdown("[x](https://example.org)") == "<p>[x](https://example.org)</p>\n", "shown for what it is"


def drop_gold(report: dict[str, Any]) -> None:
    rows = make_rows(gold=False)
    report["evaluation"] |= summarise_rows(rows, best_of=4, seed=0) | {"examples": rows[:2], "worst_examples": []}
    report["feedback"]["simulated"] = False


def drop_judges(report: dict[str, Any]) -> None:
    rows = make_rows(gold=False, heldout=False)
    report["evaluation"] |= summarise_rows(rows, best_of=4, seed=0) | {"examples": rows[:2], "worst_examples": []}


def test_people_prefer_is_said_by_the_heldout_model(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    drop_gold(changed)
    page = " ".join(parse(changed).texts)
    assert "People would prefer the new model" in page
    assert "votes that training never saw" in page
    assert "Every vote is a person's." in page


def test_without_a_judge_nothing_is_claimed(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    drop_judges(changed)
    page = render_report(changed)
    assert "Whether people would prefer the new model was not measured" in page
    assert "Is the gain real?" in page


@pytest.mark.parametrize("key", [*make_report(), "everything"])
def test_missing_parts_are_not_measured_and_never_pass(report: dict[str, Any], key: str) -> None:
    changed = {} if key == "everything" else {k: v for k, v in report.items() if k != key}
    page = " ".join(parse(changed).texts)
    lines = summarise_report(changed)
    assert all(len(line) <= 60 for line in lines)
    if key in ("evaluation", "everything"):
        assert "would prefer the new model in" not in page
        assert "Toxicity did not rise" not in page
        assert "Within the KL budget?" in page
    if key == "everything":
        assert "good" not in [a.get("class") for _, a in parse(changed).tags]
    assert "Undefined" not in page
    assert "None" not in page


def test_bare_parts_render(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    changed["policy"] = {"method": "rejection_sampling", "best_update": 1, "stopped": None, "history": []}
    changed["heldout_reward_model"] = None
    changed["reward_model"] |= {"annotator_agreement": None, "accuracy": None, "accuracy_by_margin": []}
    changed["feedback"]["agreement"] = {"pairwise": None, "alpha": None, "level": "nominal", "items": 0}
    page = " ".join(parse(changed).texts)
    assert "Curves: not measured by rejection_sampling" in page
    assert "annotators' agreement not measured" in page


def test_a_stop_and_a_gamed_reward_are_shown(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    changed["policy"]["stopped"] = "KL 12.1 nats is beyond the budget of 8"
    bad = {"value": -0.4, "low": -0.6, "high": -0.2, "n": 48, "interval": "bootstrap"}
    changed["evaluation"]["policy_minus_reference"]["gold"] = bad
    changed["evaluation"]["win_rate_against_reference"]["gold"] = bad | {"value": 0.3, "low": 0.2, "high": 0.4}
    page = " ".join(parse(changed).texts)
    assert "prefer the old model" in page
    assert "The reward was gamed" in page
    assert "Training was stopped early" in page
    assert "KL 12.1 nats" in page


def test_an_interval_over_one_half_is_no_win(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    changed["evaluation"]["win_rate_against_reference"]["gold"] |= {"value": 0.55, "low": 0.45, "high": 0.65}
    assert summarise_report(changed)[0].startswith("No clear difference: the new model wins 55 %")


def test_the_same_report_gives_the_same_bytes(report: dict[str, Any]) -> None:
    assert render_report(report) == render_report(json.loads(json.dumps(report)))


def test_simulated_annotators_are_marked_everywhere(report: dict[str, Any]) -> None:
    page = parse(report)
    assert page.texts.count("simulated") == len(report["feedback"]["annotators"]) + 1  # and in the glossary
    assert "simulated annotators" in page.texts
    assert summarise_report(report)[0].startswith("The simulated annotators")


@pytest.mark.parametrize(
    "said, expected",
    [
        (say_number(-1234.567), "\N{MINUS SIGN}1,234.57"),
        (say_number(-0.001), "0.00"),
        (say_number(0.5, 1, sign=True), "+0.5"),
        (say_number(None), "not measured"),
        (say_number(7), "7"),
        (say_percent(0.714), "71 %"),
        (say_seconds(3.21), "3.2 s"),
        (say_seconds(200), "3 min 20 s"),
        (say_seconds(7500), "2 h 5 min"),
        (say_bytes(3 * 2**30), "3.0 GiB"),
        (say_bytes(0), "not measured"),
    ],
)
def test_numbers_in_words(said: str, expected: str) -> None:
    assert said == expected


def test_what_annotators_said_on_the_way_is_told(report: dict[str, Any]) -> None:
    rows = list_challenges(report)
    assert [(row.update, row.rival, row.votes, row.better) for row in rows] == [
        (4, 0, "50", "yes"),
        (8, 4, "50", "no"),
        (12, 4, "50", "yes"),
    ]
    assert rows[0].share == "70 % (56 to 81 %)"
    assert "What annotators said on the way" in parse(report).texts
    quiet = {**report, "alarm": {**report["alarm"], "alarms": []}}
    assert "Nor did annotators prefer an earlier policy." in list_alarms(quiet)[0].detail
    unasked = {**report, "alarm": {name: value for name, value in quiet["alarm"].items() if name != "challenges"}}
    assert list_challenges(unasked) == [] and "What annotators said on the way" not in parse(unasked).texts
    assert "annotators" not in list_alarms(unasked)[0].detail
    untold = judge_tournament(unasked)
    assert untold is not None and "where the held-out judge would keep 8" in untold.title


def test_the_tournament_is_told(report: dict[str, Any]) -> None:
    told = judge_tournament(report)
    assert told is not None and told.title == (
        "Simulated annotators kept update 12, where their votes at each look would keep 8"
    )
    assert "240 votes" in told.detail and "4 checkpoints" in told.detail
    rows = [(row.update, row.share.split(" (")[0], row.kept) for row in list_checkpoints(report)]
    assert [row[2] for row in rows] == [False, False, False, True]
    assert [(update, share[:2]) for update, share, _ in rows] == [(0, "20"), (4, "50"), (8, "60"), (12, "70")]
    assert "Which checkpoint was kept?" in parse(report).texts
    agreed = {**report, "tournament": report["tournament"] | {"judged_update": 12}}
    again = judge_tournament(agreed)
    assert again is not None and again.title.endswith("as their votes at each look would have")
    without = {**report, "tournament": None}
    assert judge_tournament(without) is None and "Which checkpoint was kept?" not in parse(without).texts
