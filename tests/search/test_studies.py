import importlib.util
import json
from pathlib import Path

import pytest

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


def study(name: str):
    spec = importlib.util.spec_from_file_location(f"study_{name}", STUDIES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mitigation_ends_with_the_next_attack():
    fl_wbc = study("fl_wbc")
    plan = fl_wbc.Plan(attacks=8, tail=30)
    confidence = [0.9] * (plan.rounds - fl_wbc.START)
    assert [plan.mitigation(confidence, attack) for attack in (0, 7)] == [4, 31]
    confidence[0] = confidence[4 + 2] = confidence[-1] = 0.4
    assert [plan.mitigation(confidence, attack) for attack in (0, 1, 2, 7)] == [0, 2, 4, 30]
    assert fl_wbc.Plan(3, 15).attacked == (25, 29, 33)


def test_summary_of_fl_wbc(tmp_path):
    fl_wbc = study("fl_wbc")
    rounds = fl_wbc.Plan(8, 30).rounds - fl_wbc.START
    rows = [
        {
            "model": "mlp",
            "partition": "iid",
            "arm": arm,
            "image": image,
            "seed": 0,
            "density": density,
            "accuracy": accuracy,
            "attacks": 8,
            "tail": 30,
        }
        | {"confidence": [0.9 if (round - fl_wbc.START) % 4 < stays else 0.1 for round in range(25, 25 + rounds)]}
        for arm, stays, density, accuracy in (("none", 2, None, 0.8), ("fl_wbc", 1, 0.5, 0.75))
        for image in range(3 if arm == "none" else 2)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    *_, none, defended = fl_wbc.summary(path).splitlines()
    assert "| 3 | 2 2 2 2 2 2 | 2 [2, 2] | 1.00 [1, 1] | 80.0 | +0.0 [0, 0] |" in none
    assert "| 2 | 1 1 1 1 1 1 | 1 [1, 1] | 0.50 [0.5, 0.5] | 75.0 | -5.0 [-5, -5] | 0.500 |" in defended


def test_paired_ratios_of_fl_wbc(tmp_path):
    fl_wbc = study("fl_wbc")
    rounds = fl_wbc.Plan(8, 30).rounds - fl_wbc.START

    def row(arm, image, stays, accuracy):
        seen = [0.9 if (round - 25) % 4 < stays and round < 57 else 0.1 for round in range(25, 25 + rounds)]
        return {"model": "mlp", "partition": "iid", "arm": arm, "image": image, "seed": 0} | {
            "confidence": seen,
            "accuracy": accuracy,
            "density": None,
            "attacks": 8,
            "tail": 30,
        }

    rows = [row("none", image, 4, 0.8) for image in range(3)]
    rows += [row("fl_wbc 0.4", image, stays, 0.75) for image, stays in enumerate((1, 3, 2))]
    rows += [row("median", 1, 3, 0.7)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    _, _, third, last, median, _ = fl_wbc.ratios(path).splitlines()
    assert (
        third
        == "| fl_wbc 0.4 (mlp, iid, 8 attacks) | none | 3 | 3 | 0.50 [0.25, 0.75] | 0.50 [0.25, 0.75] | -5.0 [-5, -5] |"
    )
    assert last == third.replace("| 3 | 3 |", "| 3 | 8 |")
    assert median == "| fl_wbc 0.4 (mlp, iid, 8 attacks) | median | 1 | 3 | 1.00 [1, 1] | 1.00 [1, 1] | +5.0 [5, 5] |"


@pytest.mark.parametrize("retreat", [0.0, 0.3])
def test_summary_of_pdrr(tmp_path, retreat):
    case = {"rule": "krum", "p": 0.0, "attack": "full", "seed": 1, "attack/retreat": retreat}
    rates = {"defense/pdrr/false_alarm_rate": 0.0, "defense/pdrr/missed_alarm_rate": 0.5}
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(case | rates | {"undefended": taken}) for taken in (1.0, 0.0, 0.0)))
    line = study("pdrr").summary(path).splitlines()[-1]
    among = "0.0000 / 0.5000 (1)" if retreat else "(0)"
    assert line == f"| krum | 0.0 | full | 1 | 0.0000 / 0.5000 (1) | {among} | 0.0000 / 0.5000 (2) |"
