"Fault 10: a bit that flips in a source file after the catalog; sums against hashlib and sha256sum, pixels against rasterio"
import hashlib
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from geoseg_nb import checksums
from geoseg_nb.catalog import CatalogSpec, read_catalog, write_catalog
from geoseg_nb.checksums import changed_files, file_digest, with_checksums
from geoseg_nb.core import GeosegError, TooManyFailures
from geoseg_nb.evaluate import evaluate
from geoseg_nb.predict import predict_catalog
from geoseg_nb.products import measured_catalog, source_of
from geoseg_nb.stages import Execution
from geoseg_nb.split import SplitSpec, make_split
from geoseg_nb.storage import sample_folder
from geoseg_nb.tilestore import read_rows
from geoseg_nb.tiling import TileSpec, skipped_scenes, tile
from test_evaluate import SPEC, threshold, unet  # noqa: F401

SIZE = TileSpec(size=256, overlap=0, shard_tiles=4)
CHIPS = ("Ghana_53713", "Spain_7370579")


@pytest.fixture
def plain(tmp_path):
    "Two chips as uncompressed TIFFs, as many archives deliver them"
    for folder, suffix in (("S1", "S1Hand"), ("labels", "LabelHand")):
        (tmp_path / folder).mkdir()
        for chip in CHIPS:
            with rasterio.open(sample_folder() / folder / f"{chip}_{suffix}.tif") as source:
                profile = {k: v for k, v in source.profile.items() if k not in ("compress", "predictor")}
                with rasterio.open(tmp_path / folder / f"{chip}_{suffix}.tif", "w", **profile) as target:
                    target.write(source.read())
    return tmp_path


def flip(path, bit=0x40):
    "One bit in the middle of the pixels; name, size and time stay"
    data, stat = bytearray(path.read_bytes()), path.stat()
    data[len(data) // 2] ^= bit
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def made(plain, **options):
    "The catalog as the next job finds it"
    spec = CatalogSpec(root=str(plain), **options)
    catalog, _ = measured_catalog(spec)
    return read_catalog(write_catalog(catalog, plain / "catalog.parquet")), source_of(spec)


def pixels(path):
    with rasterio.open(path) as source:
        return source.read()


def test_the_sums_are_those_of_other_programs(plain):
    catalog, _ = made(plain)
    for column in ("image", "mask"):
        for path, noted in zip(catalog[column], catalog[f"sha256_{column}"], strict=True):
            assert noted == hashlib.sha256(Path(path).read_bytes()).hexdigest()
            assert noted == subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]


def test_rasterio_alone_reads_the_flipped_file_without_a_word(plain):
    "What the sums are for"
    image = plain / "S1" / "Spain_7370579_S1Hand.tif"
    before = pixels(image)
    flip(image)
    after = pixels(image)
    assert before.shape == after.shape and (before.view("uint32") != after.view("uint32")).sum() == 1


@pytest.mark.parametrize("folder, column", [("S1", "image"), ("labels", "mask")])
def test_tiling_names_scene_file_and_both_sums(plain, tmp_path, folder, column):
    catalog, source = made(plain)
    image = Path(catalog.set_index("id").loc["Spain_7370579", column])
    assert image.parent.name == folder
    noted = hashlib.sha256(image.read_bytes()).hexdigest()
    flip(image, 1)
    file_digest.__globals__["_digest"].cache_clear()  # another process: this one remembers size and time, which stayed
    with pytest.raises(GeosegError) as caught:
        tile(SIZE, catalog, source, tmp_path / "tiles.zarr")
    said = str(caught.value)
    for part in ("Spain_7370579", str(image), noted, hashlib.sha256(image.read_bytes()).hexdigest(), "run the catalog job again"):
        assert part in said, part
    assert "Ghana" not in said and not (tmp_path / "tiles.zarr" / "MANIFEST.json").exists()


@pytest.mark.filterwarnings("ignore:the model's card names")
def test_a_stage_holds_only_the_files_that_it_reads_against_their_sums(plain, tmp_path, unet, monkeypatch):  # noqa: F811
    "A corrected mask changes no map: prediction goes on and never sums it, evaluation refuses it"
    (catalog, source), model = made(plain), threshold(unet, -23)
    image, mask = (Path(catalog.set_index("id").loc["Spain_7370579", column]) for column in ("image", "mask"))
    before = [path.read_bytes() for path in predict_catalog(model, catalog, source.reader, tmp_path / "before")]
    with rasterio.open(mask, "r+") as target: target.write(np.where(target.read() == 1, 0, 1).astype("int16"))
    summed = []
    monkeypatch.setattr(checksums, "file_digest", lambda path: summed.append(path) or file_digest(path))
    after = predict_catalog(model, catalog, source.reader, tmp_path / "after")
    assert [path.read_bytes() for path in after] == before and set(summed) == set(catalog["image"])
    split = make_split(catalog, SplitSpec(rule="position"))
    with pytest.raises(GeosegError, match=f"Spain_7370579: mask {re.escape(str(mask))} has sha256"):
        evaluate(model, catalog, split, source.reader, tmp_path / "scored", SPEC)
    with rasterio.open(image, "r+") as target: target.write(target.read() + 1)
    with pytest.raises(GeosegError, match=f"Spain_7370579: image {re.escape(str(image))} has sha256"):
        predict_catalog(model, catalog, source.reader, tmp_path / "after")


def test_without_sums_another_pixel_goes_into_the_store(plain, tmp_path):
    catalog, source = made(plain, checksums=False)
    assert not [name for name in catalog if name.startswith("sha256")]
    image = Path(catalog.set_index("id").loc["Spain_7370579", "image"])
    before = pixels(image)
    flip(image)
    store = tile(SIZE, catalog, source, tmp_path / "tiles.zarr")
    mine = read_rows(store, np.flatnonzero(store.index["scene"] == "Spain_7370579"))["s1"]
    whole = np.block([[mine[0], mine[1]], [mine[2], mine[3]]])
    assert (whole.view("uint32") != before.view("uint32")).sum() == 1


def test_a_scene_that_changed_may_be_skipped_and_is_counted(plain, tmp_path):
    catalog, source = made(plain)
    flip(Path(catalog.set_index("id").loc["Spain_7370579", "image"]))
    file_digest.__globals__["_digest"].cache_clear()
    with pytest.raises(TooManyFailures, match="Spain_7370579"):
        tile(SIZE, catalog, source, tmp_path / "tiles.zarr", Execution(on_error="skip"))
    store = tile(SIZE, catalog, source, tmp_path / "tiles.zarr", Execution(on_error="skip", max_failures=1))
    skipped = skipped_scenes(store).set_index("scene")
    assert list(skipped.index) == ["Spain_7370579"] and "has sha256" in skipped.loc["Spain_7370579", "reason"]


def test_a_mended_file_is_taken_again(plain, tmp_path):
    catalog, source = made(plain)
    image = Path(catalog["image"].iloc[0])
    flip(image)
    file_digest.__globals__["_digest"].cache_clear()
    assert changed_files(catalog)["path"].tolist() == [str(image)]
    flip(image)
    file_digest.__globals__["_digest"].cache_clear()
    assert changed_files(catalog).empty and len(tile(SIZE, catalog, source, tmp_path / "tiles.zarr")) == 8


def test_every_one_of_fifty_flips_is_found(tmp_path):
    "At any place of a file, in the header as well"
    random, files = np.random.default_rng(7), []
    for n in range(50):
        files.append(tmp_path / f"{n}.bin")
        files[-1].write_bytes(random.bytes(500))
    noted = with_checksums(pd.DataFrame({"id": [str(n) for n in range(50)], "image": list(map(str, files))}))
    for n, path in enumerate(files):
        data = bytearray(path.read_bytes())
        data[n * 10] ^= 1 << (n % 8)
        path.write_bytes(data)
    file_digest.__globals__["_digest"].cache_clear()
    assert len(changed_files(noted)) == 50
