"Our short way through a shard, held against Zarr's own pipelines: every type, every codec, chunks that were left out, and damage"
import numpy as np
import pytest
import zarr
from geoseg_nb.chunks import LEFT_OUT, Room, chunk_places, chunks_of, read_bytes, read_chunks, tile_of, without_sum
from geoseg_nb.core import GeosegError
from geoseg_nb.layout import CODECS, ArrayPlan
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

KINDS = {"uint16": 7, "float32": np.nan, "uint8": 255, "bool": False, "int16": -9999, "float64": 0.0, "int32": 5}


def make(folder, kind, codec, shape, each, values):
    "An array of shards as the store has it, written by zarr-python alone"
    array = zarr.create_array(folder, shape=shape, dtype=kind, fill_value=KINDS[kind], chunks=(1, *shape[1:]), shards=(each, *shape[1:]),
                              compressors=CODECS[codec](), zarr_format=3, overwrite=True)
    array[:] = values
    return ArrayPlan(("tile", "y", "x"), shape, kind, KINDS[kind], {})


def parts(folder, plan, codec, each):
    "Every shard by both ways of reading: all tiles at once, and one after the other in one room"
    given_up, room = None, Room(plan)
    for k in range(-(-plan.shape[0] // each)):
        chunks, wanted = chunks_of(folder / "c" / str(k) / "0" / "0", plan, codec, each, given_up), range(min(each, plan.shape[0] - k * each))
        yield read_chunks(chunks, wanted), np.stack([room(chunks, i).copy() for i in wanted])
        given_up = chunks


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(sorted(KINDS)), codec=st.sampled_from(sorted(CODECS)), tiles=st.integers(1, 9), each=st.integers(1, 5),
       size=st.tuples(st.integers(1, 9), st.integers(1, 9)), seed=st.integers(0, 99))
def test_tiles_are_what_zarr_reads(tmp_path, kind, codec, tiles, each, size, seed):
    random = np.random.default_rng(seed)
    values = random.integers(0, 2, (tiles, *size)).astype(kind) if kind == "bool" else random.integers(0, 99, (tiles, *size)).astype(kind)
    values[random.random(tiles) < 0.3] = KINDS[kind]                                    # left out
    if tiles > 2: values[2] = values[1]                                                 # the same bytes twice
    plan = make(tmp_path / "a", kind, codec, values.shape, each, values)
    wanted = zarr.open_array(tmp_path / "a", mode="r")[:]
    np.testing.assert_array_equal(np.concatenate([read for read, _ in parts(tmp_path / "a", plan, codec, each)]), wanted)
    np.testing.assert_array_equal(wanted, values)
    np.testing.assert_array_equal(np.concatenate([one_by_one for _, one_by_one in parts(tmp_path / "a", plan, codec, each)]), wanted)


@pytest.mark.parametrize("codec", CODECS)
def test_any_byte_that_changed_is_found(tmp_path, codec):
    values = np.random.default_rng(0).integers(0, 999, (3, 5, 4)).astype("uint16")
    plan = make(tmp_path / "a", "uint16", codec, values.shape, 3, values)
    path = tmp_path / "a/c/0/0/0"
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 16]) + good[at + 1:])
        with pytest.raises(GeosegError): read_chunks(chunks_of(path, plan, codec, 3), range(3))
    for cut in range(len(good)):
        path.write_bytes(good[:cut])
        with pytest.raises(GeosegError): read_chunks(chunks_of(path, plan, codec, 3), range(3))


def index_of(*places):
    from google_crc32c import value
    table = np.array(places, "<u8").tobytes()
    return np.frombuffer(table + value(table).to_bytes(4, "little"), np.uint8)


@pytest.mark.parametrize("place", [(0, 10**6), (10**9, 4), (2**63, 2**63), (2**64 - 2, 2**64 - 2), (LEFT_OUT - 1, 8)])
def test_an_index_that_leads_out_of_its_shard_is_an_error(place):
    with pytest.raises(GeosegError, match="leads out"): chunk_places(index_of(place), 1)
    assert chunk_places(index_of((LEFT_OUT, LEFT_OUT)), 1) == [[LEFT_OUT, LEFT_OUT]]


def test_bytes_without_room_for_a_checksum_are_an_error():
    with pytest.raises(GeosegError, match="checksum"): without_sum(np.zeros(3, np.uint8))


def test_a_chunk_of_another_size_is_an_error_and_writes_nowhere_else(tmp_path):
    "A tile of another shape than the plan says, rightly summed: a store whose metadata were edited"
    values = np.random.default_rng(0).integers(0, 999, (2, 8, 8)).astype("uint16")
    for codec in CODECS:
        plan = make(tmp_path / codec, "uint16", codec, values.shape, 2, values)
        for shape in ((2, 4, 8), (2, 16, 8)):
            room, chunks = np.zeros((3, *shape[1:]), "uint16"), chunks_of(tmp_path / codec / "c/0/0/0", plan._replace(shape=shape), codec, 2)
            with pytest.raises(GeosegError, match="is no tile of"): tile_of(chunks, 0, room[1])
            assert not room.any(), codec


def test_a_room_forgets_a_tile_that_failed(tmp_path):
    "A mask of few bytes, damaged and then read again whole"
    values = np.ones((2, 8, 8), bool)
    plan = make(tmp_path / "a", "bool", "lz4", values.shape, 2, values)
    chunks, room = chunks_of(tmp_path / "a/c/0/0/0", plan, "lz4", 2), Room(plan)
    first, size = chunks.places[0]
    bad = chunks._replace(data=chunks.data.copy())
    bad.data[first + size - 1] ^= 1
    assert room(chunks, 1).all() and size < 1024
    with pytest.raises(GeosegError): room(bad, 0)
    room.out[:] = False
    assert room(chunks, 0).all()


def test_memory_that_is_too_small_is_not_used(tmp_path):
    (tmp_path / "a").write_bytes(bytes(100))
    small, large = np.ones(99, np.uint8), np.ones(101, np.uint8)
    assert read_bytes(tmp_path / "a", small).base is None and small.all()
    assert read_bytes(tmp_path / "a", large).base is large and not large[:100].any() and large[100] == 1


def test_a_header_that_says_more_bytes_than_there_are_is_an_error(tmp_path):
    "Rightly summed, by somebody who wants Blosc to read on"
    from google_crc32c import value
    values = np.random.default_rng(0).integers(0, 9, (1, 32, 32)).astype("uint16")
    chunks = chunks_of(tmp_path / "a/c/0/0/0", make(tmp_path / "a", "uint16", "lz4", values.shape, 1, values), "lz4", 1)
    first, size = chunks.places[0]
    data = chunks.data.copy()
    data[first + 12 : first + 16] = np.frombuffer((size + 1000).to_bytes(4, "little"), np.uint8)
    data[first + size - 4 : first + size] = np.frombuffer(value(data[first : first + size - 4].tobytes()).to_bytes(4, "little"), np.uint8)
    with pytest.raises(GeosegError, match="is no tile"): read_chunks(chunks._replace(data=data), [0])


def test_a_file_that_comes_in_pieces_is_read_whole(tmp_path, monkeypatch):
    "As the system gives a file of more than 2 GB, or a network gives any"
    import builtins
    import io
    content = np.random.default_rng(0).integers(0, 256, 10_000, np.uint8)
    (tmp_path / "a").write_bytes(content.tobytes())

    class Slow(io.FileIO):
        def readinto(self, room): return super().readinto(room[:999])

    monkeypatch.setattr(builtins, "open", lambda path, mode, buffering: Slow(path, "r"))
    assert np.array_equal(read_bytes(tmp_path / "a"), content)
