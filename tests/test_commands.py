"The verbs of `geoseg` besides run: what they print, what they leave, how they end"
import json
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial

import nbformat
import pytest
from geoseg_nb.artifacts import artifact_store, resolve_ref
from geoseg_nb.catalog import CatalogSpec, read_catalog, write_catalog
from geoseg_nb.cli import VERBS, main, parser
from geoseg_nb.jobs import parameters_cell, read_parameters
from geoseg_nb.launch import CODES
from geoseg_nb.products import hand_over, measured_catalog, received
from geoseg_nb.report import report_on
from geoseg_nb.requests import Request, destined, going_on
from geoseg_nb.stages import earlier, open_job, output, record
from geoseg_nb.storage import files_below, sample_folder, sha256, storage
from geoseg_nb.tiling import TileSpec, tile
from house import ROOT

RULES = "split_rules/floods"


def said(capsys, *words):
    "Exit code, lines of stdout, lines of stderr"
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err.splitlines()


def one_line(answer, *parts, code=2):
    "A refusal is one line on stderr, and nothing else"
    found, out, err = answer
    assert found == code and not out and len(err) == 1 and err[0].startswith("geoseg: "), answer
    assert all(part in err[0] for part in parts), err
    return err[0]


# ---------------------------------------------------------------- help

@pytest.mark.parametrize("words", [[], *([verb] for verb in VERBS), ["artifact", "put"], ["artifact", "get"], ["artifact", "list"], ["artifact", "alias"]],
                         ids=lambda words: " ".join(words) or "geoseg")
def test_every_help_fits_on_one_screen(capsys, monkeypatch, words):
    "Also where the folder has a long name"
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("GEOSEG_RUNS", "/scratch/projects/somebody/runs-of-this-year/floods")
    with pytest.raises(SystemExit) as ended: main([*words, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0 and len(lines) <= 24 and max(map(len, lines)) <= 80
    if not words: assert all(sum(line.split()[:1] == [verb] for line in lines) == 1 for verb in VERBS)


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"]], ids=" ".join)
def test_every_exit_code_of_the_program_stands_in_the_help(capsys, words):
    "Those of errors, of jobs, and of the two ways in which a shell ends a program"
    with pytest.raises(SystemExit): main(words)
    said = " ".join(capsys.readouterr().out.split())
    told = {int(code) for code in re.findall(r"\b\d+\b", said.partition("Exit codes:")[2])}
    assert told == {0, 1, 130, 141, *CODES.values()} == {0, 1, 2, 3, 75, 130, 141}


def test_the_command_that_goes_on_is_the_one_that_was_typed_with_its_place(monkeypatch):
    "Read back by the shell's own rules and by the program's own parser"
    monkeypatch.setenv("SOME_TOKEN", "canary-canary")
    typed = ["run", "floods", "-f", "a b/37_train.yml", "-p", "train.epochs=3", "-p", "catalog.options={'a': \"it's\"}", "--variant", "small"]
    asked = parser().parse_args(typed)
    request = destined(Request(name=asked.name, files=asked.files, assignments=asked.assignments, variant=asked.variant))
    told = parser().parse_args(shlex.split(going_on(request))[1:])
    assert told.out == request.out and vars(told) == {**vars(asked), "out": request.out}
    assert "canary" not in going_on(request.replace(files=["x/canary-canary.yml"], out="s3://me:canary2@bucket/x"))


def test_a_reader_that_goes_away_ends_the_program_quietly():
    "As `geoseg jobs | head` does; the code is that of a shell for a broken pipe"
    program = subprocess.Popen([sys.executable, "-m", "geoseg_nb.cli", "jobs"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    program.stdout.close()
    assert program.stderr.read() == b"" and program.wait(timeout=60) == 141


def test_a_verb_that_there_is_not_is_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit) as ended: main(["rum"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and all(f"'{verb}'" in said or f" {verb}" in said for verb in VERBS)


# ---------------------------------------------------------------- artifacts

@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    return str(tmp_path / "kept") if request.param == "local" else f"s3://{request.getfixturevalue('bucket')}/kept"


def rules(folder, n):
    path = folder / "rules.yml"
    path.write_text(f"buffer: {n}\n")
    return path


def test_put_get_list_and_alias(capsys, tmp_path, place):
    artifact = partial(said, capsys, "artifact")
    there = ("--store", place)
    assert artifact("list", *there) == (0, [f"no artifact in {storage(place).url()}"], [])
    assert artifact("put", RULES, rules(tmp_path, 8), "--alias", "paper", "--note", "as printed", *there) == (0, [f"{RULES}:v1"], [])
    assert artifact("put", RULES, rules(tmp_path, 16), *there) == (0, [f"{RULES}:v2"], [])
    assert artifact("put", RULES, rules(tmp_path, 8), *there) == (0, [f"{RULES}:v1"], [])
    heading, *lines = artifact("list", *there)[1]
    assert heading.split() == ["reference", "made", "files", "size", "names", "note"]
    assert [line.split()[0] for line in lines] == [f"{RULES}:v1", f"{RULES}:v2"]
    assert "paper" in lines[0] and "as printed" in lines[0] and lines[1].split()[2:] == ["1", "11", "bytes", "latest"]
    assert artifact("alias", f"{RULES}:v2", "paper", *there) == (0, [f"{RULES}:paper is {RULES}:v2"], [])
    code, lines, _ = artifact("get", f"{RULES}:paper", tmp_path / "got", *there)
    assert code == 0 and lines == [f"{RULES}:v2 in {tmp_path / 'got'}", "  rules.yml"]
    assert (tmp_path / "got" / "rules.yml").read_text() == "buffer: 16\n"
    assert artifact("list", "model", *there)[1] == [f"no artifact model in {storage(place).url()}"]
    assert artifact("list", f"{RULES}", *there)[1] == artifact("list", "split_rules", *there)[1] == artifact("list", *there)[1]


def harmed(place, how):
    "Loses or damages the record of v2 of three"
    key = f"{RULES}/v2.json"
    if how == "lost": storage(place).remove(key)
    else: storage(place).write(key, {"cut": "{", "other": storage(place).read(f"{RULES}/v1.json"), "binary": b"\xff\xfe"}[how])
    return key


@pytest.mark.parametrize("how", ["lost", "cut", "other", "binary"])
def test_a_lost_record_hides_no_other_and_the_fix_that_is_named_works(capsys, tmp_path, place, how):
    artifact, there = partial(said, capsys, "artifact"), ("--store", place)
    for n in (8, 16, 24): artifact("put", RULES, rules(tmp_path, n), "--alias", f"buffer-{n}", *there)
    artifact("put", "split_rules/lakes", rules(tmp_path, 8), *there)
    key = harmed(place, how)
    code, lines, errors = artifact("list", *there)
    assert code == 3 and [line.split()[0] for line in lines] == ["reference", f"{RULES}:v1", f"{RULES}:v3", "split_rules/lakes:v1"]
    assert "latest" in lines[2] and "buffer-8" in lines[1] and "latest" in lines[3]
    assert len(errors) == 1 and key in errors[0] and "put the same content again" in errors[0]
    if how != "lost":
        assert "remove that object" in errors[0]
        storage(place).remove(key)
    assert artifact("put", RULES, rules(tmp_path, 16), *there) == (0, [f"{RULES}:v2"], [])
    assert artifact("list", *there)[0] == 0 and len(artifact("list", *there)[1]) == 5


def test_where_the_last_record_is_lost_no_other_version_is_called_latest(capsys, tmp_path):
    artifact, there = partial(said, capsys, "artifact"), ("--store", tmp_path / "kept")
    for n in (8, 16): artifact("put", RULES, rules(tmp_path, n), *there)
    (tmp_path / "kept" / RULES / "v2.json").unlink()
    code, lines, errors = artifact("list", *there)
    assert code == 3 and len(lines) == 2 and "latest" not in lines[1] and f"{RULES}:v2" in errors[0]


def test_a_damaged_alias_is_named_and_set_again(capsys, tmp_path):
    artifact, there = partial(said, capsys, "artifact"), ("--store", tmp_path / "kept")
    artifact("put", RULES, rules(tmp_path, 8), "--alias", "paper", "--alias", "whole", *there)
    (tmp_path / "kept" / RULES / "aliases" / "paper").write_bytes(b"v\xffx")
    code, lines, errors = artifact("list", *there)
    assert code == 3 and f"{RULES}:v1" in lines[1] and "latest, whole" in lines[1] and "aliases/paper" in errors[0] and "set the alias again" in errors[0]
    one_line(artifact("get", f"{RULES}:paper", tmp_path / "got", *there), "aliases/paper", code=1)
    assert artifact("alias", f"{RULES}:v1", "paper", *there)[0] == 0 and "paper" in artifact("list", *there)[1][1]


def test_every_kind_goes_in_and_comes_out(capsys, tmp_path):
    import pandas as pd
    pd.DataFrame({"id": ["a"], "part": ["train"]}).to_parquet(tmp_path / "split.parquet")
    (tmp_path / "legend.yml").write_text('classes: {dry: [0, "#d8c9a0"], water: [1, "#2b6cb0"]}\n')
    (tmp_path / "model").mkdir()
    for name in ("model.json", "model.safetensors", "README.md"): (tmp_path / "model" / name).write_text(name)
    sources = {"split": "split.parquet", "legend": "legend.yml", "model": "model"}
    for kind, source in sources.items():
        assert said(capsys, "artifact", "put", f"{kind}/floods", tmp_path / source, "--store", tmp_path / "kept")[1] == [f"{kind}/floods:v1"]
        assert said(capsys, "artifact", "get", f"{kind}/floods", tmp_path / "got" / kind, "--store", tmp_path / "kept")[0] == 0
    assert sha256(tmp_path / "got" / "split" / "split.parquet") == sha256(tmp_path / "split.parquet")
    assert sorted(p.name for p in (tmp_path / "got" / "model").iterdir()) == ["README.md", "model.json", "model.safetensors"]


@pytest.mark.parametrize(("words", "parts"), [
    (["put", "split_rule/floods", "rules.yml"], ["did you mean 'split_rules'"]),
    (["put", "floods", "rules.yml"], ["write kind/name"]),
    (["put", "split_rules/../x", "rules.yml"], ["write kind/name"]),
    (["put", RULES, "none.yml"], ["none.yml", "nothing to put"]),
    (["put", RULES, "rules.txt"], ["rules.txt"]),
    (["put", RULES, "broken.yml"], ["broken.yml"]),
    (["put", "legend/floods", "rules.yml"], ["rules.yml", "legend"]),
    (["put", "split/floods", "rules.yml"], ["is one Parquet file"]),
    (["put", "model/floods", "."], ["model.safetensors"]),
    (["put", RULES, "rules.yml", "--alias", "v7"], ["versions and latest are given"]),
    (["put", RULES, "rules.yml", "--store", "s3://me:hunter2@lake/x"], ["no credentials"]),
    (["put", RULES, "rules.yml", "--store", "ftp://lake/x"], ["ftp"]),
    (["get", f"{RULES}:v9", "got"], ["v9", "known are v1, latest"]),
    (["get", "split_rules/flods", "got"], ["no artifact split_rules/flods"]),
    (["get", RULES, "full"], ["full exists and is not"]),
    (["get", RULES, "rules.yml"], ["rules.yml exists and is not"]),
    (["alias", f"{RULES}:v1", "latest"], ["versions and latest are given"]),
    (["alias", f"{RULES}:v9", "paper"], ["v9"]),
    (["list", "splits"], ["did you mean 'split'"]),
], ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_a_wrong_artifact_is_one_line_and_nothing_is_kept(capsys, tmp_path, monkeypatch, words, parts):
    monkeypatch.setenv("GEOSEG_ARTIFACTS", str(tmp_path / "kept"))
    monkeypatch.chdir(tmp_path)
    assert said(capsys, "artifact", "put", RULES, rules(tmp_path, 8))[0] == 0
    (tmp_path / "rules.txt").write_text("buffer: 8")
    (tmp_path / "broken.yml").write_text("buffer: [8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    before = sorted(storage(tmp_path / "kept").keys())
    assert "hunter2" not in one_line(said(capsys, "artifact", *words), *parts)
    assert sorted(key for key in storage(tmp_path / "kept").keys() if "blobs/" not in key) == [key for key in before if "blobs/" not in key]
    assert not (tmp_path / "got").exists() and [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_bytes_that_rotted_are_not_handed_out(capsys, tmp_path):
    here = ("--store", tmp_path / "kept")
    assert said(capsys, "artifact", "put", RULES, rules(tmp_path, 8), *here)[0] == 0
    blob = next((tmp_path / "kept" / "blobs").glob("*/*"))
    blob.write_bytes(b"buffer: 9\n")
    one_line(said(capsys, "artifact", "get", RULES, tmp_path / "got", *here), "holds other bytes", code=1)
    assert not (tmp_path / "got").exists()


def test_where_artifacts_lie_if_nothing_is_said(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GEOSEG_ARTIFACTS", raising=False)
    said(capsys, "artifact", "put", RULES, rules(tmp_path, 8))
    assert (tmp_path / "artifacts" / RULES / "v1.json").exists()
    assert resolve_ref(artifact_store(), RULES).version == 1


# ---------------------------------------------------------------- verify and repair

@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The store of a small run, made by the verbs that its two jobs call"
    home = tmp_path_factory.mktemp("whole")
    for part, pattern in (("S1", "Ghana_*"), ("labels", "Ghana_*")):
        (home / "scenes" / part).mkdir(parents=True)
        for path in (sample_folder() / part).glob(pattern): shutil.copy(path, home / "scenes" / part)
    spec = CatalogSpec(root=str(home / "scenes"), legend={"dry": [0, "#d8c9a0"], "water": [1, "#2b6cb0"]}, ignore=[-1])
    job = open_job("10_catalog", home / "run", spec)
    record(job, {}, {"catalog": write_catalog(measured_catalog(spec)[0], job.folder / "catalog.parquet"), **hand_over(spec)})
    job, before = open_job("22_tile", home / "run", TileSpec(size=128, overlap=0, shard_tiles=8)), earlier(home / "run", "catalog")
    made = tile(job.spec, read_catalog(output(before, "catalog")), received(before), job.folder / "tiles.zarr")
    record(job, {}, {"store": made.url, "store_hash": made.hash})
    return made.url


@pytest.fixture(params=["local", "s3"])
def store(request, whole, tmp_path, monkeypatch):
    "A copy of it, as url and as the folder that holds its files"
    if request.param == "local":
        shutil.copytree(whole, tmp_path / "tiles.zarr")
        return str(tmp_path / "tiles.zarr"), tmp_path / "tiles.zarr"
    monkeypatch.setenv("GEOSEG_CACHE", str(tmp_path / "cache"))
    url = f"s3://{request.getfixturevalue('bucket')}/tiles.zarr"
    for path in whole.rglob("*"):
        if path.is_file(): storage(url).write(path.relative_to(whole).as_posix(), path)
    return url, None


def change(url, name, how):
    place = storage(url)
    data = place.read(name)
    if how == "missing": place.remove(name)
    else: place.write(name, {"flipped": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "cut": data[: len(data) // 2]}[how])


def shards(url):
    "Files of shards, by the layout that Zarr v3 documents"
    return sorted(key for key in storage(url).keys() if re.search(r"/c/\d+/\d+/\d+", key))


def test_verify_names_every_bad_file_and_no_other(capsys, store):
    url, _ = store
    assert said(capsys, "verify", url)[0::2] == (0, [])
    names = shards(url)
    harm = {names[0]: "flipped", names[1]: "cut", names[-1]: "missing"}
    for name, how in harm.items(): change(url, name, how)
    code, lines, err = said(capsys, "verify", url)
    assert code == 1 and not err and {line.split("\t")[1] for line in lines[:-1]} == set(harm)
    assert all(line.split("\t")[0] == f"shard {line.split(chr(9))[1].split('/')[2]}" for line in lines[:-1])
    assert lines[-1].startswith("3 bad of ") and f"geoseg repair {url}" in lines[-1]


def test_repair_cuts_the_damaged_shards_and_no_other(capsys, whole, tmp_path):
    "The bytes are those of the undisturbed store, the clock of the file system tells what was written"
    run = tmp_path / "run"
    shutil.copytree(whole.parent.parent, run)
    url = run / "22_tile" / "tiles.zarr"
    assert said(capsys, "repair", url) == (0, ["nothing to repair"], [])
    names = shards(url)
    numbers = sorted({name.split("/")[2] for name in names})
    harm = {names[0]: "flipped", names[-1]: "missing"}
    for name, how in harm.items(): change(url, name, how)
    before = {name: (url / name).stat().st_ctime_ns for name in shards(url) if name.split("/")[2] not in {n.split("/")[2] for n in harm}}
    code, lines, err = said(capsys, "repair", url)
    assert (code, err) == (0, []) and {line.split("\t")[1] for line in lines[:-1]} == set(harm) and lines[-1] == "2 shards cut again"
    assert before and before == {name: (url / name).stat().st_ctime_ns for name in before} and len(numbers) > 2
    assert {name: sha256(url / name) for name in files_below(url)} == {name: sha256(whole / name) for name in files_below(whole)}
    assert said(capsys, "verify", url)[0] == 0


def test_a_store_without_its_run_is_not_repaired_from_a_guess(capsys, store, tmp_path):
    url, _ = store
    change(url, shards(url)[0], "cut")
    one_line(said(capsys, "repair", url), "tiles.zarr", "tile anew")
    one_line(said(capsys, "repair", url, "--run", tmp_path / "none"), "none holds no tile job")
    assert said(capsys, "verify", url)[0] == 1


def test_a_store_that_lies_elsewhere_is_repaired_from_its_run(capsys, store, whole):
    url, _ = store
    harm = {shards(url)[0]: "cut", shards(url)[-1]: "flipped"}
    for name, how in harm.items(): change(url, name, how)
    code, lines, err = said(capsys, "repair", url, "--run", whole.parent.parent)
    assert (code, err) == (0, []) and {line.split("\t")[1] for line in lines[:-1]} == set(harm)
    assert all(storage(url).read(name) == (whole / name).read_bytes() for name in files_below(whole)) and said(capsys, "verify", url)[0] == 0


def test_verify_says_how_much_it_looked_at(capsys, store):
    url, _ = store
    found = shards(url)
    size = sum(storage(url).size(key) for key in found) / 1e6
    numbers = {key.split("/")[2] for key in found}
    assert said(capsys, "verify", url)[1][0].startswith(f"{len(numbers)} shards in ") and f", {size:.1f} MB: all as written" in said(capsys, "verify", url)[1][0]


def test_a_place_that_is_no_store_is_refused_and_the_store_in_it_named(capsys, whole, tmp_path):
    for verb in ("verify", "repair"):
        one_line(said(capsys, verb, whole.parent.parent), "MANIFEST.json", f"below it lies {whole}")
        one_line(said(capsys, verb, tmp_path / "none"), "run that job again")
        one_line(said(capsys, verb, "s3://me:hunter2@lake/x"), "no credentials")


def test_verify_of_a_broken_manifest_is_one_line(capsys, store):
    url, _ = store
    storage(url).write("MANIFEST.json", "{")
    one_line(said(capsys, "verify", url), "MANIFEST.json", code=1)


# ---------------------------------------------------------------- a recipe of one's own

def small_recipe(folder):
    folder.mkdir()
    (folder / "recipe.yml").write_text("title: Lakes\njobs: [11_split]\nvariants: {all: {jobs: [10_catalog, 11_split]}}\n")
    (folder / "11_split.yml").write_text("buffer: '8'\nareas: {train: {rows: [0, 0.5]}, test: {rows: [0.5, 1]}}\n")
    (folder / "notes.md").write_text("why")
    (folder / "sample").mkdir()
    (folder / "sample" / "huge.tif").touch()
    return folder


def parameters(notebook):
    "The parameter cell executed: what a kernel would hold"
    cells = [cell for cell in nbformat.read(notebook, 4).cells if "parameters" in cell.metadata.get("tags", [])]
    values = {}
    exec(cells[0].source, values)
    return values


def test_a_copy_holds_its_values_where_they_are_edited(capsys, tmp_path):
    code, lines, _ = said(capsys, "new", small_recipe(tmp_path / "theirs"), tmp_path / "mine")
    assert code == 0 and lines[0].startswith(f"copied to {tmp_path / 'mine'}: recipe.yml and 2 job notebooks")
    assert [line.split()[1:] for line in lines[1:]] == [["jupyter", "lab", str(tmp_path / "mine")], ["geoseg", "jobs", str(tmp_path / "mine")],
                                                        ["geoseg", "run", str(tmp_path / "mine")]]
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["10_catalog.ipynb", "11_split.ipynb", "notes.md", "recipe.yml"]
    values, before = parameters(tmp_path / "mine" / "11_split.ipynb"), parameters(ROOT / "nbs" / "jobs" / "11_split.ipynb")
    assert values["buffer"] == 8 and values["areas"] == {"train": {"rows": [0, 0.5]}, "test": {"rows": [0.5, 1]}} and values["run"] == "out/mine/lab"
    assert {k for k in before if k != "__builtins__" and before[k] != values[k]} == {"buffer", "areas", "run"}
    assert said(capsys, "jobs", tmp_path / "mine")[1][2:4] == said(capsys, "jobs", tmp_path / "theirs")[1][2:4]


@pytest.mark.parametrize("recipe", sorted(p.parent.name for p in (ROOT / "runs").glob("*/recipe.yml")))
def test_a_copy_of_every_recipe_sets_what_the_recipe_sets(capsys, tmp_path, recipe):
    "And so does a copy of the copy"
    assert said(capsys, "new", recipe, tmp_path / "mine")[0] == 0 and said(capsys, "new", tmp_path / "mine", tmp_path / "yours")[0] == 0
    wanted = said(capsys, "jobs", recipe)[1][1:]
    assert said(capsys, "jobs", tmp_path / "mine")[1][1:] == wanted == said(capsys, "jobs", tmp_path / "yours")[1][1:]
    assert not [p for p in (tmp_path / "mine").rglob("*") if p.suffix == ".tif"]


def test_only_the_parameter_cell_of_a_copy_differs(capsys, tmp_path):
    said(capsys, "new", "floods", tmp_path / "mine")
    copies = sorted((tmp_path / "mine").glob("*.ipynb"))
    assert len(copies) == 6
    for notebook in copies:
        mine, theirs = (json.loads(p.read_text(encoding="utf-8")) for p in (notebook, ROOT / "nbs" / "jobs" / notebook.name))
        for nb in (mine, theirs):
            for cell in nb["cells"]: cell["source"] = "" if cell["metadata"].get("tags") == ["parameters"] else cell["source"]
        assert mine == theirs


def test_nobodys_folder_is_overwritten(capsys, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.ipynb").write_text("precious")
    one_line(said(capsys, "new", "floods", tmp_path / "full"), "is not empty: it holds mine.ipynb")
    one_line(said(capsys, "new", "floods", tmp_path / "full" / "mine.ipynb"), "is a file")
    one_line(said(capsys, "new", "floods", tmp_path / "my lakes"), "my lakes")
    one_line(said(capsys, "new", "flods", tmp_path / "new"), "did you mean 'floods'")
    one_line(said(capsys, "new", "train", tmp_path / "new"), "no recipe 'train'")
    one_line(said(capsys, "new", tmp_path / "none", tmp_path / "new"), "no recipe.yml")
    assert (tmp_path / "full" / "mine.ipynb").read_text() == "precious" and not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    assert said(capsys, "new", "floods", tmp_path / "empty")[0] == 0


def test_a_recipe_with_a_typo_is_not_copied(capsys, tmp_path):
    theirs = small_recipe(tmp_path / "theirs")
    (theirs / "11_split.yml").write_text("bufer: 8\n")
    one_line(said(capsys, "new", theirs, tmp_path / "mine"), "did you mean 'buffer'")
    assert not (tmp_path / "mine").exists()


def edit(notebook, before, after, more=""):
    "What somebody does in Lab"
    nb = nbformat.read(notebook, 4)
    cell = next(cell for cell in nb.cells if "parameters" in cell.metadata.get("tags", []))
    assert before in cell.source
    cell.source = cell.source.replace(before, after)
    if more: nb.cells.append(nbformat.v4.new_code_cell(more))
    nbformat.write(nb, notebook)


def test_what_was_edited_is_what_runs(capsys, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "recipe.yml").write_text("title: Lakes\njobs: [10_catalog]\n")
    said(capsys, "new", tmp_path / "theirs", tmp_path / "mine")
    edit(tmp_path / "mine" / "10_catalog.ipynb", '"#2b6cb0"', '"#123456"', more="job.folder.joinpath('mine.txt').write_text('edited')")
    code, out, err = said(capsys, "run", tmp_path / "mine", "--out", tmp_path / "run")
    assert code == 0, err
    assert (tmp_path / "run" / "10_catalog" / "mine.txt").read_text() == "edited"
    assert "#123456" in (tmp_path / "run" / "10_catalog" / "params.json").read_text()
    code, lines, _ = said(capsys, "runs", tmp_path / "run")
    assert code == 0 and len(lines) == 2 and "10_catalog" in lines[1] and "complete" in lines[1] and lines[1].startswith("mine ")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["title"] == "Lakes" == report_on([tmp_path / "run"]).title


def test_where_no_run_is_it_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("GEOSEG_RUNS", str(tmp_path))
    for words in (["runs"], ["runs", tmp_path]): assert said(capsys, *words) == (0, [f"no run in {tmp_path}"], [])
    one_line(said(capsys, "runs", tmp_path / "none"), str(tmp_path / "none"))


@pytest.mark.parametrize(("text", "part"), [("epochs: int = \n", "no Python"), ("epochs = 3\n", "line 1"), ("epochs: int = 1 / 3  # x\n", "line 1"),
                                            ("x: int = " + "[" * 3000 + "]" * 3000, "no Python")], ids=["syntax", "bare", "sum", "deep"])
def test_a_parameter_cell_that_was_broken_in_lab_is_one_line(capsys, tmp_path, text, part):
    said(capsys, "new", small_recipe(tmp_path / "theirs"), tmp_path / "mine")
    nb = nbformat.read(tmp_path / "mine" / "11_split.ipynb", 4)
    next(cell for cell in nb.cells if "parameters" in cell.metadata.get("tags", [])).source = text
    nbformat.write(nb, tmp_path / "mine" / "11_split.ipynb")
    one_line(said(capsys, "run", tmp_path / "mine", "--out", tmp_path / "run"), "11_split", part)
    (tmp_path / "mine" / "11_split.ipynb").write_text("<html>")
    one_line(said(capsys, "run", tmp_path / "mine", "--out", tmp_path / "run"), "11_split.ipynb is no notebook")
    assert not (tmp_path / "run").exists()


def in_lab(folder, names):
    "Executes notebooks as Lab does: each in a kernel whose working folder is the notebook's own"
    from nbclient import NotebookClient
    for name in names:
        nb = nbformat.read(folder / name, 4)
        NotebookClient(nb, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()


@pytest.mark.slow
def test_a_copy_opened_in_lab_works_from_top_to_bottom(capsys, tmp_path):
    said(capsys, "new", "floods", tmp_path / "mine")
    edit(tmp_path / "mine" / "37_train.ipynb", "epochs: int = 32", "epochs: int = 1")
    order = ["10_catalog", "22_tile", "11_split", "37_train", "43_evaluate", "42_predict"]
    in_lab(tmp_path / "mine", [f"{job}.ipynb" for job in order])
    run = tmp_path / "mine" / "out" / "mine" / "lab"
    results = [json.loads((run / job / "result.json").read_text()) for job in order]
    assert [r["status"] for r in results] == ["complete"] * 6
    assert results[1]["params"]["overlap"] == 18 and results[3]["params"]["epochs"] == 1 and results[3]["params"]["ema"] == 0.98


# ---------------------------------------------------------------- lists

@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("name", ["", "split", "train", "predict", "floods", "one_file_a_band"])
def test_lists_stand_in_columns_and_fit_the_terminal(capsys, monkeypatch, columns, name):
    "The right column begins at one place, whatever stands left of it"
    monkeypatch.setenv("COLUMNS", str(columns))
    code, lines, errors = said(capsys, "jobs", *([name] if name else []))
    rows = [line for line in lines if line.startswith("  ")]
    assert code == 0 and not errors and max(map(len, rows)) <= columns
    if name == "":
        heads = [re.match(r"  (\w+)( +)", line) for line in rows if line[2] != " "]
        assert len({head.end() for head in heads}) == 1 and all(len(head[2]) >= 2 for head in heads)
        assert {head[1] for head in heads} >= {"floods", "one_file_a_band", "predict"}


def test_every_parameter_with_its_default_and_its_whole_help_is_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for path in sorted((ROOT / "nbs" / "jobs").glob("*.ipynb")):
        told = " ".join(" ".join(said(capsys, "jobs", path.stem)[1]).split())
        for p in read_parameters(parameters_cell(path), path.stem).values(): assert " ".join(f"{p.name} {p.kind} {p.default!r} {p.help}".split()) in told


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_what_it_does_in_a_sentence(capsys, verb):
    with pytest.raises(SystemExit): main([verb, "--help"])
    paragraphs = capsys.readouterr().out.split("\n\n")
    assert re.fullmatch(r"[A-Z].+\.", " ".join(paragraphs[1].split())), paragraphs[:2]
