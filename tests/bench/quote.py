"""bench.json of a run -> RESULTS.md here, and the table that the README quotes between its two marks

    python tests/bench/quote.py out/bench/95_bench/bench.json"""
import json
import sys
from pathlib import Path

from geoseg_nb.bench import bench_page, quoted
from geoseg_nb.spec import dumps_json

HERE = Path(__file__).parent
README, BEGIN, END = HERE.parents[1] / "README.md", "<!-- from tests/bench/bench.json by make bench -->\n", "\n<!-- end -->"


def block(text):
    "What stands between the marks: before, within, after"
    before, _, rest = text.partition(BEGIN)
    within, _, after = rest.partition(END)
    return before, within, after


if __name__ == "__main__":
    bench = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    (HERE / "bench.json").write_text(dumps_json(bench) + "\n", encoding="utf-8")
    (HERE / "RESULTS.md").write_text(bench_page(bench), encoding="utf-8")
    before, _, after = block(README.read_text(encoding="utf-8"))
    README.write_text(before + BEGIN + quoted(bench) + END + after, encoding="utf-8")
