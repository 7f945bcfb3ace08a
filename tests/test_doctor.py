"What the doctor says of real conditions: servers that answer or do not, packages that are missing or broken, disks that cannot be written"
import json
import os
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
from geoseg_nb import doctor
from geoseg_nb.cli import main
from geoseg_nb.doctor import Finding, finding_lines, network, room, s3_reach, shortfall, torch_pair, variables
from house import ROOT
from servers import SECRET


def only(findings, state, *parts):
    assert [f.state for f in findings] == [state], findings
    assert all(part in findings[0].text + findings[0].advice for part in parts), findings
    return findings[0]


# ---------------------------------------------------------------- S3

def test_a_bucket_that_answers_is_left_as_it_was(bucket, s3_folder):
    only(s3_reach(f"s3://{bucket}/some/where"), "ok", "written, read and removed", f"s3://{bucket}/some/where")
    assert not [p for p in (s3_folder / bucket).rglob("*") if p.is_file()]


def test_a_wrong_secret_is_a_line_without_the_secret(bucket, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-5c1f")
    found = only(s3_reach(f"s3://{bucket}/x"), "bad", "403", "check AWS_ACCESS_KEY_ID")
    assert "canary-5c1f" not in str(found)


def test_a_bucket_that_there_is_not(bucket):
    only(s3_reach("s3://no-such-bucket/x"), "bad", "NoSuchBucket", "make the bucket no-such-bucket first")


def test_where_nobody_answers_it_does_not_wait(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    only(s3_reach(f"s3://{bucket}/x"), "bad", "nobody answers there", "check AWS_ENDPOINT_URL")
    assert time.monotonic() - began < doctor.PATIENCE + 3


@pytest.mark.parametrize("url", ["s3://me:hunter2@lake/x", "lake/x", "s3://", "gs://lake/x", "s3://lake/../x"])
def test_a_place_that_is_none(url):
    found = only(s3_reach(url), "bad")
    assert "hunter2" not in str(found) and found.advice


def test_one_deadline_for_all_requests(bucket, proxy):
    "A server that takes each request and answers none"
    proxy.always = "hang"
    began = time.monotonic()
    only(s3_reach(f"s3://{bucket}/x"), "bad")
    assert time.monotonic() - began < doctor.PATIENCE + 3


# ---------------------------------------------------------------- the rest of the machine

def test_a_folder_that_cannot_be_written_is_bad_also_for_root():
    only([room("runs", Path("/proc/out/below"), "bad", "GEOSEG_RUNS")], "bad", "nothing can be written to /proc", "set GEOSEG_RUNS")


def test_a_folder_is_not_made_by_being_looked_at(tmp_path):
    assert room("runs", tmp_path / "new" / "below", "bad", "GEOSEG_RUNS").state in ("ok", "warn") and not list(tmp_path.iterdir())


def test_variables_are_named_and_their_folders_looked_at(tmp_path):
    found = {f.text.split()[0]: f for f in variables({"GEOSEG_RUNS": str(tmp_path), "GEOSEG_DATA": str(tmp_path / "none"), "GEOSEG_CACH": "x", "GEOSEG_TOKEN": "hunter2",
                                                      "GEOSEG_S3_DEADLINE": "soon", "GEOSEG_ARTIFACTS": "s3://lake/kept", "AWS_ACCESS_KEY_ID": "hunter2", "HOME": "/"})}
    states = {name: f.state for name, f in found.items()}
    assert states == {"$GEOSEG_ARTIFACTS": "ok", "$GEOSEG_CACH": "warn", "$GEOSEG_DATA": "warn", "$GEOSEG_RUNS": "ok", "$GEOSEG_S3_DEADLINE:": "bad", "$GEOSEG_TOKEN": "warn", "S3:": "warn"}
    assert "did you mean GEOSEG_CACHE" in found["$GEOSEG_CACH"].advice and "hunter2" not in str(found) and "s3://lake/kept" in found["$GEOSEG_ARTIFACTS"].text


def test_every_variable_that_the_package_reads_is_known():
    import re
    read = {name for module in (ROOT / "geoseg_nb").glob("*.py") for name in re.findall(r"environ[^\n]*[\"'](GEOSEG_\w+)|first\(\[[\"'](GEOSEG_\w+)", module.read_text())}
    assert {name for pair in read for name in pair if name} <= set(doctor.VARIABLES)


def test_a_package_of_another_version_is_named():
    from packaging.requirements import Requirement
    assert shortfall(Requirement("numpy<1")) == f"numpy {metadata.version('numpy')} is not <1"
    assert shortfall(Requirement("numpy>=1")) == "" and shortfall(Requirement("no-such-package")) == "no-such-package is missing"


def test_no_network_is_noticed_where_there_is_none():
    "In a network namespace of its own"
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode: pytest.skip("no unshare -rn here")
    code = "from geoseg_nb.doctor import network; print(network()[0].state)"
    done = subprocess.run(["unshare", "-rn", sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "warn\n", done.stderr
    assert network()[0].state in ("ok", "warn")


def test_a_check_that_raises_is_a_line_and_the_exit_code_is_1(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", {"fine": lambda: [Finding("ok", "all is well")], "broken": lambda: json.loads("{"), "last": lambda: [Finding("warn", "hm", "do")]})
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok   all is well" and lines[1].startswith("bad  broken: JSONDecodeError") and lines[3:] == ["warn hm", "     -> do", "1 ok, 1 warn, 1 bad"]
    monkeypatch.setattr(doctor, "CHECKS", {"fine": lambda: [Finding("ok", "all is well")]})
    assert main(["doctor"]) == 0 and main(["doctor", "--s3", "lake/x"]) == 1


def test_no_credential_is_printed_whatever_a_check_says(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert SECRET not in "\n".join(finding_lines([Finding("bad", f"said {SECRET}", f"not {SECRET}")]))


BLOCKER = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {names!r}: raise ModuleNotFoundError('No module named ' + name, name=name)
sys.meta_path.insert(0, Hidden())
from geoseg_nb.doctor import *
"""


def test_a_missing_extra_is_a_warning_with_its_command():
    code = BLOCKER.format(names=["obstore"]) + "print(*finding_lines(extras() + s3_reach('s3://lake/x')), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("warn extra s3: ") and "obstore cannot be imported" in line)
    assert lines[at + 1] == "     -> pip install 'geoseg_nb[s3]' if you want it", done.stderr
    assert any(line.startswith("bad  S3: s3 needs obstore: pip install 'geoseg_nb[s3]'") for line in lines)


@pytest.mark.slow
def test_a_torchvision_that_does_not_fit_is_named_with_the_way_out(tmp_path):
    "The real failure: the package without its compiled operators"
    import shutil

    import torchvision
    shutil.copytree(Path(torchvision.__file__).parent, tmp_path / "torchvision", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = subprocess.run([sys.executable, "-c", "from geoseg_nb.doctor import *; print(*finding_lines(torch_pair()), sep='\\n')"], capture_output=True, text=True,
                          timeout=300, env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    assert done.stdout.startswith("bad  torch ") and "nms" in done.stdout and "--force-reinstall torch torchvision" in done.stdout, done.stderr


@pytest.mark.slow
def test_the_whole_doctor_here(tmp_path):
    "All checks of this machine in one process; a module that is broken costs its own lines and no other"
    assert only(torch_pair(), "ok")
    code = BLOCKER.format(names=["rasterio", "kornia"]) + "print(*finding_lines(doctor()), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert sum(line.startswith("bad") for line in lines) >= 2 and any(line.startswith("bad  system: ") and "rasterio" in line for line in lines), done.stderr
    for part in ("ok   torch ", "ok   cores: ", "memory: ", "new runs go to", "network: ", "extra augment"): assert any(part in line for line in lines), (part, lines)


def test_the_doctor_and_the_plan_of_a_run_tell_one_size(tmp_path):
    "Powers of a thousand; the oracle is `df`, which is told to count so"
    free = int(subprocess.run(["df", "--output=avail", "-B1", tmp_path], capture_output=True, text=True, check=True).stdout.split()[1])
    number, unit = re.search(r"([\d,.]+) (MB|GB|TB) free", room("runs", tmp_path, "bad", "GEOSEG_RUNS").text).groups()
    assert abs(float(number.replace(",", "")) * {"MB": 1e6, "GB": 1e9, "TB": 1e12}[unit] / free - 1) < 0.06


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process to cores")
def test_a_process_pinned_to_one_core_counts_one_and_computes_on_one():
    "As a batch system pins it; the machine may have many more"
    code = ("import os; os.cpu_count = lambda: 64; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import torch; torch.set_num_threads(4)\n"
            "from geoseg_nb.doctor import cores; from geoseg_nb.estimates import at_once; from geoseg_nb.models import spare_core\n"
            "with spare_core(): print(torch.get_num_threads(), at_once(8, 8), cores()[0].text)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1 1 cores: 1 of 64")
