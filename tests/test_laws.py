"The laws of the house: shape, order and honesty of notebooks, modules and jobs"
import ast
import base64
import importlib
import json
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
from house import (
    JOBS, MODULES, NOTEBOOKS, ROOT, cells, defines, functions, is_export, is_lesson, long_functions, number, odd_notebooks, prose,
    reasons, tree)

name = lambda path: path.stem  # noqa: E731


def siblings(module):
    "Sibling modules that a module imports anywhere, also inside functions"
    nodes = [n for n in ast.walk(tree(module)) if isinstance(n, ast.ImportFrom) and n.module]
    near = {n.module for n in nodes if n.level} | {n.module.split(".")[1] for n in nodes if n.module.startswith("geoseg_nb.")}
    names = [a.name for n in ast.walk(tree(module)) if isinstance(n, ast.Import) for a in n.names]
    return near | {m.split(".")[1] for m in names if m.startswith("geoseg_nb.")}


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_imports_point_to_smaller_numbers(module):
    numbers = {m.stem: number(m) for m in MODULES}
    above = {s for s in siblings(module) if numbers[s] >= numbers[module.stem]}
    assert not above, f"{module.stem} ({numbers[module.stem]}) imports {above}"


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_modules_import_their_siblings_by_relative_names(module):
    "nbdev overlooks an import over several lines whose last line is shorter than `from geoseg_nb.<module>`: break it earlier"
    absolute = [n.module for n in tree(module).body if isinstance(n, ast.ImportFrom) and not n.level and n.module.startswith("geoseg_nb")]
    assert not absolute, f"not made relative: {absolute}"


def test_no_number_is_given_twice():
    numbers = [re.match(r"\d+[a-z]?", n.stem)[0] for n in NOTEBOOKS if n.stem != "00_init"]
    assert len(numbers) == len(set(numbers)), sorted(n for n in numbers if numbers.count(n) > 1)


CONTRACT = {"catalog", "sensors", "read", "read_arrays", "files", "legend"}  # what a product has, or may have


def test_one_name_means_one_thing():
    "A function or class that two modules export is a trap for whoever imports both"
    kinds = (ast.FunctionDef, ast.ClassDef)
    owners = {}
    for module in MODULES:
        for node in tree(module).body:
            if isinstance(node, kinds) and not node.name.startswith("_"): owners.setdefault(node.name, []).append(module.stem)
    twice = {name: where for name, where in owners.items() if len(where) > 1 and name not in CONTRACT}
    assert not twice, twice


def test_importing_the_package_is_light():
    code = "import sys, geoseg_nb; heavy = {'torch','rasterio','numpy','pandas','xarray','matplotlib'} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)


def test_the_command_line_answers_without_heavy_imports():
    code = "import sys, geoseg_nb.cli; heavy = {'torch','rasterio','pandas','xarray','matplotlib','papermill'} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)


def raises(function):
    "Whether a function raises an error of its own; functions within it speak for themselves"
    nodes = list(ast.iter_child_nodes(function))
    for node in nodes:
        if isinstance(node, ast.Raise) and node.exc is not None: return True
        if not isinstance(node, (ast.FunctionDef, ast.Lambda)): nodes += ast.iter_child_nodes(node)
    return False


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_a_function_that_raises_says_when(module):
    told = r"refus|error|raises|mismatch|Later\b|NoParts|LostRecord"
    silent = [n.name for n in tree(module).body if isinstance(n, ast.FunctionDef) and raises(n)
              and not re.match("_|check_|refuse_|require_", n.name) and not re.search(told, ast.get_docstring(n) or "", re.IGNORECASE)]
    assert not silent, f"the docstring does not say what is refused: {silent}"


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_functions_stay_short(module):
    long = [(f, n) for f, n in functions(module) if n > 40]
    assert not long, f"over 40 lines: {long}"


def test_what_is_longer_than_the_style_has_a_reason():
    "Functions over 25 lines and notebooks out of measure are named in a decision record"
    nameless = [line for line in [*long_functions(), *odd_notebooks()] if f"`{line.split()[0]}`" not in reasons()]
    assert not nameless, f"no decision record gives a reason for {nameless}"


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_functions_take_at_most_six_parameters(module):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    many = [n.name for n in ast.walk(tree(module)) if isinstance(n, kinds)
            and len([a for a in n.args.args + n.args.kwonlyargs if a.arg not in ("self", "cls")]) > 6]
    assert not many, f"more than six parameters: {many}"


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_modules_import_names_and_catch_what_they_name(module):
    stars = [n.module for n in ast.walk(tree(module)) if isinstance(n, ast.ImportFrom) and any(a.name == "*" for a in n.names)]
    bare = [n.lineno for n in ast.walk(tree(module)) if isinstance(n, ast.ExceptHandler) and n.type is None]
    assert not stars and not bare, f"star imports {stars}, bare excepts at lines {bare}"


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_nothing_from_outside_is_unpickled(module):
    text = module.read_text(encoding="utf-8")
    for unsafe in ("weights_only=False", "pickle.load", "allow_pickle=True", "yaml.load(", "yaml.unsafe_load", "eval("):
        found = [line for line in text.splitlines() if re.search(r"(?<![\w.])" + re.escape(unsafe), line)]
        assert not found, f"{unsafe} in {found}"


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_modules_hold_no_unfinished_work(module):
    text = module.read_text(encoding="utf-8")
    assert not re.search(r"NotImplementedError|TODO|FIXME|XXX", text)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_a_notebook_opens_with_a_promise(notebook):
    first = cells(notebook)[0]
    assert first["cell_type"] == "markdown" and re.match(r"# \S+\n\n> \S", first["source"]), first["source"][:80]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_a_notebook_keeps_its_measure(notebook):
    all_cells = cells(notebook)
    exported = sum(len([x for x in c["source"].splitlines() if x.strip()]) - 1 for c in all_cells if is_export(c))
    assert len(all_cells) <= 80, f"{len(all_cells)} cells"
    assert prose(notebook) >= 0.25, f"{prose(notebook):.0%} of the cells are prose"
    assert exported <= 330, f"{exported} exported lines"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_an_export_cell_holds_one_idea(notebook):
    long = [c["source"].splitlines()[1] for c in cells(notebook) if is_export(c) and defines(c["source"]) and len(c["source"].splitlines()) > 36]
    assert not long, f"export cells over 35 lines: {long}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_say_define_show(notebook):
    "Between two cells that define something stands a lesson"
    waiting, bare = None, []
    for cell in cells(notebook):
        if is_export(cell) and defines(cell["source"]):
            if waiting: bare.append(waiting)
            waiting = cell["source"].splitlines()[1]
        elif is_lesson(cell): waiting = None
    assert not bare, f"defined without a lesson before the next definition: {bare}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_lessons_assert(notebook):
    lessons = [c["source"] for c in cells(notebook) if is_lesson(c)]
    if notebook.stem != "00_init": assert sum("assert" in s or "expect_fail" in s or "test_eq" in s for s in lessons) >= len(lessons) / 3


@pytest.mark.parametrize("notebook", [*NOTEBOOKS, *JOBS, ROOT / "nbs" / "index.ipynb"], ids=name)
def test_committed_outputs_are_small_and_tell_nothing_of_the_machine(notebook):
    for cell in deepcopy(cells(notebook)):
        for output in cell.get("outputs", []):
            picture = "".join(output.get("data", {}).pop("image/png", ""))
            text = json.dumps(output)
            assert not re.search(r"(?<![\w.])/(work|tmp|root|home)/\w|0x[0-9a-f]{8,}|it/s\]", text), text[:300]
            assert output.get("output_type") != "error", cell["source"][:80]
            assert len(base64.b64decode(picture)) < 60_000, f"figure over 60 KB in {cell['source'][:60]}"
            assert len(text) < 12_000, f"an output of {len(text)} characters"


@pytest.mark.parametrize("notebook", JOBS, ids=name)
def test_a_job_defines_nothing(notebook):
    assert len(cells(notebook)) <= 14
    for cell in cells(notebook):
        if cell["cell_type"] != "code": continue
        bodies = ast.walk(ast.parse(cell["source"]))
        assert not any(isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef, ast.Lambda)) for n in bodies), cell["source"]


@pytest.mark.parametrize("notebook", JOBS, ids=name)
def test_every_parameter_has_a_type_a_default_and_help(notebook):
    from geoseg_nb.jobs import parameters_cell, read_parameters
    parameters = read_parameters(parameters_cell(notebook), notebook.stem)
    assert all(p.help for p in parameters.values()), [p.name for p in parameters.values() if not p.help]
    assert "run" in parameters


def test_jobs_opened_in_lab_share_one_run_folder_that_no_make_target_writes():
    from geoseg_nb.jobs import parameters_cell, read_parameters
    runs = {read_parameters(parameters_cell(notebook), notebook.stem)["run"].default for notebook in JOBS}
    made = set(re.findall(r"--out (\S+)", (ROOT / "Makefile").read_text(encoding="utf-8")))
    assert len(runs) == 1 and made and not runs & made, (runs, made)


@pytest.mark.parametrize("notebook", JOBS, ids=name)
def test_defaults_of_a_job_equal_those_of_its_spec(notebook):
    "Each `XSpec(a=a, b=b)` in a job passes its parameters by name, and the defaults agree"
    from geoseg_nb.jobs import parameters_cell, read_parameters
    parameters = read_parameters(parameters_cell(notebook), notebook.stem)
    code = ast.parse("\n".join(c["source"] for c in cells(notebook) if c["cell_type"] == "code"))
    homes = {a.name: n.module for n in ast.walk(code) if isinstance(n, ast.ImportFrom) for a in n.names}
    calls = [n for n in ast.walk(code) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id.endswith("Spec")]
    assert calls, "a job shows its spec"
    for call in calls:
        spec = getattr(importlib.import_module(homes[call.func.id]), call.func.id)
        for keyword in call.keywords:
            if keyword.arg not in parameters: continue
            default = spec.model_fields[keyword.arg].get_default(call_default_factory=True)
            theirs = parameters[keyword.arg].default
            assert json.dumps(default, default=list) == json.dumps(theirs, default=list), keyword.arg


WITHIN = {"42_predict.known", "43_evaluate.legend"}  # fields that a job fills in from its run


@pytest.mark.parametrize("notebook", JOBS, ids=name)
def test_every_field_of_a_jobs_spec_is_a_parameter(notebook):
    "What a spec can do, a recipe can ask for; and the cell passes it on"
    from geoseg_nb.jobs import parameters_cell, read_parameters
    from geoseg_nb.requests import specs_of
    parameters = read_parameters(parameters_cell(notebook), notebook.stem)
    passed = {k.arg for c in cells(notebook) if c["cell_type"] == "code" for n in ast.walk(ast.parse(c["source"]))
              if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id.endswith("Spec") for k in n.keywords}
    for spec in specs_of(notebook):
        unreachable = {f for f in spec.model_fields if f not in parameters or f not in passed}
        exempt = {w.split(".")[1] for w in WITHIN if w.startswith(f"{notebook.stem}.")} & set(spec.model_fields)
        assert unreachable == exempt, f"{spec.__name__}: {unreachable ^ exempt}"


def test_handles_are_unique():
    from geoseg_nb.jobs import recipe_folders
    from geoseg_nb.stages import handle_of
    handles = [handle_of(p.stem) for p in JOBS] + list(recipe_folders())
    assert len(handles) == len(set(handles))


def test_notebooks_are_clean_and_the_package_in_sync(tmp_path):
    "Clean, then export, in a copy: nothing may change"
    copy = tmp_path / "house"
    skip = shutil.ignore_patterns(".git", ".venv", "out", "sample", "__pycache__", "*.egg-info", ".ipynb_checkpoints")
    shutil.copytree(ROOT, copy, ignore=skip)
    for tool in ("nbdev-clean", "nbdev-export"):
        subprocess.run([Path(sys.executable).with_name(tool)], cwd=copy, check=True, capture_output=True, timeout=300)
    paths = [*NOTEBOOKS, *JOBS, *sorted((ROOT / "geoseg_nb").glob("*.py"))]
    changed = [str(p.relative_to(ROOT)) for p in paths if p.read_bytes() != (copy / p.relative_to(ROOT)).read_bytes()]
    extra = {p.name for p in (copy / "geoseg_nb").glob("*.py")} - {p.name for p in (ROOT / "geoseg_nb").glob("*.py")}
    assert not changed and not extra, f"not clean or not exported: {changed} {extra}"


def test_every_notebook_is_listed_in_the_tour():
    tour = "\n".join(c["source"] for c in cells(ROOT / "nbs" / "index.ipynb"))
    missing = [p.stem for p in NOTEBOOKS if p.name not in tour]
    assert not missing, missing


def test_the_table_of_faults_names_tests_that_there_are():
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", (ROOT / "tests" / "README.md").read_text())
    files = {path.name: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    gone = [f"{file}::{test}" for file, test in named if f"def {test}" not in files.get(file, "")]
    assert len(named) > 50 and not gone, gone


@pytest.mark.parametrize("notebook", [*NOTEBOOKS, *JOBS], ids=name)
def test_a_line_of_code_can_be_read_without_scrolling(notebook):
    long = [line for cell in cells(notebook) if cell["cell_type"] == "code" for line in cell["source"].splitlines() if len(line) > 150]
    assert not long, f"lines over 150 characters: {long}"
