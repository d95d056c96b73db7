import base64
import json
import re
import shutil
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from cifar_keras.evaluation.calibration import softmax
from cifar_keras.evaluation.corruptions import SEVERITIES
from cifar_keras.evaluation.metrics import classification_metrics
from cifar_keras.reporting import figures
from cifar_keras.reporting.report import Content, image_uri, model_card, report_html

NAMES = ["cat", "dog & cat", "<script>alert(1)</script>"]
TEMPERATURE = 0.5


def make_content() -> Content:
    """Of 300 test images every class is taken for every other one."""
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 3
    logits = (generator.normal(size=(300, 3)) + 1.5 * np.eye(3)[labels]).astype(np.float32)
    metrics = classification_metrics(logits, labels, NAMES)
    result: dict[str, Any] = {
        "test": metrics,
        "validation": metrics,
        "calibration": {
            "temperature": TEMPERATURE,
            "test": classification_metrics(logits / np.float32(TEMPERATURE), labels, NAMES),
        },
        "minutes": {"prepare": 0.1, "head": 1.0, "total": 1.5},
        "images_per_second": {"head": 100.0, "finetune": None, "evaluate": 80.0},
        "config": {"backbone": "resnet50", "image_size": 96, "weights": "imagenet", "data_source": "npm"},
        "environment": {"cores": 2, "processor": "a processor", "devices": ["CPU:0"]},
        "seed": 0,
        "commit": "0123456789",
    }
    records = [
        {"phase": "head", "epoch": 0, "step": 10, "learning_rate": 0.1, "loss": 1.0, "accuracy": 0.5},
        {
            **{"phase": "head", "epoch": 0, "step": 20, "learning_rate": 0.1, "loss": 0.9, "accuracy": 0.6},
            **{"validation_loss": 0.8, "validation_accuracy": 0.7},
        },
    ]
    images = generator.integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)
    drawn = {
        "coverage": figures.coverage_picture(softmax(logits, TEMPERATURE), labels),
        "reliability": figures.reliability_picture(logits, labels, TEMPERATURE),
        "confusion_matrix": figures.confusion_matrix_picture(metrics["confusion_matrix"], ["a", "b", "c"]),
        "learning_curves": figures.learning_curves_picture(records),
    }
    return Content("a run", result, records, images, labels, logits, NAMES, drawn)


def with_everything(content: Content) -> Content:
    """The same run after `evaluate`, `export` and `explain`."""

    def row(kind: str, name: str, accuracy: float) -> dict[str, Any]:
        figures = {"accuracy": accuracy, "loss": 2 - accuracy, "calibration_error": accuracy / 10}
        intervals = {metric: [value - 0.01, value + 0.01] for metric, value in figures.items()}
        return {"kind": kind, "name": name, "n": 300, **figures, "intervals": intervals}

    corrupted = [row("corruption", f"{name} {level}", level / 7) for name in ("fog", "jpeg") for level in SEVERITIES]
    people = row("test set", "cifar10_h", 0.8211) | {"human_cross_entropy": 0.7123, "human_entropy": 0.2123}
    people["intervals"]["human_cross_entropy"] = [0.7023, 0.7223]
    robustness: dict[str, Any] = {
        "rows": [row("views", "flip", 0.9123), people, row("corruption", "none", 0.95), *corrupted],
        "means": {
            "corruptions": {
                "sets": 10,
                "n": 300,
                "accuracy": 0.4321,
                "interval": [0.4211, 0.4411],
                "strengths": "ImageNet-C",
            },
            "cifar10_corrupted": {"sets": 95, "n": 10_000, "accuracy": 0.5432, "interval": [0.5311, 0.5511]},
        },
        "unknown": {
            "folder:birds": {
                **{"known": 300, "unknown": 1_200, "unreadable": 1, "auroc": 0.9234, "false_positive_rate": 0.3345},
                "intervals": {"auroc": [0.9134, 0.9334], "false_positive_rate": [0.3111, 0.3555]},
            }
        },
    }
    exports = {
        name: {
            **{"path": f"exports/{name}", "bytes": 94_050_000, "share_of_float32": 0.257, "logit_difference": 2e-6},
            **{"agreement": 0.9987, "accuracy": 0.8765, "intervals": {"accuracy": [0.8701, 0.8801]}},
            **{"lost_accuracy": 0.001, "within_bounds": True},
            **{"images_per_second": 43.2, "batch_size": 1, "runtime": f"a runtime of {name} 1.2"},
        }
        for name in ("onnx", "litert_int8")
    }
    picture = image_uri(content.images[0])
    near = {"image": picture, "label": "cat", "cosine": 0.9876}
    error = {"image": picture, "label": "cat", "predicted": NAMES[2], "confidence": 0.99, "nearest": [near] * 6}
    suspect = {"image": picture, "index": 12345, "label": "cat", "likely": NAMES[1]}
    suspect |= {"probability_of_label": 0.01, "probability_of_likely": 0.97}
    explanation = {
        "train_images": 45_000,
        "neighbours": [error] * 3,
        "suspects": {"images": 50_000, "suspects": 1_234, "accuracy": 0.8899, "shown": [suspect] * 3},
    }
    points = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    drawn = {
        "corruptions": figures.corruptions_picture([row("corruption", "none", 0.95), *corrupted]),
        "feature_map": figures.feature_map_picture(points, content.labels, ["a", "b", "c"], np.array([0.3, 0.1])),
    }
    every = {**content.pictures, **drawn}
    return content._replace(pictures=every, robustness=robustness, exports=exports, explanation=explanation)


@pytest.fixture(scope="module")
def content() -> Content:
    return make_content()


@pytest.fixture(scope="module")
def html(content: Content) -> str:
    return report_html(with_everything(content))


class Page(HTMLParser):
    """What a page refers to, which of its pictures say nothing, and whether its elements are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.silent_pictures = 0
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if source := values.get("src") or (values.get("href") if tag == "link" else None):
            self.sources.append(source)
        self.silent_pictures += tag == "img" and bool(values.get("src")) and not values.get("alt")
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    parsed = Page()
    parsed.feed(html)
    return parsed


def test_the_page_needs_nothing_from_elsewhere(page: Page, html: str) -> None:
    assert page.open == []
    assert len(page.sources) > 30
    assert all(source.startswith("data:") for source in page.sources)
    assert page.silent_pictures == 0
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", html)


def test_the_page_says_the_figures_of_the_result(content: Content, page: Page) -> None:
    text = "".join(page.text).replace("\N{NO-BREAK SPACE}", " ")
    test = content.result["test"]
    low, high = test["intervals"]["accuracy"]
    assert f"{100 * test['accuracy']:.2f} % of 300 test images" in text
    assert f"{100 * low:.2f} % to {100 * high:.2f} %" in text
    assert f"{100 * content.result['calibration']['test']['calibration_error']:.2f} %" in text
    for values in test["per_class"].values():
        assert f"{100 * values['recall']:.2f} %" in text
    for row in test["confusion_matrix"]:
        assert "".join(map(str, row)) in "".join(text.split())


def test_the_page_says_what_was_found_after_the_run(content: Content, html: str, page: Page) -> None:
    text = "".join(page.text).replace("\N{NO-BREAK SPACE}", " ")
    for metric in ("91.23 %", "82.11 %", "0.7123 nats", "0.2123", "43.21 %", "54.32 %", "95 sets of cifar10_corrupted"):
        assert metric in text, metric
    for metric in ("folder:birds", "1,200", "92.34 %", "33.45 %", "31.11 % to 35.55 %"):
        assert metric in text, metric
    for interval in ("42.11 % to 44.11 %", "53.11 % to 55.11 %", "0.7023 to 0.7223"):
        assert interval in text, interval
    for metric in ("0.988", "1,234 of 50,000", "88.99 %", "45,000 training images"):
        assert metric in text, metric
    plain = report_html(content)
    for heading in ('id="robustness"', 'id="exports"', 'id="features"'):
        assert heading in html
        assert heading not in plain


def test_the_pages_say_whose_strengths_the_corruptions_have(content: Content) -> None:
    """Results of earlier runs do not say it; their images were all of 32 px."""
    now = with_everything(content)
    assert now.robustness is not None
    mean = {key: value for key, value in now.robustness["means"]["corruptions"].items() if key != "strengths"}
    then = now._replace(robustness={**now.robustness, "means": {"corruptions": mean}})
    for whole, right, wrong in ((now, "ImageNet-C", "CIFAR-10-C"), (then, "CIFAR-10-C", "ImageNet-C")):
        for text in (report_html(whole), model_card(whole)):
            assert right in text
            assert wrong not in text


def rows_of(html: str, label: str) -> list[list[str]]:
    """Return the cells of a table, row by row, as they are read."""
    table = html[html.index(f'aria-label="{label}"') :].split("</table>", maxsplit=1)[0]
    rows = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
    ]
    return [[re.sub("<[^>]*>", "", cell).replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in rows]


def test_the_page_says_how_many_answers_are_right_at_a_coverage(content: Content, html: str) -> None:
    confidence = softmax(content.logits, TEMPERATURE).max(axis=1)
    right = content.logits.argmax(axis=1) == content.labels
    order = np.argsort(-confidence)
    rows = rows_of(html, "Accuracy over coverage")[1:]
    assert [row[1] for row in rows] == ["300", "285", "270", "240", "210", "150", "75"]
    for row in rows:
        answered = order[: int(row[1])]
        wanted = (len(answered) / 300, confidence[answered].min(), right[answered].mean())
        assert row[0] == f"{100 * wanted[0]:.2f} %"
        assert row[2] == f"{wanted[1]:.4f}"
        assert row[3] == f"{100 * wanted[2]:.2f} %"


def test_the_tables_behind_the_charts_have_their_figures(content: Content, html: str) -> None:
    right = content.logits.argmax(axis=1) == content.labels
    for name, temperature in (("as served", TEMPERATURE), ("without temperature", 1.0)):
        confidence = softmax(content.logits, temperature).max(axis=1)
        inside = (confidence > 12 / 15) & (confidence <= 13 / 15)
        fractions = [f"{100 * values[inside].mean():.2f} %" for values in (confidence, right)]
        assert ["0.80 to 0.87", name, f"{inside.sum()}", *fractions] in rows_of(html, "Bins of the reliability diagram")
    assert rows_of(html, "Epochs") == [
        ["epoch", "loss", "accuracy", "validation loss", "validation accuracy", "learning rate", "steps so far"],
        ["1, head phase", "0.9000", "60.00 %", "0.8000", "70.00 %", "0.1", "20"],
    ]


def test_every_column_has_what_its_heading_says(content: Content, html: str) -> None:
    def percent(values: Mapping[str, Any], metric: str) -> list[str]:
        low, high = values["intervals"][metric]
        return [f"{100 * values[metric]:.2f} %", f"{100 * low:.2f} % to {100 * high:.2f} %"]

    test, served = content.result["test"], content.result["calibration"]["test"]
    cat = test["per_class"]["cat"]
    ends = {rate: "{:.1f} to {:.1f}".format(*(100 * end for end in cat["intervals"][rate])) for rate in RATES}
    assert rows_of(html, "Classes")[:2] == [
        ["class", "precision", "95 %", "recall", "95 %", "F1", "95 %", "images"],
        ["cat", *(cell for rate in RATES for cell in (f"{100 * cat[rate]:.2f} %", ends[rate])), "100"],
    ]
    assert rows_of(html, "How good the probabilities are") == [
        ["probabilities", "calibration error", "95 %", "loss, nats", "95 %", "Brier score", "95 %"],
        *(
            [
                *(called, *percent(values, "calibration_error")),
                *(f"{values['loss']:.4f}", "{:.4f} to {:.4f}".format(*values["intervals"]["loss"])),
                *(f"{values['brier']:.4f}", "{:.4f} to {:.4f}".format(*values["intervals"]["brier"])),
            ]
            for called, values in (("as served", served), ("without temperature", test))
        ),
    ]
    assert rows_of(html, "Test-time augmentation") == [
        ["what", "images", "accuracy", "95 %", "loss", "95 %", "calibration error", "95 %"],
        ["flip", "300", "91.23 %", "90.23 % to 92.23 %", "1.0877", "1.0777 to 1.0977", "9.12 %", "8.12 % to 10.12 %"],
    ]
    assert rows_of(html, "Other test sets")[1][:3] == ["cifar10_h", "300", "82.11 %"]
    assert rows_of(html, "Corruptions")[:2] == [
        ["corruption and severity", "accuracy", "95 %", "calibration error", "95 %"],
        ["none", "95.00 %", "94.00 % to 96.00 %", "9.50 %", "8.50 % to 10.50 %"],
    ]
    assert rows_of(html, "Exports")[:2] == [
        [
            *(
                "format",
                "MB",
                "size vs float32 weights",
                "largest difference of logits",
                "same class",
                "accuracy",
                "95 %",
            ),
            *("images/s", "at a time", "image size", "runtime"),
        ],
        [
            *("onnx", "94.0", "25.7 %", "2.0e-06", "99.87 %", "87.65 %", "87.01 % to 88.01 %"),
            *("43", "1", "any, smoothed", "a runtime of onnx 1.2"),
        ],
    ]


def test_a_screen_reader_can_tell_what_a_cell_is(html: str) -> None:
    """Every interval says of what it is, and every row of a table with metrics begins with what it is about."""
    headings = re.findall(r"<th[^>]*>95 %</th>", html)
    assert len(headings) == 3 + 3 + 3 + 1 + 3 + 2 + 2 + 1
    assert all(re.search(r'aria-label="95 % interval of [A-Za-z0-9 ,]+"', heading) for heading in headings)
    bodies = re.findall(r"<tbody>(.*?)</tbody>", html, re.DOTALL)
    assert len(bodies) >= 12
    assert all(
        row.startswith('<th scope="row">') for body in bodies for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    )


def test_the_page_says_how_long_it_took_with_what_on_what(html: str) -> None:
    assert rows_of(html, "Minutes")[1:] == [["prepare", "0.1", ""], ["head", "1.0", "100"], ["total", "1.5", ""]]
    assert ["image_size", "96"] in rows_of(html, "Settings")
    assert ["processor", "a processor"] in rows_of(html, "Machine and software")


def test_what_a_class_is_called_cannot_become_a_script(html: str) -> None:
    assert "<script>alert" not in html
    assert html.count("<script>") == 1


def test_the_gallery_begins_with_the_surest_mistake(content: Content, html: str) -> None:
    probabilities = softmax(content.logits, TEMPERATURE)
    wrong = probabilities.argmax(axis=1) != content.labels
    surest = np.where(wrong, probabilities.max(axis=1), 0).argmax()
    first = re.search(r'<li data-true=.*?src="data:image/png;base64,([^"]*)".*?</li>', html, re.DOTALL)
    assert first is not None
    pixels = tf.io.decode_png(base64.b64decode(first[1]), channels=3).numpy()
    np.testing.assert_array_equal(pixels, content.images[surest])
    assert f"{100 * probabilities[surest].max():.1f}\N{NO-BREAK SPACE}%" in first[0]


def test_a_model_without_a_mistake_has_a_report(content: Content) -> None:
    logits = 9 * np.eye(3, dtype=np.float32)[content.labels]
    metrics = classification_metrics(logits, content.labels, NAMES)
    result = {**content.result, "test": metrics, "calibration": {"temperature": 1.0, "test": metrics}}
    assert "100.00" in report_html(content._replace(result=result, logits=logits))


def imbalanced_content(content: Content) -> Content:
    """A run on twelve images of the first class for each of the second, whose best epoch was chosen by macro F1."""
    chosen = np.flatnonzero((content.labels == 0) | ((content.labels == 1) & (np.arange(300) < 25)))
    logits, labels = content.logits[chosen], content.labels[chosen]
    metrics = classification_metrics(logits, labels, NAMES)
    config = {**content.result["config"], "choose_by": "macro_f1", "class_weights": "auto"}
    result = {**content.result, "test": metrics, "config": config}
    records = [{**record, "validation_macro_f1": 0.4321} for record in content.records]
    return content._replace(result=result, labels=labels, logits=logits, images=content.images[chosen], records=records)


def test_unequal_classes_have_balanced_accuracy_and_weighted_means(content: Content) -> None:
    uneven = imbalanced_content(content)
    test, page, card = uneven.result["test"], report_html(uneven), model_card(uneven)
    percent = f"{100 * test['balanced_accuracy']:.2f}"
    assert f"<dt>balanced accuracy</dt><dd>{percent}\N{NO-BREAK SPACE}%" in page
    assert f"the mean of their recalls, is {percent} % (" in card
    for kind in ("macro", "weighted"):
        low, high = (100 * end for end in test["intervals"][f"{kind}_f1"])
        cells = next(row for row in rows_of(page, "Classes") if row[0] == f"{kind} mean")
        assert cells[5:] == [f"{100 * test[f'{kind}_f1']:.2f} %", f"{low:.1f} to {high:.1f}", f"{test['n']}"]
        assert f"{100 * test[f'{kind}_f1']:.2f} % ({low:.1f} to {high:.1f}) |" in card.split(f"**{kind} mean**")[1]
    assert rows_of(page, "Epochs")[0][4:6] == ["validation accuracy", "validation macro F1"]
    assert rows_of(page, "Epochs")[1][4:6] == ["70.00 %", "43.21 %"]
    assert "The epoch with the best validation macro F1 was exported." in page
    assert "--class_weights=auto" in page
    assert "--class_weights=auto" in card


def test_equal_classes_have_no_mean_that_says_the_same_again(content: Content, html: str) -> None:
    assert [row[0] for row in rows_of(html, "Classes")[-1:]] == ["macro mean"]
    for text in (html, model_card(content)):
        assert "balanced accuracy" not in text
        assert "weighted mean" not in text.lower()


def test_a_run_from_before_balanced_accuracy_has_a_report(content: Content) -> None:
    uneven = imbalanced_content(content)
    older = {name: value for name, value in uneven.result["test"].items() if name != "balanced_accuracy"}
    older["intervals"] = {name: value for name, value in older["intervals"].items() if name != "balanced_accuracy"}
    result = {**uneven.result, "test": older, "config": content.result["config"]}
    for text in (report_html(uneven._replace(result=result)), model_card(uneven._replace(result=result))):
        assert "balanced accuracy" not in text
        assert "weighted mean" in text


def test_a_picture_that_is_gone_leaves_a_sentence(content: Content) -> None:
    text = report_html(content._replace(pictures={}))
    assert text.count("is no longer in the workdir") == 3
    assert "<img class" not in text


def test_page_and_card_say_what_a_run_was(content: Content) -> None:
    result: dict[str, Any] = json.loads(json.dumps(content.result)) | {"commit": "0123456789+changes"}
    result["config"]["data_source"] = "synthetic"
    result["calibration"]["test"] |= {"loss": 0.4321, "calibration_error_by_chance": 0.0654}
    changed = content._replace(result=result)
    page, card = report_html(changed), model_card(changed)
    for text in (page, card):
        assert "0123456+changes" in text
        assert "0.4321" in text
    assert f"{6.54:.2f}\N{NO-BREAK SPACE}%\non as many images, by chance alone" in page
    assert "trained on a synthetic set" in card
    assert "the metrics above say nothing about photographs" in card
    assert "Krizhevsky" not in card
    unknown = content._replace(result=result | {"commit": ""})
    assert "commit unknown" in report_html(unknown)
    assert "commit unknown" in model_card(unknown)


def test_the_card_says_the_figures_of_the_result(content: Content) -> None:
    card = model_card(content)
    test = content.result["test"]
    assert card.partition("---\n\n")[2].startswith("# a run\n")
    assert f"| test | 300 | {100 * test['accuracy']:.2f} % |" in card
    rows = [line for line in card.splitlines() if line.startswith("| cat |")]
    assert "Other formats" not in card
    whole = model_card(with_everything(content))
    assert (
        "| litert_int8 | `exports/litert_int8` | 94.0 | 87.65 % | 87.01 % to 88.01 % | 99.87 % |" in whole.splitlines()
    )
    assert "43.21 % (mean accuracy; 95 % interval 42.11 % to 44.11 %)" in whole
    assert rows == ["| cat | " + " | ".join(f"{100 * test['per_class']['cat'][rate]:.2f} %" for rate in RATES) + " |"]


@pytest.mark.parametrize("name", ["a run", 'a "run": #1 \N{SNOWMAN}', "- {a: [run]}"])
def test_the_hub_reads_the_head_of_the_card(content: Content, name: str) -> None:
    """By the hub's own library."""
    from huggingface_hub import ModelCard

    test = content.result["test"]
    data = ModelCard(model_card(content._replace(name=name))).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("keras", "image-classification", "mit")
    assert (data.datasets, data.metrics, data.model_name) == (["uoft-cs/cifar10"], ["accuracy", "f1"], name)
    found = {result.metric_type: result for result in data.eval_results}
    assert found["accuracy"].metric_value == test["accuracy"]
    assert found["f1"].metric_value == test["macro_f1"]
    assert {(result.task_type, result.dataset_name, result.dataset_split) for result in found.values()} == {
        ("image-classification", "CIFAR-10", "test")
    }


def test_the_card_of_a_drawn_set_names_no_data_set_of_the_hub(content: Content) -> None:
    from huggingface_hub import ModelCard

    config = content.result["config"] | {"data_source": "synthetic"}
    data = ModelCard(model_card(content._replace(result={**content.result, "config": config}))).data
    assert data.datasets is None
    assert {result.dataset_type for result in data.eval_results} == {"synthetic"}


RATES = ("precision", "recall", "f1")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium")
def test_the_page_works_in_a_browser(html: str, content: Content, tmp_path: Path) -> None:
    """On a phone in dark mode: it fits, sorts, filters, opens an image by keyboard, and has nothing to complain about."""
    from playwright.sync_api import sync_playwright

    path = tmp_path / "report.html"
    path.write_text(html)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
        complaints: list[str] = []
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: complaints.append(request.url) if "data:" not in request.url else None)
        tab.goto(path.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        assert tab.evaluate("[...document.images].filter((image) => image.src && !image.naturalWidth).length") == 0
        dark = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert all(int(value) < 60 for value in re.findall(r"\d+", dark))

        def column(number: int) -> list[str]:
            return [cell.inner_text() for cell in tab.locator(f"#per-class tbody tr > :nth-child({number})").all()]

        recalls = sorted(
            (100 * values["recall"] for values in content.result["test"]["per_class"].values()), reverse=True
        )
        shown = [f"{recall:.2f}\N{NO-BREAK SPACE}%" for recall in recalls]
        tab.click("#per-class th:nth-child(4) button")
        assert column(4) == shown
        tab.click("#per-class th:nth-child(4) button")
        assert column(4) == shown[::-1]
        tab.click("#per-class th:nth-child(1) button")
        assert column(1) == sorted(NAMES, reverse=True) or column(1) == sorted(NAMES, key=str.casefold, reverse=True)

        every = tab.locator(".gallery li:visible").count()
        tab.select_option("#class-filter", "cat")
        left = tab.locator(".gallery li:visible")
        assert 0 < left.count() < every
        assert {item.get_attribute("data-true") for item in left.all()} == {"cat"}
        assert tab.inner_text("#shown-count") == f"{left.count()} images"
        left.first.locator("button").focus()
        tab.keyboard.press("Enter")
        assert tab.locator("#viewer").is_visible()
        assert tab.locator("#viewer tbody tr").count() == 3
        tab.keyboard.press("Escape")
        assert not tab.locator("#viewer").is_visible()
        assert complaints == [path.as_uri()]
        browser.close()
