import re
from typing import Any

from cifar_keras.reporting.tables import averages_table, exports_table, metrics_table, robustness_table


def metrics(names: list[str]) -> dict[str, Any]:
    figures = {"precision": 0.91239, "recall": 0.5, "f1": 1.0, "support": 1000}
    means = {"macro_precision": 0.81111, "macro_recall": 0.82222, "macro_f1": 0.83333}
    means |= {"weighted_precision": 0.71111, "weighted_recall": 0.72222, "weighted_f1": 0.73333}
    headline = {
        "n": 10000,
        "loss": 0.41236,
        "accuracy": 0.87654,
        "top5": 0.995,
        "balanced_accuracy": 0.82222,
        "intervals": {"accuracy": [0.87, 0.88309], "balanced_accuracy": [0.8, 0.84444]}
        | {name: [value - 0.01, 1.0] for name, value in means.items()},
    }
    return {**headline, **means, "per_class": dict.fromkeys(names, figures), "confusion_matrix": []}


def test_every_figure_is_in_its_row() -> None:
    lines = metrics_table(metrics(["cat", "automobile"]), "test split").splitlines()
    assert lines[0] == "test split, 10,000 images"
    # Of two classes, every label is among the five most probable ones.
    assert lines[1] == "accuracy 87.65 % (87.00 to 88.31)   loss 0.4124"
    lines_of_six = metrics_table(metrics([*"abcdef"]), "test split").splitlines()
    assert lines_of_six[1] == "accuracy 87.65 % (87.00 to 88.31)   top-5 99.50 %   loss 0.4124"
    rows = {line.rsplit(maxsplit=4)[0]: line.split()[-4:] for line in lines[3:] if line.strip("-")}
    assert rows["class, in %"] == ["precision", "recall", "F1", "images"]
    assert rows["cat"] == rows["automobile"] == ["91.24", "50.00", "100.00", "1,000"]
    assert rows["macro mean"] == ["81.11", "82.22", "83.33", "10,000"]
    assert lines[-1].split() == ["95", "%", "80.1-100", "81.2-100", "82.3-100"]


def imbalanced_metrics() -> dict[str, Any]:
    of_both = metrics(["rest", "eight"])
    rare = of_both["per_class"]["eight"] | {"support": 50}
    return of_both | {"per_class": of_both["per_class"] | {"eight": rare}}


def test_means_that_differ_are_told_where_classes_have_unequally_many_images() -> None:
    table = metrics_table(imbalanced_metrics(), "test split")
    lines = table.splitlines()
    assert lines[2] == "balanced accuracy 82.22 % (80.00 to 84.44)"
    assert lines[-2].split() == ["weighted", "mean", "71.11", "72.22", "73.33", "10,000"]
    assert lines[-1].split() == ["95", "%", "70.1-100", "71.2-100", "72.3-100"]
    assert max(map(len, lines)) <= 80
    equal = metrics_table(metrics(["cat", "automobile"]), "test split")
    assert "balanced" not in equal
    assert "weighted" not in equal


def test_columns_are_aligned() -> None:
    lines = metrics_table(imbalanced_metrics(), "test split").splitlines()[4:]
    assert len({len(line) for line in lines if "95 %" not in line}) == 1
    ends = [match.end() for line in lines[-2:] for match in re.finditer(r"\S+", line)]
    assert ends[2:5] == ends[-3:]  # an interval ends where its mean does


def test_an_older_run_without_a_metric_has_a_dash() -> None:
    result = {"test": imbalanced_metrics(), "calibration": {"test": {"loss": 0.4}}}
    older = {**result, "test": {**result["test"], "intervals": {"accuracy": [0.8, 0.9]}}}
    lines = averages_table(["new", "old"], [result, older]).splitlines()
    assert lines[1].split() == [
        *("new", "82.22", "%", "(80.00", "to", "84.44)", "83.33", "%", "(82.33", "to"),
        *("100.00)", "73.33", "%", "(72.33", "to", "100.00)", "-"),
    ]
    assert lines[2].split() == ["old", "-", "-", "-", "-"]
    assert len({len(line) for line in lines}) == 1


def test_no_line_is_wider_than_a_terminal() -> None:
    names = ["a name of a class that is longer than the room there is for it, by far", "cat"]
    table = metrics_table(metrics(names), "a title " * 20)
    assert max(map(len, table.splitlines())) <= 80
    assert "a name of a class that is longer ...      91.24" in table


def test_rows_of_robustness_and_exports_are_laid_out() -> None:
    row = {"kind": "views", "name": "flip", "n": 1000, "accuracy": 0.91, "loss": 0.25, "calibration_error": 0.0123}
    lines = robustness_table(
        [row | {"intervals": {"accuracy": [0.9, 0.92], "calibration_error": [0.01, 0.02]}}]
    ).splitlines()
    assert len(lines[0]) == len(lines[1])
    assert lines[1].split() == [
        *("views:", "flip", "1,000"),
        *("91.00", "%", "(90.00", "to", "92.00)", "0.2500", "1.23", "%", "(1.00", "to", "2.00)"),
    ]
    export: dict[str, object] = {
        "bytes": 24_270_000,
        "share_of_float32": 0.258,
        "logit_difference": 0.012,
        "agreement": 0.99,
    }
    export |= {"accuracy": 0.9, "intervals": {"accuracy": [0.89, 0.9111]}, "images_per_second": 43.4}
    table = exports_table({"onnx": export | {"within_bounds": True}, "litert": export | {"within_bounds": False}})
    assert len({len(line) for line in table.splitlines()}) == 1
    assert table.splitlines()[1].split() == [
        *("onnx", "24.3", "25.80", "%", "1.2e-02", "99.00", "%", "90.00", "%", "(89.00", "to", "91.11)", "43", "yes")
    ]
    assert table.splitlines()[2].split()[-1] == "NO"
