"""The published numbers on the paper's own ShareGPT trace, exactly, with fidelity `published`."""

import numpy as np
import pytest

from artifact.prefix_cache.index.fidelity import CORRECTED, PUBLISHED, Fidelity
from artifact.prefix_cache.simulation import GB, INFINITE, MARCONI, SGLANG, VANILLA, VLLM, replay
from artifact.prefix_cache.spec import MARCONI_7B
from artifact.prefix_cache.workloads.importers import sharegpt as sharegpt_at
from figures.marconi.latency import p95_ms, ttft_ms

EXPECTED = {  # token hit rate in %, FLOPs saved in 1e12
    VLLM: (5.2087, 987.0723),
    SGLANG: (48.8750, 9283.8053),
    MARCONI: (52.6446, 9999.6325),
}


def rate(trace, system, capacity_gb=3, spec=MARCONI_7B, fidelity=PUBLISHED, **options):
    result = replay(trace, spec, system=system, capacity_bytes=capacity_gb * GB, fidelity=fidelity, **options)
    return round(100 * result.token_hit_rate, 4)


@pytest.mark.parametrize("system", EXPECTED)
def test_hits_and_flops_at_three_gigabytes(sharegpt, system):
    result = replay(sharegpt, MARCONI_7B, system=system, capacity_bytes=3 * GB, fidelity=PUBLISHED)
    assert (round(100 * result.token_hit_rate, 4), round(result.flops_saved / 1e12, 4)) == EXPECTED[system]


def test_the_tuner_fires_where_it_did(sharegpt):
    result = replay(sharegpt, MARCONI_7B, system=MARCONI, capacity_bytes=3 * GB, fidelity=PUBLISHED)
    assert (result.first_eviction_request, result.alpha, result.tuned) == (79, 0.0, True)


def test_static_alphas(sharegpt):
    assert rate(sharegpt, MARCONI, alpha=1.0) == 40.8655
    rates = {step / 10: rate(sharegpt, MARCONI, alpha=step / 10) for step in range(21)}
    assert max(rates, key=rates.get) == 0.1 and rates[0.1] == 54.8803


@pytest.mark.parametrize(
    ("fidelity", "alpha", "expected"),
    [
        ("published+B1", 0.0, 52.99),
        ("published+B2", 1.0, 46.22),
        ("published+B2+B3", 1.0, 53.83),
        ("published+B2+B3", 0.5, 53.23),
        ("published+B6", 1.0, 40.87),
    ],
)
def test_single_corrections(sharegpt, fidelity, alpha, expected):
    assert round(rate(sharegpt, MARCONI, fidelity=Fidelity.parse(fidelity), alpha=alpha), 2) == expected


@pytest.mark.parametrize(
    ("block", "expected"), [(8, 3.59), (16, 3.61), (32, 5.21), (64, 9.53), (128, 17.21), (256, 29.97)]
)
def test_block_sizes(sharegpt, block, expected):
    assert round(rate(sharegpt, VLLM, block_size=block), 2) == expected


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ((32, 4), (6.67, 63.19, 70.66)),
        ((30, 6), (6.87, 56.69, 61.12)),
        ((28, 8), (7.07, 49.00, 51.66)),
        ((24, 12), (7.53, 37.72, 37.83)),
        ((0, 36), (13.77, 13.20, 11.61)),
    ],
)
def test_layer_compositions(sharegpt, layers, expected):
    spec = MARCONI_7B.with_layers(*layers, 36)
    assert tuple(round(rate(sharegpt, system, 5, spec), 2) for system in EXPECTED) == expected


@pytest.mark.parametrize(
    ("d_state", "expected"),
    [
        (16, (23.88, 67.90, 70.59)),
        (32, (15.52, 64.29, 67.03)),
        (64, (9.02, 58.38, 61.87)),
        (128, (5.21, 48.87, 52.64)),
    ],
)
def test_state_dimensions(sharegpt, d_state, expected):
    spec = MARCONI_7B.with_state_dim(d_state)
    found = [rate(sharegpt, system, 3, spec) for system in EXPECTED]
    assert found == pytest.approx(expected, abs=0.0051)


def test_an_infinite_cache_is_the_ceiling(sharegpt):
    ceiling = replay(sharegpt, MARCONI_7B, system=INFINITE).token_hit_rate
    assert round(100 * ceiling, 4) == 93.4529
    for system in EXPECTED:
        assert replay(sharegpt, MARCONI_7B, system=system, capacity_bytes=GB).token_hit_rate <= ceiling


@pytest.fixture(scope="module")
def configurations(sharegpt):
    """Hit rates and P95 times over the paper's 36 configurations, for both fidelities."""
    rows = {}
    for sessions_per_s in (0.25, 0.5, 1, 2, 5, 10):
        trace = sharegpt_at(sessions_per_s=sessions_per_s)
        for capacity_gb in (1, 2, 3, 4, 5, 10):
            for fidelity in (PUBLISHED, CORRECTED):
                results = {
                    system: replay(trace, MARCONI_7B, system=system, capacity_bytes=capacity_gb * GB, fidelity=fidelity)
                    for system in (*EXPECTED, VANILLA)
                }
                rows[fidelity, sessions_per_s, capacity_gb] = results
    return rows


def column(configurations, fidelity, value):
    return {
        system: np.array([value(results[system]) for key, results in configurations.items() if key[0] == fidelity])
        for system in (*EXPECTED, VANILLA)
    }


def test_the_ratios_over_the_36_configurations(configurations):
    rates = column(configurations, PUBLISHED, lambda result: result.token_hit_rate)
    ratio, win = rates[MARCONI] / rates[VLLM], 100 * (rates[MARCONI] / rates[SGLANG] - 1)
    assert round(ratio.mean(), 2) == 7.33
    assert [round(x, 2) for x in np.percentile(ratio, [5, 50, 95])] == [3.95, 8.05, 9.85]
    assert round(np.percentile(win, 95), 2) == 18.97
    assert [round(x, 2) for x in (win.mean(), np.median(win), win.max(), win.min())] == [
        6.57,
        7.82,
        29.1,
        -36.63,
    ]
    fired = column(configurations, PUBLISHED, lambda result: result.tuned)[MARCONI]
    positive = column(configurations, PUBLISHED, lambda result: (result.alpha or 0) > 0)[MARCONI]
    assert (fired.sum(), positive.sum()) == (32, 19)


def test_the_reductions_of_the_p95_time_to_first_token(configurations):
    times = column(configurations, PUBLISHED, lambda result: p95_ms(result.input_length - result.hit_tokens))
    found = {}
    for system in (VANILLA, VLLM, SGLANG):
        less = times[system] - times[MARCONI]
        found[system] = (round(100 * (less / times[VANILLA]).max(), 2), round(less.max(), 2))
    assert found == {VANILLA: (73.16, 106.33), VLLM: (71.07, 103.28), SGLANG: (12.76, 18.54)}


def test_the_corrected_cache_never_loses_to_sglang_here_nor_exceeds_its_capacity(configurations):
    rates = column(configurations, CORRECTED, lambda result: result.token_hit_rate)
    assert np.all(rates[MARCONI] >= rates[SGLANG])
    for (fidelity, _, capacity_gb), results in configurations.items():
        if fidelity == CORRECTED:
            assert max(result.peak_bytes for result in results.values()) <= capacity_gb * GB


def test_the_line_of_the_time_to_first_token():
    assert ttft_ms(np.array([0, 49, 1000, 4000, 16000, 31000, 10**6])).round(1).tolist() == [
        20.5,
        20.5,
        73.4,
        232.3,
        867.9,
        1662.4,
        1710.0,
    ]
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        ttft_ms(np.array([3, -1]))
