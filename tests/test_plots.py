"Figures say what they show: labels, units, legends and the legend's colours"
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib import rcParams
from matplotlib.colors import to_hex

from geoseg_nb import panels, plots
from geoseg_nb.core import make_legend

FLOODS = make_legend({"dry": [0, "#d8c9a0"], "water": [1, "#2b6cb0"]}, ignore=[-1])
CROPS = make_legend({"wheat": [1, "#e3b23c"], "maize": [2, "#6a994e"], "rape": [3, "#f2e94e"]})


@pytest.fixture(autouse=True)
def no_style_is_left_behind():
    plt.close(plt.figure())
    before = dict(rcParams)
    yield
    plt.close("all")
    assert dict(rcParams) == before


def row(name="a", classes=2, height=40, width=40, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.normal(-18, 4, (2, height, width)).astype("float32")
    image[:, :3] = np.nan
    label, prediction = rng.integers(0, classes, (2, height, width)).astype("uint8")
    label[:5] = 255
    return {"id": name, "image": image, "label": label, "prediction": prediction}


def scores(legend, **more):
    n = len(legend.names)
    return pd.DataFrame({"name": legend.names, "iou": np.linspace(0.4, 0.9, n), "support": [10**k for k in range(3, 3 + n)],
                         "colour": legend.colours, **more})


def curves(epochs=6, **more):
    return pd.DataFrame({"epoch": range(epochs), "train/loss": 0.5, "val/loss": 0.6, "val/iou": np.linspace(0.1, 0.7, epochs), "lr": 1e-3, **more})


def balance():
    return pd.DataFrame([{"part": p, "class": n, "colour": c, "count": k} for p in ("train", "test")
                         for n, c, k in zip(FLOODS.names, FLOODS.colours, (300, 100))])


AXES = {
    "classes": lambda: plots.draw_classes(row()["label"], FLOODS),
    "composite": lambda: plots.draw_composite(row()["image"]),
    "confusion": lambda: plots.plot_confusion(np.array([[5, 1], [2, 9]]), FLOODS.names),
    "iou": lambda: plots.plot_iou(scores(FLOODS, baseline=[0.2, 0.3])),
    "balance": lambda: plots.plot_balance(balance()),
    "windows": lambda: plots.plot_window_sizes(pd.DataFrame({"window": [64, 128], "iou": [0.9, 0.8]})),
    "loss": lambda: plots.plot_curves(curves())[0],
    "score": lambda: plots.plot_curves(curves())[1],
    "rate": lambda: plots.plot_curves(curves())[2],
}
UNITS = {"classes": ("(px)", "(px)"), "composite": ("(px)", "(px)"), "iou": ("(0 to 1)", ""), "balance": ("(%)", ""),
         "windows": ("(px)", "(0 to 1)"), "loss": ("", "(per pixel)"), "score": ("", "(0 to 1)"), "rate": ("", "(per step)")}


@pytest.mark.parametrize("name", AXES)
def test_axes_carry_labels_and_units(name):
    ax = AXES[name]()
    units = UNITS.get(name, ("", ""))
    assert ax.get_xlabel() and ax.get_xlabel().endswith(units[0])
    assert ax.get_ylabel() and ax.get_ylabel().endswith(units[1])


@pytest.mark.parametrize("name", AXES)
def test_a_figure_can_be_saved(name, tmp_path):
    AXES[name]().figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 2000


def test_given_axes_are_drawn_on():
    _, axes = plt.subplots(1, 4)
    assert plots.plot_iou(scores(FLOODS), axes[0]) is axes[0]
    assert plots.plot_balance(balance(), axes[1]) is axes[1]
    assert plots.plot_confusion(np.eye(2), FLOODS.names, axes[2]) is axes[2]
    assert plots.draw_classes(row()["label"], FLOODS, axes[3]) is axes[3]
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("legend", [FLOODS, CROPS])
def test_class_maps_show_the_legends_colours_and_nothing_else(legend):
    label = row(classes=len(legend.names))["label"]
    drawn = plots.draw_classes(label, legend).images[0].get_array()[..., :3]
    for index, colour in [*enumerate(legend.colours), (255, plots.NODATA)]:
        assert {to_hex(c / 255) for c in drawn[label == index]} == {colour}


def test_bars_have_the_colours_of_their_classes():
    assert [to_hex(b.get_facecolor()) for b in plots.plot_iou(scores(CROPS)).patches] == CROPS.colours
    bars = plots.plot_balance(balance()).patches
    assert [to_hex(b.get_facecolor()) for b in bars] == [c for c in FLOODS.colours for _ in range(2)]
    assert [b.get_width() for b in bars] == [0.75, 0.75, 0.25, 0.25]


def test_the_prediction_figure_names_every_colour_once():
    fig = plots.plot_prediction([row("a"), row("b", seed=1)], FLOODS)
    handles = fig.legends[0].legend_handles
    named = {h.get_label(): to_hex(h.get_facecolor()) for h in handles}
    assert len(fig.legends) == 1 and len(named) == len(handles)
    assert [named[n] for n in FLOODS.names] == FLOODS.colours
    assert named["missed water"] == plots.ERRORS["missed"] and named["no data"] == plots.NODATA
    assert len(set(named.values())) == len(named)
    assert [ax.get_title() for ax in fig.axes[:4]] == ["image", "label", "prediction", "errors"]
    assert fig.axes[0].get_ylabel() == "a\nrow (px)" and all(ax.get_xlabel() == "column (px)" for ax in fig.axes[4:])


def test_panels_of_a_crop_are_measured_in_the_scene():
    "A pixel of the crop is found at its row and column of the scene, in all four panels"
    mark = row("a") | {"origin": (100, 256)}
    mark["label"] = np.zeros((40, 40), "uint8")
    mark["label"][7, 30] = 1
    fig = plots.plot_prediction([mark, row("b", seed=1)], FLOODS)
    for ax in fig.axes[:4]:
        assert ax.get_xlim() == (255.5, 295.5) and ax.get_ylim() == (139.5, 99.5)
    drawn = fig.axes[1].images[0]
    assert to_hex(np.array(drawn.get_cursor_data(MouseAt(fig.axes[1], 286, 107))[:3]) / 255) == FLOODS.colours[1]
    assert fig.axes[4].get_xlim() == (-0.5, 39.5)
    fig.canvas.draw()
    first, second = (fig.axes[k].get_xticks() for k in (0, 4))
    assert min(first) > 200 and max(second) < 100 and len(first) > 1 < len(second), "rows of two windows share no ticks"


class MouseAt:
    "Where a reader points at, in the units of the axes"
    def __init__(self, ax, column, row): self.x, self.y = ax.transData.transform((column, row))


def test_rows_of_one_window_share_their_column_ticks():
    fig = plots.plot_prediction([row(n, seed=i) | {"origin": (0, 256)} for i, n in enumerate("ab")], FLOODS)
    assert not len(fig.axes[0].get_xticks()) and len(fig.axes[4].get_xticks())


def test_the_figure_of_maps_says_how_many_it_shows():
    maps = [{"id": n, "classes": row()["label"]} for n in "abcdef"]
    assert plots.plot_maps(maps, FLOODS, title="6 of 10 scenes").get_suptitle() == "6 of 10 scenes"
    assert plots.plot_maps(maps, FLOODS).get_suptitle() == ""


def test_errors_are_told_apart_only_for_a_class_of_interest():
    plain = plots.plot_prediction([row(classes=3)], CROPS)
    asked = plots.plot_prediction([row(classes=3)], CROPS, target=1)
    names = [[t.get_text() for t in fig.legends[0].get_texts()] for fig in (plain, asked)]
    assert "wrong" in names[0] and not any("missed" in n for n in names[0])
    assert "missed maize" in names[1] and "false maize" in names[1]


def test_the_error_map_counts_as_the_confusion_matrix_does():
    from sklearn.metrics import confusion_matrix
    r = row(classes=2)
    judged = r["label"] != 255
    (_, false), (missed, _) = confusion_matrix(r["label"][judged], r["prediction"][judged])
    errors = plots.error_map(r["label"], r["prediction"], target=1)
    assert ((errors == 1).sum(), (errors == 2).sum(), (errors == 255).sum()) == (missed, false, (~judged).sum())


def test_confusion_cells_show_shares_of_the_row_and_counts():
    ax = plots.plot_confusion(np.array([[1_000_000, 0], [0, 0]]), ["dry", "water"])
    assert [t.get_text() for t in ax.texts] == ["100.0%\n1 M", "0.0%\n0", "no pixels", "no pixels"]


def test_an_absent_class_has_no_bar_and_says_so():
    ax = plots.plot_iou(scores(FLOODS).assign(iou=[np.nan, 0.5]))
    assert ax.patches[0].get_width() == 0 and ax.texts[0].get_text().startswith("absent")


def test_curves_without_validation_and_of_one_epoch():
    axes = plots.plot_curves(curves(1).drop(columns=["val/loss", "val/iou"]))
    assert [len(ax.lines) for ax in axes] == [1, 0, 1] and axes[0].lines[0].get_marker() == "o"
    marked = plots.plot_curves(curves(6))[1]
    assert marked.texts[0].get_text() == "0.700 at epoch 5"


@pytest.mark.parametrize("image", [np.full((2, 4, 4), np.nan), np.zeros((1, 4, 4)), np.full((3, 4, 4), np.inf), np.arange(96).reshape(6, 4, 4)])
def test_composites_of_anything(image):
    rgb = panels.composite(image)
    assert rgb.shape == (4, 4, 3) and rgb.dtype == np.uint8


def test_footprints_name_few_values_and_count_many():
    import geopandas as gpd
    from shapely.geometry import box
    boxes = [box(i, i, i + 1, i + 1) for i in range(12)]
    catalog = gpd.GeoDataFrame({"id": [f"s{i}" for i in range(12)], "part": ["train", "test"] * 6}, geometry=boxes, crs="EPSG:4326")
    texts = lambda ax: [t.get_text() for t in ax.get_legend().get_texts()]
    few, many = plots.plot_footprints(catalog, "part"), plots.plot_footprints(catalog, "id")
    assert texts(few) == ["train", "test"] and texts(many) == ["12 scenes"]
    assert few.get_xlabel() == "longitude (° east)" and few.get_ylabel() == "latitude (° north)"


def test_bars_and_axes_say_what_they_are():
    assert plots.plot_balance(balance()).get_ylabel() == "part"
    assert plots.plot_balance(balance(), by="place").get_ylabel() == "place"
    renamed = plots.plot_balance(balance().rename(columns={"part": "place"}), by="place")
    assert [t.get_text() for t in renamed.get_yticklabels()] == list(dict.fromkeys(balance()["part"]))
    ax = plots.plot_window_sizes(pd.DataFrame({"window": [128, 64], "iou": [0.25, np.nan]}), name="IoU of water")
    ax.figure.canvas.draw()
    assert [t.get_text() for t in ax.get_yticklabels()][:2] == ["0.00", "0.20"]
    assert [t.get_text() for t in ax.texts] == ["0.250"] and ax.get_ylabel() == "IoU of water (0 to 1)"


@pytest.mark.parametrize("names", [
    ["S2A_MSIL2A_20170704T112111_N9999_R037_T29SND", "S2B_MSIL2A_20180515T112109_N9999_R037_T29SND", "107 others"],
    ["S2A_MSIL2A_20170704T112111_N9999_R037_T29SND", "S2A_MSIL2A_20171121T112351_N9999_R037_T29SND", "107 others"]])
def test_names_that_differ_in_the_middle_are_short_and_still_differ(names):
    "As the scenes of BigEarthNet beside `others`: the bars of the classes keep their room"
    short = panels.short_names(names)
    assert len(set(short)) == len(names) and max(map(len, short)) <= panels.ROOM
    table = pd.DataFrame([(place, f"a class with a long name {i}", 5, "#112233") for place in names for i in range(19)], columns=["part", "class", "count", "colour"])
    ax = plots.plot_balance(table, by="place", unit="scenes")
    ax.figure.canvas.draw()
    assert ax.get_window_extent().width > 0.3 * ax.figure.bbox.width
