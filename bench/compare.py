"""Time all contenders of the benchmark files, interleaved in one run, and report ratios.

    python bench/compare.py                       every file; writes bench/results/<file>.json and .md
    python bench/compare.py sum_tree replay       these files only
    python bench/compare.py sum_tree --case update --size capacity=1000000    a part: printed only

The threads of all contenders: FASTRL_NUM_THREADS (1).  Run it on a quiet machine, with the peers that the `bench` extra
installs; a peer that is missing is left out and named.
"""

import argparse
import gc
import importlib
import json

import numpy as np
from _harness import OURS, RESULTS, NotApplicable, interleave, machine, size_label

FILES = (
    "sum_tree",
    "gather_rows",
    "n_step_gather",
    "scans",
    "jax",
    "replay",
    "replay_stacks",
    "loader",
    "heads",
    "tanh_normal",
    "adam",
    "conjugate_gradient",
    "mlp",
    "cem",
    "envs",
    "distributional",
)


def run_size(case, size, args):
    calls, skipped = {}, {}
    for name, factory in case.contenders.items():
        if args.only and not any(text in name for text in (OURS, *args.only)):
            continue
        try:
            calls[name] = factory(**size)
        except (ImportError, NotApplicable) as reason:
            skipped[name] = str(reason).splitlines()[0]
    times = interleave(calls, args.rounds, args.block_ms)
    results = {}
    for name, t in times.items():
        low, median, high = np.percentile(t, (25, 50, 75))
        results[name] = {"us": round(median, 3), "us_25": round(low, 3), "us_75": round(high, 3)}
        if OURS in times:
            results[name]["ratio"] = round(float(np.median(t / times[OURS])), 3)
    del calls
    gc.collect()
    return {"case": case.name, "size": dict(size), "results": results, "skipped": skipped}


def print_record(record):
    print(f"\n{record['case']} {size_label(record['size'])}")
    for name, r in sorted(record["results"].items(), key=lambda item: item[1]["us"]):
        print(f"  {name:42s} {r['us']:11.2f} us   x {r.get('ratio', float('nan')):8.2f}")
    for name, why in record["skipped"].items():
        print(f"  {name:42s} left out: {why}", flush=True)


def cell(name, result):
    if result is None:
        return "-"
    us = f"{result['us']:.3g}" if result["us"] < 100 else f"{result['us']:.0f}"
    return us if name == OURS or "ratio" not in result else f"{us} ({result['ratio']:.1f}x)"


def markdown(file, report, command):
    m = report["machine"]
    lines = [
        f"# {file}",
        "",
        f"`{command}` with {m['threads']} thread(s) on {m['cpu']} ({m['cores']} cores, {m['system']}); "
        f"backend {m['cpu_backend']}, {m['simd']}.",
        "Median microseconds a call; in brackets the median, over interleaved rounds, of time / time of `fastrl`.",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in m["versions"].items()) + "." + f" {report['note']}".rstrip(),
    ]
    cases = list(dict.fromkeys(r["case"] for r in report["records"]))
    for case in cases:
        records = [r for r in report["records"] if r["case"] == case]
        names = list(dict.fromkeys(n for r in records for n in r["results"]))
        lines += ["", f"## {case}", "", "| size | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for r in records:
            cells = [cell(name, r["results"].get(name)) for name in names]
            lines.append(f"| {size_label(r['size'])} | " + " | ".join(cells) + " |")
        skipped = {n: why for r in records for n, why in r["skipped"].items()}
        if skipped:
            lines += ["", "Left out: " + "; ".join(f"{n} ({why})" for n, why in skipped.items()) + "."]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="file", help=f"of {', '.join(FILES)}; all when none is given")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--size", action="append", default=[], metavar="KEY=VALUE", help="only these sizes; repeatable")
    parser.add_argument("--only", action="append", help="fastrl and contenders whose name contains this")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--block-ms", type=float, default=4.0, help="how long a contender is timed a round")
    parser.add_argument("--note", default="", help="a remark to keep with the results")
    args = parser.parse_args()
    unknown = set(args.files) - set(FILES)
    if unknown:
        parser.error(f"no such file: {', '.join(sorted(unknown))}; there are {', '.join(FILES)}")
    wanted = [text.split("=", 1) for text in args.size]

    for file in args.files or FILES:
        records = []
        for case in importlib.import_module(f"bench_{file}").CASES:
            for size in case.sizes:
                if args.case in case.name and all(str(size.get(key, value)) == value for key, value in wanted):
                    records.append(run_size(case, size, args))
                    print_record(records[-1])
        if records and not (args.case or args.size or args.only):
            how = {"note": args.note, "rounds": args.rounds, "block_ms": args.block_ms}
            report = {"machine": machine(), **how, "records": records}
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{file}.json").write_text(json.dumps(report, indent=1) + "\n")
            (RESULTS / f"{file}.md").write_text(markdown(file, report, f"python bench/compare.py {file}"))


if __name__ == "__main__":
    main()
