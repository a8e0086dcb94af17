"""accord.toml is read or refused: each class of mistake, its line, its mend; and any misspelt key by property."""

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accord.config import Config, InvalidSettings, load_config
from accord.config.document import TABLES, render_settings, render_toml, select_important
from accord.config.load import Problem
from accord.config.locate import locate_keys
from accord.errors import ConfigError


def refuse(folder: Path, text: str, *overrides: str) -> tuple[Problem, ...]:
    (folder / "accord.toml").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidSettings) as caught:
        load_config(folder, overrides)
    return caught.value.problems


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "accord.toml").write_text("")
    assert load_config(tmp_path, []) == Config()


def test_values_of_file_and_overrides_arrive(tmp_path: Path) -> None:
    (tmp_path / "accord.toml").write_text(
        '[ppo]\nupdates = 3\ngamma = 1\n[[simulation.annotators]]\nname = "a"\nskill = 2.5\n'
    )
    config = load_config(tmp_path, ["ppo.updates=5", "project.name=two words", "model.split = 4", "sft.epochs=1"])
    assert (config.ppo.updates, config.ppo.gamma, config.model.split, config.sft.epochs) == (5, 1.0, 4, 1)
    assert config.project.name == "two words"
    assert [(a.name, a.skill) for a in config.simulation.annotators] == [("a", 2.5)]


@pytest.mark.parametrize(
    "text, where, message, mend",
    [
        ("[ppo]\nclip_rnge = 0.1", "accord.toml:2", "unknown setting ppo.clip_rnge", "did you mean clip_range?"),
        ("\n[polcy]", "accord.toml:2", "unknown section [polcy]", "did you mean policy?"),
        ("[zzz]", "accord.toml:1", "unknown section [zzz]", "sections: project, model, prompts"),
        ("[project]\nkl_coef = 1.0", "accord.toml:2", "unknown setting project.kl_coef", "a setting of [ppo]"),
        ("seed = 1", "accord.toml:1", "seed stands outside any section", "put it below [project]"),
        ("[ppo]\nupdates = '8'", "accord.toml:2", 'ppo.updates: expected a whole number, got the text "8"', None),
        ("[ppo]\nupdates = true", "accord.toml:2", "expected a whole number, got true", None),
        ("[ppo]\nupdates = 8.5", "accord.toml:2", "expected a whole number, got the number 8.5", None),
        ("[ppo]\ngamma = nan", "accord.toml:2", "ppo.gamma: expected a finite number, got the number nan", None),
        ("[ppo]\ngamma = {}", "accord.toml:2", "ppo.gamma: expected a number, got a table", None),
        ("[ppo]\nupdates = 0", "accord.toml:2", "ppo.updates: expected at least 1, got the number 0", None),
        ("[ppo]\ngamma = 1.5", "accord.toml:2", "ppo.gamma: expected at most 1.0, got the number 1.5", None),
        ("[project]\nname = 7", "accord.toml:2", "expected a text, got the number 7", 'name = "7"'),
        ("[model]\ndtype = 'float23'", "accord.toml:2", "expected one of", "did you mean float32?"),
        ("ppo = 3", "accord.toml:1", "ppo: expected a table, got the number 3", "a line [ppo]"),
        ("[[ppo]]\nupdates = 3", "accord.toml:1", "ppo: expected a table, got a list", "a line [ppo]"),
        ("[simulation]\nannotators = 3", "accord.toml:2", "simulation.annotators: expected a list", None),
        ("[[simulation.annotators]]\nskill = 1.0", "accord.toml:1", "annotators[0].name is missing", "add name"),
        (
            "[[simulation.annotators]]\nname='a'\n[[simulation.annotators]]\nname='b'\nskil = 1.0",
            "accord.toml:5",
            "unknown setting simulation.annotators[1].skil",
            "did you mean skill?",
        ),
        (
            "[[simulation.annotators]]\nname='a'\n[[simulation.annotators]]\nname='a'",
            "accord.toml:1",
            "two simulated annotators have the same name",
            None,
        ),
        ("[model]\nsplit = 3\nadapter='full'", "accord.toml:3", "split must be 0 or -1", None),
        ("[ppo]\n\nminibatches = 3", "accord.toml:3", "prompts_per_update must be a multiple", None),
        ("[prompts]\ntrain = 'votes'", "accord.toml:2", 'prompts.train = "votes" needs feedback.source', None),
        ("[ppo]\nupdates = ", "accord.toml:2", "invalid TOML: invalid value", "quoted"),
        ("[ppo]\nx = 1\nx = 2", "accord.toml:3", "invalid TOML: cannot overwrite a value", "quoted"),
        ('a = """', "accord.toml", "invalid TOML", "quoted"),
    ],
)
def test_each_mistake_is_named_with_its_line_and_mend(
    tmp_path: Path, text: str, where: str, message: str, mend: str | None
) -> None:
    (problem,) = refuse(tmp_path, text)
    assert re.fullmatch(re.escape(where) + r"(:\d+)?", problem.where)  # broken TOML: its column follows
    assert message in problem.message
    assert mend is None or mend in (problem.mend or "")


@pytest.mark.parametrize(
    "override, where, message",
    [
        ("ppo.gama=1", "--set ppo.gama", "unknown setting ppo.gama"),
        ("ppo.updates=many", "--set ppo.updates", 'expected a whole number, got the text "many"'),
        ("pppo.updates=1", "--set pppo.updates", "unknown section [pppo]"),
        ("ppo=1", "--set ppo=1", "not of the form section.key=value"),
        ("ppo.updates", "--set ppo.updates", "not of the form section.key=value"),
        ("simulation.annotators.name=x", "--set simulation.annotators.name=x", "not of the form section.key=value"),
        ("ppo.minibatches=3", "--set ppo.minibatches", "prompts_per_update must be a multiple"),
    ],
)
def test_an_override_is_blamed_by_its_own_name(tmp_path: Path, override: str, where: str, message: str) -> None:
    (problem,) = refuse(tmp_path, "[ppo]\nupdates = 4\n", override)
    assert problem.where == where
    assert message in problem.message


def test_every_problem_is_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "[model]\nadapter = 'full'\nsplit = 3\n[ppo]\nminibatches = 3\nclip = 1\nupdates = 'x'\n[oops]\n"
    problems = refuse(tmp_path, text, "compute.device=tpu", "bad")
    assert [p.where for p in problems] == [
        "--set bad",
        *(f"accord.toml:{line}" for line in (2, 5, 6, 7, 8)),
        "--set compute.device",
    ]


def test_a_crosscheck_that_rests_on_a_refused_setting_says_nothing(tmp_path: Path) -> None:
    (problem,) = refuse(tmp_path, "[ppo]\nminibatches = 3\nprompts_per_update = '33'\n")
    assert "prompts_per_update: expected a whole number" in problem.message


def test_each_nameless_annotator_is_told_once(tmp_path: Path) -> None:
    table = "[[simulation.annotators]]\n"
    problems = refuse(tmp_path, f"{table}skill = 1.0\n{table}name = 'b'\n{table}skill = 2.0\n")
    assert [(p.where, p.message) for p in problems] == [
        ("accord.toml:1", "simulation.annotators[0].name is missing"),
        ("accord.toml:5", "simulation.annotators[2].name is missing"),
    ]


def test_an_override_cannot_bring_other_settings_with_it(tmp_path: Path) -> None:
    (tmp_path / "accord.toml").write_text("")
    config = load_config(tmp_path, ["project.name='a'\nseed = 3"])
    assert (config.project.name, config.project.seed) == ("'a'\nseed = 3", 0)


def test_a_missing_file_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "nowhere")
    assert "no accord.toml" in str(caught.value)
    assert "accord init" in (caught.value.mend or "")


def test_a_file_that_is_not_utf8_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "accord.toml").write_bytes(b'[project]\nname = "\xff"\n')
    with pytest.raises(InvalidSettings) as caught:
        load_config(tmp_path)
    assert caught.value.where == "accord.toml:2"


def test_lines_survive_every_way_to_write_a_key() -> None:
    text = '''# a comment
title = """
[not.a.table]
x = 1
"""

[a]
"quoted key" = 1
b.c = 2
d = { e = 1, f = [1,
  2] }
[[list.item]]
x = 1
[[list.item]]
x = """#
"""
[list.item.deep]
y = 2
'''
    tomllib.loads(text)
    lines = locate_keys(text)
    expected = {
        ("title",): 2,
        ("a",): 7,
        ("a", "quoted key"): 8,
        ("a", "b", "c"): 9,
        ("a", "d", "e"): 10,
        ("list", "item", 0): 12,
        ("list", "item", 0, "x"): 13,
        ("list", "item", 1, "x"): 15,
        ("list", "item", 1, "deep", "y"): 18,
    }
    assert {path: lines.get(path) for path in expected} == expected
    assert not any("not" in path for path in lines)


def all_settings() -> list[tuple[str, str]]:
    return [
        (name, key)
        for name, info in Config.model_fields.items()
        for key in info.annotation.model_fields
        if key not in TABLES
    ]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(all_settings()), st.data())
def test_any_misspelt_key_is_found_on_its_line(tmp_path: Path, setting: tuple[str, str], data: st.DataObject) -> None:
    section, key = setting
    place = data.draw(st.integers(0, len(key) - 1))
    letter = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz_-0123456789"))
    kind = data.draw(st.sampled_from(["drop", "change", "add"]))
    typo = {
        "drop": key[:place] + key[place + 1 :],
        "change": key[:place] + letter + key[place + 1 :],
        "add": key[:place] + letter + key[place:],
    }[kind]
    names = getattr(Config(), section).__class__.model_fields
    if not typo or typo in names:
        return
    lines = render_toml({name: dict(getattr(Config(), name)) for name in Config.model_fields}).splitlines()
    inside = lines.index(f"[{section}]")
    line = next(n for n in range(inside, len(lines)) if lines[n].startswith(f"{key} = "))
    lines[line] = typo + lines[line][len(key) :]
    (problem,) = refuse(tmp_path, "\n".join(lines))
    assert problem.where == f"accord.toml:{line + 1}"
    assert problem.message == f"unknown setting {section}.{typo}"
    if len(key) > 4:
        assert problem.mend is not None
        assert "did you mean" in problem.mend or "is a setting of" in problem.mend


@given(st.text(st.characters(codec="utf-8"), max_size=30), st.floats(allow_nan=False, allow_infinity=False))
def test_written_settings_read_back_equal(name: str, learning_rate: float) -> None:
    annotators = [{"name": name, "skill": learning_rate}]
    active = {"project": {"name": name}, "ppo": {"learning_rate": learning_rate}}
    text = render_toml({**active, "simulation": {"annotators": annotators}}, head="An example\n\nof two lines")
    read = {section: values for section, values in tomllib.loads(text).items() if values}
    assert read == {**active, "simulation": {"annotators": annotators}}


def test_every_default_stands_in_a_new_file_as_a_comment(tmp_path: Path) -> None:
    text = render_toml(select_important(Config()))
    assert tomllib.loads(text)["project"] == {"name": "my-project", "seed": 0, "rounds": 1}
    open_text = "\n".join(line[1:] if line[:1] == "#" and line[1:2].strip() else line for line in text.splitlines())
    (tmp_path / "accord.toml").write_text(open_text)
    config = load_config(tmp_path)
    assert [a.name for a in config.simulation.annotators] == ["ann"]
    assert [source.name for source in config.reward.sources] == ["proxy"]
    assert [reward.name for reward in config.guard.rewards] == ["harmless"]
    plain = {name: getattr(Config(), name) for name in ("simulation", "reward", "guard")}
    assert config.model_copy(update=plain) == Config()
    assert set(all_settings()) <= {path for path in locate_keys(open_text) if len(path) == 2}


def test_the_settings_page_has_every_setting() -> None:
    page = render_settings()
    assert all(f"| `{key}` |" in page for _, key in all_settings())
