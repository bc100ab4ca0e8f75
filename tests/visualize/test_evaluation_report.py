"""The report of `tools/eval.py --report` and the comparison of `--compare`."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.evaluation_cases import random_detections, random_truth
from helpers.html_tags import Tags
from helpers.small_config import write_config
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from ppfcos.cli import eval as cli
from ppfcos.data import shapes
from ppfcos.metrics.coco import CURVE_NAMES, RECALLS, evaluate_detections
from ppfcos.metrics.error_types import ERROR_TYPES, MISSED, find_errors
from ppfcos.metrics.matching import NONE, image_order, match
from ppfcos.visualize.evaluation_report import write_report
from ppfcos.visualize.gallery import Case, draw_cases, worst_cases

ODD_NAMES = ("</script><script>alert(1)</script>", "圆形 & 'Kreis'", "triangle")


class Reports:
    """A data set of shapes with special characters in class names, and the reports of two runs on it."""

    def __init__(self, folder: Path, root: Path):
        self.folder = folder
        shapes.generate(folder / "data", train=2, val=10, size=128)
        annotations = folder / "data" / "annotations" / "instances_val2017.json"
        self.ground_truth = json.loads(annotations.read_text())
        for category, name in zip(self.ground_truth["categories"], ODD_NAMES):
            category["name"] = name
        annotations.write_text(json.dumps(self.ground_truth))
        self.config = write_config(folder / "small.yml", root, folder / "data", folder / "run")
        self.runs = [self.evaluate(seed) for seed in (0, 1)]

    def evaluate(self, seed: int) -> Path:
        """Write the report of random detections; its folder."""
        run = self.folder / f"run{seed}"
        run.mkdir()
        (run / "bbox.json").write_text(json.dumps(self.detections(seed)))
        arguments = ["-c", self.config, "--json_eval", "--output_eval", run, "--report", run / "report"]
        assert cli.main([str(part) for part in arguments]) == 0
        return run / "report"

    def detections(self, seed: int) -> list[dict]:
        return random_detections(np.random.default_rng(seed), self.ground_truth, extra=2)


@pytest.fixture(scope="module")
def reports(tmp_path_factory, root) -> Reports:
    return Reports(tmp_path_factory.mktemp("report"), root)


@pytest.fixture(scope="module")
def content(reports) -> dict:
    return json.loads((reports.runs[0] / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def text(reports) -> str:
    return (reports.runs[0] / "report.html").read_text(encoding="utf-8")


def test_the_table_of_classes_as_csv(reports, content):
    with open(reports.runs[0] / "classes.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(ODD_NAMES)
    for row, entry in zip(rows, content["classes"]):
        assert float(row["AP"]) == entry["figures"]["AP"] and int(row["objects"]) == entry["objects"]
        assert float(row["VOC AP50 (area)"]) == entry["voc"]["area"]
        assert float(row["best score"]) == entry["best_f1"]["score"]


def test_report_json_has_the_metrics_of_the_evaluation(reports, content):
    detections = reports.detections(0)
    figures = evaluate_detections(reports.ground_truth, detections)
    known = {name: None if value == -1 else value for name, value in figures.named().items()}
    assert content["figures"] == pytest.approx(known, abs=1e-12)
    errors = find_errors(match(reports.ground_truth, detections))
    assert [entry["count"] for entry in content["errors"]["kinds"]] == errors.counts.sum(axis=0).tolist()
    assert [entry["name"] for entry in content["classes"]] == list(ODD_NAMES)
    for category, entry in zip(reports.ground_truth["categories"], content["classes"]):
        assert entry["figures"]["AP"] == pytest.approx(figures.per_class[category["name"]])
        curves = figures.class_curves[category["id"]]
        assert list(curves) == list(CURVE_NAMES)
        for name in CURVE_NAMES:
            assert entry["curves"][name] == pytest.approx(curves[name], abs=5e-5)
        assert entry["objects"] == sum(
            a["category_id"] == category["id"] for a in reports.ground_truth["annotations"]
        )
    assert sum(entry["objects"] for entry in content["sizes"]) == content["objects"]
    assert content["images"] == 10 and content["crowds"] == 0


def test_the_page_draws_the_mean_curve(content, text):
    points = re.search(r'<polyline class="line first" points="([^"]+)"', text)[1]
    drawn = np.array([point.split(",") for point in points.split()], float)
    assert (drawn[:, 0] - drawn[0, 0]) / (drawn[-1, 0] - drawn[0, 0]) == pytest.approx(RECALLS, abs=1e-3)
    mean = np.mean([entry["curves"]["0.50"] for entry in content["classes"]], axis=0)
    assert mean == pytest.approx(content["curves"]["0.50"], abs=1e-4)
    heights = drawn[0, 1] - drawn[:, 1]
    unit = 250  # pixels from 0 to 1
    assert heights / unit == pytest.approx(mean - mean[0], abs=1e-3)


def test_the_page_has_no_external_references_and_escapes_names(text):
    page = Tags(text)
    assert [tag for tag, _ in page.tags if tag == "script"] == ["script"] * 2  # data and code
    assert "<script>alert(1)" in page.text and "圆形 & 'Kreis'" in page.text
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe")
        assert not {name for name in attributes if name.startswith("on")}
        for address in (attributes.get("src"), attributes.get("href")):
            assert address is None or address.startswith(("data:image/jpeg;base64,", "#"))
    assert "http" not in re.sub(r"base64,[\w+/=]+", "", text)


def test_the_page_has_coco_s_summary(reports, text):
    table = evaluate_detections(reports.ground_truth, reports.detections(0)).table()
    assert table in Tags(text).text


@pytest.mark.parametrize("empty", ["detections", "objects", "images"])
def test_empty_runs(empty, tmp_path):
    truth = random_truth(np.random.default_rng(0), images=3)
    detections = [] if empty == "detections" else random_detections(np.random.default_rng(0), truth)
    if empty == "objects":
        truth["annotations"] = []

    class Unreadable:
        def name(self, image):
            return f"{image}.jpg"

        def read(self, image):
            return None

    figures = evaluate_detections(truth, detections)
    page = write_report(tmp_path, "mine", truth, detections, figures, Unreadable()).read_text()
    assert "the image cannot be read" in page
    content = json.loads((tmp_path / "report.json").read_text())
    assert len(content["gallery"]) == page.count("<figure")
    assert (content["figures"]["AP"] is None) == (empty == "objects")


def test_worst_cases(monkeypatch):
    rng = np.random.default_rng(0)
    truth = random_truth(rng, images=60)
    matching = match(truth, random_detections(rng, truth))
    errors = find_errors(matching)
    monkeypatch.setattr("ppfcos.visualize.gallery.MOST_OF_A_TYPE", 10)
    monkeypatch.setattr("ppfcos.visualize.gallery.FEWEST_OF_A_CLASS", 3)
    cases = worst_cases(matching, errors)
    for kind in range(MISSED):
        expected, taken = [], np.zeros(matching.classes, int)
        rows = np.flatnonzero(errors.types == kind)
        for score, row in sorted(((matching.detections.scores[d], d) for d in rows), reverse=True):
            label = matching.detections.labels[row]
            taken[label] += 1
            if taken[label] <= 3 and len(expected) < 10:
                expected.append((row, score))
        assert [case.detection for case in cases if case.type == kind] == [row for row, _ in expected]
    missed = [case for case in cases if case.type == MISSED]
    areas = [matching.ground_truth.areas[case.object] for case in missed]
    assert len(areas) == 10 and areas == sorted(areas, reverse=True)
    assert errors.missed[[case.object for case in missed]].all()


@pytest.mark.parametrize("box", [[100, 60, 40, 30], [0, 0, 300, 200], [290, 180, 10, 20], [5, 5, 3, 3]])
def test_boxes_of_a_crop_are_at_the_object(box):
    image = np.zeros((200, 300, 3), np.uint8)
    x, y, width, height = box
    image[y : y + height, x : x + width] = (0, 0, 255)
    truth = {
        "images": [{"id": 7}],
        "categories": [{"id": 1, "name": "red"}],
        "annotations": [{"image_id": 7, "category_id": 1, "bbox": box}],
    }
    found = [{"image_id": 7, "category_id": 1, "bbox": box, "score": 0.9}]
    matching = match(truth, found)

    class One:
        def read(self, number):
            assert number == 7
            return image

    cases = [Case(0, 0, 0, 0, 1.0), Case(MISSED, 0, NONE, 0, 0.0)]
    both, missed = draw_cases(cases, matching, image_order(truth), One())
    assert missed.detection is None and len(missed.other_detections) == 1 and len(both.other_detections) == 0
    for drawing in (both, missed):
        red = drawing.image[..., 2] > 128
        rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
        where = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert drawing.ground_truth == pytest.approx(where, abs=2)
        assert drawing.image.shape[0] <= 225 and drawing.image.shape[1] <= 300
    assert both.detection == pytest.approx(both.ground_truth)


def test_the_page_has_the_boxes_of_report_json(content, text):
    figures = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
    assert len(figures) == len(content["gallery"])
    assert {entry["kind"] for entry in content["gallery"]} <= set(ERROR_TYPES)
    for figure, entry in zip(figures, content["gallery"]):
        assert (figure.count('<rect class="detection"') == 1) == (entry["found"] is not None)
        assert (figure.count('<rect class="ground-truth"') == 1) == (entry["truth"] is not None)
        assert entry["image"] in figure


@pytest.fixture
def opened(reports, browser):
    """The page of the first run in a window of 1280x900."""
    browser.set_window_size(1280, 900)
    browser.get((reports.runs[0] / "report.html").as_uri())
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def shown_cases(browser) -> list:
    for group in browser.find_elements(By.CSS_SELECTOR, ".error-type"):
        browser.execute_script("arguments[0].open = true", group)
    return [case for case in browser.find_elements(By.CSS_SELECTOR, ".case") if case.is_displayed()]


def test_galleries_filter_by_class_and_score(opened, content):
    assert len(shown_cases(opened)) == len(content["gallery"])
    Select(opened.find_element(By.CSS_SELECTOR, "#galleries .pick-class")).select_by_visible_text("triangle")
    about = [
        entry
        for entry in content["gallery"]
        if "triangle" in [side["class"] for side in (entry["found"], entry["truth"]) if side]
    ]
    assert 0 < len(shown_cases(opened)) == len(about) < len(content["gallery"])
    opened.execute_script(
        "const slider = document.querySelector('#score'); slider.value = 0.5;"
        "slider.dispatchEvent(new Event('input'));"
    )
    left = [entry for entry in about if not entry["found"] or entry["found"]["score"] >= 0.5]
    assert 0 < len(shown_cases(opened)) == len(left) < len(about)
    counts = [element.text for element in opened.find_elements(By.CSS_SELECTOR, ".count")]
    assert sum(int(count.split(" of ")[0]) for count in counts) == len(left)


def test_curves_of_the_selected_class(opened, content):
    def points() -> list[str]:
        return [
            line.get_attribute("points")
            for line in opened.find_elements(By.CSS_SELECTOR, "#precision polyline")
        ]

    mean = points()
    label = 1
    Select(opened.find_element(By.CSS_SELECTOR, "#curves .pick-class")).select_by_index(label + 1)
    assert opened.find_element(By.ID, "curves-of").text == ODD_NAMES[label]
    for line, name in zip(points(), CURVE_NAMES):
        heights = [260 - float(point.split(",")[1]) for point in line.split()]
        assert np.array(heights) / 250 == pytest.approx(content["classes"][label]["curves"][name], abs=1e-3)
    Select(opened.find_element(By.CSS_SELECTOR, "#galleries .pick-class")).select_by_index(0)
    assert points() == mean


def test_the_table_sorts_searches_and_links_to_the_galleries(opened, content):
    def names() -> list[str]:
        rows = opened.find_elements(By.CSS_SELECTOR, "#classes tbody tr")
        return [row.find_element(By.CSS_SELECTOR, "td").text for row in rows if row.is_displayed()]

    header = opened.find_element(By.XPATH, "//section[@id='classes']//button[text()='AP']")
    header.click()
    by_ap = sorted(content["classes"], key=lambda entry: -entry["figures"]["AP"])
    assert names() == [entry["name"] for entry in by_ap]
    header.click()
    assert names() == [entry["name"] for entry in reversed(by_ap)]
    search = opened.find_element(By.CSS_SELECTOR, ".search")
    search.send_keys("kreis")
    assert names() == [ODD_NAMES[1]]
    opened.find_element(By.LINK_TEXT, ODD_NAMES[1]).click()
    chosen = Select(opened.find_element(By.CSS_SELECTOR, "#galleries .pick-class")).first_selected_option
    assert chosen.text == ODD_NAMES[1]


def test_confusion_matrix_of_the_selected_score(opened, content):
    for level in content["confusion"]:
        Select(opened.find_element(By.ID, "confusion-score")).select_by_value(str(level["score"]))
        [block] = [b for b in opened.find_elements(By.CSS_SELECTOR, ".confusion") if b.is_displayed()]
        numbers = [element.text for element in block.find_elements(By.CSS_SELECTOR, ".number")]
        cells = sorted(int(number) for number in numbers if number.isdigit())
        pairs = [cell for cell in level["cells"] if cell[0] != cell[1] and max(cell[:2]) < 3]
        assert cells == sorted([cell[2] for cell in level["cells"]] + [cell[2] for cell in pairs])


def test_boxes_can_be_hidden_and_images_enlarged(opened):
    picture = opened.find_element(By.CSS_SELECTOR, ".error-type[open] .case svg")
    truth, found = (
        picture.find_element(By.CSS_SELECTOR, f"rect.{kind}:not(.other)")
        for kind in ("ground-truth", "detection")
    )
    assert truth.is_displayed() and found.is_displayed()
    opened.find_element(By.ID, "show-ground-truth").click()
    assert not truth.is_displayed() and found.is_displayed()
    opened.find_element(By.ID, "show-ground-truth").click()
    opened.find_element(By.ID, "show-detections").click()
    assert truth.is_displayed() and not found.is_displayed()
    before = picture.rect["width"]
    picture.click()
    assert picture.rect["width"] > 2 * before


def _emulate(browser, width: int, scheme: str, script: bool = True) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
    scheme = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


@pytest.fixture
def appearance(browser):
    """Set the width of the screen, light or dark mode, and whether scripts run."""
    yield lambda *settings: _emulate(browser, *settings)
    _emulate(browser, 1400, "light")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("page", ["report", "comparison"])
def test_pages_fit_the_screen(reports, browser, appearance, comparison, width, page):
    appearance(width, "light")
    browser.get((comparison if page == "comparison" else reports.runs[0] / "report.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return document.documentElement.clientWidth") >= width - 20


def test_tables_fit_a_width_of_1280(reports, browser, appearance, comparison):
    """All columns are visible, even with class names without a place to break."""
    for page in (reports.runs[0] / "report.html", comparison):
        appearance(1280, "light")
        browser.get(page.as_uri())
        assert page == comparison or browser.find_elements(By.CSS_SELECTOR, ".confusion table .number")
        hidden = "return [...document.querySelectorAll('.wide')].map((e) => e.scrollWidth - e.clientWidth)"
        assert max(browser.execute_script(hidden)) == 0


def test_pages_follow_dark_mode(reports, browser, appearance):
    brightness = {}
    for scheme in ("light", "dark"):
        appearance(800, scheme)
        browser.get((reports.runs[0] / "report.html").as_uri())
        for part in ("background-color", "color"):
            colour = browser.find_element(By.TAG_NAME, "body").value_of_css_property(part)
            brightness[scheme, part] = sum(int(number) for number in re.findall(r"\d+", colour)[:3])
    assert brightness["light", "background-color"] > 700 > 150 > brightness["light", "color"]
    assert brightness["dark", "background-color"] < 150 < 600 < brightness["dark", "color"]


def test_without_scripts_only_the_controls_are_hidden(reports, browser, appearance):
    appearance(1280, "light", False)
    browser.get((reports.runs[0] / "report.html").as_uri())
    controls = browser.find_elements(By.CSS_SELECTOR, ".control")
    assert controls and not any(control.is_displayed() for control in controls)
    for part in ("#overview", "#errors", "#precision polyline", "#classes tbody tr", ".correct", ".case"):
        assert any(element.is_displayed() for element in browser.find_elements(By.CSS_SELECTOR, part)), part


@pytest.fixture(scope="module")
def comparison(reports) -> Path:
    arguments = ["--compare", reports.runs[0], reports.runs[1], "--report", reports.folder / "both"]
    assert cli.main([str(part) for part in arguments]) == 0
    return reports.folder / "both" / "comparison.html"


def test_comparison(reports, browser, comparison):
    browser.get(comparison.as_uri())
    first, second = (json.loads((run / "report.json").read_text(encoding="utf-8")) for run in reports.runs)
    rows = browser.find_elements(By.CSS_SELECTOR, "section:first-of-type table tr")[1:]
    told = {row.text.split()[0]: row.text.replace("−", "-").split()[1:] for row in rows}
    for name, value in first["figures"].items():
        if value is None:
            assert told[name] == ["–"] * 3
            continue
        expected = [value, second["figures"][name], second["figures"][name] - value]
        shown = [float(number) for number in told[name]]
        assert shown == pytest.approx([100 * number for number in expected], abs=0.051)
    assert len(told) == 12
    listed = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "#classes td:first-child")]
    changes = {
        a["name"]: b["figures"]["AP"] - a["figures"]["AP"]
        for a, b in zip(first["classes"], second["classes"])
    }
    assert listed == sorted(changes, key=changes.get)
    assert "not of the same data" not in browser.find_element(By.TAG_NAME, "body").text
    assert not browser.get_log("browser")


def test_comparison_warns_about_different_data(reports, tmp_path):
    for name, run in zip("ab", reports.runs):
        (tmp_path / name).mkdir()
        content = json.loads((run / "report.json").read_text(encoding="utf-8"))
        if name == "b":
            content["images"] += 1
            content["classes"][0]["name"] = "another"
        (tmp_path / name / "report.json").write_text(json.dumps(content))
    arguments = ["--compare", tmp_path / "a", tmp_path / "b", "--report", tmp_path / "both"]
    assert cli.main([str(part) for part in arguments]) == 0
    page = Tags((tmp_path / "both" / "comparison.html").read_text(encoding="utf-8"))
    assert "not of the same data: 10 and 11 images; 2 classes that only one of them has" in page.text


def test_documentation_has_all_error_types_and_valid_commands(root):
    text = (root / "docs" / "evaluation_report.md").read_text(encoding="utf-8")
    table = text[text.index("| kind |") : text.index("## Object sizes")]
    assert sorted(re.findall(r"^\| (\w+) \| ", table, re.M)) == sorted([*ERROR_TYPES, "kind"])
    commands = re.findall(r"^    python tools/eval\.py (.*)$", text, re.M)
    assert len(commands) == 3
    for command in commands:
        options = cli.build_parser().parse_args(shlex.split(command))
        assert options.report and (options.compare or (root / options.config).is_file())


def error_of(capsys, *arguments) -> str:
    assert cli.main([str(part) for part in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_invalid_reports_are_named(reports, tmp_path, capsys):
    for name, content in (("nothing", None), ("text", "{"), ("other", "{}"), ("old", None)):
        (tmp_path / name).mkdir()
        if content:
            (tmp_path / name / "report.json").write_text(content)
    content = json.loads((reports.runs[0] / "report.json").read_text(encoding="utf-8"))
    (tmp_path / "old" / "report.json").write_text(json.dumps({**content, "version": 0}))
    expected = {
        "nothing": "cannot be read",
        "text": "not valid JSON",
        "other": "not an evaluation report",
        "old": "version 0",
    }
    for name, said in expected.items():
        out = ("--report", tmp_path / "out")
        message = error_of(capsys, "--compare", reports.runs[0], tmp_path / name, *out)
        assert said in message and str(tmp_path / name / "report.json") in message
        assert f"--report {tmp_path / name}" in message
    assert not (tmp_path / "out").exists()


def test_compare_requires_report_and_no_configuration(reports, capsys):
    a, b = reports.runs
    assert "--report" in error_of(capsys, "--compare", a, b)
    assert "no configuration" in error_of(capsys, "--compare", a, b, "--report", b, "-c", reports.config)
    assert "-c FILE" in error_of(capsys, "--report", b)


def test_an_unwritable_folder_is_named_before_the_evaluation(reports, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    run = reports.folder / "run0"
    arguments = [
        "-c",
        reports.config,
        "--json_eval",
        "--output_eval",
        run,
        "--report",
        tmp_path / "file" / "x",
    ]
    message = error_of(capsys, *arguments)
    assert "--report FOLDER" in message and str(tmp_path / "file") in message


def test_unreadable_images(reports, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(reports.folder / "data", data)
    for picture in (data / "val2017").iterdir():
        picture.write_bytes(b"")
    spoilt = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()[:40]
    next((data / "val2017").iterdir()).write_bytes(spoilt)
    arguments = ["-c", reports.config, "--json_eval", "--output_eval", reports.folder / "run0"]
    arguments += ["--report", tmp_path / "out", "-o", f"EvalDataset.dataset_dir={data}"]
    assert cli.main([str(part) for part in arguments]) == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("the image cannot be read") == page.count("<figure") > 0
