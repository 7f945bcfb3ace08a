"What is given away: the wheel works in an empty folder, the sdist builds the same wheel, and each extra can be had alone"
import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from functools import cache

import pytest
from house import JOBS, MODULES, ROOT, tree
from packaging.requirements import Requirement

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
FACTS = SETTINGS["DEFAULT"]
EXTRAS = {key.removeprefix("extra_"): FACTS[key].split() for key in FACTS if key.startswith("extra_")}


def bare(requirement):
    "The name of a package, as an index spells it"
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement)[0]).lower()


def built(source, folder):
    "The wheel of a source tree or archive"
    subprocess.run([*PIP, "wheel", source, "--no-deps", "-w", folder], check=True, timeout=300, cwd=folder.parent)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    "A copy of the repository: a build leaves folders behind, and the next one would take them in"
    copy = tmp_path_factory.mktemp("copy") / "house"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "out", "build", "dist", "*.egg-info", "__pycache__", ".ipynb_checkpoints"))
    return copy


@pytest.fixture(scope="module")
def wheel(house):
    return built(house, house.parent / "dist")


@pytest.mark.slow
def test_the_wheel_holds_jobs_recipes_and_sample_and_is_small(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"geoseg_nb/_jobs/{notebook.name}" for notebook in JOBS} <= names
    recipes = [p.relative_to(ROOT / "runs").as_posix() for p in (ROOT / "runs").rglob("*") if p.is_file()]
    assert {f"geoseg_nb/_runs/{name}" for name in recipes} <= names and any(name.endswith("_S1Hand.tif") for name in names)
    assert {f"geoseg_nb/{module.name}" for module in MODULES} <= names
    assert not [name for name in names if "checkpoints" in name or "__pycache__" in name or name.startswith("tests")]
    assert wheel.stat().st_size < 20e6, f"{wheel.stat().st_size / 1e6:.1f} MB"


@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel(house, wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "build", "--sdist", "--outdir", tmp_path / "sdist", house], check=True, timeout=300, capture_output=True)
    again = zipfile.ZipFile(built(next((tmp_path / "sdist").glob("*.tar.gz")), tmp_path / "dist"))
    first = zipfile.ZipFile(wheel)
    assert sorted(again.namelist()) == sorted(first.namelist())
    changed = [name for name in first.namelist() if first.getinfo(name).CRC != again.getinfo(name).CRC and not name.endswith("/RECORD")]
    assert not changed


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    "A fresh environment that holds the wheel; what it requires is lent by this one, and read after its own"
    home = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "env"], check=True, timeout=120)
    packages = next((home / "env" / "lib").glob("python*")) / "site-packages"
    lent = [path for path in sys.path if path.endswith("site-packages")]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "GEOSEG_", "VIRTUAL_ENV"))}
    subprocess.run([*PIP, "--python", home / "env" / "bin" / "python", "install", "--no-deps", wheel], check=True, timeout=300, env=clean)
    (packages / "lent.pth").write_text("".join(f"{path}\n" for path in lent))
    (home / "empty").mkdir()

    def geoseg(*words):
        return subprocess.run([home / "env" / "bin" / "geoseg", *map(str, words)], cwd=home / "empty", env=clean, capture_output=True, text=True, timeout=1500)

    return geoseg, home / "empty", packages


@pytest.mark.slow
def test_the_installed_program_runs_the_floods_in_an_empty_folder(installed):
    geoseg, folder, packages = installed
    assert "floods" in geoseg("jobs").stdout
    done = geoseg("run", "floods", "--variant", "small", "--out", "out")
    assert done.returncode == 0 and "iou_water" in done.stdout, done.stderr[-3000:]
    result = json.loads((folder / "out" / "10_catalog" / "result.json").read_text())
    assert str(packages / "geoseg_nb") in json.dumps(result) and str(ROOT) not in json.dumps(result)
    assert len(list((folder / "out" / "42_predict").rglob("*.tif"))) >= 10
    assert "43_evaluate" in geoseg("runs", "out").stdout or "42_predict" in geoseg("runs", "out").stdout


@pytest.mark.slow
def test_the_installed_program_copies_a_recipe_that_runs(installed):
    geoseg, folder, packages = installed
    assert geoseg("new", "floods", "mine").returncode == 0
    assert sorted(p.name for p in (folder / "mine").iterdir()) == sorted([*(f"{job}.ipynb" for job in
                  ("10_catalog", "11_split", "22_tile", "37_train", "42_predict", "43_evaluate")), "recipe.yml"])
    (folder / "mine" / "recipe.yml").write_text("jobs: [10_catalog]\n")
    done = geoseg("run", "mine", "--out", "out/mine")
    assert done.returncode == 0, done.stderr
    assert str(packages / "geoseg_nb" / "_runs") in (folder / "out" / "mine" / "10_catalog" / "result.json").read_text()


def offered(package):
    "Versions of a package for this Python and machine that the index lists, without a download; None where no index is reached"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", "--json", "--retries", "1", package]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if "NewConnectionError" in done.stderr or "Failed to establish a new connection" in done.stderr: return None
    assert done.returncode == 0, done.stderr[-1000:]
    return json.loads(done.stdout)["versions"]


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_can_be_had_alone(extra):
    "The index has a version that fits each of its packages, this Python and this machine"
    for text in EXTRAS[extra]:
        wanted = Requirement(text)
        versions = offered(wanted.name)
        if versions is None: pytest.skip("no package index is reached")
        assert any(wanted.specifier.contains(version) for version in versions), (text, versions[:5])


# ---------------------------------------------------------------- fault 48: what is optional is asked for by name

@cache
def owners():
    return importlib.metadata.packages_distributions()


def packages_of(requirements):
    "Modules of those that are installed here"
    wanted = {bare(text) for text in requirements}
    return {module for module, names in owners().items() if wanted & {bare(name) for name in names}}


def asked_for(module):
    "(module, extra) of every call of require_extra with plain texts"
    calls = [n for n in ast.walk(tree(module)) if isinstance(n, ast.Call) and getattr(n.func, "id", getattr(n.func, "attr", "")) == "require_extra"]
    return [tuple(a.value for a in call.args) for call in calls if all(isinstance(a, ast.Constant) for a in call.args)]


def test_every_optional_module_is_asked_for_under_the_extra_that_brings_it():
    asked = {pair for module in MODULES for pair in asked_for(module)}
    assert {("obstore", "s3"), ("onnxruntime", "onnx"), ("wandb", "track")} <= asked
    for name, extra in asked:
        there = packages_of(EXTRAS[extra])
        assert name.partition(".")[0] in there, f"{name} is asked for as {extra}, which brings {sorted(there)}"


def test_nothing_optional_is_imported_without_being_asked_for():
    "A bare import of a package that only an extra brings would end in a ModuleNotFoundError that names no command"
    core = packages_of(FACTS["requirements"].split())
    optional = packages_of([text for texts in EXTRAS.values() for text in texts]) - core
    assert {"obstore", "onnx", "wandb"} <= optional
    for module in MODULES:
        named = {name.partition(".")[0] for name, _ in asked_for(module)}
        imports = {a.name.partition(".")[0] for n in ast.walk(tree(module)) if isinstance(n, ast.Import) for a in n.names}
        imports |= {n.module.partition(".")[0] for n in ast.walk(tree(module)) if isinstance(n, ast.ImportFrom) and n.module and not n.level}
        assert not (imports & optional) - named, f"{module.stem} imports {(imports & optional) - named}"
