"The profiles that an earlier system's notebooks read, made from the records of a run"
import json
import shutil

import pandas as pd
import pytest
import yaml
from geoseg_nb.aliases import write_earlier_profiles
from geoseg_nb.loader import part_rows
from geoseg_nb.split import read_split
from geoseg_nb.synthetic import SyntheticSpec, write_synthetic
from geoseg_nb.tilestore import open_store

from house import geoseg

CONVERSION = ["read_metadata", "split_and_sample", "spark_init", "write_train", "write_validation", "write_test"]  # as its source has them
TRAINING = ["gpu_setup", "verify_paths", "strategy_init", "dataset_metadata", "load_datasets", "load_train", "load_validation", "load_test",
            "build_model", "training", "evaluation"]
TOP = {"start_time", "end_time", "host_info", "steps", "summary", "logs"}
CONVERTED = {"fraction", "total_patches", "total_rows", "dataset_size_gb", "total_duration",
             *(f"{part}_{what}" for part in ("train", "validation", "test") for what in ("samples", "total_data_size_gb", "rdd_partitions"))}
TRAINED = {"gpu_count", "num_replicas_in_sync", "batch_size_per_replica", "global_batch_size", "steps_per_epoch", "samples_per_epoch", "learning_rate",
           "test_loss", "test_accuracy", "total_duration"}


@pytest.fixture
def run(floods_made, tmp_path):
    "A run of the flood recipe that a test may change"
    return shutil.copytree(floods_made / "floods", tmp_path / "floods")


def profiles(run):
    return [json.loads((run / "profile" / f"{name}_profile.json").read_text()) for name in ("conversion", "train")]


def of_job(run, job):
    return (json.loads((run / job / name).read_text()) for name in ("profile.json", "result.json"))


def test_a_run_leaves_both_profiles_with_every_name(run):
    "Written by the jobs themselves; steps in their order, every summary key, all of them readable as a table"
    converted, trained = profiles(run)
    for profile, steps, keys in ((converted, CONVERSION, CONVERTED), (trained, TRAINING, TRAINED)):
        assert TOP == set(profile) and set(profile["summary"]) == keys and [step["name"] for step in profile["steps"]] == steps
        assert {"hostname", "platform", "cpu_count", "ram_gb", "cuda"} == set(profile["host_info"])
        assert profile["start_time"] < profile["end_time"] and all(profile["start_time"] <= s["timestamp"] <= profile["end_time"] for s in profile["steps"])
        table = pd.DataFrame(profile["steps"]).set_index("name")["duration"]
        assert (table >= 0).all() and profile["summary"]["total_duration"] == pytest.approx(table.drop(["load_train", "load_validation", "load_test"],
                                                                                                       errors="ignore").sum(), abs=1e-4)
    for name, steps in (("conversion", CONVERSION), ("train", TRAINING)):
        lines = (run / "profile" / f"{name}_profile.log").read_text().splitlines()
        assert len(lines) >= len(steps) and all(any(f" {step} " in line for line in lines) for step in steps)


def test_the_numbers_are_those_of_the_jobs(run):
    converted, trained = profiles(run)
    seconds = {step["name"]: step["duration"] for profile in (converted, trained) for step in profile["steps"]}
    (tiled, tiles), (training, result), (_, judged) = (of_job(run, job) for job in ("22_tile", "37_train", "43_evaluate"))
    assert sum(seconds[f"write_{part}"] for part in ("train", "validation", "test")) == pytest.approx(tiled["steps"][0]["duration"], abs=1e-5)
    ours = {step["name"]: step["duration"] for step in training["steps"]}
    assert (seconds["training"], seconds["build_model"], seconds["load_train"]) == (ours["fit"], ours["build_model"], ours["load_train"])
    assert ours["fit"] < ours["train"] and seconds["load_train"] + seconds["load_validation"] <= seconds["load_datasets"] + 1e-3
    store, split = open_store(run / "22_tile" / tiles["outputs"]["store"].split("/")[-1]), read_split(run / "11_split" / "split.parquet")
    rows, without = part_rows(store, split, "train")
    summary, params = trained["summary"], result["params"]
    assert converted["summary"]["train_samples"] == len(rows) + without and summary["samples_per_epoch"] == len(rows)
    assert converted["summary"]["total_rows"] == len(store) and converted["summary"]["total_patches"] == store.index["scene"].nunique()
    size = sum(path.stat().st_size for path in (run / "22_tile" / "tiles.zarr").rglob("*") if path.is_file() and path.name != ".lock")
    assert converted["summary"]["dataset_size_gb"] == pytest.approx(size / 1e9)
    assert summary["global_batch_size"] == params["batch_size"] == summary["batch_size_per_replica"] and summary["num_replicas_in_sync"] == 1
    assert summary["steps_per_epoch"] == -(-len(rows) // params["batch_size"]) and summary["learning_rate"] == params["lr"]
    assert summary["test_accuracy"] == judged["metrics"]["accuracy"] and summary["test_loss"] is None


def test_only_complete_jobs_are_told_of_and_a_lost_record_stops_nothing(run):
    shutil.rmtree(run / "profile")
    (run / "43_evaluate" / "result.json").unlink()
    (run / "11_split" / "split.parquet").unlink()
    (run / "10_catalog" / "profile.json").write_text("{cut")
    with pytest.warns(UserWarning, match="10_catalog.profile.json"): assert len(write_earlier_profiles(run)) == 2
    converted, trained = profiles(run)
    assert [step["name"] for step in converted["steps"]] == ["split_and_sample", "spark_init"] and converted["summary"]["train_samples"] is None
    assert "evaluation" not in [step["name"] for step in trained["steps"]] and trained["summary"]["test_accuracy"] is None
    (run / "37_train" / "result.json").unlink()
    assert [path.name for path in write_earlier_profiles(run)] == ["conversion_profile.json"]
    (run / "22_tile" / "result.json").unlink()
    assert write_earlier_profiles(run) == []


def test_a_score_of_another_part_is_not_told_as_that_of_the_test(run):
    path = run / "43_evaluate" / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"params": result["params"] | {"part": "val"}}))
    write_earlier_profiles(run)
    assert profiles(run)[1]["summary"]["test_accuracy"] is None


def test_a_secret_in_a_message_is_masked(run, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary/Secret+0123456789")
    path = run / "22_tile" / "profile.json"
    profile = json.loads(path.read_text())
    usage = {"cpu_percent": 1.0, "ram_percent": 1.0, "ram_used_gb": 1.0, "cuda": []}
    profile["logs"] = [{"timestamp": profile["start_time"], "message": "with canary/Secret+0123456789", "usage": usage}]
    path.write_text(json.dumps(profile))
    write_earlier_profiles(run)
    told = [path.read_text() for path in (run / "profile").iterdir()]
    assert any(" with " in text for text in told) and not any("canary" in text for text in told)


@pytest.mark.parametrize("job, damage, made", [
    ("37_train", lambda profile: [], ["conversion"]),
    ("37_train", lambda profile: {"steps": []}, ["conversion"]),
    ("37_train", lambda profile: profile | {"steps": [{"name": "fit"}]}, ["conversion"]),
    ("37_train", lambda profile: profile | {"host_info": None}, ["conversion"]),
    ("22_tile", lambda profile: profile | {"steps": [{"name": "tile", "timestamp": 0, "duration": "long"}]}, ["train"]),
    ("22_tile", lambda profile: None, [])])
def test_a_damaged_profile_is_named_in_a_warning_and_stops_no_job(run, job, damage, made):
    path = run / job / "profile.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.warns(UserWarning, match=f"{job}.profile.json|{'train' if job == '37_train' else 'conversion'}_profile.json") as heard:
        assert [path.name for path in write_earlier_profiles(run)] == [f"{name}_profile.json" for name in made]
    assert len(heard) == 1 and "left out" in str(heard[0].message)


def test_a_training_whose_host_tells_of_no_cuda_had_no_gpu(run):
    path = run / "37_train" / "profile.json"
    profile = json.loads(path.read_text())
    for host in (profile["host_info"] | {"cuda": None}, {}):
        path.write_text(json.dumps(profile | {"host_info": host}))
        write_earlier_profiles(run)
        assert profiles(run)[1]["summary"]["gpu_count"] == 0


def test_a_store_that_is_gone_is_warned_of(run):
    shutil.rmtree(run / "22_tile" / "tiles.zarr")
    with pytest.warns(UserWarning, match="left out"): assert write_earlier_profiles(run) == []


@pytest.mark.slow
def test_members_that_share_a_store_each_tell_their_own_share_of_it(tmp_path):
    "Of a catalog of half the patches the members take 10, 30 and 50 % of the full table; counts are by the split's file, seconds by the tile job's"
    write_synthetic(tmp_path / "v2", SyntheticSpec(patches=240))
    (tmp_path / "mine").mkdir()
    shares = (0.1, 0.3, 0.5)
    given = {"recipe.yml": {"jobs": ["10_catalog", "22_tile", "11_split"], "matrix": {"11_split.fraction": list(shares)}},
             "10_catalog.yml": {"product": "bigearthnet", "root": str(tmp_path / "v2"), "options": {"fraction": 0.5, "seed": 42},
                                "legend": {}, "measure": False, "checksums": False},
             "22_tile.yml": {"size": 120, "overlap": 0, "order": "shuffled", "shard_tiles": 16}, "11_split.yml": {"rule": "column", "column": "split"}}
    for name, value in given.items(): (tmp_path / "mine" / name).write_text(yaml.safe_dump(value))
    done, run = geoseg("run", tmp_path / "mine", "--out", tmp_path / "run"), tmp_path / "run"
    assert done.returncode == 0, done.stderr[-3000:]
    tiled, result = of_job(run, "22_tile")
    seconds, tiles = sum(step["duration"] for step in tiled["steps"] if step["name"] == "tile"), result["metrics"]["tiles"]
    size = sum(path.stat().st_size for path in (run / "22_tile" / "tiles.zarr").rglob("*") if path.is_file() and path.name != ".lock")
    for share in shares:
        member = run / f"fraction-{share}"
        write_earlier_profiles(member)
        told = json.loads((member / "profile" / "conversion_profile.json").read_text())
        held, summary = pd.read_parquet(member / "11_split" / "split.parquet")["part"].value_counts(), told["summary"]
        assert summary["fraction"] == share and summary["total_patches"] == summary["total_rows"] == held.sum() < 240 * (share + 0.05)
        assert [summary[f"{part}_samples"] for part in ("train", "validation", "test")] == [held["train"], held["val"], held["test"]]
        written = sum(step["duration"] for step in told["steps"] if step["name"].startswith("write_"))
        assert written == pytest.approx(seconds * held.sum() / tiles, abs=1e-5)
        assert summary["dataset_size_gb"] == pytest.approx(size / 1e9 * held.sum() / tiles)
        assert summary["train_total_data_size_gb"] == pytest.approx(size / 1e9 * held["train"] / tiles)
    assert held.sum() == tiles, "the largest member is the whole store"
