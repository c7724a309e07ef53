"""The numbers that the claims compare with the paper: a results table in, one number out.

NaN says that the table lacks the rows a claim needs.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

NAN = float("nan")


def _number(value: Any) -> float:
    """A cell of a table as a float."""
    return float(value)


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """With the workload's plain name; generated stand-ins do not count as the workload."""
    return table[~table["workload"].str.startswith("synthetic-")]


# Characterisation


def least_overlap(table: pd.DataFrame) -> float:
    """The smallest overlap of any two workers on any workload."""
    return _number(_named(table).query("quantity == 'overlap'")["value"].min())


def densification_within_bounds_pct(table: pd.DataFrame) -> float:
    """Share, in %, of doublings of the workers at which gamma^n grows and stays between 1 and n."""
    rows = _named(table).query("quantity == 'densification'")
    curves = rows.pivot(index="x", columns="workload", values="value").sort_index()
    inside = curves.gt(1).mul(curves.lt(curves.index.to_numpy()[:, None]))
    return _number(100 * (inside & curves.diff().gt(0)).iloc[1:].to_numpy().mean()) if len(curves) > 1 else NAN


def least_heaviest_eighth_pct(table: pd.DataFrame) -> float:
    """Share of the heaviest of eight parts, in %, on the workload where it is smallest."""
    rows = _named(table).query("quantity == 'share_in_eight'")
    return _number(100 * rows.groupby("workload")["value"].max().min()) if len(rows) else NAN


def lstm_skewness_at_128(table: pd.DataFrame) -> float:
    """Skewness of the LSTM's embedding gradient in 128 parts."""
    rows = table.query("workload == 'lstm' and quantity == 'skewness' and x == 128")
    return _number(rows["value"].iloc[0]) if len(rows) else NAN


def largest_imbalance(table: pd.DataFrame) -> float:
    """The largest push or pull imbalance of the hash on any workload, elements for units."""
    rows = _named(table).query("quantity in ('push_imbalance', 'pull_imbalance')")
    return _number(rows["value"].max())


# Design space


def balanced_parallelism_at_128(table: pd.DataFrame) -> float:
    """Balanced Parallelism's cost over AllReduce's on 128 workers."""
    rows = table.query("system == 'Balanced Parallelism' and workers == 128")
    return _number(rows["cost_over_ring"].iloc[0]) if len(rows) else NAN


def cheaper_than_ring_at_128(table: pd.DataFrame) -> float:
    """How many of the earlier sparse schemes beat AllReduce on 128 workers."""
    rows = table[(table["workers"] == 128) & table["system"].isin(["AGsparse", "SparCML", "OmniReduce"])]
    return _number((rows["cost_over_ring"] < 1).sum()) if len(rows) else NAN


def break_even_at_16(table: pd.DataFrame) -> float:
    """Overlap above which Balanced Parallelism is cheaper on 16 workers."""
    rows = table[table["workers"] == 16]
    return _number(rows["overlap"].iloc[0]) if len(rows) else NAN


def selector_right_pct(table: pd.DataFrame) -> float:
    """Cases, in %, in which the selector picks the cheapest by counting."""
    return _number(100 * (table["chosen"] == table["cheapest"]).mean())


def published_rule_right_pct(table: pd.DataFrame) -> float:
    """Cases, in %, in which equations 1 and 2 pick the cheaper of Zen as built and SparCML."""
    cheaper = (table["zen_over_sparcml"] < 1).map({True: "zen", False: "sparcml"})
    return _number(100 * (table["published"] == cheaper).mean())


# Hashing and formats


def serial_pct_of_four_hashes(table: pd.DataFrame) -> float:
    """Serial indices, in %, with four hashes and two slots an index."""
    return _number(table.query("hashes == 4 and slots_per_index == 2")["serial_pct"].iloc[0])


def overflowing_settings(table: pd.DataFrame) -> float:
    """Settings of figure 16's sweep whose serial region, a tenth of the parallel one, has no room for all."""
    return _number((table["overflow"] > 0).sum())


def lost_in_hierarchy(table: pd.DataFrame) -> float:
    """Indices lost by Algorithm 1 as built here, over all settings."""
    return _number(table["lost"].sum())


def strawman_loss_at_ten_slots(table: pd.DataFrame) -> float:
    """Loss, in %, where the memory is the dense tensor's and a tenth of it is not zero."""
    return _number(table.query("slots_per_index == 10")["lost_pct"].iloc[0])


def within_bound_pct(table: pd.DataFrame) -> float:
    """Cases, in %, in which a hash or the bijection keeps theorem 2's bound (with constant 1.5 sqrt 2)."""
    rows = table[table["method"].isin(["counting", "bijection"])]
    return _number(100 * (rows["imbalance"] <= rows["bound"]).mean())


def counting_speed(table: pd.DataFrame) -> float:
    """Million elements a second of the counting sort on one core."""
    return _number(table.set_index("method").loc["counting", "million_elements_per_s"])


def counting_over_hierarchical(table: pd.DataFrame) -> float:
    """Speed of the counting sort over Algorithm 1's, both on one core in one run."""
    speeds = table.set_index("method")["million_elements_per_s"]
    return _number(speeds["counting"] / speeds["hierarchical"])


def lstm_table_mb(table: pd.DataFrame) -> float:
    """MB of the decode tables of 406 million parameters at 4 bytes each."""
    return 406 * _number(table.set_index("method").loc["counting", "table_bytes_per_element"])


def hash_bitmap_at_95_pct(table: pd.DataFrame) -> float:
    """Bytes of the hash bitmap over the dense tensor's at a density of 95 %."""
    return _number(table.query("density == 0.95 and system == 'Hash bitmap'")["over_dense"].iloc[0])


def bitmap_density_of_no_gain(table: pd.DataFrame) -> float:
    """The smallest density at which a plain bitmap from every server is no smaller than the dense tensor."""
    rows = table.query("system == 'Bitmap' and over_dense >= 1")
    return _number(rows["density"].min()) if len(rows) else NAN


def bitmap_excess_per_server(table: pd.DataFrame) -> float:
    """Bytes over |G| / 8 of all hash bitmaps together, per server, at worst."""
    return _number((table["excess_bytes"] / table["servers"]).max())


# Communication and training


def _speedup(table: pd.DataFrame, workload: str, scheme: str, over: str = "ring", workers: int = 16) -> float:
    rows = table[(table["workload"] == workload) & (table["workers"] == workers)].set_index("scheme")
    if scheme not in rows.index or over not in rows.index:
        return NAN
    return _number(rows["busiest_bytes"][over] / rows["busiest_bytes"][scheme])


def whole_lstm_speedup(table: pd.DataFrame) -> float:
    """Zen over AllReduce, communication of the paper's LSTM whole, 16 workers."""
    return _whole_speedup(table, "LSTM")


def whole_deepfm_speedup(table: pd.DataFrame) -> float:
    """The same of its DeepFM."""
    return _whole_speedup(table, "DeepFM")


def _whole_speedup(table: pd.DataFrame, model: str) -> float:
    rows = table[(table["model"] == model) & (table["bandwidth_gbps"] == 25)].set_index("scheme")["communication_s"]
    return _number(rows["ring"] / rows["zen"]) if "zen" in rows.index else NAN


def topk_speedup(table: pd.DataFrame) -> float:
    """Zen over AllReduce, top 5 % of a transformer's gradient, 16 workers."""
    return _speedup(table, "topk-transformer", "zen")


def best_over_omnireduce(table: pd.DataFrame) -> float:
    """Zen over OmniReduce in contiguous parts, the workload where it is most, 16 workers."""
    values = [_speedup(table, each, "zen", "omnireduce") for each in _named(table)["workload"].unique()]
    return max(values, default=NAN)


def best_over_sparcml(table: pd.DataFrame) -> float:
    """Zen over SparCML, the workload where it is most, 16 workers."""
    values = [_speedup(table, each, "zen", "sparcml") for each in _named(table)["workload"].unique()]
    return max(values, default=NAN)


def best_over_cyclic_omnireduce(table: pd.DataFrame) -> float:
    """Zen over OmniReduce with blocks dealt out cyclically, as its code does, at most, 16 workers."""
    values = [_speedup(table, each, "zen", "omnireduce-cyclic") for each in _named(table)["workload"].unique()]
    return max(values, default=NAN)


def largest_prediction_error_pct(table: pd.DataFrame) -> float:
    """Largest difference, in %, of a closed form from the bytes that were counted."""
    error = (table["predicted_bytes"] / table["busiest_bytes"] - 1).abs()
    return _number(100 * error[table["busiest_bytes"] > 0].max())


def exact_pct(table: pd.DataFrame) -> float:
    """Runs, in %, whose sum was exact and the same on every rank."""
    return _number(100 * table["exact"].mean())


def row_over_element(table: pd.DataFrame) -> float:
    """Zen by rows over Zen by elements: the gain on the LSTM's embedding, 16 workers."""
    return _speedup(table, "lstm:28", "zen-row", "zen")


def _gain(table: pd.DataFrame, over: str, bandwidth_gbps: float) -> float:
    rows = table[(table["model"] == "LSTM") & (table["bandwidth_gbps"] == bandwidth_gbps)].set_index("scheme")
    return _number(rows["step_s"][over] / rows["step_s"]["zen"]) if over in rows.index else NAN


def lstm_gain_over_sparcml_25(table: pd.DataFrame) -> float:
    """Training throughput of Zen over SparCML's at 25 Gb/s, the paper's LSTM."""
    return _gain(table, "sparcml", 25)


def lstm_gain_over_omnireduce_25(table: pd.DataFrame) -> float:
    """The same over OmniReduce."""
    return _gain(table, "omnireduce", 25)


def lstm_gain_over_sparcml_100(table: pd.DataFrame) -> float:
    """The same over SparCML at 100 Gb/s."""
    return _gain(table, "sparcml", 100)


def loss_difference(table: pd.DataFrame) -> float:
    """Largest difference of the loss between Zen and AllReduce, over all steps and workloads."""
    curves = table.pivot(index=["workload", "step"], columns="system", values="loss")
    return _number((curves["Zen"] - curves["AllReduce"]).abs().max())


def strawman_loss_difference(table: pd.DataFrame) -> float:
    """Mean over the last quarter of the steps of what the lossy strawman's loss is above AllReduce's."""
    curves = table.pivot(index=["workload", "step"], columns="system", values="loss").dropna()
    late = curves[curves.index.get_level_values("step") >= 0.75 * curves.index.get_level_values("step").max()]
    return _number((late["Lossy strawman"] - late["AllReduce"]).mean())


# Real links


def largest_wire_excess_pct(table: pd.DataFrame) -> float:
    """Largest difference, in %, of wire bytes from counted payload, of the rank that sends most, over schemes."""
    rows = table.dropna(subset=["counted_bytes", "wire_bytes"])
    return _number(100 * (rows["wire_bytes"] / rows["counted_bytes"] - 1).abs().max()) if len(rows) else NAN


def _times(table: pd.DataFrame, workload: str, workers: int) -> pd.Series:
    rows = table[(table["workload"] == workload) & (table["workers"] == workers)]
    return rows.groupby("system")["seconds"].median()


def links_topk_speedup(table: pd.DataFrame) -> float:
    """PyTorch's dense all-reduce over Zen, seconds on real links, top-5 % gradient, 4 workers."""
    times = _times(table, "topk-lstm", 4)
    return _number(times["torch-allreduce"] / times["zen"]) if "zen" in times.index else NAN


def links_embedding_speedup(table: pd.DataFrame) -> float:
    """PyTorch's dense all-reduce over Zen by rows, seconds on real links, LSTM embedding, 8 workers."""
    times = _times(table, "lstm", 8)
    return _number(times["torch-allreduce"] / times["zen-row"]) if "zen-row" in times.index else NAN


TRAINING_CASE = ["workload", "workers", "rate_mbps"]


def hook_loss_difference(table: pd.DataFrame) -> float:
    """Largest difference of the loss, over all steps, between stock DDP and the hook by rows."""
    curves = table.pivot(index=[*TRAINING_CASE, "step"], columns="system", values="loss")
    return _number((curves["Zen (rows)"] - curves["Stock DDP"]).abs().max())


def _seconds(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """A row a case, a column a system."""
    return table.pivot_table(index=TRAINING_CASE, columns="system", values=column, aggfunc="max", dropna=False)


def hook_training_speedup(table: pd.DataFrame) -> float:
    """Samples a second by the chosen scheme over stock DDP's with dense gradients, in the worst case."""
    elapsed = _seconds(table, "elapsed_s")
    return _number((elapsed["Stock DDP, dense"] / elapsed["Chosen"]).min())


def hook_training_speedup_sparse(table: pd.DataFrame) -> float:
    """Samples a second by the chosen scheme over stock DDP's with sparse gradients, in the worst case."""
    elapsed = _seconds(table, "elapsed_s")
    return _number((elapsed["Stock DDP"] / elapsed["Chosen"]).min())


def hook_overhead_pct(table: pd.DataFrame) -> float:
    """The hook's own seconds, by rows, over what it saves of stock DDP (dense gradients); worst case, in %."""
    return _overhead_pct(table, "Stock DDP, dense")


def hook_overhead_sparse_pct(table: pd.DataFrame) -> float:
    """The hook's own seconds, by rows, over what it saves of stock DDP (sparse gradients); worst case, in %."""
    return _overhead_pct(table, "Stock DDP")


def _overhead_pct(table: pd.DataFrame, base: str) -> float:
    """100 where nothing is saved."""
    elapsed, own = _seconds(table, "elapsed_s"), _seconds(table, "own_s")["Zen (rows)"]
    saved = elapsed[base] - elapsed["Zen (rows)"] + own
    return 100 * _number((own / saved).where((saved > own) | saved.isna(), 1.0).max())
