"A thread that runs ahead: the same batches, the same errors in their place, and nobody left behind"
import subprocess
import sys
import threading
import time

import pytest
from geoseg_nb.core import GeosegError
from geoseg_nb.loader import make_loader
from geoseg_nb.prefetch import Ahead
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loader import split_of, tidy, write_store


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "batches ahead"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(), max_size=30), st.integers(1, 9), st.integers(0, 40))
def test_the_same_items_in_the_same_order_however_many_are_taken(items, ahead, taken):
    reader = Ahead(items, ahead)
    assert [x for x, _ in zip(reader, range(taken))] == items[:taken]
    del reader
    assert not readers()


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_it_runs_so_many_ahead_and_no_further(ahead):
    made = []
    reader = Ahead((made.append(i) or i for i in range(20)), ahead)
    time.sleep(0.03)
    assert not made, "nothing before it is asked for"
    for number in range(20):
        assert next(reader) == number
        time.sleep(0.01)
        assert len(made) == min(number + 1 + ahead, 20)


def test_an_error_comes_in_its_place_with_what_it_names():
    error = GeosegError("shard 7 is gone", item="shard 7")

    def source():
        yield from "ab"
        raise error

    reader, found = Ahead(source(), 5), []
    with pytest.raises(GeosegError, match="shard 7 is gone") as told:
        for batch in reader: found.append(batch)
    assert found == ["a", "b"] and told.value is error and error.item == "shard 7"
    assert error.__notes__ == ["batch 3 of this pass, made ahead of its use"]
    assert list(reader) == [] and not readers()


def test_an_interrupt_of_the_reader_ends_the_thread():
    with pytest.raises(KeyboardInterrupt):
        for number in Ahead(iter(range(1000)), 4):
            if number == 3: raise KeyboardInterrupt
    assert not readers()


def test_closed_twice_and_never_begun():
    unused, used = Ahead(iter("abc"), 2), Ahead(iter("abc"), 2)
    next(used)
    for reader in (unused, used):
        reader.close(), reader.close()
        assert list(reader) == []
    assert not readers()


def test_a_program_that_forgets_its_reader_ends():
    script = ("import time\nfrom geoseg_nb.prefetch import Ahead\n"
              "reader = Ahead((time.sleep(0.01) or i for i in range(10**6)), 3)\nkept = [reader]\nprint(next(reader))")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_batches_of_a_store_are_equal_to_the_bit_also_in_the_middle_of_an_epoch_and_on_ranks(tmp_path):
    store, split = write_store(tmp_path, tidy(40), shard_tiles=2), split_of("t" * 40)
    for options in ({}, {"rank": 1, "ranks": 2}, {"balance": "classes", "cache_mb": 0}):
        alone, ahead = (make_loader(store, split, "train", 3, prefetch=n, **options) for n in (0, 3))
        for epoch, seen in ((0, 0), (1, 0), (1, 9)):
            for loader in (alone, ahead):
                loader.sampler.set_epoch(epoch)
                loader.sampler.seen = seen
            pairs = list(zip(alone, ahead, strict=True))
            assert len(pairs) == -(-(len(alone.sampler) - seen) // 3)
            assert all((a["image"] == b["image"]).all() and (a["label"] == b["label"]).all() and a["id"] == b["id"] for a, b in pairs)
    assert not readers()


def test_two_passes_at_once_are_two_threads(tmp_path):
    loader = make_loader(write_store(tmp_path, tidy()), split_of("t" * 20), "train", 4, prefetch=2)
    assert [a["id"] == b["id"] for a, b in zip(loader, loader)] == [True] * 5
    assert not readers()


def test_a_shard_that_changed_is_named_through_the_thread(tmp_path):
    store = write_store(tmp_path, tidy(40), shard_tiles=2)
    loader = make_loader(store, split_of("t" * 40), "train", 2, prefetch=2, mix_shards=1, cache_mb=0)
    reader = iter(loader)
    next(reader)
    (tmp_path / "any.zarr" / "MANIFEST.json").write_text("{}")
    with pytest.raises(GeosegError, match="any") as told:
        list(reader)
    assert "made ahead of its use" in told.value.__notes__[0] and not readers()
