"Artifacts in a folder and in a bucket of a real S3 server, also when the power fails between any two writes"
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from geoseg_nb import artifacts
from geoseg_nb.artifacts import (
    alias, aliases, artifact_store, blob_key, get, parse_ref, put, resolve_ref, version_numbers, versions)
from geoseg_nb.core import GeosegError, Refused
from geoseg_nb.spec import loads_json
from geoseg_nb.storage import LocalStorage, content_hash, folder_sha256, sha256

RULES = "split_rules/floods"


def source(folder, files):
    "A folder with files"
    for name, data in files.items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return Path(folder)


def rules(folder, n):
    "The rules of a split, one file"
    return source(Path(folder) / f"rules-{n}", {"rules.yml": f"seed: {n}\n"})


def model(folder, weights=b"weights", **files):
    return source(folder, {"model.json": "{}", "model.safetensors": weights, "deep/README.md": "card", **files})


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    place = tmp_path / "store" if request.param == "local" else f"s3://{request.getfixturevalue('bucket')}/store"
    return artifact_store(place)


def check_store(store, kept: dict):
    "What must hold at any moment: dense, immutable, every alias and every blob there"
    for ref in {version.rpartition(":")[0] for version in kept} | {RULES}:
        numbers = version_numbers(store, parse_ref(ref))
        assert numbers == list(range(1, len(numbers) + 1))
        found = [resolve_ref(store, f"{ref}:v{n}") for n in numbers]
        assert len({v.hash for v in found}) == len(found)
        for version in found:
            assert version.hash == content_hash(version.files) == kept.get(version.ref, version.hash)
            for digest in version.files.values():
                assert artifacts.read_blob(store, digest, version.ref)
        assert set(aliases(store, ref).values()) <= set(numbers)
        if numbers:
            assert resolve_ref(store, ref).version == numbers[-1]


def test_put_and_get_a_folder(store, tmp_path):
    folder = model(tmp_path / "m")
    version = put(store, "model/floods", folder, names=["paper"], note="first")
    assert (version.ref, version.hash, version.bytes, version.note) == ("model/floods:v1", folder_sha256(folder), 13, "first")
    for i, ref in enumerate(("model/floods", "model/floods:v1", "model/floods:latest", "model/floods:paper")):
        assert folder_sha256(get(store, ref, tmp_path / f"out-{i}")) == version.hash
    assert get(store, "model/floods", folder) == folder


def test_versions_are_dense_and_equal_content_is_the_same_version(store, tmp_path):
    sources = [rules(tmp_path, n) for n in range(4)]
    made = [put(store, RULES, s) for s in (*sources, *sources)]
    assert [v.version for v in made] == [1, 2, 3, 4, 1, 2, 3, 4] and made[4:] == made[:4]
    assert resolve_ref(store, RULES) == made[3]
    assert put(store, "split_rules/other", sources[2]).ref == "split_rules/other:v1"
    assert [v.ref for v in versions(store)] == [f"{RULES}:v{n}" for n in (1, 2, 3, 4)] + ["split_rules/other:v1"]
    assert [v.ref for v in versions(store, "split_rules", "other")] == ["split_rules/other:v1"]
    assert versions(store, "model") == versions(store, name="flood") == []
    assert len(store.keys("blobs/")) == 4


def test_a_file_renamed_is_other_content_of_the_same_bytes(store, tmp_path):
    a, b = source(tmp_path / "a", {"rules.yml": "seed: 1\n"}), source(tmp_path / "b", {"rule.yml": "seed: 1\n"})
    assert [put(store, RULES, s).version for s in (a, b)] == [1, 2] and len(store.keys("blobs/")) == 1


def test_aliases_move_and_versions_do_not(store, tmp_path):
    first, second = (put(store, RULES, rules(tmp_path, n)) for n in range(2))
    alias(store, f"{RULES}:v1", "paper")
    assert resolve_ref(store, f"{RULES}:paper") == first
    alias(store, f"{RULES}:latest", "paper")
    put(store, f"{RULES}:review", rules(tmp_path, 0))
    assert aliases(store, RULES) == {"paper": 2, "review": 1} and resolve_ref(store, f"{RULES}:paper") == second
    for bad in ("v1", "latest", "../x", "a/b", ""):
        with pytest.raises(Refused):
            alias(store, f"{RULES}:v1", bad)
    with pytest.raises(Refused, match="known are v1, v2, latest, paper, review"):
        alias(store, f"{RULES}:v3", "next")
    assert aliases(store, RULES) == {"paper": 2, "review": 1}


@pytest.mark.parametrize("damage", ["junk", "", "v0", "v" + "9" * 5000])
def test_one_damaged_alias_stands_in_no_other_ones_way(store, tmp_path, damage):
    first, second = (put(store, f"{RULES}:n{n}", rules(tmp_path, n)) for n in range(2))
    store.write(f"{RULES}/aliases/n1", damage)
    assert resolve_ref(store, f"{RULES}:n0") == first and resolve_ref(store, f"{RULES}:latest") == second
    with pytest.raises(artifacts.LostRecord, match="aliases/n1 is damaged"): resolve_ref(store, f"{RULES}:n1")
    with pytest.raises(Refused, match="known are v1, v2, latest, n0, n1"): resolve_ref(store, f"{RULES}:n7")
    with pytest.raises(artifacts.LostRecord, match="aliases/n1 is damaged"): aliases(store, RULES)
    lost = []
    assert aliases(store, RULES, lost) == {"n0": 1} and len(lost) == 1 and "aliases/n1 is damaged" in lost[0]
    alias(store, f"{RULES}:n0", "n1")
    assert aliases(store, RULES) == {"n0": 1, "n1": 1}


@pytest.mark.parametrize("ref", ["model", "models/x", "model/", "/x", "model/..", "model/a/b", "model/x:", "model/x:a:b", "model/-rf",
                                 "model/x\0", "model/%2e%2e", "../model/x", "model/" + "x" * 200, "", None])
def test_hostile_names_are_refused(tmp_path, ref):
    store = artifact_store(tmp_path / "store")
    for do in (lambda: put(store, ref, model(tmp_path / "m")), lambda: get(store, ref, tmp_path / "o"), lambda: resolve_ref(store, ref)):
        with pytest.raises(Refused):
            do()
    assert not (tmp_path / "store").exists() and not (tmp_path / "o").exists()


def test_what_is_not_of_its_kind_is_refused(tmp_path):
    store, empty = artifact_store(tmp_path / "store"), tmp_path / "empty"
    empty.mkdir()
    text = source(tmp_path / "t", {"x.parquet": "PAR1 no"})
    for kind, thing in {"model": text, "split": text, "legend": text, "split_rules": text}.items():
        with pytest.raises(GeosegError):
            put(store, f"{kind}/x", thing)
    for nothing in (empty, tmp_path / "nowhere"):
        with pytest.raises(Refused, match="nothing to put"):
            put(store, "model/x", nothing)
    legend = source(tmp_path / "l", {"legend.yml": "classes: {dry: [0, 'blue']}"})
    with pytest.raises(GeosegError, match="blue"):
        put(store, "legend/x", legend)
    assert store.keys() == []


def test_damage_is_found_and_healed_by_putting_again(store, tmp_path):
    folder = model(tmp_path / "m", weights=os.urandom(5000))
    put(store, "model/x", folder)
    key = blob_key(sha256(folder / "model.safetensors"))
    data = store.read(key)
    for broken in (data[:-1], data[:-1] + bytes([data[-1] ^ 1]), b"", None):
        store.remove(key) if broken is None else store.write(key, broken)
        with pytest.raises(GeosegError):
            get(store, "model/x", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert put(store, "model/x", folder).version == 1 and store.read(key) == data
    record = loads_json(store.read("model/x/v1.json"))
    swapped = dict(zip(record["files"], reversed(record["files"].values())))
    for broken in (b"", b"{}", b"[]", *(artifacts.dumps_json(record | c) for c in ({"version": 2}, {"name": "y"}, {"files": swapped}))):
        store.write("model/x/v1.json", broken)
        with pytest.raises(GeosegError, match="v1.json"):
            get(store, "model/x", tmp_path / "out")


def test_the_number_of_a_lost_version_is_given_to_nothing_else(store, tmp_path):
    "Whichever record is lost, the last one included; and with its mark, as long as a later version is there"
    sources = [rules(tmp_path, n) for n in range(5)]
    made = [put(store, RULES, source, names=["paper"]) for source in sources[:3]]
    for number, marked, other in ((3, True, 3), (2, True, 4), (1, False, 4)):
        store.remove(f"{RULES}/v{number}.json")
        if not marked: store.remove(f"{RULES}/marks/v{number}")
        for ref in {f"{RULES}:v{number}", *([RULES, f"{RULES}:paper"] if number == 3 else [])}:
            with pytest.raises(GeosegError, match=f"{RULES}:v{number} was put, and its record .* is lost; put the same content again"):
                resolve_ref(store, ref)
        with pytest.raises(GeosegError, match="is lost"): versions(store)
        new = put(store, RULES, sources[other])
        assert new.version == other + 1 and resolve_ref(store, f"{RULES}:v{other + 1}") == new
        if marked: assert put(store, RULES, sources[number - 1]).hash == made[number - 1].hash and resolve_ref(store, f"{RULES}:v{number}").version == number
    assert put(store, RULES, sources[0]).version == 6, "nothing tells any more what version 1 was"
    assert version_numbers(store, parse_ref(RULES)) == [1, 2, 3, 4, 5, 6]


def test_versions_of_a_store_without_marks_get_them(store, tmp_path):
    first = put(store, RULES, rules(tmp_path, 0))
    store.remove(f"{RULES}/marks/v1")
    put(store, RULES, rules(tmp_path, 1))
    assert store.read(f"{RULES}/marks/v1").decode().strip() == first.hash


def test_a_record_that_leads_out_of_the_folder_writes_nothing(store, tmp_path):
    put(store, "model/x", model(tmp_path / "m"))
    values = loads_json(store.read("model/x/v1.json"))
    files = {name.replace("deep/README.md", "../../evil.md"): digest for name, digest in values["files"].items()}
    store.write("model/x/v1.json", artifacts.dumps_json(values | {"files": files, "hash": content_hash(files)}))
    with pytest.raises(Refused):
        get(store, "model/x", tmp_path / "in" / "out")
    assert not list(tmp_path.rglob("evil.md")) and not (tmp_path / "in" / "out").exists()


def test_a_folder_with_something_else_is_not_touched(store, tmp_path):
    put(store, "model/x", model(tmp_path / "m"))
    other = source(tmp_path / "other", {"mine.txt": "keep"})
    with pytest.raises(Refused, match="choose another folder"):
        get(store, "model/x", other)
    assert [p.name for p in other.iterdir()] == ["mine.txt"]


# Two writers

PUT = """
import sys
from geoseg_nb.artifacts import artifact_store, put
store = artifact_store(sys.argv[1])
for path in sys.argv[2:]:
    put(store, "split_rules/floods", path, names=["last"])
"""


def test_writers_of_several_processes_and_threads_leave_no_gap(store, tmp_path):
    sources = [[rules(tmp_path, 10 * w + n) for n in range(3)] for w in range(2)]
    workers = [subprocess.Popen([sys.executable, "-c", PUT, store.url(), *map(str, mine)]) for mine in sources]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda n: put(store, RULES, rules(tmp_path, n)), [0, 1, 100, 101]))
    assert [w.wait(120) for w in workers] == [0, 0]
    check_store(store, {})
    assert version_numbers(store, parse_ref(RULES)) == list(range(1, 9))


# The power fails at any write


class Crash(BaseException):
    "No handler of ours may catch it, as none catches a power cut"


class Failing:
    "Calls that raise at the k-th, either before or after they did their work"

    def __init__(self, k, after):
        self.left, self.after = k, after

    def wrap(self, function):
        def call(*args, **kwargs):
            self.left -= 1
            if self.left == 0 and not self.after:
                raise Crash
            try:
                return function(*args, **kwargs)
            finally:
                if self.left == 0:
                    raise Crash
        return call


def crash_at(monkeypatch, store, k, after):
    "Lets the k-th change of the store fail"
    failing = Failing(k, after)
    if isinstance(store, LocalStorage):
        for name in ("replace", "fsync", "mkdir"):
            monkeypatch.setattr(os, name, failing.wrap(getattr(os, name)))
    else:
        for name in ("write", "remove"):
            monkeypatch.setattr(type(store), name, failing.wrap(getattr(type(store), name)))
    return failing


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_any_write_keeps_the_invariants_and_a_rerun_finishes(store, tmp_path, monkeypatch, after):
    base = model(tmp_path / "base", weights=b"base")
    crashes = 0
    for k in itertools.count(1):
        place = artifact_store(store.url(f"k{k}"))
        kept = {v.ref: v.hash for v in [put(place, "model/x", base, names=["paper"])]}
        new = model(tmp_path / f"new-{k}", weights=b"new")
        with monkeypatch.context() as patched:
            crash_at(patched, place, k, after)
            try:
                put(place, "model/x", new, names=["paper"])
                crashed = False
            except Crash:
                crashed = True
        for key in [key for key in place.keys() if "/.lock/" in key]:
            place.remove(key)
        check_store(place, kept)
        assert resolve_ref(place, "model/x:v1").hash == kept["model/x:v1"]
        again = put(place, "model/x", new, names=["paper"])
        assert again.version == 2 and aliases(place, "model/x") == {"paper": 2}
        check_store(place, kept | {again.ref: again.hash})
        crashes += crashed
        if not crashed:
            break
    assert crashes >= 4, crashes


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_while_fetching_leaves_no_folder(tmp_path, monkeypatch, after):
    store, folder = artifact_store(tmp_path / "store"), model(tmp_path / "m")
    put(store, "model/x", folder)
    for k in itertools.count(1):
        out = tmp_path / f"out-{k}"
        with monkeypatch.context() as patched:
            crash_at(patched, store, k, after)
            try:
                get(store, "model/x", out)
                break
            except Crash:
                pass
        assert not out.exists() or folder_sha256(out) == folder_sha256(folder)
        assert folder_sha256(get(store, "model/x", out)) == folder_sha256(folder)
    assert k > 4


# Any order of operations


class Artifacts(RuleBasedStateMachine):
    "The store against a model of it: a list of contents and a table of aliases"

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store, self.contents, self.names, self.kept = artifact_store(self.place()), [], {}, {}

    def place(self):
        return self.folder / "store"

    def teardown(self):
        shutil.rmtree(self.folder)

    def _put(self, n, names):
        return put(self.store, RULES, rules(self.folder, n), names=names)

    def _know(self, n, version):
        if n not in self.contents:
            self.contents.append(n)
        assert version.version == self.contents.index(n) + 1
        assert self.kept.setdefault(version.ref, version.hash) == version.hash

    @rule(n=st.integers(0, 5), names=st.lists(st.sampled_from(["paper", "best"]), max_size=2))
    def put(self, n, names):
        version = self._put(n, names)
        self._know(n, version)
        self.names |= dict.fromkeys(names, version.version)

    @rule(n=st.integers(0, 5), k=st.integers(1, 40), after=st.booleans())
    def crash(self, n, k, after):
        "A put that dies at its k-th change, and the same again"
        with pytest.MonkeyPatch.context() as patched:
            crash_at(patched, self.store, k, after)
            try:
                self._put(n, ["paper"])
            except Crash:
                pass
        for key in [key for key in self.store.keys() if "/.lock/" in key]:
            self.store.remove(key)
        check_store(self.store, self.kept)
        version = self._put(n, ["paper"])
        self._know(n, version)
        self.names["paper"] = version.version

    @precondition(lambda self: self.contents)
    @rule(data=st.data(), name=st.sampled_from(["paper", "best"]))
    def alias(self, data, name):
        number = data.draw(st.integers(1, len(self.contents)))
        alias(self.store, f"{RULES}:v{number}", name)
        self.names[name] = number

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def damage(self, data):
        "A blob is lost; putting the same content heals it"
        n = data.draw(st.sampled_from(self.contents))
        self.store.remove(blob_key(sha256(rules(self.folder, n) / "rules.yml")))
        self._know(n, self._put(n, []))

    @precondition(lambda self: self.contents)
    @rule(data=st.data(), n=st.integers(0, 5))
    def lose(self, data, n):
        "A record is lost, something is put, and the lost content is put again"
        k = data.draw(st.integers(1, len(self.contents)))
        lost = self.contents[k - 1]
        self.store.remove(f"{RULES}/v{k}.json")
        with pytest.raises(GeosegError, match=f"{RULES}:v{k} was put"):
            resolve_ref(self.store, f"{RULES}:v{k}")
        self._know(n, self._put(n, []))
        self._know(lost, self._put(lost, []))

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def forget(self, data):
        "A mark is lost; the next put makes up for it"
        self.store.remove(f"{RULES}/marks/v{data.draw(st.integers(1, len(self.contents)))}")
        self._know(self.contents[0], self._put(self.contents[0], []))

    @invariant()
    def holds(self):
        check_store(self.store, self.kept)
        assert version_numbers(self.store, parse_ref(RULES)) == list(range(1, len(self.contents) + 1))
        assert aliases(self.store, RULES) == self.names


TestArtifacts = Artifacts.TestCase
TestArtifacts.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)


def test_the_same_machine_on_s3(bucket):
    from hypothesis.stateful import run_state_machine_as_test
    count = itertools.count()

    class OnS3(Artifacts):
        def place(self):
            return f"s3://{bucket}/{next(count)}"

    run_state_machine_as_test(OnS3, settings=settings(max_examples=4, stateful_step_count=8, deadline=None))


@pytest.mark.parametrize("whole", [True, False])
def test_a_file_that_was_held_back_is_put_nowhere(tmp_path, whole):
    "In a folder and alone: refused with its name, and not one byte in the store"
    folder = model(tmp_path / "m", **{"notes.npy.held-back": b"\0canary"})
    with pytest.raises(Refused, match="notes.npy.held-back held a credential"):
        put(artifact_store(tmp_path / "store"), "model/water", folder if whole else folder / "notes.npy.held-back")
    assert not [path for path in tmp_path.glob("store/**/*") if path.is_file()]
