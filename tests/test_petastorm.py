"Petastorm folders: written by plain pyarrow in the documented structure, and by Petastorm itself in an environment of its own"
import io
import json
import os
import pickle
import subprocess
import venv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from geoseg_nb.bigearthnet import CORINE
from geoseg_nb.core import GeosegError, Refused
from geoseg_nb.loader import make_loader
from geoseg_nb.petastorm import NOWHERE, SIX, Options, catalog, exactly, legend, npy_array, read, sensors, side_by_side
from geoseg_nb.plan import TileSpec
from geoseg_nb.products import SourceSpec, measured_catalog, reader, source_of
from geoseg_nb.raster import grid_of, row_grid
from geoseg_nb.rules import SplitSpec
from geoseg_nb.spec import make
from geoseg_nb.split import make_split
from geoseg_nb.storage import storage
from geoseg_nb.tilestore import read_rows
from geoseg_nb.tiling import tile
from hypothesis import given, settings
from hypothesis import strategies as st

from house import geoseg

TEN = Options(resolution=10)
WHOLE = make(Options, {"resolution": 10, "sensors": [SIX[0], SIX[1] | {"dtype": "uint16"}]})
SIZES = {"train": 7, "validation": 3, "test": 2}
CODES = np.array([*CORINE, 999])


def npy(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def samples(seed=0, sizes=SIZES) -> dict[str, list]:
    "Six channels of float32, radar beside whole numbers, and codes cast to a byte"
    rng = np.random.default_rng(seed)
    one = lambda: (np.concatenate([rng.normal(-12, 3, (120, 120, 2)), rng.integers(0, 10_000, (120, 120, 4))], -1).astype("float32"),
                   CODES[rng.integers(0, len(CODES), (120, 120))].astype("uint8"))
    return {part: [one() for _ in range(n)] for part, n in sizes.items()}


def write_rows(path, rows, group=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": pa.array([image for image, _ in rows], pa.binary()), "label": pa.array([label for _, label in rows], pa.binary())})
    pq.write_table(table, path, row_group_size=group, compression="snappy")


def write_folder(root, held, group=3):
    "What the first system left: three folders, a file or two in each, and what Spark leaves beside them"
    for part, rows in held.items():
        cells = [(npy(image), npy(label)) for image, label in rows]
        half = len(cells) // 2
        for i, some in enumerate((cells[:half], cells[half:])): write_rows(root / part / f"part-{i:05d}-c000.snappy.parquet", some, group)
        (root / part / "_SUCCESS").touch()
        (root / part / ".part-00000-c000.snappy.parquet.crc").write_bytes(b"crc")
    return root


@pytest.fixture(scope="module")
def held():
    return samples()


@pytest.fixture(scope="module")
def folder(held, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("petastorm"), held)


def require_equal(scenes, held, options):
    "Every value of every sample, in order"
    for part, rows in held.items():
        for (_, row), (image, label) in zip(scenes[scenes["split"] == part].iterrows(), rows, strict=True):
            data = read(row, options)
            assert np.array_equal(data["s1"], image[..., :2].transpose(2, 0, 1)) and np.array_equal(data["s2"], image[..., 2:].transpose(2, 0, 1))
            assert np.array_equal(data["label"], label) and data["label"].dtype == "uint8" and bool(data["valid"].all())


@pytest.mark.parametrize("options", [TEN, WHOLE])
def test_every_value_of_every_row_comes_back(folder, held, options):
    scenes = catalog(folder, options)
    assert scenes["split"].value_counts().to_dict() == SIZES and scenes["id"].is_unique
    require_equal(scenes, held, options)
    assert [s.dtype for s in sensors(options)] == [str(read(scenes.iloc[0], options)[name].dtype) for name in ("s1", "s2")]


def test_a_window_and_some_bands_are_those_of_the_row(folder, held):
    data = read(catalog(folder, TEN).iloc[0], TEN, ["B08", "VH"], (5, 7, 20, 30))
    image = held["train"][0][0][5:25, 7:37]
    assert np.array_equal(data["s2"][0], image[..., 5]) and np.array_equal(data["s1"][0], image[..., 1]) and data["label"].shape == (20, 30)
    with pytest.raises(Refused, match="known are VV, VH, B02, B03, B04, B08"): read(catalog(folder, TEN).iloc[0], TEN, ["B8"])


class Evil:
    def __init__(self, path): self.path = path

    def __reduce__(self): return os.mkdir, (str(self.path),)


def test_the_pickled_schema_is_never_opened(tmp_path, held):
    "`_common_metadata` as Petastorm leaves it, with a pickle in it that makes a folder when it is opened"
    root, trap = write_folder(tmp_path / "set", held), tmp_path / "ran"
    schema = pq.read_schema(root / "train" / "part-00000-c000.snappy.parquet")
    for part in held:
        pq.write_metadata(schema.with_metadata({b"dataset-toolkit.unischema.v1": pickle.dumps(Evil(trap)),
                                                b"dataset-toolkit.num_row_groups_per_file.v1": b"{}"}), root / part / "_common_metadata")
    require_equal(catalog(root, TEN), held, TEN)
    assert not trap.exists()
    hidden = pq.read_schema(root / "train" / "_common_metadata").metadata[b"dataset-toolkit.unischema.v1"]
    pickle.loads(hidden)  # noqa: S301  our own trap, to see that it would have
    assert trap.is_dir()


def test_an_array_of_objects_is_refused_and_not_run(tmp_path):
    trap = tmp_path / "ran"
    evil = npy(np.array([Evil(trap)], dtype=object))
    write_rows(tmp_path / "set/train/a.parquet", [(evil, npy(np.zeros((120, 120), "uint8")))])
    with pytest.raises(GeosegError, match="train/a.parquet.*Python objects"): catalog(tmp_path / "set", TEN.replace(parts=["train"]))
    good = (npy(np.zeros((120, 120, 6), "float32")), npy(np.zeros((120, 120), "uint8")))
    write_rows(tmp_path / "set/train/a.parquet", [good, (evil, good[1])])
    rows = catalog(tmp_path / "set", TEN.replace(parts=["train"]))
    with pytest.raises(GeosegError, match="train_a_000001: .*Python objects"): read(rows.iloc[1], TEN)
    assert not trap.exists()


@pytest.mark.parametrize("image, label, said", [
    (np.zeros((120, 120, 5), "float32"), np.zeros((120, 120), "uint8"), r"image is \(120, 120, 5\) of float32, 6 bands"),
    (np.zeros((6, 120, 120), "float32"), np.zeros((120, 120), "uint8"), r"image is \(6, 120, 120\)"),
    (np.zeros((120, 120, 6), "float32"), np.zeros((120, 119), "uint8"), r"label is \(120, 119\) of uint8, the image has 120 x 120"),
    (np.zeros((120, 120, 6), "float32"), np.zeros((120, 120), "float32"), "a label is one whole number a pixel"),
    (np.zeros((60, 60, 6), "float32"), np.zeros((60, 60), "uint8"), r"image is \(60, 60\), the first row of its file is \(120, 120\)"),
    (np.full((120, 120, 6), "x"), np.zeros((120, 120), "uint8"), "6 bands of numbers")])
def test_a_row_of_another_shape_or_type_is_named(tmp_path, image, label, said):
    good = (npy(np.zeros((120, 120, 6), "float32")), npy(np.zeros((120, 120), "uint8")))
    write_rows(tmp_path / "train/b.parquet", [good, good, good, (npy(image), npy(label))])
    rows = catalog(tmp_path, TEN.replace(parts=["train"]))
    with pytest.raises(GeosegError, match=f"train_b_000003: .*b.parquet: .*{said}"): read(rows.iloc[3], TEN)
    read(rows.iloc[2], TEN)


@pytest.mark.parametrize("cell", [None, b"", b"\x93NUMPY", npy(np.zeros((120, 120, 6), "float32"))[:-1], b"\x89PNG\r\n\x1a\n" + bytes(90),
                                  npy(np.zeros((120, 120, 6), "float32")).replace(b"(120, 120, 6)", b"((((((((((((("),
                                  npy(np.zeros((120, 120, 6), "float32")).replace(b"(120, 120, 6)", b"(9**9, 9**99)")])
def test_a_cell_that_is_no_array_is_named(tmp_path, cell):
    good = (npy(np.zeros((120, 120, 6), "float32")), npy(np.zeros((120, 120), "uint8")))
    write_rows(tmp_path / "train/b.parquet", [good, (cell, good[1])])
    with pytest.raises(GeosegError, match="train_b_000001: "): read(catalog(tmp_path, TEN.replace(parts=["train"])).iloc[1], TEN)


def test_a_header_that_claims_more_memory_than_there_is_allocates_none():
    claim = npy(np.zeros(3, "float64")).replace(b"(3,), }", b"(999999999999,), }").replace(b"           \n", b"\n")
    claim = claim[:8] + (claim.index(b"\n") - 9).to_bytes(2, "little") + claim[10:]
    with pytest.raises(GeosegError, match="takes 7999999999992 bytes, 24 are there"): npy_array(claim)


def test_whatever_is_done_to_a_header_it_is_an_array_or_one_error():
    whole, rng = npy(np.zeros((4, 4, 6), "float32")), np.random.default_rng(0)
    for _ in range(3000):
        changed = bytearray(whole)
        for at in rng.integers(0, 128, rng.integers(1, 5)): changed[at] = rng.integers(256)
        try: npy_array(bytes(changed))
        except GeosegError: continue


@pytest.mark.parametrize("damage", ["cut", "empty", "html", "page"])
def test_a_damaged_file_is_listed_and_may_be_skipped(tmp_path, held, damage):
    write_folder(tmp_path, held)
    bad = tmp_path / "train/part-00001-c000.snappy.parquet"
    data = bytearray(bad.read_bytes())
    contents = {"cut": data[: len(data) // 2], "empty": b"", "html": b"<html>404</html>", "page": data[:40] + b"\xff" * 60 + data[100:]}
    bad.write_bytes(contents[damage])
    with pytest.raises(GeosegError, match=r"files of .* that hold no samples: 1;(.|\n)*train/part-00001-c000.snappy.parquet"): catalog(tmp_path, TEN)
    rest = catalog(tmp_path, TEN.replace(on_missing="skip"))
    assert len(rest) == sum(SIZES.values()) - 4 and [s["id"] for s in rest.attrs["skipped"]] == ["train/part-00001-c000.snappy.parquet"]


def test_what_leads_nowhere_is_refused(tmp_path, held):
    write_folder(tmp_path, held)
    with pytest.raises(Refused, match="PetastormOptions needs resolution"): make(Options, {})
    with pytest.raises(Refused, match="no Parquet file in .*/val; pass the folders"): catalog(tmp_path, TEN.replace(parts=["train", "val"]))
    with pytest.raises(GeosegError, match="has no column mask; it has image, label"): catalog(tmp_path, TEN.replace(label="mask"))
    with pytest.raises(Refused, match="no root"): catalog("", TEN)
    with pytest.raises(Refused, match="resolution"): make(Options, {"resolution": 0})


def test_files_without_rows_are_no_fault_and_a_folder_of_them_is(tmp_path):
    write_rows(tmp_path / "train/a.parquet", [])
    with pytest.raises(Refused, match="none of the 1 files holds a row"): catalog(tmp_path, TEN.replace(parts=["train"]))
    write_rows(tmp_path / "train/b.parquet", [(npy(np.zeros((8, 8, 6), "float32")), npy(np.zeros((8, 8), "uint8")))])
    assert catalog(tmp_path, TEN.replace(parts=["train"]))["id"].tolist() == ["train_b_000000"]


def test_a_column_of_names_gives_the_ids(tmp_path):
    write_rows(tmp_path / "train/b.parquet", [(npy(np.zeros((8, 8, 6), "float32")), npy(np.zeros((8, 8), "uint8")))] * 2)
    table = pq.read_table(tmp_path / "train/b.parquet").append_column("name", pa.array(["S2A_1", "S2A_2"]))
    pq.write_table(table, tmp_path / "train/b.parquet")
    assert catalog(tmp_path, TEN.replace(parts=["train"], id="name"))["id"].tolist() == ["S2A_1", "S2A_2"]


@given(values=st.lists(st.floats(width=32), min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_no_value_changes_with_its_type(values):
    array = np.array(values, "float32")
    whole = all(np.isfinite(v) and v == int(v) and 0 <= v < 65536 for v in values)
    if whole: assert exactly(array, "uint16").tolist() == [int(v) for v in values]
    else:
        with pytest.raises(GeosegError, match="are no uint16"): exactly(array, "uint16")


def test_missing_values_are_hidden(tmp_path):
    image = np.zeros((8, 8, 6), "float32")
    image[3, 4, 5], image[1, 1, 0] = np.nan, np.inf
    write_rows(tmp_path / "train/a.parquet", [(npy(image), npy(np.zeros((8, 8), "uint8")))])
    rows = catalog(tmp_path, TEN.replace(parts=["train"]))
    assert np.argwhere(~read(rows.iloc[0], TEN)["valid"].values).tolist() == [[1, 1], [3, 4]]
    assert np.argwhere(~read(rows.iloc[0], TEN, ["B02"])["valid"].values).tolist() == []


def test_the_stand_in_grid_is_no_place_that_anybody_knows(tmp_path, folder):
    import rasterio
    from pyproj import CRS
    scenes = catalog(folder, TEN)
    assert CRS(NOWHERE).name == "no known place" and CRS(NOWHERE).to_authority() is None
    grid = row_grid(scenes.iloc[0])
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", height=120, width=120, count=1, dtype="uint8", crs=grid.crs,
                       transform=rasterio.Affine(*grid.transform)) as target: target.write(np.zeros((1, 120, 120), "uint8"))
    assert "no known place" in grid_of(tmp_path / "a.tif").describe() and set(scenes["place"]) == {"unknown"}
    boxes = np.array([[t[2], t[5]] for t in side_by_side(1000, 120, 100, 10)])
    apart = np.abs(boxes[:, None] - boxes[None]) >= [2 * 1000, 2 * 1200]
    assert (apart.any(-1) | np.eye(1000, dtype=bool)).all(), "a sample's width between any two"


def test_the_classes_are_those_of_the_stored_bytes():
    by_code = legend(TEN)
    index = by_code.encode(CODES.astype("uint8"))
    assert len(by_code.names) == 44 and index[list(CODES).index(231)] == index[-1] and len(set(index.tolist())) == 44
    listed = legend(TEN.replace(legend="clc45"))
    assert [listed.names[i] for i in listed.encode(np.arange(45))] == [str(code) for code in CODES]


def through_the_stages(root, tmp_path):
    "Catalog, tiles, split by the folders, and the training part as batches"
    spec = SourceSpec(product="petastorm", root=str(root), options={"resolution": 10, "sensors": [SIX[0], SIX[1] | {"dtype": "uint16"}]}, legend={})
    scenes, problems = measured_catalog(spec)
    store = tile(TileSpec(size=120, overlap=0, shard_tiles=4), scenes, source_of(spec), tmp_path / "patches.zarr")
    split = make_split(scenes, SplitSpec(rule="column", column="split"))
    return scenes, problems, store, split


def test_rows_become_batches_through_the_stages_of_every_product(folder, held, tmp_path):
    scenes, problems, store, split = through_the_stages(folder, tmp_path)
    assert problems.empty and "sha256_file" in scenes and split["part"].value_counts().to_dict() == {"train": 7, "val": 3, "test": 2}
    assert store.dataset["s1"].dtype == "float32" and store.dataset["s2"].dtype == "uint16"
    arrays = read_rows(store, range(len(store)))
    order = [(image, label) for part in SIZES for image, label in held[part]]
    for i, (image, label) in enumerate(order):
        assert np.array_equal(arrays["s2"][i], image[..., 2:].transpose(2, 0, 1)) and np.array_equal(arrays["label"][i], legend(WHOLE).encode(label))
    batch = next(iter(make_loader(store, split, "train", batch_size=7, shuffle=False)))
    train = np.stack([image for image, _ in held["train"]]).astype("float64")
    expected = ((train - train.mean((0, 1, 2))) / train.std((0, 1, 2))).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(batch["image"].numpy(), expected, atol=1e-3)


def test_a_changed_file_is_named_when_it_is_read(tmp_path, held):
    scenes, *_ = through_the_stages(write_folder(tmp_path / "set", held), tmp_path)
    write_folder(tmp_path / "set", samples(seed=1))
    with pytest.raises(GeosegError, match="files that changed since the catalog"): reader("petastorm", TEN)(scenes.iloc[0])


def test_a_bucket_is_read_as_a_folder_is(bucket, folder, held):
    place = storage(f"s3://{bucket}/set")
    for path in folder.rglob("*"):
        if path.is_file(): place.write(path.relative_to(folder).as_posix(), path.read_bytes())
    scenes = catalog(f"s3://{bucket}/set", TEN)
    assert scenes["id"].tolist() == catalog(folder, TEN)["id"].tolist()
    require_equal(scenes, held, TEN)
    place.write("test/part-00000-c000.snappy.parquet", b"PAR1 cut")
    with pytest.raises(GeosegError, match="test/part-00000-c000.snappy.parquet"): catalog(f"s3://{bucket}/set", TEN)


WRITER = '''
import sys
import numpy as np
from petastorm.codecs import NdarrayCodec
from petastorm.etl.dataset_metadata import materialize_dataset
from petastorm.unischema import Unischema, UnischemaField, dict_to_spark_row
from pyspark.sql import SparkSession
schema = Unischema("Patches", [UnischemaField("image", np.float32, (120, 120, 6), NdarrayCodec(), False),
                               UnischemaField("label", np.uint8, (120, 120), NdarrayCodec(), False)])
settings = {"spark.ui.enabled": "false", "spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1"}
spark = SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
for part in ("train", "validation", "test"):
    kept, url = np.load(f"{sys.argv[1]}/{part}.npz"), f"file://{sys.argv[1]}/set/{part}"
    with materialize_dataset(spark, url, schema, 1):
        rows = [dict_to_spark_row(schema, {"image": i, "label": l}) for i, l in zip(kept["image"], kept["label"])]
        spark.createDataFrame(rows, schema.as_spark_schema()).coalesce(1).write.mode("overwrite").parquet(url)
spark.stop()
'''


def petastorm_python() -> Path:
    "The interpreter of an environment with Petastorm, made where there is none; skips where it cannot be had"
    home = Path(os.environ.get("GEOSEG_CACHE") or Path.home() / ".cache" / "geoseg_nb") / "petastorm-0.13.1"
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        venv.create(home, with_pip=True, clear=True)
        wanted = ["petastorm==0.13.1", "pyarrow==14.0.2", "numpy<2", "setuptools<81"]
        done = subprocess.run([python, "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True, timeout=900)
        if done.returncode: pytest.skip(f"Petastorm cannot be installed here: {done.stderr.strip()[-200:]}")
        (home / "ready").touch()
    return python


@pytest.mark.slow
def test_what_petastorm_itself_wrote_reads_equal(tmp_path, held):
    if subprocess.run(["which", "java"], capture_output=True).returncode: pytest.skip("Petastorm writes through Spark, which needs java")
    python = petastorm_python()
    for part, rows in held.items(): np.savez(tmp_path / f"{part}.npz", image=[i for i, _ in rows], label=[l for _, l in rows])
    there = {**os.environ, "PYSPARK_PYTHON": str(python), "PYTHONPATH": "", "SPARK_LOCAL_IP": "127.0.0.1"}
    done = subprocess.run([python, "-c", WRITER, str(tmp_path)], env=there, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert b"dataset-toolkit.unischema.v1" in (pq.read_schema(tmp_path / "set/train/_common_metadata").metadata or {})
    scenes = catalog(tmp_path / "set", TEN)
    assert scenes["split"].value_counts().to_dict() == SIZES
    require_equal(scenes, held, TEN)


@pytest.mark.slow
def test_the_recipe_trains_on_a_petastorm_folder(tmp_path):
    write_folder(tmp_path / "set", samples(sizes={"train": 24, "validation": 6, "test": 4}))
    small = ["train.epochs=1", "train.batch_size=8", "train.encoder=resnet18", "evaluate.window_sizes=[]",
             "train.model_options={encoder_depth: 3, decoder_channels: [32, 16, 16]}"]
    done = geoseg("run", "bigearthnet", "--variant", "petastorm", "--out", tmp_path / "run", "-p", f"catalog.root={tmp_path / 'set'}",
                  *(word for value in small for word in ("-p", value)))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "run" / "43_evaluate" / "result.json").read_text())["metrics"]
    assert 0 <= found["accuracy"] <= 1 and len(found["per_class"]) == 44
