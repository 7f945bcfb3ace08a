"""What runs in petastorm's own environment: an epoch by make_reader over a set that its Unischema describes

    python petastorm_reader.py FOLDER IMAGE.npy LABEL.npy MEAN STD   prints {"cpu_s", "wall_s", "right"}

Written by pyarrow with petastorm's own codecs and metadata instead of through Spark. petastorm 0.13.1 keeps its schema as a pickle, which is why nothing of it is read outside of this script."""
import json
import pickle
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from petastorm import make_reader
from petastorm.codecs import NdarrayCodec, ScalarCodec
from petastorm.etl.dataset_metadata import ROW_GROUPS_PER_FILE_KEY, UNISCHEMA_KEY
from petastorm.reader_impl.shuffling_buffer import RandomShufflingBuffer
from petastorm.unischema import Unischema, UnischemaField
from pyspark.sql.types import IntegerType

GROUP = 64
FIELDS = [UnischemaField("number", np.int32, (), ScalarCodec(IntegerType()), False),
          UnischemaField("image", np.float32, (6, 120, 120), NdarrayCodec(), False), UnischemaField("label", np.uint8, (120, 120), NdarrayCodec(), False)]
SCHEMA = Unischema("Patches", FIELDS)


def write(folder, image, label):
    folder.mkdir(parents=True, exist_ok=True)
    columns = pa.schema([("number", pa.int32()), ("image", pa.binary()), ("label", pa.binary())])
    with pq.ParquetWriter(str(folder / "part-0.parquet"), columns, compression="snappy", use_dictionary=False) as writer:
        for start in range(0, len(image), GROUP):
            rows = range(start, min(start + GROUP, len(image)))
            encoded = [[bytes(field.codec.encode(field, values[i].astype(field.numpy_dtype))) for i in rows] for field, values in zip(FIELDS[1:], (image, label))]
            writer.write_table(pa.table([pa.array(rows, pa.int32()), *encoded], schema=columns), row_group_size=GROUP)
    groups = {"part-0.parquet": -(-len(image) // GROUP)}
    notes = {UNISCHEMA_KEY: pickle.dumps(SCHEMA), ROW_GROUPS_PER_FILE_KEY: json.dumps(groups).encode()}
    pq.write_metadata(columns.with_metadata(notes), str(folder / "_common_metadata"))


def samples(reader):
    "Rows in the order of petastorm's own shuffling buffer, the one that its loader for PyTorch uses"
    buffer, rows, left = RandomShufflingBuffer(256, min_after_retrieve=128, extra_capacity=GROUP), iter(reader), True
    while left or buffer.can_retrieve():
        while left and buffer.can_add():
            row = next(rows, None)
            left = row is not None
            if left: buffer.add_many([row])
            else: buffer.finish()
        while buffer.can_retrieve() and not (left and buffer.can_add()): yield buffer.retrieve()


def epoch(folder, seen):
    "Rows of shuffled row groups, decoded in this thread, shuffled again, put into batches of 16 and normalised"
    with make_reader(f"file://{folder}", num_epochs=1, shuffle_row_groups=True, reader_pool_type="dummy") as reader:
        order = samples(reader)
        while batch := list(islice(order, 16)):
            image, label = np.empty((len(batch), 6, 120, 120), "float32"), np.empty((len(batch), 120, 120), "int64")
            for k, row in enumerate(batch): image[k], label[k] = row.image, row.label
            image -= MEAN
            image /= STD
            seen(image, label, [int(row.number) for row in batch])


def main():
    folder, (image, label) = Path(sys.argv[1]).resolve(), (np.load(path, mmap_mode="r") for path in sys.argv[2:4])
    if not (folder / "_common_metadata").exists(): write(folder, image, label)
    right = []

    def check(pixels, classes, numbers):
        for p, c, i in zip(pixels, classes, numbers):
            if np.allclose(p, (image[i] - MEAN) / STD, 1e-5, 1e-5) and np.array_equal(c, label[i]): right.append(i)

    epoch(folder, check)
    cpu, wall = time.process_time(), time.perf_counter()
    epoch(folder, lambda *batch: None)
    print(json.dumps({"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall, "right": sorted(right)}))


if __name__ == "__main__":
    MEAN, STD = (np.float32(json.loads(word)).reshape(-1, 1, 1) for word in sys.argv[4:6])
    main()
