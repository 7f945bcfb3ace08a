"Floor 0: names, whole files, locks, legends, grids, specs and profiles under hostile input"
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from geoseg_nb import core, profile, spec, storage
from geoseg_nb.core import GeosegError, Grid, GridMismatch, Legend, LegendClass, Refused
from geoseg_nb.spec import Spec

TEXT = st.text(max_size=40)


def refused(action, *values):
    "The sentence of a refusal; fails when there is none"
    with pytest.raises(GeosegError) as caught:
        action(*values)
    return str(caught.value)


# ---------------------------------------------------------------- errors and choices

def test_errors_are_value_errors_and_survive_another_process():
    code = ("from concurrent.futures import ProcessPoolExecutor as P; import geoseg_nb.core as c, multiprocessing as m\n"
            "if __name__ == '__main__':\n"
            "    with P(1, mp_context=m.get_context('spawn')) as pool: error = pool.submit(c.pick, {'a': 1}, 'b').exception()\n"
            "    assert type(error) is c.Refused and error.item == 'b', repr(error)")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@given(st.dictionaries(TEXT, st.integers(), max_size=6), st.one_of(TEXT, st.none(), st.integers(), st.just([])))
def test_pick_returns_the_value_or_names_all_it_knows(table, name):
    if isinstance(name, str) and name in table:
        assert core.pick(table, name) == table[name]
    else:
        sentence = refused(core.pick, table, name, "loss")
        assert all(known in sentence for known in table)


# ---------------------------------------------------------------- optional packages (fault 48)

EXTRAS = {"lab": "ipywidgets", "s3": "obstore", "augment": "kornia", "sweep": "optuna", "track": "mlflow", "embed": "lancedb", "onnx": "onnx"}


@pytest.mark.parametrize(("extra", "module"), EXTRAS.items())
def test_a_missing_extra_names_module_extra_and_command(tmp_path, extra, module):
    "In a process that cannot find the module, installed here or not; the last line is what a user sees"
    code = ("import sys\nclass Hidden:\n    def find_spec(self, name, path=None, target=None):\n"
            f"        if name.partition('.')[0] == {module!r}: raise ModuleNotFoundError('No module named ' + name, name=name)\n"
            f"sys.meta_path.insert(0, Hidden())\nimport geoseg_nb.core as core\ncore.require_extra({module!r}, {extra!r})")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith(f"geoseg_nb.core.Refused: {extra} needs {module}: pip install 'geoseg_nb[{extra}]'"), last


def test_every_extra_of_the_settings_can_be_asked_for_and_no_other():
    settings_ini = (Path(__file__).parents[1] / "settings.ini").read_text()
    extras = [line.split("=")[0].strip().removeprefix("extra_") for line in settings_ini.splitlines() if line.startswith("extra_")]
    assert set(EXTRAS) < set(extras)
    assert all(core.require_extra("json", extra) is json for extra in extras)
    sentence = refused(core.require_extra, "json", "tracks")
    assert "did you mean 'track'" in sentence and all(extra in sentence for extra in extras)


def test_an_extra_that_is_broken_says_why(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "libGL.so.1" in refused(core.require_extra, "half_installed", "track")


# ---------------------------------------------------------------- run names and keys (fault 32)

HOSTILE = ["../../x", "/abs", "-rf", "a\0b", "x" * 300, "x" * 129, "%2e%2e", "", ".", "..", ".hidden", "a/b", "a\\b", "a b", "a\n",
           "..a", "a..", "a..b", "~root", "$HOME", "`id`", "a;b", "a|b", "*", "CON:", "é", "run\u202e", "１２", "_a", None, 7, b"a"]


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_hostile_names_are_refused(name):
    assert "letter or digit first" in refused(storage.safe_name, name)


@pytest.mark.parametrize("name", ["a", "0", "x" * 128, "floods-2026.11_seed0", "A.b-c_d", "a."])
def test_ordinary_names_pass(name):
    assert storage.safe_name(name) == name


@settings(max_examples=300)
@given(st.text(max_size=140) | st.text(alphabet="aZ0._-/\\ ~\0", max_size=140))
def test_a_name_is_refused_or_stays_one_level_below_its_root(name):
    root = Path("/somewhere/runs")
    try:
        safe = storage.safe_name(name)
    except Refused:
        return
    assert Path(os.path.normpath(root / safe)).parent == root and safe.isascii() and not safe.startswith("-")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["..", ".", "a", "out", "in", "loop", "", "b c", "\0", "~"]), max_size=6), st.sampled_from(["", "/"]))
@example(["out", "secret"], "")
@example(["in", "..", "..", "outside"], "")
def test_keys_never_leave_the_root(tmp_path_factory, parts, start):
    base = tmp_path_factory.getbasetemp() / "keys"
    root, outside = base / "root", base / "outside"
    for folder in (root / "a", outside):
        folder.mkdir(parents=True, exist_ok=True)
    for link, goal in (("out", outside), ("in", root / "a"), ("loop", root / "loop")):
        if not (root / link).is_symlink():
            (root / link).symlink_to(goal)
    key = start + "/".join(parts)
    for check in (storage.inside, storage.key_path):
        try:
            path = check(root, key)
        except Refused:
            continue
        assert root.resolve() in Path(os.path.realpath(path)).parents


def test_an_object_store_neither_reads_nor_writes_nor_lists_through_links(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("mine")
    store = storage.LocalStorage(tmp_path / "root")
    store.write("a/b", "data")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "root" / "file").symlink_to(tmp_path / "secret" / "key")
    for action in (store.read, store.exists, store.size, store.remove, lambda key: store.write(key, b"gone")):
        for key in ("link/key", "file", "../secret/key", str(tmp_path / "secret" / "key")):
            assert refused(action, key)
    assert (tmp_path / "secret" / "key").read_text() == "mine"
    assert store.keys() == ["a/b"] and storage.files_below(tmp_path / "nowhere") == []


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z]{1,3}(/[a-z]{4,6}){0,2}", fullmatch=True), st.binary(max_size=20), max_size=8), TEXT)
def test_a_storage_is_a_dictionary(tmp_path_factory, objects, prefix):
    store = storage.LocalStorage(tmp_path_factory.mktemp("dict"))
    for key, data in objects.items():
        try:
            store.write(key, data)
        except OSError:  # "a" is a file, so "a/b" cannot be written below it
            return
    for text in ("", prefix, *list(objects)[:2]):
        assert store.keys(text) == sorted(key for key in objects if key.startswith(text))
    assert all(store.read(key) == data and store.size(key) == len(data) for key, data in objects.items())
    for key in objects:
        store.remove(key)
    assert store.keys() == []


# ---------------------------------------------------------------- places

def test_relative_paths_count_from_the_root_inside_and_from_the_folder_outside(tmp_path, monkeypatch):
    house = tmp_path / "house"
    (house / "nbs" / "jobs").mkdir(parents=True)
    (house / "settings.ini").write_text("[DEFAULT]\nlib_name = geoseg_nb\n")
    for where, root in ((house, house), (house / "nbs" / "jobs", house), (tmp_path, None)):
        monkeypatch.chdir(where)
        assert storage.project_root() == root
        assert storage.resolve("out/x") == (root or where) / "out" / "x"
        assert storage.resolve("/abs/x") == Path("/abs/x")


@pytest.mark.parametrize("text", ["[DEFAULT]\nlib_name = other\n", "no section", "\xff\xfe", "[DEFAULT]\nlib_name = %(loop)s\n", ""])
def test_settings_of_others_make_no_project(tmp_path, monkeypatch, text):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "settings.ini").write_bytes(text.encode("latin-1"))
    monkeypatch.chdir(tmp_path)
    assert storage.project_root() is None


def test_dots_are_resolved_as_the_system_does(tmp_path):
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "deep")
    assert storage.resolve(tmp_path / "link" / ".." / "x") == tmp_path / "far" / "x"
    assert storage.resolve(tmp_path / "link" / "x") == tmp_path / "link" / "x"


# ---------------------------------------------------------------- whole files, at every crash point

class Crash(OSError):
    "The power fails here"


def crash_at(monkeypatch, k):
    "Lets the k-th call of os.fsync or os.replace fail; returns the calls made"
    calls = []

    def failing(name, real):
        def call(*args):
            calls.append(name)
            if len(calls) - 1 == k:
                raise Crash(f"at call {k}, {name}")
            return real(*args)
        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, failing(name, getattr(os, name)))
    return calls


@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize("k", range(3))
def test_a_crash_leaves_old_or_new_and_no_trace(tmp_path, monkeypatch, before, k):
    target = tmp_path / "result.json"
    if before is not None:
        target.write_bytes(before)
    calls = crash_at(monkeypatch, k)
    with pytest.raises(Crash):
        storage.write_atomic(target, b"new")
    monkeypatch.undo()
    assert (target.read_bytes() if target.exists() else None) == (before if k < 2 else b"new")
    assert len(calls) == k + 1 and [p.name for p in tmp_path.iterdir()] in ([], ["result.json"])


def test_the_crash_points_are_all_there_are(tmp_path, monkeypatch):
    "Content to disk, then the name, then the folder; in this order, or a crash could keep the name and lose the content"
    calls = crash_at(monkeypatch, k=99)
    storage.write_atomic(tmp_path / "result.json", b"new")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch):
    def fsync(_):
        raise OSError(22, "Invalid argument")
    monkeypatch.setattr(os, "fsync", fsync)
    assert storage.write_atomic(tmp_path / "a", b"new").read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failing_writer_leaves_old_content_and_no_side_files(tmp_path, error):
    target = tmp_path / "scene.tif"
    target.write_bytes(b"old")
    with pytest.raises(error), storage.atomic_file(target) as temporary:
        temporary.write_bytes(b"half")
        temporary.with_name("scene.tif.aux.xml").write_text("side")
        raise error
    assert target.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["scene.tif"]


def test_a_killed_writer_leaves_old_content_and_a_room_that_is_no_data(tmp_path):
    target = storage.write_atomic(tmp_path / "result.json", "old")
    code = (f"import os, signal\nfrom geoseg_nb.storage import atomic_file\n"
            f"with atomic_file({str(target)!r}) as t: t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -signal.SIGKILL
    assert target.read_text() == "old" and len(list(tmp_path.glob(".geoseg-tmp-*"))) == 1
    assert storage.files_below(tmp_path) == ["result.json"]
    clean = storage.folder_sha256(tmp_path)
    with storage.run_lock(tmp_path):
        assert {p.name for p in tmp_path.iterdir()} == {"result.json", ".lock"}
    (tmp_path / ".lock").unlink()
    assert storage.folder_sha256(tmp_path) == clean


def test_long_and_foreign_file_names_are_written(tmp_path):
    for name in ("x" * 255, "straße 東京.json", "é" * 127):
        assert storage.write_atomic(tmp_path / name, "ß").read_bytes() == "ß".encode()


def test_text_is_utf8_in_any_locale(tmp_path):
    code = f"from geoseg_nb.storage import write_atomic; write_atomic({str(tmp_path / 'a')!r}, '\\xdf')"
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=env)
    assert (tmp_path / "a").read_bytes() == "ß".encode()


def test_a_folder_hash_sees_names_and_bytes(tmp_path):
    hashes = set()
    for name, data in (("a", "1"), ("b", "1"), ("b", "2"), ("c/b", "2")):
        folder = tmp_path / f"{len(hashes)}"
        storage.write_atomic(folder / name, data)
        hashes.add(storage.folder_sha256(folder))
    assert len(hashes) == 4


# ---------------------------------------------------------------- run_lock

HOLD = "import sys, time\nfrom geoseg_nb.storage import run_lock\nwith run_lock(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(120)"


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_and_a_killed_first_one_lets_go(tmp_path, holder):
    sentence = refused(storage.run_lock(tmp_path / "run").__enter__)
    assert f"process {holder.pid} on" in sentence and "run run" in sentence
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with storage.run_lock(tmp_path / "run") as lock:
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert lock.read_text() == ""


def test_the_holder_clears_only_what_is_its_own(tmp_path):
    "Rooms of others, and of a run that is being written one level below, stay"
    own, aside, foreign, used = (tmp_path / p for p in ("22_tile/.geoseg-tmp-00000001", "22_tile/.geoseg-tmp-0a1b2c3d-old", "22_tile/.tmp-0a1b2c3d",
                                                        "seed-1/37_train/.geoseg-tmp-00000002"))
    near = [tmp_path / name for name in (".geoseg-tmp-0", ".geoseg-tmp-0a1b2c3d-new", ".geoseg-tmp-ABCDEF01", ".tmp-00000003")]
    for folder in (own, aside, foreign, used, *near):
        folder.mkdir(parents=True)
    with storage.run_lock(tmp_path / "seed-1"):
        used.mkdir(exist_ok=True)
    used.mkdir(exist_ok=True)
    with storage.run_lock(tmp_path):
        assert not own.exists() and not aside.exists() and foreign.exists() and used.exists() and all(folder.exists() for folder in near)
    with storage.run_lock(tmp_path / "seed-1"):
        assert not used.exists(), "whoever holds the run below clears it"


def test_a_lock_is_free_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), storage.run_lock(tmp_path):
            1 / 0


def test_of_many_processes_exactly_one_holds(tmp_path):
    code = ("import sys, time\nfrom pathlib import Path\nfrom geoseg_nb.storage import run_lock\n"
            "with run_lock(sys.argv[1]):\n    while not Path(sys.argv[1], 'go').exists(): time.sleep(0.02)")
    many = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL) for _ in range(4)]
    deadline = time.monotonic() + 60
    while sum(process.poll() is not None for process in many) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    (tmp_path / "go").touch()
    assert sorted(process.wait(timeout=60) for process in many) == [0, 1, 1, 1]


# ---------------------------------------------------------------- legend

@st.composite
def legends(draw):
    codes = draw(st.lists(st.integers(-2**31, 2**31 - 1), min_size=2, max_size=12, unique=True))
    owner = draw(st.lists(st.integers(0, 3), min_size=len(codes), max_size=len(codes)))
    groups = [[c for c, o in zip(codes, owner) if o == k] for k in range(4)]
    classes = tuple(LegendClass(f"c{k}", "#00ff00", tuple(g)) for k, g in enumerate(groups[:3]) if g)
    return Legend(classes or (LegendClass("c", "#00ff00", tuple(groups.pop(3))),), tuple(groups[3]) if len(groups) > 3 else ())


@given(legends(), st.data())
def test_a_legend_maps_each_code_as_a_dictionary_would(legend, data):
    table = {code: i for i, c in enumerate(legend.classes) for code in c.codes} | dict.fromkeys(legend.ignore, legend.ignore_index)
    raw = data.draw(st.lists(st.sampled_from(sorted(table)), min_size=1, max_size=30))
    index = legend.encode(np.array(raw))
    assert index.dtype == np.uint8 and index.tolist() == [table[code] for code in raw]
    assert (legend.encode(legend.decode(index)) == index).all()
    assert Legend.from_dict(json.loads(json.dumps(legend.as_dict()))) == legend


@given(legends(), st.integers(-2**40, 2**40))
def test_an_unknown_code_is_named_with_its_item(legend, code):
    known = {k for c in legend.classes for k in c.codes} | set(legend.ignore)
    if code not in known:
        sentence = refused(legend.encode, np.array([legend.classes[0].codes[0], code, code]), "chip_7")
        assert sentence.startswith("chip_7: ") and f" {code} (2 pixels)" in sentence and str(legend.classes[0].codes[0]) in sentence


CORINE = core.make_legend({"pasture": [231, "#e6e64d"], "forest": [[311, 312, 313], "#2f6b3a"]}, ignore=[999])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64", "float32", "float64", "bool"])
def test_labels_of_any_type(dtype):
    legend = core.make_legend({"dry": [0, "#d8c9a0"], "water": [1, "#2b6cb0"]})
    codes = np.array([[0, 1], [1, 0]]).astype(dtype)
    assert legend.encode(codes).tolist() == [[0, 1], [1, 0]]
    assert legend.encode(codes[:0]).shape == (0, 2)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64"])
def test_a_table_of_codes_gives_what_a_search_gives(dtype):
    "The whole range of a narrow type, or one that a wide type allows, pixel by pixel against a dictionary"
    limits, random = np.iinfo(dtype), np.random.default_rng(0)
    low, high = max(limits.min, -30_000), min(limits.max, 30_000)
    ends = sorted({low, low + 1, 0, 1, 57, high})
    legend = core.make_legend({"a": [ends[::2], "#d8c9a0"], "b": [ends[1::2], "#2b6cb0"]})
    table = {code: i for i, c in enumerate(legend.classes) for code in c.codes}
    codes = random.choice(ends, (300, 300)).astype(dtype)
    assert np.array_equal(legend.encode(codes), np.vectorize(table.get)(codes)) and legend.encode(codes).dtype == np.uint8
    assert np.array_equal(legend.encode(codes.astype("float64")), legend.encode(codes)), "floats are searched"
    codes[7, :3] = high - 1
    assert f"chip: codes {high - 1} (3 pixels) are not" in refused(legend.encode, codes, "chip")


def test_codes_do_not_wrap():
    "999 mod 256 is 231: as bytes, unlabelled pixels would be pasture"
    assert CORINE.encode([231, 999, 312]).tolist() == [0, 255, 1]
    assert "codes 55 (1 pixels)" in refused(CORINE.encode, np.array([311]).astype("uint8"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.5])
def test_floats_that_are_no_codes_are_unknown(value):
    assert "not in the legend" in refused(CORINE.encode, np.array([231.0, value]))


@pytest.mark.parametrize("classes, ignore, index", [
    ({"a": [0, "#000000"], "b": [0, "#ffffff"]}, [], 255), ({"a": [0, "#000000"]}, [0], 255), ({"a": [0, "black"]}, [], 255),
    ({"a": [[], "#000000"]}, [], 255), ({}, [], 255), ({"a": [0, "#000000"], "b": [1, "#ffffff"]}, [], 1), ({"a": [0, "#000000"]}, [], 256),
    ({"a": [[0, 0], "#000000"]}, [], 255), ({"a": 0}, [], 255), ({"a": [0]}, [], 255), ({"a": "0 #000000"}, [], 255)])
def test_a_legend_that_is_none_is_refused(classes, ignore, index):
    assert refused(core.make_legend, classes, ignore, index)


@pytest.mark.parametrize("indices", [[2], [-1], [254], [256]])
def test_decoding_what_is_no_class(indices):
    assert "neither" in refused(CORINE.decode, np.array(indices))


# ---------------------------------------------------------------- grids

numbers = st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-3)


@st.composite
def grids(draw):
    side = st.floats(0.01, 1000)
    turn, x, y = draw(st.floats(-math.pi, math.pi)), draw(side), draw(side)
    a, b, d, e = x * math.cos(turn), y * math.sin(turn), x * math.sin(turn), -y * math.cos(turn)
    return Grid("EPSG:32633", (a, b, draw(numbers), d, e, draw(numbers)), draw(st.integers(1, 9999)), draw(st.integers(1, 9999)))


@given(grids())
def test_a_grid_equals_itself_and_its_copy(grid):
    copy = Grid.from_dict(json.loads(json.dumps(grid.as_dict())))
    assert copy == grid and core.grid_difference(grid, copy) == ""


@given(grids(), st.integers(-500, 500), st.integers(-500, 500))
def test_a_window_lies_where_its_pixels_lie(grid, row, col):
    window = grid.window(row, col, 10, 20)
    here, there = (np.reshape(g.transform, (2, 3)) for g in (grid, window))
    assert np.allclose(here @ (col + 7, row + 3, 1), there @ (7, 3, 1), rtol=1e-9, atol=1e-6)
    assert np.allclose(window.resolution, grid.resolution) and (window.height, window.width) == (10, 20)


@given(grids(), st.floats(2e-3, 10), st.sampled_from(["x", "y", "size", "scale", "crs"]))
def test_what_differs_by_more_than_a_thousandth_pixel_is_seen(grid, shift, what):
    a, b, c, d, e, f = grid.transform
    least, most = min(grid.resolution), max(grid.resolution)
    other = {
        "x": Grid(grid.crs, (a, b, c + shift * least, d, e, f), grid.height, grid.width),
        "y": Grid(grid.crs, (a, b, c, d, e, f - shift * least), grid.height, grid.width),
        "size": Grid(grid.crs, grid.transform, grid.height + 1, grid.width),
        "scale": Grid(grid.crs, (a * (1 + shift), b * (1 + shift), c, d * (1 + shift), e * (1 + shift), f), grid.height, grid.width),
        "crs": Grid("EPSG:32634", grid.transform, grid.height, grid.width),
    }[what]
    sentence = core.grid_difference(grid, other)
    assert grid.describe() in sentence and other.describe() in sentence
    assert sentence.split(": ")[-1] == {"x": "origin", "y": "origin", "size": "height or width", "scale": "pixel size", "crs": "CRS"}[what]
    nudged = Grid(grid.crs, (a, b, c + 1e-4 * least * least / most, d, e, f), grid.height, grid.width)
    assert core.grid_difference(grid, nudged) == ""


def test_a_mismatch_names_the_item_both_grids_and_the_fix():
    a = Grid("EPSG:32633", (10, 0, 500000, 0, -10, 5300000), 512, 512)
    b = Grid("EPSG:32634", a.transform, 512, 512)
    with pytest.raises(GridMismatch) as caught:
        core.require_same_grid(a, b, "T32UQC", ("B02", "VV"))
    for part in ("T32UQC", "B02 is EPSG:32633 10 m", "VV is EPSG:32634 10 m", "-t_srs EPSG:32633", "-ts 512 512"):
        assert part in str(caught.value)
    assert caught.value.item == "T32UQC"
    with pytest.raises(GridMismatch, match="ask Anna"):
        core.require_same_grid(a, b, "T32UQC", fix="ask Anna")


def test_spellings_of_one_crs_are_one():
    from pyproj import CRS
    for code in (4326, 32633, 3857):
        for spelling in (CRS.from_epsg(code).to_wkt("WKT1_GDAL"), CRS.from_epsg(code).to_wkt(), f"epsg:{code}"):
            assert core.same_crs(f"EPSG:{code}", spelling)
    assert core.same_crs("EPSG:4326", "OGC:CRS84"), "GDAL reads both as longitude, latitude"


@pytest.mark.parametrize("values", [
    ("", (1, 0, 0, 0, -1, 0), 1, 1), ("EPSG:4326", (1, 0, 0, 0, 0, 0), 1, 1), ("EPSG:4326", (1, 0, math.nan, 0, -1, 0), 1, 1),
    ("EPSG:4326", (1, 0, 0), 1, 1), ("EPSG:4326", (1, 0, 0, 0, -1, 0), 0, 1), (None, (1, 0, 0, 0, -1, 0), 1, 1)])
def test_what_is_no_grid_is_refused(values):
    assert refused(Grid, *values).startswith("grid: ")


# ---------------------------------------------------------------- specs

class Inner(Spec):
    depth: int = 1


class Outer(Spec):
    lr: float = 1e-3
    epochs: int = 1
    name: str = ""
    flag: bool = False
    mean: list[float] | None = None
    pair: tuple[int, int] = (0, 0)
    either: float | str = 0.0
    inner: Inner = Inner()


TRAPS = [  # what YAML text becomes in a parameter of a declared type; None: refused
    ("lr: 1e-3", 1e-3), ("lr: 1E+3", 1000.0), ("lr: .5", 0.5), ("lr: 3", 3.0), ("lr: on", None), ("lr: .nan", None), ("lr: .inf", None), ("lr: ~", None),
    ("lr: 1_0.5x", None), ("lr: 2022-06-06", None), ("epochs: 1e3", 1000), ("epochs: 3.0", 3), ("epochs: 3.5", None), ("epochs: '007'", 7),
    ("epochs: yes", None), ("epochs: 2022-06-06", None), ("epochs: ''", None), ("name: on", None), ("name: 12_25", None), ("name: 1.10", None),
    ("name: 2022-06-06", None), ("name: 'on'", "on"), ("name: '12_25'", "12_25"), ("name: T32UQC_12_25", "T32UQC_12_25"), ("name: ~", None),
    ("flag: on", True), ("flag: 'true'", True), ("flag: 1", None), ("flag: 'yes'", None), ("mean: [1e-1, 2]", [0.1, 2.0]), ("mean: [on]", None),
    ("mean: ~", type(None)), ("pair: [1, '2']", (1, 2)), ("pair: [1]", None), ("pair: [1, 2, 3]", None), ("either: 1e-3", "1e-3"), ("either: on", None),
    ("inner: {depth: '4'}", Inner(depth=4)), ("inner: {depth: on}", None), ("lr: [1]", None), ("epochs: {a: 1}", None)]


@pytest.mark.parametrize("text, value", TRAPS, ids=[t for t, _ in TRAPS])
def test_yaml_scalars_are_coerced_by_type_or_refused_by_name(text, value):
    values = spec.loads_yaml(text)
    key = text.split(":")[0]
    if value is None:
        assert key in refused(spec.make, Outer, values) or "depth" in refused(spec.make, Outer, values)
    else:
        made = getattr(spec.make(Outer, values), key)
        assert made is None if value is type(None) else (made == value and type(made) is type(value))


def test_every_bad_parameter_is_said_at_once():
    sentence = refused(spec.make, Outer, {"epoch": 3, "lr": "fast", "inner": {"dept": 1}})
    for part in ("no parameter of Outer 'epoch'", "did you mean 'epochs'", "lr is 'fast' of type str, not float", "no parameter of Inner 'dept': known are depth"):
        assert part in sentence
    assert "pydantic" not in sentence and "\n" not in sentence


@given(st.dictionaries(TEXT | st.sampled_from(list(Outer.model_fields)), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT, lambda s: st.lists(s, max_size=3) | st.dictionaries(TEXT, s, max_size=3), max_leaves=5), max_size=4))
def test_any_values_make_a_spec_or_one_refusal(values):
    try:
        made = spec.make(Outer, values)
    except Refused:
        return
    assert spec.make(Outer, made.model_dump()) == made and spec.spec_hash(made) == spec.spec_hash(made.model_dump())
    assert spec.make(Outer, spec.loads_json(spec.dumps_json(made))) == made


def test_a_copy_is_checked_and_the_original_stays():
    outer = Outer(lr=0.1)
    assert outer.replace(lr="1e-2").lr == 0.01 and outer.lr == 0.1
    assert "epochs" in refused(lambda: outer.replace(epochs=1.5))


HASHABLE = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
                        lambda s: st.lists(s, max_size=4) | st.dictionaries(TEXT, s, max_size=4), max_leaves=12)


@given(st.dictionaries(TEXT, HASHABLE, max_size=5))
def test_the_hash_depends_on_values_and_not_on_order(values):
    backwards = dict(reversed(values.items()))
    assert spec.spec_hash(values) == spec.spec_hash(backwards) == spec.spec_hash(json.loads(spec.dumps_json(values)))
    assert spec.spec_hash(values | {"another": 1}) != spec.spec_hash({k: v for k, v in values.items() if k != "another"})


@given(HASHABLE)
def test_json_of_ours_is_json(value):
    assert spec.loads_json(spec.dumps_json(value)) == value == json.loads(spec.dumps_json(value, indent=None))


def test_json_takes_numpy_paths_and_records_and_writes_nan_as_null():
    value = {"a": np.float32("nan"), "b": np.arange(2, dtype="uint8"), "c": Path("x/y"), "d": {1, 2}, "e": np.bool_(True), "f": CORINE,
             "g": Inner(), "h": (math.inf, 1), "i": np.datetime64("2026-11-20"), "j": np.str_("s")}
    read = json.loads(spec.dumps_json(value), parse_constant=pytest.fail)
    assert read["a"] is None and read["b"] == [0, 1] and read["c"] == "x/y" and read["d"] == [1, 2] and read["e"] is True
    assert Legend.from_dict(read["f"]) == CORINE and read["g"] == {"depth": 1} and read["h"] == [None, 1]
    assert read["i"] == "2026-11-20" and read["j"] == "s"
    assert "outputs.x is of type generator" in refused(spec.dumps_json, {"outputs": {"x": (i for i in ())}})


# ---------------------------------------------------------------- configuration files

DEEP = 3000
BAD_FILES = [
    ("a.yml", "a: 1\na: 2", "given twice"), ("a.yml", "x: {a: 1, 'a': 2}", "given twice"), ("a.json", '{"a": 1, "a": 2}', "given twice"),
    ("a.toml", "a = 1\na = 2", "a.toml: "), ("a.yml", "[" * DEEP + "]" * DEEP, "a.yml: "), ("a.json", "[" * DEEP + "]" * DEEP, "a.json: "),
    ("a.toml", "a = " + "[" * DEEP + "]" * DEEP, "a.toml: "), ("a.yml", "a: " + "{b: " * 41 + "1" + "}" * 41, "nested deeper than 40"),
    ("a.yml", "a: !!python/object/apply:os.system [id]", "constructor"), ("a.yml", "a: !!int ''", "a.yml: "), ("a.yml", "a: !!bool maybe", "a.yml: "),
    ("a.yml", "a: !!timestamp nope", "a.yml: "), ("a.yml", "a: 2022-13-45", "a.yml: "), ("a.yml", "on: 1", "put it in quotes"), ("a.yml", "1: 1", "no text"),
    ("a.yml", "- 1", "holds a list"), ("a.yml", "text", "holds a str"), ("a.yml", "0", "holds a int"), ("a.yml", "a: [", "a.yml: "), ("a.yml", "a: \x00", "a.yml: "),
    ("a.yml", "--- {a: 1}\n--- {b: 2}", "a.yml: "), ("a.json", "{", "not JSON"), ("a.json", '{"a": NaN}', "NaN"), ("a.json", "", "not JSON"),
    ("a.yml", "a: &a {b: *a}", "nested deeper"), ("a.yml", "k: &k v\nl: [" + "*k, " * 11 + "]", "aliases"), ("a.ini", "a=1", "known are .yml"),
    ("a", "a: 1", "known are .yml"), ("a.yml", "a: " + "x" * 1_000_001, "larger than 1,000,000 bytes"), ("a.yml", b"a: \xff", "a.yml: ")]


@pytest.mark.parametrize("name, text, part", BAD_FILES, ids=[f"{n}-{str(t)[:20]}" for n, t, _ in BAD_FILES])
def test_a_bad_file_is_one_refusal_that_names_it(tmp_path, name, text, part):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    sentence = refused(spec.read_config, tmp_path / name)
    assert part in sentence and name in sentence and "\n" not in sentence and len(sentence) < 600


def test_missing_files_and_folders_are_refusals(tmp_path):
    (tmp_path / "folder.yml").mkdir()
    assert "No such file" in refused(spec.read_config, tmp_path / "none.yml")
    assert "directory" in refused(spec.read_config, tmp_path / "folder.yml")


@pytest.mark.parametrize("name, text", [("a.yml", "a: {b: [1, 2]}"), ("a.YAML", "base: &x {b: [1, 2]}\na: *x"), ("a.toml", "[a]\nb = [1, 2]"),
                                        ("a.json", '\ufeff{"a": {"b": [1, 2]}}'), ("b.yml", "d: &d {b: [3]}\na: {<<: *d, b: [1, 2]}")])
def test_good_files_are_read(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert spec.read_config(tmp_path / name)["a"] == {"b": [1, 2]}


def test_an_empty_file_has_no_parameters(tmp_path):
    (tmp_path / "a.yml").write_text("# nothing but a comment\n")
    assert spec.read_config(tmp_path / "a.yml") == {}


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet="ab:-&*!<[]{}'\"|>%@, \n\t0123456789.eE+_~#?\\/yno", max_size=60) | st.text(max_size=60),
       st.sampled_from([".yml", ".toml", ".json"]))
def test_no_text_gets_another_error_out_of_the_reader(tmp_path_factory, text, suffix):
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        assert isinstance(spec.read_config(path), dict)
    except Refused as error:
        assert path.name in str(error)


@given(st.dictionaries(TEXT, HASHABLE, max_size=4))
def test_yaml_is_read_as_the_reference_reader_does(values):
    text = yaml.safe_dump(values)
    assert spec.loads_yaml(text) == yaml.safe_load(text)


# ---------------------------------------------------------------- profile

SCHEMA = {"name": str, "start_time": str, "end_time": str, "host_info": dict, "steps": list, "summary": dict, "logs": list}


def test_the_profile_has_the_fields_that_others_read(tmp_path):
    profiler = profile.Profiler("tile")
    with profiler.step("read", rows=3) as step:
        step["bytes"] = 5
    profiler.log("done")
    profiler.meta(fraction=0.1)
    read = json.loads(profiler.write(tmp_path).read_text())
    assert {key: type(read[key]) for key in SCHEMA} == SCHEMA and set(read) == set(SCHEMA)
    assert set(read["host_info"]) == {"hostname", "platform", "cpu_count", "ram_gb", "cuda"}
    assert set(read["host_info"]["cuda"]) == {"device_count", "devices"}
    assert set(read["steps"][0]) == {"name", "duration", "timestamp", "depth", "parent", "rows", "bytes"}
    assert set(read["logs"][0]) == {"timestamp", "message", "usage"}
    assert set(read["logs"][0]["usage"]) == {"cpu_percent", "ram_percent", "ram_used_gb", "cuda"}
    assert read["summary"] == {"fraction": 0.1, "total_duration": read["steps"][0]["duration"]}
    assert read["start_time"] <= read["steps"][0]["timestamp"] <= read["logs"][0]["timestamp"] <= read["end_time"]
    assert all(read[key].endswith("+00:00") for key in ("start_time", "end_time"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["profile.json", "profile.log"]


@settings(deadline=None, max_examples=60)
@given(st.recursive(st.just([]), lambda s: st.lists(s, max_size=3), max_leaves=8))
def test_nested_steps_are_not_counted_twice(plan):
    clock = iter(range(10_000))
    profiler = profile.Profiler("nest")

    def play(branches, path):
        for i, branch in enumerate(branches):
            with profiler.step(f"{path}/{i}"):
                play(branch, f"{path}/{i}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profile.time, "perf_counter", lambda: next(clock))
        play(plan, "")
    ticks = next(clock)
    gaps = len(plan)
    record = profiler.record()
    assert record["summary"]["total_duration"] == ticks - gaps, "a clock that ticks at every start and end"
    for step in record["steps"]:
        assert step["parent"] == step["name"].rpartition("/")[0] and step["depth"] == step["name"].count("/") - 1


def test_a_failed_step_is_timed_and_the_next_one_is_no_child_of_it():
    profiler = profile.Profiler("fail")
    with pytest.raises(KeyError), profiler.step("a"), profiler.step("b"):
        raise KeyError
    with profiler.step("c"):
        pass
    steps = profiler.record()["steps"]
    assert [s.get("failed") for s in steps] == ["KeyError", "KeyError", None] and steps[2]["depth"] == 0
    assert any("FAILED" in line for line in profile.log_lines(profiler.record()))


def test_what_is_measured_cannot_be_given():
    assert "duration" in refused(lambda: profile.Profiler("x").step("a", duration=3).__enter__())


def test_floor_zero_is_light():
    code = ("import sys, geoseg_nb.core, geoseg_nb.spec, geoseg_nb.storage, geoseg_nb.profile as p\n"
            "p.Profiler('x').log('y')\nheavy = {'torch', 'rasterio', 'pandas', 'xarray', 'pyproj'} & set(sys.modules)\nassert not heavy, heavy")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_peak_sees_a_large_child():
    code = "import subprocess, sys\nfrom geoseg_nb.profile import peak_rss_mb\nsmall = peak_rss_mb()\n" \
           "subprocess.run([sys.executable, '-c', \"b = b'x' * 300_000_000\"])\nassert small < 200 and 300 < peak_rss_mb() < 360, (small, peak_rss_mb())"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
