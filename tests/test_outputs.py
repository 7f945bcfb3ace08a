"What a cell says: no secret in any file of the run or on the terminal, and no notebook that nobody can open"
import base64
import io
import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import papermill
import pytest
from geoseg_nb import outputs
from geoseg_nb.core import Refused
from geoseg_nb.jobs import Step
from geoseg_nb.launch import JobFailed, scrubbed
from geoseg_nb.outputs import Door, Log, scrub, stream
from geoseg_nb.places import travels
from geoseg_nb.redact import masked, masked_tree, secret_values
from geoseg_nb.requests import Request, prepare
from geoseg_nb.runs import read_job
from geoseg_nb.stages import earlier, open_job, record
from house import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from papermill.engines import papermill_engines
from test_places import recipe

CANARIES = {"AWS_SECRET_ACCESS_KEY": "canary/Secret+0123456789&\"abcdef", "AWS_SESSION_TOKEN": "FwoGZXcanary" + "t0ken/+=" * 40,
            "WANDB_API_KEY": "wandb-canary-5c1f", "STUDIES": "postgresql://user:pw-canary%2F9e@127.0.0.1/studies"}
NEEDLES = [b"canary", b"t0ken", base64.b64encode(b"canary"), base64.b64encode(b"-canary")[2:-1], base64.b64encode(b"canary/Secret+0123456789")[:20],
           base64.b64encode(b"xcanary/Secret+0123456789")[2:20], base64.b64encode(b"xxcanary/Secret+0123456789")[3:20]]

LEAKS = ["""
import base64, os, sys
from pathlib import Path
from geoseg_nb.stages import open_job, record
secret, token = os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_SESSION_TOKEN"]
job = open_job("10_catalog", run, {"given": secret, "nested": [{"a": token}]})
print(os.environ); print(dict(os.environ), file=sys.stderr); dict(os.environ)
""", """
import pandas as pd
table = pd.DataFrame({"name": list(os.environ), "value": list(os.environ.values())})
with pd.option_context("display.max_rows", None): display(table); print(table.to_string())
table.to_csv(job.folder / "environment.csv"); (job.folder / "note.json").write_text(repr(dict(os.environ)))
table
""", """
from IPython.display import HTML, display, Markdown
for piece in (secret[:9], secret[9:20], secret[20:]): print(piece, end="", flush=True)
for skip in range(3): print(base64.b64encode(b"u" * skip + secret.encode() + b":x").decode())
h = display(Markdown(token), display_id=True); h.update(HTML(f"<b title='{secret}'>{token}</b>"))
os.write(1, (secret + "\\n").encode()); os.system("echo $AWS_SECRET_ACCESS_KEY; env >&2")
job.profile.log(f"logged in with {secret}")
if way == "hangs": (job.folder / "waits").touch(); import time; time.sleep(300)
if way == "raises": raise KeyError(f"no access with {secret} and {token}")
if way == "binary": (job.folder / "environment.npy").write_bytes(b"\\0\\1" + secret.encode())
record(job, {"login": secret}, {"by": token, "at": os.environ["STUDIES"]})
"""]


def geoseg(*words, **environment):
    return subprocess.run([sys.executable, "-m", "geoseg_nb.cli", "run", *map(str, words)], cwd=ROOT, capture_output=True, timeout=600, env={**os.environ, **environment})


def found_in(folder) -> list[str]:
    "Files that hold a canary, plain or in base64"
    return [f"{path.name}: {needle}" for path in folder.rglob("*") if path.is_file() for needle in NEEDLES if needle in path.read_bytes()]


@pytest.mark.parametrize("way, code", [("raises", 1), pytest.param("", 0, marks=pytest.mark.slow), pytest.param("binary", 1, marks=pytest.mark.slow)])
def test_no_secret_is_in_any_file_of_a_run_or_on_the_terminal(tmp_path, way, code):
    "Fault 34: cells that print the environment, show it as a table, raise with it, and write it into files"
    done = geoseg(recipe(tmp_path / "mine", LEAKS), "--out", tmp_path / "run", "-p", f"way={way}", **CANARIES)
    assert done.returncode == code, done.stderr.decode()[-2000:]
    said, job = done.stdout + done.stderr, tmp_path / "run" / "10_catalog"
    assert not [needle for needle in NEEDLES if needle in said] and [line for line in found_in(tmp_path / "run") if ".held-back: " not in line] == []
    assert b"***" in said and "***" in (job / "10_catalog.ipynb").read_text() and "***" in (job / "environment.csv").read_text()
    assert json.loads((job / "params.json").read_text()) == {"given": "***", "nested": [{"a": "***"}]}
    nbformat.validate(nbformat.read(job / "10_catalog.ipynb", 4))
    if way == "binary":
        assert b"environment.npy held a credential" in done.stderr and b"its name now ends in .held-back" in done.stderr and b"let the job write it without" in done.stderr
        assert (job / "environment.npy.held-back").read_bytes() == b"\0\1" + CANARIES["AWS_SECRET_ACCESS_KEY"].encode() and not (job / "environment.npy").exists()
    if not way: assert json.loads((job / "result.json").read_text())["metrics"] == {"login": "***"}


@pytest.mark.slow
def test_a_killed_run_holds_none_either(tmp_path):
    "kill -9 of launcher and kernel in the middle of a cell: only what the job's own code wrote by itself has not been gone through"
    process = subprocess.Popen([sys.executable, "-m", "geoseg_nb.cli", "run", str(recipe(tmp_path / "mine", LEAKS)), "--out", str(tmp_path / "run"), "-p", "way=hangs"],
                               cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **CANARIES})
    job, end = tmp_path / "run" / "10_catalog", time.monotonic() + 120
    while not (job / "waits").exists() and time.monotonic() < end: time.sleep(0.1)
    time.sleep(2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert "***" in (job / "10_catalog.ipynb").read_text()
    assert {line.partition(":")[0] for line in found_in(tmp_path / "run")} <= {"environment.csv", "note.json"}


def test_a_value_that_is_a_secret_is_refused_and_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "wandb-canary-5c1f")
    for value in ("wandb-canary-5c1f", "postgresql://me:pw-canary@host/db"):
        with pytest.raises(Refused, match="10_catalog.root holds a credential") as caught:
            prepare(Request(name="catalog", out=str(tmp_path / "run"), assignments=[f"root={value}"]))
        assert "canary" not in str(caught.value) and not (tmp_path / "run").exists()


@settings(max_examples=100, deadline=None)
@given(secret=st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=6, max_size=60).filter(lambda s: not s.isdecimal() and "***" not in s),
       before=st.text(max_size=20), after=st.text(max_size=20), cuts=st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_a_secret_is_found_however_its_text_is_cut_into_messages(secret, before, after, cuts):
    "What is let through, put together, is the text without the secret: nothing more is lost, nothing of it is shown"
    text, pieces = f"{before}{secret}{after}", []
    while text:
        n = cuts[len(pieces) % len(cuts)]
        pieces, text = [*pieces, text[:n]], text[n:]
    os.environ["CANARY_TOKEN"] = secret
    try:
        if secret not in secret_values(os.environ): return
        redactor = outputs.Redactor()
        shown = "".join([redactor.feed(piece) for piece in pieces] + [redactor.end()])
        assert secret not in shown
        assert "".join(shown.split("***")) == "".join(masked(f"{before}{secret}{after}").split("***"))
    finally:
        del os.environ["CANARY_TOKEN"]


def test_ordinary_output_passes_unchanged_and_fast(tmp_path):
    "Twenty thousand lines, one message each: the same lines, in a second or two"
    door, began = Door(Log(tmp_path / "a.log")), time.perf_counter()
    lines = [f"epoch {i}: loss 0.{i:05d}\n" for i in range(5_000)]
    shown = [message["content"]["text"] for line in lines for message in door.let(stream("stdout", line, {}), 0)]
    assert shown == lines and not (tmp_path / "a.log").exists() and time.perf_counter() - began < 5


LOUD = ["from geoseg_nb.stages import open_job, record\njob = open_job('10_catalog', run, {})", """
import resource
line = "0123456789abcdef" * 64
for i in range(100_000): print(i, line)
""", "'y' * 3_000_000", "record(job, {}, {})"]

WATCH = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "geoseg_nb.cli", "run", *sys.argv[1:]], capture_output=True)
print(done.returncode, len(done.stdout), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)
"""


def test_a_notebook_that_prints_a_hundred_megabytes_stays_small(tmp_path):
    "Fault 37: the whole output is in the log, the notebook says where, and nobody's memory holds it"
    done = subprocess.run([sys.executable, "-c", WATCH, str(recipe(tmp_path / "mine", LOUD)), "--out", str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True, timeout=600)
    code, said, peak = map(int, done.stdout.split())
    job = tmp_path / "run" / "10_catalog"
    assert code == 0 and (job / "10_catalog.ipynb").stat().st_size < 2_000_000 and said < 2_000_000
    notebook = nbformat.read(job / "10_catalog.ipynb", 4)
    assert "in 10_catalog.log beside this notebook" in notebook.cells[2 + 1].outputs[-1].text
    with open(job / "10_catalog.log") as log:
        numbers = [int(line.split()[0]) for line in log if line.endswith("0123456789abcdef\n")]
    assert numbers == list(range(100_000)) and "y" * 3_000_000 in (job / "10_catalog.log").read_text()
    assert peak < 600, f"{peak} MB"


def test_the_log_ends_at_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "LOG", 1 << 20)
    log = Log(tmp_path / "a.log")
    for _ in range(40): log.write("x" * 100_000)
    assert log.path.stat().st_size <= (1 << 20) + 100 and log.path.read_text().endswith("cut here, at 1 MB\n")


def test_what_was_read_stays_as_it_is_where_there_is_no_secret(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "b.txt").write_bytes("é https://example.org/@me\xff".encode("latin-1"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert scrub(tmp_path) == {} and before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}


@settings(max_examples=100, deadline=None)
@given(before=st.binary(max_size=40), after=st.binary(max_size=40), cut=st.integers(1, 30))
def test_no_file_is_lost_and_only_one_with_the_whole_secret_is_held_back(tmp_path_factory, before, after, cut):
    "Of a binary file the name changes where all of the secret is in it, and not one byte of any file"
    secret, folder = b"canary-0123456789-of-thirty-ch", tmp_path_factory.mktemp("job")
    files = {"whole.bin": b"\0" + before + secret + after, "most.bin": b"\0" + before + secret[:-cut] + after}
    for name, data in files.items(): (folder / name).write_bytes(data)
    os.environ["CANARY_TOKEN"] = secret.decode()
    try:
        held = {name for name, data in files.items() if secret in data}
        assert scrub(folder) == dict.fromkeys(sorted(held), "held back") and scrub(folder) == {}
    finally:
        del os.environ["CANARY_TOKEN"]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {f"{name}.held-back" if name in held else name: data for name, data in files.items()}
    assert not [name for name in held if travels(f"22_tile/{name}.held-back")]


PICTURES = ["""
from base64 import b64decode, b64encode
from IPython.display import display
noise = lambda n: b64encode(bytes([n]) * 450_000).decode()
first = display({"text/plain": "0 %"}, raw=True, display_id="progress"); print("said")
""", """
for n in range(3): display({"image/png": noise(n), "text/plain": f"<Figure {n}>"}, raw=True)
""", """
for n in range(9): display({"image/jpeg": noise(n), "text/plain": f"<Curve of epoch {n}>"}, raw=True, display_id="curve", update=n > 0)
first.update({"text/plain": "100 %"}, raw=True)
""", """
display({"text/plain": "a table", "text/html": "<table>" + "h" * 1_500_000, "application/json": {"rows": 7}}, raw=True)
for n in range(5): display({"image/png": noise(n) + noise(n), "text/plain": f"<Large {n}>"}, raw=True, display_id="large", update=n > 0)
display({"image/png": "x"}, raw=True)
"""]


def test_what_a_notebook_has_no_room_for_is_where_it_says(tmp_path, monkeypatch):
    "A real kernel shows pictures beyond the limit (here a tenth of it), updates of one display, and forms that are no text: each is in the notebook, the log or the file that the note names"
    monkeypatch.setattr(outputs, "PIXELS", 800_000)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in PICTURES])
    nbformat.write(notebook, tmp_path / "in.ipynb")
    papermill_engines.register("door", outputs.engine(tmp_path / "22_tile.log"))
    papermill.execute_notebook(tmp_path / "in.ipynb", tmp_path / "22_tile.ipynb", engine_name="door", kernel_name="python3", language="python", progress_bar=False)
    shown = [cell.outputs for cell in nbformat.read(tmp_path / "22_tile.ipynb", 4).cells]
    kept = lambda n: (tmp_path / f"22_tile-picture-{n}.png").read_bytes()  # noqa: E731
    assert shown[0][0].data == {"text/plain": "100 %"}, "an update of a display of another cell"
    assert set(shown[1][0].data) == {"image/png", "text/plain"} and [set(o.data) for o in shown[1][1:]] == [{"text/plain"}] * 2
    for n in (1, 2):
        assert f"<Figure {n}>" in shown[1][n].data["text/plain"] and f"in 22_tile.log and 22_tile-picture-{n}.png beside" in shown[1][n].data["text/plain"]
        assert kept(n) == bytes([n]) * 450_000
    assert shown[2][0].data["text/plain"] == "<Curve of epoch 8>" and base64.b64decode(shown[2][0].data["image/jpeg"]) == bytes([8]) * 450_000
    assert "22_tile-picture-3.png" in shown[3][1].data["text/plain"] and "<Large 4>" in shown[3][1].data["text/plain"]
    assert kept(3) == bytes([4]) * 900_000
    assert sorted(p.name for p in tmp_path.glob("*-picture-*")) == [f"22_tile-picture-{n}.png" for n in (1, 2, 3)]
    log = (tmp_path / "22_tile.log").read_text()
    assert "h" * 1_500_000 in log and '{"rows": 7}' in log and "== image/png ==\nx\n" in log


def run_by_papermill(folder, cells) -> list:
    "The outputs of each cell of a notebook that a real kernel runs behind the door; the cell that raises is the last"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, folder / "in.ipynb")
    papermill_engines.register("door", outputs.engine(folder / "22_tile.log"))
    try: papermill.execute_notebook(folder / "in.ipynb", folder / "22_tile.ipynb", engine_name="door", kernel_name="python3", language="python", progress_bar=False)
    except papermill.PapermillExecutionError as error: assert error.evalue == "boom", error
    return [cell.outputs for cell in nbformat.read(folder / "22_tile.ipynb", 4).cells if not cell.metadata.get("tags")]


def test_a_text_that_ends_on_the_first_letter_of_a_secret_is_not_lost(tmp_path, monkeypatch):
    "Before a display, before a result, at the end of a cell and before an error, which stays the cell's own"
    monkeypatch.setenv("MY_TOKEN", "canary-0123456789")
    cells = ['print("abc", end=""); display({"text/plain": "shown"}, raw=True)', 'print("abc", end=""); 5', 'print("abc", end="")',
             'import sys; print("abca", end="", file=sys.stderr); print("abcan", end="")', 'print("abc", end=""); raise ValueError("boom")']
    shown = [[(o.output_type, o.get("text") or o.get("ename") or o.data["text/plain"]) for o in found] for found in run_by_papermill(tmp_path, cells)]
    said = [{kind: "".join(text for k, text in found if k == kind) for kind, _ in found} for found in shown]
    assert said[:3] == [{"stream": "abc", "display_data": "shown"}, {"stream": "abc", "execute_result": "5"}, {"stream": "abc"}]
    assert sorted(said[3]["stream"]) == sorted("abcaabcan") and said[4] == {"stream": "abc", "error": "ValueError"}
    assert [kind for kind, _ in shown[0]][-1] == "display_data", "the rest of a stream comes before what follows it"


PEM = "-----BEGIN PRIVATE KEY-----\nMIIEcanaryline1abcdefgh/0123456789\nMIIEcanaryline2abcdefgh+0123456789\n-----END PRIVATE KEY-----\n"


def test_what_a_process_prints_past_its_messages_is_masked_over_lines(monkeypatch):
    "A key of several lines, and a last line without an end"
    monkeypatch.setenv("SSH_PRIVATE_KEY", PEM)
    read, write = os.pipe()
    os.write(write, f"first\nSSH_PRIVATE_KEY={PEM}then MII\nlast ---".encode())
    os.close(write)
    heard = io.StringIO()
    outputs.echo(read, heard)
    assert heard.getvalue() == "first\nSSH_PRIVATE_KEY=***then MII\nlast ---"


CLEARED = ["from IPython.display import clear_output\nfor i in range(30):\n    clear_output(wait=WAIT); print(str(i) + 'x' * 60_000)\nprint('end')",
           "for i in range(30):\n    clear_output(wait=WAIT); display({'image/png': 'aaaa' * 100_000, 'text/plain': f'<{i}>'}, raw=True)"]


@pytest.mark.parametrize("wait", [False, True])
def test_a_cell_that_clears_what_it_said_keeps_what_it_said_last(tmp_path, wait):
    "Bars and pictures that are drawn anew: two megabytes of text and twelve of pictures, never more than a part of it at a time"
    shown = run_by_papermill(tmp_path, [cell.replace("WAIT", str(wait)) for cell in CLEARED])
    assert "".join(o.text for o in shown[0]) == "29" + "x" * 60_000 + "\nend\n"
    assert [(o.data["text/plain"], len(o.data["image/png"])) for o in shown[1]] == [("<29>", 400_000)]
    assert not (tmp_path / "22_tile.log").exists()


def test_the_note_says_of_what_there_was_too_much(tmp_path):
    shown = run_by_papermill(tmp_path, ["for _ in range(3): display({'text/plain': 'y' * 400_000}, raw=True)", "print('z' * 1_100_000)",
                                        "for _ in range(3): display({'image/png': 'aaaa' * 1_000_000, 'text/plain': '<a>'}, raw=True)"])
    said = [found[-1].get("text") or found[-1].data["text/plain"] for found in shown]
    assert ["more than 1 MB of text" in text for text in said] == [True, True, False] and "more than 8 MB of pictures" in said[2]


def test_a_job_with_a_file_that_was_held_back_counts_as_failed(tmp_path, monkeypatch):
    "Whoever reads the run afterwards (its table, a later job, a bucket) sees what the launcher said; a job that failed by itself keeps its own record"
    monkeypatch.setenv("CANARY_TOKEN", "canary-0123456789")
    step = Step("10_catalog", tmp_path / "run", tmp_path / "10_catalog.ipynb")
    for status, becomes in {"complete": "failed", "preempted": "preempted"}.items():
        job = open_job("10_catalog", step.run, {})
        record(job, {}, {}, status)
        (job.folder / "model.bin").write_bytes(b"\0canary-0123456789")
        with pytest.raises(JobFailed, match="model.bin held a credential.*ends in .held-back"), scrubbed(step): pass
        found = read_job(job.folder)
        assert found["status"] == becomes and ("why" in found) == (status == "complete")
    record(open_job("10_catalog", step.run, {}), {}, {})
    (job.folder / "model.bin").write_bytes(b"\0canary-0123456789")
    with pytest.raises(ZeroDivisionError), scrubbed(step): 1 / 0
    assert read_job(job.folder)["status"] == "failed"
    with pytest.raises(Refused, match="no complete 10_catalog"): earlier(step.run, "catalog")


def test_a_key_of_many_lines_is_masked_line_by_line_too(monkeypatch):
    "A traceback is a list of lines, and a log may indent them; the first and the last line of every such key are alike and stay"
    monkeypatch.setenv("SSH_PRIVATE_KEY", PEM)
    known = [*PEM.splitlines()[1:3], "short line"]
    assert masked_tree({"traceback": known}) == {"traceback": ["***", "***", "short line"]}
    assert "canary" not in masked(PEM.replace("\n", "\r\n    ")) and masked("-----END PRIVATE KEY-----") == "-----END PRIVATE KEY-----"
