"Fault 30: YAML that executes, explodes or digs, wherever a user can put it: one kind of error, one line, at once"
import gc
import time

import pytest
from geoseg_nb.cli import main
from geoseg_nb.core import Refused
from geoseg_nb.jobs import as_declared, load_recipe
from geoseg_nb.spec import read_config

BOMB = "\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))])
LINE_BOMB = "{" + BOMB.replace("\n", ", ") + "}"
ATTACKS = {
    "python tag": "{x: !!python/object/apply:os.system ['touch owned']}",
    "python name": "{x: !!python/name:os.system ''}",
    "alias bomb": LINE_BOMB,
    "depth": "{x: " + "[" * 3000 + "]" * 3000 + "}",
    "depth of dicts": "{x: " + "{a: " * 3000 + "1" + "}" * 3000 + "}",
    "depth of forty-one": "{x: " + "[" * 41 + "]" * 41 + "}",
    "key twice": "{x: 1, x: 2}",
    "recursive": "&a {x: *a}",
    "broken": "{x: [1",
    "odd character": "{x: \x07}",
    "key of a list": "{[1, 2]: x}",
    "number as key": "{12: x}",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    return tmp_path


def refused(action, *values):
    gc.collect()  # what other tests left is not billed to this one
    began = time.process_time()
    with pytest.raises(Refused) as caught: action(*values)
    assert time.process_time() - began < 1 and len(str(caught.value)) < 600
    return str(caught.value)


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS)
def test_everywhere_the_same_refusal(folder, capsys, text):
    (folder / "mine" / "recipe.yml").write_text(text.replace("x:", "title:"))
    assert "recipe.yml" in refused(load_recipe, folder / "mine")
    (folder / "mine" / "recipe.yml").write_text("jobs: [11_split]\n")
    (folder / "mine" / "11_split.yml").write_text(text)
    assert "11_split.yml" in refused(load_recipe, folder / "mine")
    assert "11_split.areas" in refused(as_declared, text, "dict", "11_split.areas")
    (folder / "more.yml").write_text(text)
    for words in (["-p", f"areas={text}"], ["-f", "more.yml"]):
        assert main(["run", "split", "--out", "run", *words]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and ("11_split.areas" in said or "more.yml" in said)
    assert not (folder / "owned").exists() and not (folder / "run").exists()


def test_these_texts_are_attacks():
    "What the bare library does with them: the tests above can fail"
    import yaml
    with pytest.raises(RecursionError): yaml.safe_load("[" * 700 + "]" * 700)
    assert yaml.safe_load(ATTACKS["python tag"].replace("!!python/object/apply:os.system", "")) == {"x": ["touch owned"]}
    level = yaml.safe_load(LINE_BOMB)["a8"]
    for _ in range(8): level = level[0]
    assert level == ["x"] * 9 and 9**9 > 3e8


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_a_value_inside_a_file_is_held_to_the_same_limits(folder, kind):
    "A parameter file may give a list as text, which is parsed once more"
    (folder / "values.yml").write_text("bands: '" + "[" * 3000 + "]" * 3000 + "'\n")
    assert "22_tile.bands" in refused(as_declared, read_config("values.yml")["bands"], kind, "22_tile.bands")


def test_what_people_write_still_passes():
    assert as_declared("{a: &x [1, 2], b: *x}", "dict", "k") == {"a": [1, 2], "b": [1, 2]}
    assert as_declared("[" * 40 + "]" * 40, "list", "k")[0][0] is not None
    assert as_declared("[VV, 1e-3, -1]", "list", "k") == ["VV", "1e-3", -1]


def test_values_in_a_recipe_that_nothing_would_read_are_refused(folder):
    (folder / "mine" / "recipe.yml").write_text("jobs: [11_split]\nvalues: {11_split: {buffer: 8}}\n")
    assert "a file of its own, 11_split.yml" in refused(load_recipe, folder / "mine")
