"""Parameters and multiply-adds of every preset beside the published numbers."""

import json

from sf_llava.benchmark import cost_table


def test_costs_are_the_published_ones_within_half_a_percent(tmp_path):
    counted = cost_table.run(tmp_path)
    for cost in counted:
        for value, official, paper in (
            (cost.parameters, cost.official_parameters, cost.paper_parameters),
            (cost.multiply_adds, cost.official_multiply_adds, cost.paper_multiply_adds),
        ):
            off = cost_table.deviation(value, official, paper)
            assert off is None or abs(off) < 0.005, cost
    rows = json.loads((tmp_path / "costs.json").read_text())["rows"]
    assert len(rows) == len(counted)
