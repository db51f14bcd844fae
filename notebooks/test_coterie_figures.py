"""Tests of coterie_figures. Expected numbers come from counting by hand or from `coterie` itself."""

import json
import tempfile
import unittest
from pathlib import Path

import numpy as np
import pandas as pd

import coterie_figures as cf


class Reading(unittest.TestCase):
    def test_trace_has_the_shape_that_the_program_reports(self):
        trace = cf.read_trace(cf.BUNDLED_TRACE)
        info = cf.coterie_json("trace", "info", cf.BUNDLED_TRACE)
        self.assertEqual(trace.layers, [layer["layer"] for layer in info["layers"]])
        loads = np.bincount(trace.experts[0].ravel(), minlength=trace.num_experts)
        self.assertAlmostEqual(loads.max() / loads.mean(), info["layers"][0]["load"]["max_over_mean"], places=12)

    def test_co_activation_counts_the_pairs_that_the_program_counts(self):
        trace = cf.read_trace(cf.BUNDLED_TRACE)
        pairs = cf.co_activation(trace.experts[0], trace.num_experts)
        top = cf.coterie_json("trace", "info", cf.BUNDLED_TRACE)["layers"][0]["collaboration"]["top_pairs"][0]
        self.assertEqual(pairs[tuple(top["experts"])], top["tokens"])
        self.assertEqual(pairs.max(), top["tokens"])

    def test_fanout_agrees_with_analyze(self):
        trace = cf.read_trace(cf.BUNDLED_TRACE)
        placement = cf.place(cf.BUNDLED_TRACE, 8, "collaboration")
        odd = trace.part("odd")
        means = [cf.fanout(trace.experts[idx][odd], cf.rank_of(placement, layer)).mean()
                 for idx, layer in enumerate(trace.layers)]
        analysed = cf.coterie_json("analyze", cf.BUNDLED_TRACE, "--ranks", 8, "--strategy", "collaboration")
        self.assertAlmostEqual(float(np.mean(means)), analysed["mean"]["fanout_ranks"], places=12)

    def test_fanout_by_hand(self):
        ranks = np.array([0, 0, 1, 1, 2, 2])
        self.assertEqual(cf.fanout(np.array([[0, 1], [0, 2], [5, 4]]), ranks).tolist(), [1, 2, 1])

    def test_a_damaged_trace_is_refused(self):
        data = bytearray(cf.BUNDLED_TRACE.read_bytes())
        data[200] ^= 1
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bad.moet"
            path.write_bytes(data)
            with self.assertRaisesRegex(ValueError, "damaged"):
                cf.read_trace(path)

    def test_the_programs_own_sentence_is_the_error(self):
        with self.assertRaisesRegex(cf.ProgramError, "nowhere.moet"):
            cf.coterie("trace", "info", "nowhere.moet")


class Tables(unittest.TestCase):
    ROWS = pd.DataFrame({
        "set.ranks": [8, 8, 16], "status": ["ok", "ok", "failed"], "error": ["", "", "too large"],
        "run": ["dedup", "placed", "dedup"], "time_s": [4.0, 2.0, np.nan], "pack_s": [0.5, 0.5, np.nan],
        "busiest_link": "gpu 0 nic in", "busiest_link_tier": "network",
        "expand_s": [0.0, 0.0, np.nan], "mlp_s": [1.0, 0.5, np.nan], "merge_s": [0.0, 0.0, np.nan],
        "sum_s": [0.5, 0.0, np.nan]})

    def test_sweep_leaves_out_failures_and_derives_shares(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sweep.csv"
            self.ROWS.to_csv(path, index=False)
            table = cf.read_sweep(path)
        self.assertEqual(table["compute_s"].tolist(), [2.0, 1.0])
        self.assertEqual(table["exposed_share"].tolist(), [0.5, 0.5])

    def test_ratio_is_against_the_same_point(self):
        table = cf.with_ratio(self.ROWS[self.ROWS["status"] == "ok"], ["set.ranks"])
        self.assertEqual(table["speedup"].tolist(), [1.0, 2.0])
        with self.assertRaisesRegex(ValueError, "axis is missing"):
            cf.with_ratio(pd.concat([self.ROWS, self.ROWS]), ["set.ranks"])

    def test_condensed_table_reads_back(self):
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "sweep.csv", Path(folder) / "small.csv"
            self.ROWS.to_csv(source, index=False)
            cf.condense(source, target, ["from a test"])
            self.assertTrue(target.read_text().startswith("# from a test\n"))
            self.assertEqual(cf.read_sweep(target)["exposed_share"].tolist(), [0.5, 0.5])

    def test_the_programs_parquet_is_its_csv(self):
        import pyarrow.parquet

        with tempfile.TemporaryDirectory() as folder:
            sweep = Path(folder) / "sweep.yaml"
            sweep.write_text(f"schema_version: 1\nbase: {cf.ROOT}/workloads/examples/synthetic.yaml\nbaseline: {{run: dedup}}\n"
                             "axes: [{key: ranks, values: [128, 8, 4]}, {key: tokens_per_rank, values: [64]}]\n")
            # The failed point gives the sweep its exit code; the others are written.
            with self.assertRaisesRegex(cf.ProgramError, "found 8 GPUs, expected at least 128"):
                cf.coterie("sweep", sweep, "-o", Path(folder) / "out", "--set", "engine=flow")
            parquet = pyarrow.parquet.read_table(Path(folder) / "out" / "sweep.parquet").to_pandas()
            csv = pd.read_csv(Path(folder) / "out" / "sweep.csv")
        self.assertEqual(list(parquet), list(csv))
        self.assertEqual(parquet["status"].tolist(), ["failed"] + ["ok"] * 12)
        self.assertEqual(parquet["set.ranks"].tolist(), csv["set.ranks"].astype(str).tolist())
        for name in csv.select_dtypes("number"):
            if not name.startswith("set.") and csv[name].notna().any():
                np.testing.assert_array_equal(parquet[name].to_numpy(dtype=float), csv[name].to_numpy(dtype=float), name)
        self.assertEqual(parquet["run"].dropna().tolist(), csv["run"].dropna().tolist())

    def test_gain_is_the_best_over_the_best_of_each_point(self):
        table = pd.DataFrame({"ranks": [8] * 6, "layer": [5] * 3 + [20] * 3, "run": ["a", "b", "c"] * 2,
                              "time_s": [4.0, 3.0, 1.5, 8.0, 9.0, 1.0]})
        per_layer = cf.gain(table, ["ranks", "layer"], ["c"], ["a", "b"])
        self.assertEqual(per_layer.tolist(), [2.0, 8.0])
        self.assertAlmostEqual(cf.gain(table, ["ranks"], ["c"], ["a", "b"], across="layer").item(), 4.0)

    def test_chain_is_what_each_run_adds_to_the_one_before(self):
        table = pd.DataFrame({"ranks": [8] * 6, "trace": ["law"] * 3 + ["intent"] * 3, "run": ["a", "b", "c"] * 2,
                              "time_s": [8.0, 4.0, 2.0, 8.0, 1.0, 2.0]})
        chain = cf.chain(table, ["ranks"], ["a", "b", "c"], across="trace")
        self.assertEqual(chain.loc[(8, "a")].tolist(), [1.0] * 6)
        relative, factor, low, high, factor_low, factor_high = chain.loc[(8, "c")]
        self.assertAlmostEqual(relative, 0.25)                        # both 2 of 8
        self.assertAlmostEqual(factor, 1.0)                           # 2 and 1/2 times b
        self.assertEqual([low, high, factor_low, factor_high], [0.25, 0.25, 0.5, 2.0])

    def test_what_binds(self):
        table = pd.DataFrame({"busiest_link": ["gpu 3 scale-up in", "gpu 3 network cap out", "gpu 1 nic in", "leaf 0 to spine 2", "gpu 1 nic in"],
                              "busiest_link_tier": ["scale_up"] + ["network"] * 4, "time_s": [1.0] * 5,
                              "pack_s": [0, 0, 0, 0, 0.1], "expand_s": 0.0, "mlp_s": [0.2, 0.2, 0.2, 0.2, 0.4], "merge_s": 0.0, "sum_s": 0.0})
        self.assertEqual(cf.binding(table).tolist(), ["NVLink", "NIC", "NIC", "fabric", "kernels and MLP"])

class Drawing(unittest.TestCase):
    def test_bands_draw_the_named_trace_and_the_range(self):
        table = pd.DataFrame({"run": "dedup", "trace.file": ["law", "intent", "law"], "num_gpus": [8, 8, 16], "time_s": [1.0, 3.0, 2.0]})  # one trace only at 16
        figure, axis = cf.plt.subplots()
        cf.bands(axis, table, "num_gpus", "time_s", ["dedup"], scale=10.0, line="law")
        self.assertEqual(axis.lines[0].get_ydata().tolist(), [10.0, 20.0])
        band = axis.collections[0].get_paths()[0].vertices
        self.assertEqual((band[:, 1].min(), band[:, 1].max()), (10.0, 30.0))
        cf.plt.close(figure)

    def test_named_map_colours_each_cell_by_its_name(self):
        names = pd.DataFrame([["a", "b"]], index=["row"], columns=[1, 2])
        figure, axis = cf.plt.subplots()
        cf.named_map(axis, names, {"b": "#000000", "a": "#FFFFFF"}, names)
        self.assertEqual(axis.images[0].get_array().tolist(), [[1, 0]])
        self.assertEqual([text.get_color() for text in axis.texts], ["black", "white"])
        cf.plt.close(figure)


class Steps(unittest.TestCase):
    def test_groups_hold_every_part_of_a_step_once(self):
        for name in ("steps_train", "steps_decode", "steps_v3"):
            table = cf.read_sweep(cf.RESULTS / f"{name}.csv")
            # Four digits per part.
            np.testing.assert_allclose(cf.step_groups(table).sum(axis=1), table["run_time_s"], rtol=2e-3, err_msg=name)

    def test_spans_of_a_part_join_over_small_gaps(self):
        spans = pd.DataFrame({"name": ["permute half 1", "experts half 1", "permute half 1", "permute half 1", "permute half 1"],
                              "begin_s": [0.0, 1.0, 2.0, 3.1, 9.0], "end_s": [1.0, 2.0, 3.0, 4.0, 9.5]})
        self.assertEqual(cf.joined_spans(spans, 0.5), [("permute", 0.0, 1.0), ("experts", 1.0, 2.0), ("permute", 2.0, 4.0), ("permute", 9.0, 9.5)])

    def test_timeline_holds_what_the_program_says_of_the_step(self):
        spans = cf.step_timeline(cf.HERE / "sweeps" / "steps_timeline.yaml", {"step.batch.tokens_per_gpu": 2048})
        with tempfile.TemporaryDirectory() as folder:
            cf.coterie("simulate", cf.HERE / "sweeps" / "steps_timeline.yaml", "-o", folder, "--step-method", "executed", "--set", "step.batch.tokens_per_gpu=2048")
            step = json.loads((Path(folder) / "results.json").read_text())["runs"][0]["step"]
        kernels = spans[spans["track"] == "rank 0"]
        self.assertAlmostEqual(spans["end_s"].max(), step["time_s"], delta=1e-9)
        attention = kernels[kernels["name"] == "attention"]
        self.assertEqual(len(attention), 27)  # layers
        self.assertAlmostEqual((attention["end_s"] - attention["begin_s"]).sum(), dict(step["parts"])["attention"], delta=1e-9)

    def test_a_waterfall_ends_at_the_step(self):
        figure, axis = cf.plt.subplots()
        cf.waterfall(axis, pd.Series({"experts": 2.0, "bubble": 1.0, "optimizer": 0.0}))
        bars = [(bar.get_x(), bar.get_width()) for bar in axis.patches]
        self.assertEqual(bars, [(0.0, 2.0), (2.0, 1.0), (0.0, 3.0)])
        cf.plt.close(figure)


class Notebooks(unittest.TestCase):
    def test_notebooks_are_committed_without_outputs(self):
        for path in cf.HERE.glob("*.ipynb"):
            for cell in json.loads(path.read_text())["cells"]:
                self.assertFalse(cell.get("outputs"), f"{path.name} holds outputs")
                self.assertIsNone(cell.get("execution_count"), path.name)

    def test_committed_tables_and_figures_are_small(self):
        for folder, limit in ((cf.RESULTS, 2_000_000), (cf.FIGURES, 300_000)):
            for path in folder.glob("*.*"):
                self.assertLess(path.stat().st_size, limit, path.name)


if __name__ == "__main__":
    unittest.main()
